"""Manifests: which scans a data set has, whose they are, and which side of the split each one is on.

A manifest is a JSON data list in the form of the Medical Segmentation Decathlon (`monai.data.load_decathlon_datalist`
reads it), with paths relative to a ``dataset_dir``. `read_manifest` checks all of it and reports all faults at once.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trispade.errors import InputError
from trispade.geometry import Grid, Window
from trispade.labels import LabelScheme, data_manifests_folder, load_scheme
from trispade.nifti import check_same_grid, header_of, read_label_map
from trispade.segment_names import segment_labels_of, segments_to_ids
from trispade.untrusted import LONGEST_NAME, MOST_ROWS, check_form, is_name, is_path, quoted, read_json

LIST_OF_SPLIT = {"gan_train": "training", "fusion_train": "training", "val": "validation", "test": "test"}
SPLITS = tuple(LIST_OF_SPLIT)
LISTS = ("training", "validation", "test")
_Grid = tuple[tuple[int, int, int], np.ndarray]  # shape and affine
LARGEST_FOLD, LARGEST_AGE = 9999, 130
_CASE_ID = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{,{LONGEST_NAME - 1}}}")  # it becomes part of file names
_REMEDY = "Build one with `trispade manifest`, or see docs/data.md."
_ABOUT = {"name?": (str, None), "licence?": (str, None), "reference?": (str, None)}


@dataclass(frozen=True)
class Case:
    """One scan of one person.

    Attributes:
        case_id: unique in its manifest, fit for a file name.
        person_id: whose scan it is; a person is on one side of the split only.
        image: absolute path of the T1w scan; None for a label map that stands alone.
        label: absolute path of the label map.
        split: one of `SPLITS`.
        fold: fold for cross-fitting, None if it has none.
        licence: licence of the scan.
        age: of the person at the scan, years; None if unknown.
        sex: as the data set writes it; None if unknown.
    """

    case_id: str
    person_id: str
    image: Path | None
    label: Path
    split: str
    fold: int | None
    licence: str
    age: float | None = None
    sex: str | None = None


@dataclass(frozen=True)
class Manifest:
    """A checked data list.

    Attributes:
        name: name of the data set.
        path: JSON file it was read from.
        label_scheme: what the ids in its label maps mean.
        cases: in the file's order.
        reference: whom the data set wants credited; empty if it does not say.
    """

    name: str
    path: Path
    label_scheme: LabelScheme
    cases: tuple[Case, ...]
    reference: str = ""

    def select(self, splits: Collection[str], folds: Collection[int] | None = None) -> tuple[Case, ...]:
        """Return the cases of some splits and, if given, of some folds, in the manifest's order.

        Raises:
            InputError: if a split is not one of `SPLITS`.
        """
        wanted = {splits} if isinstance(splits, str) else set(splits)
        unknown = sorted(wanted - set(SPLITS))
        if unknown:
            raise InputError.of("splits", f"some of {', '.join(SPLITS)}", ", ".join(unknown), "Correct the setting.")
        return tuple(case for case in self.cases if case.split in wanted and (folds is None or case.fold in set(folds)))


def read_manifest(
    path: str | Path,
    dataset_dir: str | Path,
    scheme: str | Path | LabelScheme | None = None,
    check_files: bool = True,
    check_labels: bool = False,
) -> Manifest:
    """Read a manifest and check everything that can be checked.

    Args:
        path: JSON file, or the name of a bundled manifest ("malc2012").
        dataset_dir: folder that the paths in it are relative to.
        scheme: label scheme to use instead of the one that the manifest names.
        check_files: look at every file's header: present, readable, image and label map on one grid.
        check_labels: read every label map as well, and compare its ids with the scheme; takes about 0.1 s a scan.

    Raises:
        InputError: one that lists every fault of every row, each with its remedy.
    """
    path, dataset_dir = _locate(path), Path(dataset_dir).absolute()
    content = _load(path)
    cases, problems = _read_rows(content, dataset_dir)
    try:
        label_scheme = _scheme_of(content, path) if scheme is None else load_scheme(scheme)
    except InputError as error:
        problems.append(str(error))
    problems += _id_problems(cases) + _file_name_problems(cases)
    if check_files or check_labels:
        problems += _dataset_dir_problems(dataset_dir) or _file_problems(cases)
    if check_labels and not problems:
        problems += _label_problems(cases, label_scheme)
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise InputError.of_many(f"{path}: {count} in the manifest (dataset_dir is {dataset_dir}):", problems)
    name, reference = str(content.get("name", path.stem)), str(content.get("reference") or "")
    return Manifest(name, path, label_scheme, tuple(case for _, case in cases), reference)


def _locate(path: str | Path) -> Path:
    return Path(path) if Path(path).suffix else data_manifests_folder() / f"{path}.json"


def _load(path: Path) -> dict[str, Any]:
    content = read_json(path, "a JSON manifest", _REMEDY)
    lists = (
        [content[each] for each in LISTS if isinstance(content.get(each), list)] if isinstance(content, dict) else []
    )
    if not lists:
        found = "none of them" if isinstance(content, dict) else type(content).__name__
        raise InputError.of(path, f"a JSON object with the lists {', '.join(LISTS)}", found, _REMEDY)
    if sum(map(len, lists)) > MOST_ROWS:
        raise InputError.of(path, f"a manifest of at most {MOST_ROWS} rows", "more", "Write it as several.")
    check_form(path, content, _ABOUT, "Correct it.")
    return content


def _scheme_of(content: Mapping[str, Any], path: Path) -> LabelScheme:
    name = content.get("label_scheme")
    if not isinstance(name, str):
        raise InputError.of(
            path,
            'the key "label_scheme"',
            "none" if name is None else quoted(name),
            "Name a bundled scheme, or the path of a scheme's TSV relative to the manifest.",
        )
    return load_scheme(path.parent / name if name.endswith(".tsv") else name)


def _read_rows(content: Mapping[str, Any], dataset_dir: Path) -> tuple[list[tuple[str, Case]], list[str]]:
    """Return (place in the file, case) of the rows that can be read, and what is wrong with the rows."""
    cases: list[tuple[str, Case]] = []
    problems: list[str] = []
    for list_name in LISTS:
        rows = content.get(list_name, [])
        if not isinstance(rows, list):
            problems.append(f"{list_name}: expected a list of rows, got {type(rows).__name__}. Correct it.")
            continue
        for number, row in enumerate(rows):
            place = f"{list_name}[{number}]"
            faults = _row_faults(row, list_name)
            if faults:
                name = f" ({row['case_id']})" if isinstance(row, dict) and is_name(row.get("case_id")) else ""
                problems += [f"{place}{name}: {fault}" for fault in faults]
            else:
                cases.append((f"{place} ({row['case_id']})", _case_of(row, content, dataset_dir)))
    return cases, problems


def _is_number(value: object, largest: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= largest


def _or_null(fits: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: value is None or fits(value)


_NAME_REMEDY = f"Write 1 to {LONGEST_NAME} printable characters there."
_KEYS: tuple[tuple[str, Callable[[object], bool], str, str], ...] = (
    ("case_id", is_name, "text", _NAME_REMEDY),
    ("person_id", is_name, "text", _NAME_REMEDY),
    ("label", is_path, "a path", "Correct it."),
    ("split", is_name, "text", f"Write one of {', '.join(SPLITS)} there."),
    ("image", _or_null(is_path), "a path or null", "Correct it."),
    (
        "fold",
        _or_null(lambda value: isinstance(value, int) and _is_number(value, LARGEST_FOLD)),
        f"a whole number from 0 to {LARGEST_FOLD} or null",
        "Correct it.",
    ),
    (
        "age",
        _or_null(lambda value: _is_number(value, LARGEST_AGE)),
        f"years from 0 to {LARGEST_AGE} or null",
        "Correct it.",
    ),
    (
        "sex",
        _or_null(lambda value: is_name(value) or _is_number(value, 9)),
        "text or null",
        "Correct it.",
    ),
    ("licence", _or_null(lambda value: isinstance(value, str)), "text or null", "Correct it."),
)


def _row_faults(row: object, list_name: str) -> list[str]:
    if not isinstance(row, dict):
        return [f"expected an object with case_id, person_id, label, split, got {type(row).__name__}. Correct the row."]
    faults = [
        f"expected {what} under {key!r}, got {quoted(row.get(key, 'no such key'))}. {remedy}"
        for key, fits, what, remedy in _KEYS
        if not fits(row.get(key))
    ]
    if is_name(row.get("case_id")) and not _CASE_ID.fullmatch(row["case_id"]):
        faults.append(f"expected a case_id of letters, digits, '.', '_' and '-', got {row['case_id']!r}. Rename it.")
    return faults + _split_faults(row.get("split"), list_name)


def _split_faults(split: object, list_name: str) -> list[str]:
    if not is_name(split):
        return []  # reported as a missing key
    if split not in LIST_OF_SPLIT:
        return [f"expected a split of {', '.join(SPLITS)}, got {quoted(split)}. Correct it."]
    if LIST_OF_SPLIT[split] != list_name:
        return [f"expected split {split!r} under {LIST_OF_SPLIT[split]!r}, got it under {list_name!r}. Move the row."]
    return []


def _case_of(row: Mapping[str, Any], content: Mapping[str, Any], dataset_dir: Path) -> Case:
    return Case(
        case_id=row["case_id"],
        person_id=row["person_id"],
        image=None if row.get("image") is None else _absolute(dataset_dir, row["image"]),
        label=_absolute(dataset_dir, row["label"]),
        split=row["split"],
        fold=row.get("fold"),
        licence=str(row.get("licence") or content.get("licence") or "unknown"),
        age=row.get("age"),
        sex=None if row.get("sex") is None else str(row["sex"]),
    )


def _absolute(dataset_dir: Path, relative: str) -> Path:
    return Path(os.path.normpath(dataset_dir / relative))


def _id_problems(cases: Iterable[tuple[str, Case]]) -> list[str]:
    places_of_case = defaultdict(list)
    splits_of_person = defaultdict(set)
    folds_of_person = defaultdict(set)
    for place, case in cases:
        places_of_case[case.case_id].append(place)
        splits_of_person[case.person_id].add(case.split)
        folds_of_person[case.person_id].add(case.fold)
    problems = [
        f"case_id {case_id!r}: expected once, got it in {', '.join(places)}. Rename or remove rows."
        for case_id, places in places_of_case.items()
        if len(places) > 1
    ]
    for person, splits in splits_of_person.items():
        if len(splits) > 1:
            problems.append(
                f"person {person!r}: expected one split, got {', '.join(sorted(splits))}. "
                "Keep all scans of a person on one side."
            )
        elif len(folds_of_person[person]) > 1:
            folds = ", ".join(sorted(str(each) for each in folds_of_person[person]))
            problems.append(f"person {person!r}: expected one fold, got {folds}. Keep all scans of a person in one.")
    return problems


def _file_name_problems(cases: Iterable[tuple[str, Case]]) -> list[str]:
    places = defaultdict(list)
    for place, case in cases:
        for key, path in (("label", case.label), ("image", case.image)):
            if path is not None:
                places[path].append(f"{place} {key}")
    return [
        f"{path}: expected in one place, got it as {', '.join(found)}. Remove the rows that repeat it."
        for path, found in places.items()
        if len(found) > 1
    ]


def _dataset_dir_problems(dataset_dir: Path) -> list[str]:
    if dataset_dir.is_dir():
        return []
    return [f"{dataset_dir}: expected a folder, got nothing of that name. Set dataset_dir to where the data set is."]


def _file_problems(cases: Iterable[tuple[str, Case]]) -> list[str]:
    problems = []
    for place, case in cases:
        label_grid, faults = _grid_or_fault(case.label)
        if case.image is not None:
            image_grid, image_faults = _grid_or_fault(case.image)
            faults += image_faults
            if label_grid and image_grid:
                faults += _grid_faults(case.label, label_grid, case.image, image_grid)
        problems += [f"{place}: {fault}" for fault in faults]
    return problems


def _grid_or_fault(path: Path) -> tuple[_Grid | None, list[str]]:
    try:
        return header_of(path), []
    except InputError as error:
        return None, [str(error)]


def _grid_faults(label: Path, label_grid: _Grid, image: Path, image_grid: _Grid) -> list[str]:
    if image.is_dir() and Window.find(Grid(*label_grid), Grid(*image_grid)) is not None:
        return []
    try:
        check_same_grid(label, label_grid[0], label_grid[1], image, image_grid[0], image_grid[1])
    except InputError as error:
        return [str(error)]
    return []


def _label_problems(cases: Iterable[tuple[str, Case]], scheme: LabelScheme) -> list[str]:
    problems = []
    for place, case in cases:
        try:
            ids, labels = read_label_map(case.label)[0], segment_labels_of(case.label)
            if labels is not None:
                ids = segments_to_ids(ids, labels, scheme, str(case.label))
            scheme.to_indices(ids, str(case.label))
        except InputError as error:
            problems.append(f"{place}: {error}")
    return problems
