from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from trispade.errors import InputError
from trispade.intensity import evaluation_intensity
from trispade.metrics import MaskedPSNR, MaskedSSIM, compare_in_evaluation_space

SHAPE = (40, 36, 32)


@pytest.fixture
def mask() -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    mask[3:15, 12:27, 9:20] = True
    return mask


@pytest.fixture
def real(mask) -> np.ndarray:
    texture = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=SHAPE), 1)
    return np.where(mask, 400 + 900 * texture, 0).astype(np.float32)


@pytest.fixture
def y_pred(real, mask) -> np.ndarray:
    noise = np.random.default_rng(1).normal(0, 0.15, SHAPE)
    return np.where(mask, 1.2 * evaluation_intensity(real, mask) - 0.7 + noise, -1).astype(np.float32)


def compare(*volumes) -> dict[tuple[str, str, str], float]:
    rows = compare_in_evaluation_space(*volumes)
    values = {(row["region"], row["fit"], row["metric"]): row["value"] for row in rows}
    assert len(values) == len(rows) == 14
    return values


def test_with_fit_gain_and_offset_of_the_prediction_do_not_matter(y_pred, real, mask):
    first, second = compare(y_pred, real, mask), compare(37.0 * y_pred + 250.0, real, mask)
    for (region, fit, metric), value in first.items():
        other = second[region, fit, metric]
        assert other == pytest.approx(value, rel=1e-3) if fit == "gain_offset" else other != pytest.approx(value)


def test_the_gain_of_the_scanner_does_not_matter(y_pred, real, mask):
    assert compare(y_pred, 8 * real, mask) == pytest.approx(compare(y_pred, real, mask), rel=1e-4)


def test_without_fit_minus_1_to_1_becomes_0_to_1_as_it_is(real, mask):
    scaled = 2 * evaluation_intensity(real, mask) - 1
    values = compare(scaled, real, mask)
    assert values["brain", "none", "mse"] < 1e-12
    assert values["brain", "none", "ssim"] == pytest.approx(1, abs=1e-6)
    assert values["brain", "none", "sharpness"] == pytest.approx(1, abs=1e-5)
    shifted = compare(np.clip(scaled - 0.2, -1, 1), real, mask)
    assert 0.08**2 < shifted["brain", "none", "mse"] <= 0.1**2 + 1e-6


def test_a_prediction_is_clipped_to_the_range_of_the_scan(y_pred, real, mask):
    wide = 3 * y_pred + 0.6
    without_fit = {key: value for key, value in compare(wide, real, mask).items() if key[1] == "none"}
    for beyond in (wide > 1, wide < -1):
        assert beyond[mask].mean() > 0.02
    after = compare(wide + 50 * (wide > 1) - 50 * (wide < -1), real, mask)
    assert {key: after[key] for key in without_fit} == pytest.approx(without_fit)


def test_what_lies_outside_the_mask_does_not_matter(y_pred, real, mask):
    expected = compare(y_pred, real, mask)
    assert compare(np.where(mask, y_pred, 3.0), np.where(mask, real, 99.0), mask) == expected


def test_the_full_grid_flatters(y_pred, real, mask):
    values = compare(y_pred, real, mask)
    share = mask.mean()
    assert values["full", "gain_offset", "mse"] == pytest.approx(share * values["brain", "gain_offset", "mse"])
    assert values["full", "gain_offset", "psnr"] > values["brain", "gain_offset", "psnr"] + 10
    assert values["brain", "gain_offset", "ssim"] < 0.92 < 0.98 < values["full", "gain_offset", "ssim"]


def test_values_are_those_of_the_metrics_on_the_whole_grid(y_pred, real, mask):
    y = torch.from_numpy(evaluation_intensity(real, mask))[None, None]
    volume = torch.from_numpy(np.where(mask, np.clip((y_pred + 1) / 2, 0, 1), 0))[None, None].float()
    inside = torch.from_numpy(mask)[None, None]
    values = compare(y_pred, real, mask)
    for name, metric in (("psnr", MaskedPSNR()), ("ssim", MaskedSSIM())):
        assert values["brain", "none", name] == pytest.approx(metric(volume, y, mask=inside).item(), abs=1e-9)
        assert values["full", "none", name] == pytest.approx(metric(volume, y).item(), abs=1e-9)


def test_the_way_arrays_lie_in_memory_does_not_matter(y_pred, real, mask):
    turned = [each[::-1, :, ::-1].copy()[::-1, :, ::-1] for each in (y_pred, real, mask)]
    assert compare(*turned) == pytest.approx(compare(y_pred, real, mask))


def test_a_constant_prediction_is_compared_as_the_mean_of_the_scan(real, mask):
    y = evaluation_intensity(real, mask)[mask].astype(np.float64)
    values = compare(np.zeros(SHAPE, np.float32), real, mask)
    assert values["brain", "gain_offset", "mse"] == pytest.approx(y.var(), rel=1e-3)


def test_volumes_of_different_shapes_are_refused(y_pred, real, mask):
    with pytest.raises(ValueError, match=r"y_pred, real, mask: expected one shape, got \(40, 36, 31\)"):
        compare_in_evaluation_space(y_pred[..., 1:], real, mask)


def test_an_empty_mask_is_refused(y_pred, real, mask):
    with pytest.raises(InputError, match="T1w: expected signal inside the brain mask, got none"):
        compare_in_evaluation_space(y_pred, real, np.zeros_like(mask))


def test_a_dark_scan_is_refused(y_pred, real, mask):
    with pytest.raises(InputError, match="T1w: expected signal inside the brain mask, got none"):
        compare_in_evaluation_space(y_pred, 0 * real, mask)
