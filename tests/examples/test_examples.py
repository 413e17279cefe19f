from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import matplotlib.image
import nibabel as nib
import numpy as np
import pytest
from monai.utils import set_determinism

from trispade.errors import InputError
from trispade.phantoms import make_phantom

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = {
    "one_label_map": ("--size", 32),
    "fidelity_and_realism": ("--size", 32),
    "new_anatomies": ("--size", 32, "--displacements", 4),
    "augment_segmentation": ("--size", 32, "--people", 5, "--num-deformed", 0, "--epochs", 3),
}


@pytest.fixture
def output_of(tmp_path, monkeypatch, capsys):
    """Run a script of the gallery in small; gives its folder and what it printed."""

    def run(name: str, *more: object) -> tuple[Path, str]:
        arguments = [*SCRIPTS[name], *more, "--output", tmp_path / name]
        monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # which the scripts set
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return tmp_path / name, capsys.readouterr().out

    yield run
    set_determinism(seed=None)


def shows_something(picture: Path) -> bool:
    return matplotlib.image.imread(picture)[..., :3].std() > 0.05


def test_every_script_of_the_gallery_is_run_here_and_listed_on_its_page():
    scripts = {script.stem for script in EXAMPLES.glob("*.py")}
    assert scripts == set(SCRIPTS)
    assert set(re.findall(r"\[`(\w+)\.py`\]", (EXAMPLES / "README.md").read_text())) == scripts


@pytest.mark.parametrize("name", SCRIPTS)
def test_label_maps_that_are_not_there_are_one_clear_line(output_of, name, tmp_path):
    with pytest.raises(InputError, match=r"absent\.nii\.gz: expected .*, got "):
        output_of(name, "--labels", tmp_path / "absent.nii.gz")
    assert sys.excepthook is not sys.__excepthook__


@pytest.mark.parametrize("name", ["one_label_map", "fidelity_and_realism", "new_anatomies"])
def test_a_label_map_of_any_format_is_taken(output_of, name, tmp_path):
    phantom = make_phantom(seed=1, shape=(32, 32, 32), spacing_mm=1.0)
    nib.save(nib.MGHImage(phantom.label_map.astype(np.int32), phantom.affine), tmp_path / "labels.mgz")
    folder, _ = output_of(name, "--labels", tmp_path / "labels.mgz")
    assert shows_something(next(folder.glob("*.png")))


def test_one_label_map_becomes_a_volume_and_a_picture(output_of):
    folder, printed = output_of("one_label_map")
    volume = nib.load(folder / "T1w.nii.gz")
    assert volume.shape == (32, 32, 32)
    assert 0 == volume.get_fdata().min() < 100 < volume.get_fdata().max() <= 255
    assert '"synthetic": true' in (folder / "T1w.json").read_text()
    assert printed.split() == [str(folder / "T1w.nii.gz"), str(folder / "T1w.png")]
    assert shows_something(folder / "T1w.png")


def test_both_fusion_nets_are_compared(output_of):
    folder, printed = output_of("fidelity_and_realism")
    fidelity, realism = (float(each) for each in re.findall(r"mean gradient ([\d.]+) a voxel", printed))
    assert fidelity != realism
    assert min(fidelity, realism) > 1
    assert shows_something(folder / "both.png")


def test_new_anatomies_are_painted_and_kept(output_of):
    folder, _ = output_of("new_anatomies")
    assert shows_something(folder / "anatomies.png")
    painted = [np.load(file) for file in (folder / "cache").iterdir()]
    assert {volume.shape for volume in painted} == {(1, 32, 32, 32)}


def test_a_segmentation_network_learns_from_t1w_made_on_the_fly(output_of):
    folder, printed = output_of("augment_segmentation")
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", printed)]
    assert len(losses) == 3
    assert losses[-1] < losses[0] - 0.1
    assert re.search(r"Dice: csf [\d.]+, gm [\d.]+, wm [\d.]+", printed)
    assert len(list((folder / "cache").iterdir())) == 5
    assert shows_something(folder / "segmentation.png")
