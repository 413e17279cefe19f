from __future__ import annotations

import numpy as np
import pytest
import torch

from trispade.data import SliceDataset, slice_augmentation

STRONG = {"rotation_degrees": 20.0, "scaling": 0.2, "displacement_mm": 3.0, "knots_mm": 12.0, "spacing_mm": 1.0}


@pytest.fixture
def deformed(make_case):
    """A data set whose every visited slice is deformed, and the same one as it is."""
    case = make_case()
    return SliceDataset([case], "axial", augmentation=slice_augmentation(1.0, **STRONG)), SliceDataset([case], "axial")


def test_label_map_and_scan_are_deformed_alike():
    x, y = np.indices((48, 40))
    inside = ((x - 25) / 15) ** 2 + ((y - 18) / 10) ** 2 < 1
    images = {
        "label_map": torch.from_numpy(inside.astype(np.uint8))[None],
        "t1w": torch.from_numpy(np.where(inside, 1.0, -1.0).astype(np.float32))[None],
    }
    augmentation = slice_augmentation(1.0, **STRONG)
    moved = 0
    for seed in range(5):
        found = augmentation.set_random_state(seed=seed)(dict(images))
        assert ((found["label_map"] > 0.5) == (found["t1w"] > 0)).float().mean() > 0.995
        moved += int((found["label_map"] > 0.5).ne(images["label_map"] > 0.5).sum())
    assert moved > 200


def test_a_deformed_slice_keeps_its_types_its_classes_and_an_empty_background(deformed):
    augmented, plain = deformed
    item, original = augmented[2, 5], plain[2]
    assert item["label_map"].dtype == original["label_map"].dtype
    assert set(item["label_map"].unique().tolist()) <= set(original["label_map"].unique().tolist())
    assert (item["t1w"][item["label_map"] == 0] == -1).all()
    assert item["t1w"].dtype == torch.float32
    assert item["t1w"].abs().max() <= 1
    assert type(item["label_map"]) is torch.Tensor
    assert (item["case_id"], item["slice_index"]) == (original["case_id"], original["slice_index"])


def test_a_deformation_depends_on_seed_item_and_visit_alone(deformed, make_case):
    augmented, plain = deformed
    first, again = augmented[2, 5], (augmented[1, 0], augmented[2, 5])[1]
    assert torch.equal(first["label_map"], again["label_map"])
    assert torch.equal(first["t1w"], again["t1w"])
    assert not torch.equal(first["t1w"], augmented[2, 6]["t1w"])
    assert not torch.equal(first["t1w"], plain[2]["t1w"])


def test_an_item_asked_for_without_a_visit_is_never_deformed(deformed):
    augmented, plain = deformed
    assert torch.equal(augmented[2]["t1w"], plain[2]["t1w"])


def test_a_share_of_the_slices_is_deformed(make_case):
    case = make_case()
    half, plain = (
        SliceDataset([case], "axial", augmentation=slice_augmentation(0.5, **STRONG)),
        SliceDataset([case], "axial"),
    )
    kept = sum(torch.allclose(half[2, visit]["t1w"], plain[2]["t1w"], atol=1e-5) for visit in range(60))
    assert 15 <= kept <= 45


def test_a_probability_of_nought_is_no_augmentation():
    assert slice_augmentation(0.0, **STRONG) is None


def test_displacements_are_in_millimetres():
    fine = slice_augmentation(1.0, **{**STRONG, "spacing_mm": 0.5}).rand_2d_elastic.deform_grid
    coarse = slice_augmentation(1.0, **STRONG).rand_2d_elastic.deform_grid
    assert (fine.spacing, coarse.spacing) == (24, 12)
    assert fine.magnitude == (0.0, 6.0)
    assert coarse.magnitude == (0.0, 3.0)
