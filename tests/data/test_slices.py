from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from torch.utils.data import DataLoader

from trispade.data import SliceDataset, StreamBatchSampler, slice_augmentation
from trispade.data.sampler import is_flipped
from trispade.geometry import PLANES, slice_volume, with_neighbours

LABELLED = {"axial": 6, "coronal": 8, "sagittal": 7}


def visit_that_flips(item: int, flipped: bool) -> int:
    return next(visit for visit in range(50) if is_flipped(0, item, visit) is flipped)


@pytest.mark.parametrize("plane", PLANES)
def test_items_are_the_labelled_slices_as_the_geometry_cuts_them(make_case, plane):
    case = make_case(shape=(32, 40, 36))
    dataset = SliceDataset([case], plane)
    labels = slice_volume(torch.from_numpy(np.array(case.label_map()))[None], plane)
    images = slice_volume(case.t1w()[None], plane)
    assert len(dataset) == LABELLED[plane] == int((labels > 0).any(dim=(1, 2, 3)).sum())
    for item in (dataset[index] for index in range(len(dataset))):
        assert torch.equal(item["label_map"], labels[item["slice_index"]])
        assert torch.equal(item["t1w"], images[item["slice_index"]])
        assert item["t1w"].dtype == torch.float32
        assert item["case_id"] == "a"


@pytest.mark.parametrize("plane", ["axial", "coronal"])
def test_a_flip_mirrors_left_and_right_of_both_images(make_case, plane):
    case = make_case()
    plain, flipping = SliceDataset([case], plane)[2], SliceDataset([case], plane, flip=True)
    mirrored = flipping[2, visit_that_flips(2, True)]
    assert torch.equal(mirrored["label_map"], plain["label_map"].flip(1))  # (1, X, Y or Z)
    assert torch.equal(mirrored["t1w"], plain["t1w"].flip(1))
    assert not torch.equal(mirrored["label_map"], plain["label_map"])
    assert torch.equal(flipping[2, visit_that_flips(2, False)]["t1w"], plain["t1w"])


def test_sagittal_slices_have_no_left_and_right_to_flip(make_case):
    dataset = SliceDataset([make_case()], "sagittal", flip=True)
    assert torch.equal(dataset[2, visit_that_flips(2, True)]["label_map"], dataset[2]["label_map"])


@pytest.mark.parametrize("plane", PLANES)
def test_nothing_is_flipped_unless_asked_for(make_case, plane):
    dataset = SliceDataset([make_case()], plane)
    assert all(torch.equal(dataset[1, visit]["label_map"], dataset[1]["label_map"]) for visit in range(8))


def test_an_item_asked_for_without_a_visit_is_never_flipped(make_case):
    case = make_case()
    plain, flipping = SliceDataset([case], "axial"), SliceDataset([case], "axial", flip=True)
    assert all(torch.equal(plain[i]["t1w"], flipping[i]["t1w"]) for i in range(len(plain)))


def test_slices_make_batches(make_case):
    dataset = SliceDataset([make_case("a"), make_case("b", seed=1)], "axial", flip=True)
    batch = next(iter(DataLoader(dataset, batch_sampler=StreamBatchSampler(len(dataset), 5))))
    assert batch["label_map"].shape == batch["t1w"].shape == (5, 1, 32, 32)
    assert batch["label_map"].dtype == torch.uint8
    assert set(batch["case_id"]) == {"a", "b"}


@pytest.mark.parametrize("stage", ["train_spade", "train_fusion"])
@pytest.mark.parametrize(("scheme", "flips"), [("freesurfer", True), ("malc_all", False)])
def test_the_stages_flip_only_where_the_vocabulary_merges_the_sides(stage, scheme, flips):
    parser = ConfigParser()
    parser.read_config(str(Path(__file__).parents[2] / "bundle" / "configs" / f"{stage}.yaml"))
    parser["label_scheme"] = scheme
    assert parser.get_parsed_content("train#dataset#flip") is flips


@pytest.mark.parametrize("plane", PLANES)
def test_an_item_holds_the_neighbouring_label_slices_as_the_inferer_gives_them(make_case, plane):
    case = make_case(shape=(32, 40, 36))
    seen = with_neighbours(slice_volume(torch.from_numpy(np.array(case.label_map()))[None], plane), 5)
    alone, dataset = SliceDataset([case], plane), SliceDataset([case], plane, label_slices=5)
    for item, single in zip(dataset, alone, strict=True):
        assert torch.equal(item["label_map"], seen[item["slice_index"]])
        assert torch.equal(item["t1w"], single["t1w"])


def test_slices_at_the_ends_of_the_volume_have_background_for_neighbours(make_case):
    case = make_case()
    np.save(case.folder / "label_map.npy", np.ones((32, 32, 32), np.uint8))
    dataset = SliceDataset([case], "axial", label_slices=3)
    dataset.items = [(case, 0), (case, 31)]
    assert [dataset[i]["label_map"].amax(dim=(1, 2)).tolist() for i in range(2)] == [[0, 1, 1], [1, 1, 0]]


def test_neighbours_are_mirrored_and_deformed_with_the_slice_between_them(make_case):
    case = make_case()
    np.save(case.folder / "label_map.npy", np.repeat(case.label_map()[:, :, 14:15], 32, axis=2))
    augmentation = slice_augmentation(1.0, 20.0, 0.1, displacement_mm=3.0, knots_mm=12.0, spacing_mm=1.0)
    dataset = SliceDataset([case], "axial", flip=True, augmentation=augmentation, label_slices=3)
    for visit in range(6):
        before, middle, after = dataset[2, visit]["label_map"]
        assert not torch.equal(middle, dataset[2]["label_map"][1])
        assert torch.equal(before, middle)
        assert torch.equal(after, middle)
