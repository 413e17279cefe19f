"""A folder with one DICOM series in: as an image of nibabel's, so that one reader checks images of every format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from trispade.errors import InputError
from trispade.nrrd import LPS_TO_RAS

EVENNESS = 0.02
"""How much steps between slices may differ, as a share of the middle one: positions are stored with few digits."""

MOST_FILES = 2048
"""Of a series: four times the slices of the largest volume."""

_POSITION, _DIRECTIONS, _PIXEL_SPACING = "0020|0032", "0020|0037", "0028|0030"
_MODALITY, _NUM_FRAMES = "0008|0060", "0028|0008"
_REMEDY = "Export the series again, complete, into a folder of its own."


class DicomSeriesImage(nib.spatialimages.SpatialImage):
    """A 3D volume of a DICOM series; its voxels are read when they are asked for, as float32."""


@dataclass(frozen=True)
class _Slice:
    """What the header of one file says of its slice, in LPS+ mm."""

    path: str
    shape: tuple[int, int]  # columns, rows: X, Y
    position: np.ndarray
    directions: np.ndarray  # (3, 2), along X and along Y
    sizes_mm: np.ndarray  # (2,), along X and along Y


class _Voxels:
    """What nibabel calls an array proxy: (X, Y, Z) float32, the stored rescaling applied."""

    is_proxy = True
    ndim = 3
    dtype = np.dtype(np.float32)

    def __init__(self, files: Sequence[str], shape: tuple[int, int, int]) -> None:
        self.files = files
        self.shape = shape

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        import itk  # here, since it takes seconds

        volume = np.empty(self.shape, self.dtype)
        # File by file, since the reader of whole series takes missing slices for thick ones.
        for index, file in enumerate(self.files):
            reader = itk.ImageFileReader[itk.Image[itk.F, 3]].New(FileName=file, ImageIO=itk.GDCMImageIO.New())
            try:
                reader.Update()
            except RuntimeError as error:
                raise OSError(f"{Path(file).name}: {end_of_message(error)}") from error
            volume[:, :, index] = itk.array_view_from_image(reader.GetOutput())[0].T
        return volume.astype(dtype or self.dtype, copy=False)


def open_dicom_series(folder: str | Path) -> DicomSeriesImage:
    """Open the one DICOM series in a folder, without reading its voxels.

    Files that are no DICOM are left alone, and so are folders in it.

    Returns:
        The image, (columns, rows, slices), its slices by their place along the normal of the first, and its affine
        voxel -> RAS+ mm. Source: DICOM PS3.3, C.7.6.2.1.1, equation C.7.6.2.1-1, with x and y changed in sign.

    Raises:
        InputError: if there is no DICOM file in the folder, several series, another modality than MR, several frames in
            a file, slices of different size or direction, several at one place, or one missing.
        OSError: if a file cannot be read.
    """
    folder = Path(folder)
    slices = [_read_slice(folder, file) for file in _files_of_the_series(folder)]
    first = slices[0]
    if len(slices) < 2:
        raise InputError.of(folder, "a series of several slices", "one file", _REMEDY)
    for each in slices:
        turned = np.abs(each.directions - first.directions).max() > 1e-3
        if turned or each.shape != first.shape or not np.allclose(each.sizes_mm, first.sizes_mm, rtol=1e-3):
            found = f"another in {Path(each.path).name} than in {Path(first.path).name}"
            raise InputError.of(folder, "slices of one size and direction", found, _REMEDY)
    normal = np.cross(first.directions[:, 0], first.directions[:, 1])
    slices.sort(key=lambda each: float(each.position @ normal))
    _check_steps(folder, slices, np.diff([float(each.position @ normal) for each in slices]))
    to_lps = np.eye(4)
    to_lps[:3, :2] = slices[0].directions * slices[0].sizes_mm
    to_lps[:3, 2] = (slices[-1].position - slices[0].position) / (len(slices) - 1)
    to_lps[:3, 3] = slices[0].position
    voxels = _Voxels([each.path for each in slices], (*first.shape, len(slices)))
    return DicomSeriesImage(voxels, LPS_TO_RAS @ to_lps)


def _check_steps(folder: Path, slices: Sequence[_Slice], steps_mm: np.ndarray) -> None:
    middle_mm = float(np.median(steps_mm))
    odd = np.flatnonzero(np.abs(steps_mm - middle_mm) > EVENNESS * middle_mm)
    if not len(odd) and middle_mm > 0:
        return
    at = int(odd[0]) if len(odd) else 0
    names = f"{Path(slices[at].path).name} and {Path(slices[at + 1].path).name}"
    if steps_mm[at] <= EVENNESS * middle_mm:
        raise InputError.of(folder, "one slice at each place", f"{names} at the same place", _REMEDY)
    found = f"{steps_mm[at]:.4g} mm between {names}, {middle_mm:.4g} mm elsewhere"
    raise InputError.of(folder, "slices at even distances, none missing", found, _REMEDY)


def _files_of_the_series(folder: Path) -> list[str]:
    import itk  # here, since it takes seconds

    try:
        names = itk.GDCMSeriesFileNames.New(Directory=str(folder), UseSeriesDetails=False, Recursive=False)
        files = [list(names.GetFileNames(uid)) for uid in names.GetSeriesUIDs()]
    except RuntimeError as error:
        raise OSError(end_of_message(error)) from error
    listed = {Path(file).name for each in files for file in each}
    torn = [file.name for file in sorted(folder.iterdir()) if file.name not in listed and _begins_as_dicom(file)]
    if torn:  # itk passes over them, and a volume without its last slice would look whole
        raise OSError(f"{', '.join(torn)}: no image that can be read")
    if not files:
        raise InputError.of(folder, "a folder with one DICOM series", "a folder without DICOM files", "Check the path.")
    if len(files) > 1:
        counts = " and ".join(str(count) for count in sorted(map(len, files), reverse=True))
        found = f"{len(files)}, of {counts} files"
        raise InputError.of(folder, "one DICOM series", found, "Put the T1w into a folder of its own.")
    if len(files[0]) > MOST_FILES:
        raise InputError.of(folder, f"a series of at most {MOST_FILES} files", f"{len(files[0])}", _REMEDY)
    return files[0]


def _begins_as_dicom(file: Path) -> bool:
    if file.name == "DICOMDIR" or not file.is_file():
        return False
    with file.open("rb") as stream:
        return stream.read(132)[128:] == b"DICM"


def _read_slice(folder: Path, file: str) -> _Slice:
    import itk  # here, since it takes seconds

    header = itk.GDCMImageIO.New(FileName=file)
    try:
        header.ReadImageInformation()
    except RuntimeError as error:
        raise OSError(f"{Path(file).name}: {end_of_message(error)}") from error
    tags = header.GetMetaDataDictionary()
    modality = _text(tags, _MODALITY)
    if modality != "MR":
        found = f"{modality!r} in {Path(file).name}"
        raise InputError.of(folder, "a series of modality MR", found, "Name the folder of the T1w.")
    num_frames = _text(tags, _NUM_FRAMES) or "1"
    if num_frames != "1":
        remedy = "Convert it to one file a slice, or to NIfTI."
        raise InputError.of(folder, "one slice a file", f"{num_frames!r} in {Path(file).name}", remedy)
    position, directions = _numbers(folder, file, tags, _POSITION, 3), _numbers(folder, file, tags, _DIRECTIONS, 6)
    spacing = _numbers(folder, file, tags, _PIXEL_SPACING, 2)
    shape = (int(header.GetDimensions(0)), int(header.GetDimensions(1)))
    return _Slice(file, shape, position, directions.reshape(2, 3).T, spacing[::-1])


def _numbers(folder: Path, file: str, tags: Any, tag: str, count: int) -> np.ndarray:
    text = _text(tags, tag)
    try:
        numbers = np.array([float(each) for each in text.split("\\")])
    except ValueError:
        numbers = np.empty(0)
    if numbers.shape != (count,) or not np.isfinite(numbers).all():
        expected = f"{count} numbers under ({tag.replace('|', ',')}), which place a slice"
        raise InputError.of(folder, expected, f"{text!r} in {Path(file).name}", _REMEDY)
    return numbers


def _text(tags: Any, tag: str) -> str:
    return str(tags[tag]).strip(" \0") if tags.HasKey(tag) else ""


def end_of_message(error: RuntimeError) -> str:
    """End of a message of itk's: what comes before it names places in its source."""
    return str(error).strip().splitlines()[-1].rpartition(": ")[-1]
