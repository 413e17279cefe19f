"""One phantom: an anatomy sampled on a grid, and the T1w that a scanner would make of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from trispade.errors import InputError
from trispade.phantoms.anatomy import BRAIN_HALF_EXTENT_MM, CSF_ID, FloatArray, Person, label_points

# Mean T1w of an adult at 3 T, in the arbitrary unit that puts white matter at 110.
_MEAN_T1W = {
    2: 110, 3: 74, 4: 26, 5: 30, 7: 106, 8: 70, 10: 92, 11: 79, 12: 84, 13: 98, 14: 28, 15: 28, 16: 100, 17: 74,
    18: 72, 24: 28, 26: 78, 28: 97, 41: 110, 42: 74, 43: 26, 44: 30, 46: 106, 47: 70, 49: 92, 50: 79, 51: 84,
    52: 98, 53: 74, 54: 72, 58: 78, 60: 97,
}  # fmt: skip


class Phantom(NamedTuple):
    """One phantom: ``label_map`` (X, Y, Z) int16 FreeSurfer ids, ``t1w`` (X, Y, Z) float32 >= 0, ``affine`` (4, 4)."""

    label_map: NDArray[np.int16]
    t1w: FloatArray
    affine: NDArray[np.float64]


def phantom_affine(
    shape: Sequence[int],
    spacing_mm: float | Sequence[float],
    orientation: str = "RAS",
    oblique_degrees: float = 0.0,
) -> NDArray[np.float64]:
    """Build the affine of a grid whose middle is the world's origin.

    Args:
        shape: voxels along each of the array's axes.
        spacing_mm: one spacing, or one for each of the array's axes.
        orientation: direction in which each of the array's axes runs, such as ``"RAS"`` or ``"LPI"``.
        oblique_degrees: angle by which the grid is turned about the world's axis (1, 2, 3).

    Returns:
        (4, 4) affine from voxel index to RAS+ mm.

    Raises:
        InputError: if ``orientation`` does not name the three axes once each.
    """
    pairs = [next((pair for pair in ("LR", "PA", "IS") if code in pair), "") for code in orientation.upper()]
    if sorted(pairs) != ["IS", "LR", "PA"]:
        raise InputError.of(
            "orientation", "three letters, one each of L/R, P/A and I/S", repr(orientation), "Give for example 'RAS'."
        )
    directions = np.zeros((3, 3))
    for axis, (code, pair) in enumerate(zip(orientation.upper(), pairs, strict=True)):
        directions[("LR", "PA", "IS").index(pair), axis] = 1.0 if code == pair[1] else -1.0
    affine = np.eye(4)
    affine[:3, :3] = _rotation(oblique_degrees) @ directions * np.broadcast_to(np.asarray(spacing_mm, float), 3)
    affine[:3, 3] = -affine[:3, :3] @ ((np.asarray(shape, float) - 1) / 2)
    return affine


def _rotation(degrees: float) -> NDArray[np.float64]:
    x, y, z = np.array([1.0, 2.0, 3.0]) / np.sqrt(14.0)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = np.deg2rad(degrees)
    return np.asarray(np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross)


def make_phantom(
    seed: int = 0,
    shape: tuple[int, int, int] = (48, 56, 48),
    spacing_mm: float | Sequence[float] = 4.0,
    affine: NDArray[np.float64] | None = None,
) -> Phantom:
    """Draw one phantom; deterministic in all its arguments.

    Sulci carry no label, as in most manual and FreeSurfer segmentations, yet are dark rather than zero in the T1w,
    which is zero outside the brain. A brain that would not fit into the grid is scaled down until it does.

    Args:
        seed: which person; the anatomy does not depend on the grid.
        shape: voxels along each of the array's axes.
        spacing_mm: one spacing, or one for each of the array's axes; not used when ``affine`` is given.
        affine: (4, 4) voxel -> RAS+ mm; by default RAS with the world's origin in the middle of the grid.

    Returns:
        Label map in FreeSurfer aseg ids, T1w in arbitrary units that differ by scan as scanners do, and the affine.

    Raises:
        InputError: if ``shape`` has an axis of fewer than 8 voxels.
    """
    if len(shape) != 3 or min(shape) < 8:
        raise InputError.of("phantom shape", "three axes of at least 8 voxels", str(tuple(shape)), "Use a larger grid.")
    affine = phantom_affine(shape, spacing_mm) if affine is None else np.asarray(affine, float)
    rng = np.random.default_rng([seed, 0])
    person = Person.draw(rng)
    points = _head_positions(shape, affine)
    labels, in_brain = label_points(points, person)
    label_map = labels.reshape(shape)
    t1w = _image(label_map, in_brain.reshape(shape), person.bias.values(points).reshape(shape), person.gain, rng)
    return Phantom(label_map, t1w, affine)


def _head_positions(shape: tuple[int, int, int], affine: NDArray[np.float64]) -> FloatArray:
    """Position (N, 3) of every voxel in mm from the grid's middle, stretched where the brain would not fit."""
    spacing_mm = np.linalg.norm(affine[:3, :3], axis=0)
    directions = affine[:3, :3] / spacing_mm
    # Half the width of an ellipsoid with the brain's extent, along each of the grid's axes.
    support_mm = np.linalg.norm(np.array(BRAIN_HALF_EXTENT_MM)[:, None] * directions, axis=0)
    fit = min(1.0, float(np.min((np.array(shape) - 2) * spacing_mm / 2 / support_mm)))
    index = np.indices(shape, np.float32).reshape(3, -1).T - ((np.array(shape) - 1) / 2).astype(np.float32)
    return index @ (affine[:3, :3].T / fit).astype(np.float32)


def _image(
    label_map: NDArray[np.int16], in_brain: NDArray[np.bool_], bias: FloatArray, gain: float, rng: np.random.Generator
) -> FloatArray:
    """Paint class means with partial volume, texture, bias field and Rician noise; zero outside the brain."""
    means = np.zeros(max(_MEAN_T1W) + 1, np.float32)
    means[list(_MEAN_T1W)] = list(_MEAN_T1W.values())
    clean = np.where(in_brain, np.where(label_map > 0, means[label_map], means[CSF_ID]), 0).astype(np.float32)
    weight = ndimage.gaussian_filter(in_brain.astype(np.float32), 0.5)
    clean = ndimage.gaussian_filter(clean, 0.5) / np.maximum(weight, 1e-3)
    texture = ndimage.gaussian_filter(rng.standard_normal(label_map.shape, np.float32), 1.2)
    signal = (clean + 3.0 * texture / texture.std()) * (1 + np.float32(0.08) * bias)
    real, imaginary = rng.standard_normal((2, *label_map.shape), np.float32) * np.float32(2.0)
    t1w = np.where(in_brain, np.float32(gain) * np.hypot(signal + real, imaginary), 0)
    return t1w.astype(np.float32)
