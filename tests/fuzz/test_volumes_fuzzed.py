"""Mutated NIfTI files: whatever their bytes are, a reader gives a volume or one clear line."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from examples import MIB, assert_one_clear_line, assert_usable, bounded, few_or_many, for_each
from hypothesis import strategies as st

from trispade.errors import InputError
from trispade.nifti import header_of, read_label_map, read_t1w
from trispade.volume_limits import BYTES_A_VOXEL, MOST_DEFLATED

DATA = Path(os.environ.get("TRISPADE_TEST_DATA", Path(__file__).parents[1] / "../../shared/data")).resolve()
SHAPE = (7, 9, 8)

FIELDS = {
    **{f"dim[{i}]": (40 + 2 * i, "<i2") for i in range(8)},
    **{f"pixdim[{i}]": (76 + 4 * i, "<f4") for i in range(8)},
    **{f"srow[{i}]": (280 + 4 * i, "<f4") for i in range(12)},
    **{name: (256 + 4 * i, "<f4") for i, name in enumerate(("b", "c", "d", "x", "y", "z"))},
    "sizeof_hdr": (0, "<i4"),
    "intent_code": (68, "<i2"),
    "datatype": (70, "<i2"),
    "bitpix": (72, "<i2"),
    "vox_offset": (108, "<f4"),
    "scl_slope": (112, "<f4"),
    "scl_inter": (116, "<f4"),
    "xyzt_units": (123, "<u1"),
    "glmin": (140, "<i4"),
    "qform_code": (252, "<i2"),
    "sform_code": (254, "<i2"),
    "magic": (344, "<u4"),
    "extension": (348, "<u4"),
    "extension_size": (352, "<i4"),
    "voxel": (352, "<i4"),
}
DATATYPES = (0, 1, 2, 4, 8, 16, 32, 64, 128, 255, 256, 512, 768, 1024, 1280, 1536, 1792, 2048, 2304)
INTEGERS = st.one_of(st.sampled_from([*DATATYPES, -1, 3, 5, 7, 348, 352, 32767, -32768, 2**31 - 1]), st.integers())
FLOATS = st.one_of(
    st.sampled_from([0.0, -0.0, np.nan, np.inf, -np.inf, 1e38, -1e38, 1e-38, 352.0, 3.4e9, 0.3, 4.0]),
    st.floats(width=32),
)


def phantom(dtype: str = "<i2") -> bytes:
    """A label map with oblique axes and ids that no scheme has together."""
    label_map = np.zeros(SHAPE, dtype)
    label_map[1:5, 2:7, 1:6] = 17
    label_map[2, 3:5, 2] = 53
    affine = np.array([[0.8, -0.6, 0, -90], [0.6, 0.8, 0, -126], [0, 0, 1.5, -72], [0, 0, 0, 1]])
    return nib.Nifti1Image(label_map, affine, dtype=label_map.dtype).to_bytes()


def real_header() -> bytes:
    """A real scan's header on the phantom's voxels; the phantom where there is no scan."""
    scan = next(iter(sorted(DATA.glob("malc2012/**/*_T1w.nii.gz"))), None)
    if scan is None:
        return phantom()
    with gzip.open(scan) as file:
        header = bytearray(file.read(352))
    header[40:56] = phantom()[40:56]
    return bytes(header) + bytes(range(256)) * 32


SOURCES = [phantom(dtype) for dtype in ("<i2", "u1", "<f4", "<f8", "<i8", ">i2")] + [real_header()]


@st.composite
def spoilt_files(draw: st.DrawFn, sources: Sequence[bytes] = SOURCES, level: int = 1) -> tuple[str, bytes]:
    """Suffix and content of a file: a NIfTI's, with fields set to anything, bits turned, torn or inflated."""
    content = bytearray(draw(st.sampled_from(sources)))
    for name in draw(st.lists(st.sampled_from(sorted(FIELDS)), max_size=4)):
        place, kind = FIELDS[name]
        value = draw(FLOATS if kind == "<f4" else INTEGERS)
        dtype = np.dtype(kind)
        if dtype.kind in "iu":
            value %= 1 << 8 * dtype.itemsize
            dtype = np.dtype(kind.replace("i", "u"))
        content[place : place + dtype.itemsize] = np.array(value, dtype).tobytes()
    for place in draw(st.lists(st.integers(0, len(content) - 1), max_size=3)):
        content[place] ^= draw(st.integers(1, 255))
    content += draw(st.sampled_from([b"", b"\0" * 5000, b"rest"]))
    del content[draw(st.one_of(st.just(len(content)), st.integers(0, len(content)))) :]
    if not draw(st.booleans()):
        return ".nii", bytes(content)
    return ".nii.gz", draw(spoilt_bytes(gzip.compress(bytes(content), level, mtime=0)))


@st.composite
def spoilt_bytes(draw: st.DrawFn, whole: bytes) -> bytes:
    """Bytes of which up to two have other bits, torn or whole."""
    content = bytearray(whole)
    for place in draw(st.lists(st.integers(0, len(content) - 1), max_size=2)):
        content[place] ^= draw(st.integers(1, 255))
    del content[draw(st.one_of(st.just(len(content)), st.integers(0, len(content)))) :]
    return bytes(content)


def allowed_mib(suffix: str, size: int) -> float:
    """What the bytes that a file can hold are allowed to take, if each is a voxel, and 1 MiB for the rest."""
    return 1 + BYTES_A_VOXEL * size * (MOST_DEFLATED if suffix == ".nii.gz" else 1) / MIB


def hold(read: Callable, path: Path, content: bytes) -> None:
    """Check what a reader makes of a file: a volume that can be worked with, or one clear line."""
    path.write_bytes(content)
    try:
        with bounded(allowed_mib(path.name[1:], len(content))):
            volume, affine = read(path)
    except InputError as error:
        assert_one_clear_line(error, path)
    else:
        assert_usable(volume, affine)
        assert header_of(path)[0] == volume.shape


@few_or_many(250, 8000)
@pytest.mark.parametrize("read", [read_label_map, read_t1w])
def test_whatever_the_bytes_of_a_volume_a_reader_gives_it_or_one_clear_line(
    tmp_path: Path, read: Callable, num_examples: int
) -> None:
    for_each(num_examples, lambda file: hold(read, tmp_path / f"a{file[0]}", file[1]), spoilt_files())


@few_or_many(20, 600)
@pytest.mark.parametrize(
    ("pattern", "read"),
    [("malc2012/**/*_T1w.nii.gz", read_t1w), ("malc2012/**/*_dseg.nii.gz", read_label_map)],
    ids=["scan", "label_map"],
)
def test_whatever_becomes_of_a_real_file_a_reader_gives_it_or_one_clear_line(
    tmp_path: Path, pattern: str, read: Callable, num_examples: int
) -> None:
    file = next(iter(sorted(DATA.glob(pattern))), None)
    if file is None:
        pytest.skip(f"no scans under {DATA}")
    packed = file.read_bytes()
    hold(read, tmp_path / "a.nii.gz", packed)
    assert read(tmp_path / "a.nii.gz")[0].size > 1e6
    spoilt = st.one_of(st.tuples(st.just(".nii.gz"), spoilt_bytes(packed)), spoilt_files([gzip.decompress(packed)], 0))
    for_each(num_examples, lambda file: hold(read, tmp_path / f"a{file[0]}", file[1]), spoilt)
