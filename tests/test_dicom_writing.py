from __future__ import annotations

import json
import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import itk
import nibabel as nib
import numpy as np
import pydicom
import pytest

from trispade.dicom_writing import write_dicom_series
from trispade.errors import InputError
from trispade.nifti import read_t1w

VOLUME = np.random.default_rng(0).uniform(0, 255, (7, 9, 11)).astype(np.float32)
HALF_A_STEP = 255 / 32767 / 2 + 1e-4


def oblique(orientation: str) -> np.ndarray:
    """Affine of a turned, anisotropic grid whose axes point as nearly as they do in `orientation`."""
    angle = 0.3
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    ornt = nib.orientations.axcodes2ornt(orientation)
    for axis, (to, sign) in enumerate(ornt):
        affine[:3, axis] = turn[:, int(to)] * sign * (1.0, 1.2, 1.5)[axis]
    affine[:3, 3] = (-20, 30, 5)
    return affine


def write(folder: Path, volume: np.ndarray = VOLUME, affine: np.ndarray | None = None) -> list[pydicom.FileDataset]:
    write_dicom_series(folder, volume, oblique("RAS") if affine is None else affine, (0, 255), {"synthetic": True})
    return [pydicom.dcmread(file) for file in sorted(folder.iterdir())]


def in_ras(volume: np.ndarray, affine: np.ndarray) -> nib.Nifti1Image:
    return nib.as_closest_canonical(nib.Nifti1Image(volume, affine))


@pytest.mark.parametrize("orientation", ["RAS", "LIA", "PSR", "LPS", "AIL"])
def test_a_series_that_is_read_back_has_each_voxel_at_its_place(tmp_path: Path, orientation: str) -> None:
    write(tmp_path / "a", VOLUME, oblique(orientation))
    found, expected = in_ras(*read_t1w(tmp_path / "a")), in_ras(VOLUME, oblique(orientation))
    np.testing.assert_allclose(found.affine, expected.affine, atol=1e-9)
    np.testing.assert_allclose(found.get_fdata(), expected.get_fdata(), atol=HALF_A_STEP)


def test_whole_numbers_come_back_exactly_and_without_a_rescale_slope(tmp_path: Path) -> None:
    volume = np.rint(VOLUME).astype(np.int16) - 100
    assert "RescaleSlope" not in write(tmp_path / "a", volume)[0]
    found = in_ras(*read_t1w(tmp_path / "a")).get_fdata()
    np.testing.assert_array_equal(found, in_ras(volume, oblique("RAS")).get_fdata())


def test_itks_reader_of_series_finds_the_same_volume(tmp_path: Path) -> None:
    write(tmp_path / "a")
    names = itk.GDCMSeriesFileNames.New(Directory=str(tmp_path / "a"))
    files = names.GetFileNames(names.GetSeriesUIDs()[0])
    reader = itk.ImageSeriesReader[itk.Image[itk.F, 3]].New(FileNames=files, ImageIO=itk.GDCMImageIO.New())
    reader.Update()
    image = reader.GetOutput()
    to_lps = np.eye(4)
    to_lps[:3, :3] = itk.array_from_matrix(image.GetDirection()) * np.array(image.GetSpacing())
    to_lps[:3, 3] = image.GetOrigin()
    volume, affine = read_t1w(tmp_path / "a")
    np.testing.assert_allclose(np.diag([-1, -1, 1, 1]) @ to_lps, affine, atol=1e-6)
    np.testing.assert_array_equal(itk.array_from_image(image).T, volume)


def test_each_file_says_that_it_is_synthetic_and_names_nobody(tmp_path: Path) -> None:
    slices = write(tmp_path / "a")
    assert len(slices) == 11
    for number, each in enumerate(slices, start=1):
        assert (each.SOPClassUID, each.Modality) == (pydicom.uid.MRImageStorage, "MR")
        assert each.SyntheticData == "YES"
        assert list(each.ImageType) == ["DERIVED", "SECONDARY", "OTHER"]
        assert "no scan of a person" in each.DerivationDescription
        assert each.ContributingEquipmentSequence[0].ManufacturerModelName == "trispade"
        assert str(each.PatientID).startswith("SYNTHETIC-")
        for keyword in ("PatientBirthDate", "PatientSex", "StudyDate", "AccessionNumber", "ReferringPhysicianName"):
            assert not each[keyword].value
        assert each.InstanceNumber == number
        assert each.ImagePositionPatient[2] == pytest.approx(5 + 1.5 * (number - 1))
        assert (float(each.WindowCenter), float(each.WindowWidth)) == (127.5, 255)
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "PatientID"):
        assert len({each[keyword].value for each in slices}) == 1
    assert len({each.SOPInstanceUID for each in slices}) == 11
    assert json.loads((tmp_path / "a.json").read_text()) == {"synthetic": True}


def test_the_same_volume_gives_the_same_files_and_another_one_other_uids(tmp_path: Path) -> None:
    first, again = write(tmp_path / "a"), write(tmp_path / "b")
    for one, other in zip(sorted((tmp_path / "a").iterdir()), sorted((tmp_path / "b").iterdir()), strict=True):
        assert one.read_bytes() == other.read_bytes()
    changed = VOLUME.copy()
    changed[0, 0, 0] += 1
    uids = [{each.SOPInstanceUID for each in series} for series in (first, again, write(tmp_path / "c", changed))]
    uids.append({each.SOPInstanceUID for each in write(tmp_path / "d", affine=oblique("LAS"))})
    assert uids[0] == uids[1]
    assert not uids[0] & uids[2]
    assert not uids[0] & uids[3]
    assert not {each.FrameOfReferenceUID for each in first} & {each.SeriesInstanceUID for each in first}


def test_a_new_series_takes_the_place_of_a_longer_one_and_of_what_a_killed_run_has_left(tmp_path: Path) -> None:
    write(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / ".partial-1-a")
    assert len(write(tmp_path / "a", VOLUME[:, :, :4])) == 4
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a", "a.json"]


def test_other_files_in_the_folder_are_not_removed(tmp_path: Path) -> None:
    write(tmp_path / "a")
    (tmp_path / "a" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"a: expected nothing but files of a series, got notes\.txt\. Move them"):
        write(tmp_path / "a")
    assert (tmp_path / "a" / "notes.txt").read_text() == "mine"


def test_nothing_is_left_of_a_series_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: pydicom.Dataset, path: Path, **_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pydicom.Dataset, "save_as", fail)
    with pytest.raises(InputError, match=r"a: expected a folder that can be written to, got No space left on device"):
        write(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_without_pydicom_one_line_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(
        InputError, match=r"a: expected pydicom, for DICOM, got none\. pip install pydicom \(the extra 'dicom'\)"
    ):
        write_dicom_series(tmp_path / "a", VOLUME, np.eye(4), (0, 255))


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy (Debian: dicom3tools) is not installed")
@pytest.mark.parametrize("volume", [VOLUME, VOLUME.astype(np.int16)], ids=["float32", "int16"])
def test_dciodvfy_finds_no_error_but_a_tag_that_is_younger_than_it(tmp_path: Path, volume: np.ndarray) -> None:
    write(tmp_path / "a", volume)
    for file in ("0001.dcm", "0011.dcm"):
        done = subprocess.run(["dciodvfy", "-new", str(tmp_path / "a" / file)], capture_output=True, text=True)
        assert "MRImage" in done.stderr
        errors = [line for line in done.stderr.splitlines() if line.startswith("Error") and "(0008,001c)" not in line]
        assert errors == []


@pytest.mark.parametrize("volume", [VOLUME, VOLUME.astype(np.int16)], ids=["float32", "int16"])
def test_a_file_has_what_the_standard_asks_of_an_mr_image_and_nothing_else(tmp_path: Path, volume: np.ndarray) -> None:
    # highdicom carries the standard's tables of modules and their attributes, as PS3.3 and PS3.4 have them.
    tables = files("highdicom") / "_standard"
    sop_classes, iods, modules = (
        json.loads((tables / f"{name}.json").read_text())
        for name in ("sop_class_iod_map", "iod_module_map", "module_attribute_map")
    )
    for file in write(tmp_path / "a", volume):
        assert sop_classes[file.SOPClassUID] == "mr-image"
        known = {"RescaleIntercept", "RescaleSlope", "RescaleType"}  # not of the MR image's own, see docs/formats.md
        for module in iods["mr-image"]:
            for attribute in modules[module["key"]]:
                known.add(attribute["keyword"])
                if module["usage"] == "M":
                    assert_is_there(file, attribute)
        assert {element.keyword for element in file} - known == set()
        assert {element.tag.is_private for element in file} == {False}
        for element in file.iterall():
            pydicom.DataElement(element.tag, element.VR, element.value, validation_mode=pydicom.config.RAISE)


def assert_is_there(dataset: pydicom.Dataset, attribute: dict[str, Any]) -> None:
    """Hold a dataset to the type of an attribute: 1, there and not empty; 2, there; others may be left out."""
    items = [dataset]
    for keyword in attribute["path"]:
        items = [below for item in items for below in item.get(keyword, [])]
    for item in items:
        if attribute["type"] in ("1", "2"):
            assert attribute["keyword"] in item, attribute
        if attribute["type"] == "1":
            assert not item[attribute["keyword"]].is_empty, attribute
