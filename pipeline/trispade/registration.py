"""Rigid and affine registration of two scans, and resampling of one onto the other's grid.

Grids may differ in spacing, orientation and obliquity: what is estimated is a transform of world coordinates, RAS+ mm.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage, optimize

from trispade.errors import InputError
from trispade.itk_threads import one_itk_thread

RESOLUTIONS_MM = (8.0, 4.0, 2.0)
MARGIN_MM = 16.0
NUM_ITERATIONS = 50
RADIUS_MM = 60.0  # of a brain: a radian counts as much as so many mm of shift
SMALLEST_GAIN, SMALLEST_SLOPE = 1e-8, 1e-7  # of squared correlation, the latter a mm: some micrometres of motion
RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def register_rigidly(
    moving: np.ndarray,
    moving_affine: np.ndarray,
    fixed: np.ndarray,
    fixed_affine: np.ndarray,
    resolutions_mm: Sequence[float] = RESOLUTIONS_MM,
    names: tuple[str, str] = ("moving scan", "fixed scan"),
) -> np.ndarray:
    """Find the rotation and shift that bring one scan onto another.

    The centres of brightness are put upon each other; then the squared correlation of all voxels, measured by itk, is
    climbed by L-BFGS at growing resolution. Nothing is sampled at random and one thread does it all, so that the result
    is the same each time.

    Args:
        moving: (X, Y, Z) intensities, any unit; the background is the darkest value.
        moving_affine: (4, 4), voxel -> RAS+ mm.
        fixed: (X, Y, Z) intensities of the other scan, any grid.
        fixed_affine: (4, 4), voxel -> RAS+ mm.
        resolutions_mm: edges of the blocks that voxels are averaged to, coarse to fine; finer voxels than the last of
            them cost time and hardly add to what millions of voxels tell about six numbers.
        names: what errors call the two.

    Returns:
        (4, 4) float64, RAS+ mm of the moving scan -> RAS+ mm of the fixed scan. On phantoms, turns of up to 30 degrees
        and any shift are found to a fraction of a voxel.

    Raises:
        InputError: if a volume is empty, constant or not finite.
    """
    moving_scan, fixed_scan = _scans((moving, fixed), (moving_affine, fixed_affine), names)
    moving_centre, fixed_centre = moving_scan.centre_of_brightness(), fixed_scan.centre_of_brightness()
    with warnings.catch_warnings():
        # itk's modules, loaded on first use, warn of SWIG's types; as errors these warnings crash the interpreter.
        warnings.simplefilter("ignore")
        import itk  # here, since it takes seconds

        with one_itk_thread(itk):
            transform = itk.Euler3DTransform[itk.D].New()
            transform.SetCenter(_lps(fixed_centre))
            transform.SetTranslation(_lps(moving_centre - fixed_centre))
            for size_mm in resolutions_mm:
                _climb(itk, transform, moving_scan.at_resolution(size_mm), fixed_scan.at_resolution(size_mm))
            return _moving_to_fixed(itk, transform)


def register_affinely(
    moving: np.ndarray,
    moving_affine: np.ndarray,
    fixed: np.ndarray,
    fixed_affine: np.ndarray,
    start: np.ndarray,
    resolutions_mm: Sequence[float] = RESOLUTIONS_MM[1:],
    names: tuple[str, str] = ("moving scan", "fixed scan"),
) -> np.ndarray:
    """Find the affine transform that brings one scan onto another: a motion with scaling and shear, climbed likewise.

    Args:
        moving: (X, Y, Z) intensities, any unit; the background is the darkest value.
        moving_affine: (4, 4), voxel -> RAS+ mm.
        fixed: (X, Y, Z) intensities of the other scan, any grid.
        fixed_affine: (4, 4), voxel -> RAS+ mm.
        start: (4, 4) from `register_rigidly`.
        resolutions_mm: see `register_rigidly`.
        names: what errors call the two.

    Returns:
        (4, 4) float64, RAS+ mm of the moving scan -> RAS+ mm of the fixed scan.

    Raises:
        InputError: if a volume is empty, constant or not finite.
    """
    moving_scan, fixed_scan = _scans((moving, fixed), (moving_affine, fixed_affine), names)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as above
        import itk

        with one_itk_thread(itk):
            transform = itk.AffineTransform[itk.D, 3].New()
            transform.SetCenter(_lps(fixed_scan.centre_of_brightness()))
            fixed_to_moving = np.linalg.inv(RAS_TO_LPS @ start @ RAS_TO_LPS)
            transform.SetMatrix(itk.matrix_from_array(np.ascontiguousarray(fixed_to_moving[:3, :3])))
            transform.SetOffset(fixed_to_moving[:3, 3].tolist())
            for size_mm in resolutions_mm:
                _climb(itk, transform, moving_scan.at_resolution(size_mm), fixed_scan.at_resolution(size_mm))
            return _moving_to_fixed(itk, transform)


def resample_to(
    moving: np.ndarray,
    moving_affine: np.ndarray,
    fixed_shape: Sequence[int],
    fixed_affine: np.ndarray,
    transform: np.ndarray,
    order: int = 3,
) -> np.ndarray:
    """Resample a registered scan onto another grid.

    Args:
        moving: (X, Y, Z) intensities.
        moving_affine: (4, 4), voxel -> RAS+ mm.
        fixed_shape: (X, Y, Z) of the grid wanted.
        fixed_affine: (4, 4) of that grid.
        transform: (4, 4) from `register_rigidly`.
        order: of the B-spline; 0 takes the nearest voxel, 1 is linear, 3 keeps fine detail best.

    Returns:
        float32 of the fixed shape, clipped to the moving scan's range, whose darkest value lies outside its grid.
    """
    moving = np.asarray(moving, np.float32)
    low, high = float(moving.min()), float(moving.max())
    to_moving = np.linalg.inv(transform @ moving_affine) @ fixed_affine
    resampled = ndimage.affine_transform(
        moving, to_moving[:3, :3], to_moving[:3, 3], tuple(fixed_shape), order=order, mode="constant", cval=low
    )
    return np.clip(resampled, low, high)  # splines overshoot at edges


@dataclass(frozen=True, eq=False)
class _Scan:
    """Intensities (X, Y, Z) and their affine, voxel -> RAS+ mm."""

    volume: np.ndarray
    affine: np.ndarray

    @property
    def spacing_mm(self) -> np.ndarray:
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    def checked(self, name: str) -> _Scan:
        remedy = "Check the file that it comes from."
        if self.volume.ndim != 3 or not self.volume.size:
            raise InputError.of(name, "a volume (X, Y, Z) with voxels", f"shape {self.volume.shape}", remedy)
        if not np.isfinite(self.volume).all():
            raise InputError.of(name, "finite intensities to register by", "nan or infinite ones", remedy)
        if self.volume.min() == self.volume.max():
            raise InputError.of(
                name, "intensities to register by", f"the same value, {self.volume.flat[0]:g}, everywhere", remedy
            )
        return self

    def cut_to_signal(self) -> _Scan:
        """Cut to what is brighter than the background, which becomes zero, and leave a margin of it around."""
        signal = self.volume - self.volume.min()
        (box,) = ndimage.find_objects((signal > 0).astype(np.uint8))
        margin = np.ceil(MARGIN_MM / self.spacing_mm).astype(int)
        start = np.array([each.start for each in box]) - margin
        return _Scan(np.pad(signal[box], [(each, each) for each in margin]), self._affine_at(start, 1))

    def at_resolution(self, resolution_mm: float) -> _Scan:
        """Average blocks of voxels whose edges come nearest to a resolution, one voxel at least."""
        factors = np.maximum(1, np.rint(resolution_mm / self.spacing_mm)).astype(int)
        padded = np.pad(
            self.volume, [(0, -extent % factor) for extent, factor in zip(self.volume.shape, factors, strict=True)]
        )
        pairs = [n for extent, factor in zip(padded.shape, factors, strict=True) for n in (extent // factor, factor)]
        means = padded.reshape(pairs).mean(axis=(1, 3, 5), dtype=np.float32)
        return _Scan(means, self._affine_at((factors - 1) / 2, factors))

    def centre_of_brightness(self) -> np.ndarray:
        """World coordinates (3,), RAS+ mm."""
        return self.affine[:3, :3] @ ndimage.center_of_mass(self.volume) + self.affine[:3, 3]

    def to_itk(self, itk: Any) -> Any:
        image = itk.image_from_array(np.ascontiguousarray(self.volume.transpose(2, 1, 0)))
        in_lps = RAS_TO_LPS @ self.affine
        image.SetSpacing(self.spacing_mm.tolist())
        image.SetOrigin(in_lps[:3, 3].tolist())
        image.SetDirection(itk.matrix_from_array(np.ascontiguousarray(in_lps[:3, :3] / self.spacing_mm)))
        return image

    def _affine_at(self, start: np.ndarray, step: np.ndarray | int) -> np.ndarray:
        """Affine of the grid whose voxel 0 is this grid's voxel `start`, with steps of so many voxels."""
        affine = self.affine.copy()
        affine[:3, 3] += self.affine[:3, :3] @ start
        affine[:3, :3] *= step
        return affine


def _scans(
    volumes: tuple[np.ndarray, np.ndarray], affines: tuple[np.ndarray, np.ndarray], names: tuple[str, str]
) -> tuple[_Scan, _Scan]:
    moving, fixed = (
        _Scan(np.asarray(volume, np.float32), np.asarray(affine, np.float64)).checked(name).cut_to_signal()
        for volume, affine, name in zip(volumes, affines, names, strict=True)
    )
    return moving, fixed


def _climb(itk: Any, transform: Any, moving: _Scan, fixed: _Scan) -> None:
    """Improve a transform, in place, until the squared correlation grows no more."""
    moving_image, fixed_image = moving.to_itk(itk), fixed.to_itk(itk)
    image_type = type(fixed_image)
    metric = itk.CorrelationImageToImageMetricv4[image_type, image_type].New()
    metric.SetFixedImage(fixed_image)
    metric.SetMovingImage(moving_image)
    metric.SetVirtualDomainFromImage(fixed_image)
    metric.SetMovingTransform(transform)
    # Else the slope is that of a smoothed image, which differs in direction and size from that of the value.
    metric.SetUseMovingImageGradientFilter(False)
    metric.Initialize()
    # Angles or the entries of a matrix, then a shift.
    scale = np.array([1 / RADIUS_MM] * (transform.GetNumberOfParameters() - 3) + [1.0] * 3)
    derivative = itk.Array[itk.D](scale.size)

    def value_and_slope(scaled: np.ndarray) -> tuple[float, np.ndarray]:
        metric.SetParameters(_itk_parameters(itk, scaled * scale))
        metric.GetDerivative(derivative)
        # itk gives the direction of descent.
        return metric.GetCurrentValue(), -np.array([derivative[i] for i in range(scale.size)]) * scale

    start = np.array(list(transform.GetParameters())) / scale
    limits = {"maxiter": NUM_ITERATIONS, "ftol": SMALLEST_GAIN, "gtol": SMALLEST_SLOPE}
    found = optimize.minimize(value_and_slope, start, jac=True, method="L-BFGS-B", options=limits)
    transform.SetParameters(_itk_parameters(itk, found.x * scale))


def _moving_to_fixed(itk: Any, transform: Any) -> np.ndarray:
    """(4, 4), RAS+ mm, of a transform that itk keeps from fixed to moving points, in LPS."""
    fixed_to_moving = np.eye(4)
    fixed_to_moving[:3, :3] = itk.array_from_matrix(transform.GetMatrix())
    fixed_to_moving[:3, 3] = list(transform.GetOffset())
    return RAS_TO_LPS @ np.linalg.inv(fixed_to_moving) @ RAS_TO_LPS


def _itk_parameters(itk: Any, values: np.ndarray) -> Any:
    parameters = itk.OptimizerParameters[itk.D](len(values))
    for index, value in enumerate(values):
        parameters[index] = float(value)
    return parameters


def _lps(point: np.ndarray) -> list[float]:
    return [-float(point[0]), -float(point[1]), float(point[2])]
