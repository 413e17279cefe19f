"""MSE, PSNR and SSIM over a mask, as MONAI metrics, and sharpness."""

from __future__ import annotations

from typing import Any

import torch
from monai.metrics.regression import RegressionMetric
from torch import Tensor

from trispade.metrics.ssim import ssim_map


class MaskedMetric(RegressionMetric):
    """A MONAI regression metric that looks at the voxels of a mask only.

    Called with ``(y_pred, y, mask=...)``: (B, 1, X, Y, Z) floats with ``data_range`` between darkest and brightest, and
    a bool mask of the same shape, or None for all voxels. Gives (B, 1); ``aggregate()`` reduces over all calls.

    Args:
        data_range: largest possible difference of two intensities.
        reduction: see `monai.metrics.RegressionMetric`.

    Raises:
        ValueError: if shapes differ or a mask is empty.
    """

    value_of_equals = 0.0  # `per_voxel` where both volumes are the same all around

    def __init__(self, data_range: float = 1.0, reduction: str = "mean") -> None:
        super().__init__(reduction=reduction)
        self.data_range = data_range

    def per_voxel(self, y_pred: Tensor, y: Tensor) -> Tensor:
        """Return what is averaged over the mask: (B, 1, X, Y, Z) float64."""
        return (y_pred.double() - y.double()) ** 2

    def of_mean(self, means: Tensor) -> Tensor:
        """Turn means over the mask into the metric's values."""
        return means

    def _compute_tensor(
        self, y_pred: Tensor, y: Tensor | None = None, mask: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        if y is None:
            raise ValueError("y: expected the real volume, got None")
        self._check_shape(y_pred, y)
        inside = torch.ones_like(y, dtype=torch.bool) if mask is None else mask.bool()
        if inside.shape != y.shape:
            raise ValueError(f"mask: expected the volumes' shape {tuple(y.shape)}, got {tuple(inside.shape)}")
        if not inside.flatten(1).any(dim=1).all():
            raise ValueError("mask: expected at least one voxel a volume, got none")
        values = self.per_voxel(y_pred, y)
        means = torch.stack([each[where].mean() for each, where in zip(values, inside, strict=True)])
        return self.of_mean(means)[:, None]

    def _compute_metric(self, y_pred: Tensor, y: Tensor) -> Tensor:
        return self._compute_tensor(y_pred, y)


class MaskedMSE(MaskedMetric):
    """Mean squared error."""


class MaskedPSNR(MaskedMetric):
    """Peak signal-to-noise ratio, ``10 log10(data_range^2 / MSE)`` in dB; infinite for identical volumes."""

    def of_mean(self, means: Tensor) -> Tensor:
        """Mean squared errors to dB."""
        return 10.0 * torch.log10(self.data_range**2 / means)


class MaskedSSIM(MaskedMetric):
    """Mean over the mask of the structural similarity map (see `ssim_map`)."""

    value_of_equals = 1.0

    def per_voxel(self, y_pred: Tensor, y: Tensor) -> Tensor:
        """Return the similarity map."""
        return ssim_map(y_pred, y, self.data_range)


def sharpness(y_pred: Tensor, y: Tensor, mask: Tensor) -> float:
    """Mean gradient magnitude (central differences) inside the mask, synthetic over real.

    Args:
        y_pred: (1, 1, X, Y, Z) synthetic intensities.
        y: (1, 1, X, Y, Z) real intensities on the same scale.
        mask: (1, 1, X, Y, Z) bool.

    Returns:
        1 when equally sharp, less when blurred; nan where the real volume is constant.
    """
    of_pred, of_real = (float(_gradient_magnitude(volume)[mask[0, 0]].mean()) for volume in (y_pred, y))
    return of_pred / of_real if of_real > 0 else float("nan")


def _gradient_magnitude(volume: Tensor) -> Tensor:
    gradients = torch.gradient(volume[0, 0].double())
    return torch.stack(gradients).square().sum(dim=0).sqrt()
