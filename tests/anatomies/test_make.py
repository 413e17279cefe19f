from __future__ import annotations

import gzip
import hashlib
import json
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from trispade.anatomies import embedded_anatomies, make
from trispade.anatomies.blend import Source, blend
from trispade.anatomies.make import RECIPES, UPRIGHT, Recipe, make_anatomies, nifti_bytes, read_source
from trispade.errors import InputError
from trispade.labels import load_scheme
from trispade.phantoms import make_phantom

DATA = Path(os.environ.get("TRISPADE_TEST_DATA", Path(__file__).parents[2] / "../shared/data")).resolve()
SYNTHSEG = DATA / "synthseg_labels"
NAMES = ("sub-01", "sub-02", "sub-03")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Phantoms in place of SynthSeg's label maps."""
    monkeypatch.setattr(make, "SOURCE_NAMES", NAMES)
    for seed, name in enumerate(NAMES):
        phantom = make_phantom(seed, (28, 34, 28), 6.0)
        nib.save(nib.Nifti1Image(phantom.label_map, phantom.affine), tmp_path / f"{name}_dseg.nii.gz")
    return tmp_path


def test_the_same_label_maps_give_the_same_bytes_and_a_table_that_tells_of_them(folder: Path, blending):
    recipes = [Recipe("anatomy-1", "a phantom", NAMES, blending)]
    table = make_anatomies(folder, folder / "once", recipes)
    make_anatomies(folder, folder / "again", recipes)
    (row,) = json.loads(table.read_text())["anatomies"]
    content = (folder / "once" / row["file"]).read_bytes()
    assert content == (folder / "again" / row["file"]).read_bytes()
    assert table.read_bytes() == (folder / "again" / table.name).read_bytes()
    assert hashlib.sha256(content).hexdigest() == row["sha256"]
    assert row["sources"] == list(NAMES)
    assert 0 < row["highest_dice"]["cortex"]["affine"] < 1
    assert {file.name for file in (folder / "once").iterdir()} == {row["file"], table.name}


def test_the_file_holds_freesurfers_ids_of_the_choroid_plexus_and_no_time():
    label_ids = np.array([0, 2, 136, 163, 137, 164], np.uint8).reshape(1, 2, 3)
    content = nifti_bytes(Source(label_ids, np.diag([1.0, 1.0, 1.0, 1.0])))
    assert content == nifti_bytes(Source(label_ids, np.diag([1.0, 1.0, 1.0, 1.0])))
    assert content[4:8] == bytes(4)
    image = nib.Nifti1Image.from_bytes(gzip.decompress(content))
    assert np.asarray(image.dataobj).ravel().tolist() == [0, 2, 31, 31, 63, 63]
    assert image.header.get_xyzt_units()[0] == "mm"
    assert set(label_ids.ravel()) == {0, 2, 136, 163, 137, 164}  # the anatomy itself is left alone


def test_a_label_map_that_is_missing_is_named(tmp_path: Path):
    with pytest.raises(InputError, match=r"sub-01_dseg\.nii\.gz: expected a label map of SynthSeg, got no file"):
        make_anatomies(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_recipes_are_those_of_the_embedded_anatomies():
    assert [(each.name, each.description, each.sources) for each in RECIPES] == [
        (each.name, each.description, each.sources) for each in embedded_anatomies()
    ]


@pytest.mark.long
@pytest.mark.real_data
@pytest.mark.skipif(not SYNTHSEG.is_dir(), reason=f"SynthSeg's label maps are not in {SYNTHSEG}")
def test_the_first_embedded_anatomy_comes_out_of_synthsegs_label_maps():
    recipe, shipped = RECIPES[0], embedded_anatomies()[0]
    people = [read_source(SYNTHSEG / f"{name}_dseg.nii.gz") for name in recipe.sources]
    assert recipe.sources[0] == UPRIGHT
    content = nifti_bytes(blend(people, load_scheme("synthseg"), recipe.blending, people[0]))
    made, there = (
        np.asarray(nib.Nifti1Image.from_bytes(gzip.decompress(each)).dataobj)
        for each in (content, shipped.path.read_bytes())
    )
    assert made.shape == there.shape
    assert np.mean(made != there) < 1e-3  # none on one machine; rounding differs between machines
