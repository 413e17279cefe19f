"""A DICOM segmentation (SEG) in: as an image of nibabel's, so that one reader checks label maps of every format.

Its voxels are segment numbers, which have to count from 1 and so say nothing by themselves. What a segment is stands in
its label (`read_segment_labels`); `trispade.segment_names` makes label ids of these.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from trispade.errors import InputError
from trispade.nrrd import LPS_TO_RAS

if TYPE_CHECKING:
    from pydicom import Dataset

LARGEST_FILE = 1 << 30
"""Bytes: 64 segments of the largest volume, one bit a voxel."""

MOST_FRAMES = 1 << 16
"""128 segments of 512 slices."""

EVENNESS = 0.02
"""How far a slice may be from its place, as a share of the distance between slices."""

_START = 1024  # bytes within which a file says what it is
_SEGMENTATION = re.compile(
    rb".{128}DICM.*?\x02\x00\x02\x00UI..1\.2\.840\.10008\.5\.1\.4\.1\.1\.66\.[47][\x00\x02]", re.DOTALL
)
_DEFLATED = "1.2.840.10008.1.2.1.99"
_REMEDY = "Export the segmentation again, or convert it to NIfTI."


class DicomSegImage(nib.spatialimages.SpatialImage):
    """A 3D volume of a DICOM segmentation; its voxels, segment numbers, are read when they are asked for."""


class _Voxels:
    """What nibabel calls an array proxy: (X, Y, Z) uint16 segment numbers, 0 where there is none."""

    is_proxy = True
    ndim = 3
    dtype = np.dtype(np.uint16)

    def __init__(self, path: Path, dataset: Dataset, slices: np.ndarray, shape: tuple[int, int, int]) -> None:
        self.path = path
        self.dataset = dataset
        self.slices = slices
        self.shape = shape

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        volume = np.zeros(self.shape, self.dtype)
        with _as_os_errors():
            for frame, pixels in enumerate(_frames(self.path)):
                self._add(volume[:, :, self.slices[frame]], frame, pixels.T)
        return volume.astype(dtype or self.dtype, copy=False)

    def _add(self, target: np.ndarray, frame: int, pixels: np.ndarray) -> None:
        if self.dataset.SegmentationType == "LABELMAP":
            target[...] = pixels
            return
        groups = self.dataset.PerFrameFunctionalGroupsSequence[frame]
        number = int(groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
        inside = pixels > 0
        others = np.unique(target[inside])
        if others.any():
            found = f"segments {number} and {int(others[others > 0][0])} in one voxel"
            raise InputError.of(self.path, "segments that do not overlap", found, "Save it without overlaps.")
        target[inside] = number


def is_dicom_seg(path: Path) -> bool:
    """Tell whether a file is a DICOM segmentation, from its first bytes.

    Raises:
        OSError: if it cannot be read.
    """
    with path.open("rb") as file:
        return _SEGMENTATION.match(file.read(_START)) is not None


def open_dicom_seg(path: str | Path) -> DicomSegImage:
    """Open a DICOM segmentation, without reading its voxels.

    Returns:
        The image, (columns, rows, slices) from the first to the last slice that has a segment, and its affine
        voxel -> RAS+ mm. Source: DICOM PS3.3, C.7.6.2.1.1, equation C.7.6.2.1-1, with x and y changed in sign.

    Raises:
        InputError: if pydicom is not installed, if the file is too large to be one of a head, if its segments are
            fractional, or if its frames lie on no common grid.
        OSError: if it is no whole DICOM file.
    """
    path = Path(path)
    dataset = _read(path)
    with _as_os_errors():
        kind, num_frames = str(dataset.SegmentationType), int(dataset.get("NumberOfFrames", 1))
        if kind not in ("BINARY", "LABELMAP"):
            remedy = "Save it with each voxel in one segment or none."
            raise InputError.of(path, "a segmentation of type BINARY or LABELMAP", repr(kind), remedy)
        if num_frames > MOST_FRAMES:
            raise InputError.of(path, f"at most {MOST_FRAMES} frames", str(num_frames), _REMEDY)
        positions, directions, spacing = _places(path, dataset, num_frames)
        to_lps = np.eye(4)
        to_lps[:3, 0], to_lps[:3, 1] = directions[0] * spacing[1], directions[1] * spacing[0]
        normal = np.cross(*directions)
        distances = (positions - positions[0]) @ normal
        step_mm = _step(dataset, distances)
        slices = np.rint((distances - distances.min()) / step_mm).astype(int)
        first = positions[int(np.argmin(distances))]
        to_lps[:3, 2], to_lps[:3, 3] = normal * step_mm, first
        off_mm = np.abs(first + slices[:, None] * normal * step_mm - positions).max()
        if not off_mm <= EVENNESS * step_mm:
            raise InputError.of(path, "frames on one grid", f"some {off_mm:.3g} mm beside it", _REMEDY)
        shape = (int(dataset.Columns), int(dataset.Rows), int(slices.max()) + 1)
    return DicomSegImage(_Voxels(path, dataset, slices, shape), LPS_TO_RAS @ to_lps)


def read_segment_labels(path: str | Path) -> dict[int, str]:
    """Read what a DICOM segmentation calls its segments: segment number -> segment label.

    Raises:
        InputError: as `open_dicom_seg`, and if the file says nothing of its segments.
    """
    path = Path(path)
    try:
        dataset = _read(path)
        with _as_os_errors():
            return {int(each.SegmentNumber): str(each.SegmentLabel).strip() for each in dataset.SegmentSequence}
    except OSError as error:
        raise InputError.of(path, "a label for each segment", f"'{error}'", _REMEDY) from error


def require_pydicom(subject: object) -> None:
    """Check that pydicom is installed.

    Raises:
        InputError: if it is not.
    """
    try:
        import pydicom  # noqa: F401
    except ImportError as error:
        raise InputError.of(
            subject, "pydicom, for DICOM", "none", "pip install pydicom (the extra 'dicom')."
        ) from error


def _read(path: Path) -> Dataset:
    """Read a file but for its pixels, which stay in it."""
    require_pydicom(path)
    from pydicom import dcmread
    from pydicom.filereader import read_file_meta_info

    size = path.stat().st_size
    if size > LARGEST_FILE:
        raise InputError.of(path, f"a file of at most {LARGEST_FILE >> 20} MiB", f"{size >> 20} MiB", _REMEDY)
    with _as_os_errors():
        # Before the rest, which would swell while it is read.
        if read_file_meta_info(path).TransferSyntaxUID == _DEFLATED:
            raise InputError.of(path, "a file that is not deflated as a whole", "one that is", _REMEDY)
        return dcmread(path, stop_before_pixels=True)


def _frames(path: Path) -> Iterator[np.ndarray]:
    """Give the frames of a file one by one, (rows, columns)."""
    from pydicom import dcmread
    from pydicom.pixels import iter_pixels

    dataset = dcmread(path)
    if dataset.BitsAllocated != 1 or dataset.file_meta.TransferSyntaxUID.is_compressed:
        yield from iter_pixels(dataset)
        return
    # By hand: pydicom 3.0 cuts frames wrongly that begin within a byte. Source: DICOM PS3.5, 8.1.1 and annex D.
    size, packed = dataset.Rows * dataset.Columns, np.frombuffer(dataset.PixelData, np.uint8)
    for start in range(0, int(dataset.NumberOfFrames) * size, size):
        bits = np.unpackbits(packed[start // 8 : -(-(start + size) // 8)], bitorder="little")
        yield bits[start % 8 :][:size].reshape(dataset.Rows, dataset.Columns)


def _places(path: Path, dataset: Dataset, num_frames: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions (frames, 3) in LPS+ mm, directions of rows and of columns (2, 3), row and column spacing (2,) in mm."""
    shared = dataset.SharedFunctionalGroupsSequence[0]
    each_frame = list(dataset.PerFrameFunctionalGroupsSequence)
    if len(each_frame) != num_frames:
        raise InputError.of(path, f"the places of {num_frames} frames", f"those of {len(each_frame)}", _REMEDY)

    def values(sequence: str, keyword: str) -> np.ndarray:
        groups = [shared] if sequence in shared else each_frame
        if any(sequence not in each for each in groups):
            raise InputError.of(path, f"a {sequence} for each frame, as of a scan", "none", _REMEDY)
        return np.array([[float(value) for value in getattr(each[sequence][0], keyword)] for each in groups])

    positions = values("PlanePositionSequence", "ImagePositionPatient")
    directions = values("PlaneOrientationSequence", "ImageOrientationPatient")
    spacings = values("PixelMeasuresSequence", "PixelSpacing")
    if np.ptp(directions, axis=0).max() > 1e-3 or np.ptp(spacings, axis=0).max() > 1e-3 * spacings.max():
        raise InputError.of(path, "frames of one size and direction", "several", _REMEDY)
    return np.broadcast_to(positions, (num_frames, 3)), directions[0].reshape(2, 3), spacings[0]


def _step(dataset: Dataset, distances: np.ndarray) -> float:
    """Distance between slices in mm: what the file says, else the smallest that there is."""
    groups = (dataset.SharedFunctionalGroupsSequence[0], dataset.PerFrameFunctionalGroupsSequence[0])
    measures: Any = next(each.PixelMeasuresSequence[0] for each in groups if "PixelMeasuresSequence" in each)
    said = measures.get("SpacingBetweenSlices")
    if said:
        return float(said)
    steps = np.diff(np.unique(np.round(distances, 3)))
    return float(steps.min()) if len(steps) else float(measures.SliceThickness)


@contextmanager
def _as_os_errors() -> Iterator[None]:
    """Tell of a file that pydicom cannot read, of which it raises anything, and warns, as of one that is torn."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (InputError, OSError, MemoryError):
        raise
    except Exception as error:
        raise OSError(" ".join(str(error).split()) or type(error).__name__) from error
