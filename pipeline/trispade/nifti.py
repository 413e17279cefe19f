"""NIfTI and MGZ (FreeSurfer) files in and out; NRRD, a folder of one DICOM series (T1w) and DICOM SEG (label maps) in.

Each problem that a person can have with a file becomes one line that names it.
"""

from __future__ import annotations

import glob
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.filebasedimages import ImageFileError
from nibabel.freesurfer.mghformat import MGHError
from nibabel.spatialimages import HeaderDataError

from trispade.dicom_seg import DicomSegImage, is_dicom_seg, open_dicom_seg
from trispade.dicom_series import DicomSeriesImage, open_dicom_series
from trispade.durable import sync_file, sync_folder
from trispade.errors import InputError
from trispade.nrrd import NrrdImage, open_nrrd
from trispade.volume_limits import check_start, check_volume

SMALLEST_VOXEL_MM = 0.3
LARGEST_VOXEL_MM = 4.0
LARGEST_ASPECT = 3.0
LARGEST_NUMBER = 1e9  # of an affine: mm
LARGEST_SHEAR = 1e-3
GRID_TOLERANCE_MM = 1e-3
SIZE_SLACK_MM = 1e-3

_GEOMETRY_FIELDS = (
    *("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"),
)
_READ_ERRORS = (
    *(OSError, EOFError, ValueError, KeyError, TypeError, OverflowError),
    *(zlib.error, HeaderDataError, ImageFileError, MGHError),
)

_FORMATS = {".mgz": "MGZ", ".nrrd": "NRRD", ".dcm": "DICOM"}
"""By the suffix; NIfTI is every other."""

_IMAGES = (nib.Nifti1Pair, nib.MGHImage, NrrdImage, DicomSeriesImage, DicomSegImage)

Shape = tuple[int, int, int]


def header_of(path: str | Path) -> tuple[Shape, np.ndarray]:
    """Shape and affine of a 3D NIfTI, MGZ or NRRD file, a DICOM series or SEG, checked, without reading its voxels.

    Returns:
        (X, Y, Z) and the (4, 4) float64 affine, voxel -> RAS+ mm.

    Raises:
        InputError: if the file is missing or unreadable, not 3D, or its grid is one that trispade does not take
            (singular or sheared affine, voxels under 0.3 or over 4 mm, aspect over 3).
    """
    image = _open(Path(path))
    shape = _spatial_shape(Path(path), image.shape)
    affine = np.asarray(image.affine, np.float64)
    _check_affine(Path(path), affine)
    check_volume(Path(path), shape, affine, image.get_data_dtype())
    return shape, affine


def read_label_map(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Read a label map.

    Returns:
        (X, Y, Z) int32 label ids in the file's own axis order, and the (4, 4) float64 affine, voxel -> RAS+ mm. Of a
        DICOM SEG the ids are segment numbers (`trispade.segment_names`).

    Raises:
        InputError: as `header_of`, and if a value is no integer, is negative or beyond int32, or no voxel is labelled,
            or if it is a folder.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError.of(path, _a_file(path), "a folder", "Name one file in it.")
    shape, affine = header_of(path)
    values = _voxels(path, shape)
    _check_label_ids(path, values)
    return values.astype(np.int32), affine


def check_label_map(label_map: np.ndarray, affine: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Check a label map in memory as `read_label_map` checks a file.

    Args:
        label_map: (X, Y, Z), or with further axes of length 1 behind these.
        affine: (4, 4), voxel -> RAS+ mm.
        name: what errors call it.

    Returns:
        As `read_label_map`.

    Raises:
        InputError: as `read_label_map`.
    """
    if label_map.dtype.kind not in "biuf":
        raise InputError.of(name, "one number a voxel", f"voxels of type {label_map.dtype}", "Convert it to integers.")
    shape = _spatial_shape(name, label_map.shape)
    affine = np.asarray(affine, np.float64)
    if affine.shape != (4, 4):
        raise InputError.of(name, "an affine of 4 x 4", f"one of shape {affine.shape}", "Give voxel -> RAS+ mm.")
    _check_affine(name, affine)
    values = label_map.reshape(shape)
    _check_label_ids(name, values)
    return values.astype(np.int32), affine


def read_t1w(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Read a T1w scan, a file or a folder with one DICOM series.

    Returns:
        (X, Y, Z) float32 intensities in the file's own units and axis order, and the (4, 4) float64 affine.

    Raises:
        InputError: as `header_of`, and if a voxel is NaN or infinite, or all are zero.
    """
    path = Path(path)
    shape, affine = header_of(path)
    with np.errstate(all="ignore"):  # of numbers beyond float32, which become infinite
        t1w = _voxels(path, shape).astype(np.float32)
    num_bad = t1w.size - int(np.isfinite(t1w).sum())
    if num_bad:
        raise InputError.of(
            path,
            "finite intensities",
            f"{num_bad} voxels that are NaN or infinite",
            "Set them to zero, or repair them.",
        )
    if not t1w.any():
        raise InputError.of(path, "an image", "zero in every voxel", "Check how the file was made.")
    return t1w, affine


def check_same_grid(
    label_path: str | Path,
    label_shape: tuple[int, ...],
    label_affine: np.ndarray,
    t1w_path: str | Path,
    t1w_shape: tuple[int, ...],
    t1w_affine: np.ndarray,
) -> None:
    """Check that an image lies on the voxel grid of its label map.

    Raises:
        InputError: if the shapes differ, or an affine's entry by more than 1e-3 mm.
    """
    remedy = "Resample the image onto the label map's grid (or the reverse, with nearest neighbour)."
    if tuple(label_shape) != tuple(t1w_shape):
        raise InputError.of(t1w_path, f"the shape of {label_path}, {_times(label_shape)}", _times(t1w_shape), remedy)
    distance = float(np.abs(np.asarray(label_affine) - np.asarray(t1w_affine)).max())
    if distance > GRID_TOLERANCE_MM:
        raise InputError.of(
            t1w_path, f"the affine of {label_path}", f"one that differs from it by up to {distance:.3g} mm", remedy
        )


def write_nifti(
    path: str | Path,
    array: np.ndarray,
    affine: np.ndarray,
    like: nib.Nifti1Header | str | Path | None = None,
    dtype: npt.DTypeLike = np.float32,
    sidecar: Mapping[str, Any] | None = None,
) -> None:
    """Write a volume so that no half-written file is ever seen under its name.

    Args:
        path: `.nii.gz` or `.nii`; missing folders are made.
        array: (X, Y, Z), cast to `dtype` without scaling.
        affine: (4, 4), voxel -> RAS+ mm.
        like: header, or file, whose units and space codes are kept (the exact qform and sform if the affine agrees);
            where it is of another format, which has none, millimetres and the scanner's space.
        dtype: type on disk.
        sidecar: content of the JSON file of the same name, in place before the image is.

    Raises:
        InputError: if the folder cannot be made or written to, or the name is no NIfTI's.
    """
    path = Path(path)
    if not path.name.endswith((".nii", ".nii.gz")):
        raise InputError.of(path, "a name that ends in .nii.gz or .nii", path.name, "Change the name of the output.")
    header = _open(Path(like)).header if isinstance(like, str | Path) else like
    image = _image_like(np.asarray(array).astype(dtype), np.asarray(affine, np.float64), header)
    _save(image, path, path.with_name(name_without_suffix(path) + ".json"), sidecar)


def write_mgz(
    path: str | Path,
    array: np.ndarray,
    affine: np.ndarray,
    dtype: npt.DTypeLike = np.float32,
    sidecar: Mapping[str, Any] | None = None,
) -> None:
    """Write a volume as MGZ, as `write_nifti` writes it, and its sidecar as `<name>.mgz.json`.

    Raises:
        InputError: if the folder cannot be made or written to.
    """
    path = Path(path)
    image = nib.MGHImage(np.asarray(array).astype(dtype), np.asarray(affine, np.float64))
    _save(image, path, path.with_name(f"{path.name}.json"), sidecar)


def _save(
    image: nib.spatialimages.SpatialImage, path: Path, sidecar_file: Path, sidecar: Mapping[str, Any] | None
) -> None:
    with replacing(path) as partial_path:
        nib.save(image, partial_path)
        if sidecar is not None:
            with replacing(sidecar_file) as partial_sidecar:
                partial_sidecar.write_text(json.dumps(sidecar, indent=2) + "\n", encoding="utf-8")


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside `path`, with its suffix, that takes its place when the block ends well.

    Raises:
        InputError: if the folder cannot be made, or writing or replacing fails.
    """
    path = Path(path)
    partial_path = path.with_name(f".partial-{os.getpid()}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial_path
        sync_file(partial_path)
        partial_path.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise InputError.of(
            path,
            "a folder that can be written to",
            error.strerror or str(error),
            "Choose another output folder, or make room in it.",
        ) from error
    finally:
        for left in path.parent.glob(f".partial-*-{glob.escape(path.name)}"):  # those of runs that were killed as well
            left.unlink(missing_ok=True)


def name_without_suffix(path: str | Path) -> str:
    """File name without `.nii.gz`, `.nii`, `.mgz`, `.nrrd`, `.dcm` or, of segmentations, `.seg.nrrd`, `.seg.dcm`."""
    name = Path(path).name
    if name.endswith((".nrrd", ".dcm")):
        return name.removesuffix(".nrrd").removesuffix(".dcm").removesuffix(".seg")
    return name.removesuffix(".gz").removesuffix(".nii").removesuffix(".mgz")


def _open(path: Path) -> nib.spatialimages.SpatialImage:
    if not path.exists():
        raise InputError.of(path, _a_file(path), "no file of this name", "Check the path.")
    try:
        with np.errstate(all="ignore"):  # of an affine that is no number, which is told of when it is checked
            image = _load(path)
    except InputError:
        raise
    except _READ_ERRORS as error:
        raise _unreadable(path, error) from error
    if not isinstance(image, _IMAGES):
        raise InputError.of(
            path,
            "a NIfTI, MGZ or NRRD file",
            f"a file that nibabel reads as {type(image).__name__}",
            "Convert it to .nii.gz.",
        )
    return image


def _load(path: Path) -> nib.spatialimages.SpatialImage:
    if path.is_dir():
        return open_dicom_series(path)
    check_start(path)
    if path.suffix == ".nrrd":
        return open_nrrd(path)
    if is_dicom_seg(path):
        return open_dicom_seg(path)
    if path.suffix == ".dcm":
        remedy = "Name the folder of a T1w's series, or a label map as DICOM SEG."
        raise InputError.of(path, "a DICOM SEG", "another DICOM file, or none", remedy)
    return nib.load(path)


def _a_file(path: Path) -> str:
    return f"{'an' if path.suffix in ('.mgz', '.nrrd') else 'a'} {_format(path)} file"


def _format(path: Path) -> str:
    return _FORMATS.get(path.suffix, "NIfTI")


def _voxels(path: Path, shape: Shape) -> np.ndarray:
    try:
        values = np.asanyarray(_open(path).dataobj)
    except InputError:
        raise
    except _READ_ERRORS as error:
        raise _unreadable(path, error) from error
    if values.dtype.kind not in "biuf":
        raise InputError.of(
            path, "one number a voxel", f"voxels of type {values.dtype}", "Convert it to a scalar image."
        )
    return values.reshape(shape)


def _unreadable(path: Path, error: BaseException) -> InputError:
    words = " ".join(str(error).split()) or type(error).__name__
    reason = "".join(each if each.isprintable() else "?" for each in words)[:300]  # it may quote the file
    what = "DICOM series" if path.is_dir() else f"{_format(path)} file"
    return InputError.of(path, f"a whole, readable {what}", f"'{reason}'", "Copy or export it again.")


def _spatial_shape(path: str | Path, shape: tuple[int, ...]) -> Shape:
    if len(shape) < 3 or any(extent != 1 for extent in shape[3:]):
        raise InputError.of(
            path, "a 3D volume", f"{len(shape)}D of shape {_times(shape)}", "Choose one volume and save it alone."
        )
    return int(shape[0]), int(shape[1]), int(shape[2])


def _check_affine(path: str | Path, affine: np.ndarray) -> None:
    remedy = "Repair the header, or resample the volume onto a regular grid."
    columns = affine[:3, :3]
    if not np.abs(affine).max() < LARGEST_NUMBER:  # nor NaN
        expected = f"an affine that can be inverted, of numbers under {LARGEST_NUMBER:g}"
        raise InputError.of(path, expected, _rounded(affine[:3]), remedy)
    sizes_mm = np.linalg.norm(columns, axis=0)
    if sizes_mm.min() == 0 or abs(np.linalg.det(columns / sizes_mm)) < 1e-3:
        raise InputError.of(path, "an affine that can be inverted", f"a singular one, {_rounded(columns)}", remedy)
    directions = columns / sizes_mm
    shear = float(np.abs(directions.T @ directions - np.eye(3)).max())
    if shear > LARGEST_SHEAR:
        raise InputError.of(path, "axes at right angles", f"a sheared affine (cosine of an angle {shear:.3g})", remedy)
    _check_voxel_sizes(path, sizes_mm)


def _check_voxel_sizes(path: str | Path, sizes_mm: np.ndarray) -> None:
    found = " x ".join(f"{size:.4g}" for size in sizes_mm) + " mm"
    if sizes_mm.min() < SMALLEST_VOXEL_MM - SIZE_SLACK_MM or sizes_mm.max() > LARGEST_VOXEL_MM + SIZE_SLACK_MM:
        raise InputError.of(
            path,
            f"voxels of {SMALLEST_VOXEL_MM} to {LARGEST_VOXEL_MM} mm",
            found,
            "Resample it, or repair the voxel size or unit in the header.",
        )
    if sizes_mm.max() / sizes_mm.min() > LARGEST_ASPECT + SIZE_SLACK_MM:
        raise InputError.of(
            path,
            f"voxels at most {LARGEST_ASPECT:g} times as long as wide",
            found,
            "Resample it to nearly cubic voxels.",
        )


def _check_label_ids(path: str | Path, values: np.ndarray) -> None:
    if values.dtype.kind == "f" and not (np.isfinite(values).all() and np.array_equal(values, np.rint(values))):
        odd = values[~(np.isfinite(values) & (values == np.rint(values)))]
        raise InputError.of(
            path,
            "integer label ids",
            f"{odd.size} voxels that hold no integer, such as {float(odd[0]):g}",
            "Give the label map itself, resampled with nearest neighbour, and not an image or a probability map.",
        )
    smallest, largest = int(values.min()), int(values.max())
    if smallest < 0 or largest > np.iinfo(np.int32).max:
        found = smallest if smallest < 0 else largest
        raise InputError.of(path, "label ids from 0 to 2147483647", f"id {found}", "Renumber the labels.")
    if largest == 0:
        raise InputError.of(path, "at least one labelled voxel", "an empty label map", "Check how the file was made.")


def _image_like(array: np.ndarray, affine: np.ndarray, like: nib.spatialimages.SpatialHeader | None) -> nib.Nifti1Image:
    """Give an image the space of `like` and nothing else: intent, scaling and display range belong to another image."""
    if not isinstance(like, nib.Nifti1Header):
        image = nib.Nifti1Image(array, affine)
        image.header.set_xyzt_units("mm")
        if like is not None:  # MGZ, NRRD, DICOM: FreeSurfer's own converter too calls it the scanner's
            image.set_sform(affine, "scanner")
            image.set_qform(affine, "scanner")
        return image
    header = nib.Nifti1Header()
    header.set_data_shape(array.shape)
    header.set_data_dtype(array.dtype)
    same_space = like.get_data_shape()[:3] == array.shape and np.allclose(like.get_best_affine(), affine, atol=1e-5)
    if same_space:
        for field in _GEOMETRY_FIELDS:
            header[field] = like[field]
        header["pixdim"][:4] = like["pixdim"][:4]
        affine = header.get_best_affine()
    header["xyzt_units"] = like["xyzt_units"] & 7
    image = nib.Nifti1Image(array, affine, header)
    if not same_space:
        image.set_sform(affine, int(like["sform_code"]))
        image.set_qform(affine, int(like["qform_code"]) or (0 if like["sform_code"] else 1))
    return image


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(str(int(extent)) for extent in shape)


def _rounded(matrix: np.ndarray) -> str:
    return str([[float(f"{value:.4g}") for value in row] for row in matrix])
