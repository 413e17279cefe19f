"""Trained networks out of training checkpoints, with what is known of how they were trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trispade.data import plain_settings
from trispade.engines import check_record, checkpoint_exists, hash_tensors, load_checkpoint
from trispade.errors import InputError
from trispade.labels import Vocabulary
from trispade.networks import SpadeGenerator, fold_spectral_norm


@dataclass(frozen=True)
class TrainedGenerator:
    """A generator as inference uses it: spectral norm folded, classes without training data redirected.

    Attributes:
        network: (N, 1, H, W) class indices to (N, 1, H, W) intensities.
        class_table: (num_classes,) long; class index to the class that stands in for it.
        record: what its checkpoint tells of its training.
        hash: of its weights and class table.
    """

    network: nn.Module
    class_table: Tensor
    record: Mapping[str, Any]
    hash: str

    @property
    def people(self) -> frozenset[str]:
        """The people that it was trained on."""
        return frozenset(self.record["people"])


def load_generator(
    path: str | Path,
    plane: str,
    vocabulary: Vocabulary,
    architecture: Mapping[str, Any],
    settings: Mapping[str, Any],
    device: torch.device | str,
) -> TrainedGenerator:
    """Load the generator of a ``train_spade`` checkpoint.

    Args:
        path: of the checkpoint.
        plane: that it must be of.
        vocabulary: that it must have.
        architecture: that it must have.
        settings: of the prepared cache that it must have been trained on.
        device: where it goes.

    Raises:
        InputError: if the checkpoint is missing or torn, or belongs to another plane, vocabulary or preset.
    """
    checkpoint = load_checkpoint(path)
    record = checkpoint.get("record", {})
    check_record(path, record, plane=plane, vocabulary=vocabulary.to_dict(), architecture=dict(architecture))
    check_record(path, record, settings=plain_settings(settings))
    network = SpadeGenerator(num_classes=vocabulary.num_classes, out_channels=1, **architecture)
    network.load_state_dict(checkpoint["objects"]["generator"])
    fold_spectral_norm(network).requires_grad_(False).to(device)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    class_table = torch.from_numpy(vocabulary.fallback_table(record["trained_classes"]))
    return TrainedGenerator(
        network, class_table.to(device), record, hash_tensors({**network.state_dict(), "class_table": class_table})
    )


def find_checkpoints(folder: str | Path, plane: str, name: str) -> list[Path]:
    """List a plane's checkpoints: ``spade_<plane>/<name>``, and those of cross-fitting, ``spade_<plane>_fold*/<name>``.

    Raises:
        InputError: if there is none.
    """
    folder = Path(folder)
    stages = [folder / f"spade_{plane}", *sorted(folder.glob(f"spade_{plane}_fold*"))]
    found = [stage / name for stage in stages if checkpoint_exists(stage / name)]
    if not found:
        raise InputError.of(stages[0] / name, "a trained generator", "none", f"Run train_spade --plane {plane} first.")
    return found
