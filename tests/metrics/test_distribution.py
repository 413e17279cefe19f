from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import linalg, ndimage

from trispade.metrics import (
    PatchDistance,
    cross_half_distances,
    frechet_distance,
    kernel_distance,
    patch_features,
    world_axes,
)
from trispade.nifti import read_label_map, read_t1w
from trispade.phantoms import make_phantom, phantom_affine

MALC = Path(os.environ.get("TRISPADE_TEST_DATA", Path(__file__).parents[3] / "shared/data")) / "malc2012"
Scan = tuple[np.ndarray, np.ndarray, np.ndarray]


def blur(volume: np.ndarray, strength: float, axis: int) -> np.ndarray:
    return ndimage.gaussian_filter(volume, strength)


def noise(volume: np.ndarray, strength: float, axis: int) -> np.ndarray:
    return volume + np.random.default_rng(0).normal(0, strength, volume.shape)


def slice_jitter(volume: np.ndarray, strength: float, axis: int) -> np.ndarray:
    """Shift each axial slice at random within its plane."""
    slices = np.moveaxis(volume, axis, 0)
    shifts = np.random.default_rng(0).normal(0, strength, (len(slices), 2))
    moved = [ndimage.shift(each, shift, order=1) for each, shift in zip(slices, shifts, strict=True)]
    return np.moveaxis(np.stack(moved), 0, axis)


def streaks(volume: np.ndarray, strength: float, axis: int) -> np.ndarray:
    """Give each axial slice a gain of its own."""
    gains = 1 + np.random.default_rng(0).normal(0, strength, volume.shape[axis])
    return volume * gains.reshape([-1 if each == axis else 1 for each in range(3)])


DAMAGE = {blur: (0.7, 1.0, 1.5), noise: (0.03, 0.06, 0.12), slice_jitter: (0.5, 1.0, 2.0), streaks: (0.05, 0.1, 0.2)}


def evaluated(scans: list[Scan], damage: Callable | None = None, strength: float = 0.0) -> list[np.ndarray]:
    features = []
    for volume, mask, affine in scans:
        changed = volume if damage is None else damage(volume, strength, world_axes(affine)[0])
        features.append(patch_features(np.where(mask, np.clip(changed, 0, 1), 0), mask, affine))
    return features


@pytest.fixture(scope="module")
def phantoms() -> list[Scan]:
    scans = []
    for seed in range(4):
        phantom = make_phantom(seed, (64, 76, 60), 2.5)
        mask = phantom.t1w > 0
        scans.append((phantom.t1w / np.percentile(phantom.t1w[mask], 99.5), mask, phantom.affine))
    return scans


def assert_ranked(scans: list[Scan], damage: Callable) -> None:
    """Check the order, and print the values that docs/evaluation.md states (``pytest -s``)."""
    people = [str(number) for number in range(len(scans))]
    real = evaluated(scans)
    floor = cross_half_distances(real, real, people)
    painted = [evaluated(scans, damage, strength) for strength in DAMAGE[damage]]
    found = [cross_half_distances(each, real, people) for each in painted]
    for name in ("frechet_distance", "kernel_distance"):
        values = [floor[name], *(each[name] for each in found)]
        print(f"\n{damage.__name__} {DAMAGE[damage]} {name}: " + ", ".join(f"{value:.3g}" for value in values))
        assert values == sorted(values), name
        assert values[0] < 0.7 * values[2]
    same_people = [frechet_distance(np.concatenate(each), np.concatenate(real)) for each in painted]
    assert 0.01 < same_people[0] < same_people[1] < same_people[2]


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda each: each.__name__)
def test_growing_damage_of_phantoms_is_ranked_above_the_floor_of_other_people(phantoms, damage):
    assert_ranked(phantoms, damage)


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.skipif(not MALC.is_dir(), reason="MALC 2012 is not there")
@pytest.mark.parametrize("damage", DAMAGE, ids=lambda each: each.__name__)
def test_growing_damage_of_real_scans_is_ranked_above_the_floor_of_other_people(malc, damage):
    assert_ranked(malc, damage)


@pytest.fixture(scope="module")
def malc() -> list[Scan]:
    scans = []
    for person in ("0101", "0111", "0113", "0117"):
        stem = MALC / f"sub-{person}/ses-1/anat/sub-{person}_ses-1"
        t1w, affine = read_t1w(f"{stem}_desc-brain_T1w.nii.gz")
        mask = read_label_map(f"{stem}_dseg.nii.gz")[0] > 0
        scans.append((np.clip(t1w / np.percentile(t1w[mask], 99.5), 0, 1), mask, affine))
    return scans


def test_features_know_intensity_spread_and_the_direction_of_detail():
    generator = np.random.default_rng(0)
    mask = np.ones((32, 32, 32), bool)
    base = 0.5 + 0.01 * generator.normal(size=mask.shape)
    flat = patch_features(base, mask)
    assert flat.shape == (8, 20)
    np.testing.assert_allclose(flat[:, 0], 0.5, atol=1e-3)
    np.testing.assert_allclose(flat[:, 1], np.log(0.011), atol=0.05)
    # Of independent noise, first and second differences have sqrt(2) and sqrt(6) times its SD.
    for column, factor in ((2, 2), (3, 6), (4, 2), (5, 6), (6, 2), (7, 6)):
        expected = np.log(0.01 * np.sqrt(factor * 2 / np.pi) + 1e-3)
        np.testing.assert_allclose(flat[:, column], expected, atol=0.06)
    streaked = patch_features(base + 0.05 * generator.normal(size=32)[:, None, None], mask)
    changed = np.abs(streaked - flat)[:, 2:].mean(axis=0).reshape(3, 3, 2)  # scale, axis, order
    assert changed[0, 0].min() > 1 > 0.1 > changed[0, 1:].max()


def test_nothing_outside_the_mask_matters_nor_the_field_of_view():
    generator = np.random.default_rng(0)
    mask = np.zeros((40, 44, 42), bool)
    mask[3:36, 5:38, 2:37] = True
    volume = generator.random(mask.shape)
    expected = patch_features(volume, mask)
    assert len(expected) == 8
    np.testing.assert_array_equal(patch_features(np.where(mask, volume, np.nan), mask), expected)
    padded = [np.pad(each, ((2, 0), (1, 5), (0, 3)), mode="edge") for each in (volume, np.pad(mask, 0))]
    padded[1][:] = np.pad(mask, ((2, 0), (1, 5), (0, 3)))
    np.testing.assert_allclose(patch_features(*padded), expected)


def test_a_reoriented_scan_has_the_same_features():
    generator = np.random.default_rng(0)
    volume = ndimage.gaussian_filter1d(generator.random((32, 48, 32)), 1.0, axis=2)
    mask = np.ones(volume.shape, bool)
    turned = volume.transpose(2, 0, 1)
    found = patch_features(turned, mask.transpose(2, 0, 1), phantom_affine(turned.shape, 1.0, "SRA"))
    np.testing.assert_allclose(found, patch_features(volume, mask))


def test_the_frechet_distance_of_two_normal_distributions_has_its_closed_form():
    generator = np.random.default_rng(0)
    y = generator.normal(size=(400, 3)) @ np.diag([1.0, 4.0, 0.1]) + 7.0
    y_pred = 2.0 * y + np.array([3.0, 0.0, 0.0])
    deviation = y.std(axis=0)
    means = (y_pred.mean(axis=0) - y.mean(axis=0)) / deviation
    expected = means @ means + 3 * 400 / 399  # (2 - 1)^2 of each variance, which the sample's n - 1 makes 400 / 399
    assert frechet_distance(y_pred, y) == pytest.approx(expected)
    assert frechet_distance(y, y) == pytest.approx(0.0, abs=1e-9)


def test_the_frechet_distance_is_the_one_by_the_general_matrix_root():
    generator = np.random.default_rng(1)
    y = generator.normal(size=(60, 4)) @ generator.normal(size=(4, 4))
    y_pred = generator.normal(size=(50, 4)) @ generator.normal(size=(4, 4)) + 0.3
    tables = [torch.from_numpy((each - y.mean(axis=0)) / y.std(axis=0)) for each in (y_pred, y)]
    moments = [(each.mean(dim=0), torch.cov(each.T)) for each in tables]
    root = linalg.sqrtm((moments[0][1] @ moments[1][1]).numpy())
    expected = (moments[0][0] - moments[1][0]).square().sum() + sum(cov.trace() for _, cov in moments)
    assert frechet_distance(y_pred, y) == pytest.approx(float(expected - 2 * np.trace(root.real)))


def test_the_kernel_distance_is_the_unbiased_estimate_by_its_definition():
    generator = np.random.default_rng(2)
    y, y_pred = generator.normal(size=(9, 2)), generator.normal(size=(7, 2)) + 1.0
    a, b = ((each - y.mean(axis=0)) / y.std(axis=0) for each in (y_pred, y))

    def mean(first, second, skip):
        pairs = [(i, j) for i in range(len(first)) for j in range(len(second)) if not (skip and i == j)]
        return np.mean([(first[i] @ second[j] / 2 + 1) ** 3 for i, j in pairs])

    expected = mean(a, a, True) + mean(b, b, True) - 2 * mean(a, b, False)
    assert kernel_distance(y_pred, y) == pytest.approx(expected)


def test_the_kernel_distance_of_two_samples_of_one_distribution_is_0_on_average():
    generator = np.random.default_rng(3)
    values = [kernel_distance(*generator.normal(size=(2, 60, 3))) for _ in range(200)]
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(200)
    assert min(values) < 0


def test_halves_are_of_other_people_and_a_person_scanned_twice_is_on_one_side():
    generator = np.random.default_rng(4)
    people = ["a", "a", "b"]
    y = [generator.normal(size=(30, 2)) + shift for shift in (0.0, 0.0, 5.0)]
    found = cross_half_distances(y, y, people)
    of_a, of_b = np.concatenate(y[:2]), y[2]
    assert found["frechet_distance"] == pytest.approx(
        np.mean([frechet_distance(of_a, of_b), frechet_distance(of_b, of_a)])
    )
    assert found["kernel_distance"] == pytest.approx(
        np.mean([kernel_distance(of_a, of_b), kernel_distance(of_b, of_a)])
    )


def test_of_many_people_the_same_halves_are_drawn_for_every_method():
    generator = np.random.default_rng(5)
    y = [generator.normal(size=(10, 2)) for _ in range(9)]
    people = [str(number) for number in range(9)]
    assert cross_half_distances(y, y, people) == cross_half_distances(y, y, people)
    assert cross_half_distances(y, y, people) != cross_half_distances(y, y, people, seed=1)


@pytest.mark.parametrize(("kind", "distance"), [("frechet", frechet_distance), ("kernel", kernel_distance)])
def test_the_metric_compares_the_patches_of_all_its_calls(kind, distance):
    generator = np.random.default_rng(6)
    real, synthetic = generator.random((2, 4, 34, 48, 33))
    mask = np.zeros((4, 34, 48, 33), bool)
    mask[:, 1:, :, 1:] = True
    metric = PatchDistance(kind)
    for part in (slice(0, 1), slice(1, 4)):
        volumes = [torch.from_numpy(each[part])[:, None] for each in (synthetic, real, mask)]
        metric(volumes[0], volumes[1], mask=volumes[2])
    tables = [np.concatenate(list(map(patch_features, each, mask))) for each in (synthetic, real)]
    assert metric.aggregate().item() == pytest.approx(distance(*tables))


def test_a_metric_that_saw_nothing_has_no_value():
    with pytest.raises(ValueError, match="patch distance: expected volumes before its value is asked for, got none"):
        PatchDistance().aggregate()


def test_too_few_patches_are_refused():
    features = np.random.default_rng(0).normal(size=(20, 20))
    with pytest.raises(ValueError, match="features: expected more than 20 patches in both sets, got 20"):
        frechet_distance(features, np.repeat(features, 3, axis=0))


def test_a_feature_that_is_constant_is_refused():
    with pytest.raises(ValueError, match="features: expected real patches that differ in each feature"):
        kernel_distance(np.eye(4)[:, :2], np.ones((4, 2)))


def test_fewer_than_two_people_are_refused():
    with pytest.raises(ValueError, match="people: expected at least two, got 1"):
        cross_half_distances([np.eye(3)] * 2, [np.eye(3)] * 2, ["a", "a"])


def test_lists_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match="y_pred, y, people: expected one length, got 1, 2, 2"):
        cross_half_distances([np.eye(3)], [np.eye(3)] * 2, ["a", "b"])


@pytest.mark.parametrize(
    ("volume", "mask", "message"),
    [
        (np.ones((20, 20, 20)), np.ones((20, 20, 19), bool), r"mask: expected the volume's shape \(20, 20, 20\), got"),
        (np.ones((20, 20, 20)), np.zeros((20, 20, 20), bool), "mask: expected at least one voxel, got none"),
        (np.ones((8, 8, 8)), np.ones((8, 8, 8), bool), "mask: expected room for a patch of 16 voxels, got none"),
        (np.full((20, 20, 20), np.nan), np.ones((20, 20, 20), bool), "volume: expected finite intensities inside"),
    ],
)
def test_volumes_that_have_no_patches_are_refused(volume, mask, message):
    with pytest.raises(ValueError, match=message):
        patch_features(volume, mask)
