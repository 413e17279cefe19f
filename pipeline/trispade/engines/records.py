"""What a checkpoint tells of its training, and whether that is what a run expects."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from trispade.data import PreparedCase, plain_settings
from trispade.errors import InputError
from trispade.labels import VOCABULARY_FORM, Vocabulary
from trispade.untrusted import check_form, quoted, read_json

WEIGHTS_FORM = {str: Tensor}
_RECORD_FORM: dict[str, Any] = {
    "vocabulary": VOCABULARY_FORM,
    "architecture": {str: object},
    "people": [str],
    "trained_classes": [int],
}
TRAINING_FORM: dict[str, Any] = {"objects": {str: object}, "record": _RECORD_FORM}
"""Of a training's checkpoint, as far as whoever takes its networks counts on it."""

GENERATORS_FORM = {"axial": [str], "coronal": [str], "sagittal": [str]}
MODEL_FORM = {
    "architecture?": {str: object},
    "fusion_architecture?": {str: object},
    "training?": {
        str: {"preset?": (str, None), "people?": [str], "dataset?": (str, None), "generators?": GENERATORS_FORM}
    },
    "fusions?": {str: {"sha256": str}},
    "discriminators?": {"sha256": str},
}
"""Of the JSON beside a model, as far as the code counts on what is there."""


def describe_training(
    cases: Sequence[PreparedCase],
    vocabulary: Vocabulary,
    architecture: Mapping[str, Any],
    settings: Mapping[str, Any],
    start: Mapping[str, Any] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """Collect what a checkpoint must tell of its training.

    Args:
        cases: that the network is trained on.
        vocabulary: that the network sees.
        architecture: arguments of the network's class.
        settings: of the prepared cache.
        start: what is told of the run whose weights this one started from, see `start_from`; None for random weights.
        more: other plain values (plane, preset, seed).

    Returns:
        Plain values: the arguments, ``people`` (those of the run it started from among them), ``trained_classes``
        (class indices that occur in the cases) and ``prepared``, a hash of the prepared cases' content.
    """
    seen = {case.person_id for case in cases} | set(start["people"] if start else ())
    return {
        **more,
        **({"start": dict(start)} if start else {}),
        "vocabulary": vocabulary.to_dict(),
        "architecture": dict(architecture),
        "settings": plain_settings(settings),
        "prepared": hashlib.sha256("\n".join(sorted(case.key for case in cases)).encode()).hexdigest(),
        "people": sorted(seen),
        "trained_classes": sorted({index for case in cases for index in case.record["classes"]}),
    }


def fusion_architecture(channels: Sequence[int], norm: str, residual: bool, label_channels: int) -> dict[str, Any]:
    """Collect what a checkpoint tells of its fusion net's size; of labels only where it sees them."""
    labels = {"label_channels": label_channels} if label_channels else {}
    return {"channels": list(channels), "norm": norm, "residual": residual, **labels}


def check_record(
    path: str | Path,
    record: Mapping[str, Any],
    remedy: str = "Use the preset and the vocabulary that it was trained with, or train it again.",
    **expected: Any,
) -> None:
    """Compare a checkpoint's record with what the run expects.

    Args:
        path: of the checkpoint, for the message.
        record: what it tells of itself.
        remedy: last sentence of the message.
        expected: keys and the values that they must have.

    Raises:
        InputError: that names what differs.
    """
    for key, value in expected.items():
        if record.get(key) != value:
            wanted, found = _brief(value), _brief(record.get(key))
            raise InputError.of(
                path,
                f"a checkpoint with {key} {wanted}",
                f"another {key} of that description" if found == wanted else found,
                remedy,
            )


def read_model_record(model_file: str | Path) -> dict[str, Any]:
    """Read the JSON beside a model file; empty if there is none.

    Raises:
        InputError: if it is torn, or not such a record.
    """
    path = Path(model_file).with_suffix(".json")
    if not path.exists():
        return {}
    record = read_json(path, "the record of a model", "Copy it again.")
    if not isinstance(record, dict):
        raise InputError.of(path, "the record of a model", type(record).__name__, "Copy it again.")
    check_form(path, record, MODEL_FORM, "Copy it again.")
    return dict(record)


def _brief(value: Any) -> str:
    if isinstance(value, Mapping) and isinstance(value.get("classes"), list):
        return f"{quoted(value.get('name'))} of {len(value['classes'])} classes"
    if isinstance(value, list) and len(value) > 6:
        return f"{', '.join(map(quoted, value[:3]))} ... ({len(value)} in all)"
    return quoted(value)
