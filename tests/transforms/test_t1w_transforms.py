from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose

import trispade
from trispade.errors import InputError
from trispade.labels import LabelScheme, load_scheme
from trispade.transforms import (
    CorrectBiasd,
    FillBraind,
    LoadLabelMapd,
    LoadT1wd,
    MapLabelsd,
    MaskBackgroundd,
    SaveSyntheticd,
    ScaleIntensityd,
    ToWorkingGridd,
)

MALC = Path(os.environ.get("TRISPADE_TEST_DATA", Path(__file__).parents[3] / "shared/data")) / "malc2012"
AFFINE = np.array([[-4.0, 0, 0, 60], [0, 4.0, 0, -50], [0, 0, 4.0, -40], [0, 0, 0, 1]])
WM, CORTEX = 2, 3


def write_case(folder: Path) -> dict[str, str]:
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, extent) for extent in (30, 34, 28)), indexing="ij")
    radius = np.sqrt(x**2 + y**2 + z**2)
    labels = np.select([radius < 0.6, radius < 0.85], [WM, CORTEX], 0).astype(np.int16)
    noise = np.random.default_rng(0).normal(size=labels.shape)
    t1w = np.select([radius < 0.6, radius < 0.85, radius < 0.95], [900.0, 560.0, 80.0], 0) * np.exp(0.3 * x)
    t1w = np.maximum(t1w + 10 * noise * (t1w > 0), 0)
    paths = {"label_map": str(folder / "a_dseg.nii.gz"), "t1w": str(folder / "a_T1w.nii.gz")}
    nib.save(nib.Nifti1Image(labels, AFFINE), paths["label_map"])
    nib.save(nib.Nifti1Image(t1w.astype(np.float32), AFFINE), paths["t1w"])
    return paths


def preparation(scheme: str, spacing_mm: float) -> Compose:
    return Compose(
        [
            LoadLabelMapd("label_map"),
            MapLabelsd("label_map", scheme),
            LoadT1wd("t1w", "label_map"),
            CorrectBiasd("t1w", "label_map", scheme),
            ScaleIntensityd("t1w", "label_map", scheme),
            ToWorkingGridd(("label_map", "t1w"), "label_map", spacing_mm),
            FillBraind("label_map", scheme),
            MaskBackgroundd("t1w", "label_map"),
        ]
    )


def test_a_case_is_prepared_to_tissue_values_and_exactly_minus_one_outside_the_brain(tmp_path: Path) -> None:
    data = preparation("freesurfer", 4.0)(write_case(tmp_path))

    t1w, label_map = data["t1w"].as_tensor(), data["label_map"].as_tensor()
    vocabulary = load_scheme("freesurfer").vocabulary
    white = t1w[label_map == vocabulary.index("cerebral_white_matter")]
    assert t1w.dtype == torch.float32
    assert t1w.shape == label_map.shape
    assert float(white.median()) == pytest.approx(0.6, abs=0.01)
    assert float(white.std()) < 0.08
    assert (t1w[label_map == 0] == -1).all()
    assert (t1w[label_map > 0] > -1).all()
    assert data["intensity_scaling"]["offset"] == -1.0
    assert data["intensity_scaling"]["gain"] == pytest.approx(1.6 / 900, rel=0.1)


def test_a_scan_on_another_grid_than_its_labels_is_an_input_error(tmp_path: Path) -> None:
    case = write_case(tmp_path)
    t1w = nib.load(case["t1w"])
    nib.save(nib.Nifti1Image(np.asarray(t1w.dataobj), AFFINE + np.eye(4)[[3, 3, 3, 0]]), case["t1w"])
    with pytest.raises(InputError, match=r"a_T1w.nii.gz: expected the affine of .*a_dseg.nii.gz"):
        LoadT1wd("t1w", "label_map")(LoadLabelMapd("label_map")(case))


def test_a_scan_without_signal_in_the_brain_names_its_file(tmp_path: Path) -> None:
    case = write_case(tmp_path)
    t1w = np.zeros((30, 34, 28), np.float32)
    t1w[0, 0, 0] = 1
    nib.save(nib.Nifti1Image(t1w, AFFINE), case["t1w"])
    loaded = MapLabelsd("label_map", "freesurfer")(LoadLabelMapd("label_map")(case))
    loaded = LoadT1wd("t1w", "label_map")(loaded)
    with pytest.raises(InputError, match=r"a_T1w.nii.gz: expected white matter brighter than zero"):
        ScaleIntensityd("t1w", "label_map", "freesurfer")(loaded)
    with pytest.raises(InputError, match=r"a_T1w.nii.gz: expected signal inside the brain mask"):
        CorrectBiasd("t1w", "label_map", "freesurfer")(loaded)


def test_masking_uses_the_value_it_is_given() -> None:
    label_map = MetaTensor(torch.tensor([0, 3, 1, 0]).reshape(1, 2, 2, 1))
    t1w = MetaTensor(torch.arange(4.0).reshape(1, 2, 2, 1))
    masked = MaskBackgroundd("t1w", "label_map", value=-7)({"t1w": t1w, "label_map": label_map})["t1w"]
    assert masked.flatten().tolist() == [-7.0, 1.0, 2.0, -7.0]
    assert t1w.flatten().tolist() == [0.0, 1.0, 2.0, 3.0]


def synthetic_case(folder: Path) -> dict[str, object]:
    data = LoadLabelMapd("image")({"image": write_case(folder)["label_map"]})
    pred = torch.where(data["image"].as_tensor() > 0, 0.5, -1.0)
    data["pred"] = MetaTensor(pred, meta=dict(data["image"].meta))
    return data


@pytest.mark.parametrize(
    ("dtype", "value_range", "brain"),
    [("float32", (0, 255), 191.25), ("int16", (0, 255), 191), ("int16", (-100, 300), 200)],
)
def test_a_synthetic_volume_is_written_on_the_input_grid_in_its_range(
    tmp_path: Path, dtype: str, value_range: tuple[int, int], brain: float
) -> None:
    data = synthetic_case(tmp_path)
    save = SaveSyntheticd("pred", tmp_path / "out", value_range=value_range, dtype=dtype)

    result = save(data)

    path = result["saved_to"]
    image, source = nib.load(path), nib.load(tmp_path / "a_dseg.nii.gz")
    np.testing.assert_array_equal(result["pred"][0], np.asarray(image.dataobj, np.float32))
    np.testing.assert_array_equal(result["pred"].affine, data["pred"].affine)
    assert Path(path) == tmp_path / "out" / "a_desc-synthetic_T1w.nii.gz"
    assert image.get_data_dtype() == np.dtype(dtype)
    np.testing.assert_array_equal(image.affine, source.affine)
    assert image.header["sform_code"] == source.header["sform_code"]
    expected = np.where(np.asarray(source.dataobj) > 0, brain, value_range[0])
    np.testing.assert_allclose(np.asarray(image.dataobj), expected, atol=1e-4)


def test_the_sidecar_says_what_the_volume_is(tmp_path: Path) -> None:
    save = SaveSyntheticd("pred", tmp_path / "out", record={"preset": "compact"}, scheme="freesurfer")
    save(synthetic_case(tmp_path))

    sidecar = json.loads((tmp_path / "out" / "a_desc-synthetic_T1w.json").read_text())

    assert sidecar["synthetic"] is True
    assert sidecar["Sources"] == [str(tmp_path / "a_dseg.nii.gz")]
    assert sidecar["GeneratedBy"] == [{"Name": "trispade", "Version": trispade.__version__}]
    assert sidecar["ValueRange"] == [0, 255]
    assert sidecar["Model"] == {"preset": "compact"}
    assert sidecar["LabelScheme"] == "freesurfer"
    assert sidecar["SourceSha256"] == hashlib.sha256((tmp_path / "a_dseg.nii.gz").read_bytes()).hexdigest()


MODEL = {"file": "model.pt", "sha256": "5a", "preset": "compact"}


def saver(folder: Path, **changes: object) -> SaveSyntheticd:
    options = {"record": MODEL, "scheme": "freesurfer", "settings": {"unknown_labels": "error"}}
    return SaveSyntheticd("pred", folder / "out", **{**options, **changes})


def test_a_case_is_finished_when_its_volume_and_sidecar_are_there(tmp_path: Path) -> None:
    data, source = synthetic_case(tmp_path), tmp_path / "a_dseg.nii.gz"
    assert not saver(tmp_path).is_finished("a", source)
    volume = Path(saver(tmp_path)(data)["saved_to"])
    assert saver(tmp_path).is_finished("a", source)
    assert saver(tmp_path, record={**MODEL, "file": "renamed.pt"}).is_finished("a", source)
    volume.unlink()
    assert not saver(tmp_path).is_finished("a", source)


@pytest.mark.parametrize(
    "changes",
    [
        {"record": {**MODEL, "sha256": "5b"}},
        {"record": None},
        {"scheme": "synthseg"},
        {"settings": {"unknown_labels": "background"}},
        {"value_range": (0, 1)},
        {"dtype": "int16"},
    ],
)
def test_a_volume_of_another_model_scheme_or_setting_is_not_finished(tmp_path: Path, changes: dict) -> None:
    saver(tmp_path)(synthetic_case(tmp_path))
    assert not saver(tmp_path, **changes).is_finished("a", tmp_path / "a_dseg.nii.gz")


def test_a_volume_of_a_scheme_whose_table_has_changed_since_is_not_finished(tmp_path: Path) -> None:
    table, source = tmp_path / "own.tsv", tmp_path / "a_dseg.nii.gz"
    table.with_suffix(".json").write_text('{"vocabulary": "structures"}')
    table.write_text("id\tname\tclass\n2\twhite\tcerebral_white_matter\n")
    first = load_scheme(table)
    saver(tmp_path, scheme=first)(synthetic_case(tmp_path))
    assert saver(tmp_path, scheme=first).is_finished("a", source)
    changed = LabelScheme(first.name, first.path, first.vocabulary, {**first.ids, 3: 2})
    assert not saver(tmp_path, scheme=changed).is_finished("a", source)


def test_a_volume_of_a_label_map_that_has_changed_since_or_is_gone_is_not_finished(tmp_path: Path) -> None:
    source = tmp_path / "a_dseg.nii.gz"
    saver(tmp_path)(synthetic_case(tmp_path))
    os.utime(source, (0, 0))
    assert saver(tmp_path).is_finished("a", source)
    source.write_bytes(source.read_bytes() + b"more")
    assert not saver(tmp_path).is_finished("a", source)
    source.unlink()
    assert not saver(tmp_path).is_finished("a", source)


def test_nothing_counts_as_finished_while_the_hash_of_the_model_is_not_known(tmp_path: Path) -> None:
    save = saver(tmp_path, record={**MODEL, "sha256": None})
    save(synthetic_case(tmp_path))
    assert not save.is_finished("a", tmp_path / "a_dseg.nii.gz")


def test_a_stop_between_sidecar_and_volume_leaves_no_old_volume_that_counts_as_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = synthetic_case(tmp_path)
    saver(tmp_path)(data)
    other = saver(tmp_path, value_range=(0, 1))
    replace = Path.replace

    def stop_at_the_volume(self: Path, target: Path) -> Path:
        if self.name.endswith(".nii.gz"):
            raise KeyboardInterrupt
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", stop_at_the_volume)
        with pytest.raises(KeyboardInterrupt):
            other(data)
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["a_desc-synthetic_T1w.json"]
    assert not other.is_finished("a", tmp_path / "a_dseg.nii.gz")
    assert not other.is_in_the_way("a")


@pytest.mark.parametrize("sidecar", [None, "{}", "torn {", "[1]", '{"synthetic": true, "GeneratedBy": ["other"]}'])
def test_a_volume_that_trispade_did_not_make_is_in_the_way(tmp_path: Path, sidecar: str | None) -> None:
    volume = Path(saver(tmp_path)(synthetic_case(tmp_path))["saved_to"])
    sidecar_file = volume.with_name("a_desc-synthetic_T1w.json")
    assert not saver(tmp_path).is_in_the_way("a")
    assert not saver(tmp_path).is_in_the_way("b")
    sidecar_file.unlink() if sidecar is None else sidecar_file.write_text(sidecar)
    assert saver(tmp_path).is_in_the_way("a")
    assert not saver(tmp_path).is_finished("a", tmp_path / "a_dseg.nii.gz")


def test_a_case_id_names_the_output(tmp_path: Path) -> None:
    data = {**synthetic_case(tmp_path), "case_id": "person7"}
    assert Path(SaveSyntheticd("pred", tmp_path)(data)["saved_to"]).name == "person7_desc-synthetic_T1w.nii.gz"


def test_nothing_is_left_when_the_image_cannot_be_written(tmp_path: Path, monkeypatch) -> None:
    data = synthetic_case(tmp_path)

    def fail(image: nib.Nifti1Image, path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(nib, "save", fail)
    with pytest.raises(InputError, match="expected a folder that can be written to, got No space left on device"):
        SaveSyntheticd("pred", tmp_path / "out")(data)
    assert list((tmp_path / "out").iterdir()) == []


def test_an_output_folder_that_cannot_be_made_is_an_input_error(tmp_path: Path) -> None:
    data = synthetic_case(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="expected a folder that can be written to"):
        SaveSyntheticd("pred", tmp_path / "file")(data)


def test_settings_that_no_file_can_hold_are_input_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="dtype: expected float32 or int16, got 'uint8'"):
        SaveSyntheticd("pred", tmp_path, dtype="uint8")
    with pytest.raises(InputError, match="value_range: expected two rising values that int16 holds"):
        SaveSyntheticd("pred", tmp_path, value_range=(0, 40000), dtype="int16")
    with pytest.raises(InputError, match="value_range: expected two rising values"):
        SaveSyntheticd("pred", tmp_path, value_range=(1, 1))


@pytest.mark.real_data
@pytest.mark.skipif(not MALC.is_dir(), reason=f"MALC 2012 is not at {MALC}")
def test_a_malc_scan_is_prepared_at_two_millimetres() -> None:
    stem = MALC / "sub-0091/ses-1/anat/sub-0091_ses-1"
    case = {"label_map": f"{stem}_dseg.nii.gz", "t1w": f"{stem}_desc-brain_T1w.nii.gz"}

    data = preparation("neuromorphometrics", 2.0)(case)

    t1w, label_map = data["t1w"].as_tensor(), data["label_map"].as_tensor()
    names = load_scheme("neuromorphometrics").vocabulary.names
    medians = {name: float(t1w[label_map == index].median()) for index, name in enumerate(names) if index in label_map}
    assert t1w.shape == (1, 96, 96, 96)
    assert medians["cerebral_white_matter"] == pytest.approx(0.6, abs=0.03)
    assert medians["cerebral_cortex"] == pytest.approx(0.0, abs=0.08)
    assert medians["lateral_ventricle"] < -0.3
    assert medians["caudate"] < medians["putamen"] < medians["thalamus"] < medians["cerebral_white_matter"]
