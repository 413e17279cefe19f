from __future__ import annotations

import numpy as np

from trispade.data.deformation import deform_label_map


def ball(spacing_mm: float, radius_mm: float = 30.0, extent_mm: float = 96.0) -> np.ndarray:
    """Concentric balls of two classes, the inner of half the radius, in a box that is not cubic."""
    shape = (round(extent_mm / spacing_mm), round(extent_mm / spacing_mm) + 4, round(extent_mm / spacing_mm) + 8)
    places = np.indices(shape).astype(float)
    centre = (np.array(shape) - 1).reshape(3, 1, 1, 1) / 2
    radius = np.sqrt(((places - centre) ** 2).sum(axis=0)) * spacing_mm
    return (radius < radius_mm).astype(np.uint8) + (radius < radius_mm / 2)


def test_no_displacement_changes_nothing():
    label_map = ball(4.0)
    assert np.array_equal(deform_label_map(label_map, 0.0, 32.0, 4.0, seed=1), label_map)


def test_a_deformed_label_map_has_the_same_classes_in_about_the_same_place():
    label_map = ball(4.0)
    deformed = deform_label_map(label_map, 3.0, 32.0, 4.0, seed=1)
    assert deformed.dtype == label_map.dtype
    assert deformed.shape == label_map.shape
    assert set(np.unique(deformed)) == {0, 1, 2}
    overlap = 2 * ((deformed > 0) & (label_map > 0)).sum() / ((deformed > 0).sum() + (label_map > 0).sum())
    assert 0.7 < overlap < 0.98


def test_the_displacement_is_in_millimetres_whatever_the_voxel_size():
    def overlap(spacing_mm: float) -> float:
        values = []
        for seed in range(8):
            label_map = ball(spacing_mm) > 0
            deformed = deform_label_map(label_map.astype(np.uint8), 3.0, 32.0, spacing_mm, seed=seed) > 0
            values.append(2 * (deformed & label_map).sum() / (deformed.sum() + label_map.sum()))
        return float(np.mean(values))

    assert abs(overlap(2.0) - overlap(4.0)) < 0.03


def test_the_topology_of_a_layer_survives_the_displacements_that_are_the_default():
    deformed = deform_label_map(ball(2.0), 3.0, 32.0, 2.0, seed=3)
    inner = deformed == 2
    grown = inner.copy()
    for axis in range(3):
        grown |= np.roll(inner, 1, axis) | np.roll(inner, -1, axis)
    assert (deformed[grown] > 0).all()  # the inner ball touches the outer one alone, never the background


def test_the_seed_alone_decides_the_deformation():
    first, again, other = (deform_label_map(ball(4.0), 3.0, 32.0, 4.0, seed=seed) for seed in ([1, 2], [1, 2], [1, 3]))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_equal_voxel_sizes_give_what_one_size_gives_and_others_a_displacement_in_millimetres():
    label_map = ball(4.0)
    same = deform_label_map(label_map, 3.0, 32.0, (4.0, 4.0, 4.0), seed=1)
    assert np.array_equal(same, deform_label_map(label_map, 3.0, 32.0, 4.0, seed=1))
    thin = np.repeat(label_map, 2, axis=2)
    moved = deform_label_map(thin, 3.0, 32.0, (4.0, 4.0, 2.0), seed=1)
    assert (moved[:, :, ::2] != same).mean() < 0.01
