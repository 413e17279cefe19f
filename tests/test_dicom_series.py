from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.uid import generate_uid

from trispade.data.cache import _describe
from trispade.dicom_series import open_dicom_series
from trispade.dicom_writing import write_dicom_series
from trispade.digests import sha256_of
from trispade.errors import InputError
from trispade.manifests import read_manifest
from trispade.nifti import header_of, read_t1w, write_nifti
from trispade.transforms import LoadLabelMapd, LoadT1wd

VOLUME = np.arange(1, 5 * 6 * 7 + 1, dtype=np.int16).reshape(5, 6, 7)
AFFINE = np.array([[-1.0, 0, 0, 10], [0, -1.2, 0, 20], [0, 0, 1.5, -30], [0, 0, 0, 1]])


@pytest.fixture
def series(tmp_path: Path) -> Path:
    """Seven slices, 1.5 mm apart, left, posterior and superior, so that arrays come back in their order."""
    write_dicom_series(tmp_path / "t1w", VOLUME, AFFINE, (0, 255))
    return tmp_path / "t1w"


def change(file: Path, **fields: object) -> None:
    dataset = pydicom.dcmread(file)
    for keyword, value in fields.items():
        setattr(dataset, keyword, value)
    dataset.save_as(file)


def test_a_series_is_read_as_a_nifti_of_the_same_voxels_is(series: Path, tmp_path: Path) -> None:
    write_nifti(tmp_path / "a.nii.gz", VOLUME, AFFINE, dtype=np.int16)
    for (volume, affine), read in zip((read_t1w(series), read_t1w(tmp_path / "a.nii.gz")), "ab", strict=True):
        assert volume.dtype == np.float32, read
        np.testing.assert_array_equal(volume, VOLUME)
        np.testing.assert_allclose(affine, AFFINE, atol=1e-6)
    assert header_of(series)[0] == VOLUME.shape


def test_slices_are_put_in_order_by_their_place_and_not_by_name_or_number(series: Path) -> None:
    files = sorted(series.iterdir())
    for number, file in enumerate(files):
        change(file, InstanceNumber=(number * 3) % 7)
        file.rename(series / f"{'fbagdce'[number]}")
    (series / "notes.txt").write_text("no DICOM")
    np.testing.assert_array_equal(read_t1w(series)[0], VOLUME)


def test_slices_against_the_direction_of_the_normal_are_turned_round_with_their_affine(series: Path) -> None:
    for file in series.iterdir():
        change(file, ImageOrientationPatient=[-1, 0, 0, 0, 1, 0])
    volume, affine = read_t1w(series)
    np.testing.assert_array_equal(volume, VOLUME[:, :, ::-1])
    np.testing.assert_allclose(affine[:3, 2], (0, 0, -1.5))
    assert affine[2, 3] == pytest.approx(-30 + 6 * 1.5)


def test_a_stored_rescaling_is_applied(series: Path) -> None:
    for file in series.iterdir():
        change(file, RescaleSlope="0.5", RescaleIntercept="3")
    np.testing.assert_allclose(read_t1w(series)[0], VOLUME * 0.5 + 3)


def test_a_series_is_a_scan_for_training_where_its_grid_is_that_of_the_label_map(series: Path, tmp_path: Path) -> None:
    write_nifti(tmp_path / "dseg.nii.gz", VOLUME, AFFINE, dtype=np.int16)
    data = LoadLabelMapd("label_map")({"label_map": str(tmp_path / "dseg.nii.gz"), "t1w": str(series)})
    t1w = LoadT1wd("t1w", "label_map")(data)["t1w"]
    np.testing.assert_array_equal(t1w.numpy()[0], VOLUME)
    row = {"case_id": "a", "person_id": "a", "split": "gan_train", "label": "dseg.nii.gz", "image": "t1w"}
    (tmp_path / "m.json").write_text(json.dumps({"name": "d", "label_scheme": "freesurfer", "training": [row]}))
    assert read_manifest(tmp_path / "m.json", tmp_path).cases[0].image == series


@pytest.mark.parametrize("orientation", ["LPS", "RAS", "PIR"])
def test_a_series_comes_in_the_order_of_its_label_map_and_without_slices_that_this_leaves_out(
    series: Path, tmp_path: Path, orientation: str
) -> None:
    cut = nib.Nifti1Image(VOLUME[1:, :, 2:6], AFFINE @ nib.affines.from_matvec(np.eye(3), (1, 0, 2)))
    turn = nib.orientations.ornt_transform(nib.io_orientation(AFFINE), nib.orientations.axcodes2ornt(orientation))
    nib.save(cut.as_reoriented(turn), tmp_path / "dseg.nii.gz")
    data = LoadLabelMapd("label_map")({"label_map": str(tmp_path / "dseg.nii.gz"), "t1w": str(series)})
    t1w = LoadT1wd("t1w", "label_map")(data)["t1w"]
    np.testing.assert_array_equal(t1w.numpy(), data["label_map"].numpy())
    np.testing.assert_array_equal(t1w.affine, data["label_map"].affine)
    row = {"case_id": "a", "person_id": "a", "split": "gan_train", "label": "dseg.nii.gz", "image": "t1w"}
    (tmp_path / "m.json").write_text(json.dumps({"name": "d", "label_scheme": "freesurfer", "training": [row]}))
    assert len(read_manifest(tmp_path / "m.json", tmp_path).cases) == 1


@pytest.mark.parametrize("moved", [(0.5, 0, 0), (-1, 0, 0), (0, 0, 1)])
def test_a_series_that_does_not_have_every_voxel_of_its_label_map_is_refused(
    series: Path, tmp_path: Path, moved: tuple[float, ...]
) -> None:
    write_nifti(tmp_path / "dseg.nii.gz", VOLUME, AFFINE @ nib.affines.from_matvec(np.eye(3), moved), dtype=np.int16)
    data = LoadLabelMapd("label_map")({"label_map": str(tmp_path / "dseg.nii.gz"), "t1w": str(series)})
    with pytest.raises(
        InputError, match=r"t1w: expected the affine of .*dseg\.nii\.gz, got one that differs from it by"
    ):
        LoadT1wd("t1w", "label_map")(data)


def test_the_hash_of_a_series_changes_with_each_of_its_files(series: Path) -> None:
    before, known = sha256_of(series), _describe(series)
    assert _describe(series, known) == known
    change(series / "0003.dcm", ImageComments="other")
    assert sha256_of(series) != before
    assert _describe(series, known)["sha256"] == sha256_of(series)


def without_files(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


def of_two_series(folder: Path) -> None:
    for name in ("0001.dcm", "0002.dcm"):
        change(folder / name, SeriesInstanceUID="1.2.3")


def with_a_slice_missing(folder: Path) -> None:
    (folder / "0004.dcm").unlink()


def with_a_slice_moved(folder: Path) -> None:
    change(folder / "0002.dcm", ImagePositionPatient=[-10, -20, -28.3])


def with_two_slices_at_one_place(folder: Path) -> None:
    change(folder / "0002.dcm", SOPInstanceUID=generate_uid(), ImagePositionPatient=[-10, -20, -30])


def with_a_slice_turned(folder: Path) -> None:
    change(folder / "0002.dcm", ImageOrientationPatient=[0, 1, 0, 1, 0, 0])


def of_computed_tomography(folder: Path) -> None:
    for file in folder.iterdir():
        change(file, Modality="CT")


def of_frames(folder: Path) -> None:
    for file in folder.iterdir():
        change(file, NumberOfFrames=2, PixelData=pydicom.dcmread(file).PixelData * 2)


def without_position(folder: Path) -> None:
    dataset = pydicom.dcmread(folder / "0002.dcm")
    del dataset.ImagePositionPatient
    dataset.save_as(folder / "0002.dcm")


def of_one_slice(folder: Path) -> None:
    for number in range(2, 8):
        (folder / f"000{number}.dcm").unlink()


def torn(folder: Path) -> None:
    file = folder / "0007.dcm"
    file.write_bytes(file.read_bytes()[:-30])


def of_two_samples_a_pixel(folder: Path) -> None:
    file = folder / "0002.dcm"
    tag = b"\x28\x00\x02\x00US\x02\x00"
    assert file.read_bytes().count(tag + b"\x01") == 1
    file.write_bytes(file.read_bytes().replace(tag + b"\x01", tag + b"\x02"))


def sheared(folder: Path) -> None:
    for number in range(7):
        change(folder / f"000{number + 1}.dcm", ImagePositionPatient=[-10, -20 + 0.3 * number, -30 + 1.5 * number])


def too_thick(folder: Path) -> None:
    for number in range(7):
        change(folder / f"000{number + 1}.dcm", ImagePositionPatient=[-10, -20, -30 + 5 * number])


BAD_SERIES: dict[Callable[[Path], None], str] = {
    without_files: r"expected a folder with one DICOM series, got a folder without DICOM files\. Check the path",
    of_two_series: r"expected one DICOM series, got 2, of 5 and 2 files\. Put the T1w into a folder of its own",
    with_a_slice_missing: r"slices at even distances, none missing, got 3 mm between 0003.dcm and 0005.dcm, 1.5 mm",
    with_a_slice_moved: r"slices at even distances, none missing, got 1.7 mm between 0001.dcm and 0002.dcm",
    with_two_slices_at_one_place: r"expected one slice at each place, got 000\d.dcm and 000\d.dcm at the same place",
    with_a_slice_turned: r"expected slices of one size and direction, got another in 000\d.dcm than in 000\d.dcm",
    of_computed_tomography: r"expected a series of modality MR, got 'CT' in 000\d.dcm\. Name the folder of the T1w",
    of_frames: r"expected one slice a file, got '2' in 000\d.dcm\. Convert it to one file a slice, or to NIfTI",
    without_position: r"expected 3 numbers under \(0020,0032\), which place a slice, got '' in 0002.dcm",
    of_one_slice: r"expected a series of several slices, got one file",
    torn: r"expected a whole, readable DICOM series, got '0007.dcm: no image that can be read'\. Copy or",
    of_two_samples_a_pixel: r"expected a whole, readable DICOM series, got '.*SamplesPerPixel.*'\. Copy or export it",
    sheared: r"expected axes at right angles, got a sheared affine",
    too_thick: r"expected voxels of 0\.3 to 4\.0 mm, got 1 x 1\.2 x 5 mm",
}


@pytest.mark.parametrize("spoil", BAD_SERIES, ids=lambda spoil: spoil.__name__)
def test_each_bad_series_is_one_line_that_names_it(series: Path, spoil: Callable[[Path], None]) -> None:
    spoil(series)
    with pytest.raises(InputError, match=BAD_SERIES[spoil]) as caught:
        read_t1w(series)
    assert str(caught.value).startswith(f"{series}: expected ")
    assert str(caught.value).count(str(series)) == 1
    assert "\n" not in str(caught.value)


def test_voxels_are_read_when_they_are_asked_for(series: Path) -> None:
    image = open_dicom_series(series)
    pixels = (VOLUME[:, :, 0].T * 2).astype("<i2").tobytes()
    change(series / "0001.dcm", PixelData=pixels)
    np.testing.assert_array_equal(np.asarray(image.dataobj)[:, :, 0], VOLUME[:, :, 0] * 2)
