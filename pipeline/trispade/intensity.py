"""Intensities: bias field correction, the scale the networks see, and the scale evaluation uses."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from trispade.errors import InputError
from trispade.itk_threads import one_itk_thread

# Where MALC 2012 has its tissues: grey matter at 0.63 (0.61 to 0.65) of white matter's median, which is itself the 82nd
# percentile (79 to 83) of the brain.
WHITE_MATTER_VALUE = 0.6
GREY_MATTER_VALUE = 0.01
WHITE_MATTER_PERCENTILE = 82.0
SMALLEST_ANCHOR_VOXELS = 100
EVALUATION_PERCENTILE = 99.5
LARGEST_BLOCK_MM = 4.0


@dataclass(frozen=True)
class IntensityScaling:
    """Affine map from the intensities of one scan to what the networks see, gain * t1w + offset in [-1, 1]."""

    gain: float
    offset: float

    def apply(self, t1w: np.ndarray) -> np.ndarray:
        """Scale intensities, any shape, to float32 in [-1, 1]; what lies beyond is clipped."""
        scaled = np.float32(self.gain) * np.asarray(t1w, np.float32) + np.float32(self.offset)
        return np.clip(scaled, -1, 1)

    def invert(self, scaled: np.ndarray) -> np.ndarray:
        """Bring network values back to the scan's intensities, float32; clipped ones stay at their limit."""
        return (np.asarray(scaled, np.float32) - np.float32(self.offset)) / np.float32(self.gain)


def correct_bias(
    t1w: np.ndarray,
    mask: np.ndarray,
    spacing_mm: Sequence[float],
    shrink_factor: int = 4,
    iterations: Sequence[int] = (50, 50, 50),
    source: str = "T1w",
) -> np.ndarray:
    """Remove the slow intensity drift of the receive coils by N4.

    The field is estimated on block means inside the mask's bounding box, single-threaded, so that the result depends
    neither on the field of view nor on the machine. It is centred: the mean log field inside the mask is zero.

    Args:
        t1w: (X, Y, Z) intensities; negative ones count as zero.
        mask: (X, Y, Z) bool, the brain.
        spacing_mm: voxel size along the three axes.
        shrink_factor: edge of a block in voxels; less where that would exceed 4 mm.
        iterations: at most so many for each fitting level, coarse to fine.
        source: file or case, for messages.

    Returns:
        (X, Y, Z) float32, nowhere negative.

    Raises:
        InputError: if the mask is empty, or the scan is zero all over it.

    Source:
        Tustison et al., N4ITK: improved N3 bias correction, IEEE TMI 29(6), 2010, as implemented in ITK.
    """
    t1w = np.maximum(np.asarray(t1w, np.float32), 0)
    remedy = "Check that scan and label map belong together."
    if not mask.any():
        raise InputError.of(source, "a brain mask of at least one voxel", "none", remedy)
    if not t1w[mask].any():
        raise InputError.of(source, "signal inside the brain mask", "zero", remedy)
    factor = max(1, min(shrink_factor, round(LARGEST_BLOCK_MM / max(spacing_mm))))
    box = ndimage.find_objects(mask.astype(np.uint8))[0]
    small_t1w, small_mask = _block_means(t1w[box], mask[box], factor)
    log_field = _n4_log_field(small_t1w, small_mask, [size * factor for size in spacing_mm], iterations)
    log_field -= log_field[small_mask].mean()
    return t1w * np.exp(-_at_every_voxel(log_field, box, t1w.shape, factor))


def fit_scaling(
    t1w: np.ndarray,
    label_map: np.ndarray,
    wm_indices: Collection[int],
    gm_indices: Collection[int],
    source: str = "T1w",
) -> IntensityScaling:
    """Fit the gain that puts one scan's white matter at 0.6 and its zero at -1.

    The anchor is the median of white matter; where too little is labelled, that of grey matter; where neither is, a
    percentile of the labelled voxels. A second anchor at grey matter was tried and left out: on MALC 2012 (12 scans) it
    widens the spread between scans of the other classes (standard deviation of class medians 0.058 against 0.054, of
    CSF 0.050 against 0.038) and moves the scan's zero to between -1.1 and -0.9.

    Args:
        t1w: (X, Y, Z) intensities, bias corrected, background 0.
        label_map: (X, Y, Z) class indices on the same grid.
        wm_indices: classes of white matter.
        gm_indices: classes of grey matter.
        source: file or case, for messages.

    Raises:
        InputError: if no voxel is labelled, or the anchor is not brighter than zero.
    """
    if not label_map.any():
        raise InputError.of(source, "at least one labelled voxel", "none", "Check the label map and its scheme.")
    anchor, value = float(np.percentile(t1w[label_map > 0], WHITE_MATTER_PERCENTILE)), WHITE_MATTER_VALUE
    for indices, at in ((gm_indices, GREY_MATTER_VALUE), (wm_indices, WHITE_MATTER_VALUE)):
        tissue = t1w[np.isin(label_map, list(indices))]
        if tissue.size >= SMALLEST_ANCHOR_VOXELS:
            anchor, value = float(np.median(tissue)), at
    if not anchor > 0:
        raise InputError.of(
            source,
            "white matter brighter than zero",
            f"a median of {anchor:g}",
            "Check that scan and label map belong together.",
        )
    return IntensityScaling(gain=(value + 1) / anchor, offset=-1.0)


def evaluation_intensity(t1w: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Put a bias-corrected scan on the scale of evaluation.

    Args:
        t1w: (X, Y, Z) intensities.
        mask: (X, Y, Z) bool, the brain.

    Returns:
        (X, Y, Z) float32 in [0, 1]: divided by the 99.5th percentile inside the mask, clipped, zero outside.

    Raises:
        InputError: if the mask is empty or that percentile is not positive.
    """
    brightest = float(np.percentile(t1w[mask], EVALUATION_PERCENTILE)) if mask.any() else 0.0
    if brightest <= 0:
        raise InputError.of(
            "T1w", "signal inside the brain mask", "none", "Check that scan and label map belong together."
        )
    scaled = np.clip(np.asarray(t1w, np.float32) / np.float32(brightest), 0, 1)
    scaled[~mask] = 0
    return scaled


def fit_gain_offset(y_pred: np.ndarray, y: np.ndarray, mask: np.ndarray) -> tuple[float, float]:
    """Fit gain and offset that bring a synthetic volume closest to the real one (least squares inside the mask).

    Args:
        y_pred: (X, Y, Z) synthetic intensities.
        y: (X, Y, Z) real intensities.
        mask: (X, Y, Z) bool.

    Returns:
        Gain and offset of `gain * y_pred + offset`; a constant prediction gets gain 0 and the mean of `y`.

    Raises:
        InputError: if the mask is empty.
    """
    if not mask.any():
        raise InputError.of("brain mask", "at least one voxel", "none", "Check the label map that it is made from.")
    predicted, real = y_pred[mask].astype(np.float64), y[mask].astype(np.float64)
    centred = predicted - predicted.mean()
    variance = float(centred @ centred)
    gain = float(centred @ (real - real.mean())) / variance if variance > 0 else 0.0
    return gain, float(real.mean() - gain * predicted.mean())


def _block_means(t1w: np.ndarray, mask: np.ndarray, factor: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean of each block's masked voxels, and the blocks at least half inside the mask (any part, if there is none)."""
    share = _block_sums(mask.astype(np.float32), factor)
    means = _block_sums(np.where(mask, t1w, 0), factor) / np.maximum(share, 1)
    inside = share >= factor**3 / 2
    return means, inside if inside.any() else share > 0


def _block_sums(volume: np.ndarray, factor: int) -> np.ndarray:
    padded = np.pad(volume, [(0, -extent % factor) for extent in volume.shape])
    x, y, z = (extent // factor for extent in padded.shape)
    return padded.reshape(x, factor, y, factor, z, factor).sum(axis=(1, 3, 5), dtype=np.float32)


def _n4_log_field(
    t1w: np.ndarray, mask: np.ndarray, spacing_mm: Sequence[float], iterations: Sequence[int]
) -> np.ndarray:
    with warnings.catch_warnings():
        # itk's modules, loaded on first use, warn of SWIG's types; as errors these warnings crash the interpreter.
        warnings.simplefilter("ignore")
        import itk  # here, since it takes seconds

        with one_itk_thread(itk):
            image, mask_image = (_itk_image(itk, array, spacing_mm) for array in (t1w, mask.astype(np.uint8)))
            n4 = itk.N4BiasFieldCorrectionImageFilter.New(image, MaskImage=mask_image)
            n4.SetNumberOfFittingLevels(len(iterations))
            n4.SetMaximumNumberOfIterations([int(number) for number in iterations])
            n4.Update()
            field = n4.ReconstructBiasField(n4.GetLogBiasFieldControlPointLattice())
            return itk.array_from_image(field).astype(np.float32).transpose(2, 1, 0)


def _itk_image(itk: object, array: np.ndarray, spacing_mm: Sequence[float]) -> object:
    image = itk.image_from_array(np.ascontiguousarray(array.transpose(2, 1, 0)))  # type: ignore[attr-defined]
    image.SetSpacing([float(size) for size in spacing_mm])
    return image


def _at_every_voxel(log_field: np.ndarray, box: tuple[slice, ...], shape: tuple[int, ...], factor: int) -> np.ndarray:
    """Interpolate the field from block centres linearly; beyond the outer ones it is constant."""
    for axis, (window, extent) in enumerate(zip(box, shape, strict=True)):
        position = (np.arange(extent) - window.start + 0.5) / factor - 0.5
        position = np.clip(position, 0, log_field.shape[axis] - 1)
        below = np.floor(position).astype(int)
        weight = (position - below).astype(np.float32)
        weight = weight.reshape([-1 if other == axis else 1 for other in range(3)])
        above = np.minimum(below + 1, log_field.shape[axis] - 1)
        log_field = log_field.take(below, axis) * (1 - weight) + log_field.take(above, axis) * weight
    return log_field
