"""Mutated NRRD and MGZ files: whatever their bytes are, a reader gives a volume or one clear line."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from examples import MIB, assert_one_clear_line, assert_usable, bounded, few_or_many, for_each
from hypothesis import strategies as st

from trispade.errors import InputError
from trispade.nifti import header_of, read_label_map, read_t1w
from trispade.volume_limits import BYTES_A_VOXEL, MOST_DEFLATED

SHAPE = (7, 9, 8)
AFFINE = np.array([[0.8, -0.6, 0, -90], [0.6, 0.8, 0, -126], [0, 0, 1.5, -72], [0, 0, 0, 1]])
LABELS = np.zeros(SHAPE, np.int16)
LABELS[1:5, 2:7, 1:6], LABELS[2, 3:5, 2] = 17, 53

NRRD_HEADER = {
    "type": "short",
    "dimension": "3",
    "space": "left-posterior-superior",
    "sizes": "7 9 8",
    "space directions": "(0.8,0.6,0) (-0.6,0.8,0) (0,0,1.5)",
    "kinds": "domain domain domain",
    "endian": "little",
    "encoding": "raw",
    "space origin": "(-90,-126,-72)",
}
NRRD_VALUES = (
    *("", "none", "block", "float", "uchar", "unsigned long long int", "0", "-1", "2", "4", "1e999", "nan", "inf"),
    *("raw", "gzip", "ascii", "hex", "bzip2", "big", "3D-right-handed", "RAS", "left-anterior-superior-time"),
    *("7 9", "7 9 8 1", "1 1 1", "0 9 8", "-7 9 8", "7.5 9 8", "99999 99999 99999", "9" * 5000, "4294967296 1 1"),
    *("none (1,0,0) (0,1,0) (0,0,1)", "(1,0,0) (0,1,0) none", "(1,0) (0,1)", "(1,0,0)(0,1,0)", "()", "(", "(nan,0,0)"),
    *("(1e308,0,0) (0,1e308,0) (0,0,1)", "(0,0,0) (0,0,0) (0,0,0)", '"', "\0", "\x1b[31m", "/etc/passwd", "é"),
)
NRRD_FIELDS = (
    *NRRD_HEADER,
    *("data file", "datafile", "byte skip", "line skip", "space dimension", "measurement frame", "spacings", "content"),
    *("thicknesses", "labels", "units", "old min", "max", "axis mins", "centerings", "space units", "sample units"),
)

MGZ_FIELDS = {
    "version": (0, ">i4"),
    **{f"dim[{i}]": (4 + 4 * i, ">i4") for i in range(4)},
    "type": (20, ">i4"),
    "dof": (24, ">i4"),
    "goodRASFlag": (28, ">i2"),
    **{f"delta[{i}]": (30 + 4 * i, ">f4") for i in range(3)},
    **{f"Mdc[{i}]": (42 + 4 * i, ">f4") for i in range(9)},
    **{f"Pxyz_c[{i}]": (78 + 4 * i, ">f4") for i in range(3)},
    "voxel": (284, ">i2"),
}
INTEGERS = st.one_of(st.sampled_from([*range(-1, 12), 255, 256, 32767, -32768, 2**31 - 1, -(2**31)]), st.integers())
FLOATS = st.one_of(st.sampled_from([0.0, np.nan, np.inf, -np.inf, 1e38, 1e-38, 0.3, 4.0]), st.floats(width=32))


@st.composite
def with_changed_bytes(draw: st.DrawFn, content: bytes, most: int = 3) -> bytes:
    """Some bytes turned, a rest added, the end torn off; often nothing of that."""
    spoilt = bytearray(content)
    for place in draw(st.lists(st.integers(0, len(spoilt) - 1), max_size=most)):
        spoilt[place] ^= draw(st.integers(1, 255))
    spoilt += draw(st.sampled_from([b"", b"", b"\0" * 5000, b"rest"]))
    del spoilt[draw(st.one_of(st.just(len(spoilt)), st.just(len(spoilt)), st.integers(0, len(spoilt)))) :]
    return bytes(spoilt)


@st.composite
def nrrd_files(draw: st.DrawFn) -> tuple[str, bytes]:
    """A phantom's file with lines of its header set to anything, left out, doubled or moved, and bytes changed."""
    header = dict(NRRD_HEADER)
    voxels = LABELS.astype("<i2").tobytes(order="F")
    if draw(st.booleans()):
        header["encoding"], voxels = "gzip", gzip.compress(voxels, 1, mtime=0)
    for field in draw(st.lists(st.sampled_from(NRRD_FIELDS), max_size=3)):
        header[field] = draw(st.one_of(st.sampled_from(NRRD_VALUES), st.text(max_size=20)))
    lines = [f"{field}:{draw(st.sampled_from([' ', '', '=']))}{value}" for field, value in header.items()]
    if draw(st.integers(0, 3)) == 0:
        lines.insert(draw(st.integers(0, len(lines))), draw(st.sampled_from([*lines, "", "# remark", "key:=value"])))
    if draw(st.integers(0, 3)) == 0:
        lines.pop(draw(st.integers(0, len(lines) - 1)))
    magic = draw(st.sampled_from(["NRRD0004", "NRRD0004", "NRRD0004", "NRRD0005", "NRRD0006", "NRRD", ""]))
    text = "\n".join([magic, *lines, "", ""])
    return ".nrrd", draw(with_changed_bytes(text.encode(errors="surrogatepass") + voxels))


MGZ = {dtype: nib.MGHImage(LABELS.astype(dtype), AFFINE).to_bytes() for dtype in ("u1", "i2", "i4", "f4")}


@st.composite
def mgz_files(draw: st.DrawFn) -> tuple[str, bytes]:
    """A phantom's file with fields of its header set to anything, and bytes changed before and after compression."""
    content = bytearray(draw(st.sampled_from(list(MGZ.values()))))
    for name in draw(st.lists(st.sampled_from(sorted(MGZ_FIELDS)), max_size=4)):
        place, kind = MGZ_FIELDS[name]
        value, dtype = draw(FLOATS if kind == ">f4" else INTEGERS), np.dtype(kind)
        if dtype.kind == "i":
            value, dtype = value % (1 << 8 * dtype.itemsize), np.dtype(kind.replace("i", "u"))
        content[place : place + dtype.itemsize] = np.array(value, dtype).tobytes()
    spoilt = draw(with_changed_bytes(bytes(content)))
    return ".mgz", draw(with_changed_bytes(gzip.compress(spoilt, 1, mtime=0), most=1))


def allowed_mib(suffix: str, content: bytes) -> float:
    """What the bytes that a file can hold are allowed to take, if each is a voxel, and 2 MiB for the rest."""
    inflates = suffix == ".mgz" or b"gz" in content
    return 2 + BYTES_A_VOXEL * len(content) * (MOST_DEFLATED if inflates else 1) / MIB


@few_or_many(300, 8000)
@pytest.mark.parametrize("read", [read_label_map, read_t1w])
@pytest.mark.parametrize("files", [nrrd_files, mgz_files])
def test_whatever_the_bytes_of_an_nrrd_or_mgz_it_is_read_or_one_clear_line(
    tmp_path: Path, files: Callable, read: Callable, num_examples: int
) -> None:
    read_files = 0

    def check(example: tuple[str, bytes]) -> None:
        nonlocal read_files
        suffix, content = example
        path = tmp_path / f"a{suffix}"
        path.write_bytes(content)
        try:
            with bounded(allowed_mib(suffix, content)):
                volume, affine = read(path)
        except InputError as error:
            assert_one_clear_line(error, path)
        else:
            read_files += 1
            assert_usable(volume, affine)
            assert header_of(path)[0] == volume.shape

    for_each(num_examples, check, files())
    assert read_files > num_examples / 50
