from __future__ import annotations

import itertools
import tracemalloc

import nibabel as nib
import numpy as np
import pytest
import torch
from torch.utils.data import default_collate

from trispade.errors import InputError
from trispade.geometry import (
    PLANES,
    Grid,
    WorkingGrid,
    check_label_slices,
    middle_slice,
    slice_axis,
    slice_volume,
    stack_slices,
    with_neighbours,
)

ORIENTATIONS = [
    np.array([[target, flip] for target, flip in zip(order, flips, strict=True)], float)
    for order in itertools.permutations(range(3))
    for flips in itertools.product((1, -1), repeat=3)
]


def rotation(degrees: float, axis: int) -> np.ndarray:
    angle = np.deg2rad(degrees)
    first, second = [other for other in range(3) if other != axis]
    matrix = np.eye(4)
    matrix[first, first] = matrix[second, second] = np.cos(angle)
    matrix[first, second], matrix[second, first] = -np.sin(angle), np.sin(angle)
    return matrix


def grid_of(shape: tuple[int, int, int], spacing_mm: tuple[float, float, float], oblique: bool = False) -> Grid:
    affine = np.diag([*spacing_mm, 1.0])
    affine[:3, 3] = (-11.3, 4.2, 7.9)
    return Grid(shape, rotation(17, 0) @ rotation(-12, 2) @ affine if oblique else affine)


def world_of(grid: Grid | WorkingGrid) -> np.ndarray:
    voxels = np.stack(np.meshgrid(*(np.arange(extent) for extent in grid.shape), indexing="ij"), axis=-1)
    return voxels @ grid.affine[:3, :3].T + grid.affine[:3, 3]


def whole(grid: Grid) -> np.ndarray:
    return np.ones(grid.shape, bool)


def reoriented(array: np.ndarray, affine: np.ndarray, orientation: np.ndarray) -> tuple[np.ndarray, Grid]:
    turned = np.ascontiguousarray(nib.apply_orientation(array, orientation))
    return turned, Grid(turned.shape, affine @ nib.orientations.inv_ornt_aff(orientation, array.shape))


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("orientation", ORIENTATIONS, ids=lambda each: "".join(nib.orientations.ornt2axcodes(each)))
def test_slices_of_any_orientation_run_by_increasing_world_coordinate_and_stack_back_exactly(
    orientation: np.ndarray, plane: str
) -> None:
    base = grid_of((5, 7, 6), (1.0, 1.0, 1.0))
    ids = np.arange(1, 211, dtype=np.int16).reshape(base.shape)
    source_ids, source = reoriented(ids, base.affine, orientation)

    grid = WorkingGrid.around(source, source_ids > 0, 1.0, multiple=8)
    volume = torch.from_numpy(grid.labels_to_working(source_ids)[None])
    slices = slice_volume(volume, plane)

    axis = slice_axis(plane)
    coordinates = world_of(grid)
    along = np.moveaxis(coordinates[..., axis], axis, 0)
    assert (np.diff(along, axis=0) > 0).all()
    for n, h, w in [(3, 4, 2), (5, 2, 6)]:
        voxel = np.insert([h, w], axis, n)
        in_base = np.rint(np.linalg.inv(base.affine) @ [*coordinates[tuple(voxel)], 1])[:3].astype(int)
        inside = (in_base >= 0).all() and (in_base < base.shape).all()
        assert slices[n, 0, h, w] == (ids[tuple(in_base)] if inside else 0)
    assert torch.equal(stack_slices(slices, plane), volume)
    np.testing.assert_array_equal(grid.image_to_source(volume[0].numpy()), source_ids)


@pytest.mark.parametrize("orientation", ORIENTATIONS, ids=lambda each: "".join(nib.orientations.ornt2axcodes(each)))
def test_orientation_on_disk_changes_nothing_on_the_working_grid(orientation: np.ndarray) -> None:
    base = grid_of((9, 12, 7), (0.9, 1.2, 1.6), oblique=True)
    labels = np.random.default_rng(0).integers(0, 4, base.shape).astype(np.uint8)
    expected_grid = WorkingGrid.around(base, labels > 0, 1.0, multiple=4)
    turned, source = reoriented(labels, base.affine, orientation)

    grid = WorkingGrid.around(source, turned > 0, 1.0, multiple=4)

    np.testing.assert_allclose(grid.affine, expected_grid.affine, atol=1e-9)
    np.testing.assert_array_equal(grid.labels_to_working(turned), expected_grid.labels_to_working(labels))
    image = turned.astype(np.float32)
    expected = reoriented(
        expected_grid.image_to_source(expected_grid.image_to_working(labels.astype(np.float32))),
        base.affine,
        orientation,
    )[0]
    np.testing.assert_allclose(grid.image_to_source(grid.image_to_working(image)), expected, atol=1e-5)


@pytest.mark.parametrize("oblique", [False, True])
def test_equal_spacing_is_a_bit_exact_copy_both_ways(oblique: bool) -> None:
    source = grid_of((13, 9, 11), (1.0004, 1.0, 0.9996), oblique)
    image = np.random.default_rng(1).normal(size=source.shape).astype(np.float32)
    grid = WorkingGrid.around(source, whole(source), 1.0)

    working = grid.image_to_working(image, fill=-3.0)

    assert np.sort(working[working != -3.0]).tobytes() == np.sort(image.ravel()).tobytes()
    assert grid.image_to_source(working, fill=5.0).tobytes() == image.tobytes()


@pytest.mark.parametrize("spacing_mm", [0.7, 1.0, 1.3, 2.0, 3.7])
@pytest.mark.parametrize("voxel_mm", [(1.0, 1.0, 1.0), (0.7, 0.7, 0.7), (0.9, 1.1, 1.6)])
def test_a_ramp_in_world_coordinates_is_exact_on_the_working_grid_and_back(
    spacing_mm: float, voxel_mm: tuple[float, float, float]
) -> None:
    source = grid_of((40, 36, 44), voxel_mm, oblique=True)
    direction = np.array([0.3, -0.8, 0.5])
    ramp = (world_of(source) @ direction).astype(np.float32)
    grid = WorkingGrid.around(source, whole(source), spacing_mm, multiple=2)

    working = grid.image_to_working(ramp, fill=0.0)

    positions = np.linalg.inv(source.affine) @ np.vstack([world_of(grid).reshape(-1, 3).T, np.ones(working.size)])
    margin = np.array([0.5 + spacing_mm / size for size in voxel_mm])[:, None]
    inside = ((positions[:3] >= margin) & (positions[:3] <= np.array(source.shape)[:, None] - 1 - margin)).all(axis=0)
    assert inside.sum() > 100
    expected = world_of(grid) @ direction
    np.testing.assert_allclose(working.ravel()[inside], expected.ravel()[inside], atol=2e-4)
    back = grid.image_to_source(expected.astype(np.float32))
    core = tuple(slice(6, -6) for _ in range(3))
    np.testing.assert_allclose(back[core], ramp[core], atol=2e-4)


def test_halving_the_resolution_averages_blocks_of_eight() -> None:
    source = grid_of((8, 10, 12), (1.0, 1.0, 1.0))
    image = np.random.default_rng(2).normal(size=source.shape).astype(np.float32)
    grid = WorkingGrid.around(source, whole(source), 2.0, multiple=1)

    blocks = image.reshape(4, 2, 5, 2, 6, 2).mean(axis=(1, 3, 5))

    np.testing.assert_allclose(grid.image_to_working(image), blocks, atol=1e-6)


def test_detail_finer_than_the_working_voxel_is_averaged_away_and_not_aliased() -> None:
    source = grid_of((12, 12, 12), (1.0, 1.0, 1.0))
    stripes = np.where(np.indices(source.shape)[0] % 2, 1.0, -1.0).astype(np.float32)
    grid = WorkingGrid.around(source, whole(source), 3.0, multiple=1)
    np.testing.assert_allclose(grid.image_to_working(stripes)[1:-1, 1:-1, 1:-1], 0, atol=1e-6)


@pytest.mark.parametrize("spacing_mm", [0.7, 1.7])
def test_no_value_leaves_the_range_of_the_image(spacing_mm: float) -> None:
    source = grid_of((20, 17, 15), (1.0, 1.0, 1.0))
    image = np.random.default_rng(3).choice([-1.0, 1.0], source.shape).astype(np.float32)
    grid = WorkingGrid.around(source, whole(source), spacing_mm, multiple=4)

    working = grid.image_to_working(image)

    assert np.abs(working).max() <= 1 + 1e-6
    assert np.abs(grid.image_to_source(working)).max() <= 1 + 1e-6


def thin_structures() -> dict[str, np.ndarray]:
    labels = {}
    x, y, z = np.meshgrid(*(np.arange(30),) * 3, indexing="ij")
    ball = ((x - 14.5) ** 2 + (y - 14.5) ** 2 + (z - 14.5) ** 2 < 13**2).astype(np.uint8)
    for axis, coordinate in enumerate((x, y, z)):
        labels[f"sheet across axis {axis}"] = np.where((coordinate == 13) & (ball > 0), 2, ball)
    labels["line along x"] = np.where((y == 12) & (z == 17) & (ball > 0), 2, ball)
    labels["line along z"] = np.where((x == 15) & (y == 14) & (ball > 0), 2, ball)
    labels["oblique sheet"] = np.where((x + 2 * y - z == 20) & (ball > 0), 2, ball)
    labels["oblique line"] = np.where((x == y) & (z == y // 2 + 7) & (ball > 0), 2, ball)
    labels["line in air"] = np.where((x == 2) & (y == 3), 3, ball)
    crossing = np.where((x == 13) & (ball > 0), 2, ball)
    labels["sheets side by side and a line"] = np.where(
        (x == 14) & (ball > 0), 3, np.where((y == 15) & (z == 15) & (ball > 0), 4, crossing)
    )
    labels["single voxels"] = np.where((x % 7 == 3) & (y % 5 == 2) & (z % 6 == 1) & (ball > 0), 5, ball)
    return {name: each.astype(np.uint8) for name, each in labels.items()}


def num_lost(labels: np.ndarray, grid: WorkingGrid, working: np.ndarray) -> int:
    """Labelled source voxels without a working voxel of their class within one working voxel along every axis."""
    voxels = np.argwhere(labels > 0)
    to_working = np.linalg.inv(grid.affine) @ grid.source.affine
    positions = voxels @ to_working[:3, :3].T + to_working[:3, 3]
    padded = np.pad(working, 2)
    found = np.zeros(len(voxels), bool)
    for step in itertools.product((-1, 0, 1), repeat=3):
        candidate = np.rint(positions).astype(int) + step
        near = (np.abs(candidate - positions) <= 1 + 1e-6).all(axis=1)
        found |= near & (padded[tuple((candidate + 2).T)] == labels[tuple(voxels.T)])
    return int((~found).sum())


@pytest.mark.parametrize("oblique", [False, True])
@pytest.mark.parametrize(("voxel_mm", "spacing_mm"), [(1.0, 0.7), (0.7, 1.0), (1.0, 2.0), (1.0, 1.3)])
@pytest.mark.parametrize("name", thin_structures())
def test_no_thin_structure_is_lost(name: str, voxel_mm: float, spacing_mm: float, oblique: bool) -> None:
    labels = thin_structures()[name]
    source = grid_of(labels.shape, (voxel_mm,) * 3, oblique)
    grid = WorkingGrid.around(source, labels > 0, spacing_mm, multiple=4)

    working = grid.labels_to_working(labels)

    assert working.dtype == labels.dtype
    assert set(np.unique(working)) == set(np.unique(labels)) | {0}
    assert num_lost(labels, grid, working) == 0


def test_sheets_keep_their_volume_on_average_when_the_grid_gets_finer() -> None:
    labels = np.ones((12, 43, 12), np.uint8)
    labels[:, 3::6] = 2
    grid = WorkingGrid.around(grid_of(labels.shape, (1.0,) * 3), labels > 0, 0.7, multiple=4)

    volumes_mm3 = np.bincount(grid.labels_to_working(labels).ravel())[1:] * 0.7**3

    np.testing.assert_allclose(volumes_mm3, np.bincount(labels.ravel())[1:], rtol=0.15)


def test_the_outline_of_the_head_does_not_depend_on_how_finely_it_is_divided() -> None:
    x, y, z = np.meshgrid(*(np.arange(32),) * 3, indexing="ij")
    ball = (x - 15.5) ** 2 + (y - 15.5) ** 2 + (z - 15.5) ** 2 < 14**2
    divided = np.where(ball, 1 + (x // 8) + 4 * (y // 8) + 16 * (z // 8), 0).astype(np.uint8)
    grid = WorkingGrid.around(grid_of(ball.shape, (1.0,) * 3), ball, 0.7, multiple=4)

    outline = grid.labels_to_working(ball.astype(np.uint8)) > 0

    assert ((grid.labels_to_working(divided) > 0) != outline).sum() <= 0.001 * outline.sum()


def test_memory_stays_below_two_float_volumes_and_the_result_with_138_classes() -> None:
    x, y, z = np.meshgrid(*(np.arange(80),) * 3, indexing="ij")
    labels = (1 + (x // 16) + 5 * (y // 16) + 25 * (z // 14)).astype(np.uint8)
    assert len(np.unique(labels)) >= 138
    grid = WorkingGrid.around(grid_of(labels.shape, (1.0,) * 3), labels > 0, 0.7)
    num_voxels = int(np.prod(grid.shape))

    tracemalloc.start()
    working = grid.labels_to_working(labels)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert peak < (2 * 4 + 1) * num_voxels
    assert set(np.unique(working)) >= set(np.unique(labels))


def test_the_smallest_box_holds_the_head_in_multiples_of_32() -> None:
    source = grid_of((90, 70, 50), (1.0, 1.0, 1.0))
    head = np.zeros(source.shape, bool)
    head[10:74, 3:68, 20:23] = True

    grid = WorkingGrid.around(source, head, 1.0)

    assert grid.shape == (64, 96, 32)
    assert grid.labels_to_working(head.astype(np.uint8)).sum() == head.sum()


def test_a_fixed_box_is_centred_on_the_head() -> None:
    source = grid_of((90, 70, 50), (1.0, 1.0, 1.0))
    head = np.zeros(source.shape, bool)
    head[10:30, 40:60, 20:40] = True

    grid = WorkingGrid.around(source, head, 1.0, box=(32, 64, 96))
    filled = np.argwhere(grid.labels_to_working(head.astype(np.uint8)))

    assert grid.shape == (32, 64, 96)
    np.testing.assert_array_equal(filled.min(axis=0) + filled.max(axis=0) + 1, grid.shape)


def test_a_head_larger_than_the_fixed_box_is_an_input_error() -> None:
    source = grid_of((70, 20, 20), (1.0, 1.0, 1.0))
    with pytest.raises(InputError, match=r"a.nii: expected a head that fits the box of 64 x 64 x 64 .* 70 x 20 x 20"):
        WorkingGrid.around(source, whole(source), 1.0, box=(64, 64, 64), name="a.nii")


def test_an_empty_head_is_an_input_error() -> None:
    source = grid_of((7, 8, 9), (1.0, 1.0, 1.0))
    with pytest.raises(InputError, match="label map: expected at least one labelled voxel"):
        WorkingGrid.around(source, np.zeros(source.shape, bool), 1.0)


def test_a_working_grid_survives_collation_exactly() -> None:
    source = grid_of((9, 12, 7), (0.9, 1.2, 1.6), oblique=True)
    grid = WorkingGrid.around(source, whole(source), 1.0)
    batch = default_collate([grid.to_dict()])

    back = WorkingGrid.from_dict({key: value[0] for key, value in batch.items()})

    assert (back.shape, back.spacing_mm, back.scale, back.shift) == (grid.shape, 1.0, grid.scale, grid.shift)
    assert back.source.shape == source.shape
    np.testing.assert_array_equal(back.source.affine, source.affine)
    np.testing.assert_array_equal(back.affine, grid.affine)


def test_an_array_of_another_shape_is_refused() -> None:
    source = grid_of((9, 12, 7), (1.0, 1.0, 1.0))
    grid = WorkingGrid.around(source, whole(source), 1.0)
    with pytest.raises(ValueError, match=r"expected the source grid's shape \(9, 12, 7\)"):
        grid.labels_to_working(np.zeros((9, 7, 12), np.uint8))


@pytest.mark.parametrize(
    ("plane", "shape"),
    [("axial", (4, 1, 2, 3)), ("coronal", (3, 1, 2, 4)), ("sagittal", (2, 1, 3, 4))],
)
def test_each_plane_keeps_the_other_two_axes_in_ras_order(plane: str, shape: tuple[int, ...]) -> None:
    assert slice_volume(torch.zeros(1, 2, 3, 4), plane).shape == shape


@pytest.mark.parametrize("function", [slice_volume, stack_slices])
def test_slicing_refuses_unknown_planes_and_missing_channels(function) -> None:
    with pytest.raises(ValueError, match="expected one of axial, coronal, sagittal, got 'frontal'"):
        function(torch.zeros(1, 2, 3, 4), "frontal")
    with pytest.raises(ValueError, match=r"got \(2, 3, 4\)"):
        function(torch.zeros(2, 3, 4), "axial")


@pytest.mark.parametrize("plane", PLANES)
def test_neighbours_are_the_slices_before_and_after_and_background_beyond_the_ends(plane: str) -> None:
    slices = slice_volume(torch.randint(1, 9, (2, 4, 5, 6))[:1], plane)
    seen = with_neighbours(slices, 3)
    nothing = torch.zeros_like(slices[:1])
    expected = torch.cat([torch.cat([nothing, slices[:-1]]), slices, torch.cat([slices[1:], nothing])], dim=1)
    assert torch.equal(seen, expected)
    assert torch.equal(middle_slice(seen), slices)
    assert with_neighbours(slices, 1) is slices
    assert torch.equal(with_neighbours(torch.stack([slices, 2 * slices]), 3), torch.stack([seen, 2 * seen]))


@pytest.mark.parametrize("label_slices", [0, -1, 2, 4, 3.0])
def test_a_slice_in_the_middle_takes_an_odd_number_of_slices(label_slices: float) -> None:
    with pytest.raises(InputError, match="label_slices: expected an odd number, 1 or more, got"):
        check_label_slices(label_slices)
