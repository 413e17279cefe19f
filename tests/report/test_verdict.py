from __future__ import annotations

import math

import pytest
from report_content import comparison_row, summary_row

from trispade.report.verdict import Finding, verdict_of

PSNR = summary_row("fused", "psnr", 21.0)


def finding(findings: list[Finding], word: str) -> Finding:
    (found,) = [each for each in findings if word in each.text]
    return found


def test_nothing_measured_is_said_of_everything():
    findings = verdict_of([])
    assert {each.status for each in findings} == {"not measured"}
    assert len(findings) == 9
    assert all(each.rule for each in findings)


@pytest.mark.parametrize(
    ("people", "status"), [(1, "bad"), (5, "bad"), (6, "mixed"), (19, "mixed"), (20, "good"), (300, "good")]
)
def test_few_people_are_said(people, status):
    found = finding(verdict_of([{**PSNR, "people": people, "scans": people}]), "Measured on")
    assert found.status == status
    assert f"{people} {'person' if people == 1 else 'people'} (" in found.text


@pytest.mark.parametrize(
    ("low", "high", "p", "status", "says"),
    [
        (0.1, 0.9, 0.031, "good", "beats the label-mean image: +0.50 dB (+0.10 to +0.90; p = 0.031; 6 people)"),
        (0.1, 0.9, 0.06, "mixed", "is not clearly better than the label-mean image"),
        (-0.1, 1.1, 0.04, "mixed", "is not clearly better than the label-mean image"),
        (-0.9, -0.1, 0.4, "bad", "is worse than the label-mean image"),
        (math.nan, math.nan, math.nan, "mixed", "(no interval; p = n/a; 6 people)"),
        (0.1, 0.9, 0.0001, "good", "p < 0.001"),
    ],
)
def test_fused_beats_another_only_with_its_interval_and_test(low, high, p, status, says):
    rows = [comparison_row("label_mean", 0.5, low, high, p=p)]
    found = finding(verdict_of([PSNR], rows), "label-mean image:")
    assert found.status == status
    assert says in found.text


def test_the_worst_of_the_planes_decides_and_is_named():
    rows = [
        comparison_row("axial", 0.5, 0.2, 0.8),
        comparison_row("coronal", -0.5, -0.8, -0.2),
        comparison_row("sagittal", 0.1, -0.2, 0.4),
    ]
    found = finding(verdict_of([PSNR], rows), "coronal plane alone")
    assert found.status == "bad"
    assert found.text.startswith("The fused volume is worse than the coronal plane alone: coronal −0.50 dB")
    assert all(name in found.text for name in ("axial +0.50", "sagittal +0.10"))


def test_a_fused_volume_that_beats_all_planes_is_said_to():
    rows = [comparison_row(plane, 0.5, 0.2, 0.8) for plane in ("axial", "coronal", "sagittal")]
    found = finding(verdict_of([PSNR], rows), "each single plane")
    assert (found.status, found.text[:41]) == ("good", "The fused volume beats each single plane:")


def test_where_only_the_best_plane_was_compared_it_is_named():
    found = finding(verdict_of([PSNR], [comparison_row("axial", 0.5, 0.2, 0.8, role="best plane")]), "single plane (")
    assert found.status == "good"
    assert "beats the best single plane (axial): +0.50 dB" in found.text


def test_comparisons_of_other_regions_fits_and_metrics_do_not_decide():
    wrong = [{"region": "full"}, {"fit": "none"}, {"metric": "ssim"}, {"a": "axial"}]
    rows = [{**comparison_row("mean_of_planes", 0.5, 0.2, 0.8), **change} for change in wrong]
    assert finding(verdict_of([PSNR], rows), "mean of the planes").status == "not measured"


@pytest.mark.parametrize(
    ("fused", "status", "says"),
    [
        (27.5, "good", "0.5 dB above a second real scan"),
        (26.25, "good", "0.8 dB below a second real scan"),
        (24.25, "mixed", "2.8 dB below"),
        (
            21.0,
            "bad",
            "6.0 dB below a second real scan of the same person (21.0 against 27.0 dB; 3 people scanned twice)",
        ),
    ],
)
def test_the_distance_from_scan_rescan_is_told(fused, status, says):
    rows = [
        summary_row(method, "psnr", value, people=3, scans=6)
        for method, value in (("label_mean", 19.0), ("fused", fused), ("scan_rescan", 27.0))
    ]
    found = finding(verdict_of([], (), rows), "second real scan")
    assert found.status == status
    assert says in found.text
    assert f"gone {100 * (fused - 19) / 8:.0f}% of the way there from the label-mean image" in found.text


def test_an_infinite_rescan_is_not_a_distance():
    rows = [summary_row("fused", "psnr", math.inf), summary_row("scan_rescan", "psnr", 27.0)]
    assert finding(verdict_of([], (), rows), "scan–rescan").status == "not measured"


@pytest.mark.parametrize(
    ("value", "status", "says"),
    [
        (0.5, "bad", "blurrier"),
        (0.7, "mixed", "blurrier"),
        (0.84, "mixed", "blurrier"),
        (0.85, "good", "as sharp as"),
        (1.1, "good", "as sharp as"),
        (1.2, "mixed", "sharper or noisier"),
        (1.3, "bad", "sharper or noisier"),
        (math.nan, "not measured", "Sharpness: not measured"),
    ],
)
def test_sharpness_has_bounds_on_both_sides(value, status, says):
    found = finding(verdict_of([summary_row("fused", "sharpness", value)]), "harp")
    assert found.status == status
    assert says in found.text


@pytest.mark.parametrize(
    ("values", "status", "says"),
    [
        ((1.1, 0.9, 1.0), "good", "is as coherent across slices as the real scans: axial 1.10"),
        ((1.0, 1.2, 1.0), "mixed", "is streakier across coronal slices"),
        ((1.0, 0.95, 0.76), "mixed", "is smoother across sagittal slices"),
        ((1.5, 1.0, 1.0), "bad", "is streakier across axial slices"),
    ],
)
def test_the_furthest_direction_decides_on_coherence(values, status, says):
    planes = ("axial", "coronal", "sagittal")
    rows = [summary_row("fused", f"incoherence_{p}", v) for p, v in zip(planes, values, strict=True)]
    found = finding(verdict_of(rows), "axial")
    assert found.status == status
    assert says in found.text


def test_coherence_in_two_directions_is_not_measured():
    rows = [summary_row("fused", f"incoherence_{plane}", 1.0) for plane in ("axial", "coronal")]
    assert finding(verdict_of(rows), "Coherence").status == "not measured"


@pytest.mark.parametrize(
    ("volumes", "copies", "status", "says"),
    [
        (9, 0, "good", "No sign that training scans were memorised (9 synthetic volumes checked)."),
        (9, 2, "bad", "2 of 9 synthetic volumes checked may copy a training scan"),
        (0, 0, "not measured", "for want of unseen people"),
    ],
)
def test_one_copy_is_enough(volumes, copies, status, says):
    found = verdict_of([], memorisation={"volumes": volumes, "copies": copies})[-1]
    assert found.status == status
    assert says in found.text


def test_a_fused_volume_identical_to_the_real_scan_is_suspicious():
    found = finding(verdict_of([{**PSNR, "infinite": 2}]), "identical")
    assert found.status == "bad"
    assert found.text.startswith("2 fused volumes are identical to the real scan")
    assert not [each for each in verdict_of([PSNR]) if "identical" in each.text]


def test_only_the_fused_volume_with_fit_decides():
    rows = [summary_row("axial", "sharpness", 1.0), summary_row("fused", "sharpness", 1.0, fit="none")]
    assert finding(verdict_of(rows), "Sharpness").status == "not measured"
