"""Where volumes are compared: the real scan's own grid, bias-corrected, divided by its 99.5th percentile in the brain.

The synthetic volume is brought onto it by one gain and one offset (least squares inside the mask), or, for
``fit: none``, from [-1, 1] to [0, 1] as it is; then it is clipped to [0, 1] and set to zero outside the mask, as
the real one is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy import ndimage

from trispade.errors import InputError
from trispade.geometry import PLANES
from trispade.intensity import evaluation_intensity, fit_gain_offset
from trispade.metrics.coherence import second_differences, world_axes
from trispade.metrics.multiscale import MultiscaleSimilarityTo, smallest_extent
from trispade.metrics.regression import MaskedPSNR, mean_gradient
from trispade.metrics.spectrum import RadialBands
from trispade.metrics.ssim import RADIUS, SimilarityTo
from trispade.metrics.structures import structure_rows, structure_statistics

FITS = ("gain_offset", "none")
REGIONS = ("brain", "full")


class EvaluationSpace:
    """One real scan, and all that is measured of it once for however many volumes are compared with it.

    Args:
        real: (X, Y, Z) float, bias-corrected scan, background 0.
        mask: (X, Y, Z) bool, the brain.
        label_map: (X, Y, Z) class indices, for the rows of each structure; None for none.
        class_names: name of each class index, with ``label_map``.
        affine: (4, 4) voxel -> RAS+ mm, for the metrics that need to know directions and voxel sizes; None for none.

    Attributes:
        mask: the mask, cut to the box that volumes are compared in.

    Raises:
        InputError: if the mask is empty, or the scan dark, constant or not finite inside it.
        ValueError: if shapes differ, a class has no name, or the affine is none.
    """

    def __init__(
        self,
        real: np.ndarray,
        mask: np.ndarray,
        label_map: np.ndarray | None = None,
        class_names: Sequence[str] | None = None,
        affine: np.ndarray | None = None,
    ) -> None:
        _check_grid(real, mask, label_map, class_names)
        _check_intensities("T1w", real, mask)
        scan = evaluation_intensity(real, mask)
        if np.ptp(scan[mask]) == 0:
            raise InputError.of("T1w", "contrast inside the brain mask", "one intensity", "Check the scan.")
        self.shape = mask.shape
        # Both volumes are zero outside the mask, so that beyond the reach of the window nothing can differ.
        self._box = _box_around(mask, RADIUS)
        self.mask, self._scan = np.ascontiguousarray(mask[self._box]), np.ascontiguousarray(scan[self._box])
        self._affine = affine
        self._similarity = SimilarityTo(self._scan)
        self._gradient = self._mean_gradient(self._scan)
        self._class_names = class_names
        if label_map is not None and class_names is not None:
            self._label_map = np.where(self.mask, label_map[self._box], 0)
            self._structures = structure_statistics(self._scan, self._label_map, len(class_names))
        if affine is not None:
            self._axes = world_axes(affine)
            self._bands = RadialBands(self.mask, np.linalg.norm(affine[:3, :3], axis=0).tolist())
            self._power = self._bands.upper_power(self._scan)
            self._roughness = self._second_differences(self._scan)
            extents = [each.stop - each.start for each in _box_around(self.mask, 0)]
            is_large = min(extents) >= smallest_extent()
            self._multiscale = MultiscaleSimilarityTo(self._scan, self.mask) if is_large else None

    def real(self) -> np.ndarray:
        """The real scan in this space, cut to the box: float32 in [0, 1], 0 outside the mask."""
        return self._scan

    def bring(self, y_pred: np.ndarray, fit: str = "gain_offset") -> np.ndarray:
        """Bring a synthetic volume, (X, Y, Z) on the scan's grid, into this space, cut to the box.

        Raises:
            InputError: if it is not finite inside the mask.
            ValueError: if its shape is not the scan's, or the fit not one of `FITS`.
        """
        if fit not in FITS:
            raise ValueError(f"fit: expected one of {', '.join(FITS)}, got {fit!r}")
        if y_pred.shape != self.shape:
            raise ValueError(f"y_pred: expected the scan's shape {self.shape}, got {y_pred.shape}")
        y_pred = y_pred[self._box]
        _check_intensities("synthetic volume", y_pred, self.mask)
        gain, offset = fit_gain_offset(y_pred, self._scan, self.mask) if fit == "gain_offset" else (0.5, 0.5)
        mapped = np.clip(gain * np.where(self.mask, y_pred, 0.0) + offset, 0.0, 1.0)
        return np.where(self.mask, mapped, 0.0).astype(np.float32)

    def compare(self, y_pred: np.ndarray) -> list[dict[str, Any]]:
        """Compare a synthetic volume with the scan (see `compare_in_evaluation_space`)."""
        rows: list[dict[str, Any]] = []
        for fit in FITS:
            volume = self.bring(y_pred, fit)
            found = [*self._voxelwise_rows(volume), *self._detail_rows(volume), *self._structure_rows(volume)]
            rows += [{"region": row["region"], "fit": fit, **row} for row in found]
        return rows

    def _voxelwise_rows(self, volume: np.ndarray) -> list[dict[str, Any]]:
        errors = self._means((volume.astype(np.float64) - self._scan) ** 2, outside=0.0)
        decibels = {
            region: float(MaskedPSNR().of_mean(torch.tensor(mean, dtype=torch.float64)))
            for region, mean in errors.items()
        }
        similarities = self._means(self._similarity.map(volume), outside=1.0)
        return [
            {"region": region, "metric": name, "value": value}
            for name, values in (("mse", errors), ("psnr", decibels), ("ssim", similarities))
            for region, value in values.items()
        ]

    def _means(self, values: np.ndarray, outside: float) -> dict[str, float]:
        """Average a map over the brain, and over the whole grid with its value outside the box."""
        num_voxels = int(np.prod(self.shape))
        whole = (values.sum() + outside * (num_voxels - values.size)) / num_voxels
        return {"brain": float(values[self.mask].mean()), "full": float(whole)}

    def _detail_rows(self, volume: np.ndarray) -> list[dict[str, Any]]:
        values = {"sharpness": _over(self._mean_gradient(volume), self._gradient)}
        if self._affine is not None:
            values["ms_ssim"] = self._multiscale.value(volume) if self._multiscale else float("nan")
            values["spectrum_ratio"] = _over(self._bands.upper_power(volume), self._power)
            pairs = zip(self._second_differences(volume), self._roughness, strict=True)
            values |= {f"incoherence_{plane}": _over(*pair) for plane, pair in zip(PLANES, pairs, strict=True)}
        return [{"region": "brain", "metric": name, "value": value} for name, value in values.items()]

    def _structure_rows(self, volume: np.ndarray) -> list[dict[str, Any]]:
        if self._class_names is None:
            return []
        found = structure_statistics(volume, self._label_map, len(self._class_names))
        return structure_rows(found, self._structures, self._class_names)

    def _mean_gradient(self, volume: np.ndarray) -> float:
        return float(mean_gradient(torch.from_numpy(volume), torch.from_numpy(self.mask)))

    def _second_differences(self, volume: np.ndarray) -> list[float]:
        return list(second_differences(torch.from_numpy(volume), torch.from_numpy(self.mask), self._axes).tolist())


def compare_in_evaluation_space(
    y_pred: np.ndarray,
    real: np.ndarray,
    mask: np.ndarray,
    label_map: np.ndarray | None = None,
    class_names: Sequence[str] | None = None,
    affine: np.ndarray | None = None,
) -> list[dict[str, Any]]:
    """Compare one synthetic volume with the real scan; for several, `EvaluationSpace` measures the scan only once.

    Args:
        y_pred: (X, Y, Z) float, synthetic intensities; [-1, 1] for ``fit: none`` to mean anything.
        real: (X, Y, Z) float, bias-corrected scan, background 0.
        mask: (X, Y, Z) bool, the brain.
        label_map: (X, Y, Z) class indices, for the rows of each structure.
        class_names: name of each class index, with ``label_map``.
        affine: (4, 4) voxel -> RAS+ mm.

    Returns:
        ``{"region", "fit", "metric", "value"}``, for each fit: ``mse``, ``psnr`` (dB; infinite for identical volumes)
        and ``ssim`` for each region, and the brain's ``sharpness``. With an affine also the brain's ``ms_ssim`` (nan
        where the brain has under 96 voxels along an axis, too few for its five scales), ``spectrum_ratio`` and
        ``incoherence_axial``, ``_coronal``, ``_sagittal``. With a label map the rows of `structure_rows`, region a
        class name. docs/evaluation.md defines them.

    Raises:
        InputError: if the mask is empty, the scan dark, constant or not finite inside it, or the synthetic volume not
            finite inside it.
        ValueError: if shapes differ, a class has no name, or the affine is none.
    """
    if not y_pred.shape == real.shape == mask.shape:
        raise ValueError(f"y_pred, real, mask: expected one shape, got {y_pred.shape}, {real.shape}, {mask.shape}")
    return EvaluationSpace(real, mask, label_map, class_names, affine).compare(y_pred)


def _over(of_pred: float, of_real: float) -> float:
    """Synthetic over real; nan where the real scan has nothing to compare with."""
    return of_pred / of_real if of_real > 0 else float("nan")


def _check_grid(
    real: np.ndarray, mask: np.ndarray, label_map: np.ndarray | None, class_names: Sequence[str] | None
) -> None:
    if real.shape != mask.shape:
        raise ValueError(f"real, mask: expected one shape, got {real.shape}, {mask.shape}")
    if (label_map is None) != (class_names is None):
        raise ValueError("label_map, class_names: expected both or neither, got one")
    if label_map is not None and label_map.shape != mask.shape:
        raise ValueError(f"label_map: expected the mask's shape {mask.shape}, got {label_map.shape}")


def _check_intensities(subject: str, volume: np.ndarray, mask: np.ndarray) -> None:
    num_bad = int((~np.isfinite(volume[mask])).sum())
    if num_bad:
        raise InputError.of(
            subject,
            "finite intensities inside the brain mask",
            f"{num_bad} voxels that are NaN or infinite",
            "Check what made it.",
        )


def _box_around(mask: np.ndarray, margin: int) -> tuple[slice, ...]:
    box = ndimage.find_objects(mask.astype(np.uint8))[0]
    return tuple(slice(max(0, s.start - margin), s.stop + margin) for s in box)
