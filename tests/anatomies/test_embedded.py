from __future__ import annotations

import hashlib
import json

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from trispade.anatomies import LABEL_SCHEME, EmbeddedAnatomy, embedded_anatomies
from trispade.anatomies.embedded import FOLDER, TABLE
from trispade.anatomies.likeness import STRUCTURES
from trispade.labels import fill_brain, load_scheme
from trispade.nifti import read_label_map

ANATOMIES = embedded_anatomies()
STRUCTURES_OF_A_BRAIN = (
    *(2, 3, 4, 5, 7, 8, 10, 11, 12, 13, 14, 15, 16, 17, 18, 24, 26, 28),
    *(41, 42, 43, 44, 46, 47, 49, 50, 51, 52, 53, 54, 58, 60),
)

each_anatomy = pytest.mark.parametrize("anatomy", ANATOMIES, ids=lambda anatomy: anatomy.name)


def test_there_are_three_and_their_ventricles_differ():
    sizes = [anatomy.volume_ml["lateral_ventricles"] for anatomy in ANATOMIES]
    assert len(sizes) == 3
    assert sizes == sorted(sizes)
    assert sizes[0] < 18 < 20 < sizes[1] < 40 < sizes[2]


@each_anatomy
def test_a_label_map_is_small_and_the_one_that_the_table_tells_of(anatomy: EmbeddedAnatomy):
    content = anatomy.path.read_bytes()
    assert len(content) < 300_000
    assert hashlib.sha256(content).hexdigest() == anatomy.sha256
    assert content[:4] == b"\x1f\x8b\x08\x00"  # gzip without a name
    assert content[4:8] == bytes(4)  # and without a time


@each_anatomy
def test_a_label_map_is_a_brain_of_known_structures_at_1_mm(anatomy: EmbeddedAnatomy):
    label_map, affine = read_label_map(anatomy.path)
    scheme = load_scheme(LABEL_SCHEME)
    assert not scheme.unknown_ids(label_map)
    assert set(STRUCTURES_OF_A_BRAIN) <= set(np.unique(label_map))
    assert nib.aff2axcodes(affine) == ("R", "A", "S")
    assert np.allclose(nib.affines.voxel_sizes(affine), 1)
    assert nib.load(anatomy.path).get_data_dtype() == np.uint8
    assert 800 < np.count_nonzero(label_map) / 1000 < 1800  # ml
    assert ndimage.label(label_map > 0, np.ones((3, 3, 3)))[1] == 1  # in one piece
    brain = np.argwhere(label_map)
    assert (brain.min(axis=0) >= 5).all()
    assert (brain.max(axis=0) < np.array(label_map.shape) - 5).all()


def test_filling_the_brain_hardly_changes_it_so_that_no_scheme_need_trim_its_csf():
    anatomy, scheme = ANATOMIES[0], load_scheme(LABEL_SCHEME)  # one, for it takes seconds at 1 mm
    label_map = scheme.to_indices(read_label_map(anatomy.path)[0], anatomy.name)
    trimmed = fill_brain(label_map, (1.0, 1.0, 1.0), scheme.vocabulary.index("csf"), trim_csf=True)
    assert np.count_nonzero(trimmed != label_map) < 0.03 * np.count_nonzero(label_map)


@each_anatomy
def test_the_volumes_in_the_table_are_those_of_the_label_map(anatomy: EmbeddedAnatomy):
    label_map, _ = read_label_map(anatomy.path)
    for structure, ids in STRUCTURES.items():
        assert np.isin(label_map, ids).sum() / 1000 == pytest.approx(anatomy.volume_ml[structure], abs=0.06)


@each_anatomy
def test_an_anatomy_is_nobodys(anatomy: EmbeddedAnatomy):
    assert max(anatomy.highest_dice["cortex"].values()) < 0.6
    assert max(anatomy.highest_dice["lateral_ventricles"].values()) < 0.8


def test_their_origin_and_licence_lie_beside_them():
    table = json.loads((FOLDER / TABLE).read_text(encoding="utf-8"))
    assert table["licence"] == "Apache-2.0"
    assert "SynthSeg" in table["derived_from"]
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert "Apache-2.0" in text
    assert "https://github.com/BBillot/SynthSeg" in text
