from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from trispade.errors import InputError
from trispade.inference import leave_finished_out, list_label_maps
from trispade.nifti import read_t1w
from trispade.transforms import LoadLabelMapd, SaveSyntheticd, output_files

AFFINE = np.array([[-1.0, 0, 0, 10], [0, -1.2, 0, 20], [0, 0, 1.5, -30], [0, 0, 0, 1]])
LABELS = np.zeros((5, 6, 7), np.int16)
LABELS[1:4, 2:5, 1:3] = 17
MODEL = {"sha256": "5a"}


def synthetic_case(folder: Path, name: str = "sub-01_ses-2_dseg.nii.gz") -> dict[str, object]:
    nib.save(nib.Nifti1Image(LABELS, AFFINE), folder / name)
    data = LoadLabelMapd("image")({"image": str(folder / name)})
    pred = torch.linspace(-1, 1, LABELS.size).reshape(data["image"].shape)
    return {**data, "pred": MetaTensor(pred, meta=dict(data["image"].meta))}


def saver(folder: Path, output_format: str, **options: object) -> SaveSyntheticd:
    return SaveSyntheticd("pred", folder / "out", record=MODEL, output_format=output_format, **options)


@pytest.mark.parametrize("dtype", ["float32", "int16"])
@pytest.mark.parametrize("output_format", ["nifti", "mgz", "dicom", "bids"])
def test_every_format_holds_the_same_volume_on_the_same_grid(tmp_path: Path, output_format: str, dtype: str) -> None:
    data = synthetic_case(tmp_path)
    path = saver(tmp_path, output_format, dtype=dtype)(data)["saved_to"]
    volume, affine = read_t1w(path)
    exact = dtype == "int16" or output_format != "dicom"
    expected = saver(tmp_path, "nifti", dtype=dtype).to_value_range(data["pred"].numpy()[0])
    np.testing.assert_allclose(volume, expected, atol=1e-5 if exact else 255 / 32767 / 2 + 1e-4)
    np.testing.assert_allclose(affine, AFFINE, atol=1e-6)


@pytest.mark.parametrize(
    ("output_format", "names"),
    [
        ("nifti", ("c_desc-synthetic_T1w.nii.gz", "c_desc-synthetic_T1w.json")),
        ("mgz", ("c_desc-synthetic_T1w.mgz", "c_desc-synthetic_T1w.mgz.json")),
        ("dicom", ("c_desc-synthetic_T1w.dicom", "c_desc-synthetic_T1w.dicom.json")),
        ("bids", ("sub-c/anat/sub-c_desc-synthetic_T1w.nii.gz", "sub-c/anat/sub-c_desc-synthetic_T1w.json")),
    ],
)
def test_a_case_is_finished_and_made_again_in_every_format_by_itself(tmp_path, output_format, names) -> None:
    assert output_files("out", "c", output_format) == tuple(Path("out") / name for name in names)
    data = {**synthetic_case(tmp_path, "c.nii.gz"), "case_id": "c"}
    save = saver(tmp_path, output_format)
    assert not save.is_finished("c", tmp_path / "c.nii.gz")
    for _ in range(2):
        save(data)
        assert save.is_finished("c", tmp_path / "c.nii.gz")
        assert not save.is_in_the_way("c")
    others = [other for other in ("nifti", "mgz", "dicom", "bids") if other != output_format]
    assert not any(saver(tmp_path, other).is_finished("c", tmp_path / "c.nii.gz") for other in others)
    (tmp_path / "out" / names[1]).unlink()
    assert save.is_in_the_way("c")


def test_a_stop_between_sidecar_and_series_leaves_no_old_series_that_counts_as_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = synthetic_case(tmp_path)
    saver(tmp_path, "dicom")(data)
    rename = Path.rename

    def stop_at_the_series(self: Path, target: Path) -> Path:
        if self.is_dir() and Path(target).suffix == ".dicom" and not Path(target).name.startswith("."):
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", stop_at_the_series)
    other = saver(tmp_path, "dicom", value_range=(0, 1))
    with pytest.raises(KeyboardInterrupt):
        other(data)
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["sub-01_ses-2_desc-synthetic_T1w.dicom.json"]


@pytest.mark.parametrize(
    ("case_id", "place"),
    [
        ("sub-01", "sub-01/anat/sub-01"),
        ("sub-01_ses-2", "sub-01/ses-2/anat/sub-01_ses-2"),
        ("sub-01_acq-x_run-1", "sub-01/anat/sub-01_acq-x_run-1"),
        ("sub-01_desc-manual", "sub-01descmanual/anat/sub-01descmanual"),
        ("sub-1_mri_aparc+aseg", "sub-1mriaparcaseg/anat/sub-1mriaparcaseg"),
        ("person7", "sub-person7/anat/sub-person7"),
    ],
)
def test_a_case_gets_a_name_of_bids(case_id: str, place: str) -> None:
    assert output_files("out", case_id, "bids")[0] == Path(f"out/{place}_desc-synthetic_T1w.nii.gz")


def test_a_case_that_bids_has_no_name_for_and_two_of_one_name_are_input_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\+: expected a case whose name has letters or digits, for BIDS, got none"):
        output_files("out", "+", "bids")
    cases = [{"case_id": name, "image": str(tmp_path / name)} for name in ("a_b", "ab")]
    with pytest.raises(InputError, match=r"expected a name for each case, got a_b and ab under sub-ab_desc-synthetic"):
        leave_finished_out(cases, saver(tmp_path, "bids"), overwrite=True)
    assert len(leave_finished_out(cases, saver(tmp_path, "nifti"), overwrite=True)) == 2


def test_a_bids_data_set_says_what_made_it_and_another_one_is_left_alone(tmp_path: Path) -> None:
    save = saver(tmp_path, "bids")
    save(synthetic_case(tmp_path))
    description_file = tmp_path / "out" / "dataset_description.json"
    description = json.loads(description_file.read_text())
    assert description["DatasetType"] == "derivative"
    assert description["GeneratedBy"][0]["Name"] == "trispade"
    sidecar = json.loads(save.files_of("sub-01_ses-2")[1].read_text())
    assert sidecar["SkullStripped"] is True
    with pytest.raises(InputError, match="expected a folder with label maps"):
        list_label_maps(tmp_path / "out")  # what was painted is no input
    for content in ('{"Name": "mine"}', "torn {"):
        description_file.write_text(content)
        with pytest.raises(
            InputError, match=r"out: expected a folder that is no data set yet, got one with a dataset_"
        ):
            save(synthetic_case(tmp_path))
        assert description_file.read_text() == content


def test_another_format_is_an_input_error_and_so_is_dicom_without_pydicom(tmp_path, monkeypatch) -> None:
    with pytest.raises(InputError, match="output_format: expected one of nifti, mgz, dicom, bids, got 'png'"):
        saver(tmp_path, "png")
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(InputError, match=r"output_format dicom: expected pydicom, for DICOM, got none\. pip install"):
        saver(tmp_path, "dicom")


def test_an_mgz_is_the_same_bytes_each_time(tmp_path: Path) -> None:
    data, save = synthetic_case(tmp_path), saver(tmp_path, "mgz")
    path = Path(save(data)["saved_to"])
    shutil.move(path, tmp_path / "first.mgz")
    assert Path(save(data)["saved_to"]).read_bytes() == (tmp_path / "first.mgz").read_bytes()
