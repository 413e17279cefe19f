"""Augmentation of slices: the label map and the scan deformed alike, so that a few people stand for more anatomies."""

from __future__ import annotations

import math

from monai.transforms import Rand2DElasticd


def slice_augmentation(
    probability: float,
    rotation_degrees: float,
    scaling: float,
    displacement_mm: float,
    knots_mm: float,
    spacing_mm: float,
) -> Rand2DElasticd | None:
    """Make the random deformation of slices: rotation, scaling of either axis and a smooth displacement.

    Args:
        probability: that a slice is deformed; 0 makes no augmentation.
        rotation_degrees: largest rotation, degrees, either way.
        scaling: largest change of size along either axis, as a fraction.
        displacement_mm: largest displacement at a knot along either axis, mm. Well below half of ``knots_mm`` nothing
            folds.
        knots_mm: distance between the knots of the displacement, which is interpolated bicubically between them, mm.
        spacing_mm: edge of a pixel.

    Returns:
        A MONAI transform of ``label_map`` (nearest neighbour) and ``t1w`` (bilinear), each (1, H, W), or None.
    """
    if not probability:
        return None
    return Rand2DElasticd(
        keys=["label_map", "t1w"],
        spacing=max(1, round(knots_mm / spacing_mm)),
        magnitude_range=(0.0, displacement_mm / spacing_mm),
        prob=probability,
        rotate_range=math.radians(rotation_degrees),
        scale_range=scaling,
        mode=("nearest", "bilinear"),
        padding_mode="border",
    )
