"""What a receiver does with the zip, where MONAI is installed and trispade is not."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import venv
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from zips import FOLDER, ROOT

from trispade.phantoms import write_phantom_dataset
from trispade.sharing.package import required_packages

pytestmark = pytest.mark.long

SITE_PACKAGES = Path(np.__file__).parents[1]
LIA = nib.orientations.axcodes2ornt("LIA")
METADATA = json.loads((ROOT / "bundle" / "configs" / "metadata.json").read_text())
MODULES = {"pytorch-ignite": "ignite"}
BARRED = ("typer", "yaml", "matplotlib", "jinja2", "PIL", "cyclonedx", "skimage", "jsonschema", "setuptools", "pytest")
"""Of what is installed here: what the bundle's metadata does not list."""
SMOKE = "\"['configs/inference.json','configs/presets/smoke.json']\""
GUARD = """
import sys
class Guard:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {barred}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Guard())
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of an environment with the packages of this one, but for trispade and what the bundle does not list."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder)
    (site_packages,) = folder.glob("lib/python*/site-packages")
    (site_packages / "others.pth").write_text(f"{SITE_PACKAGES}\n")  # where .pth files, of editable installs, are idle
    (site_packages / "sitecustomize.py").write_text(GUARD.format(barred=BARRED))
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def aparc_aseg(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A phantom's label map as FreeSurfer writes one: MGZ, left, inferior, anterior axes."""
    folder = tmp_path_factory.mktemp("subject")
    write_phantom_dataset(folder, 5, 0, spacing_mm=4.0)
    phantom = nib.load(folder / "sub-01" / "anat" / "sub-01_dseg.nii.gz")
    turned = phantom.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(phantom.affine), LIA))
    path = folder / "aparc+aseg.mgz"
    nib.save(nib.MGHImage(np.asarray(turned.dataobj).astype(np.int32), turned.affine), path)
    return path


def run(arguments: list[str | Path], folder: Path) -> str:
    keep = {key: os.environ[key] for key in ("PATH", "HOME", "SYSTEMROOT") if key in os.environ}
    done = subprocess.run(arguments, cwd=folder, env={**keep, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def documented_commands() -> list[str]:
    """Commands of the receiver in the documentation, for this version."""
    lines = (ROOT / "docs" / "sharing.md").read_text().splitlines()
    return [line.strip() for line in lines if line.startswith("    python ")]


def test_neither_trispade_nor_what_the_bundle_does_not_list_is_there(python: Path, tmp_path: Path):
    assert not {MODULES.get(name, name) for name in required_packages(METADATA)} & set(BARRED)
    code = """
import importlib
for name in ("trispade", *{barred}):
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        print(name)
"""
    missing = run([python, "-c", code.format(barred=BARRED)], tmp_path).split()
    assert missing == ["trispade", *BARRED]


def test_three_commands_make_a_t1w_volume_of_a_freesurfer_segmentation(
    packaged: Path, python: Path, aparc_aseg: Path, tmp_path: Path
):
    verifier = ROOT / "pipeline" / "trispade" / "sharing" / "verify_bundle.py"
    for file in (packaged, packaged.with_name(f"{packaged.name}.sha256"), verifier):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    check, unpack, paint = documented_commands()
    assert "nothing that should not be there" in run([python, *shlex.split(check)[1:]], tmp_path)
    run([python, *shlex.split(unpack.removesuffix(f" && cd {FOLDER}"))[1:]], tmp_path)
    readme = (tmp_path / FOLDER / "README.md").read_text()
    (command,) = (line.strip() for line in readme.splitlines() if "monai.bundle run" in line)
    assert command.replace(SMOKE, "configs/inference.json") == paint
    arguments = [str(aparc_aseg) if each.endswith(".mgz") else each for each in shlex.split(command)]
    run([python, *arguments[1:]], tmp_path / FOLDER)

    volume = nib.load(tmp_path / FOLDER / "out" / "aparc+aseg_desc-synthetic_T1w.nii.gz")
    labels = nib.load(aparc_aseg)
    assert volume.shape == labels.shape
    np.testing.assert_allclose(volume.affine, labels.affine, atol=1e-5)
    inside = np.asarray(labels.dataobj) > 0
    assert np.asarray(volume.dataobj)[inside].std() > 0
    sidecar = json.loads((tmp_path / FOLDER / "out" / "aparc+aseg_desc-synthetic_T1w.json").read_text())
    assert sidecar["synthetic"] is True
