from __future__ import annotations

import gzip
import sys
import tracemalloc
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from trispade.errors import InputError
from trispade.nifti import header_of, read_label_map, read_t1w, write_nifti
from trispade.nrrd import open_nrrd

LABELS = np.zeros((4, 5, 6), np.int32)
LABELS[1, 2, 3], LABELS[0, 4, 5] = 17, 1035
TYPES = {
    **{"uchar": "u1", "signed char": "i1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4"},
    **{"longlong": "i8", "ulonglong": "u8", "float": "f4", "double": "f8"},
}
LPS = "left-posterior-superior"
HEADER = """NRRD0004
# of an oblique grid: x and y are turned by the angle whose cosine is 0.8
type: {type}
dimension: 3
space: {space}
sizes: 4 5 6
space directions: (0.8,0.6,0) (-0.9,1.2,0) (0,0,2)
kinds: domain domain domain
endian: little
encoding: {encoding}
space origin: (10,20,30)

"""
FLAT = (
    HEADER.replace("dimension: 3", "dimension: 2")
    .replace("sizes: 4 5 6", "sizes: 4 5")
    .replace(" (0,0,2)", "")
    .replace("kinds: domain ", "kinds: ")
)
IN_ITS_SPACE = np.array([[0.8, -0.9, 0, 10], [0.6, 1.2, 0, 20], [0, 0, 2, 30], [0, 0, 0, 1.0]])
"""Affine of the header: its directions are the columns."""


def save(
    path: Path, labels: np.ndarray = LABELS, kind: str = "int", space: str = LPS, encoding: str = "raw", header=HEADER
) -> Path:
    voxels = labels.astype(f"<{TYPES[kind]}").tobytes(order="F")
    text = header.format(type=kind, space=space, encoding=encoding)
    path.write_bytes(text.encode() + (gzip.compress(voxels) if encoding == "gzip" else voxels))
    return path


@pytest.mark.parametrize("encoding", ["raw", "gzip"])
@pytest.mark.parametrize("kind", TYPES)
def test_label_ids_of_every_type_are_read(tmp_path: Path, kind: str, encoding: str) -> None:
    labels = np.minimum(LABELS, 100) if TYPES[kind].endswith("1") else LABELS
    path = save(tmp_path / "a.nrrd", labels, kind, encoding=encoding)
    label_map, _ = read_label_map(path)
    assert label_map.dtype == np.int32
    np.testing.assert_array_equal(label_map, labels)
    np.testing.assert_array_equal(read_t1w(path)[0], labels.astype(np.float32))


@pytest.mark.parametrize(
    ("space", "signs"),
    [
        (LPS, (-1, -1, 1)),
        ("right-anterior-superior", (1, 1, 1)),
        ("left-anterior-superior", (-1, 1, 1)),
        ("LPS", (-1, -1, 1)),
        ("RAS", (1, 1, 1)),
    ],
)
def test_the_affine_is_directions_and_origin_of_the_header_in_ras(tmp_path: Path, space: str, signs) -> None:
    path = save(tmp_path / "a.nrrd", space=space)
    expected = np.diag([*signs, 1.0]) @ IN_ITS_SPACE
    np.testing.assert_allclose(read_label_map(path)[1], expected, atol=1e-12)
    shape, affine = header_of(path)
    assert shape == (4, 5, 6)
    np.testing.assert_allclose(affine, expected, atol=1e-12)


def test_itks_copy_of_a_nifti_is_read_as_nibabel_reads_the_nifti(tmp_path: Path) -> None:
    import itk

    angle = 0.4
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.array([[0, 0, 1.5], [-1, 0, 0], [0, 1.2, 0]])  # axes of the file: P, S, R
    affine[:3, 3] = (-20, 30, 5)
    nib.save(nib.Nifti1Image(LABELS.astype(np.int16), affine), tmp_path / "a.nii.gz")
    itk.imwrite(itk.imread(str(tmp_path / "a.nii.gz")), str(tmp_path / "a.nrrd"))

    labels, grid = read_label_map(tmp_path / "a.nrrd")

    nifti = nib.load(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(labels, np.asarray(nifti.dataobj))
    np.testing.assert_allclose(grid, nifti.affine, atol=1e-5)


def test_voxels_are_read_when_they_are_asked_for(tmp_path: Path) -> None:
    image = open_nrrd(save(tmp_path / "a.nrrd"))
    save(tmp_path / "a.nrrd", LABELS * 2)
    np.testing.assert_array_equal(np.asarray(image.dataobj), LABELS * 2)


def test_what_is_written_on_the_grid_of_an_nrrd_is_nifti_of_its_affine_in_scanner_space(tmp_path: Path) -> None:
    source = save(tmp_path / "a.seg.nrrd")
    affine = read_label_map(source)[1]
    write_nifti(tmp_path / "out.nii.gz", LABELS, affine, like=source)
    written = nib.load(tmp_path / "out.nii.gz")
    np.testing.assert_allclose(written.affine, affine, atol=1e-5)
    assert (int(written.header["sform_code"]), int(written.header["qform_code"])) == (1, 1)
    assert written.header.get_xyzt_units()[0] == "mm"


def cut(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:-40])
    return path


def without_space(path: Path) -> Path:
    header = HEADER.replace("space: {space}", "space dimension: 3")
    return save(path, header=header)


def of_vectors(path: Path) -> Path:
    header = HEADER.replace("dimension: 3", "dimension: 4").replace("sizes: ", "sizes: 3 ")
    header = header.replace("directions: ", "directions: none ").replace("kinds: ", "kinds: vector ")
    return save(path, np.stack([LABELS] * 3), header=header)


def of_one_slice(path: Path) -> Path:
    header = FLAT.replace("space: {space}", "space dimension: 2").replace("origin: (10,20,30)", "origin: (10,20)")
    return save(path, LABELS[..., 3], header=header.replace("(0.8,0.6,0) (-0.9,1.2,0)", "(0.8,0.6) (-0.9,1.2)"))


def of_one_slice_in_space(path: Path) -> Path:
    return save(path, LABELS[..., 3], header=FLAT)


def of_a_broken_header(path: Path) -> Path:
    return save(path, header=HEADER.replace("sizes: 4 5 6", "sizes: 4 5"))


def of_text(path: Path) -> Path:
    path.write_text("not an image")
    return path


def missing(path: Path) -> Path:
    return path


def folder(path: Path) -> Path:
    path.mkdir()
    return path


def of_probabilities(path: Path) -> Path:
    return save(path, LABELS / 2.0, "float")


BAD_FILES = {
    missing: r"expected an NRRD file, got no file of this name\. Check the path",
    folder: r"expected an NRRD file, got a folder\. Name one file in it",
    of_text: r"expected a whole, readable NRRD file, got 'it does not begin as one does'\. Copy or export",
    of_a_broken_header: r"expected a 3D volume, one number a voxel, got 2 sizes for 3 axes\. Choose",
    cut: r"expected a whole, readable NRRD file, got '80 bytes of voxels instead of 120'\. Copy or export",
    without_space: r"expected a 'space' of anatomical directions in its header, got none\. Save it with one",
    of_vectors: r"expected a 3D volume, one number a voxel, got 4 axes\. Choose",
    of_one_slice: r"expected a 3D volume, one number a voxel, got 2 axes\. Choose",
    of_one_slice_in_space: r"expected a 3D volume, one number a voxel, got 2 axes\. Choose",
    of_probabilities: r"expected integer label ids, got 2 voxels that hold no integer, such as (8|517)\.5\. Give",
}


@pytest.mark.parametrize("spoil", BAD_FILES, ids=lambda spoil: spoil.__name__)
def test_each_bad_file_is_one_line_that_names_it(tmp_path: Path, spoil) -> None:
    path = tmp_path / "a.nrrd"
    if spoil is cut:
        save(path, kind="uchar")
    with pytest.raises(InputError, match=BAD_FILES[spoil]) as caught:
        read_label_map(spoil(path))
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("space", ["scanner-xyz", "3D-right-handed"])
def test_a_space_without_left_and_right_is_an_input_error(tmp_path: Path, space: str) -> None:
    with pytest.raises(InputError, match=rf"a\.nrrd: expected a 'space' of anatomical .*, got {space}\. Save it with"):
        header_of(save(tmp_path / "a.nrrd", space=space))


def test_a_sheared_or_too_coarse_grid_is_refused_as_that_of_a_nifti_is(tmp_path: Path) -> None:
    sheared = HEADER.replace("(-0.9,1.2,0)", "(0,1.5,0)")
    with pytest.raises(InputError, match=r"a\.nrrd: expected axes at right angles, got a sheared affine"):
        header_of(save(tmp_path / "a.nrrd", header=sheared))
    coarse = HEADER.replace("(0,0,2)", "(0,0,5)")
    with pytest.raises(InputError, match=r"a\.nrrd: expected voxels of 0\.3 to 4\.0 mm, got 1 x 1\.5 x 5 mm"):
        header_of(save(tmp_path / "a.nrrd", header=coarse))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "data file: /etc/hostname",
            r"expected header and voxels in one file, got a header that names /etc/hostname\.",
        ),
        ("datafile: a.raw", r"expected header and voxels in one file, got a header that names a\.raw\. Save it again"),
        ("byte skip: -1", r"expected voxels that follow the header, got a byte skip of -1\. Save it again"),
        ("line skip: 3", r"expected voxels that follow the header, got a line skip of 3\. Save it again"),
    ],
)
def test_voxels_that_are_elsewhere_are_not_looked_for(tmp_path: Path, line: str, message: str) -> None:
    header = HEADER.replace("endian:", f"{line}\nendian:")
    with pytest.raises(InputError, match=rf"a\.nrrd: {message}"):
        header_of(save(tmp_path / "a.nrrd", header=header))


@pytest.mark.parametrize("encoding", ["bzip2", "ascii", "hex"])
def test_an_encoding_that_is_not_read_is_named(tmp_path: Path, encoding: str) -> None:
    with pytest.raises(InputError, match=rf"expected voxels encoded as raw or gzip, got {encoding}\. Save it again"):
        header_of(save(tmp_path / "a.nrrd", encoding=encoding))


def test_a_file_too_small_for_what_it_announces_is_refused_before_room_is_made(tmp_path: Path) -> None:
    header = HEADER.replace("sizes: 4 5 6", "sizes: 400 300 100")
    with pytest.raises(InputError, match=r"expected a whole, readable file of 400 x 300 x 100 voxels, got a torn one"):
        header_of(save(tmp_path / "a.nrrd", encoding="gzip", header=header))


def test_of_what_inflates_to_more_than_is_announced_the_rest_is_left(tmp_path: Path) -> None:
    path = tmp_path / "a.nrrd"
    text = HEADER.format(type="int", space=LPS, encoding="gzip").encode()
    path.write_bytes(text + gzip.compress(LABELS.tobytes(order="F") + bytes(50 << 20)))
    tracemalloc.start()
    np.testing.assert_array_equal(read_label_map(path)[0], LABELS)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20


def test_without_pynrrd_the_reader_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nrrd", None)
    with pytest.raises(
        InputError, match=r"a\.nrrd: expected pynrrd, which reads NRRD, got no such .*pip install pynrrd"
    ):
        header_of(save(tmp_path / "a.nrrd"))
