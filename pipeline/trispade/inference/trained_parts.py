"""Trained networks out of training checkpoints, with what is known of how they were trained."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trispade.data import plain_settings
from trispade.engines import TRAINING_FORM, WEIGHTS_FORM, check_record, checkpoint_exists, hash_tensors, load_checkpoint
from trispade.errors import InputError
from trispade.labels import Vocabulary
from trispade.networks import SpadeGenerator, fold_spectral_norm, load_weights

logger = logging.getLogger(__name__)

_FORM = {
    **TRAINING_FORM,
    "objects": {"generator": WEIGHTS_FORM, "average?": (WEIGHTS_FORM, None), "encoder?": (WEIGHTS_FORM, None)},
}


@dataclass(frozen=True)
class TrainedGenerator:
    """A generator as inference uses it: spectral norm folded, classes without training data redirected.

    Attributes:
        network: (N, label_slices, H, W) class indices to (N, 1, H, W) intensities.
        class_table: (num_classes,) long; class index to the class that stands in for it.
        record: what its checkpoint tells of its training.
        hash: of its weights and class table.
        encoder_hash: of the style encoder's weights that it was trained with, if it was.
    """

    network: SpadeGenerator
    class_table: Tensor
    record: Mapping[str, Any]
    hash: str
    encoder_hash: str | None = None

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
    """Load the generator of a ``train_spade`` checkpoint: the average of its weights if there is one.

    Args:
        path: of the checkpoint.
        plane: that it must be of.
        vocabulary: that it must have.
        architecture: that it must have; a style is its own matter.
        settings: of the prepared cache that it must have been trained on.
        device: where it goes.

    Raises:
        InputError: if the checkpoint is missing or torn, or belongs to another plane, vocabulary or preset.
    """
    checkpoint = load_checkpoint(path, _FORM)
    record, own = checkpoint["record"], checkpoint["record"]["architecture"]
    architecture = {**{name: own[name] for name in ("style_dim",) if name in own}, **architecture}
    check_record(path, record, plane=plane, vocabulary=vocabulary.to_dict(), architecture=dict(architecture))
    check_record(path, record, settings=plain_settings(settings))
    average = checkpoint["objects"].get("average")
    network = SpadeGenerator(vocabulary.num_classes, out_channels=1, **architecture, spectral=average is None)
    load_weights(network, checkpoint["objects"]["generator"] if average is None else average, str(path))
    fold_spectral_norm(network).requires_grad_(False).to(device)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    class_table = torch.from_numpy(vocabulary.fallback_table(record["trained_classes"]))
    encoder = checkpoint["objects"].get("encoder")
    return TrainedGenerator(
        network,
        class_table.to(device),
        record,
        hash_tensors({**network.state_dict(), "class_table": class_table}),
        None if encoder is None else hash_tensors(encoder),
    )


def shared_style_dim(generators: Iterable[TrainedGenerator]) -> int:
    """Give the length of the style code that generators share, 0 if they have no style.

    They are warned of if each has an encoder of its own: what one code then means differs from plane to plane.

    Raises:
        InputError: if the lengths differ.
    """
    parts = list(generators)
    lengths = sorted({part.network.style_dim for part in parts})
    if len(lengths) > 1:
        raise InputError.of(
            "generators",
            "the same style_dim in all planes",
            ", ".join(map(str, lengths)),
            "Train them with one style_dim, the second and third plane with the style_encoder_file of the first.",
        )
    if len({part.encoder_hash for part in parts}) > 1:
        logger.warning("the generators' style encoders differ: train the other planes with one's style_encoder_file")
    return lengths[0]


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


def require_full_generator(checkpoints: Sequence[Path], plane: str) -> None:
    """Check that the first of `find_checkpoints` is of a generator that no fold was held out from.

    Raises:
        InputError: that names the folds if there are only generators of cross-fitting.
    """
    first = checkpoints[0]
    if first.parent.name != f"spade_{plane}":
        raise InputError.of(
            first.parent.with_name(f"spade_{plane}") / first.name,
            f"a generator of the {plane} plane that was trained on all people, to go into the model",
            f"only those of cross-fitting, {', '.join(path.parent.name for path in checkpoints)}",
            f"Run train_spade --plane {plane} without held_out_fold, then train_fusion again.",
        )
