"""A loss for the fusion net that asks for the real scan's amount of fine detail, wherever in a voxel it may lie."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TextureLoss(nn.Module):
    """Mean squared error, and the difference in local energy of detail along each axis.

    The mean squared error asks for the mean of all scans that a label map may have, which is smooth. Noise and fine
    texture cannot be told from labels, but how much there is of them can: so the second term compares, along each axis,
    the mean absolute first and second differences of both volumes in windows of a few voxels. A volume may then err
    about single voxels as a second scan of the same person would, without being blurred. The windows' differences are
    squared, which asks for the mean amount of detail; taken as they are, they would ask for the median, which is less.

    Args:
        weight: of the second term; 0 leaves the mean squared error, as published.
        window: edge of the windows in voxels; they overlap by half.

    Source:
        Not in Ayaz et al. First and second differences are what the evaluation's sharpness and through-plane
        incoherence measure over the whole brain; here they are compared locally.
    """

    def __init__(self, weight: float, window: int = 8) -> None:
        super().__init__()
        self.weight = weight
        self.window = window

    def forward(self, y_pred: Tensor, y: Tensor) -> Tensor:
        """Return the scalar loss of (B, 1, X, Y, Z) intensities in [-1, 1]."""
        error = F.mse_loss(y_pred, y)
        if not self.weight:
            return error
        pairs = zip(self._energies(y_pred.float()), self._energies(y.float()), strict=True)
        return error + self.weight * torch.stack([F.mse_loss(found, wanted) for found, wanted in pairs]).mean()

    def _energies(self, volumes: Tensor) -> Iterator[Tensor]:
        for axis in (2, 3, 4):
            slope = volumes.diff(dim=axis)
            for difference in (slope, slope.diff(dim=axis)):
                yield F.avg_pool3d(difference.abs(), self.window, self.window // 2)
