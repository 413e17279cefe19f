from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

from trispade.errors import InputError
from trispade.labels import fill_brain, load_scheme
from trispade.manifests import read_manifest
from trispade.phantoms import make_phantom, phantom_affine, write_phantom_dataset

LEFT = (2, 3, 4, 5, 7, 8, 10, 11, 12, 13, 17, 18, 26, 28)
RIGHT = (41, 42, 43, 44, 46, 47, 49, 50, 51, 52, 53, 54, 58, 60)
MIDLINE = (14, 15, 16, 24)


def world_mm(phantom, ids):
    voxels = np.argwhere(np.isin(phantom.label_map, ids))
    return nib.affines.apply_affine(phantom.affine, voxels)


def contents(folder):
    return {
        file.relative_to(folder).as_posix(): np.asarray(nib.load(file).dataobj).tobytes()
        if file.name.endswith(".nii.gz")
        else file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }


def test_a_seed_is_a_person():
    first, again, other = make_phantom(4), make_phantom(4), make_phantom(5)
    assert np.array_equal(first.label_map, again.label_map)
    assert np.array_equal(first.t1w, again.t1w)
    assert np.mean(first.label_map != other.label_map) > 0.02


@pytest.mark.parametrize("seed", range(4))
def test_every_structure_is_there_at_4_mm(seed):
    label_map, t1w, affine = make_phantom(seed)
    assert (label_map.dtype, t1w.dtype, affine.shape) == (np.int16, np.float32, (4, 4))
    assert set(np.unique(label_map)) == {0, *LEFT, *RIGHT, *MIDLINE}


def test_left_ids_lie_left_and_the_halves_differ():
    phantom = make_phantom(0)
    offset_mm = world_mm(phantom, (14, 15, 16))[:, 0].mean()
    for left, right in zip(LEFT, RIGHT, strict=True):
        assert world_mm(phantom, left)[:, 0].mean() < offset_mm < world_mm(phantom, right)[:, 0].mean()
    mirrored = np.isin(phantom.label_map, RIGHT)[::-1]
    assert np.mean(np.isin(phantom.label_map, LEFT) != mirrored) > 0.02


@pytest.mark.parametrize("orientation", ["LPI", "PIR", "SLA"])
def test_the_anatomy_stays_in_the_world_when_the_array_is_turned(orientation):
    shape = (40, 48, 44)
    straight = make_phantom(2, shape, 4.5)
    turn = ornt_transform(io_orientation(straight.affine), axcodes2ornt(tuple(orientation)))
    expected = nib.orientations.apply_orientation(straight.label_map, turn)
    turned = make_phantom(2, expected.shape, affine=phantom_affine(expected.shape, 4.5, orientation))
    assert np.mean(turned.label_map != expected) < 1e-3  # float32 positions decide ties differently


@pytest.mark.parametrize(("spacing_mm", "degrees"), [(3.0, 0), ((4.0, 3.0, 5.0), 0), (4.0, 20)])
def test_two_grids_show_the_same_person(spacing_mm, degrees):
    shape = tuple(np.ceil(np.array([212, 244, 212]) / spacing_mm).astype(int))
    reference = make_phantom(1, (96, 112, 96), 2.0)
    sampled = make_phantom(1, shape, affine=phantom_affine(shape, spacing_mm, oblique_degrees=degrees))
    for ids in ((2, 41), 16, 10, 51, 8):
        expected, found = world_mm(reference, ids), world_mm(sampled, ids)
        assert np.abs(expected.mean(0) - found.mean(0)).max() < 1.0
        assert len(found) * abs(np.linalg.det(sampled.affine)) == pytest.approx(len(expected) * 8.0, rel=0.08)


@pytest.mark.parametrize("degrees", [0, 25])
def test_a_brain_shrinks_to_fit_a_small_grid(degrees):
    shape = (20, 30, 18)
    affine = phantom_affine(shape, 4.0, oblique_degrees=degrees)
    phantom = make_phantom(0, shape, affine=affine)
    inside = phantom.t1w > 0
    assert inside[1:-1, 1:-1, 1:-1].sum() == inside.sum() > 500


def test_tissues_have_the_contrast_of_a_t1w_and_the_filled_label_map_covers_the_brain():
    spacing_mm = 2.0
    label_map, t1w, _ = make_phantom(0, (96, 112, 96), spacing_mm)
    white, cortex, fluid = (np.median(t1w[np.isin(label_map, ids)]) for ids in ((2, 41), (3, 42), (4, 43)))
    assert white > 1.2 * cortex > 1.2 * 1.5 * fluid > 0
    scheme = load_scheme("freesurfer")
    brain = fill_brain(scheme.to_indices(label_map, "phantom"), (spacing_mm,) * 3, scheme.vocabulary.index("csf")) > 0
    assert np.mean(brain[t1w > 0]) > 0.995
    assert 0.04 < np.mean(label_map[brain] == 0) < 0.10  # sulci: as in manual segmentations


def test_the_cortex_is_folded_all_over_both_hemispheres():
    phantom = make_phantom(0, (96, 112, 96), 2.0)
    cortex_ml = len(world_mm(phantom, (3, 42))) * 8 / 1000
    white_ml = len(world_mm(phantom, (2, 41))) * 8 / 1000
    assert 0.6 < cortex_ml / white_ml < 1.8


def test_an_affine_has_the_orientation_spacing_and_middle_that_were_asked_for():
    affine = phantom_affine((10, 12, 14), (1.0, 2.0, 3.0), "PIR", oblique_degrees=12)
    assert nib.aff2axcodes(affine) == ("P", "I", "R")
    assert np.allclose(nib.affines.voxel_sizes(affine), (1, 2, 3))
    assert np.allclose(affine @ [4.5, 5.5, 6.5, 1], [0, 0, 0, 1])


def test_a_data_set_is_a_bids_tree_whose_manifest_reads_with_all_splits(tmp_path):
    path = write_phantom_dataset(tmp_path, num_people=6, shape=(24, 28, 24), spacing_mm=4.0)
    manifest = read_manifest(path, tmp_path, check_labels=True)
    assert [case.split for case in manifest.cases] == ["gan_train"] * 3 + ["fusion_train", "val", "test"]
    assert [case.fold for case in manifest.cases] == [0, 1, 0, 1, None, None]
    assert len({case.person_id for case in manifest.cases}) == 6
    image = nib.load(tmp_path / "sub-01" / "anat" / "sub-01_T1w.nii.gz")
    assert image.header.get_xyzt_units() == ("mm", "sec")
    assert image.get_sform(coded=True)[1] == image.get_qform(coded=True)[1] == 1
    people = (tmp_path / "participants.tsv").read_text().splitlines()
    assert (people[0], len(people)) == ("participant_id\tage", 7)
    assert all(18 <= row["age"] <= 80 for row in json.loads(path.read_text())["training"])


def test_a_data_set_is_the_same_when_written_again_and_can_lie_obliquely(tmp_path):
    for name in ("a", "b"):
        write_phantom_dataset(tmp_path / name, 5, 7, (8.0, 8.0, 10.0), (24, 28, 20), "LAS", oblique_degrees=10)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    affine = nib.load(tmp_path / "a" / "sub-05" / "anat" / "sub-05_dseg.nii.gz").affine
    assert nib.aff2axcodes(affine) == ("L", "A", "S")
    assert not np.allclose(affine[:3, :3], np.diag(np.diag(affine)[:3]))


def test_too_few_people_are_refused(tmp_path):
    with pytest.raises(InputError, match="expected at least 5 people, got 4"):
        write_phantom_dataset(tmp_path, num_people=4)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(InputError, match=r"taken.*expected a folder that can be written to"):
        write_phantom_dataset(tmp_path / "taken", 5, shape=(12, 12, 12), spacing_mm=16.0)


@pytest.mark.parametrize("shape", [(7, 20, 20), (20, 20)])
def test_a_grid_too_small_for_a_brain_is_refused(shape):
    with pytest.raises(InputError, match="three axes of at least 8 voxels"):
        make_phantom(0, shape)


@pytest.mark.parametrize("orientation", ["RAR", "RA", "XYZ", "RASS"])
def test_an_orientation_must_name_each_axis_once(orientation):
    with pytest.raises(InputError, match="one each of L/R, P/A and I/S"):
        phantom_affine((10, 10, 10), 1.0, orientation)
