"""Training that starts from trained networks, of coarser voxels for instance, instead of random weights."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

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

    Optimizers and schedules start anew. Voxel size, box and people of the two runs may differ.

    Args:
        checkpoint: of a ``train_spade`` or ``train_fusion`` run; None loads nothing.
        networks: name in the checkpoint to the network that takes its weights.
        vocabulary: that the checkpoint must have.
        architecture: that the checkpoint must have.
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
    expected = {"plane": plane, "vocabulary": vocabulary.to_dict(), "architecture": dict(architecture)}
    check_record(checkpoint, record, "Choose a checkpoint of the same plane, preset and vocabulary.", **expected)
    for name, network in networks.items():
        load_weights(network, content["objects"][name], f"{name} of {checkpoint}")
    logger.info("%s: training starts from its %s", checkpoint, " and ".join(networks))
    told = {key: record[key] for key in ("people", "settings", "start") if key in record}
    return {**told, "weights": {name: hash_tensors(content["objects"][name]) for name in networks}}
