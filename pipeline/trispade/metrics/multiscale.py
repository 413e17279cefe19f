"""Multi-scale structural similarity inside a mask."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from trispade.metrics.regression import MaskedMetric
from trispade.metrics.ssim import RADIUS, SimilarityTo

SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
SMALLEST_EXTENT = RADIUS + 1  # voxels at the coarsest scale


class MultiscaleSimilarityTo:
    """Multi-scale similarity of any number of volumes to one real volume, whose own side is computed once.

    Both volumes are set to zero outside the mask and cut to its bounding box, so that neither the field of view nor
    anything outside the mask matters; beyond the box they are zero. From one scale to the next, volumes and mask are
    averaged over blocks of 2x2x2 voxels, counted from the box's first corner (odd extents are filled up with zeros), so
    that the mask becomes each block's share of brain. With the factors l and cs of the similarity map, and means over a
    scale weighted by this share, the value is

        mean(cs_1)^w_1 ... mean(cs_{M-1})^w_{M-1} mean(l_M cs_M)^w_M,

    where a negative mean counts as 0.

    Args:
        y: (X, Y, Z) float, real intensities.
        mask: (X, Y, Z) bool.
        data_range: largest possible difference of two intensities.
        weights: w, one a scale; their number is that of the scales.

    Raises:
        ValueError: if the mask is empty, or too small for that many scales: its box must have 6 voxels along each axis
            at the coarsest scale (96 for five scales). There is no silent change to fewer scales, as it changes the
            value: give fewer weights.

    Source: Wang, Simoncelli and Bovik, Multiscale structural similarity for image quality assessment, Asilomar 2003,
        whose weights these are. Deviations: three dimensions, the mask, zeros beyond it where others use only windows
        that lie in the image whole (for which five scales need 161 voxels; a brain at 1 mm has about 130).
    """

    def __init__(
        self, y: np.ndarray, mask: np.ndarray, data_range: float = 1.0, weights: Sequence[float] = SCALE_WEIGHTS
    ) -> None:
        if not mask.any():
            raise ValueError("mask: expected at least one voxel a volume, got none")
        self.box = ndimage.find_objects(mask.astype(np.uint8))[0]
        self.weights = tuple(weights)
        needed = smallest_extent(len(self.weights))
        extents = tuple(each.stop - each.start for each in self.box)
        if min(extents) < needed:
            raise ValueError(
                f"mask: expected at least {needed} voxels along each axis for {len(self.weights)} scales, "
                f"got {extents}. Give fewer scale weights, and say so beside the values."
            )
        self.mask = mask[self.box]
        shares, scan = self.mask.astype(np.float64), self._cut(y)
        self._shares, self._similarities = [], []
        for scale in range(len(self.weights)):
            if scale:
                shares, scan = _halve(shares), _halve(scan)
            self._shares.append(shares / shares.sum())
            self._similarities.append(SimilarityTo(scan, data_range, border="constant"))

    def value(self, y_pred: np.ndarray) -> float:
        """Compare a volume, (X, Y, Z) on the whole grid, with the real one: 1 for the same, 0 for unlike ones."""
        volume, product = self._cut(y_pred), 1.0
        for scale, weight in enumerate(self.weights):
            if scale:
                volume = _halve(volume)
            luminance, contrast_structure = self._similarities[scale].parts(volume)
            is_last = scale == len(self.weights) - 1
            similarity = luminance * contrast_structure if is_last else contrast_structure
            product *= max(0.0, float((similarity * self._shares[scale]).sum())) ** weight
        return product

    def _cut(self, volume: np.ndarray) -> np.ndarray:
        return np.where(self.mask, volume[self.box], 0.0).astype(np.float64)


def smallest_extent(num_scales: int = len(SCALE_WEIGHTS)) -> int:
    """Voxels that the mask's box must have along each axis."""
    return int(SMALLEST_EXTENT * 2 ** (num_scales - 1))


class MaskedMSSSIM(MaskedMetric):
    """Multi-scale structural similarity inside the mask (see `MultiscaleSimilarityTo`, also for what it refuses).

    Args:
        data_range: largest possible difference of two intensities.
        weights: one a scale.
        reduction: see `monai.metrics.RegressionMetric`.
    """

    def __init__(
        self, data_range: float = 1.0, weights: Sequence[float] = SCALE_WEIGHTS, reduction: str = "mean"
    ) -> None:
        super().__init__(data_range, reduction)
        self.weights = tuple(weights)

    def of_volume(self, y_pred: Tensor, y: Tensor, mask: Tensor) -> Tensor:
        """Measure one volume."""
        synthetic, real = (volume.double().cpu().numpy() for volume in (y_pred, y))
        similarity = MultiscaleSimilarityTo(real, mask.bool().cpu().numpy(), self.data_range, self.weights)
        return torch.tensor([similarity.value(synthetic)], dtype=torch.float64, device=y.device)


def _halve(volume: np.ndarray) -> np.ndarray:
    """Average over blocks of 2x2x2 voxels; an odd extent is filled up with zeros."""
    padded = np.pad(volume, [(0, extent % 2) for extent in volume.shape])
    for axis in range(3):
        first, second = (padded[(slice(None),) * axis + (slice(start, None, 2),)] for start in (0, 1))
        padded = (first + second) / 2.0
    return padded
