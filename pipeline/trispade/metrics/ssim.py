"""The structural similarity map of two volumes, by separable Gaussian windows."""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

SIGMA = 1.5
RADIUS = 5  # window of 11
K1, K2 = 0.01, 0.03


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
    a, b = (volume.detach().cpu().double().numpy()[:, 0] for volume in (y_pred, y))
    mean_a, mean_b = _blur(a), _blur(b)
    # Rounding can push a variance of zero below zero, which float64 keeps far below the constants.
    variances = _blur(a * a) - mean_a**2 + _blur(b * b) - mean_b**2
    covariance = _blur(a * b) - mean_a * mean_b
    c1, c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    return torch.from_numpy(luminance * (2 * covariance + c2) / (variances + c2))[:, None].to(y.device)


def _blur(volume: np.ndarray) -> np.ndarray:
    return np.stack([ndimage.gaussian_filter(each, SIGMA, mode="reflect", radius=RADIUS) for each in volume])
