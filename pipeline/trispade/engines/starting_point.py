"""Training that starts from trained networks, of coarser voxels or of the shipped model, instead of random weights."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trispade.engines.checkpoints import hash_tensors, load_checkpoint
from trispade.engines.discriminators import load_discriminator
from trispade.engines.records import TRAINING_FORM, WEIGHTS_FORM, check_record, read_model_record
from trispade.errors import InputError
from trispade.labels import Vocabulary
from trispade.networks import load_weights, with_spectral_norm
from trispade.untrusted import check_form

logger = logging.getLogger(__name__)


def start_from(
    checkpoint: str | Path | None,
    networks: Mapping[str, nn.Module],
    vocabulary: Vocabulary,
    architecture: Mapping[str, Any],
    plane: str | None = None,
    discriminator_checkpoint: str | Path | None = None,
) -> dict[str, Any] | None:
    """Load the networks of another run's checkpoint, or of a model, into those of this run.

    Optimizers and schedules start anew, and so does the discriminator of a model that has none beside it. Voxel size,
    box and people of the two runs may differ, and a generator that saw each label slice alone may learn to see its
    neighbours: at first it paints as before. A new discriminator finds nothing to tell a trained generator's slices
    from real ones by: give it that of another run.

    Args:
        checkpoint: of a ``train_spade`` or ``train_fusion`` run, or a model as it is shipped (``models/model.pt`` with
            its ``model.json``); None loads nothing.
        networks: name in the checkpoint to the network that takes its weights.
        vocabulary: that the checkpoint must have.
        architecture: that the checkpoint must have, but for ``label_slices`` if it has none.
        plane: that the checkpoint must be of; None for a fusion net.
        discriminator_checkpoint: of a ``train_spade`` run, whose generator may be of any size; its discriminator is
            taken instead of the checkpoint's.

    Returns:
        What the record of this run must tell of the other: its ``people``, ``settings``, own ``start`` if it had one,
        and the hash of each network's weights by name; of the discriminator's run the same under ``discriminator``.
        None without a checkpoint.

    Raises:
        InputError: if a checkpoint is missing or torn, or of another vocabulary, architecture or plane, or if a model
            has no ``model.json`` beside it.
    """
    others = {name: network for name, network in networks.items() if name != "discriminator"}
    told: dict[str, Any] = {"people": []}
    if checkpoint is not None:
        told = _take_over(checkpoint, others if discriminator_checkpoint else networks, vocabulary, plane, architecture)
    if discriminator_checkpoint is not None:
        judge = {"discriminator": networks["discriminator"]}
        told["discriminator"] = _take_over(discriminator_checkpoint, judge, vocabulary, plane)
        told["people"] = sorted({*told["people"], *told["discriminator"]["people"]})
    return told if checkpoint or discriminator_checkpoint else None


def _take_over(
    checkpoint: str | Path,
    networks: Mapping[str, nn.Module],
    vocabulary: Vocabulary,
    plane: str | None,
    architecture: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Load these networks of a checkpoint and tell of it; without an architecture its generator may be of any size."""
    content = load_checkpoint(checkpoint)
    if "objects" not in content:
        content = _part_of_model(checkpoint, content, plane, "discriminator" in networks)
    of_record = {key: each for key, each in TRAINING_FORM["record"].items() if key != "trained_classes"}
    form = {"record": of_record, "objects": {f"{name}?": WEIGHTS_FORM for name in networks}}
    check_form(checkpoint, content, form, "Name a checkpoint of the stage.")
    record = content["record"]
    expected: dict[str, Any] = {"plane": plane, "vocabulary": vocabulary.to_dict()}
    label_slices = (architecture or {}).get("label_slices", 1)
    if architecture is not None:
        own = set(architecture) - ({"label_slices"} - set(record["architecture"]))
        expected["architecture"] = {key: architecture[key] for key in architecture if key in own}
    check_record(checkpoint, record, "Choose a checkpoint of the same plane, preset and vocabulary.", **expected)
    objects = {name: content["objects"][name] for name in networks if name in content["objects"]}
    if architecture is None and not objects:
        raise InputError.of(checkpoint, "a checkpoint of train_spade", "no discriminator", "Name a plane's last.pt.")
    for name, state in objects.items():
        widened = with_room_for_neighbours(state, networks[name], label_slices)
        load_weights(networks[name], with_spectral_norm(widened, networks[name]), f"{name} of {checkpoint}")
    logger.info("%s: training starts from its %s", checkpoint, " and ".join(objects))
    told = {key: record[key] for key in ("people", "settings", "start") if key in record}
    return {**told, "weights": {name: hash_tensors(state) for name, state in objects.items()}}


def _part_of_model(
    model_file: str | Path, state: Mapping[str, Tensor], plane: str | None, judged: bool
) -> dict[str, Any]:
    """Give the networks of a plane, or the fusion net, of a model as a checkpoint of its training has them."""
    record = read_model_record(model_file)
    part = "fusion" if plane is None else f"generator_{plane}"
    if part not in record.get("training", {}):
        expected = f"a checkpoint, or a model whose .json tells of its {part}"
        raise InputError.of(model_file, expected, "neither", "Copy model.pt and model.json together.")
    prefix = "fusion." if plane is None else f"generators.{plane}."
    weights = {name.removeprefix(prefix): value.float() for name, value in state.items() if name.startswith(prefix)}
    architecture = record.get("fusion_architecture" if plane is None else "architecture")
    own = {**record["training"][part], "vocabulary": record.get("vocabulary"), "architecture": architecture}
    objects = {"network" if plane is None else "generator": weights}
    if judged and plane is not None and (discriminator := load_discriminator(model_file, record, plane)):
        objects["discriminator"] = discriminator
    return {"record": own, "objects": objects}


def with_room_for_neighbours(state: Mapping[str, Tensor], network: nn.Module, label_slices: int) -> dict[str, Tensor]:
    """Widen kernels that see one label slice to those of a network that sees several; its neighbours have no say yet.

    Args:
        state: weights of a network that sees each slice alone; (out, C, k, k) kernels.
        network: the same with (out, label_slices * C, k, k) kernels; what fits it already is left as it is.
        label_slices: that it sees.
    """
    wanted, middle = network.state_dict(), label_slices // 2
    widened = dict(state)
    for name, kernel in state.items():
        if name in wanted and kernel.ndim == 4 and wanted[name].shape[1] == label_slices * kernel.shape[1]:
            classes = kernel.shape[1]
            widened[name] = torch.zeros_like(wanted[name], device=kernel.device)
            widened[name][:, middle * classes : (middle + 1) * classes] = kernel
    return widened
