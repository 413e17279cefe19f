from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from trispade.errors import InputError
from trispade.phantoms import make_phantom
from trispade.phantoms.phantom import phantom_affine
from trispade.registration import register_affinely, register_rigidly, resample_to

RAS = np.diag([4.0, 4.0, 4.0, 1.0])


def motion(degrees: float, axis: tuple[float, float, float], shift_mm: tuple[float, float, float]) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_rotvec(np.deg2rad(degrees) * np.array(axis) / np.linalg.norm(axis)).as_matrix()
    matrix[:3, 3] = shift_mm
    return matrix


def largest_error_mm(found: np.ndarray, wanted: np.ndarray) -> float:
    """How far apart two motions bring the points of a brain, 60 to 80 mm around the origin."""
    corners = np.array([[x, y, z, 1] for x in (-60, 60) for y in (-80, 80) for z in (-60, 60)]).T
    return float(np.linalg.norm(((found - wanted) @ corners)[:3], axis=0).max())


@pytest.mark.parametrize(
    ("moving_grid", "fixed_grid", "moved"),
    [
        (((48, 56, 48), 4.0, "RAS", 0), ((48, 56, 48), 4.0, "RAS", 0), motion(8, (1, 2, 3), (5, -4, 6))),
        (((64, 50, 44), (3, 4, 5), "LPI", 0), ((44, 70, 48), (5, 3, 4), "SAR", 0), motion(10, (3, -2, 1), (-7, 9, 3))),
        (((60, 60, 54), 3.5, "AIL", 15), ((48, 56, 48), 4.0, "RAS", -10), motion(-5, (0, 0, 1), (60, -90, 40))),
    ],
    ids=["one grid", "anisotropic, other orientations", "oblique, far away"],
)
def test_a_known_motion_is_found_to_less_than_a_quarter_voxel(moving_grid, fixed_grid, moved):
    moving_affine, fixed_affine = phantom_affine(*moving_grid), phantom_affine(*fixed_grid)
    # Each grid has a noise and a texture of its own, as two scans of one person have.
    moving = make_phantom(3, moving_grid[0], affine=moving_affine).t1w
    fixed = make_phantom(3, fixed_grid[0], affine=fixed_affine).t1w
    found = register_rigidly(moving, moved @ moving_affine, fixed, fixed_affine)
    assert largest_error_mm(found, np.linalg.inv(moved)) < 1.0
    np.testing.assert_allclose(found[:3, :3] @ found[:3, :3].T, np.eye(3), atol=1e-9)
    assert np.linalg.det(found) == pytest.approx(1)


def test_scaling_and_shear_are_found_from_a_rigid_start():
    phantom = make_phantom(3, (36, 42, 36), 5.0)
    changed = motion(6, (1, 2, 3), (5, -4, 6)) @ np.diag([1.06, 0.95, 1.03, 1.0])
    changed[0, 1] += 0.04
    scans = phantom.t1w, changed @ phantom.affine, phantom.t1w, phantom.affine
    rigid = register_rigidly(*scans, (10.0, 5.0))
    found = register_affinely(*scans, rigid, (10.0, 5.0))
    assert largest_error_mm(rigid, np.linalg.inv(changed)) > 3.0
    assert largest_error_mm(found, np.linalg.inv(changed)) < 1.0


def test_a_scan_is_not_moved_onto_itself_whatever_its_gain_and_offset_in_the_brain():
    scan = make_phantom(1, (32, 36, 32), 6.0)
    for copy in (scan.t1w, 3 * scan.t1w, np.where(scan.t1w > 0, scan.t1w + 1e-3, 0)):
        found = register_rigidly(copy, scan.affine, scan.t1w, scan.affine, (12.0, 6.0))
        assert largest_error_mm(found, np.eye(4)) < 0.2


def test_the_result_is_the_same_each_time_and_in_a_larger_field_of_view():
    moving, fixed = make_phantom(1, (32, 36, 32), 6.0), make_phantom(1, (36, 40, 36), 5.5)
    once = register_rigidly(moving.t1w, moving.affine, fixed.t1w, fixed.affine, (12.0,))
    again = register_rigidly(moving.t1w, moving.affine, fixed.t1w, fixed.affine, (12.0,))
    larger_affine = moving.affine.copy()
    larger_affine[:3, 3] -= moving.affine[:3, :3] @ (5, 5, 5)
    padded = register_rigidly(np.pad(moving.t1w, 5), larger_affine, fixed.t1w, fixed.affine, (12.0,))
    assert once.tobytes() == again.tobytes()
    np.testing.assert_allclose(padded, once, atol=1e-9)


def test_the_number_of_threads_that_others_use_is_left_as_it_was():
    import itk

    before = itk.MultiThreaderBase.GetGlobalDefaultNumberOfThreads()
    scan = make_phantom(1, (20, 24, 20), 8.0)
    register_rigidly(scan.t1w, scan.affine, scan.t1w, scan.affine, (8.0,))
    assert itk.MultiThreaderBase.GetGlobalDefaultNumberOfThreads() == before


@pytest.mark.parametrize("broken", ["moving", "fixed"])
@pytest.mark.parametrize(
    ("volume", "found"),
    [
        (np.zeros((0, 4, 4)), r"expected a volume \(X, Y, Z\) with voxels, got shape \(0, 4, 4\)"),
        (np.zeros((4, 4)), r"expected a volume \(X, Y, Z\) with voxels, got shape \(4, 4\)"),
        (np.full((4, 4, 4), 7.0), "expected intensities to register by, got the same value, 7, everywhere"),
        (np.where(np.eye(4)[None] * np.ones((4, 1, 1)) > 0, np.nan, 1.0), "expected finite intensities to register by"),
    ],
)
def test_a_volume_that_cannot_be_registered_is_named(broken, volume, found):
    good = np.random.default_rng(0).random((4, 4, 4))
    volumes = (volume, good) if broken == "moving" else (good, volume)
    with pytest.raises(InputError, match=f"^scan of {broken}: {found}"):
        register_rigidly(volumes[0], RAS, volumes[1], RAS, names=("scan of moving", "scan of fixed"))


def test_resampling_without_motion_onto_the_same_grid_gives_every_voxel_back():
    volume = np.random.default_rng(0).random((9, 8, 7)).astype(np.float32)
    for order in (0, 1, 3):
        found = resample_to(volume, RAS, volume.shape, RAS, np.eye(4), order)
        np.testing.assert_allclose(found, volume, atol=1e-5)
        assert found.dtype == np.float32


def test_resampling_follows_the_motion_and_both_affines_voxel_by_voxel():
    volume = np.random.default_rng(0).random((6, 7, 8)).astype(np.float32)
    moving_affine = np.array([[-4.0, 0, 0, 10], [0, 0, 4, -6], [0, 4, 0, 2], [0, 0, 0, 1]])
    moved = motion(90, (0, 0, 1), (8, -12, 4))
    # The same voxels, listed along other axes: the fixed grid is the moved one with its first two axes exchanged.
    exchanged = np.array([[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    found = resample_to(volume, moving_affine, (7, 6, 8), moved @ moving_affine @ exchanged, moved)
    np.testing.assert_allclose(found, volume.transpose(1, 0, 2), atol=1e-5)


def test_cubic_resampling_reproduces_a_smooth_volume_between_voxels_and_stays_in_its_range():
    x, y, z = np.indices((24, 24, 24)) * 2.0
    smooth = np.cos(x / 9) * np.cos(y / 8) * np.sin(z / 7)
    affine, shifted = np.diag([2.0, 2.0, 2.0, 1.0]), np.diag([2.0, 2.0, 2.0, 1.0])
    shifted[:3, 3] = 9.0
    found = resample_to(smooth, affine, (10, 10, 10), shifted, np.eye(4))
    x, y, z = np.indices((10, 10, 10)) * 2.0 + 9.0
    np.testing.assert_allclose(found, np.cos(x / 9) * np.cos(y / 8) * np.sin(z / 7), atol=1e-3)
    edges = (ndimage.gaussian_filter(smooth, 1) > 0.3).astype(np.float32)
    turned = resample_to(edges, affine, edges.shape, affine, motion(20, (1, 1, 1), (3, 3, 3)))
    assert (turned.min(), turned.max()) == (0.0, 1.0)


def test_beyond_the_moving_grid_lies_its_darkest_value():
    volume = np.random.default_rng(0).random((5, 5, 5)).astype(np.float32) - 3
    far = motion(0, (1, 0, 0), (1000, 0, 0))
    assert np.unique(resample_to(volume, RAS, (3, 3, 3), RAS, far)).tolist() == [volume.min()]
