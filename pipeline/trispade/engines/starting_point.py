"""Training that starts from trained networks, of coarser voxels for instance, instead of random weights."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trispade.engines.checkpoints import hash_tensors, load_checkpoint
from trispade.engines.records import check_record
from trispade.labels import Vocabulary
from trispade.networks import load_weights

logger = logging.getLogger(__name__)


def start_from(
    checkpoint: str | Path | None,
    networks: Mapping[str, nn.Module],
    vocabulary: Vocabulary,
    architecture: Mapping[str, Any],
    plane: str | None = None,
) -> dict[str, Any] | None:
    """Load the networks of another run's checkpoint into those of this run.

    Optimizers and schedules start anew. Voxel size, box and people of the two runs may differ, and a generator that saw
    each label slice alone may learn to see its neighbours: at first it paints as before.

    Args:
        checkpoint: of a ``train_spade`` or ``train_fusion`` run; None loads nothing.
        networks: name in the checkpoint to the network that takes its weights.
        vocabulary: that the checkpoint must have.
        architecture: that the checkpoint must have, but for ``label_slices`` if it has none.
        plane: that the checkpoint must be of; None for a fusion net.

    Returns:
        What the record of this run must tell of the other: its ``people``, ``settings``, own ``start`` if it had one,
        and the hash of each network's weights by name; None without a checkpoint.

    Raises:
        InputError: if the checkpoint is missing or torn, or of another vocabulary, architecture or plane.
    """
    if checkpoint is None:
        return None
    content = load_checkpoint(checkpoint)
    record = content.get("record", {})
    architecture = dict(architecture)
    label_slices = architecture.get("label_slices", 1)
    if "label_slices" not in record.get("architecture", {}):
        architecture.pop("label_slices", None)
    expected = {"plane": plane, "vocabulary": vocabulary.to_dict(), "architecture": architecture}
    check_record(checkpoint, record, "Choose a checkpoint of the same plane, preset and vocabulary.", **expected)
    for name, network in networks.items():
        state = with_room_for_neighbours(content["objects"][name], network, label_slices)
        load_weights(network, state, f"{name} of {checkpoint}")
    logger.info("%s: training starts from its %s", checkpoint, " and ".join(networks))
    told = {key: record[key] for key in ("people", "settings", "start") if key in record}
    return {**told, "weights": {name: hash_tensors(content["objects"][name]) for name in networks}}


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
