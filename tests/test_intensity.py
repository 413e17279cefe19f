from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from trispade.errors import InputError
from trispade.geometry import Grid
from trispade.intensity import IntensityScaling, correct_bias, evaluation_intensity, fit_gain_offset, fit_scaling
from trispade.labels import fill_brain, load_scheme
from trispade.nifti import read_label_map, read_t1w

MALC = Path(os.environ.get("TRISPADE_TEST_DATA", Path(__file__).parents[2] / "shared/data")) / "malc2012"
WM, GM, CSF = 1, 2, 7
TISSUES = ("cerebral_white_matter", "cerebral_cortex", "thalamus", "putamen", "brainstem", "cerebellar_cortex")


def head(size: int = 40) -> np.ndarray:
    """Nested ellipsoids of white matter, grey matter and CSF, as class indices."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, extent) for extent in (size, size + 4, size - 2)), indexing="ij")
    radius = np.sqrt(x**2 + y**2 + 1.2 * z**2)
    return np.select([radius < 0.55, radius < 0.8, radius < 0.95], [WM, GM, CSF], 0).astype(np.uint8)


def scan(labels: np.ndarray, noise: float = 0.02) -> np.ndarray:
    values = np.zeros(8)
    values[[WM, GM, CSF]] = (1000, 630, 200)
    texture = 1 + noise * np.random.default_rng(0).normal(size=labels.shape)
    return (values[labels] * texture).astype(np.float32)


def drift(shape: tuple[int, ...]) -> np.ndarray:
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, extent) for extent in shape), indexing="ij")
    return np.exp(0.5 * x - 0.15 * y * z + 0.1 * z**2).astype(np.float32)


def variation(values: np.ndarray) -> float:
    return float(values.std() / values.mean())


def test_n4_takes_out_a_slow_drift() -> None:
    labels = head()
    t1w = scan(labels) * drift(labels.shape)

    corrected = correct_bias(t1w, labels > 0, (4.0, 4.0, 4.0))

    assert variation(t1w[labels == WM]) > 0.1
    assert variation(corrected[labels == WM]) < 0.04
    assert corrected.dtype == np.float32
    assert corrected.min() >= 0


def test_n4_gives_the_same_voxels_each_time_and_in_a_larger_field_of_view() -> None:
    labels = head(24)
    t1w = scan(labels) * drift(labels.shape)
    once = correct_bias(t1w, labels > 0, (4.0, 4.0, 4.0), iterations=(10, 10))

    again = correct_bias(t1w, labels > 0, (4.0, 4.0, 4.0), iterations=(10, 10))
    padded = correct_bias(np.pad(t1w, 5), np.pad(labels > 0, 5), (4.0, 4.0, 4.0), iterations=(10, 10))

    assert once.tobytes() == again.tobytes()
    np.testing.assert_array_equal(padded[5:-5, 5:-5, 5:-5], once)


def test_n4_keeps_the_overall_level_and_lifts_negative_voxels_to_zero() -> None:
    labels = head(24)
    t1w = scan(labels)
    t1w[0, 0, 0] = -50
    corrected = correct_bias(t1w, labels > 0, (4.0, 4.0, 4.0), iterations=(10,))
    assert corrected[0, 0, 0] == 0
    assert np.median(corrected[labels == WM]) == pytest.approx(1000, rel=0.1)


def test_n4_without_a_mask_or_signal_is_an_input_error() -> None:
    t1w = np.ones((4, 4, 4), np.float32)
    with pytest.raises(InputError, match=r"a.nii: expected a brain mask of at least one voxel, got none"):
        correct_bias(t1w, t1w > 2, (1.0, 1.0, 1.0), source="a.nii")
    with pytest.raises(InputError, match=r"a.nii: expected signal inside the brain mask, got zero"):
        correct_bias(-t1w, t1w > 0, (1.0, 1.0, 1.0), source="a.nii")


@pytest.mark.parametrize("gain", [0.01, 1.0, 37.0])
def test_scaling_puts_white_matter_at_its_value_and_zero_at_minus_one_whatever_the_scanner(gain: float) -> None:
    labels = head()
    t1w = gain * scan(labels)

    scaled = fit_scaling(t1w, labels, [WM], [GM]).apply(t1w)

    assert np.median(scaled[labels == WM]) == pytest.approx(0.6, abs=1e-3)
    assert np.median(scaled[labels == GM]) == pytest.approx(0.01, abs=0.01)
    assert (scaled[labels == 0] == -1).all()
    assert scaled.dtype == np.float32


def test_scaling_is_robust_to_a_few_bright_vessels() -> None:
    labels = head()
    t1w = scan(labels)
    expected = fit_scaling(t1w, labels, [WM], [GM])
    t1w.ravel()[::50] *= 20
    assert fit_scaling(t1w, labels, [WM], [GM]).gain == pytest.approx(expected.gain, rel=0.01)


@pytest.mark.parametrize(("wm_indices", "tolerance"), [([5], 0.03), ([], 0.03)])
def test_scaling_falls_back_on_grey_matter(wm_indices: list[int], tolerance: float) -> None:
    labels = head()
    t1w = scan(labels)
    scaled = fit_scaling(t1w, labels, wm_indices, [GM]).apply(t1w)
    assert np.median(scaled[labels == WM]) == pytest.approx(0.6, abs=tolerance)


def test_scaling_falls_back_on_a_percentile_of_the_labelled_voxels() -> None:
    labels = head()
    t1w = scan(labels)
    scaled = fit_scaling(t1w, labels, [], []).apply(t1w)
    assert np.median(scaled[labels == WM]) == pytest.approx(0.6, abs=0.1)


def test_scaling_without_labels_or_signal_is_an_input_error() -> None:
    labels = head()
    with pytest.raises(InputError, match=r"a.nii: expected at least one labelled voxel"):
        fit_scaling(scan(labels), np.zeros_like(labels), [WM], [GM], source="a.nii")
    with pytest.raises(InputError, match=r"a.nii: expected white matter brighter than zero, got a median of 0"):
        fit_scaling(np.zeros(labels.shape, np.float32), labels, [WM], [GM], source="a.nii")


def test_inverting_the_scaling_gives_the_scan_back() -> None:
    scaling = IntensityScaling(gain=0.0016, offset=-1.0)
    t1w = np.linspace(0, 1249, 50, dtype=np.float32)
    np.testing.assert_allclose(scaling.invert(scaling.apply(t1w)), t1w, atol=1e-3)
    assert scaling.apply(np.array([1e6, -1e6])).tolist() == [1.0, -1.0]


def test_evaluation_intensity_divides_by_the_percentile_of_the_brain_and_clips() -> None:
    t1w = np.arange(1000, dtype=np.float32).reshape(10, 10, 10)
    mask = t1w < 801
    result = evaluation_intensity(t1w, mask)
    np.testing.assert_allclose(result[mask], np.minimum(np.arange(801) / (0.995 * 800), 1), rtol=1e-6)
    assert (result[~mask] == 0).all()
    assert result.dtype == np.float32


def test_evaluation_intensity_without_signal_is_an_input_error() -> None:
    t1w = np.zeros((3, 3, 3), np.float32)
    for mask in (t1w == 0, t1w > 0):
        with pytest.raises(InputError, match="expected signal inside the brain mask"):
            evaluation_intensity(t1w, mask)


def test_gain_and_offset_are_the_least_squares_ones() -> None:
    rng = np.random.default_rng(0)
    y_pred, noise = rng.normal(size=(2, 6, 7, 8))
    mask = rng.random((6, 7, 8)) > 0.4
    y = 0.3 * y_pred + 0.5 + 0.1 * noise
    y[~mask] = 1e6
    expected = np.polyfit(y_pred[mask], y[mask], 1)
    np.testing.assert_allclose(fit_gain_offset(y_pred, y, mask), expected, rtol=1e-9)


def test_a_constant_prediction_gets_the_mean() -> None:
    y = np.arange(27.0).reshape(3, 3, 3)
    assert fit_gain_offset(np.full_like(y, 4), y, y < 10) == (0.0, 4.5)
    with pytest.raises(InputError, match="brain mask: expected at least one voxel"):
        fit_gain_offset(y, y, y < 0)


@pytest.mark.real_data
@pytest.mark.skipif(not MALC.is_dir(), reason=f"MALC 2012 is not at {MALC}")
def test_tissues_of_malc_scans_line_up_without_clipping() -> None:
    scheme = load_scheme("neuromorphometrics")
    vocabulary = scheme.vocabulary
    medians = []
    for case_id in ("sub-0091_ses-1", "sub-0220_ses-1"):
        stem = MALC / case_id.split("_")[0] / "ses-1/anat" / case_id
        ids, affine = read_label_map(f"{stem}_dseg.nii.gz")
        labels = scheme.to_indices(ids, case_id)
        t1w, _ = read_t1w(f"{stem}_desc-brain_T1w.nii.gz")
        spacing_mm = Grid(ids.shape, affine).spacing_mm
        mask = fill_brain(labels, spacing_mm, vocabulary.index("csf")) > 0
        corrected = correct_bias(t1w, mask, spacing_mm)
        scaling = fit_scaling(corrected, labels, vocabulary.indices_of_tissue("wm"), vocabulary.indices_of_tissue("gm"))
        scaled = scaling.apply(corrected)
        assert (np.abs(scaled[mask]) == 1).mean() < 0.005
        medians.append([np.median(scaled[labels == vocabulary.index(name)]) for name in TISSUES])
    assert np.std(medians, axis=0).max() < 0.06
