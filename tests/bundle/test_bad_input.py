"""Bad input, end to end: one clear line a case, the others still run, nothing half-written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from trispade.engines import load_checkpoint, save_checkpoint
from trispade.errors import InputError

pytestmark = pytest.mark.slow


def save(path: Path, array: np.ndarray, affine: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)


def save_with_raw_affine(path: Path, array: np.ndarray, affine: np.ndarray) -> None:
    """Write an affine that nibabel would refuse to write."""
    image = nib.Nifti1Image(array, np.eye(4))
    image.set_qform(None, 0)
    raw = bytearray(image.to_bytes())
    raw[280:328] = affine[:3].astype("<f4").tobytes()
    path.write_bytes(raw)


def sheared(affine: np.ndarray) -> np.ndarray:
    return affine @ np.array([[1, 0.2, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])


def scaled(affine: np.ndarray, *factors: float) -> np.ndarray:
    return affine @ np.diag([*factors, 1.0])


BAD_LABEL_MAPS: dict[str, tuple[str, Callable[[Path, np.ndarray, np.ndarray], object]]] = {
    "unreadable": ("expected a whole, readable NIfTI file", lambda path, *_: path.write_bytes(b"\x1f\x8b torn")),
    "text": ("expected a whole, readable NIfTI file", lambda path, *_: path.write_text("no image")),
    "four_d": ("expected a 3D volume, got 4D", lambda path, a, m: save(path, np.stack([a, a], -1), m)),
    "fractions": ("expected integer label ids", lambda path, a, m: save(path, a.astype(np.float32) * 0.9, m)),
    "empty": ("got an empty label map", lambda path, a, m: save(path, np.zeros_like(a), m)),
    "unknown": (r"label ids 19871, 19872 are not in scheme 'freesurfer'", lambda path, a, m: save(path, unknown(a), m)),
    "sheared": ("expected axes at right angles", lambda path, a, m: save_with_raw_affine(path, a, sheared(m))),
    "singular": (
        "an affine that can be inverted",
        lambda path, a, m: save_with_raw_affine(path, a, scaled(m, 1, 0, 1)),
    ),
    "fine": (
        r"expected voxels of 0.3 to 4.0 mm, got 0.2",
        lambda path, a, m: save(path, a, scaled(m, 0.05, 0.05, 0.05)),
    ),
    "coarse": (r"expected voxels of 0.3 to 4.0 mm, got 6", lambda path, a, m: save(path, a, scaled(m, 1.5, 1.5, 1.5))),
    "long": ("voxels at most 3 times as long as wide", lambda path, a, m: save(path, a, scaled(m, 0.25, 1, 1))),
}


def unknown(label_map: np.ndarray) -> np.ndarray:
    label_map = label_map.copy()
    label_map[label_map == 17] = 19871
    label_map[label_map == 53] = 19872
    return label_map


@pytest.fixture
def bad_folder(study, tmp_path: Path) -> Path:
    """A folder with one label map of each kind of fault, and two that are good, first and last."""
    image = nib.load(study.label_map())
    labels, affine = np.asarray(image.dataobj), image.affine
    folder = tmp_path / "in"
    for name in ("a_good", "z_good"):
        save(folder / f"{name}.nii.gz", labels, affine)
    for name, (_, write) in BAD_LABEL_MAPS.items():
        suffix = ".nii" if name in ("sheared", "singular", "text") else ".nii.gz"
        write(folder / f"{name}{suffix}", labels, affine)
    return folder


def written(folder: Path) -> list[str]:
    """The volumes and sidecars in a folder; a run of several cases leaves the table of its results beside them."""
    return sorted(file.name for file in folder.iterdir() if file.name != "results.tsv")


TWO_GOOD = [f"{case}_desc-synthetic_T1w{ending}" for case in ("a_good", "z_good") for ending in (".json", ".nii.gz")]


def test_each_bad_label_map_of_a_folder_is_one_line_at_the_end_and_the_good_ones_are_synthesized(
    study, bad_folder, output_of, tmp_path
):
    with pytest.raises(InputError) as caught:
        output_of(bad_folder)
    headline, *lines = str(caught.value).splitlines()
    assert headline == f"{len(BAD_LABEL_MAPS)} of {len(BAD_LABEL_MAPS) + 2} cases failed:"
    assert len(lines) == len(BAD_LABEL_MAPS)
    for name, (message, _) in BAD_LABEL_MAPS.items():
        (line,) = [line for line in lines if line.startswith(f"  - {name}: {bad_folder / name}.nii")]
        with pytest.raises(InputError, match=message):
            raise InputError(line)
    assert written(tmp_path / "out") == TWO_GOOD
    assert (tmp_path / "out" / "results.tsv").read_text().count("\tfailed\t") == len(BAD_LABEL_MAPS)


def test_missing_files_of_a_manifest_are_listed_and_the_others_synthesized(study, output_of, tmp_path):
    shutil.copytree(study.dataset_dir, tmp_path / "data")
    (tmp_path / "data" / "sub-04" / "anat" / "sub-04_dseg.nii.gz").unlink()
    with pytest.raises(InputError, match=r"1 of 2 cases failed:\n  - sub-04: .*sub-04_dseg.nii.gz: .* no file of this"):
        output_of(tmp_path / "data" / "phantoms.json", dataset_dir=tmp_path / "data", splits=["val", "test"])
    assert written(tmp_path / "out")[1:] == ["sub-05_desc-synthetic_T1w.nii.gz"]


def test_unknown_ids_are_background_if_asked_for(bad_folder, output_of):
    assert len(written(output_of(bad_folder / "unknown.nii.gz", unknown_labels="background"))) == 2


def test_an_output_folder_that_cannot_be_written_is_one_clear_line(study, output_of, tmp_path):
    (tmp_path / "out").write_text("a file in the way")
    with pytest.raises(InputError, match=r"out: expected a folder that can be written to, got File exists. Choose"):
        output_of(study.label_map())


def test_a_disk_that_fills_up_leaves_no_half_written_file(study, output_of, tmp_path, monkeypatch):
    def fill_up(image, path):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(nib, "save", fill_up)
    with pytest.raises(InputError, match=r"1 of 1 cases failed:\n  - sub-05: .* got No space left on device"):
        output_of(study.label_map())
    assert written(tmp_path / "out") == []


def test_a_model_of_another_vocabulary_or_preset_is_one_clear_line(study, output_of, tmp_path):
    with pytest.raises(InputError, match=r"model.pt: expected .* of shape .* weights differ\). Use the preset"):
        output_of(study.label_map(), ngf=8)
    with pytest.raises(InputError, match=r"expected a checkpoint with vocabulary 'malc_all' of .* got 'structures'"):
        output_of(study.label_map(), label_scheme="malc_all")
    with pytest.raises(
        InputError, match=r"model.pt: expected a checkpoint with spacing_mm 2.0, got 4.0. Use the preset"
    ):
        output_of(study.label_map(), spacing_mm=2.0)
    assert written(tmp_path / "out") == []


def test_a_torn_model_is_one_clear_line(study, output_of, tmp_path):
    shutil.copy(study.model_file, tmp_path / "model.pt")
    (tmp_path / "model.pt").write_bytes(study.model_file.read_bytes()[:5000])
    with pytest.raises(
        InputError, match=r"model.pt: expected a checkpoint written by trispade, got an unreadable file"
    ):
        output_of(study.label_map(), model_file=tmp_path / "model.pt")


def test_training_does_not_go_on_from_a_checkpoint_of_another_vocabulary_or_preset(study, tmp_path):
    stage = {"plane": "axial", "stage_dir": tmp_path / "spade_axial"}
    shutil.copytree(study.work_dir / "spade_axial", tmp_path / "spade_axial")
    with pytest.raises(InputError, match=r"last.pt: expected a checkpoint with architecture .*'ngf': 8"):
        study.run("train_spade", **stage, ngf=8)
    with pytest.raises(InputError, match=r"last.pt: expected a checkpoint with plane 'coronal', got 'axial'"):
        study.run("train_spade", **{**stage, "plane": "coronal"})
    content = load_checkpoint(tmp_path / "spade_axial" / "last.pt")
    content["record"]["vocabulary"]["name"] = "other"
    save_checkpoint(content, tmp_path / "spade_axial" / "last.pt")
    with pytest.raises(InputError, match=r"with vocabulary 'structures' of 25 classes, got 'other' of 25 classes"):
        study.run("train_spade", **stage)


@pytest.fixture
def data(study, tmp_path: Path) -> Path:
    """The phantoms, of which 04's scan has a NaN and 05's lies on another grid."""
    shutil.copytree(study.dataset_dir, tmp_path / "data")
    for person, spoil in (("04", with_nan), ("05", shifted)):
        path = tmp_path / "data" / f"sub-{person}" / "anat" / f"sub-{person}_T1w.nii.gz"
        image = nib.load(path)
        save(path, *spoil(image.get_fdata(dtype=np.float32), image.affine))
    return tmp_path / "data"


def with_nan(t1w: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    t1w[20, 20, 20] = np.nan
    return t1w, affine


def shifted(t1w: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    affine = affine.copy()
    affine[0, 3] += 1
    return t1w, affine


def test_bad_scans_are_listed_when_evaluation_comes_to_them(study, data, tmp_path):
    with pytest.raises(InputError) as caught:
        study.run(
            "evaluate",
            dataset_dir=data,
            manifest_file=data / "phantoms.json",
            splits=["val", "test"],
            unseen_splits=["fusion_train"],  # those of val are bad
            output_dir=tmp_path / "evaluation",
        )
    headline, *lines = str(caught.value).splitlines()
    assert headline == "2 of 2 cases failed:"
    assert "sub-04_T1w.nii.gz: expected finite intensities, got 1 voxels that are NaN or infinite" in lines[0]
    assert "sub-05_T1w.nii.gz: expected the affine of" in lines[1]
    assert not (tmp_path / "evaluation" / "metrics.csv").exists()


@pytest.mark.parametrize(("split", "person"), [("gan_train", "01, 02"), ("fusion_train", "03")])
def test_evaluation_refuses_people_whom_the_model_was_trained_on(study, tmp_path, split, person):
    with pytest.raises(
        InputError, match=rf"expected people whom the model has not seen, got {person}, on whom .*model.pt"
    ):
        study.run("evaluate", splits=[split, "test"], output_dir=tmp_path / "evaluation")
    assert not (tmp_path / "evaluation" / "metrics.csv").exists()


def test_scans_on_another_grid_are_known_before_anything_is_prepared(study, data, tmp_path):
    with pytest.raises(InputError, match=r"1 problem in the manifest .*\n.*sub-05_T1w.nii.gz: expected the affine of"):
        study.run("prepare", dataset_dir=data, manifest_file=data / "phantoms.json", cache_dir=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_bad_scan_is_listed_when_all_others_are_prepared(study, data, tmp_path):
    other_grid = Path("sub-05") / "anat" / "sub-05_T1w.nii.gz"
    shutil.copy2(study.dataset_dir / other_grid, data / other_grid)
    shutil.copytree(study.work_dir / "cache", tmp_path / "cache")
    shutil.rmtree(next((tmp_path / "cache").glob("sub-05-*")))
    with pytest.raises(InputError, match=r"1 of 5 cases could not be prepared:\n  - sub-04: .* expected finite intens"):
        study.run("prepare", dataset_dir=data, manifest_file=data / "phantoms.json", cache_dir=tmp_path / "cache")
    assert list((tmp_path / "cache").glob("sub-05-*/case.json"))


def test_monais_command_ends_with_one_line_for_each_bad_case_and_a_code_that_is_not_zero(study, bad_folder, tmp_path):
    for name in BAD_LABEL_MAPS:
        if name not in ("four_d", "empty"):
            next(bad_folder.glob(f"{name}.nii*")).unlink()
    configs = study.bundle / "configs"
    command = [sys.executable, "-m", "monai.bundle", "run"]
    command += ["--config_file", f"['{configs / 'inference.yaml'}','{configs / 'presets' / 'smoke.yaml'}']"]
    command += ["--bundle_root", str(study.bundle), "--input", str(bad_folder), "--output_dir", str(tmp_path / "out")]
    command += ["--logging_file", str(configs / "logging.conf"), "--meta_file", str(configs / "metadata.json")]
    package = Path(__file__).parents[2] / "pipeline"
    environment = {**os.environ, "PYTHONPATH": str(package), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path)
    assert result.returncode == 1, result.stderr
    assert "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-3:] == [
        "trispade: 2 of 4 cases failed:",
        f"  - empty: {bad_folder / 'empty.nii.gz'}: expected at least one labelled voxel, got an empty label map."
        " Check how the file was made.",
        f"  - four_d: {bad_folder / 'four_d.nii.gz'}: expected a 3D volume, got 4D of shape 48 x 56 x 48 x 2."
        " Choose one volume and save it alone.",
    ]
    assert written(tmp_path / "out") == TWO_GOOD
    assert json.loads((tmp_path / "out" / TWO_GOOD[0]).read_text())["synthetic"] is True
