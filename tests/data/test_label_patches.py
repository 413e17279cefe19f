from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from trispade.data import LabelPatchDataset
from trispade.data.sampler import is_flipped
from trispade.errors import InputError
from trispade.geometry import PLANES


def place_of(case, patch: torch.Tensor) -> list[tuple[int, int, int]]:
    """Where in a scan a patch of its intensities lies; noise makes every place unlike all others."""
    size = patch.shape[-1]
    windows = np.lib.stride_tricks.sliding_window_view(case.t1w().numpy(), (size, size, size))
    return [tuple(map(int, corner)) for corner in np.argwhere((windows == patch[0].numpy()).all(axis=(3, 4, 5)))]


def test_a_patch_is_cut_from_label_map_and_scan_alike(make_case):
    case = make_case(shape=(32, 40, 36))
    dataset = LabelPatchDataset([case], patch_size=12, patches_per_scan=3)
    for item in (dataset[i] for i in range(3)):
        ((x, y, z),) = place_of(case, item["t1w"])
        patch = (slice(x, x + 12), slice(y, y + 12), slice(z, z + 12))
        assert np.array_equal(item["label_map"][0].numpy(), case.label_map()[patch])
        assert item["label_map"].shape == item["t1w"].shape == (1, 12, 12, 12)
        assert not item["label_map"].is_floating_point()
        assert item["case_id"] == "a"


def test_each_scan_counts_for_the_same_number_of_patches(make_case):
    dataset = LabelPatchDataset([make_case("a"), make_case("b")], patch_size=16, patches_per_scan=3)
    assert [dataset[i]["case_id"] for i in range(len(dataset))] == ["a", "a", "a", "b", "b", "b"]


def test_in_the_middle_of_a_patch_is_a_labelled_voxel_and_all_are_as_likely(make_case):
    case = make_case()
    dataset = LabelPatchDataset([case], patch_size=4, patches_per_scan=1)
    visited = np.zeros((32, 32, 32), int)
    for visit in range(800):
        patch = dataset._place(case, 0, visit)
        visited[tuple(each.start + 2 for each in patch)] += 1
    brain = np.asarray(case.label_map()) > 0
    assert (visited[~brain] == 0).all()
    assert (visited[brain] > 0).sum() > 270  # of 336: 305 expected
    assert visited.max() < 13


def test_a_patch_at_the_border_is_moved_inwards(make_case):
    case = make_case()
    corners = {
        tuple(each.start for each in LabelPatchDataset([case], 30, 1)._place(case, 0, visit)) for visit in range(50)
    }
    assert len(corners) > 1
    assert all(0 <= start <= 2 for corner in corners for start in corner)
    whole = LabelPatchDataset([case], patch_size=32, patches_per_scan=1)[0]
    assert torch.equal(whole["t1w"][0], case.t1w())


def test_a_place_depends_on_seed_item_and_visit_alone(make_case):
    case = make_case()

    def places(seed: int) -> list[tuple[slice, ...]]:
        dataset = LabelPatchDataset([case], patch_size=8, patches_per_scan=4, seed=seed)
        return [dataset._place(case, item, visit) for visit in (0, 1, 5) for item in range(4)]

    assert places(0) == places(0) != places(1)
    assert len({str(place) for place in places(0)}) > 6


def test_a_flip_mirrors_the_first_spatial_axis_of_label_map_and_scan(make_case):
    case = make_case()
    plain, flipping = LabelPatchDataset([case], 16, 4), LabelPatchDataset([case], 16, 4, flip=True)
    flipped = [is_flipped(0, 3, visit) for visit in range(20)]
    assert 0 < sum(flipped) < 20
    for visit, mirrored in enumerate(flipped):
        for key in ("label_map", "t1w"):
            expected = plain[3, visit][key].flip(1) if mirrored else plain[3, visit][key]
            assert torch.equal(flipping[3, visit][key], expected)
    assert torch.equal(flipping[3]["t1w"], plain[3, 0]["t1w"])


def test_all_cases_that_are_too_small_or_empty_are_listed(make_case):
    empty = make_case("b")
    empty = dataclasses.replace(empty, record={"labelled_slices": {plane: [] for plane in PLANES}})
    small = make_case("c", shape=(32, 24, 32))
    with pytest.raises(InputError, match="2 of 3 cases give no patches:") as caught:
        LabelPatchDataset([make_case("a"), empty, small], patch_size=32, patches_per_scan=1)
    assert "b: expected labelled voxels, got none. Leave it out." in str(caught.value)
    assert "c: expected at least 32 voxels an axis, got 32x24x32. Set a smaller patch size" in str(caught.value)
