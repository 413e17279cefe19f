"""The structural similarity map of two volumes, by separable Gaussian windows."""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

SIGMA = 1.5
RADIUS = 5  # window of 11
K1, K2 = 0.01, 0.03


class SimilarityTo:
    """Local similarity of any number of volumes to one real volume, whose own windows are averaged once.

    Args:
        y: (X, Y, Z) float, real intensities.
        data_range: largest possible difference of two intensities.
        border: what lies beyond the grid: ``"reflect"``, the mirrored volume, or ``"constant"``, zeros.
    """

    def __init__(self, y: np.ndarray, data_range: float = 1.0, border: str = "reflect") -> None:
        self.y = np.asarray(y, np.float64)
        self.c1, self.c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2
        self.border = border
        self.mean_y = self._blur(self.y)
        self.variance_y = self._blur(self.y * self.y) - self.mean_y**2

    def parts(self, y_pred: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Compute the map's two factors, luminance and contrast times structure, each (X, Y, Z) float64."""
        a = np.asarray(y_pred, np.float64)
        mean_a = self._blur(a)
        # Rounding can push a variance of zero below zero, which float64 keeps far below the constants.
        variances = self._blur(a * a) - mean_a**2 + self.variance_y
        covariance = self._blur(a * self.y) - mean_a * self.mean_y
        luminance = (2 * mean_a * self.mean_y + self.c1) / (mean_a**2 + self.mean_y**2 + self.c1)
        return luminance, (2 * covariance + self.c2) / (variances + self.c2)

    def map(self, y_pred: np.ndarray) -> np.ndarray:
        """Compute the structural similarity at every voxel, (X, Y, Z) float64."""
        luminance, contrast_structure = self.parts(y_pred)
        return luminance * contrast_structure

    def _blur(self, volume: np.ndarray) -> np.ndarray:
        return np.asarray(ndimage.gaussian_filter(volume, SIGMA, mode=self.border, radius=RADIUS))


def ssim_map(y_pred: Tensor, y: Tensor, data_range: float = 1.0) -> Tensor:
    """Compute the local structural similarity at every voxel.

    Args:
        y_pred: (B, 1, X, Y, Z) float.
        y: (B, 1, X, Y, Z) float.
        data_range: largest possible difference of two intensities.

    Returns:
        (B, 1, X, Y, Z) float64. At the border the volumes are mirrored.

    Source: Wang et al., Image quality assessment, IEEE TIP 13(4), 2004: Gaussian window (sigma 1.5, 11 voxels),
        population covariance; as scikit-image with ``gaussian_weights=True, use_sample_covariance=False``.
    """
    pairs = zip(*(volume.detach().cpu().double().numpy()[:, 0] for volume in (y_pred, y)), strict=True)
    maps = np.stack([SimilarityTo(real, data_range).map(synthetic) for synthetic, real in pairs])
    return torch.from_numpy(maps)[:, None].to(y.device)
