"""Mutated DICOM files: whatever their bytes are, a reader gives a volume or one clear line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import highdicom as hd
import itk
import numpy as np
import pydicom
import pytest
from examples import assert_one_clear_line, bounded, few_or_many, for_each
from hypothesis import strategies as st
from pydicom.sr.codedict import codes

from trispade.dicom_writing import write_dicom_series
from trispade.errors import InputError
from trispade.labels import load_scheme
from trispade.nifti import read_label_map, read_t1w
from trispade.segment_names import segment_labels_of, segments_to_ids

NUMBERS = np.zeros((4, 7, 6), np.uint8)
NUMBERS[0:3, 2:5, 1:3], NUMBERS[1:4, 5:7, 3:6] = 1, 2


@pytest.fixture
def series(tmp_path: Path) -> Path:
    itk.GDCMSeriesFileNames  # noqa: B018  loads it, which warns, before warnings are errors
    itk.ImageFileReader[itk.Image[itk.F, 3]].New(ImageIO=itk.GDCMImageIO.New())
    write_dicom_series(tmp_path / "series", NUMBERS.transpose(2, 1, 0).astype(np.int16), np.eye(4), (0, 255))
    return tmp_path / "series"


@st.composite
def changes(draw: st.DrawFn) -> tuple[list[tuple[float, int]], float]:
    """Places in a file, as shares of its length, with what is put there; and how much of the file is left."""
    place = st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255))
    return draw(st.lists(place, max_size=6)), draw(st.one_of(st.just(1.0), st.just(1.0), st.floats(0, 1)))


def spoil(content: bytes, change: tuple[list[tuple[float, int]], float]) -> bytes:
    spoilt = bytearray(content)
    for share, value in change[0]:
        spoilt[132 + int(share * (len(content) - 132))] = value
    return bytes(spoilt[: int(change[1] * len(content))])


@few_or_many(60, 1000)
@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
def test_whatever_the_bytes_of_a_segmentation_it_is_read_or_one_clear_line(
    series: Path, tmp_path: Path, kind: str, num_examples: int
) -> None:
    sources = [pydicom.dcmread(file) for file in sorted(series.iterdir())]
    manual = hd.seg.SegmentAlgorithmTypeValues.MANUAL
    labels = [hd.seg.SegmentDescription(i, f"{10 * i}", codes.SCT.Tissue, codes.SCT.Tissue, manual) for i in (1, 2)]
    identity: tuple[Any, ...] = (hd.UID(), 1, hd.UID(), 1, "maker", "model", "1", "serial")
    path, scheme = tmp_path / "a.dcm", load_scheme("freesurfer")
    hd.seg.Segmentation(sources, NUMBERS, kind, labels, *identity, content_label="SEG").save_as(path)
    content = path.read_bytes()

    def check(change: tuple[list[tuple[float, int]], float]) -> None:
        path.write_bytes(spoil(content, change))
        try:
            with bounded():
                label_map, _ = read_label_map(path)
                assert label_map.any()
                segments_to_ids(label_map, segment_labels_of(path) or {}, scheme, str(path))
        except InputError as error:
            assert_one_clear_line(error, path)

    for_each(num_examples, check, changes())


@few_or_many(40, 500)
def test_whatever_the_bytes_of_a_slice_its_series_is_read_or_one_clear_line(series: Path, num_examples: int) -> None:
    file = series / "0002.dcm"
    content = file.read_bytes()

    def check(change: tuple[list[tuple[float, int]], float]) -> None:
        file.write_bytes(spoil(content, change))
        try:
            with bounded():
                volume, affine = read_t1w(series)
            assert np.isfinite(volume).all()
            assert np.isfinite(np.linalg.inv(affine)).all()
        except InputError as error:
            assert_one_clear_line(error, series)

    for_each(num_examples, check, changes())
