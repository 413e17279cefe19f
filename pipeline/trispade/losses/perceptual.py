"""The perceptual loss: L1 distance between VGG19 features of a generated and of a real slice."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trispade.errors import InputError

VGG19_WIDTHS = ((64, 64), (128, 128), (256, 256, 256, 256), (512, 512, 512, 512), (512,))
"""Convolutions of VGG19 up to relu5_1; a max pooling stands between the stages."""

STAGE_WEIGHTS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1.0)
"""Weights of relu1_1 to relu5_1 in the loss."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

REMEDY = "Give the path of ImageNet weights of VGG19 (vgg19-dcbb9e9d.pth of torchvision), or leave this loss out."


class Vgg19Features(nn.Module):
    """The outputs relu1_1, relu2_1, ..., relu5_1 of VGG19; layers are numbered as in the published weights.

    Source:
        Simonyan and Zisserman, Very Deep Convolutional Networks, ICLR 2015, configuration E.
    """

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        self.taps = []
        channels = 3
        for stage, widths in enumerate(VGG19_WIDTHS):
            if stage > 0:
                layers.append(nn.MaxPool2d(2))
            self.taps.append(len(layers) + 1)
            for width in widths:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                channels = width
        self.features = nn.Sequential(*layers)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return five feature maps of ``image`` (B, 3, H, W), normalised as VGG19 expects it."""
        taken = []
        for index, layer in enumerate(self.features):
            image = layer(image)
            if index in self.taps:
                taken.append(image)
        return taken


def perceptual_loss(weights_path: str | Path | None, device: torch.device | str) -> PerceptualLoss | None:
    """Build the perceptual loss on a device if there are weights for it; None, for training without it, if not."""
    return None if weights_path is None else PerceptualLoss(weights_path).to(device)


class PerceptualLoss(nn.Module):
    """Weighted L1 distance of VGG19's features; the network is frozen and the real features are a fixed target.

    Args:
        weights_path: local file with VGG19's ImageNet weights as a state dict (``features.0.weight``, ...). trispade
            downloads nothing.

    Raises:
        InputError: if the file is missing or holds something else.

    Source:
        Johnson et al., Perceptual Losses, ECCV 2016; layers and weights as in Wang et al., pix2pixHD, CVPR 2018, which
        Park et al. follow. Slices are brought from [-1, 1] to ImageNet's mean and spread, which neither paper states.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, weights_path: str | Path) -> None:
        super().__init__()
        self.network = read_vgg19(Path(weights_path)).eval().requires_grad_(False)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, fake: Tensor, real: Tensor) -> Tensor:
        """Return the scalar loss for two batches (B, 1 or 3, H, W) in [-1, 1]."""
        with torch.no_grad():
            targets = self.network(self._normalise(real))
        found = self.network(self._normalise(fake))
        distances = [
            weight * F.l1_loss(f.float(), r.float()) for weight, f, r in zip(STAGE_WEIGHTS, found, targets, strict=True)
        ]
        return torch.stack(distances).sum()

    def _normalise(self, image: Tensor) -> Tensor:
        return ((image.expand(-1, 3, -1, -1) + 1) / 2 - self.mean) / self.std


def read_vgg19(path: Path) -> Vgg19Features:
    """Load VGG19's convolutions from a local state dict; its classifier and deeper layers are left out.

    Raises:
        InputError: if the file is missing, unreadable, or lacks a layer.
    """
    if not path.is_file():
        raise InputError.of(path, "a file with VGG19 weights", "no such file", REMEDY)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise InputError.of(path, "a file with VGG19 weights", "an unreadable file", REMEDY) from error
    network = Vgg19Features()
    wanted = network.state_dict()
    misfits = [name for name, value in wanted.items() if not _fits(state, name, value)]
    if misfits:
        raise InputError.of(path, "a state dict of VGG19", f"no fitting {', '.join(misfits[:3])}", REMEDY)
    network.load_state_dict({name: state[name] for name in wanted})
    return network


def _fits(state: object, name: str, value: Tensor) -> bool:
    found = state.get(name) if isinstance(state, dict) else None
    return isinstance(found, Tensor) and found.shape == value.shape
