from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from trispade.metrics import MaskedSpectrumRatio, RadialBands, spectrum_curve

SHAPE = (48, 40, 36)
SPACING_MM = (1.0, 1.25, 1.5)


@pytest.fixture
def mask() -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    mask[3:45, 4:37, 2:34] = True
    return mask


@pytest.fixture
def real() -> np.ndarray:
    return np.random.default_rng(0).normal(size=SHAPE)


def test_the_spectrum_of_white_noise_is_flat_and_parseval_holds(mask, real):
    bands = RadialBands(mask, SPACING_MM, num_bands=8)
    power = bands.power(real)
    # Each frequency of windowed noise of variance 1 has the expected power sum(window^2).
    expected = (bands.window**2).sum()
    np.testing.assert_allclose(power[2:], expected, rtol=0.15)
    assert np.average(power, weights=bands.counts) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize(("axis", "mm_a_wave"), [(0, 5.0), (1, 7.0), (2, 9.0), (2, 4.0)])
def test_a_wave_lies_in_the_band_of_its_length_in_mm_whichever_its_axis(mask, axis, mm_a_wave):
    position_mm = np.arange(SHAPE[axis]) * SPACING_MM[axis]
    wave = np.cos(2 * np.pi * position_mm / mm_a_wave).reshape([-1 if each == axis else 1 for each in range(3)])
    bands = RadialBands(mask, SPACING_MM, num_bands=8)
    assert bands.frequencies[0] == pytest.approx(1 / 3 / 16)  # up to 1 / 3 cycles a mm, half of 1 / 1.5 mm
    brightest = int(np.argmax(bands.power(np.broadcast_to(wave, SHAPE)) * bands.counts))
    assert abs(bands.frequencies[brightest] - 1 / mm_a_wave) <= 1 / 3 / 16


def test_a_gain_is_squared_in_every_band_and_an_offset_vanishes(mask, real):
    frequencies, curve = spectrum_curve(3.0 * real + 40.0, real, mask, SPACING_MM)
    assert frequencies.shape == (32,)
    np.testing.assert_allclose(curve, 9.0, rtol=1e-6)


def test_a_blur_follows_the_squared_transfer_function_of_the_gaussian(real):
    mask = np.ones(SHAPE, bool)
    sigma_mm = 0.8
    blurred = ndimage.gaussian_filter(real, [sigma_mm / size for size in SPACING_MM], mode="wrap", truncate=8)
    frequencies, curve = spectrum_curve(blurred, real, mask, SPACING_MM, num_bands=8)
    np.testing.assert_allclose(curve[1:6], np.exp(-((2 * np.pi * frequencies * sigma_mm) ** 2))[1:6], rtol=0.15)


def test_nothing_outside_the_mask_matters(mask, real):
    bands = RadialBands(mask, SPACING_MM)
    assert (bands.power(np.where(mask, real, 1e6)) == bands.power(real)).all()


def test_the_outline_of_the_mask_adds_no_power():
    distance = np.linalg.norm((np.indices((48, 48, 48)).T - 23.5).T, axis=0)
    mask = distance < 20
    smooth = 1.0 + 0.2 * np.cos(2 * np.pi * np.arange(48) / 24)[:, None, None] * np.ones((48, 48, 48))
    bands = RadialBands(mask, (1.0, 1.0, 1.0), num_bands=8)
    assert bands.upper_power(smooth) < 1e-6 * bands.power(smooth).max()
    masked_only = np.abs(np.fft.fftn(np.where(mask, smooth, 0))) ** 2
    assert masked_only[12:36, 12:36, 12:36].mean() > 1e3 * bands.upper_power(smooth)


def test_the_metric_is_the_ratio_of_mean_powers_over_the_upper_half(mask, real):
    blurred = ndimage.gaussian_filter(real, 0.7)
    volumes = [torch.from_numpy(each)[None, None] for each in (blurred, real, mask)]
    found = MaskedSpectrumRatio(SPACING_MM)(volumes[0], volumes[1], mask=volumes[2]).item()
    bands = RadialBands(mask, SPACING_MM)
    sums = [(bands.power(each) * bands.counts)[16:].sum() for each in (blurred, real)]
    assert found == pytest.approx(sums[0] / sums[1])
    assert 0.01 < found < 0.5


def test_blur_lowers_the_ratio_and_noise_raises_it(mask):
    smooth = ndimage.gaussian_filter(np.random.default_rng(1).normal(size=SHAPE), 1.0)
    inside, y = (torch.from_numpy(each)[None, None] for each in (mask, smooth))
    noise = smooth.std() * np.random.default_rng(2).normal(size=SHAPE)
    changed = (ndimage.gaussian_filter(smooth, 2.0), ndimage.gaussian_filter(smooth, 1.0), smooth, smooth + noise)
    metric = MaskedSpectrumRatio(SPACING_MM)
    values = [metric(torch.from_numpy(each)[None, None], y, mask=inside).item() for each in changed]
    assert values == sorted(values)
    assert values[1] < 0.5 < values[2] == 1.0 < 1.5 < values[3]


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0), (1.0, 0.0, 1.0), (1.0, float("nan"), 1.0)])
def test_voxel_sizes_that_are_none_are_refused(mask, spacing_mm):
    with pytest.raises(ValueError, match="spacing_mm: expected three positive voxel sizes"):
        RadialBands(mask, spacing_mm)


def test_an_odd_number_of_bands_is_refused(mask):
    with pytest.raises(ValueError, match="num_bands: expected an even number, got 7"):
        RadialBands(mask, SPACING_MM, num_bands=7)


def test_a_volume_of_few_voxels_has_frequencies_in_every_band():
    small = np.random.default_rng(0).normal(size=(20, 14, 18))
    frequencies, curve = spectrum_curve(2.0 * small, small, np.ones(small.shape, bool), (4.0, 4.0, 4.0))
    np.testing.assert_allclose(curve, 4.0)
    assert frequencies[-1] < 1 / 8


def test_a_mask_too_thin_for_the_window_is_refused():
    thin = np.zeros(SHAPE, bool)
    thin[:, :, 7] = True
    with pytest.raises(ValueError, match="mask: expected a region some 8 mm thick, got a thinner one"):
        RadialBands(thin, SPACING_MM)


def test_an_empty_mask_is_refused():
    with pytest.raises(ValueError, match="mask: expected at least one voxel a volume, got none"):
        RadialBands(np.zeros(SHAPE, bool), SPACING_MM)


def test_a_constant_real_volume_is_refused(mask, real):
    y_pred, inside = (torch.from_numpy(each)[None, None] for each in (real, mask))
    with pytest.raises(ValueError, match="y: expected a real volume with contrast inside the mask, got a constant one"):
        MaskedSpectrumRatio(SPACING_MM)(y_pred, torch.zeros_like(y_pred), mask=inside)
