from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from trispade.errors import InputError
from trispade.nifti import check_same_grid, header_of, name_without_suffix, read_label_map, read_t1w, write_nifti

AFFINE = np.diag([1.0, 1.0, 1.5, 1.0])
LABELS = np.zeros((4, 5, 6), np.int16)
LABELS[1:3, 1:4, 2:5] = 17


def save(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def sheared(cosine: float) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, 1] = (cosine, np.sqrt(1 - cosine**2), 0)
    return affine


def oblique() -> np.ndarray:
    angle = 0.4
    rotation = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = AFFINE.copy()
    affine[:3, :3] = rotation @ AFFINE[:3, :3]
    affine[:3, 3] = (-20, 30, 5)
    return affine


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.uint16, np.float32, np.float64])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_label_map_of_any_type_is_read_as_int32_with_its_affine(tmp_path: Path, dtype: type, suffix: str) -> None:
    path = save(tmp_path / f"a{suffix}", LABELS.astype(dtype), oblique())

    label_map, affine = read_label_map(path)

    assert label_map.dtype == np.int32
    np.testing.assert_array_equal(label_map, LABELS)
    np.testing.assert_allclose(affine, oblique(), atol=1e-5)
    assert header_of(path)[0] == (4, 5, 6)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.float32])
def test_freesurfers_format_is_read_like_nifti(tmp_path: Path, dtype: type) -> None:
    path = save_mgz(tmp_path / "aparc+aseg.mgz", LABELS.astype(dtype), oblique())

    label_map, affine = read_label_map(path)

    assert label_map.dtype == np.int32
    np.testing.assert_array_equal(label_map, LABELS)
    np.testing.assert_allclose(affine, oblique(), atol=1e-5)
    np.testing.assert_array_equal(read_t1w(path)[0], LABELS.astype(np.float32))


def test_what_is_written_on_the_grid_of_an_mgz_is_nifti_of_its_affine_in_scanner_space(tmp_path: Path) -> None:
    source = save_mgz(tmp_path / "aparc+aseg.mgz", LABELS, oblique())
    write_nifti(tmp_path / "out.nii.gz", LABELS, read_label_map(source)[1], like=source)
    written = nib.load(tmp_path / "out.nii.gz")
    np.testing.assert_allclose(written.affine, oblique(), atol=1e-5)
    np.testing.assert_allclose(written.get_qform(), oblique(), atol=1e-5)
    assert (int(written.header["sform_code"]), int(written.header["qform_code"])) == (1, 1)
    assert written.header.get_xyzt_units()[0] == "mm"


def test_a_name_loses_the_suffix_of_every_format() -> None:
    names = ("a/b.c.nii.gz", "b.c.nii", "b.c.mgz", "b.c.nrrd", "b.c.seg.nrrd", "b.c")
    assert {name_without_suffix(name) for name in names} == {"b.c"}


def test_a_trailing_axis_of_one_is_dropped(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii.gz", LABELS[..., None])
    assert read_label_map(path)[0].shape == (4, 5, 6)


def test_stored_scaling_is_applied_to_an_image(tmp_path: Path) -> None:
    image = nib.Nifti1Image(LABELS, AFFINE)
    image.header.set_slope_inter(0.5, 1)
    nib.save(image, tmp_path / "a.nii")
    stored = nib.load(tmp_path / "a.nii").get_fdata()
    t1w, _ = read_t1w(tmp_path / "a.nii")
    assert t1w.dtype == np.float32
    np.testing.assert_allclose(t1w, stored)


def write_missing(folder: Path) -> Path:
    return folder / "a.nii.gz"


def write_text(folder: Path) -> Path:
    path = folder / "a.nii.gz"
    path.write_text("not an image")
    return path


def write_gzipped_text(folder: Path) -> Path:
    path = folder / "a.nii.gz"
    path.write_bytes(gzip.compress(b"not an image" * 100))
    return path


def write_empty_file(folder: Path) -> Path:
    path = folder / "a.nii.gz"
    path.write_bytes(b"")
    return path


def write_truncated_gz(folder: Path) -> Path:
    noise = np.random.default_rng(0).integers(0, 30000, (20, 20, 20)).astype(np.int16)
    path = save(folder / "a.nii.gz", noise)
    path.write_bytes(path.read_bytes()[:9000])
    return path


def write_truncated(folder: Path) -> Path:
    path = save(folder / "a.nii", LABELS)
    path.write_bytes(path.read_bytes()[:400])
    return path


def save_mgz(path: Path, array: np.ndarray = LABELS, affine: np.ndarray = AFFINE) -> Path:
    nib.save(nib.MGHImage(array, affine), path)
    return path


def write_truncated_mgz(folder: Path) -> Path:
    noise = np.random.default_rng(0).integers(0, 30000, (20, 20, 20)).astype(np.int16)
    path = save_mgz(folder / "a.mgz", noise)
    path.write_bytes(path.read_bytes()[:9000])
    return path


def write_text_as_mgz(folder: Path) -> Path:
    path = folder / "a.mgz"
    path.write_bytes(gzip.compress(b"not an image" * 100))
    return path


def write_analyze(folder: Path) -> Path:
    nib.save(nib.AnalyzeImage(LABELS, AFFINE), folder / "a.img")
    return folder / "a.img"


def write_4d(folder: Path) -> Path:
    return save(folder / "a.nii.gz", np.stack([LABELS, LABELS], axis=-1))


def write_2d(folder: Path) -> Path:
    return save(folder / "a.nii.gz", LABELS[0])


def write_folder(folder: Path) -> Path:
    (folder / "a.nii.gz").mkdir()
    return folder / "a.nii.gz"


def write_rgb(folder: Path) -> Path:
    return save(folder / "a.nii.gz", np.zeros((4, 5, 6), [("R", "u1"), ("G", "u1"), ("B", "u1")]))


BAD_FILES = {
    write_missing: "expected a NIfTI file, got no file of this name",
    write_text: "expected a whole, readable NIfTI file",
    write_gzipped_text: "expected a whole, readable NIfTI file",
    write_empty_file: "expected a whole, readable NIfTI file",
    write_truncated_gz: "expected a whole, readable NIfTI file",
    write_truncated: "expected a whole, readable NIfTI file",
    write_truncated_mgz: "expected a whole, readable MGZ file",
    write_text_as_mgz: "expected a whole, readable MGZ file",
    write_analyze: "expected a NIfTI, MGZ or NRRD file, got a file that nibabel reads as .*AnalyzeImage",
    write_4d: "expected a 3D volume, got 4D of shape 4 x 5 x 6 x 2",
    write_2d: "expected a 3D volume, got 2D of shape 5 x 6",
    write_rgb: "expected one number a voxel",
}


@pytest.mark.parametrize("reader", [read_label_map, read_t1w])
@pytest.mark.parametrize("write", BAD_FILES, ids=lambda write: write.__name__)
def test_each_bad_file_is_one_line_that_names_it(tmp_path: Path, write, reader) -> None:
    path = write(tmp_path)
    with pytest.raises(InputError, match=BAD_FILES[write]) as caught:
        reader(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_folder_is_no_label_map_and_a_scan_only_if_it_holds_a_dicom_series(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a\.nii\.gz: expected a NIfTI file, got a folder\. Name one file in it"):
        read_label_map(write_folder(tmp_path))
    with pytest.raises(InputError, match=r"expected a folder with one DICOM series, got a folder without DICOM files"):
        read_t1w(tmp_path / "a.nii.gz")


BAD_AFFINES = {
    "sheared": (sheared(0.05), r"expected axes at right angles, got a sheared affine"),
    "singular": (np.diag([1.0, 0.0, 1.0, 1.0]), "expected an affine that can be inverted, got a singular one"),
    "two axes the same": (sheared(1.0), "expected an affine that can be inverted, got a singular one"),
    "not finite": (np.diag([1.0, np.nan, 1.0, 1.0]), "expected an affine that can be inverted"),
    "too fine": (np.diag([0.2, 0.5, 0.5, 1.0]), r"expected voxels of 0.3 to 4.0 mm, got 0.2 x 0.5 x 0.5 mm"),
    "too coarse": (np.diag([2.0, 2.0, 5.0, 1.0]), r"expected voxels of 0.3 to 4.0 mm, got 2 x 2 x 5 mm"),
    "too long": (np.diag([0.5, 0.5, 2.0, 1.0]), r"expected voxels at most 3 times as long as wide, got 0.5 x 0.5 x 2"),
}


@pytest.mark.parametrize("reader", [read_label_map, read_t1w, header_of])
@pytest.mark.parametrize("name", BAD_AFFINES)
def test_each_bad_affine_is_an_input_error(tmp_path: Path, name: str, reader) -> None:
    affine, message = BAD_AFFINES[name]
    image = nib.Nifti1Image(LABELS, np.eye(4))
    for row, field in enumerate(("srow_x", "srow_y", "srow_z")):
        image.header[field] = affine[row]
    path = tmp_path / "a.nii"
    nib.save(image, path)
    raw = bytearray(path.read_bytes())
    raw[280:328] = affine[:3].astype("<f4").tobytes()
    path.write_bytes(raw)
    with pytest.raises(InputError, match=message):
        reader(path)


@pytest.mark.parametrize("size_mm", [0.3, 4.0])
def test_voxel_sizes_at_the_limits_are_taken(tmp_path: Path, size_mm: float) -> None:
    path = save(tmp_path / "a.nii", LABELS, np.diag([size_mm, size_mm, size_mm, 1.0]))
    assert read_label_map(path)[0].any()


BAD_LABELS = {
    "fractions": (LABELS + np.float32(0.25), "expected integer label ids, got 120 voxels .* such as 0.25"),
    "nan": (np.where(LABELS > 0, np.nan, 0).astype(np.float32), "expected integer label ids, got 18 voxels .* nan"),
    "negative": (-LABELS, "expected label ids from 0 to 2147483647, got id -17"),
    "huge": (LABELS.astype(np.float64) * 1e12, "expected label ids from 0 to 2147483647, got id 17000000000000"),
    "empty": (np.zeros_like(LABELS), "expected at least one labelled voxel, got an empty label map"),
}


@pytest.mark.parametrize("name", BAD_LABELS)
def test_each_bad_label_map_is_an_input_error(tmp_path: Path, name: str) -> None:
    array, message = BAD_LABELS[name]
    with pytest.raises(InputError, match=message):
        read_label_map(save(tmp_path / "a.nii.gz", array))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_voxel_that_is_not_finite_is_an_input_error(tmp_path: Path, value: float) -> None:
    t1w = LABELS.astype(np.float32)
    t1w[0, 0, :2] = value
    with pytest.raises(InputError, match="expected finite intensities, got 2 voxels that are NaN or infinite"):
        read_t1w(save(tmp_path / "a.nii", t1w))


def test_an_image_of_zeros_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected an image, got zero in every voxel"):
        read_t1w(save(tmp_path / "a.nii", np.zeros((4, 5, 6), np.float32)))


def test_one_grid_is_one_grid_within_a_micrometre() -> None:
    check_same_grid("l.nii", (4, 5, 6), AFFINE, "t.nii", (4, 5, 6), AFFINE + 1e-4)
    with pytest.raises(InputError, match=r"t.nii: expected the shape of l.nii, 4 x 5 x 6, got 4 x 6 x 5"):
        check_same_grid("l.nii", (4, 5, 6), AFFINE, "t.nii", (4, 6, 5), AFFINE)
    with pytest.raises(InputError, match=r"t.nii: expected the affine of l.nii, got one that differs .* 0.1 mm"):
        check_same_grid("l.nii", (4, 5, 6), AFFINE, "t.nii", (4, 5, 6), AFFINE + np.eye(4) * 0.1)


@pytest.mark.parametrize("codes", [(1, 1), (0, 2), (3, 0), (4, 1), (0, 0)])
def test_a_written_file_keeps_space_codes_unit_and_exact_affine_of_its_source(tmp_path: Path, codes) -> None:
    image = nib.Nifti1Image(LABELS, oblique())
    image.set_qform(oblique(), codes[0])
    image.set_sform(oblique(), codes[1])
    image.header.set_xyzt_units("mm", "sec")
    image.header.set_intent("label")
    image.header["cal_max"] = 17
    nib.save(image, tmp_path / "source.nii.gz")
    source = nib.load(tmp_path / "source.nii.gz")

    volume = np.random.default_rng(0).normal(size=LABELS.shape)
    write_nifti(tmp_path / "out.nii.gz", volume, source.affine, like=tmp_path / "source.nii.gz")

    written = nib.load(tmp_path / "out.nii.gz")
    assert (int(written.header["qform_code"]), int(written.header["sform_code"])) == codes
    assert written.affine.tobytes() == source.affine.tobytes()
    assert written.header.get_xyzt_units()[0] == "mm"
    assert written.header.get_intent()[0] == "none"
    assert written.header["cal_max"] == 0
    np.testing.assert_array_equal(written.get_fdata(), volume.astype(np.float32))


def test_a_volume_on_another_grid_takes_its_own_affine_and_the_codes_of_the_source(tmp_path: Path) -> None:
    source = save(tmp_path / "source.nii", LABELS)
    write_nifti(tmp_path / "out.nii", np.ones((3, 3, 3)), oblique(), like=source)
    written = nib.load(tmp_path / "out.nii")
    np.testing.assert_allclose(written.affine, oblique(), atol=1e-5)
    assert written.header["sform_code"] == nib.load(source).header["sform_code"]


def test_int16_is_stored_without_scaling(tmp_path: Path) -> None:
    write_nifti(tmp_path / "out.nii.gz", LABELS, AFFINE, dtype=np.int16)
    written = nib.load(tmp_path / "out.nii.gz")
    assert written.get_data_dtype() == np.int16
    assert (written.dataobj.slope, written.dataobj.inter) == (1, 0)
    np.testing.assert_array_equal(np.asarray(written.dataobj), LABELS)


def test_the_same_volume_gives_the_same_bytes(tmp_path: Path) -> None:
    write_nifti(tmp_path / "a.nii.gz", LABELS, AFFINE)
    write_nifti(tmp_path / "b.nii.gz", LABELS, AFFINE)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch) -> None:
    write_nifti(tmp_path / "out.nii.gz", LABELS, AFFINE, dtype=np.int16)
    before = (tmp_path / "out.nii.gz").read_bytes()

    def fail_half_way(image: nib.Nifti1Image, path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(nib, "save", fail_half_way)
    with pytest.raises(InputError, match=r"out.nii.gz: expected a folder that can be written to, got No space left"):
        write_nifti(tmp_path / "out.nii.gz", LABELS + 1, AFFINE)

    assert (tmp_path / "out.nii.gz").read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["out.nii.gz"]


def test_a_folder_that_cannot_be_made_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="expected a folder that can be written to"):
        write_nifti(tmp_path / "file" / "out.nii.gz", LABELS, AFFINE)


def test_a_name_that_is_no_niftis_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected a name that ends in .nii.gz or .nii, got out.png"):
        write_nifti(tmp_path / "out.png", LABELS, AFFINE)
