from __future__ import annotations

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
from trispade.labels import load_scheme
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

    path = save(data)["saved_to"]

    image, source = nib.load(path), nib.load(tmp_path / "a_dseg.nii.gz")
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
