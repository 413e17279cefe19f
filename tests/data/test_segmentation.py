from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.transforms import RandGaussianNoised

from trispade.data.segmentation import SegmentationPatchDataset, SegmentationVolumeDataset
from trispade.errors import InputError

PATCH = (8, 12, 10)


@pytest.fixture
def cases(make_case):
    return [make_case("a", shape=(32, 40, 36)), make_case("b", shape=(32, 40, 36), seed=1), make_case("c", seed=2)]


def test_an_epoch_is_as_long_as_asked_for_whatever_the_number_of_cases(cases):
    assert len(SegmentationPatchDataset([cases[:1]], PATCH, num_patches=7)) == 7
    assert len(SegmentationPatchDataset([cases], PATCH, num_patches=7)) == 7


def test_a_patch_is_cut_from_scan_and_label_map_alike_and_its_middle_is_brain(cases):
    dataset = SegmentationPatchDataset([cases[:1]], PATCH, num_patches=20)
    for index in range(20):
        item = dataset[index]
        assert item["image"].shape == item["label"].shape == (1, *PATCH)
        assert (item["image"].dtype, item["label"].dtype) == (torch.float32, torch.int64)
        assert item["label"][0, 4, 6, 5] > 0  # the brain is far enough from the border for every patch to be centred
        places = np.argwhere(cases[0].label_map() == int(item["label"][0, 4, 6, 5])) - np.array([4, 6, 5])
        whole = np.stack([(cases[0].t1w().numpy() + 1) / 2, cases[0].label_map()])
        cut = [whole[:, x : x + 8, y : y + 12, z : z + 10] for x, y, z in places]
        wanted = np.stack([item["image"][0].numpy(), item["label"][0].numpy()])
        assert sum(np.allclose(each, wanted, atol=1e-6) for each in cut) == 1


def test_patches_stay_within_the_volume(cases):
    item = SegmentationPatchDataset([cases[2:]], (32, 32, 32), num_patches=1)[0]
    assert torch.equal(item["label"][0], torch.from_numpy(cases[2].label_map().astype(np.int64)))


def test_groups_take_turns_so_that_each_gives_the_same_share(cases):
    dataset = SegmentationPatchDataset([cases[:1], cases[1:]], PATCH, num_patches=30)
    drawn = [dataset[index]["case_id"] for index in range(30)]
    assert set(drawn[::2]) == {"a"}
    assert set(drawn[1::2]) == {"b", "c"}


def test_an_item_depends_on_its_index_and_visit_alone(cases):
    def build():
        return SegmentationPatchDataset(
            [cases], PATCH, 6, flip=True, transform=RandGaussianNoised("image", prob=1.0), seed=3
        )

    first, second = build(), build()
    ahead = [first[index, 1]["image"] for index in range(6)]
    assert all(torch.equal(second[index, 1]["image"], ahead[index]) for index in reversed(range(6)))
    assert not torch.equal(first[2, 0]["image"], ahead[2])
    assert not torch.equal(first[3, 1]["image"], ahead[2])


def test_a_flip_mirrors_left_and_right_of_scan_and_label_map(cases):
    plain, flipping = (SegmentationPatchDataset([cases[:1]], PATCH, 20, flip=flip) for flip in (False, True))
    flipped = 0
    for index in range(20):
        one, other = plain[index], flipping[index]
        mirrored = torch.equal(other["label"], one["label"].flip(1)) and torch.equal(
            other["image"], one["image"].flip(1)
        )
        assert mirrored or torch.equal(other["label"], one["label"])
        flipped += mirrored
    assert 4 < flipped < 16


def test_augmentation_changes_the_image_and_not_the_label(cases):
    plain = SegmentationPatchDataset([cases], PATCH, 4)
    noisy = SegmentationPatchDataset(
        [cases], PATCH, 4, transform=RandGaussianNoised("image", 1.0, std=0.1, sample_std=False)
    )
    for index in range(4):
        assert torch.equal(noisy[index]["label"], plain[index]["label"])
        difference = noisy[index]["image"] - plain[index]["image"]
        assert 0.08 < difference.std() < 0.12
        assert type(noisy[index]["image"]) is torch.Tensor


def test_a_case_smaller_than_a_patch_is_refused(cases):
    with pytest.raises(InputError, match=r"c: expected a volume of at least \(32, 40, 32\) voxels, got \(32, 32, 32\)"):
        SegmentationPatchDataset([cases], (32, 40, 32), 4)


def test_a_group_without_cases_is_refused(cases):
    with pytest.raises(InputError, match=r"segmentation: expected cases in each group, got none. Choose other splits"):
        SegmentationPatchDataset([cases, []], PATCH, 4)


def test_whole_volumes_have_the_intensities_that_patches_have(cases):
    item = SegmentationVolumeDataset(cases)[1]
    assert item["image"].shape == item["label"].shape == (1, 32, 40, 36)
    assert torch.equal(item["image"][0], (cases[1].t1w() + 1) / 2)
    assert (item["image"][item["label"] == 0] == 0).all()
    assert item["case_id"] == "b"
