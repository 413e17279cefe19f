"""New anatomies out of known ones: smooth random deformations of label maps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage


def deform_label_map(
    label_map: np.ndarray, sd_mm: float, knots_mm: float, spacing_mm: float | Sequence[float], seed: int | list[int]
) -> np.ndarray:
    """Deform a label map by a smooth random displacement.

    The displacement is drawn at knots from a normal distribution, independently along each axis, and interpolated
    between them by cubic splines. Its gradient is about ``sd_mm / knots_mm``: structures do not fold where that is well
    below 1/2.

    Args:
        label_map: (X, Y, Z) class indices, integer.
        sd_mm: standard deviation of the displacement along each axis, mm; 0 changes nothing.
        knots_mm: distance between knots, mm.
        spacing_mm: edge of a voxel, or its size along each axis.
        seed: of the displacement.

    Returns:
        (X, Y, Z) of the same type: each voxel takes the index of the voxel nearest to where it is displaced to;
        background beyond the border.
    """
    generator = np.random.default_rng(seed)
    sizes_mm = [float(size_mm) for size_mm in np.broadcast_to(spacing_mm, 3)]
    lengths_mm = [extent * size_mm for extent, size_mm in zip(label_map.shape, sizes_mm, strict=True)]
    knots = [max(4, round(length_mm / knots_mm) + 1) for length_mm in lengths_mm]
    zoom = [extent / number for extent, number in zip(label_map.shape, knots, strict=True)]
    coordinates = np.indices(label_map.shape, dtype=np.float32)
    for axis in range(3):
        drawn = generator.normal(0.0, sd_mm / sizes_mm[axis], knots)
        coordinates[axis] += ndimage.zoom(drawn, zoom, order=3, grid_mode=True, mode="nearest")
    return ndimage.map_coordinates(label_map, coordinates, order=0, mode="constant", cval=0)
