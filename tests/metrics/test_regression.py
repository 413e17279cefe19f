from __future__ import annotations

import math

import pytest
import torch
from monai.metrics import MSEMetric, PSNRMetric

from trispade.metrics import MaskedMSE, MaskedPSNR, MaskedSharpness, MaskedSSIM, sharpness, ssim_map

SHAPE = (2, 1, 12, 14, 13)


@pytest.fixture
def volumes() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(SHAPE, generator=generator), torch.rand(SHAPE, generator=generator)


@pytest.fixture
def mask() -> torch.Tensor:
    mask = torch.zeros(SHAPE, dtype=torch.bool)
    mask[0, :, 2:9, 3:11, 4:8] = True
    mask[1, :, 1:3, 5:9, :] = True
    return mask


@pytest.mark.parametrize(("masked", "plain"), [(MaskedMSE(), MSEMetric()), (MaskedPSNR(), PSNRMetric(max_val=1.0))])
def test_without_a_mask_they_are_monais_metrics(volumes, masked, plain):
    torch.testing.assert_close(masked(*volumes).float(), plain(*volumes), atol=1e-5, rtol=1e-5)


def test_only_voxels_of_the_mask_count(volumes, mask):
    y_pred, y = volumes
    expected = torch.stack([((y_pred - y) ** 2)[i][mask[i]].double().mean() for i in range(2)])[:, None]
    elsewhere = torch.where(mask, y_pred, 5.0)
    for given in (y_pred, elsewhere):
        torch.testing.assert_close(MaskedMSE()(given, y, mask=mask), expected, atol=1e-7, rtol=1e-6)
    torch.testing.assert_close(
        MaskedPSNR()(elsewhere, y, mask=mask), 10 * torch.log10(1 / expected), atol=1e-6, rtol=1e-6
    )


def test_psnr_of_a_known_error_has_its_closed_form():
    y = torch.zeros(1, 1, 4, 4, 4)
    assert MaskedPSNR()(y + 0.1, y).item() == pytest.approx(20.0, abs=1e-5)
    assert MaskedPSNR(data_range=10.0)(y + 0.1, y).item() == pytest.approx(40.0, abs=1e-5)


def test_identical_volumes_have_no_error_infinite_psnr_and_full_similarity(volumes):
    y = volumes[0]
    assert MaskedMSE()(y, y).max() == 0
    assert torch.isposinf(MaskedPSNR()(y, y)).all()
    torch.testing.assert_close(MaskedSSIM()(y, y), torch.ones(2, 1, dtype=torch.float64))


def test_masked_similarity_is_the_mean_of_the_map_over_the_mask(volumes, mask):
    of_map = ssim_map(*volumes)
    expected = torch.stack([of_map[i][mask[i]].mean() for i in range(2)])[:, None]
    torch.testing.assert_close(MaskedSSIM()(*volumes, mask=mask), expected)
    assert not torch.allclose(MaskedSSIM()(*volumes), expected, atol=1e-4)


def test_several_calls_are_averaged_over_all_volumes(volumes, mask):
    metric = MaskedMSE()
    one_by_one = [metric(volumes[0][i : i + 1], volumes[1][i : i + 1], mask=mask[i : i + 1]) for i in range(2)]
    assert metric.aggregate().item() == pytest.approx(torch.cat(one_by_one).mean().item())


def test_a_blurred_volume_is_less_sharp_whatever_lies_outside_the_mask():
    y = torch.rand(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros_like(y, dtype=torch.bool)
    mask[..., 4:12, 4:12, 4:12] = True
    blurred = torch.nn.functional.avg_pool3d(y, 3, stride=1, padding=1)
    noisy_outside = torch.where(torch.nn.functional.max_pool3d(mask.float(), 3, 1, 1) > 0, y, -9.0)
    assert sharpness(y, y, mask) == 1
    assert sharpness(blurred, y, mask) < 0.6
    assert sharpness(2 * y, y, mask) == pytest.approx(2.0)
    assert sharpness(noisy_outside, y, mask) == 1


def test_sharpness_against_a_constant_volume_is_not_a_number():
    y = torch.rand(1, 1, 4, 4, 4)
    assert math.isnan(sharpness(y, torch.ones_like(y), torch.ones_like(y, dtype=torch.bool)))


def test_a_mask_of_another_shape_is_refused(volumes, mask):
    with pytest.raises(ValueError, match=r"mask: expected the volumes' shape \(2, 1, 12, 14, 13\), got \(1, 1, "):
        MaskedMSE()(*volumes, mask=mask[:1])


def test_an_empty_mask_of_one_volume_is_refused(volumes, mask):
    mask[1] = False
    with pytest.raises(ValueError, match="mask: expected at least one voxel a volume, got none"):
        MaskedSSIM()(*volumes, mask=mask)


def test_volumes_of_different_shapes_are_refused(volumes):
    with pytest.raises(ValueError, match="shapes dont match"):
        MaskedPSNR()(volumes[0][..., :-1], volumes[1])


def test_a_missing_real_volume_is_refused(volumes):
    with pytest.raises(ValueError, match="y: expected the real volume, got None"):
        MaskedMSE()(volumes[0])


def test_the_mask_may_be_the_second_channel_of_y_also_as_class_indices(volumes, mask):
    y_pred, y = volumes
    expected = MaskedMSE()(y_pred, y, mask=mask)
    for factor in (1, 7):
        torch.testing.assert_close(MaskedMSE()(y_pred, torch.cat([y, factor * mask.float()], dim=1)), expected)


def test_two_masks_are_refused(volumes, mask):
    with pytest.raises(ValueError, match="mask: expected one, got another as the second channel of y"):
        MaskedMSE()(volumes[0], torch.cat([volumes[1], mask], dim=1), mask=mask)


@pytest.mark.parametrize("shape", [(2, 3, 8, 8, 8), (2, 1, 8, 8)])
def test_a_real_volume_of_other_axes_is_refused(shape):
    with pytest.raises(ValueError, match=r"y: expected shape \(B, 1, X, Y, Z\), or \(B, 2, X, Y, Z\) with the mask"):
        MaskedMSE()(torch.zeros(shape), torch.zeros(shape))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(("which", "name"), [(0, "y_pred"), (1, "y")])
def test_a_volume_that_is_not_finite_is_refused_as_monai_would_leave_it_out(volumes, which, name, value):
    volumes[which][1, 0, 3, 3, 3] = value
    with pytest.raises(ValueError, match=f"{name}: expected finite intensities, got NaN or infinite ones"):
        MaskedPSNR()(*volumes)


def test_the_sharpness_of_a_ramp_is_its_gain(volumes, mask):
    ramp = torch.arange(12.0)[:, None, None].expand(SHAPE[2:])[None, None]
    metric = MaskedSharpness()
    assert metric(0.25 * ramp, ramp, mask=mask[:1]).item() == pytest.approx(0.25)
    y_pred, y = (each[:1] for each in volumes)
    assert metric(y_pred, y, mask=mask[:1]).item() == pytest.approx(sharpness(y_pred, y, mask[:1]))


def test_sharpness_as_a_metric_refuses_a_constant_real_volume(volumes):
    with pytest.raises(ValueError, match="y: expected a real volume with contrast inside the mask, got a constant one"):
        MaskedSharpness()(volumes[0], torch.ones(SHAPE))
