"""Synthetic volumes out as a DICOM series, MR Image Storage, whose fields say that nobody was scanned."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np

from trispade import __version__
from trispade.dicom_seg import require_pydicom
from trispade.durable import sync_file, sync_folder
from trispade.errors import InputError
from trispade.nifti import replacing

if TYPE_CHECKING:
    from pydicom import Dataset

LARGEST_STORED = 32767
"""Of the numbers that stand for intensities with fractions: the same for readers that take them as signed."""

DERIVATION = "Painted by networks from a label map: synthetic, no scan of a person. Not for diagnosis."
NO_IDENTITY = "None needed: nothing of a person was carried over"
NAMESPACE = uuid.uuid5(uuid.NAMESPACE_DNS, "trispade.dicom")
_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def write_dicom_series(
    folder: str | Path,
    volume: np.ndarray,
    affine: np.ndarray,
    value_range: Sequence[float],
    sidecar: Mapping[str, Any] | None = None,
) -> None:
    """Write a volume as one file a slice, so that no half-written series is ever seen under its name.

    The slices are the axial ones, or those that come nearest; voxels change their order, none is resampled. All that is
    in the files follows from the volume, its grid and this version of trispade, UIDs and patient ID included: the same
    volume gives the same files, another one gives other UIDs.

    Args:
        folder: of the series, named ``0001.dcm`` from the feet up; what is there under its name is replaced.
        volume: (X, Y, Z); integers that int16 holds are stored as they are, floats as 0 to 32767 with a rescale slope.
        affine: (4, 4), voxel -> RAS+ mm, its axes at right angles.
        value_range: smallest and largest intensity that there can be: the window to show it in.
        sidecar: content of ``<folder>.json``, in place before the series is.

    Raises:
        InputError: if pydicom is not installed, or the folder cannot be made or written to.
    """
    folder = Path(folder)
    require_pydicom(folder)
    slices = _series(volume, affine, (float(value_range[0]), float(value_range[1])))
    with _replacing_folder(folder) as partial_folder:
        for number, each in enumerate(slices, start=1):
            path = partial_folder / f"{number:04d}.dcm"
            each.save_as(path, enforce_file_format=True)
            sync_file(path)
        if sidecar is not None:
            with replacing(folder.with_name(f"{folder.name}.json")) as partial_sidecar:
                partial_sidecar.write_text(json.dumps(sidecar, indent=2) + "\n", encoding="utf-8")


def remove_series(folder: Path) -> None:
    """Remove a series so that no part of it is ever seen under its name.

    Raises:
        InputError: if there is anything else in its folder.
        OSError: if it is not there or cannot be removed.
    """
    others = sorted(each.name for each in folder.iterdir() if each.suffix != ".dcm" or not each.is_file())
    if others:
        raise InputError.of(folder, "nothing but files of a series", ", ".join(others), "Move them.")
    gone = folder.with_name(f".partial-gone-{folder.name}")
    shutil.rmtree(gone, ignore_errors=True)
    folder.rename(gone)
    shutil.rmtree(gone)


@contextmanager
def _replacing_folder(folder: Path) -> Iterator[Path]:
    """Give a temporary folder beside `folder` that takes its place when the block ends well."""
    partial_folder = folder.with_name(f".partial-{os.getpid()}-{folder.name}")
    try:
        shutil.rmtree(partial_folder, ignore_errors=True)
        partial_folder.mkdir(parents=True)
        yield partial_folder
        if folder.exists():
            remove_series(folder)
        partial_folder.rename(folder)
        sync_folder(folder.parent)
    except OSError as error:
        remedy = "Choose another output folder, or make room in it."
        raise InputError.of(folder, "a folder that can be written to", error.strerror or str(error), remedy) from error
    finally:
        for left in folder.parent.glob(f".partial-*-{glob.escape(folder.name)}"):  # of runs that were killed as well
            shutil.rmtree(left, ignore_errors=True)


def _series(volume: np.ndarray, affine: np.ndarray, value_range: tuple[float, float]) -> Iterator[Dataset]:
    from pydicom.uid import UID

    stored, to_lps = _axial_slices(volume, np.asarray(affine, np.float64))
    shared = _identity() | _equipment() | _geometry(to_lps, stored.shape)
    stored, pixels = _pixels(stored, value_range)
    shared |= pixels | _acquisition()
    content = hashlib.sha256(np.ascontiguousarray(stored).tobytes())
    content.update(np.round(to_lps, 6).tobytes())
    content.update(json.dumps(shared, sort_keys=True, default=str).encode())
    digest = content.hexdigest()
    # A number that comes from the content alone: it tells volumes apart, and nothing of the case that it was made of.
    shared |= {"PatientID": f"SYNTHETIC-{digest[:16]}", "PatientName": f"Synthetic^{digest[:16]}"}

    def uid(*of: object) -> UID:
        # Source: DICOM PS3.5, annex B.2, "UUID derived UID".
        return UID(f"2.25.{uuid.uuid5(NAMESPACE, ' '.join(map(str, (digest, *of)))).int}")

    shared |= {f"{name}InstanceUID": uid(name) for name in ("Study", "Series")}
    shared |= {"FrameOfReferenceUID": uid("frame of reference")}
    for index in range(stored.shape[2]):
        yield _slice(shared, stored[:, :, index], to_lps, index, uid("instance", index))


def _axial_slices(volume: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Turn and flip a volume's axes to left, posterior, superior as nearly as they go; affine voxel -> LPS+ mm."""
    turn = nib.orientations.ornt_transform(nib.io_orientation(affine), nib.orientations.axcodes2ornt("LPS"))
    turned = nib.orientations.apply_orientation(volume, turn)
    return turned, _RAS_TO_LPS @ affine @ nib.orientations.inv_ornt_aff(turn, volume.shape)


def _slice(shared: Mapping[str, Any], pixels: np.ndarray, to_lps: np.ndarray, index: int, uid: str) -> Dataset:
    from pydicom import Dataset
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage

    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    own = {"SOPClassUID": MRImageStorage, "SOPInstanceUID": uid, "InstanceNumber": index + 1}
    own |= {"ImagePositionPatient": _decimals(*(to_lps @ (0, 0, index, 1))[:3])}
    for keyword, value in {**shared, **own}.items():
        setattr(dataset, keyword, value)
    dataset.PixelData = np.ascontiguousarray(pixels.T).astype("<i2").tobytes()
    return dataset


def _identity() -> dict[str, Any]:
    """Say that it is nobody: in the fields of the patient, and in those that tell of synthetic and derived data."""
    unknown = ("PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName")
    return {
        **dict.fromkeys((*unknown, "StudyID", "PositionReferenceIndicator"), ""),
        "SyntheticData": "YES",
        "PatientIdentityRemoved": "YES",
        "DeidentificationMethod": NO_IDENTITY,
        "ImageType": ["DERIVED", "SECONDARY", "OTHER"],
        "DerivationDescription": DERIVATION,
        "ImageComments": DERIVATION,
        "StudyDescription": "Synthetic brain MRI (trispade)",
        "SeriesDescription": "Synthetic T1w (trispade)",
        "SeriesNumber": 1,
    }


def _equipment() -> dict[str, Any]:
    from pydicom import Dataset

    purpose = Dataset()
    purpose.CodeValue, purpose.CodingSchemeDesignator = "109102", "DCM"
    purpose.CodeMeaning = "Processing Equipment"
    maker = {"Manufacturer": "trispade", "ManufacturerModelName": "trispade", "SoftwareVersions": __version__}
    contributing = Dataset()
    contributing.PurposeOfReferenceCodeSequence = [purpose]
    for keyword, value in {**maker, "ContributionDescription": DERIVATION}.items():
        setattr(contributing, keyword, value)
    return {**maker, "ContributingEquipmentSequence": [contributing]}


def _acquisition() -> dict[str, Any]:
    """What the standard asks of an MR image, of one that no scanner has acquired."""
    return {
        "Modality": "MR",
        "BodyPartExamined": "BRAIN",
        "ScanningSequence": "RM",
        "SequenceVariant": "NONE",
        **dict.fromkeys(("ScanOptions", "EchoTime", "EchoTrainLength", "RepetitionTime"), ""),
        "MRAcquisitionType": "3D",
        "PatientPosition": "HFS",
        "AcquisitionNumber": "",
    }


def _geometry(to_lps: np.ndarray, shape: tuple[int, ...]) -> dict[str, Any]:
    sizes_mm = np.linalg.norm(to_lps[:3, :3], axis=0)
    directions = to_lps[:3, :3] / sizes_mm
    return {
        "Rows": shape[1],
        "Columns": shape[0],
        "ImageOrientationPatient": _decimals(*directions[:, 0], *directions[:, 1]),
        "PixelSpacing": _decimals(sizes_mm[1], sizes_mm[0]),
        "SliceThickness": _decimals(sizes_mm[2])[0],
        "SpacingBetweenSlices": _decimals(sizes_mm[2])[0],
    }


def _pixels(volume: np.ndarray, value_range: tuple[float, float]) -> tuple[np.ndarray, dict[str, Any]]:
    """Give intensities as int16, and the fields that say how they are stored and shown."""
    low, high = value_range
    fields: dict[str, Any] = {
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": 1,
        "LossyImageCompression": "00",
        "BurnedInAnnotation": "NO",
        "WindowCenter": _decimals((low + high) / 2)[0],
        "WindowWidth": _decimals(max(high - low, 1))[0],
    }
    if volume.dtype.kind in "iu":
        return volume.astype(np.int16), fields
    slope, intercept = _decimals((high - low) / LARGEST_STORED, low)
    fields |= {"RescaleSlope": slope, "RescaleIntercept": intercept, "RescaleType": "US"}
    stored = np.rint((volume.astype(np.float64) - float(intercept)) / float(slope))
    return np.clip(stored, 0, LARGEST_STORED).astype(np.int16), fields


def _decimals(*values: float) -> list[str]:
    """Numbers as DICOM's decimal strings of at most 16 characters."""
    from pydicom.valuerep import format_number_as_ds

    return [format_number_as_ds(float(value) + 0.0) for value in values]
