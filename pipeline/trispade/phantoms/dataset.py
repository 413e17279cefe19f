"""A BIDS tree of phantoms with its manifest, for tests and the demonstration."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from trispade.errors import InputError
from trispade.nifti import replacing
from trispade.phantoms.anatomy import Person
from trispade.phantoms.phantom import Phantom, make_phantom, phantom_affine

_LICENCE = "CC0-1.0"


def write_phantom_dataset(
    folder: str | Path,
    num_people: int = 6,
    seed: int = 0,
    spacing_mm: float | Sequence[float] = 4.0,
    shape: tuple[int, int, int] = (48, 56, 48),
    orientation: str = "RAS",
    oblique_degrees: float = 0.0,
) -> Path:
    """Write phantoms as a BIDS tree with a manifest that has all four splits.

    Args:
        folder: where the tree goes; the manifest's ``dataset_dir``.
        num_people: how many, at least 5 (two to train the GANs, one each for fusion, validation and test).
        seed: person i is the phantom of ``seed + i``.
        spacing_mm: one spacing, or one for each of the array's axes.
        shape: voxels along each of the array's axes.
        orientation: see `phantom_affine`.
        oblique_degrees: see `phantom_affine`.

    Returns:
        Path of the manifest, ``folder/phantoms.json``.

    Raises:
        InputError: if there are fewer than 5 people, or the folder cannot be written.
    """
    if num_people < 5:
        raise InputError.of("phantom data set", "at least 5 people", str(num_people), "Four splits need them.")
    folder = Path(folder)
    affine = phantom_affine(shape, spacing_mm, orientation, oblique_degrees)
    rows = []
    for number, split in enumerate(_splits(num_people)):
        person_id = f"{number + 1:02d}"
        _write_person(folder, person_id, make_phantom(seed + number, shape, affine=affine))
        rows.append(_manifest_row(person_id, split, number % 2 if split.endswith("train") else None, seed + number))
    _write_bids_tables(folder, rows)
    manifest = {
        "name": "phantoms",
        "description": "Phantoms: brain-like shapes that come from no person",
        "licence": _LICENCE,
        "reference": "trispade.phantoms",
        "label_scheme": "freesurfer",
        "training": [row for row in rows if row["split"].endswith("train")],
        "validation": [row for row in rows if row["split"] == "val"],
        "test": [row for row in rows if row["split"] == "test"],
    }
    path = folder / "phantoms.json"
    _write_text(path, json.dumps(manifest, indent=2) + "\n")
    return path


def _splits(num_people: int) -> list[str]:
    num_fusion = max(1, (num_people - 2) // 4)
    return ["gan_train"] * (num_people - 2 - num_fusion) + ["fusion_train"] * num_fusion + ["val", "test"]


def _manifest_row(person_id: str, split: str, fold: int | None, seed: int) -> dict[str, Any]:
    stem = f"sub-{person_id}/anat/sub-{person_id}"
    return {
        "case_id": f"sub-{person_id}",
        "person_id": person_id,
        "image": f"{stem}_T1w.nii.gz",
        "label": f"{stem}_dseg.nii.gz",
        "split": split,
        "fold": fold,
        "licence": _LICENCE,
        "age": Person.draw(np.random.default_rng([seed, 0])).age_years,
    }


def _write_person(folder: Path, person_id: str, phantom: Phantom) -> None:
    anat = folder / f"sub-{person_id}" / "anat"
    for suffix, array in (("T1w", phantom.t1w), ("dseg", phantom.label_map)):
        image = nib.Nifti1Image(array, phantom.affine)
        image.header.set_xyzt_units("mm", "sec")
        image.set_sform(phantom.affine, code=1)
        image.set_qform(phantom.affine, code=1)
        with replacing(anat / f"sub-{person_id}_{suffix}.nii.gz") as temporary:
            nib.save(image, temporary)


def _write_bids_tables(folder: Path, rows: Sequence[dict[str, Any]]) -> None:
    description = {"Name": "trispade phantoms", "BIDSVersion": "1.9.0", "License": _LICENCE, "DatasetType": "raw"}
    _write_text(folder / "dataset_description.json", json.dumps(description, indent=2) + "\n")
    people = [f"sub-{row['person_id']}\t{row['age']}\n" for row in rows]
    _write_text(folder / "participants.tsv", "participant_id\tage\n" + "".join(people))


def _write_text(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text)
