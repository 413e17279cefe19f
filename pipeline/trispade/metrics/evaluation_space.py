"""Where volumes are compared: the real scan's own grid, bias-corrected, divided by its 99.5th percentile in the brain.

The synthetic volume is brought onto it by one gain and one offset (least squares inside the mask), or, for
``fit: none``, from [-1, 1] to [0, 1] as it is; then it is clipped to [0, 1] and set to zero outside the mask, as
the real one is.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from trispade.intensity import evaluation_intensity, fit_gain_offset
from trispade.metrics.regression import MaskedMSE, MaskedPSNR, MaskedSSIM, sharpness
from trispade.metrics.ssim import RADIUS

FITS = ("gain_offset", "none")
REGIONS = ("brain", "full")


def compare_in_evaluation_space(y_pred: np.ndarray, real: np.ndarray, mask: np.ndarray) -> list[dict[str, Any]]:
    """Compare one synthetic volume with the real scan.

    Args:
        y_pred: (X, Y, Z) float, synthetic intensities; [-1, 1] for ``fit: none`` to mean anything.
        real: (X, Y, Z) float, bias-corrected scan, background 0.
        mask: (X, Y, Z) bool, the brain.

    Returns:
        ``{"region", "fit", "metric", "value"}``: MSE, PSNR (dB) and SSIM for each region and fit, and the brain's
        sharpness.

    Raises:
        InputError: if the mask is empty or the scan dark.
        ValueError: if the three differ in shape.
    """
    if not y_pred.shape == real.shape == mask.shape:
        raise ValueError(f"y_pred, real, mask: expected one shape, got {y_pred.shape}, {real.shape}, {mask.shape}")
    scan = evaluation_intensity(real, mask)
    gain, offset = fit_gain_offset(y_pred, scan, mask)
    # Both volumes are zero outside the mask, so that beyond the reach of the similarity's window nothing can differ.
    box = _box_around(mask, RADIUS)
    y_pred, mask, num_voxels = y_pred[box], mask[box], mask.size
    y, brain = _tensor(scan[box]), torch.from_numpy(np.ascontiguousarray(mask))[None, None]
    mapped = {"gain_offset": gain * y_pred + offset, "none": (y_pred + 1.0) / 2.0}
    rows: list[dict[str, Any]] = []
    for fit in FITS:
        volume = _tensor(np.where(mask, np.clip(mapped[fit], 0.0, 1.0), 0.0))
        for name, metric in (("mse", MaskedMSE()), ("psnr", MaskedPSNR()), ("ssim", MaskedSSIM())):
            values = metric.per_voxel(volume, y)  # once for both regions: the similarity map is the costly part
            outside = metric.value_of_equals * (num_voxels - values.numel())
            for region, mean in (("brain", values[brain].mean()), ("full", (values.sum() + outside) / num_voxels)):
                rows.append({"region": region, "fit": fit, "metric": name, "value": float(metric.of_mean(mean))})
        rows.append({"region": "brain", "fit": fit, "metric": "sharpness", "value": sharpness(volume, y, brain)})
    return rows


def _box_around(mask: np.ndarray, margin: int) -> tuple[slice, ...]:
    box = ndimage.find_objects(mask.astype(np.uint8))[0]
    return tuple(slice(max(0, s.start - margin), s.stop + margin) for s in box)


def _tensor(volume: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(volume, dtype=np.float32))[None, None]
