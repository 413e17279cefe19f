from __future__ import annotations

import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from trispade.errors import InputError
from trispade.labels import (
    brain_mask,
    fill_brain,
    load_scheme,
)

DATA = Path(os.environ.get("TRISPADE_TEST_DATA", Path(__file__).parents[1] / "../shared/data")).resolve()
needs_real_data = [
    pytest.mark.real_data,
    pytest.mark.skipif(not (DATA / "malc2012").is_dir(), reason=f"no scans under {DATA}"),
]


def ball_footprint(radius_mm: float, spacing_mm: tuple[float, ...]) -> np.ndarray:
    extents = [np.arange(-int(radius_mm / s), int(radius_mm / s) + 1) * s for s in spacing_mm]
    x, y, z = np.meshgrid(*extents, indexing="ij")
    return x**2 + y**2 + z**2 <= radius_mm**2 + 1e-9


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (1.0, 1.5, 0.8)])
def test_the_mask_equals_a_closing_with_an_explicit_ball_and_filled_holes(spacing_mm: tuple[float, float, float]):
    label_map = (ndimage.gaussian_filter(np.random.default_rng(3).normal(size=(20, 23, 17)), 1.2) > 0.14).astype(
        np.uint8
    )
    padded = np.pad(label_map > 0, 9)
    closed = ndimage.binary_closing(padded, ball_footprint(3.0, spacing_mm))
    expected = ndimage.binary_fill_holes(closed)[9:-9, 9:-9, 9:-9]
    mask = brain_mask(label_map, spacing_mm, closing_mm=3.0)
    assert (label_map > 0).mean() + 0.01 < mask.mean() < 0.95
    np.testing.assert_array_equal(mask, expected)


def test_a_label_that_touches_the_border_is_closed_as_if_the_grid_went_on():
    inside = np.zeros((30, 26, 28), np.uint8)
    inside[8:14, 6:20, 9:20] = 1
    inside[10, 8:18, 12] = 0
    inside[17:20, 6:20, 9:20] = 2
    cropped = inside[8:20, 6:20, 9:20]
    np.testing.assert_array_equal(brain_mask(cropped, (1, 1, 1)), brain_mask(inside, (1, 1, 1))[8:20, 6:20, 9:20])


def test_filling_gives_csf_to_gaps_and_holes_and_keeps_every_label():
    label_map = np.zeros((30, 30, 30), np.uint8)
    label_map[5:25, 5:25, 5:25] = 2
    label_map[8:22, 8:22, 8:22] = 0  # a hole too large for the closing alone
    label_map[5:25, 14:16, 20:25] = 0  # a sulcus
    filled = fill_brain(label_map, (1.0, 1.0, 1.0), csf_index=7)
    assert filled.dtype == label_map.dtype
    assert filled[15, 15, 15] == 7
    assert filled[15, 14, 22] == 7
    assert filled[0, 0, 0] == 0
    np.testing.assert_array_equal(filled[label_map > 0], label_map[label_map > 0])
    np.testing.assert_array_equal(filled > 0, brain_mask(label_map, (1.0, 1.0, 1.0)))


def test_filling_does_not_change_its_input_and_filling_twice_changes_nothing():
    label_map = (ndimage.gaussian_filter(np.random.default_rng(5).normal(size=(24, 20, 22)), 2) > 0.05).astype(np.int16)
    before = label_map.copy()
    filled = fill_brain(label_map, (1.0, 1.0, 1.0), csf_index=7)
    np.testing.assert_array_equal(label_map, before)
    np.testing.assert_array_equal(fill_brain(filled, (1.0, 1.0, 1.0), csf_index=7), filled)


def test_a_gap_is_closed_by_its_width_in_mm_and_not_in_voxels():
    label_map = np.zeros((12, 40, 12), np.uint8)
    label_map[:, :12] = 1
    label_map[:, 20:32] = 1  # a gap of 8 voxels
    assert brain_mask(label_map, (1.0, 1.0, 1.0))[6, 15, 6]
    assert not brain_mask(label_map, (2.0, 2.0, 2.0))[6, 15, 6]


def test_extracerebral_classes_do_not_count_as_brain_and_keep_their_labels():
    label_map = np.zeros((40, 40, 40), np.uint8)
    label_map[14:26, 14:26, 14:26] = 1
    label_map[2:38, 2:38, 2:4] = 9
    filled = fill_brain(label_map, (1.0, 1.0, 1.0), csf_index=7, extracerebral=(9,))
    assert not brain_mask(label_map, (1.0, 1.0, 1.0), extracerebral=(9,))[20, 20, 3]
    np.testing.assert_array_equal(filled == 9, label_map == 9)


def test_trimming_removes_csf_outside_the_closed_brain_only():
    label_map = np.zeros((40, 40, 40), np.uint8)
    label_map[4:36, 4:36, 4:36] = 7
    label_map[10:30, 10:30, 10:30] = 1
    label_map[18:22, 18:22, 18:22] = 7
    trimmed = fill_brain(label_map, (1.0, 1.0, 1.0), csf_index=7, trim_csf=True)
    np.testing.assert_array_equal(trimmed[10:30, 10:30, 10:30], label_map[10:30, 10:30, 10:30])
    assert (trimmed > 0).sum() == 20**3
    assert (fill_brain(label_map, (1.0, 1.0, 1.0), csf_index=7) > 0).sum() == 32**3


def test_an_empty_label_map_is_refused_by_name():
    with pytest.raises(InputError, match="sub-9: expected at least one labelled voxel, got an empty label map"):
        fill_brain(np.zeros((5, 5, 5), np.uint8), (1.0, 1.0, 1.0), csf_index=7, source="sub-9")


class TestRealData:
    pytestmark = needs_real_data

    def test_the_csf_of_a_synthseg_map_beyond_the_closed_brain_is_trimmed(self):
        label = nib.load(DATA / "synthseg_labels/sub-01_dseg.nii.gz")
        scheme = load_scheme("synthseg")
        csf = scheme.vocabulary.index("csf")
        indices = scheme.to_indices(np.asarray(label.dataobj)[::2, ::2, ::2], "sub-01")
        brain = ((indices > 0) & (indices != csf)).sum()
        spacing_mm = [2 * size for size in label.header.get_zooms()[:3]]
        left, trimmed = (fill_brain(indices, spacing_mm, csf, trim_csf=trim) for trim in (False, True))
        assert (left > 0).sum() > 1.35 * brain
        assert (trimmed > 0).sum() < 1.25 * brain
        np.testing.assert_array_equal(
            trimmed[(indices > 0) & (indices != csf)], indices[(indices > 0) & (indices != csf)]
        )

    @pytest.mark.parametrize("person", ["0145", "0239"])
    def test_five_to_eight_percent_of_the_brain_is_filled_and_hardly_any_t1w_is_lost(self, person: str):
        anat = DATA / f"malc2012/sub-{person}/ses-1/anat"
        label = nib.load(anat / f"sub-{person}_ses-1_dseg.nii.gz")
        t1w = np.asarray(nib.load(anat / f"sub-{person}_ses-1_desc-brain_T1w.nii.gz").dataobj)
        scheme = load_scheme("neuromorphometrics")
        indices = scheme.to_indices(np.asarray(label.dataobj), person)
        filled = fill_brain(indices, label.header.get_zooms()[:3], scheme.vocabulary.index("csf"))
        assert 0.05 < ((filled > 0) & (indices == 0)).sum() / (filled > 0).sum() < 0.08
        assert ((t1w > 0) & (filled == 0)).sum() / (t1w > 0).sum() < 0.006
        assert ((t1w <= 0) & (filled > 0)).sum() / (filled > 0).sum() < 0.003
