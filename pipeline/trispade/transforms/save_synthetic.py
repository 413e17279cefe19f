"""The last step of inference: a synthetic volume becomes a NIfTI file with a sidecar that says what it is."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.config import KeysCollection
from monai.transforms import MapTransform

import trispade
from trispade.errors import InputError
from trispade.nifti import name_without_suffix, write_nifti
from trispade.transforms.label_map import affine_of, array_of, name_of

SUFFIX = "_desc-synthetic_T1w"
_LABEL_SUFFIXES = ("_dseg", "_labels", "_label", "_seg")


class SaveSyntheticd(MapTransform):
    """Write `<case>_desc-synthetic_T1w.nii.gz` and its JSON sidecar on the grid of the input label map.

    The case is `data["case_id"]`, or else the input's file name. The voxels outside the brain (at -1) are exactly the
    lower end of the value range. `data["saved_to"]` holds the path.

    Args:
        keys: volumes, (1, X, Y, Z) in [-1, 1] on the source grid (after `FromWorkingGridd`).
        output_dir: folder, made if missing.
        label_key: the input label map; its file gives the space codes and the name.
        value_range: what -1 and 1 become.
        dtype: "float32", or "int16", which rounds.
        record: what the sidecar says of the model (JSON-able).
        scheme: name of the label scheme, for the sidecar.

    Raises:
        InputError: if the folder cannot be written to, or the dtype or range is none of those.
    """

    def __init__(
        self,
        keys: KeysCollection,
        output_dir: str | Path,
        label_key: str = "image",
        value_range: Sequence[float] = (0, 255),
        dtype: str = "float32",
        record: Mapping[str, Any] | None = None,
        scheme: str | None = None,
    ) -> None:
        super().__init__(keys)
        if dtype not in ("float32", "int16"):
            raise InputError.of("dtype", "float32 or int16", repr(dtype), "Correct the setting.")
        low, high = (float(value) for value in value_range)
        if not low < high or (dtype == "int16" and not -32768 <= low < high <= 32767):
            raise InputError.of("value_range", f"two rising values that {dtype} holds", f"{value_range}", "Correct it.")
        self.output_dir = str(output_dir)
        self.label_key = label_key
        self.value_range = (low, high)
        self.dtype = dtype
        self.record = None if record is None else dict(record)
        self.scheme = scheme

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Write each volume."""
        result = dict(data)
        source = name_of(result[self.label_key], "")
        for key in self.key_iterator(result):
            path, _ = output_files(self.output_dir, case_name(result, source))
            volume = self._to_value_range(array_of(result[key]))
            like = source if source and Path(source).is_file() else None
            write_nifti(path, volume, affine_of(result[key]), like, self.dtype, self._sidecar(source))
            result["saved_to"] = str(path)
        return result

    def _to_value_range(self, volume: np.ndarray) -> np.ndarray:
        low, high = self.value_range
        scaled = low + (np.clip(volume, -1, 1).astype(np.float32) + 1) * np.float32((high - low) / 2)
        return np.rint(scaled) if self.dtype == "int16" else scaled

    def _sidecar(self, source: str) -> dict[str, Any]:
        return {
            "synthetic": True,
            "Description": "T1w volume synthesized from a label map; no scan of a person",
            "Sources": [source],
            "GeneratedBy": [{"Name": "trispade", "Version": trispade.__version__}],
            "LabelScheme": self.scheme,
            "ValueRange": list(self.value_range),
            "DataType": self.dtype,
            "Scaling": "linear: network output -1 (background) and 1 are the ends of ValueRange",
            "Model": self.record,
        }


def output_files(output_dir: str | Path, case_id: str) -> tuple[Path, Path]:
    """Name the volume and the sidecar of a case."""
    stem = Path(output_dir) / f"{case_id}{SUFFIX}"
    return stem.with_name(f"{stem.name}.nii.gz"), stem.with_name(f"{stem.name}.json")


def case_name(data: Mapping[Hashable, Any], source: str) -> str:
    """Case of an output: `case_id` where the data has it, else the input's file name without its label suffix."""
    if data.get("case_id"):
        return str(data["case_id"])
    name = name_without_suffix(source) or "case"
    for suffix in _LABEL_SUFFIXES:
        name = name.removesuffix(suffix)
    return name
