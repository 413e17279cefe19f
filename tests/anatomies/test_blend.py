from __future__ import annotations

import dataclasses

import nibabel as nib
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from trispade.anatomies import blend as blend_module
from trispade.anatomies.blend import (
    CSF_ID,
    OUTPUT_MARGIN_VOXELS,
    Source,
    blend,
    brain_of,
    cut_to_brain,
    tissue_image,
    without_small_pieces,
)
from trispade.errors import InputError
from trispade.labels import load_scheme

SCHEME = load_scheme("synthseg")


@pytest.fixture(scope="module")
def blended(people, blending) -> Source:
    return blend(people, SCHEME, blending)


def test_a_person_blended_with_nobody_not_deformed_and_without_smoothing_stays_as_they_are(
    people, blending, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(blend_module, "VOTE_SD_VOXELS", 1e-3)
    monkeypatch.setattr(blend_module, "MIN_PIECE_VOXELS", 1)
    found = blend(people[:1], SCHEME, dataclasses.replace(blending, shares=(1.0,), sd_mm=0.0))
    person = cut_to_brain(people[0].label_ids, people[0].affine, OUTPUT_MARGIN_VOXELS)
    assert np.array_equal(found.label_ids, person.label_ids)


def test_an_anatomy_holds_the_structures_of_its_sources_and_nothing_else(blended, people):
    there = set(np.unique(blended.label_ids))
    assert there <= set.union(*(set(np.unique(person.label_ids)) for person in people))
    assert {0, 2, 3, 4, 8, 10, 16, CSF_ID, 41, 42, 43, 47, 49} <= there
    assert blended.label_ids.dtype == np.uint8


def test_left_stays_left_and_the_brain_has_about_its_size(blended, people):
    across = {side: np.argwhere(np.isin(blended.label_ids, ids))[:, 0].mean() for side, ids in ((0, 3), (1, 42))}
    assert across[0] < across[1]
    sizes = [np.count_nonzero(person.label_ids) for person in people]
    assert 0.85 * min(sizes) < np.count_nonzero(blended.label_ids) < 1.15 * max(sizes)


def test_an_anatomy_lies_in_the_middle_of_its_world_on_the_sources_spacing(blended, people):
    middle = blended.affine @ [*((np.array(blended.label_ids.shape) - 1) / 2), 1]
    assert np.allclose(middle, [0, 0, 0, 1])
    assert np.allclose(blended.affine[:3, :3], people[0].affine[:3, :3])


def test_a_head_is_set_upright_like_another(people, blending):
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_euler("x", 20, degrees=True).as_matrix()
    tilted = Source(people[0].label_ids, turn @ people[0].affine)
    still = dataclasses.replace(blending, shares=(1.0,), sd_mm=0.0)
    # The same voxels in a world that is tilted: to lie as in the other world, they must be turned back.
    found = blend(people[:1], SCHEME, still, upright=tilted)
    brainstem, cortex = (
        nib.affines.apply_affine(found.affine, np.argwhere(np.isin(found.label_ids, ids))).mean(axis=0)
        for ids in ((16,), (3, 42))
    )
    was_brainstem, was_cortex = (
        nib.affines.apply_affine(tilted.affine, np.argwhere(np.isin(tilted.label_ids, ids))).mean(axis=0)
        for ids in ((16,), (3, 42))
    )
    way, was = brainstem - cortex, was_brainstem - was_cortex
    assert way @ was / np.linalg.norm(way) / np.linalg.norm(was) > np.cos(np.deg2rad(4))


def test_another_seed_gives_another_anatomy(blended, people, blending):
    other = blend(people, SCHEME, dataclasses.replace(blending, seed=2))
    assert other.label_ids.shape != blended.label_ids.shape or (other.label_ids != blended.label_ids).mean() > 0.01


def test_without_asymmetry_a_random_displacement_is_the_same_left_and_right():
    grid = blend_module._CoarseGrid((40, 44, 36), 4)
    same = grid.displacement(12.0, 0.0, np.random.default_rng(1))
    assert np.allclose(same[0], -same[0, ::-1])
    assert np.allclose(same[1:], same[1:, ::-1])
    other = grid.displacement(12.0, 1.0, np.random.default_rng(1))
    assert np.allclose(other[0], other[0, ::-1])
    assert np.allclose(other[1:], -other[1:, ::-1])


def test_small_pieces_go_to_what_is_next_to_them_and_holes_are_filled():
    brain = np.zeros((20, 20, 20), np.uint8)
    brain[2:18, 2:18, 2:18] = 3
    brain[5:10, 5:10, 5:10] = 2
    wanted = brain.copy()
    brain[7, 7, 7] = 3  # cortex within white matter
    brain[14, 14, 14] = 0  # a hole
    brain[3, 3, 3:6] = CSF_ID  # the only CSF there is: small, and kept
    wanted[3, 3, 3:6] = CSF_ID
    brain[19, 19, 19] = 3  # not of the brain
    assert np.array_equal(without_small_pieces(brain), wanted)


def test_what_is_not_brain_is_dropped_and_csf_beyond_the_closed_brain_with_it():
    head = np.zeros((24, 24, 24), np.int32)
    head[2:22, 2:22, 2:22] = 515
    head[4:20, 4:20, 4:20] = CSF_ID
    head[8:16, 8:16, 8:16] = 3
    head[11:13, 11:13, 11:13] = CSF_ID
    head[8, 12, 12] = 0
    brain = brain_of(head, np.diag([2.0, 2.0, 2.0, 1.0]), SCHEME, "head").label_ids
    counts = dict(zip(*(each.tolist() for each in np.unique(brain[brain > 0], return_counts=True)), strict=True))
    assert counts == {3: 8**3 - 8 - 1, CSF_ID: 8 + 1}


def test_a_cut_brain_lies_where_it_lay_in_the_world():
    head = np.zeros((20, 22, 24), np.int32)
    head[4:12, 7:15, 9:17] = 2
    affine = np.diag([-1.0, 1.0, 2.0, 1.0])
    affine[:3, 3] = (10, -20, 5)
    cut = brain_of(head, affine, SCHEME, "head")
    first = np.argwhere(cut.label_ids == 2)[0]
    assert np.allclose(cut.affine @ [*first, 1], affine @ [4, 7, 9, 1])


def test_each_tissue_has_its_grey():
    image = tissue_image(np.array([0, 2, 3, 4, 31]), SCHEME)
    assert image.dtype == np.float32
    assert image[0] == 0
    assert image[1] > image[2] > image[3] > 0


def test_unknown_ids_are_named():
    with pytest.raises(InputError, match="head: label id 1234 is not in scheme 'synthseg'"):
        brain_of(np.full((4, 4, 4), 1234), np.eye(4), SCHEME, "head")
