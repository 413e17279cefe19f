"""NRRD, the format of 3D Slicer, in: as an image of nibabel's, so that one reader checks files of every format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from trispade.errors import InputError

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_SPACE = "left-posterior-superior"  # what itk turns all spaces of anatomical directions into


class NrrdImage(nib.spatialimages.SpatialImage):
    """A 3D volume of an NRRD file; its voxels are read when they are asked for, as float64."""


class _Voxels:
    """What nibabel calls an array proxy: (X, Y, Z) float64, which holds label ids of every type."""

    is_proxy = True
    ndim = 3
    dtype = np.dtype(np.float64)

    def __init__(self, path: Path, shape: tuple[int, ...]) -> None:
        self.path = path
        self.shape = shape

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        import itk  # here, since it takes seconds

        # In double precision, since itk's Python has no images of some types, such as int64.
        reader = itk.ImageFileReader[itk.Image[itk.D, 3]].New(FileName=str(self.path), ImageIO=itk.NrrdImageIO.New())
        try:
            reader.Update()
        except RuntimeError as error:
            raise OSError(end_of_message(error)) from error
        return itk.array_from_image(reader.GetOutput()).transpose().astype(dtype or self.dtype, copy=False)


def open_nrrd(path: str | Path) -> NrrdImage:
    """Open an NRRD file, without reading its voxels.

    Returns:
        The image, its affine voxel -> RAS+ mm: the file's directions are the columns, its origin is that of the first
        voxel, and x and y change sign where its space is LPS.

    Raises:
        InputError: if it does not hold one number for each voxel of a 3D grid, or does not say in terms of left and
            right, front and back, up and down where its axes point.
        OSError: if it is no whole NRRD file.
    """
    header = _read_header(Path(path))
    num_axes, num_values = header.GetNumberOfDimensions(), header.GetNumberOfComponents()
    if (num_axes, num_values) != (3, 1):
        found = f"{num_axes} axes in space, {num_values} numbers a voxel"
        raise InputError.of(path, "a 3D volume, one number a voxel", found, "Choose one volume and save it alone.")
    metadata = header.GetMetaDataDictionary()
    space = metadata["NRRD_space"] if metadata.HasKey("NRRD_space") else "none"
    if space != _SPACE:
        remedy = "Save it with one, such as left-posterior-superior: left and right could be swapped."
        raise InputError.of(path, "a 'space' of anatomical directions in its header", space, remedy)
    affine = np.eye(4)
    for axis in range(3):
        affine[:3, axis] = np.multiply(header.GetDirection(axis), header.GetSpacing(axis))
        affine[axis, 3] = header.GetOrigin(axis)
    shape = tuple(int(header.GetDimensions(axis)) for axis in range(3))
    return NrrdImage(_Voxels(Path(path), shape), LPS_TO_RAS @ affine)


def _read_header(path: Path) -> Any:
    import itk  # here, since it takes seconds

    header = itk.NrrdImageIO.New()
    if not header.CanReadFile(str(path)):
        raise OSError("it does not begin as one does")
    header.SetFileName(str(path))
    try:
        header.ReadImageInformation()
    except RuntimeError as error:
        raise OSError(end_of_message(error)) from error
    return header


def end_of_message(error: RuntimeError) -> str:
    """End of a message of itk's: what comes before it names places in its source."""
    return str(error).strip().splitlines()[-1].rpartition(": ")[-1]
