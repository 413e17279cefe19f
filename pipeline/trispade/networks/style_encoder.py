"""The optional style encoder: from T1w slices to the distribution of a style code."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trispade.networks.triplanar import LEAKY_SLOPE, initialised

INPUT_SIZE = 256
"""Slices are resized to this height and width."""

WIDTHS = (1, 2, 4, 8, 8, 8)
"""Widths of the convolutions in units of ``ndf``; each halves the size."""


class StyleEncoder(nn.Module):
    """Estimate mean and log variance of the style code of a slice.

    Args:
        in_channels: channels of the image (1 for T1w).
        ndf: width of the first convolution.
        style_dim: length of the code.

    Source:
        Park et al., section 3 and appendix A: six 3x3 convolutions of stride 2 with instance norm, then two linear
        layers. Deviation: a volume has one code, the mean over its slices (`encode_volume`), so that slices and
        planes agree in style.
    """

    def __init__(self, in_channels: int, ndf: int, style_dim: int) -> None:
        super().__init__()
        widths = [in_channels, *(ndf * width for width in WIDTHS)]
        self.layers = nn.Sequential(*(_halving_layer(wide, wider) for wide, wider in pairwise(widths)))
        flat = widths[-1] * (INPUT_SIZE // 2 ** len(WIDTHS)) ** 2
        self.mean = initialised(nn.Linear(flat, style_dim))
        self.log_variance = initialised(nn.Linear(flat, style_dim))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Encode slices (B, in_channels, H, W) in [-1, 1] to mean and log variance, each (B, style_dim)."""
        x = F.interpolate(image, size=(INPUT_SIZE, INPUT_SIZE), mode="bilinear", align_corners=False)
        x = self.layers(x).flatten(1)
        return self.mean(x), self.log_variance(x)

    def encode_volume(self, slices: Tensor) -> Tensor:
        """Return the code (1, style_dim) of a volume in slices (N, in_channels, H, W): the mean of their means."""
        mean, _ = self(slices)
        return mean.mean(dim=0, keepdim=True)


def draw_style(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Draw codes from N(mean, exp(log_variance)), differentiably in both; all tensors (B, style_dim)."""
    return mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)


def style_from_seed(style_dim: int, seed: int) -> Tensor:
    """Draw a code (1, style_dim) from the prior N(0, 1), the same for a seed on every machine."""
    return torch.randn(1, style_dim, generator=torch.Generator().manual_seed(seed))


def _halving_layer(in_channels: int, out_channels: int) -> nn.Module:
    convolution = initialised(nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1, bias=False))
    return nn.Sequential(convolution, nn.InstanceNorm2d(out_channels), nn.LeakyReLU(LEAKY_SLOPE))
