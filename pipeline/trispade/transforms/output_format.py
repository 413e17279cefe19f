"""What a synthetic volume is written as, and under which names.

    nifti   <case>_desc-synthetic_T1w.nii.gz    and  <case>_desc-synthetic_T1w.json
    mgz     <case>_desc-synthetic_T1w.mgz       and  <case>_desc-synthetic_T1w.mgz.json
    dicom   <case>_desc-synthetic_T1w.dicom/    and  <case>_desc-synthetic_T1w.dicom.json
    bids    as nifti, in sub-<label>[/ses-<label>]/anat/ of a derivatives data set; what is no such case gets a label

Volumes of different formats lie beside one another, each with a sidecar of its own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import trispade
from trispade.dicom_seg import require_pydicom
from trispade.dicom_writing import remove_series, write_dicom_series
from trispade.errors import InputError
from trispade.nifti import replacing, write_mgz, write_nifti
from trispade.untrusted import is_path, quoted

FORMATS = ("nifti", "mgz", "dicom", "bids")
SUFFIX = "_desc-synthetic_T1w"
MAKER = "trispade"
LONGEST_CASE_ID = 200  # a file name has 255 bytes, some of which go to the suffix and to a temporary name
BIDS_VERSION = "1.10.0"
DESCRIPTION_FILE = "dataset_description.json"

_ENDINGS = {"nifti": (".nii.gz", ".json"), "mgz": (".mgz", ".mgz.json"), "dicom": (".dicom", ".dicom.json")}
_BIDS_NAME = re.compile(r"(sub-[a-zA-Z0-9]+)(?:_(ses-[a-zA-Z0-9]+))?(?:_(?:acq|ce|rec|run)-[a-zA-Z0-9]+)*")
_README = """Synthetic T1w volumes
=====================

Painted from label maps by trispade: synthetic, no scan of a person. Each JSON file beside a volume says from which
label map, by which model and with which settings. Not for diagnosis.
"""


def check_format(output_format: str) -> None:
    """Check the name of a format.

    Raises:
        InputError: if there is none of the name, or it needs pydicom, which is not installed.
    """
    if output_format == "dicom":
        require_pydicom("output_format dicom")
    if output_format not in FORMATS:
        raise InputError.of(
            "output_format", f"one of {', '.join(FORMATS)}", repr(output_format), "Correct the setting."
        )


def output_files(output_dir: str | Path, case_id: str, output_format: str = "nifti") -> tuple[Path, Path]:
    """Name the volume, a file or a folder, and the sidecar of a case.

    Raises:
        InputError: if the case's name is none that a file in the folder can have, or BIDS has none for it.
    """
    folder, name = Path(output_dir), case_id
    if not is_path(case_id) or Path(case_id).name != case_id or len(case_id.encode()) > LONGEST_CASE_ID:
        expected = f"a case whose name is fit for a file: up to {LONGEST_CASE_ID} printable bytes, no folder in it"
        raise InputError.of(quoted(case_id), expected, "another", "Rename the file or the case.")
    if output_format == "bids":
        folder, name = _bids_place(folder, case_id)
    volume, sidecar = _ENDINGS["nifti" if output_format == "bids" else output_format]
    return folder / f"{name}{SUFFIX}{volume}", folder / f"{name}{SUFFIX}{sidecar}"


def _bids_place(folder: Path, case_id: str) -> tuple[Path, str]:
    """Folder and first part of the name; a case that is not named as in BIDS is a subject of its own."""
    plain = re.sub("[^a-zA-Z0-9]", "", case_id.removeprefix("sub-"))
    match = _BIDS_NAME.fullmatch(case_id) or _BIDS_NAME.fullmatch(f"sub-{plain}")
    if match is None:
        remedy = "Rename the file, or choose another output format."
        raise InputError.of(case_id, "a case whose name has letters or digits, for BIDS", "none", remedy)
    return folder.joinpath(*filter(None, match.groups()), "anat"), match.group()


def write_volume(
    path: Path,
    volume: np.ndarray,
    affine: np.ndarray,
    like: str | None,
    value_range: tuple[float, float],
    sidecar: Mapping[str, Any],
) -> None:
    """Write a volume in the format that its name asks for, and before it its sidecar.

    Args:
        path: from `output_files`.
        volume: (X, Y, Z) float32 or int16.
        affine: (4, 4), voxel -> RAS+ mm.
        like: file whose units and space codes a NIfTI gets.
        value_range: smallest and largest intensity that there can be.
        sidecar: its content.

    Raises:
        InputError: if the folder cannot be written to, or pydicom is needed and not installed.
    """
    if path.suffix == ".mgz":
        write_mgz(path, volume, affine, volume.dtype, sidecar)
    elif path.suffix == ".dicom":
        write_dicom_series(path, volume, affine, value_range, sidecar)
    else:
        write_nifti(path, volume, affine, like, volume.dtype, sidecar)


def remove_volume(path: Path) -> None:
    """Remove a volume, a file or a folder.

    Raises:
        InputError: if there are other files in a series' folder.
        OSError: if it is not there or cannot be removed.
    """
    if path.suffix == ".dicom":
        remove_series(path)
    else:
        path.unlink()


def write_dataset_files(output_dir: str | Path) -> None:
    """Write what makes a folder a BIDS derivatives data set, unless it is there.

    Raises:
        InputError: if the folder is a data set that trispade did not make, or cannot be written to.
    """
    folder = Path(output_dir)
    maker = {"Name": MAKER, "Version": trispade.__version__}
    description = {
        "Name": "Synthetic T1w volumes",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [maker],
    }
    found = _read_json(folder / DESCRIPTION_FILE)
    makers = found.get("GeneratedBy", []) if isinstance(found, dict) else []
    if found is not None and MAKER not in json.dumps(makers):
        remedy = "Choose another --output_dir, such as derivatives/trispade in it."
        raise InputError.of(folder, "a folder that is no data set yet", f"one with a {DESCRIPTION_FILE}", remedy)
    files = {
        DESCRIPTION_FILE: json.dumps(description, indent=2) + "\n",
        "README.md": _README,
        ".bidsignore": "results.tsv\n",
    }
    for name, content in files.items():
        if not (folder / name).exists():
            with replacing(folder / name) as partial:
                partial.write_text(content, encoding="utf-8")


def _read_json(path: Path) -> Any:
    """Content of a JSON file; None if there is no file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return {}
