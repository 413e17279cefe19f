"""Through-plane incoherence: how roughly a volume goes from slice to slice, in each direction."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import torch
from torch import Tensor

from trispade.geometry import PLANES, slice_axis
from trispade.metrics.regression import MaskedMetric, ratio


class MaskedIncoherence(MaskedMetric):
    """Mean absolute second difference across the slices of each plane, synthetic over real.

    Gives (B, 3): across axial slices (along inferior-superior), coronal and sagittal ones, in the order of
    `trispade.geometry.PLANES`. Only voxels count whose two neighbours on the line lie in the mask too. 1 is as rough as
    the real scan (whose noise counts), more is streaks from slice to slice, less is smoother. A GAN that paints slice
    by slice is too rough across its slices. Blur lowers all three values, and the real scan's noise differs with
    direction, so compare methods in one direction rather than one value with 1.

    The directions are the world's. All volumes of a call share one grid.

    Args:
        affine: (4, 4) voxel -> RAS+ mm of the volumes; None where their axes are right, anterior, superior. On an
            oblique grid each direction is that of the nearest axis of the array.
        reduction: see `monai.metrics.RegressionMetric`; by default the mean over volumes, (3,).

    Raises:
        ValueError: as `MaskedMetric`, and if the real volume is constant, or the mask nowhere three voxels wide.
    """

    def __init__(self, affine: np.ndarray | None = None, reduction: str = "mean_batch") -> None:
        super().__init__(reduction=reduction)
        self.axes = world_axes(affine)

    def of_volume(self, y_pred: Tensor, y: Tensor, mask: Tensor) -> Tensor:
        """Measure one volume."""
        return ratio(*(second_differences(volume, mask.bool(), self.axes) for volume in (y_pred, y)))


def second_differences(volume: Tensor, mask: Tensor, axes: tuple[int, int, int] = (2, 1, 0)) -> Tensor:
    """Mean of ``|v[i-1] - 2 v[i] + v[i+1]|`` along each of three axes, where all three voxels lie in the mask.

    Args:
        volume: (X, Y, Z) float.
        mask: (X, Y, Z) bool.
        axes: array axes; by default those of `PLANES` in a RAS+ volume.

    Returns:
        (3,) float64, an intensity a squared voxel.

    Raises:
        ValueError: if no three voxels in a row lie in the mask.
    """
    means = []
    for axis in axes:
        below, here, above = (_shifted(volume, axis, start).double() for start in range(3))
        inside = _shifted(mask, axis, 0) & _shifted(mask, axis, 1) & _shifted(mask, axis, 2)
        if not inside.any():
            raise ValueError(f"mask: expected three voxels in a row along axis {axis}, got none")
        means.append((below - 2 * here + above)[inside].abs().mean())
    return torch.stack(means)


def world_axes(affine: np.ndarray | None) -> tuple[int, int, int]:
    """Array axes along which axial, coronal and sagittal slices are stacked; (2, 1, 0) in RAS+, or for None.

    Args:
        affine: (4, 4), voxel -> RAS+ mm.

    Raises:
        ValueError: if the affine has another shape, or an axis of length zero.
    """
    if affine is None:
        affine = np.eye(4)
    if np.shape(affine) != (4, 4) or not np.isfinite(affine).all():
        raise ValueError(f"affine: expected (4, 4) finite numbers, got shape {np.shape(affine)}")
    of_array = nib.io_orientation(affine)[:, 0]
    if not np.isfinite(of_array).all():
        raise ValueError("affine: expected three axes of some length, got one of length zero")
    axial, coronal, sagittal = (int(np.flatnonzero(of_array == slice_axis(plane))[0]) for plane in PLANES)
    return axial, coronal, sagittal


def _shifted(volume: Tensor, axis: int, start: int) -> Tensor:
    """Every third of three neighbours: the volume without two slices along an axis, from ``start`` on."""
    return volume.narrow(axis, start, max(0, volume.shape[axis] - 2))
