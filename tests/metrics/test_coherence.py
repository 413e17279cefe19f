from __future__ import annotations

import numpy as np
import pytest
import torch

from trispade.geometry import PLANES
from trispade.metrics import MaskedIncoherence, second_differences, world_axes
from trispade.phantoms import phantom_affine

SHAPE = (10, 12, 11)


@pytest.fixture
def real() -> torch.Tensor:
    return torch.rand(1, 1, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture
def mask() -> torch.Tensor:
    mask = torch.zeros(1, 1, *SHAPE, dtype=torch.bool)
    mask[..., 2:8, 3:9, 1:10] = True
    return mask


def test_a_quadratic_has_its_closed_form_and_a_ramp_none():
    x, y, z = torch.meshgrid(*(torch.arange(extent, dtype=torch.float64) for extent in SHAPE), indexing="ij")
    everywhere = torch.ones(SHAPE, dtype=torch.bool)
    found = second_differences(3.0 * x**2 - 0.5 * y**2 + 7.0 * z, everywhere)
    torch.testing.assert_close(found, torch.tensor([0.0, 1.0, 6.0], dtype=torch.float64))


def test_only_three_voxels_in_the_mask_count(real, mask):
    volume, inside = real[0, 0], mask[0, 0]
    found = second_differences(torch.where(inside, volume, 99.0), inside)
    cut = volume[2:8, 3:9, 1:10]
    expected = [torch.diff(cut, n=2, dim=axis).abs().mean() for axis in (2, 1, 0)]
    torch.testing.assert_close(found, torch.stack(expected))


def test_a_gap_in_the_mask_is_not_bridged():
    volume = torch.tensor([0.0, 1.0, 0.0, 50.0, 0.0, 2.0, 0.0])[:, None, None].expand(7, 3, 3)
    inside = torch.ones(7, 3, 3, dtype=torch.bool)
    inside[3] = False
    assert second_differences(volume, inside)[2].item() == pytest.approx(3.0)


@pytest.mark.parametrize("number", range(3))
def test_streaks_across_slices_raise_the_value_of_their_plane_alone(real, mask, number):
    axis = 2 - number
    jitter = torch.randn(SHAPE[axis], generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    streaks = jitter.reshape([-1 if each == axis else 1 for each in range(3)])
    values = MaskedIncoherence()(real + streaks, real, mask=mask)[0]
    assert values[number] > 2.0
    others = [each for each in range(3) if each != number]
    torch.testing.assert_close(values[others], torch.ones(2, dtype=torch.float64))


def test_blur_lowers_all_three(real, mask):
    blurred = torch.nn.functional.avg_pool3d(real, 3, stride=1, padding=1)
    assert (MaskedIncoherence()(blurred, real, mask=mask) < 0.6).all()


def test_identical_volumes_have_1_and_calls_are_averaged_for_each_plane(real, mask):
    metric = MaskedIncoherence()
    metric(real, real, mask=mask)
    metric(3 * real, real, mask=mask)
    torch.testing.assert_close(metric.aggregate(), torch.full((3,), 2.0))


@pytest.mark.parametrize("orientation", ["RAS", "LPI", "PIR", "SLA", "IRP"])
@pytest.mark.parametrize("degrees", [0.0, 12.0])
def test_planes_are_the_worlds_however_the_array_lies(orientation, degrees):
    axes = world_axes(phantom_affine(SHAPE, (0.8, 1.0, 1.3), orientation, degrees))
    pairs = [next(pair for pair in ("LR", "PA", "IS") if code in pair) for code in orientation]
    assert [pairs[axis] for axis in axes] == ["IS", "PA", "LR"]
    assert PLANES == ("axial", "coronal", "sagittal")


def test_a_reoriented_volume_has_the_same_values(real, mask):
    blurred = torch.nn.functional.avg_pool3d(real, (1, 1, 3), stride=1, padding=(0, 0, 1))
    expected = MaskedIncoherence()(blurred, real, mask=mask)
    turned = [each.permute(0, 1, 4, 2, 3).flip(3) for each in (blurred, real, mask)]
    found = MaskedIncoherence(phantom_affine(SHAPE, 1.0, "SLA"))(turned[0], turned[1], mask=turned[2])
    torch.testing.assert_close(found, expected)
    assert expected[0, 0] < 0.6 < expected[0, 1]


def test_a_constant_real_volume_is_refused(real, mask):
    with pytest.raises(ValueError, match="y: expected a real volume with contrast inside the mask, got a constant one"):
        MaskedIncoherence()(real, torch.ones_like(real), mask=mask)


def test_a_mask_of_two_slices_is_refused(real, mask):
    mask[..., 3:] = False
    with pytest.raises(ValueError, match="mask: expected three voxels in a row along axis 2, got none"):
        MaskedIncoherence()(real, real, mask=mask)


@pytest.mark.parametrize(
    ("affine", "message"),
    [
        (np.eye(3), r"affine: expected \(4, 4\) finite numbers, got shape \(3, 3\)"),
        (np.full((4, 4), np.nan), r"affine: expected \(4, 4\) finite numbers"),
        (np.diag([1.0, 0.0, 1.0, 1.0]), "affine: expected three axes of some length, got one of length zero"),
    ],
)
def test_an_affine_that_is_none_is_refused(affine, message):
    with pytest.raises(ValueError, match=message):
        world_axes(affine)
