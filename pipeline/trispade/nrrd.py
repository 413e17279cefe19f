"""NRRD, the format of 3D Slicer, in: as an image of nibabel's, so that one reader checks files of every format."""

from __future__ import annotations

import io
import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import nibabel as nib
import numpy as np
import numpy.typing as npt

from trispade.errors import InputError

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])

LARGEST_HEADER = 1 << 20
"""Bytes. 3D Slicer's segmentations take some kilobytes, a line or more for each segment."""

_TO_RAS = {
    **dict.fromkeys(("right-anterior-superior", "ras"), np.eye(4)),
    **dict.fromkeys(("left-anterior-superior", "las"), np.diag([-1.0, 1.0, 1.0, 1.0])),
    **dict.fromkeys(("left-posterior-superior", "lps"), LPS_TO_RAS),
}
_GZIP = ("gzip", "gz")
_REMEDY = "Save it again, in one file."


class NrrdImage(nib.spatialimages.SpatialImage):
    """A 3D volume of an NRRD file; its voxels are read when they are asked for."""


class _Voxels:
    """What nibabel calls an array proxy: (X, Y, Z) of the file's type."""

    is_proxy = True
    ndim = 3

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        self.path = path
        self.header = header
        self.shape = tuple(int(extent) for extent in header["sizes"])
        self.dtype = _read({**header, "sizes": np.zeros(3, int)}, b"").dtype

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        size = math.prod(self.shape) * self.dtype.itemsize
        with self.path.open("rb") as file:
            _header_lines(file)
            content = _inflate(file, size) if self.header["encoding"] in _GZIP else file.read(size)
        if len(content) < size:
            raise OSError(f"{len(content)} bytes of voxels instead of {size}")
        return _read(self.header, content).astype(dtype or self.dtype.newbyteorder("="), copy=False)


def open_nrrd(path: str | Path) -> NrrdImage:
    """Open an NRRD file, without reading its voxels.

    Returns:
        The image, its affine voxel -> RAS+ mm: the file's directions are the columns, its origin is that of the first
        voxel, and x and y change sign where its space is LPS.

    Raises:
        InputError: if it does not hold one number for each voxel of a 3D grid, does not say in terms of left and right,
            front and back, up and down where its axes point, keeps its voxels in another file or in a way that is not
            read, or if pynrrd, which parses the header, is not installed.
        OSError: if it is no whole NRRD file.
    """
    path = Path(path)
    with path.open("rb") as file:
        header = _parse(path, _header_lines(file))
    axes, sizes = header["dimension"], len(header["sizes"])
    if (axes, sizes) != (3, 3):
        found = f"{axes} axes" if axes == sizes else f"{sizes} sizes for {axes} axes"
        raise InputError.of(path, "a 3D volume, one number a voxel", found, "Choose one volume and save it alone.")
    if min(header["sizes"]) < 1:
        raise OSError("an axis without a voxel")
    space = header.get("space", "none")
    to_ras = _TO_RAS.get(space.lower())
    if to_ras is None:
        remedy = "Save it with one, such as left-posterior-superior: left and right could be swapped."
        raise InputError.of(path, "a 'space' of anatomical directions in its header", _brief(space), remedy)
    directions, origin = (_numbers(header, name) for name in ("space directions", "space origin"))
    if directions.shape != (3, 3) or origin.shape != (3,):
        raise OSError("no direction in space for each axis, or no origin")
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = directions.T, origin
    return NrrdImage(_Voxels(path, header), to_ras @ affine)


def _header_lines(file: BinaryIO) -> list[bytes]:
    """Read up to the empty line behind the header; the file is then where its voxels begin."""
    lines: list[bytes] = []
    room = LARGEST_HEADER
    while room > 0:
        line = file.readline(room)
        room -= len(line)
        if not line.strip():
            return lines
        lines.append(line)
    raise OSError(f"a header of over {LARGEST_HEADER >> 20} MiB")


def _parse(path: Path, lines: list[bytes]) -> dict[str, Any]:
    """Parse a header, and refuse what trispade does not read, before anything is made of it."""
    try:
        import nrrd  # here, since only those who have such files need it
    except ModuleNotFoundError as error:
        raise InputError.of(path, "pynrrd, which reads NRRD", "no such package", "pip install pynrrd") from error
    if not lines or not lines[0].startswith(b"NRRD"):
        raise OSError("it does not begin as one does")
    try:
        header = dict(nrrd.read_header(lines))
    except Exception as error:  # whatever a parser makes of any bytes
        raise OSError(str(error) or type(error).__name__) from error
    missing = [field for field in ("type", "dimension", "sizes", "encoding") if field not in header]
    if missing:
        raise OSError(f"no {' and no '.join(missing)} in its header")
    for field in ("data file", "datafile"):
        if field in header:
            expected = "header and voxels in one file"
            raise InputError.of(path, expected, f"a header that names {_brief(header[field])}", _REMEDY)
    for field in ("line skip", "lineskip", "byte skip", "byteskip"):
        if header.get(field):
            expected = "voxels that follow the header"
            raise InputError.of(path, expected, f"a {field} of {_brief(header[field])}", _REMEDY)
    if header["encoding"] not in ("raw", *_GZIP):
        found = _brief(header["encoding"])
        raise InputError.of(path, "voxels encoded as raw or gzip", found, "Save it again as one of these.")
    return header


def _numbers(header: Mapping[str, Any], field: str) -> np.ndarray:
    try:
        return np.asarray(header.get(field, ()), np.float64)
    except (TypeError, ValueError):  # directions of which one is 'none'
        return np.empty(0)


def _read(header: Mapping[str, Any], content: bytes) -> np.ndarray:
    import nrrd

    try:
        return nrrd.read_data({**header, "encoding": "raw"}, io.BytesIO(content))
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error


def _inflate(file: BinaryIO, size: int) -> bytes:
    """Inflate what follows in a file up to a size, whatever it would become in the end."""
    inflater = zlib.decompressobj(zlib.MAX_WBITS | 16)
    parts: list[bytes] = []
    while size > 0 and not inflater.eof:
        read = inflater.unconsumed_tail or file.read(1 << 20)
        if not read:
            break
        parts.append(inflater.decompress(read, size))
        size -= len(parts[-1])
    return b"".join(parts)


def _brief(value: object) -> str:
    text = "".join(each if each.isprintable() else "?" for each in str(value))
    return text if len(text) <= 60 else f"{text[:60]}..."
