"""MSE, PSNR, SSIM and sharpness over a mask, as MONAI metrics."""

from __future__ import annotations

from typing import Any

import torch
from monai.metrics.regression import RegressionMetric
from torch import Tensor

from trispade.metrics.ssim import ssim_map


class MaskedMetric(RegressionMetric):
    """A MONAI regression metric that looks at the voxels of a mask only.

    Called with ``(y_pred, y, mask=...)``: (B, 1, X, Y, Z) floats with ``data_range`` between darkest and brightest, and
    a mask of the same shape (bool, or class indices: what is not 0 is inside), or None for all voxels. Gives (B, 1);
    ``aggregate()`` reduces over all calls, and over all processes of a distributed run.

    Ignite hands a metric no more than ``(y_pred, y)``. So ``y`` may be (B, 2, X, Y, Z) instead, its second channel the
    mask, as ``IgniteMetricHandler(metric, output_transform=...)`` then gives it.

    Args:
        data_range: largest possible difference of two intensities.
        reduction: see `monai.metrics.RegressionMetric`.

    Raises:
        ValueError: if shapes differ, a mask is empty, or an intensity is NaN or infinite. (MONAI's reductions leave out
            NaN in silence, so that none may arise.)
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

    def of_volume(self, y_pred: Tensor, y: Tensor, mask: Tensor) -> Tensor:
        """Measure one volume: three (X, Y, Z) in, the mask as it was given; (C,) float64 out, C = 1 in most metrics."""
        values = self.per_voxel(y_pred[None, None], y[None, None])[0, 0]
        return self.of_mean(values[mask.bool()].mean())[None]

    def _compute_tensor(
        self, y_pred: Tensor, y: Tensor | None = None, mask: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        y_pred, y, mask = volumes_and_mask(y_pred, y, mask)
        self._check_shape(y_pred, y)
        if mask.shape != y.shape:
            raise ValueError(f"mask: expected the volumes' shape {tuple(y.shape)}, got {tuple(mask.shape)}")
        if not mask.bool().flatten(1).any(dim=1).all():
            raise ValueError("mask: expected at least one voxel a volume, got none")
        for name, volume in (("y_pred", y_pred), ("y", y)):
            if not volume.isfinite().all():
                raise ValueError(f"{name}: expected finite intensities, got NaN or infinite ones")
        return torch.stack([self.of_volume(*each) for each in zip(y_pred[:, 0], y[:, 0], mask[:, 0], strict=True)])

    def _compute_metric(self, y_pred: Tensor, y: Tensor) -> Tensor:
        return self._compute_tensor(y_pred, y)


def volumes_and_mask(y_pred: Tensor, y: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Sort out what a metric was called with (see `MaskedMetric`): y_pred, y and mask, (B, 1, X, Y, Z) each.

    Raises:
        ValueError: if there is no real volume, or two masks, or one of more than one channel.
    """
    if y is None:
        raise ValueError("y: expected the real volume, got None")
    if y.ndim != 5 or y.shape[1] not in (1, 2):
        raise ValueError(f"y: expected shape (B, 1, X, Y, Z), or (B, 2, X, Y, Z) with the mask, got {tuple(y.shape)}")
    if y.shape[1] == 2:
        if mask is not None:
            raise ValueError("mask: expected one, got another as the second channel of y")
        y, mask = y[:, :1], y[:, 1:]
    return y_pred, y, torch.ones_like(y, dtype=torch.bool) if mask is None else mask


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


class MaskedSharpness(MaskedMetric):
    """Mean gradient magnitude inside the mask, synthetic over real (see `sharpness`).

    Raises:
        ValueError: as `MaskedMetric`, and if the real volume is constant inside the mask.
    """

    def of_volume(self, y_pred: Tensor, y: Tensor, mask: Tensor) -> Tensor:
        """Measure one volume."""
        return ratio(*(mean_gradient(volume, mask.bool()) for volume in (y_pred, y)))


def ratio(of_pred: Tensor, of_real: Tensor) -> Tensor:
    """Divide what was measured of the synthetic volume, scalar or (C,), by the same of the real one: (C,) float64.

    Raises:
        ValueError: if the real volume has nothing to measure against.
    """
    if not (of_real > 0).all():
        raise ValueError("y: expected a real volume with contrast inside the mask, got a constant one")
    return torch.atleast_1d(of_pred / of_real)


def sharpness(y_pred: Tensor, y: Tensor, mask: Tensor) -> float:
    """Mean gradient magnitude (central differences) inside the mask, synthetic over real.

    Args:
        y_pred: (1, 1, X, Y, Z) synthetic intensities.
        y: (1, 1, X, Y, Z) real intensities on the same scale.
        mask: (1, 1, X, Y, Z) bool.

    Returns:
        1 when equally sharp, less when blurred; nan where the real volume is constant.
    """
    of_pred, of_real = (float(mean_gradient(volume[0, 0], mask[0, 0])) for volume in (y_pred, y))
    return of_pred / of_real if of_real > 0 else float("nan")


def mean_gradient(volume: Tensor, mask: Tensor) -> Tensor:
    """Mean over a mask of the gradient's magnitude by central differences, an intensity a voxel.

    Args:
        volume: (X, Y, Z) float.
        mask: (X, Y, Z) bool.
    """
    gradients = torch.gradient(volume.double())
    return torch.stack(gradients).square().sum(dim=0).sqrt()[mask].mean()
