from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from matplotlib.image import imread

from trispade.anatomies import embedded
from trispade.errors import InputError
from trispade.report.demo import DemoFiles, run_demo
from trispade.report.provenance import hashed

pytestmark = pytest.mark.usefixtures("log_handlers_kept")


@pytest.fixture
def anatomies(study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """Three phantoms in place of the embedded anatomies, at whose 1 mm it would take long."""
    folder = tmp_path / "package"
    folder.mkdir()
    rows = []
    for number in (1, 2, 3):
        content = study.label_map(f"0{number}").read_bytes()
        name = f"anatomy-{number}"
        (folder / f"{name}_dseg.nii.gz").write_bytes(content)
        rows.append({"name": name, "description": f"phantom {number}", "file": f"{name}_dseg.nii.gz", "sha256": ""})
        rows[-1] |= {"sources": [], "volume_ml": {"cortex": 500.0}, "highest_dice": {"cortex": {"affine": 0.4}}}
    (folder / embedded.TABLE).write_text(json.dumps({"anatomies": rows}))
    monkeypatch.setattr(embedded, "FOLDER", folder)
    return tuple(row["name"] for row in rows)


@pytest.fixture
def demo(study, anatomies: tuple[str, ...], tmp_path: Path) -> Callable[[], DemoFiles]:
    """Run the demonstration with the study's model; each run goes on in the same folder."""

    def run() -> DemoFiles:
        return run_demo(study.bundle, tmp_path / "demo", preset="smoke")

    return run


def test_the_demonstration_leaves_three_volumes_with_their_label_maps_a_picture_and_a_page(
    study, demo: Callable[[], DemoFiles], anatomies: tuple[str, ...], capsys: pytest.CaptureFixture[str]
):
    made = demo()
    for name, label_map, volume in zip(anatomies, made.label_maps, made.volumes, strict=True):
        assert volume.name == f"{name}_desc-synthetic_T1w.nii.gz"
        assert label_map.parent == volume.parent
        assert label_map.read_bytes() == (embedded.FOLDER / label_map.name).read_bytes()
        t1w, labels = nib.load(volume), nib.load(label_map)
        assert np.allclose(t1w.affine, labels.affine)
        assert np.ptp(t1w.get_fdata()[np.asarray(labels.dataobj) > 0]) > 1
        assert json.loads(volume.with_name(f"{name}_desc-synthetic_T1w.json").read_text())["synthetic"] is True
        assert name in made.page.read_text(encoding="utf-8")
    assert imread(made.picture).ndim == 3
    assert hashed("model.pt", study.model_file).sha256 in made.page.read_text(encoding="utf-8")
    told = capsys.readouterr()
    for number, name in enumerate(anatomies, start=1):
        assert f"volume {number} of 3: {name}, phantom {number}" in told.out
    assert "paint" in told.err  # the progress bar


def test_after_a_stop_finished_volumes_are_left_alone_and_the_rest_is_made(demo: Callable[[], DemoFiles]):
    made = demo()
    before = [volume.stat().st_mtime_ns for volume in made.volumes]
    made.volumes[1].unlink()
    made.page.unlink()
    made.label_maps[2].write_bytes(made.label_maps[0].read_bytes())  # no longer the anatomy
    again = demo()
    after = [volume.stat().st_mtime_ns for volume in again.volumes]
    assert after[0] == before[0]
    assert after[1] > before[1]
    assert after[2] == before[2]  # the label map is the anatomy's again, and so is the volume
    assert again.page.is_file()


def test_without_weights_one_line_says_how_to_get_some(study, anatomies: tuple[str, ...], tmp_path: Path):
    absent = tmp_path / "model.pt"
    with pytest.raises(
        InputError, match=r"model\.pt: expected trained weights, got no file .*--from-scratch"
    ) as raised:
        run_demo(study.bundle, tmp_path / "demo", model_file=absent)
    assert "trispade train" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "demo").exists()


def test_weights_of_another_voxel_size_are_refused(study, anatomies: tuple[str, ...], tmp_path: Path):
    with pytest.raises(InputError, match="spacing_mm"):
        run_demo(study.bundle, tmp_path / "demo", preset="smoke", spacing_mm=3.0)


def test_a_fusion_net_that_the_model_lacks_is_named(study, anatomies: tuple[str, ...], tmp_path: Path):
    with pytest.raises(InputError, match="expected a model with a fusion net 'realism'"):
        run_demo(study.bundle, tmp_path / "demo", "realism", "smoke")
