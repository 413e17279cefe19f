"""The fusion nets of a model: the one within it, and others that are trained on the same generators' volumes.

models/model.pt           generators and the fusion net ``fidelity``, as one state dict
models/fusion_<name>.pt   state dict of another fusion net, such as ``realism``; described in models/model.json
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trispade.engines import GENERATORS_FORM, WEIGHTS_FORM, hash_tensors, load_checkpoint
from trispade.errors import InputError
from trispade.networks import TriplanarSynthesizer, load_weights
from trispade.untrusted import check_form

FIDELITY = "fidelity"
"""The fusion net that stands in the model itself."""


def fusion_file(model_file: str | Path, fusion: str) -> Path:
    """Give the file of a model's other fusion net."""
    return Path(model_file).with_name(f"fusion_{fusion}.pt")


def add_to_record(
    record: Mapping[str, Any], fusion: str, told: Mapping[str, Any], model_file: str | Path
) -> dict[str, Any]:
    """Add another fusion net to the record of a model.

    Args:
        record: of the model.
        fusion: name of the net.
        told: its own record: ``sha256`` of its stored weights and ``training``.
        model_file: for the message.

    Raises:
        InputError: if the net learnt from other generators than those of the model, or has another architecture.
    """
    if not record:
        raise InputError.of(model_file, "a model that the fusion net joins", "none", "Train the fidelity net first.")
    check_form(model_file, record, {"training": {"fusion": {"generators": GENERATORS_FORM}}}, "Train it again.")
    own, other = record["training"]["fusion"]["generators"], told["training"]["generators"]
    if any(set(own[plane]) != set(other[plane]) for plane in own):
        raise InputError.of(
            model_file,
            f"the generators that {fusion} learnt from",
            "others",
            "Run synthesize_planes, and train both fusion nets.",
        )
    return {**record, "fusions": {**record.get("fusions", {}), fusion: dict(told)}}


def choose_fusion(
    network: TriplanarSynthesizer, model_file: str | Path, record: Mapping[str, Any], fusion: str
) -> None:
    """Put the chosen fusion net into a loaded model.

    Raises:
        InputError: if the model has no such net, or the file is missing, torn or another one.
    """
    if fusion == FIDELITY:
        return
    told = record.get("fusions", {}).get(fusion)
    if told is None:
        names = [FIDELITY, *record.get("fusions", {})]
        raise InputError.of(
            model_file, f"a model with a fusion net {fusion!r}", ", ".join(names), "Choose one of these, or train it."
        )
    path = fusion_file(model_file, fusion)
    state = load_checkpoint(path, WEIGHTS_FORM)
    if told["sha256"] != hash_tensors(state):
        raise InputError.of(
            path,
            f"the weights that {Path(model_file).with_suffix('.json').name} describes",
            "others",
            "Copy all again.",
        )
    load_weights(network.fusion, state, str(path))
