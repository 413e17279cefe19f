"""The direct 3D U-Net as a competitor to be compared with: exported after training, loaded, moved over a volume.

direct_model.pt    state dict of a `DirectUNet`
direct_model.json  preset, vocabulary, architecture, trained classes, people, hash
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from monai.inferers import Inferer, SlidingWindowInferer
from torch import Tensor

from trispade import __version__
from trispade.data import plain_settings
from trispade.distributed import by_first_rank
from trispade.engines import TRAINING_FORM, WEIGHTS_FORM, check_record, checkpoint_exists, hash_tensors, load_checkpoint
from trispade.errors import InputError
from trispade.inference.inferer import BACKGROUND, autocast
from trispade.inference.model_files import read_model_record, save_model, stored_state, training_of
from trispade.labels import Vocabulary
from trispade.networks import DirectUNet, check_weights, load_weights
from trispade.untrusted import check_form, quoted

logger = logging.getLogger(__name__)

NETWORK = "DirectUNet"
LARGEST_WIDTH = 1024
WINDOW_OVERLAP = 0.25  # of a window's edge; the network is moved alike in validation (train_direct.yaml)


class DirectInferer(Inferer):
    """Paints a volume with a direct 3D U-Net, window by window.

    Args:
        window: how the network is moved over the volume.
        amp: autocast to bfloat16.
    """

    def __init__(self, window: SlidingWindowInferer, amp: bool = False) -> None:
        self.window = window
        self.amp = amp

    def __call__(self, inputs: Tensor, network: DirectUNet, *args: Any, **kwargs: Any) -> Tensor:
        """Turn label maps into T1w volumes.

        Args:
            inputs: label maps, (B, 1, X, Y, Z) class indices, RAS+, on the working grid.
            network: `trispade.networks.DirectUNet`.
            args: none are used.
            kwargs: none are used.
            *args: not used.
            **kwargs: not used.

        Returns:
            (B, 1, X, Y, Z) float32 in [-1, 1], -1 where there is no label.
        """
        label_map = network.known_labels(inputs)
        with autocast(inputs.device, self.amp):
            painted = self.window(label_map.float(), network).float()
        # Weighted averages of -1 are -1 up to rounding only.
        return painted.clamp(-1.0, 1.0).masked_fill(label_map == 0, BACKGROUND)


@by_first_rank
def export_direct(
    stage_dir: str | Path,
    checkpoint: str,
    model_file: str | Path,
    vocabulary: Vocabulary,
    architecture: Mapping[str, Any],
    settings: Mapping[str, Any],
    dtype: str,
) -> str:
    """Write the trained network as the comparison loads it: its weights, and a record beside them.

    Args:
        stage_dir: folder of the ``train_direct`` checkpoints.
        checkpoint: ``last.pt`` or ``best.pt``; ``last.pt`` if the best was never kept.
        model_file: the state dict; the record goes beside it, with the ending ``.json``.
        vocabulary: that it must have been trained with.
        architecture: that it must have.
        settings: of the prepared cache that it must have been trained on.
        dtype: of the stored weights, ``float16`` or ``float32``.

    Returns:
        One line that says what was written.

    Raises:
        InputError: if the checkpoint is missing or torn, or belongs to another vocabulary or preset, or if there is a
            model of another preset or another network at ``model_file``.
    """
    path = Path(stage_dir) / checkpoint
    if not checkpoint_exists(path):
        path = path.with_name("last.pt")
    trained = load_checkpoint(path, {**TRAINING_FORM, "objects": {"network": WEIGHTS_FORM}})
    training = trained["record"]
    check_record(path, training, vocabulary=vocabulary.to_dict(), architecture=dict(architecture))
    check_record(path, training, settings=plain_settings(settings))
    _keep_other_models(model_file, str(training.get("preset")))
    network = DirectUNet(vocabulary.num_classes, **architecture)
    load_weights(network, trained["objects"]["network"], str(path))
    network.class_table.copy_(torch.from_numpy(vocabulary.fallback_table(training["trained_classes"])))
    state = stored_state(network, dtype)
    record = {
        "trispade_version": __version__,
        "network": NETWORK,
        "vocabulary": vocabulary.to_dict(),
        "architecture": dict(architecture),
        "spacing_mm": settings["spacing_mm"],
        "closing_mm": settings["closing_mm"],
        "trained_classes": training["trained_classes"],
        "training": {"direct": training_of(training)},
        "sha256": hash_tensors(state),
    }
    return save_model(state, record, model_file, dtype)


def load_direct(
    model_file: str | Path,
    vocabulary: Vocabulary,
    spacing_mm: float,
    closing_mm: float,
    device: torch.device | str,
) -> DirectUNet:
    """Load an exported direct 3D U-Net onto a device, in eval mode; its widths are those that its record tells.

    Args:
        model_file: the state dict; what the JSON beside it says is compared with the other arguments.
        vocabulary: of the label maps.
        spacing_mm: edge of a working voxel.
        closing_mm: radius of the ball that closes the brain mask.
        device: where it goes.

    Raises:
        InputError: if a file is missing or torn, or belongs to another network, vocabulary, preset or voxel size.
    """
    state = load_checkpoint(model_file, WEIGHTS_FORM)
    record = read_model_record(model_file)
    if not record:
        raise InputError.of(
            model_file, "a .json beside it that says what it is", "none", "Copy both files of the model together."
        )
    check_record(model_file, record, "Name the file that train_direct has exported.", network=NETWORK)
    check_record(
        model_file,
        record,
        "Use the preset, the voxel size and the vocabulary that it was trained with.",
        vocabulary=vocabulary.to_dict(),
        spacing_mm=spacing_mm,
        closing_mm=closing_mm,
    )
    form = {"architecture": {"channels": [int]}, "training": {"direct": {"patch_size": (int, [int])}}}
    check_form(model_file, record, form, "Copy both files together.")
    channels = record["architecture"]["channels"]
    if not all(1 <= width <= LARGEST_WIDTH for width in channels):
        expected = f"widths of 1 to {LARGEST_WIDTH}"
        raise InputError.of(model_file, expected, quoted(channels), "Copy both files together.")
    with torch.device("meta"):  # of no size, until the weights have turned out to be those of the record
        check_weights(DirectUNet(vocabulary.num_classes, channels), state, str(model_file))
    network = DirectUNet(vocabulary.num_classes, channels)
    load_weights(network, state, str(model_file))
    if record.get("sha256") != hash_tensors(state):
        raise InputError.of(
            model_file, "the weights that the .json beside it describes", "others", "Copy both files together."
        )
    return network.requires_grad_(False).eval().to(device)


class DirectPainter:
    """A loaded direct 3D U-Net with the way it is moved over a volume.

    Args:
        network: from `load_direct`.
        inferer: how it is moved.
        device: where the network is.
    """

    def __init__(self, network: DirectUNet, inferer: DirectInferer, device: torch.device | str) -> None:
        self.network = network
        self.inferer = inferer
        self.device = device

    @torch.inference_mode()
    def __call__(self, label_map: Tensor) -> Tensor:
        """Paint (B, 1, X, Y, Z) class indices on any device; see `DirectInferer`."""
        return self.inferer(label_map.to(self.device), self.network)


def open_direct(
    model_file: str | Path,
    vocabulary: Vocabulary,
    spacing_mm: float,
    closing_mm: float,
    device: torch.device | str,
    amp: bool,
) -> DirectPainter | None:
    """Make an exported direct 3D U-Net ready to paint whole volumes, in windows of the size that it was trained on.

    Args:
        model_file: see `load_direct`, as are the next four.
        vocabulary: of the label maps.
        spacing_mm: edge of a working voxel.
        closing_mm: radius of the ball that closes the brain mask.
        device: where it paints.
        amp: autocast to bfloat16.

    Returns:
        What paints, or None if there is no such file: the comparison then does without.

    Raises:
        InputError: as `load_direct`.
    """
    if not checkpoint_exists(model_file):
        logger.info("%s: not there, so nothing is compared with a direct 3D U-Net (train_direct makes it)", model_file)
        return None
    network = load_direct(model_file, vocabulary, spacing_mm, closing_mm, device)
    patch_size = read_model_record(model_file)["training"]["direct"]["patch_size"]
    window = SlidingWindowInferer(patch_size, sw_batch_size=1, overlap=WINDOW_OVERLAP, mode="gaussian")
    return DirectPainter(network, DirectInferer(window, amp), device)


def _keep_other_models(model_file: str | Path, preset: str) -> None:
    record = read_model_record(model_file)
    there = record.get("training", {}).get("direct", {}).get("preset")
    if record and there != preset:
        found = f"one of {there}" if there else "the model of another network"
        raise InputError.of(
            model_file, f"nothing, or a direct model of preset {preset}", found, "Move it, or set --direct_model_file."
        )
