from __future__ import annotations

import math

import numpy as np
import pytest
from report_content import summary_row

from trispade.phantoms.phantom import phantom_affine
from trispade.report.page_figures import (
    ShownCase,
    best_plane_of,
    differences_figure,
    extremes_figure,
    profiles_figure,
    slices_figure,
    spectrum_figure,
    structure_intensities,
    structures_figure,
)
from trispade.report.plots import StructureIntensity


@pytest.mark.parametrize("orientation", ["RAS", "LPI", "SAR"])
def test_a_case_is_turned_to_ras_and_mapped_by_gain_and_offset(orientation):
    generator = np.random.default_rng(0)
    ras = np.zeros((8, 9, 10))
    ras[2:6, 3:7, 2:8] = generator.uniform(50, 100, (4, 4, 6))
    # Where along RAS each axis of the stored array runs.
    order = [next(axis for axis, ends in enumerate(("LR", "PA", "IS")) if code in ends) for code in orientation]
    stored = np.transpose(ras, order)
    stored = np.flip(stored, [axis for axis, code in enumerate(orientation) if code in "LPI"])
    sizes_ras = (1.0, 2.0, 3.0)
    affine = phantom_affine(stored.shape, [sizes_ras[axis] for axis in order], orientation)
    label_map = (stored > 0).astype(np.uint8)
    case = ShownCase.from_own_grid("a", label_map, stored, {"fused": stored * -0.01 + 3.0}, affine)
    expected = np.clip(ras / np.percentile(ras[ras > 0], 99.5), 0, 1)
    assert case.real == pytest.approx(expected, abs=1e-6)
    assert case.spacing_mm == pytest.approx(sizes_ras)
    assert np.array_equal(case.mask, ras > 0)
    # A negative gain is a gain too; only what was clipped in the real scan differs.
    assert case.volumes["fused"] == pytest.approx(expected, abs=0.01)
    assert (case.volumes["fused"][~case.mask] == 0).all()


def test_slices_go_from_the_label_map_to_the_real_scan(cases):
    figure = slices_figure(cases[0])
    assert [panel.caption for panel in figure.panels] == [
        *("label map", "label mean (bound below)", "axial plane alone", "coronal plane alone"),
        *("sagittal plane alone", "fused (this model)", "real scan"),
    ]
    assert all(cases[0].case_id in panel.alt for panel in figure.panels)


def test_differences_share_one_scale_that_is_told(cases):
    figure = differences_figure(cases[0])
    assert len(figure.panels) == len(cases[0].volumes)
    assert figure.scale is not None
    assert "the same scale for all" in figure.caption
    assert figure.scale.alt.removeprefix("Colour scale ") in figure.caption


def test_profiles_show_fused_best_plane_and_label_mean(cases):
    figure = profiles_figure(cases[0], "coronal")
    assert [panel.caption for panel in figure.panels] == ["right to left", "front to back", "bottom to top"]
    assert figure.panels[0].alt.endswith("real, fused (this model), coronal plane alone, label mean (bound below)")
    assert "plane" not in profiles_figure(cases[0]).panels[0].alt


def test_the_worst_stands_beside_the_best_with_its_number(cases):
    best, worst = cases
    figure = extremes_figure(best, worst, {best.case_id: 21.9, worst.case_id: math.nan})
    assert [panel.caption for panel in figure.panels] == [
        *("best: real", "worst: real", "best: fused", "worst: fused", "best: fused − real", "worst: fused − real"),
    ]
    assert "best: sub-07 (21.90 dB), worst: sub-08 (n/a dB)" in figure.caption
    assert "Only one scan" not in figure.caption


def test_a_single_scan_is_said_to_be_both(cases):
    assert extremes_figure(cases[0], cases[0], {}).caption.startswith("Only one scan was measured, so it is both.")


def test_structures_are_collected_from_complete_rows_of_the_method():
    values = {"real_mean": 0.8, "real_sd": 0.05, "structure_mean": 0.7, "structure_sd": 0.04}
    rows = [summary_row("fused", metric, value, region="thalamus") for metric, value in values.items()]
    rows += [summary_row("fused", "real_mean", 0.3, region="csf")]  # incomplete
    rows += [summary_row("axial", metric, 0.1, region="caudate") for metric in values]
    rows += [summary_row("fused", metric, 0.1, region="caudate", fit="none") for metric in values]
    found = structure_intensities(rows)
    assert found == [StructureIntensity("thalamus", 0.8, 0.05, 0.7, 0.04)]
    figure = structures_figure(found)
    assert "thalamus (0.80 real, 0.70 fused)" in figure.caption
    assert "thalamus" in figure.panels[0].alt


def test_spectra_are_named_as_in_the_tables():
    figure = spectrum_figure(np.array([0.1, 0.2]), {"fused": np.ones(2), "direct": np.ones(2)})
    assert figure.panels[0].alt.endswith("fused (this model), direct 3D U-Net (competitor)")


def test_the_best_plane_is_that_of_the_highest_brain_psnr_with_fit():
    rows = [summary_row(plane, "psnr", value) for plane, value in (("axial", 20.0), ("coronal", 21.0))]
    rows += [summary_row("axial", "psnr", 30.0, fit="none"), summary_row("fused", "psnr", 25.0)]
    rows += [summary_row("axial", "psnr", 30.0, region="full")]
    assert best_plane_of(rows) == "coronal"
    assert best_plane_of([summary_row("fused", "psnr", 25.0)]) is None
