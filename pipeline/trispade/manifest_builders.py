"""Builders of manifests: find the scans of a data set on disk and split them by person.

Each builder returns the content of a manifest (see `trispade.manifests`); `write_manifest` puts it in a file. They look
at file names only: `read_manifest` checks what is in the files.
"""

from __future__ import annotations

import json
import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trispade.errors import InputError
from trispade.labels import data_manifests_folder, read_table
from trispade.manifests import LARGEST_AGE, LIST_OF_SPLIT, SPLITS
from trispade.nifti import replacing
from trispade.untrusted import read_json

logger = logging.getLogger(__name__)

Row = dict[str, Any]
DEFAULT_FRACTIONS: Mapping[str, float] = {"gan_train": 0.6, "fusion_train": 0.2, "val": 0.1, "test": 0.1}
MALC_LICENCE = "CC BY-NC 3.0"
HCP_LICENCE = "WU-Minn HCP Consortium Open Access Data Use Terms"

_R_PACKAGE_FOLDERS = (".", "extdata", "inst/extdata")
_SCAN_ENTITIES = ("sub", "ses", "acq", "ce", "rec", "run")  # the BIDS entities that tell one scan from another
_ENTITY = re.compile(r"([A-Za-z]+)-([A-Za-z0-9+.]+)")
_IMAGE_DESC_ORDER = ("brain", "preproc", "")


def build_malc2012(dataset_dir: str | Path) -> dict[str, Any]:
    """Build the manifest of MALC 2012 with the split of ``data_manifests/malc2012_participants.tsv``.

    Args:
        dataset_dir: folder with the 28 scans, under BIDS names (``sub-0101/ses-1/anat/...``) or under those of the R
            package malf.templates (``1003_SS.nii.gz``, ``1003_glm.nii.gz``).

    Raises:
        InputError: listing every scan that is not there.
    """
    dataset_dir = _existing_folder(dataset_dir)
    rows, missing = [], []
    columns = ("participant_id", "session_id", "malc_id", "split", "fold", "age", "sex")
    for person in read_table(data_manifests_folder() / "malc2012_participants.tsv", columns):
        files = _find_malc_scan(dataset_dir, person)
        if files is None:
            missing.append(f"{person['participant_id']} {person['session_id']} (challenge id {person['malc_id']})")
        else:
            rows.append(_malc_row(person, *files))
    if missing:
        headline = f"{dataset_dir}: expected the 28 scans of MALC 2012, got {len(rows)} (see docs/data.md). Missing:"
        raise InputError.of_many(headline, missing)
    return _manifest(
        name="malc2012",
        description="MICCAI 2012 multi-atlas labelling challenge: 28 OASIS-1 T1w scans of 25 people, manual labels",
        licence=MALC_LICENCE,
        reference="T1w scans from the OASIS project; labels provided by Neuromorphometrics, Inc. "
        "(http://Neuromorphometrics.com) under academic subscription",
        label_scheme="neuromorphometrics",
        rows=rows,
    )


def build_hcp(
    dataset_dir: str | Path,
    whole_head: bool = False,
    seed: int = 0,
    fractions: Mapping[str, float] = DEFAULT_FRACTIONS,
    num_folds: int = 3,
) -> dict[str, Any]:
    """Build the manifest of a Human Connectome Project tree (``<id>/T1w/...`` as its structural packages unpack).

    Twins and siblings are counted as different people: who is related is restricted information.

    Args:
        dataset_dir: folder with one folder a person.
        whole_head: take ``T1w_acpc_dc_restore.nii.gz`` instead of ``T1w_acpc_dc_restore_brain.nii.gz``.
        seed: seed of the split.
        fractions: share of people for each of the four splits; they sum to 1.
        num_folds: folds for cross-fitting among the training people.

    Raises:
        InputError: if no person has both files, or there are too few people to split.
    """
    dataset_dir = _existing_folder(dataset_dir)
    image_name = "T1w_acpc_dc_restore.nii.gz" if whole_head else "T1w_acpc_dc_restore_brain.nii.gz"
    rows = []
    for folder in sorted(dataset_dir.glob("*/T1w")):
        image, label = folder / image_name, folder / "aparc+aseg.nii.gz"
        if image.is_file() and label.is_file():
            case_id = f"hcp-{folder.parent.name}"
            rows.append(
                _row(case_id, case_id, _relative(image, dataset_dir), _relative(label, dataset_dir), HCP_LICENCE)
            )
        else:
            logger.warning(
                "%s: no %s, left out", folder, " and ".join(p.name for p in (image, label) if not p.is_file())
            )
    if not rows:
        raise InputError.of(
            dataset_dir,
            f"folders <id>/T1w with {image_name} and aparc+aseg.nii.gz",
            "none",
            "Give the folder that holds one folder a person (see docs/data.md).",
        )
    return _manifest(
        name="hcp_whole_head" if whole_head else "hcp",
        description="Human Connectome Project, Young Adult: 0.7 mm T1w, FreeSurfer aparc+aseg",
        licence=HCP_LICENCE,
        reference="https://www.humanconnectome.org/study/hcp-young-adult",
        label_scheme="freesurfer",
        rows=split_by_person(rows, seed, fractions, num_folds),
    )


def build_bids(
    dataset_dir: str | Path,
    seed: int = 0,
    fractions: Mapping[str, float] = DEFAULT_FRACTIONS,
    num_folds: int = 3,
    label_scheme: str = "freesurfer",
    label_desc: str | None = None,
    space: str | None = None,
) -> dict[str, Any]:
    """Build the manifest of a BIDS tree that has ``*_T1w.nii.gz`` and ``*_dseg.nii.gz``, derivatives folders included.

    A label map and a T1w scan belong together when their entities sub, ses, acq, ce, rec and run agree (a label map may
    leave out those that its session does not need) and both are in the same ``space``. Of several versions of a T1w
    scan, desc-brain goes before desc-preproc before the plain one. Files with desc-synthetic are left out.

    Args:
        dataset_dir: root of the tree.
        seed: seed of the split.
        fractions: share of people for each of the four splits; they sum to 1.
        num_folds: folds for cross-fitting among the training people.
        label_scheme: what the ids in the label maps mean.
        label_desc: ``desc`` of the label maps to take, where a scan has several.
        space: ``space`` of the files to take; by default the scan's own, where it has one.

    Raises:
        InputError: if there is no pair, a scan has several label maps to choose from, or too few people to split.
    """
    dataset_dir = _existing_folder(dataset_dir)
    label_maps = [file for file in _bids_files(dataset_dir, "dseg") if _is_wanted(file, label_desc, space)]
    images = _bids_files(dataset_dir, "T1w")
    licence = _described(dataset_dir, "License", "unknown")
    people = _bids_people(dataset_dir)
    rows = []
    for label_map in _one_per_scan(label_maps, dataset_dir):
        image = _image_of(label_map, images)
        if image is None:
            logger.warning("%s: no T1w scan that belongs to it, left out", label_map.path)
            continue
        row = _row(
            label_map.case_id,
            label_map.entities["sub"],
            _relative(image.path, dataset_dir),
            _relative(label_map.path, dataset_dir),
            licence,
        )
        rows.append({**row, **people.get(f"sub-{label_map.entities['sub']}", {})})
    if not rows:
        raise InputError.of(
            dataset_dir,
            "a BIDS tree with pairs *_T1w.nii.gz and *_dseg.nii.gz",
            f"{len(images)} T1w scans and {len(label_maps)} label maps, no pair among them",
            "Check the folder, the names, and the settings label_desc and space.",
        )
    return _manifest(
        name=dataset_dir.name,
        description=_described(dataset_dir, "Name", "BIDS data set"),
        licence=licence,
        reference=_described(dataset_dir, "DatasetDOI", ""),
        label_scheme=label_scheme,
        rows=split_by_person(rows, seed, fractions, num_folds),
    )


def split_by_person(
    rows: Sequence[Row], seed: int = 0, fractions: Mapping[str, float] = DEFAULT_FRACTIONS, num_folds: int = 3
) -> list[Row]:
    """Give rows a split and a fold, at random but the same for one seed, all scans of a person alike.

    Args:
        rows: manifest rows.
        seed: seed of the shuffle.
        fractions: share of people by split, summing to 1; a split with a share has at least one person.
        num_folds: the people of ``gan_train`` and ``fusion_train`` are dealt to folds 0 .. num_folds - 1.

    Raises:
        InputError: if the fractions are not such, or there are fewer people than splits.
    """
    people = sorted({row["person_id"] for row in rows})
    sizes = _split_sizes(len(people), fractions)
    if num_folds < 1:
        raise InputError.of("num_folds", "at least 1", str(num_folds), "Correct the setting.")
    shuffled = [people[place] for place in np.random.default_rng(seed).permutation(len(people))]
    splits = [split for split in SPLITS for _ in range(sizes[split])]
    split_of = dict(zip(shuffled, splits, strict=True))
    training = [person for person in shuffled if LIST_OF_SPLIT[split_of[person]] == "training"]
    fold_of = {person: place % num_folds for place, person in enumerate(training)}
    return [{**row, "split": split_of[row["person_id"]], "fold": fold_of.get(row["person_id"])} for row in rows]


def write_manifest(manifest: Mapping[str, Any], path: str | Path) -> None:
    """Write a manifest as JSON, one row a line; the file is complete or not there.

    Raises:
        InputError: if the folder cannot be written to.
    """
    with replacing(path) as partial_path:
        partial_path.write_text(_to_json(manifest), encoding="utf-8")


def _to_json(manifest: Mapping[str, Any]) -> str:
    entries = []
    for key, value in manifest.items():
        if isinstance(value, list) and value:
            rows = ",\n".join(f"    {json.dumps(row, ensure_ascii=False)}" for row in value)
            entries.append(f"  {json.dumps(key)}: [\n{rows}\n  ]")
        else:
            entries.append(f"  {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}")
    return "{\n" + ",\n".join(entries) + "\n}\n"


def _manifest(
    name: str, description: str, licence: str, reference: str, label_scheme: str, rows: Iterable[Row]
) -> dict[str, Any]:
    lists: dict[str, list[Row]] = {"training": [], "validation": [], "test": []}
    for row in sorted(rows, key=lambda each: each["case_id"]):
        lists[LIST_OF_SPLIT[row["split"]]].append(row)
    head = {"name": name, "description": description, "licence": licence, "reference": reference}
    return {**head, "label_scheme": label_scheme, **lists}


def _row(case_id: str, person_id: str, image: str, label: str, licence: str) -> Row:
    return {
        "case_id": case_id,
        "person_id": person_id,
        "image": image,
        "label": label,
        "split": None,
        "fold": None,
        "licence": licence,
    }


def _existing_folder(dataset_dir: str | Path) -> Path:
    folder = Path(dataset_dir).absolute()
    if not folder.is_dir():
        raise InputError.of(folder, "a folder", "nothing of that name", "Set dataset_dir to where the data set is.")
    return folder


def _relative(path: Path, dataset_dir: Path) -> str:
    return path.relative_to(dataset_dir).as_posix()


def _find_malc_scan(dataset_dir: Path, person: Mapping[str, str]) -> tuple[str, str] | None:
    """Return the relative paths of a scan and its label map, under whichever names they have."""
    stem = f"{person['participant_id']}_{person['session_id']}"
    folder = f"{person['participant_id']}/{person['session_id']}/anat"
    candidates = [(f"{folder}/{stem}_desc-brain_T1w.nii.gz", f"{folder}/{stem}_dseg.nii.gz")]
    for r_folder in _R_PACKAGE_FOLDERS:
        start = Path(r_folder) / person["malc_id"]
        candidates.append((f"{start.as_posix()}_SS.nii.gz", f"{start.as_posix()}_glm.nii.gz"))
    for image, label in candidates:
        if (dataset_dir / image).is_file() and (dataset_dir / label).is_file():
            return image, label
    return None


def _malc_row(person: Mapping[str, str], image: str, label: str) -> Row:
    person_id = person["participant_id"].removeprefix("sub-")
    row = _row(f"{person['participant_id']}_{person['session_id']}", person_id, image, label, MALC_LICENCE)
    fold = None if person["fold"] == "n/a" else int(person["fold"])
    return {**row, "split": person["split"], "fold": fold, "age": int(person["age"]), "sex": person["sex"]}


@dataclass(frozen=True)
class _BidsFile:
    path: Path
    entities: Mapping[str, str]

    @property
    def case_id(self) -> str:
        return "_".join(f"{key}-{self.entities[key]}" for key in _SCAN_ENTITIES if key in self.entities)

    def entity(self, key: str) -> str:
        return self.entities.get(key, "")


def _bids_files(dataset_dir: Path, suffix: str) -> list[_BidsFile]:
    files = []
    for path in sorted(dataset_dir.rglob(f"sub-*_{suffix}.nii.gz")):
        entities = dict(_ENTITY.findall(path.name.removesuffix(".nii.gz")))
        if "sub" in entities and entities.get("desc") != "synthetic":
            files.append(_BidsFile(path, entities))
    return files


def _is_wanted(label_map: _BidsFile, label_desc: str | None, space: str | None) -> bool:
    if label_desc is not None and label_map.entity("desc") != label_desc:
        return False
    return space is None or label_map.entity("space") == space


def _one_per_scan(label_maps: Iterable[_BidsFile], dataset_dir: Path) -> list[_BidsFile]:
    """Keep the label map in the scan's own space where there is one; several that remain are for the user to choose."""
    of_scan: dict[str, list[_BidsFile]] = defaultdict(list)
    for label_map in label_maps:
        of_scan[label_map.case_id].append(label_map)
    chosen, ambiguous = [], []
    for case_id, candidates in of_scan.items():
        candidates = [each for each in candidates if not each.entity("space")] or candidates
        if len(candidates) > 1:
            ambiguous.append(f"{case_id}: {', '.join(_relative(each.path, dataset_dir) for each in candidates)}")
        chosen.append(candidates[0])
    if ambiguous:
        headline = f"{dataset_dir}: expected one label map a scan, got several. Set label_desc or space to choose:"
        raise InputError.of_many(headline, ambiguous)
    return chosen


def _image_of(label_map: _BidsFile, images: Iterable[_BidsFile]) -> _BidsFile | None:
    candidates = [image for image in images if _may_belong(image, label_map)]
    if len({image.case_id for image in candidates}) > 1:
        candidates = [image for image in candidates if image.case_id == label_map.case_id]
    return min(candidates, key=lambda image: _image_rank(image, label_map), default=None)


def _may_belong(image: _BidsFile, label_map: _BidsFile) -> bool:
    if any(image.entity(key) != label_map.entity(key) for key in ("sub", "ses", "space")):
        return False
    return all(label_map.entity(key) in ("", image.entity(key)) for key in _SCAN_ENTITIES)


def _image_rank(image: _BidsFile, label_map: _BidsFile) -> tuple[int, bool, str]:
    desc = image.entity("desc")
    order = _IMAGE_DESC_ORDER.index(desc) if desc in _IMAGE_DESC_ORDER else len(_IMAGE_DESC_ORDER)
    return order, image.path.parent != label_map.path.parent, image.path.as_posix()


def _described(dataset_dir: Path, key: str, default: str) -> str:
    """Give what ``dataset_description.json`` says, if it says it in a line."""
    path = dataset_dir / "dataset_description.json"
    description = read_json(path, "JSON", "Correct the file.") if path.is_file() else {}
    text = description.get(key) if isinstance(description, dict) else None
    return text if isinstance(text, str) and text and text.isprintable() else default


def _bids_people(dataset_dir: Path) -> dict[str, Row]:
    """Return age (a number) and sex by participant_id, as far as ``participants.tsv`` has them."""
    path = dataset_dir / "participants.tsv"
    if not path.is_file():
        return {}
    people: dict[str, Row] = {}
    for line in read_table(path, (), ("participant_id", "age", "sex", "gender")):
        person: Row = {}
        age = line.get("age") or ""
        if re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,9})?", age) and float(age) <= LARGEST_AGE:
            person["age"] = float(age) if "." in age else int(age)
        sex = (line.get("sex") or line.get("gender") or "").upper()[:1]
        if sex in ("F", "M"):
            person["sex"] = sex
        people.setdefault(line.get("participant_id") or "", person)
    return people


def _split_sizes(num_people: int, fractions: Mapping[str, float]) -> dict[str, int]:
    """Share people out by the largest remainder, at least one for every split that has a share."""
    shares = {split: float(fractions.get(split, 0.0)) for split in SPLITS}
    if set(fractions) - set(SPLITS) or min(shares.values()) < 0 or abs(sum(shares.values()) - 1) > 1e-6:
        raise InputError.of(
            "fractions", f"shares for {', '.join(SPLITS)} that sum to 1", str(dict(fractions)), "Correct the setting."
        )
    used = [split for split in SPLITS if shares[split] > 0]
    if num_people < len(used):
        raise InputError.of(
            "split by person",
            f"at least {len(used)} people, one for each of {', '.join(used)}",
            str(num_people),
            "Add people, or set the fraction of a split to 0.",
        )
    spare = num_people - len(used)
    exact = {split: max(shares[split] * num_people - 1, 0.0) for split in used}
    scale = spare / sum(exact.values()) if sum(exact.values()) else 0.0
    sizes = {split: 1 + int(exact[split] * scale) for split in used}
    by_remainder = sorted(used, key=lambda split: int(exact[split] * scale) - exact[split] * scale)
    for split in by_remainder[: num_people - sum(sizes.values())]:
        sizes[split] += 1
    return {split: sizes.get(split, 0) for split in SPLITS}
