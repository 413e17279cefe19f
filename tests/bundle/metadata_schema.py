"""What meta_schema_20240725.json of MONAI requires of a bundle's metadata, and the types that it gives.

Source: project-monai.github.io/schema/. Stricter in what is ours to keep: no empty text, nothing unknown in a format.
"""

from __future__ import annotations

from typing import Any

DATA_FORMAT: dict[str, Any] = {
    "type": "object",
    "required": ["inputs", "outputs"],
    "additionalProperties": {
        "type": "object",
        "minProperties": 1,
        "additionalProperties": {
            "type": "object",
            "required": ["type", "format", "num_channels", "spatial_shape", "dtype", "value_range"],
            "properties": {
                "type": {"type": "string"},
                "format": {"type": "string"},
                "modality": {"type": "string"},
                "num_channels": {"type": "integer"},
                "spatial_shape": {"type": "array", "items": {"type": ["string", "integer"]}},
                "dtype": {"type": "string"},
                "value_range": {"type": "array", "items": {"type": "number"}},
                "is_patch_data": {"type": "boolean"},
                "channel_def": {"type": "object", "additionalProperties": {"type": "string"}},
            },
        },
    },
}
_TEXT_IF_THERE = ("data_source", "data_type", "image_classes", "label_classes", "pred_classes", "intended_use")
METADATA: dict[str, Any] = {
    "type": "object",
    "required": [
        "schema",
        "version",
        "monai_version",
        "pytorch_version",
        "numpy_version",
        "required_packages_version",
        "task",
        "description",
        "authors",
        "copyright",
        "network_data_format",
    ],
    "properties": {
        "version": {"type": "string"},
        "monai_version": {"type": "string"},
        "pytorch_version": {"type": "string"},
        "numpy_version": {"type": "string"},
        "task": {"type": "string", "minLength": 1},
        "description": {"type": "string", "minLength": 1},
        "authors": {"type": "string", "minLength": 1},
        "copyright": {"type": "string", "minLength": 1},
        "schema": {"type": "string", "pattern": r"/meta_schema_20240725\.json$"},
        "required_packages_version": {"type": "object", "additionalProperties": {"type": "string"}},
        "changelog": {"type": "object", "additionalProperties": {"type": "string"}},
        "supported_apps": {"type": "object"},
        "references": {"type": "array", "items": {"type": "string"}},
        "eval_metrics": {"type": "object"},
        **{name: {"type": "string", "minLength": 1} for name in _TEXT_IF_THERE},
        "network_data_format": DATA_FORMAT,
    },
    "patternProperties": {"_data_format$": DATA_FORMAT},
}
