from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import highdicom as hd
import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.sr.codedict import codes
from pydicom.uid import DeflatedExplicitVRLittleEndian

from trispade import dicom_seg
from trispade.dicom_seg import is_dicom_seg, read_segment_labels
from trispade.dicom_writing import write_dicom_series
from trispade.errors import InputError
from trispade.inference import list_label_maps
from trispade.labels import load_scheme
from trispade.manifests import read_manifest
from trispade.nifti import header_of, name_without_suffix, read_label_map, write_nifti
from trispade.segment_names import segments_to_ids
from trispade.transforms import LoadLabelMapd, MapLabelsd

AFFINE = np.array([[-1.2, 0, 0, 10], [0, 0, 1.1, 20], [0, -1.0, 0, -30], [0, 0, 0, 1]])
NAMES = ["Left-Thalamus", "left cerebral white matter", "17"]
IDS = [10, 2, 17]

NUMBERS = np.zeros((8, 7, 6), np.uint8)
"""Segment numbers, (slice, row, column); no segment in the first slice, none in a slice between others."""
NUMBERS[1:4, 1:4, 1:3], NUMBERS[5:7, 2:6, 2:5], NUMBERS[2, 5, 4] = 1, 2, 3


def description(number: int, label: str) -> hd.seg.SegmentDescription:
    kind = hd.seg.SegmentAlgorithmTypeValues.MANUAL
    return hd.seg.SegmentDescription(number, label, codes.SCT.Tissue, codes.SCT.Tissue, kind)


def save(
    path: Path, numbers: np.ndarray = NUMBERS, kind: str = "BINARY", names: list[str] = NAMES, **kwargs: Any
) -> Path:
    """Write a segmentation with highdicom, of a series on `AFFINE` whose slices are coronal."""
    series = path.parent / "source"
    if not series.exists():
        write_dicom_series(series, np.zeros((6, 7, 8), np.int16), np.diag([-1.2, -1.0, 1.1, 1.0]), (0, 255))
    sources = [pydicom.dcmread(file) for file in sorted(series.iterdir())]
    labels = [description(number, name) for number, name in enumerate(names, start=1)]
    maker = ("maker", "model", "1", "serial")
    segmentation = hd.seg.Segmentation(
        sources, numbers, kind, labels, hd.UID(), 1, hd.UID(), 1, *maker, content_label="SEG", **kwargs
    )
    segmentation.save_as(path)
    return path


def change(path: Path, act: Callable[[pydicom.Dataset], object]) -> Path:
    dataset = pydicom.dcmread(path)
    act(dataset)
    dataset.save_as(path)
    return path


def canonical(array: np.ndarray, affine: np.ndarray) -> nib.Nifti1Image:
    return nib.as_closest_canonical(nib.Nifti1Image(array.astype(np.int16), affine))


@pytest.mark.parametrize("columns", [3, 5, 7])
def test_frames_that_begin_within_a_byte_are_cut_where_they_end(tmp_path: Path, columns: int) -> None:
    numbers = np.random.default_rng(columns).integers(1, 4, (9, 5, columns)).astype(np.uint8)
    write_dicom_series(tmp_path / "source", np.zeros((columns, 5, 9), np.int16), np.diag([-1.0, -1, 1, 1]), (0, 255))
    label_map, _ = read_label_map(save(tmp_path / "a.dcm", numbers))
    np.testing.assert_array_equal(label_map, numbers.transpose(2, 1, 0))


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
def test_segment_numbers_and_grid_are_those_that_highdicom_finds(tmp_path: Path, kind: str) -> None:
    path = save(tmp_path / "a.dcm", kind=kind)
    volume = hd.seg.segread(path).get_volume(combine_segments=True)
    expected = canonical(volume.array, np.diag([-1, -1, 1, 1]) @ volume.affine)

    label_map, affine = read_label_map(path)

    assert label_map.dtype == np.int32
    found = canonical(label_map, affine)
    np.testing.assert_array_equal(found.get_fdata(), expected.get_fdata())
    np.testing.assert_allclose(found.affine, expected.affine, atol=1e-6)
    assert header_of(path)[0] == label_map.shape
    np.testing.assert_array_equal(label_map, NUMBERS[1:7].transpose(2, 1, 0))


def test_a_slice_without_segments_between_others_stays_empty_and_outer_ones_are_left_out(tmp_path: Path) -> None:
    label_map, affine = read_label_map(save(tmp_path / "a.dcm"))
    assert label_map.shape == (6, 7, 6)
    assert not label_map[:, :, 3].any()
    np.testing.assert_allclose(affine, [[-1.2, 0, 0, 0], [0, -1, 0, 0], [0, 0, 1.1, 1.1], [0, 0, 0, 1]], atol=1e-9)


def test_segments_become_the_classes_that_their_labels_name(tmp_path: Path) -> None:
    path = save(tmp_path / "a.dcm")
    assert read_segment_labels(path) == dict(enumerate(NAMES, start=1))
    scheme = load_scheme("freesurfer")
    data = MapLabelsd("image", "freesurfer")(LoadLabelMapd("image")({"image": str(path)}))
    ids = np.array([0, *IDS])[read_label_map(path)[0]]
    np.testing.assert_array_equal(data["image"].numpy()[0], scheme.to_indices(ids, "a"))
    assert "segment_labels" not in data["image"].meta


def test_what_is_written_on_the_grid_of_a_segmentation_is_nifti_in_scanner_space(tmp_path: Path) -> None:
    path = save(tmp_path / "a.dcm")
    label_map, affine = read_label_map(path)
    write_nifti(tmp_path / "out.nii.gz", label_map, affine, like=path)
    written = nib.load(tmp_path / "out.nii.gz")
    np.testing.assert_allclose(written.affine, affine, atol=1e-5)
    assert int(written.header["sform_code"]) == 1


def test_labels_that_are_no_names_of_the_scheme_are_listed_or_become_background() -> None:
    numbers, labels = np.array([0, 1, 2, 3, 3]), {1: "Left-Thalamus", 2: "Tumour", 3: "Corpus_Callosum", 4: "Unused"}
    scheme = load_scheme("freesurfer")  # in which two ids have the third name
    expected = (
        r"a\.dcm: expected segments labelled with names or ids of scheme 'freesurfer' \(.*\), got 'Tumour', 'Corpus"
    )
    with pytest.raises(InputError, match=expected) as caught:
        segments_to_ids(numbers, labels, scheme, "a.dcm")
    assert "Unused" not in str(caught.value)
    assert segments_to_ids(numbers, labels, scheme, "a.dcm", "background").tolist() == [0, 10, 0, 0, 0]
    with pytest.raises(InputError, match="no label for 7"):
        segments_to_ids(np.array([7]), labels, scheme, "a.dcm")


def test_a_folder_is_searched_for_segmentations_and_not_for_other_dicom(tmp_path: Path) -> None:
    save(tmp_path / "a.seg.dcm")
    assert list_label_maps(tmp_path) == [{"case_id": "a", "image": str(tmp_path / "a.seg.dcm")}]
    assert not is_dicom_seg(tmp_path / "source" / "0001.dcm")
    assert {name_without_suffix(name) for name in ("b.c.dcm", "b.c.seg.dcm")} == {"b.c"}


def overlapping(path: Path) -> Path:
    each = np.stack([number == NUMBERS for number in (1, 2, 3)], axis=-1).astype(np.uint8)
    each[2, 2, 2, 1] = 1
    return save(path, each)


def fractional(path: Path) -> Path:
    return save(path, NUMBERS[..., None].astype(np.float32) / 4, "FRACTIONAL", NAMES[:1])


def of_a_scan(path: Path) -> Path:
    save(path)
    shutil.copy(path.parent / "source" / "0001.dcm", path)
    return path


def cut(path: Path) -> Path:
    save(path, kind="LABELMAP")
    path.write_bytes(path.read_bytes()[:-60])
    return path


def cut_in_its_bits(path: Path) -> Path:
    save(path)
    path.write_bytes(path.read_bytes()[:-12])
    return path


def cut_in_its_header(path: Path) -> Path:
    path.write_bytes(save(path).read_bytes()[:1100])
    return path


def deflated(path: Path) -> Path:
    dataset = pydicom.dcmread(save(path))
    dataset.save_as(path)
    raw = path.read_bytes()
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    assert raw[132:136] == b"\x02\x00\x00\x00"
    dataset.save_as(path)
    return path


def off_its_grid(path: Path) -> Path:
    def move(dataset: pydicom.Dataset) -> None:
        dataset.PerFrameFunctionalGroupsSequence[2].PlanePositionSequence[0].ImagePositionPatient[0] += 0.5

    return change(save(path), move)


def without_places(path: Path) -> Path:
    def remove(dataset: pydicom.Dataset) -> None:
        for each in dataset.PerFrameFunctionalGroupsSequence:
            del each.PlanePositionSequence

    return change(save(path), remove)


def of_too_many_frames(path: Path) -> Path:
    return change(save(path), lambda dataset: setattr(dataset, "NumberOfFrames", 70000))


def of_more_frames_than_places(path: Path) -> Path:
    return change(save(path), lambda dataset: setattr(dataset, "NumberOfFrames", 60000))


def of_too_many_voxels(path: Path) -> Path:
    def enlarge(dataset: pydicom.Dataset) -> None:
        dataset.Rows = dataset.Columns = 60000

    return change(save(path), enlarge)


BAD_FILES: dict[Callable[[Path], Path], str] = {
    overlapping: r"expected segments that do not overlap, got segments 2 and 1 in one voxel\. Save it without overlaps",
    fractional: r"expected a segmentation of type BINARY or LABELMAP, got 'FRACTIONAL'\. Save it with each voxel",
    of_a_scan: r"expected a DICOM SEG, got another DICOM file, or none\. Name the folder of a T1w's series, or",
    cut: r"expected a whole, readable DICOM file, got '.*'\. Copy or export it again",
    cut_in_its_bits: r"expected a whole, readable DICOM file, got '.*'\. Copy or export it again",
    cut_in_its_header: r"expected a whole, readable DICOM file, got '.*'\. Copy or export it again",
    deflated: r"expected a file that is not deflated as a whole, got one that is\. Export the segmentation again, or",
    off_its_grid: r"expected frames on one grid, got some 0\.5 mm beside it",
    without_places: r"expected a PlanePositionSequence for each frame, as of a scan, got none",
    of_too_many_frames: r"expected at most 65536 frames, got 70000",
    of_more_frames_than_places: r"expected the places of 60000 frames, got those of 6",
    of_too_many_voxels: r"expected a volume of 1 to 134217728 voxels \(512 x 512 x 512\), got 60000 x 60000 x 6",
}


@pytest.mark.parametrize("spoil", BAD_FILES, ids=lambda spoil: spoil.__name__)
def test_each_bad_segmentation_is_one_line_that_names_it(tmp_path: Path, spoil: Callable[[Path], Path]) -> None:
    path = spoil(tmp_path / "a.dcm")
    with pytest.raises(InputError, match=BAD_FILES[spoil]) as caught:
        read_label_map(path)
    assert str(caught.value).startswith(f"{path}: expected ")
    assert str(caught.value).count(str(path)) == 1
    assert "\n" not in str(caught.value)


def test_a_file_that_is_too_large_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "a.dcm")
    monkeypatch.setattr(dicom_seg, "LARGEST_FILE", 1 << 10)
    with pytest.raises(InputError, match=r"a\.dcm: expected a file of at most 0 MiB, got"):
        read_label_map(path)


def test_without_pydicom_one_line_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "a.dcm")
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(
        InputError, match=r"a\.dcm: expected pydicom, for DICOM, got none\. pip install pydicom \(the extra 'dicom'"
    ):
        read_label_map(path)


def test_a_segmentation_in_a_manifest_is_checked_by_its_labels(tmp_path: Path) -> None:
    row = {"case_id": "a", "person_id": "a", "split": "test", "label": "a.dcm", "image": None}
    content = {"name": "d", "label_scheme": "freesurfer", "test": [row]}
    (tmp_path / "m.json").write_text(json.dumps(content))
    save(tmp_path / "a.dcm")
    assert len(read_manifest(tmp_path / "m.json", tmp_path, check_labels=True).cases) == 1
    save(tmp_path / "a.dcm", names=["Left-Thalamus", "Tumour", "17"])
    with pytest.raises(
        InputError, match=r"test\[0\] \(a\): .*a\.dcm: expected segments labelled with .*, got 'Tumour'"
    ):
        read_manifest(tmp_path / "m.json", tmp_path, check_labels=True)
