"""Radial power spectrum: how much detail of each size a volume holds, compared with the real scan."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy import fft, ndimage
from torch import Tensor

from trispade.metrics.regression import MaskedMetric, ratio

NUM_BANDS = 32
TAPER_MM = 4.0


class RadialBands:
    """Mean power of volumes in bands of spatial frequency, inside one mask.

    The volume, less its mean, is multiplied with a window that is 0 outside the mask and at its edge and rises to 1
    over about 8 mm inwards: ``max(0, 2 G - 1)``, G the mask blurred by a Gaussian of 4 mm. Without it the brain's
    outline, the same in all volumes, would fill every band and pull each ratio towards 1. (A Hann window over the box
    would see the outline all the same.) The bands are shells of equal width from 0 to the Nyquist frequency of the
    coarsest axis; what lies beyond, in the corners and along finer axes, is left out, so that every band holds all
    directions.

    Args:
        mask: (X, Y, Z) bool.
        spacing_mm: voxel size along the three axes.
        num_bands: even, so that the upper half of the frequencies is a whole number of bands.

    Attributes:
        frequencies: (num_bands,) middle of each band in mm^-1 (cycles a mm).

    Raises:
        ValueError: if the mask is empty or too thin for the window, a voxel size is not positive, or ``num_bands`` odd.
    """

    def __init__(self, mask: np.ndarray, spacing_mm: Sequence[float], num_bands: int = NUM_BANDS) -> None:
        if len(spacing_mm) != 3 or not all(np.isfinite(size) and size > 0 for size in spacing_mm):
            raise ValueError(f"spacing_mm: expected three positive voxel sizes, got {tuple(spacing_mm)}")
        if num_bands < 2 or num_bands % 2:
            raise ValueError(f"num_bands: expected an even number, got {num_bands}")
        if not mask.any():
            raise ValueError("mask: expected at least one voxel a volume, got none")
        self.box = ndimage.find_objects(mask.astype(np.uint8))[0]
        self.window = _window(mask[self.box], spacing_mm)
        if not self.window.any():
            raise ValueError("mask: expected a region some 8 mm thick, got a thinner one")
        # Filled up with zeros along the coarsest axis, where needed, a small volume has frequencies in every band.
        extents = list(self.window.shape)
        coarsest = int(np.argmax(spacing_mm))
        extents[coarsest] = max(extents[coarsest], 4 * num_bands)
        self._shape = tuple(fft.next_fast_len(extent, real=True) for extent in extents)
        highest = 0.5 / max(spacing_mm)
        self.frequencies = (np.arange(num_bands) + 0.5) * highest / num_bands
        radii = _radii(self._shape, spacing_mm)
        self._bands = np.minimum(radii * (num_bands / highest), num_bands).astype(np.uint16).ravel()
        self._bands[0] = num_bands  # the zero frequency: the mean, which is taken away
        # Half of the spectrum is stored: all but the planes that are their own mirror image count twice.
        twice = np.full(radii.shape, 2.0)
        twice[..., 0] = 1.0
        if self._shape[2] % 2 == 0:
            twice[..., -1] = 1.0
        self._twice = twice.ravel()
        self.counts = np.bincount(self._bands, self._twice, num_bands + 1)[:num_bands]

    def power(self, volume: np.ndarray) -> np.ndarray:
        """Mean power in each band, (num_bands,) float64, of a volume (X, Y, Z) on the mask's grid."""
        inside = np.asarray(volume, np.float64)[self.box]
        mean = float((inside * self.window).sum() / self.window.sum())
        spectrum = fft.rfftn((inside - mean) * self.window, self._shape).ravel()
        power = (spectrum.real**2 + spectrum.imag**2) * self._twice
        return np.bincount(self._bands, power, len(self.counts) + 1)[: len(self.counts)] / self.counts

    def upper_power(self, volume: np.ndarray) -> float:
        """Mean power over the upper half of the frequencies."""
        upper = slice(len(self.counts) // 2, None)
        return float(np.average(self.power(volume)[upper], weights=self.counts[upper]))


class MaskedSpectrumRatio(MaskedMetric):
    """Power in the upper half of the frequencies, synthetic over real (see `RadialBands`).

    At 1 mm these are details of 2 to 4 mm. 1 is as much fine detail as the real scan has, its noise included; less is
    blur, more is noise or streaks: high power is no proof of right detail.

    Args:
        spacing_mm: voxel size along the three axes.
        reduction: see `monai.metrics.RegressionMetric`.

    Raises:
        ValueError: as `MaskedMetric` and `RadialBands`, and if the real volume is constant inside the mask.
    """

    def __init__(self, spacing_mm: Sequence[float], reduction: str = "mean") -> None:
        super().__init__(reduction=reduction)
        self.spacing_mm = tuple(spacing_mm)

    def of_volume(self, y_pred: Tensor, y: Tensor, mask: Tensor) -> Tensor:
        """Measure one volume."""
        bands = RadialBands(mask.bool().cpu().numpy(), self.spacing_mm)
        powers = (bands.upper_power(volume.cpu().numpy()) for volume in (y_pred, y))
        return ratio(*(torch.tensor(power, dtype=torch.float64, device=y.device) for power in powers))


def spectrum_curve(
    y_pred: np.ndarray, y: np.ndarray, mask: np.ndarray, spacing_mm: Sequence[float], num_bands: int = NUM_BANDS
) -> tuple[np.ndarray, np.ndarray]:
    """Compare two volumes' power band by band.

    Args:
        y_pred: (X, Y, Z) synthetic intensities.
        y: (X, Y, Z) real intensities on the same scale.
        mask: (X, Y, Z) bool.
        spacing_mm: voxel size along the three axes.
        num_bands: see `RadialBands`.

    Returns:
        Frequencies in mm^-1 and the ratio of mean powers, synthetic over real; each (num_bands,) float64.
    """
    bands = RadialBands(mask, spacing_mm, num_bands)
    of_pred, of_real = (torch.from_numpy(bands.power(volume)) for volume in (y_pred, y))
    return bands.frequencies, ratio(of_pred, of_real).numpy()


def _window(mask: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    sigmas = [TAPER_MM / size for size in spacing_mm]
    blurred = ndimage.gaussian_filter(mask.astype(np.float64), sigmas, mode="constant")
    return np.where(mask, np.maximum(0.0, 2.0 * blurred - 1.0), 0.0)


def _radii(shape: Sequence[int], spacing_mm: Sequence[float]) -> np.ndarray:
    """Frequency in mm^-1 of each entry of the half spectrum of a real volume."""
    x, y = (fft.fftfreq(extent, size) for extent, size in zip(shape[:2], spacing_mm[:2], strict=True))
    z = fft.rfftfreq(shape[2], spacing_mm[2])
    return np.sqrt(x[:, None, None] ** 2 + y[:, None] ** 2 + z**2)
