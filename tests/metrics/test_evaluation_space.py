from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from trispade.errors import InputError
from trispade.intensity import evaluation_intensity
from trispade.labels import fill_brain, load_scheme
from trispade.metrics import (
    EvaluationSpace,
    MaskedIncoherence,
    MaskedMSSSIM,
    MaskedPSNR,
    MaskedSharpness,
    MaskedSpectrumRatio,
    MaskedSSIM,
    class_means,
    compare_in_evaluation_space,
    label_mean_image,
    structure_statistics,
)
from trispade.nifti import read_label_map, read_t1w
from trispade.phantoms import make_phantom, phantom_affine

MALC = Path(os.environ.get("TRISPADE_TEST_DATA", Path(__file__).parents[3] / "shared/data")) / "malc2012"
SHAPE = (40, 36, 32)
NAMES = ("background", "grey", "white", "absent")


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


@pytest.fixture
def label_map(mask) -> np.ndarray:
    return np.where(mask, 1 + (np.arange(SHAPE[0]) > 8)[:, None, None], 0).astype(np.uint8)


def compare_everything(y_pred, real, mask, label_map, affine) -> dict[tuple[str, str, str], float]:
    rows = compare_in_evaluation_space(y_pred, real, mask, label_map, NAMES, affine)
    values = {(row["region"], row["fit"], row["metric"]): row["value"] for row in rows}
    assert len(values) == len(rows) == 2 * (7 + 5 + 2 * 6)
    return values


def test_an_affine_and_a_label_map_add_rows_and_change_none(y_pred, real, mask, label_map):
    values = compare_everything(y_pred, real, mask, label_map, np.eye(4))
    before = compare(y_pred, real, mask)
    assert {key: values[key] for key in before} == before
    added = {metric for region, _, metric in values.keys() - before.keys() if region == "brain"}
    incoherence = {"incoherence_axial", "incoherence_coronal", "incoherence_sagittal"}
    assert added == incoherence | {"ms_ssim", "spectrum_ratio"}
    assert {region for region, _, _ in values} == {"brain", "full", "grey", "white"}


def test_the_added_values_are_those_of_the_metrics_on_the_whole_grid(y_pred, real, mask, label_map):
    affine = phantom_affine(SHAPE, (0.9, 1.0, 1.1), "PIR")
    y = torch.from_numpy(evaluation_intensity(real, mask))[None, None]
    clipped = np.where(mask, np.clip((y_pred + 1) / 2, 0, 1), 0)
    volume, inside = torch.from_numpy(clipped)[None, None].float(), torch.from_numpy(mask)[None, None]
    values = compare_everything(y_pred, real, mask, label_map, affine)
    sharpness = MaskedSharpness()(volume, y, mask=inside).item()
    spectrum = MaskedSpectrumRatio((0.9, 1.0, 1.1))(volume, y, mask=inside).item()
    incoherence = MaskedIncoherence(affine)(volume, y, mask=inside)[0].tolist()
    assert values["brain", "none", "sharpness"] == pytest.approx(sharpness)
    assert values["brain", "none", "spectrum_ratio"] == pytest.approx(spectrum)
    planes = ("axial", "coronal", "sagittal")
    assert [values["brain", "none", f"incoherence_{plane}"] for plane in planes] == pytest.approx(incoherence)
    synthetic, scan = (structure_statistics(each[0, 0].numpy(), label_map, 4) for each in (volume, y))
    assert values["white", "none", "mean_error"] == pytest.approx(synthetic.means[2] - scan.means[2])
    assert values["grey", "none", "sd_error"] == pytest.approx(synthetic.sds[1] - scan.sds[1])


def test_the_brain_of_a_phantom_at_1_6_mm_is_large_enough_for_five_scales():
    phantom = make_phantom(0, (104, 122, 104), 1.6)
    inside = phantom.t1w > 0
    inside[:, :, [1, -2]] = True  # reaches along all axes
    inside[[1, -2]] = True
    real = np.where(inside, phantom.t1w + 10.0, 0)
    y_pred = ndimage.gaussian_filter(real, 1.0)
    space = EvaluationSpace(real, inside, affine=phantom.affine)
    found = {(row["fit"], row["metric"]): row["value"] for row in space.compare(y_pred)}["gain_offset", "ms_ssim"]
    grids = [np.zeros(space.shape, np.float32) for _ in range(2)]
    for grid, cut in zip(grids, (space.bring(y_pred), space.real()), strict=True):
        grid[inside] = cut[space.mask]
    volume, y, where = (torch.from_numpy(each)[None, None] for each in (*grids, inside))
    assert found == pytest.approx(MaskedMSSSIM()(volume, y, mask=where).item())
    assert 0.5 < found < 0.999


def test_a_brain_too_small_for_five_scales_has_no_multiscale_value(y_pred, real, mask, label_map):
    values = compare_everything(y_pred, real, mask, label_map, np.eye(4))
    assert np.isnan([values["brain", fit, "ms_ssim"] for fit in ("gain_offset", "none")]).all()


def test_identical_volumes_have_infinite_psnr_and_1_everywhere_else(real, mask, label_map):
    scaled = 2 * evaluation_intensity(real, mask).astype(np.float64) - 1
    values = compare_everything(scaled, real, mask, label_map, np.eye(4))
    assert values["brain", "none", "psnr"] == values["full", "none", "psnr"] == np.inf
    ones = ("ssim", "sharpness", "spectrum_ratio", "incoherence_axial", "incoherence_coronal", "incoherence_sagittal")
    assert [values["brain", "none", name] for name in ones] == pytest.approx([1.0] * 6)
    assert values["white", "none", "mean_error"] == values["grey", "none", "sd_error"] == 0


def test_a_constant_prediction_has_no_detail_at_all(real, mask, label_map):
    values = compare_everything(np.zeros(SHAPE, np.float32), real, mask, label_map, np.eye(4))
    for name in ("sharpness", "spectrum_ratio", "incoherence_axial"):
        assert values["brain", "gain_offset", name] < (0.6 if name == "sharpness" else 1e-9)
    assert values["white", "gain_offset", "structure_sd"] == pytest.approx(0, abs=1e-7)


def test_one_space_serves_several_volumes(y_pred, real, mask, label_map):
    space = EvaluationSpace(real, mask, label_map, NAMES, np.eye(4))
    other = -y_pred
    for volume in (y_pred, other, y_pred):
        expected = compare_in_evaluation_space(volume, real, mask, label_map, NAMES, np.eye(4))
        np.testing.assert_equal(space.compare(volume), expected)


def test_nan_outside_the_mask_does_not_matter(y_pred, real, mask):
    outside = [np.where(mask, each, np.nan) for each in (y_pred, real)]
    assert compare(*outside, mask) == compare(y_pred, real, mask)


@pytest.mark.parametrize(("which", "subject"), [(0, "synthetic volume"), (1, "T1w")])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_volume_that_is_not_finite_is_refused(y_pred, real, mask, which, subject, value):
    volumes = [y_pred.copy(), real.copy()]
    volumes[which][5, 15, 12] = value
    message = f"{subject}: expected finite intensities inside the brain mask, got 1 voxels that are NaN or infinite"
    with pytest.raises(InputError, match=message):
        compare_in_evaluation_space(*volumes, mask)


def test_a_constant_scan_is_refused(y_pred, mask):
    with pytest.raises(InputError, match="T1w: expected contrast inside the brain mask, got one intensity"):
        compare_in_evaluation_space(y_pred, 300.0 * mask, mask)


def test_a_label_map_of_another_grid_is_refused(y_pred, real, mask, label_map):
    with pytest.raises(ValueError, match=r"label_map: expected the mask's shape \(40, 36, 32\), got \(40, 36, 31\)"):
        compare_in_evaluation_space(y_pred, real, mask, label_map[..., 1:], NAMES)


def test_a_label_map_without_names_is_refused(y_pred, real, mask, label_map):
    with pytest.raises(ValueError, match="label_map, class_names: expected both or neither, got one"):
        compare_in_evaluation_space(y_pred, real, mask, label_map)


def test_a_class_without_a_name_is_refused(y_pred, real, mask, label_map):
    with pytest.raises(ValueError, match=r"label_map: expected class indices below 2, got 1\.\.2"):
        compare_in_evaluation_space(y_pred, real, mask, label_map, NAMES[:2])


def test_an_affine_of_another_shape_is_refused(y_pred, real, mask):
    with pytest.raises(ValueError, match=r"affine: expected \(4, 4\) finite numbers, got shape \(3, 3\)"):
        compare_in_evaluation_space(y_pred, real, mask, affine=np.eye(3))


def test_a_space_refuses_volumes_of_another_grid_and_fits_that_are_none(y_pred, real, mask):
    space = EvaluationSpace(real, mask)
    with pytest.raises(ValueError, match=r"y_pred: expected the scan's shape \(40, 36, 32\), got \(40, 36, 31\)"):
        space.compare(y_pred[..., 1:])
    with pytest.raises(ValueError, match="fit: expected one of gain_offset, none, got 'gain'"):
        space.bring(y_pred, "gain")
    with pytest.raises(ValueError, match=r"real, mask: expected one shape, got \(40, 36, 31\), \(40, 36, 32\)"):
        EvaluationSpace(real[..., 1:], mask)


def read_malc(person: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    stem = MALC / f"sub-{person}/ses-1/anat/sub-{person}_ses-1"
    scheme = load_scheme("neuromorphometrics")
    label_ids, affine = read_label_map(f"{stem}_dseg.nii.gz")
    label_map = scheme.to_indices(label_ids, person)
    label_map = fill_brain(label_map, np.linalg.norm(affine[:3, :3], axis=0), scheme.vocabulary.index("csf"))
    return label_map, read_t1w(f"{stem}_desc-brain_T1w.nii.gz")[0], affine


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.skipif(not MALC.is_dir(), reason="MALC 2012 is not there")
def test_smoothing_the_label_mean_image_of_a_real_scan_gains_psnr_and_loses_sharpness():
    """Prints the values that docs/evaluation.md states (``pytest -s``)."""
    names = load_scheme("neuromorphometrics").vocabulary.names
    of_training = [(labels, 2 * evaluation_intensity(t1w, labels > 0) - 1) for labels, t1w, _ in [read_malc("0061")]]
    means = class_means(of_training, len(names))
    label_map, real, affine = read_malc("0101")
    space = EvaluationSpace(real, label_map > 0, affine=affine)
    values: dict[str, list[float]] = {"psnr": [], "ssim": [], "ms_ssim": [], "sharpness": [], "spectrum_ratio": []}
    for sigma in (0.0, 0.6, 1.0, 1.5, 2.0):
        rows = space.compare(label_mean_image(label_map, means, sigma))
        for row in rows:
            if row["metric"] in values and (row["region"], row["fit"]) == ("brain", "gain_offset"):
                values[row["metric"]].append(row["value"])
    for name, each in values.items():
        print(f"\n{name}: " + ", ".join(f"{value:.4g}" for value in each))
    assert values["psnr"][0] + 0.5 < max(values["psnr"][1:4])
    assert values["sharpness"] == sorted(values["sharpness"], reverse=True)
