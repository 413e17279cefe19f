"""The discriminators beside a model: inference needs none, but whoever trains its generators on does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trispade.engines.checkpoints import hash_tensors, load_checkpoint, save_checkpoint
from trispade.engines.records import WEIGHTS_FORM
from trispade.errors import InputError

DISCRIMINATORS = "discriminators.pt"


def save_discriminators(checkpoints: Mapping[str, str | Path], model_file: str | Path, dtype: str) -> dict[str, Any]:
    """Write the discriminators of ``train_spade`` checkpoints beside a model, as one plain state dict.

    Args:
        checkpoints: plane to the checkpoint that the model's generator is of.
        model_file: of the model.
        dtype: of the stored weights, ``float16`` or ``float32``.

    Returns:
        What the model's record must tell of the file: ``{"sha256": ...}``; nothing, and no file, where a checkpoint has
        no discriminator.

    Raises:
        InputError: if a checkpoint is missing or torn, or the file cannot be written.
    """
    found = {plane: load_checkpoint(path)["objects"].get("discriminator") for plane, path in checkpoints.items()}
    if not all(found.values()):
        return {}
    kept = getattr(torch, dtype)
    state = {f"{plane}.{name}": each.to(kept) for plane, own in found.items() for name, each in own.items()}
    save_checkpoint(state, Path(model_file).with_name(DISCRIMINATORS))
    return {"sha256": hash_tensors(state)}


def load_discriminator(model_file: str | Path, record: Mapping[str, Any], plane: str) -> dict[str, Tensor] | None:
    """Read a plane's discriminator from beside a model; None if the model's record tells of none.

    Raises:
        InputError: if the file is missing or torn, or not the one that the record tells of.
    """
    if "discriminators" not in record:
        return None
    path = Path(model_file).with_name(DISCRIMINATORS)
    state = load_checkpoint(path, WEIGHTS_FORM)
    if record["discriminators"]["sha256"] != hash_tensors(state):
        beside = f"the weights that {Path(model_file).with_suffix('.json').name} describes"
        raise InputError.of(path, beside, "others", "Copy model.pt, model.json and this file together.")
    prefix = f"{plane}."
    return {name.removeprefix(prefix): each.float() for name, each in state.items() if name.startswith(prefix)}
