"""What a volume's file may announce: it is refused before room is made for what it says that it holds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import nibabel as nib
import numpy as np
from nibabel.openers import ImageOpener

from trispade.errors import InputError

LARGEST_VOLUME = 512**3
"""Voxels: a whole head of 256 mm at 0.5 mm."""

BYTES_A_VOXEL = 32
"""What reading takes at most: 4 GiB for the largest volume. Float64 with a stored scaling comes to 26."""

LARGEST_FIELD_MM = 512.0
"""Edge of the field of view. Scanners' bores are wider by some centimetres, heads take up half of it."""

LARGEST_EXTENSIONS = 4 << 20
"""Bytes between header and voxels. What scanners and AFNI keep there is some hundred kilobytes."""

LARGEST_NUMBER = 8
"""Bytes of one voxel's number."""

MOST_DEFLATED = 1032
"""How many bytes one byte of a gzip file can become. Source: zlib's Technical Details, "maximum compression factor"."""

_HEADERS = (nib.Nifti1Header, nib.Nifti2Header)
_REMEDY = "Copy or export the file again."


def check_volume(path: Path, shape: Sequence[int], affine: np.ndarray, dtype: np.dtype) -> None:
    """Check that a volume is one that can be read in the stated memory, from what its header announces.

    Args:
        path: of the file, for the message and for its size.
        shape: (X, Y, Z).
        affine: (4, 4), voxel -> RAS+ mm.
        dtype: as stored.

    Raises:
        InputError: if it has no voxel, more than 512^3, a field of view over 512 mm or voxels that are not one number
            of up to 8 bytes, or if a gzip file is too small to hold it.
    """
    extents, voxels = " x ".join(map(str, shape)), math.prod(int(extent) for extent in shape)
    if min(shape) < 1 or voxels > LARGEST_VOLUME:
        expected = f"a volume of 1 to {LARGEST_VOLUME} voxels (512 x 512 x 512)"
        raise InputError.of(path, expected, extents, "Crop or resample it, or repair the header.")
    if dtype.kind not in "biuf" or dtype.itemsize > LARGEST_NUMBER:
        expected = f"one number a voxel, of at most {8 * LARGEST_NUMBER} bits"
        raise InputError.of(path, expected, f"voxels of type {dtype}", "Convert it to a scalar image.")
    field_mm = np.linalg.norm(affine[:3, :3], axis=0) * np.asarray(shape)
    if field_mm.max() > LARGEST_FIELD_MM:
        found = f"{' x '.join(f'{each:.4g}' for each in field_mm)} mm"
        expected = f"a field of view of at most {LARGEST_FIELD_MM:g} mm"
        raise InputError.of(path, expected, found, "Crop it to the head, or repair the voxel size in the header.")
    size = path.stat().st_size
    if path.suffix in (".gz", ".mgz", ".nrrd") and voxels * dtype.itemsize > MOST_DEFLATED * size:
        expected = f"a whole, readable file of {extents} voxels"
        raise InputError.of(path, expected, f"a torn one of {size} bytes", _REMEDY)


def check_start(path: Path) -> None:
    """Check that what lies between a NIfTI's header and its voxels can be read without harm.

    Nibabel reads header extensions as long as they say that they are, and a gzip file of kilobytes has gigabytes in it.
    A file that starts like no NIfTI passes: it is found out when it is opened.

    Raises:
        InputError: if voxels are said to start before the end of the header or over 4 MiB after it, or if an extension
            is said to be shorter than its own head or longer than its room.
        OSError: if it cannot be read, as well as `EOFError`, `zlib.error` and whatever else reading compressed files
            raises.
    """
    with ImageOpener(str(path)) as file:
        start = file.read(max(each.sizeof_hdr for each in _HEADERS))
        kind = next((each for each in _HEADERS if each.may_contain_header(start)), None)
        if kind is None:
            return
        header = kind(start[: kind.sizeof_hdr], check=False)
        offset, room = float(header["vox_offset"]), LARGEST_EXTENSIONS
        if not 0 <= offset <= kind.sizeof_hdr + room:
            expected = f"voxels that start in the first {room >> 20} MiB"
            raise InputError.of(path, expected, f"byte {offset:g}", _REMEDY)
        file.seek(kind.sizeof_hdr)
        if file.read(4)[:1] in (b"", b"\0"):
            return
        pair = ".nii" not in path.name.lower()  # its header has a file of its own: all that follow are extensions
        _check_extensions(path, file, header.endianness, room if pair else int(offset) - kind.sizeof_hdr - 4)
        if pair and file.read(1):
            raise InputError.of(path, f"a header of at most {room >> 20} MiB", "more", _REMEDY)


def _check_extensions(path: Path, file: BinaryIO, order: str, room: int) -> None:
    while room >= 16:
        head = file.read(8)
        if len(head) < 8:
            return
        extent = int(np.frombuffer(head, f"{order}i4")[0])
        if not 16 <= extent <= room:
            expected = f"a header extension of 16 to {room} bytes"
            raise InputError.of(path, expected, str(extent), _REMEDY)
        file.read(extent - 8)
        room -= extent
