"""Label ids and class indices: which source label is which class, and which voxels are brain.

A label *id* is what a segmentation file holds (17 is the left hippocampus in FreeSurfer). A class *index* is what the
networks see (15 is the hippocampus in the vocabulary ``structures``). A `Vocabulary` names the classes, a `LabelScheme`
maps the ids of one source to them. Both are data (``data_manifests/label_schemes``): a user adds one without code.
"""

from __future__ import annotations

import csv
import functools
import io
import itertools
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from trispade.errors import InputError
from trispade.untrusted import LONGEST_NAME, MOST_ROWS, check_form, is_file, is_name, quoted, read_json, read_text

TISSUES = ("background", "wm", "gm", "csf", "other")
SIDES = ("", "left", "right")
VOCABULARY_FORM = {"name": str, "classes": [{"name": str, "parent": (str, None), "tissue": str, "side": str}]}
"""Of the record that `Vocabulary.to_dict` makes."""

MAX_CLASSES = 32767  # class indices are kept as int16 at most
LONGEST_LINE_OF_PARENTS = 32
LARGEST_ID = 2**31 - 1  # label maps are kept as int32
LARGEST_TABLE_ID = 65535  # ids above it are looked up by value, so that an absurd id cannot ask for gigabytes


@dataclass(frozen=True)
class LabelClass:
    """One class that the networks see.

    Attributes:
        name: unique within its vocabulary, snake_case.
        parent: class whose training data stands in for this one when it has none of its own; None for a root.
        tissue: one of `TISSUES`.
        side: "left" or "right" for a class of one side; "" for a midline class or one that holds both sides.
    """

    name: str
    parent: str | None
    tissue: str
    side: str


@dataclass(frozen=True)
class Vocabulary:
    """The contiguous classes of a network; a class's index is its position and index 0 is the background."""

    name: str
    classes: tuple[LabelClass, ...]

    def __post_init__(self) -> None:
        problems = _vocabulary_problems(self.classes)
        if problems:
            raise InputError.of_many(f"vocabulary {self.name!r} is not usable:", problems)

    @property
    def names(self) -> tuple[str, ...]:
        """Class names by index."""
        return tuple(each.name for each in self.classes)

    @property
    def num_classes(self) -> int:
        """Number of classes, background included."""
        return len(self.classes)

    @property
    def merges_sides(self) -> bool:
        """Whether left and right share their classes, so that a mirrored label map is a valid one."""
        return all(each.side == "" for each in self.classes)

    def index(self, name: str) -> int:
        """Return the class index of a class name.

        Raises:
            InputError: if the vocabulary has no such class.
        """
        if name not in self.names:
            raise InputError.of(
                f"class {name!r}", f"a class of vocabulary {self.name!r}", "an unknown name", f"Known: {self.names}."
            )
        return self.names.index(name)

    def indices_of_tissue(self, tissue: str) -> tuple[int, ...]:
        """Return the class indices of one of `TISSUES`, increasing."""
        assert tissue in TISSUES, tissue
        return tuple(index for index, each in enumerate(self.classes) if each.tissue == tissue)

    def fallback_table(self, trained: Collection[int]) -> np.ndarray:
        """Send each class without training data to its nearest ancestor that has some.

        Args:
            trained: class indices that occur in the training data; the background counts as trained.

        Returns:
            (num_classes,) int64: class index -> class index that the network knows.

        Raises:
            InputError: naming every class that has neither training data nor a trained ancestor.
        """
        known = {0, *(int(index) for index in trained)}
        indices = {name: index for index, name in enumerate(self.names)}
        targets = [self._nearest_trained(index, known, indices) for index in range(self.num_classes)]
        lost = [self.classes[index].name for index, target in enumerate(targets) if target is None]
        if lost:
            raise InputError.of(
                f"vocabulary {self.name!r}",
                "training data for each class or one of its ancestors",
                f"none for {', '.join(lost)}",
                "Train on label maps that hold them, or give them a parent that is trained.",
            )
        return np.array(targets, dtype=np.int64)

    def _nearest_trained(self, index: int, known: set[int], indices: Mapping[str, int]) -> int | None:
        while index not in known:
            parent = self.classes[index].parent
            if parent is None:
                return None
            index = indices[parent]
        return index

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able record that `from_dict` reads; it travels in checkpoints and in the bundle's metadata."""
        return {"name": self.name, "classes": [asdict(each) for each in self.classes]}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Vocabulary:
        """Rebuild a vocabulary from the record that `to_dict` made.

        Raises:
            InputError: if the record is not one of a vocabulary.
        """
        remedy = "The checkpoint or metadata was not written by trispade."
        check_form("vocabulary record", record, VOCABULARY_FORM, remedy)
        names = [each.name for each in fields(LabelClass)]
        classes = (LabelClass(*(each[name] for name in names)) for each in record["classes"])
        return cls(record["name"], tuple(classes))


@dataclass(frozen=True)
class LabelScheme:
    """What the label ids of one source (FreeSurfer, Neuromorphometrics, ...) mean in a vocabulary.

    Attributes:
        name: file name without suffix.
        path: TSV that the scheme was read from.
        vocabulary: the classes it maps to.
        ids: label id -> class index.
        trim_csf: the source labels CSF beyond the brain, up to the dura; `fill_brain` takes that CSF away.
    """

    name: str
    path: Path
    vocabulary: Vocabulary
    ids: Mapping[int, int] = field(hash=False)
    trim_csf: bool = False

    def to_indices(self, label_ids: np.ndarray, source: str, unknown_labels: str = "error") -> np.ndarray:
        """Map a label map from ids to class indices.

        Args:
            label_ids: any shape; integers, or floats that hold integers.
            source: file or case the ids come from, for messages.
            unknown_labels: "error", or "background" to send ids that the scheme does not hold to class 0.

        Returns:
            Class indices of the same shape; uint8 up to 256 classes, else int16.

        Raises:
            InputError: on an id that the scheme does not hold (all are listed) or a value that is not an integer.
        """
        if unknown_labels not in ("error", "background"):
            raise InputError.of(
                "unknown_labels", "'error' or 'background'", repr(unknown_labels), "Correct the setting."
            )
        ids = _as_integers(np.asarray(label_ids), source)
        indices = self._look_up(ids)
        unknown = indices < 0
        if unknown.any():
            if unknown_labels == "error":
                raise self._unknown_ids_error(np.unique(ids[unknown]), source)
            indices[unknown] = 0
        return indices.astype(np.uint8 if self.vocabulary.num_classes <= 256 else np.int16)

    def unknown_ids(self, label_ids: np.ndarray) -> list[int]:
        """Return the sorted ids that occur in an integer array and that the scheme does not hold."""
        return sorted({int(each) for each in np.unique(label_ids)} - set(self.ids))

    def _look_up(self, ids: np.ndarray) -> np.ndarray:
        """Return int16 class indices, -1 where the id is unknown."""
        if ids.size and (int(ids.min()) < 0 or int(ids.max()) > LARGEST_TABLE_ID):
            values, inverse = np.unique(ids, return_inverse=True)
            table = np.array([self.ids.get(int(value), -1) for value in values], dtype=np.int16)
            return table[inverse].reshape(ids.shape)
        table = np.full(LARGEST_TABLE_ID + 1, -1, dtype=np.int16)
        for label_id, index in self.ids.items():
            if label_id <= LARGEST_TABLE_ID:
                table[label_id] = index
        return table[ids]

    def _unknown_ids_error(self, unknown: np.ndarray, source: str) -> InputError:
        listed = ", ".join(str(int(each)) for each in unknown)
        verb = "id {} is" if len(unknown) == 1 else "ids {} are"
        return InputError(
            f"{source}: label {verb.format(listed)} not in scheme {self.name!r} ({self.path}). "
            "Add them, or set unknown_labels=background."
        )


def data_manifests_folder() -> Path:
    """Return ``data_manifests`` of the installed package, or of the checkout that the package runs from."""
    installed = Path(__file__).parent / "data_manifests"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "data_manifests"


def schemes_folder() -> Path:
    """Return the folder that holds the bundled label schemes, and their vocabularies in ``vocabularies/``."""
    return data_manifests_folder() / "label_schemes"


def load_scheme(name_or_path: str | Path | LabelScheme) -> LabelScheme:
    """Read a label scheme: its JSON (``vocabulary``; ``table``, another scheme's TSV; ``trim_csf``) and its TSV.

    Args:
        name_or_path: name of a bundled scheme ("freesurfer"), path of a TSV with columns id, name, class or of the JSON
            of the same name beside it, or a scheme, which is returned as it is.

    Raises:
        InputError: if there is no such scheme, or with every faulty row of its table.
    """
    if isinstance(name_or_path, LabelScheme):
        return name_or_path
    path = Path(name_or_path)
    if path.suffix not in (".tsv", ".json"):
        path = schemes_folder() / f"{name_or_path}.json"
    if not is_file(path):
        known = ", ".join(sorted(each.stem for each in schemes_folder().glob("*.json")))
        subject = f"label scheme {str(name_or_path)!r}"
        raise InputError.of(subject, f"one of {known}, or the path of a TSV", "neither", "Correct it.")
    return _read_scheme(path.resolve().with_suffix(".json"))


def load_vocabulary(name_or_path: str | Path) -> Vocabulary:
    """Read a vocabulary: a bundled name ("structures"), or the path of a TSV (index, name, parent, tissue, side).

    Raises:
        InputError: if there is no such vocabulary, or with every faulty row of its table.
    """
    return _read_vocabulary(name_or_path, Path(), f"vocabulary {quoted(str(name_or_path))}")


def _read_vocabulary(name_or_path: str | Path, folder: Path, subject: object) -> Vocabulary:
    """Read a bundled vocabulary, or one whose path starts from a folder; the subject is who asks for it."""
    bundled = {each.stem: each for each in (schemes_folder() / "vocabularies").glob("*.tsv")}
    is_table = Path(name_or_path).suffix == ".tsv"
    if not is_table and str(name_or_path) not in bundled:
        expected = f"as a vocabulary one of {', '.join(sorted(bundled))}, or the path of a TSV"
        raise InputError.of(subject, expected, quoted(str(name_or_path)), "Correct it.")
    path = folder / name_or_path if is_table else bundled[str(name_or_path)]
    rows = read_table(path, ("index", "name", "parent", "tissue", "side"))
    misplaced = [
        f"line {i + 2}: expected index {i}, got {quoted(row['index'])}"
        for i, row in enumerate(rows)
        if row["index"] != str(i)
    ]
    if misplaced:
        raise InputError.of_many(f"{path}: indices must count from 0 without a gap:", misplaced)
    classes = (LabelClass(row["name"], row["parent"] or None, row["tissue"], row["side"]) for row in rows)
    return Vocabulary(path.stem, tuple(classes))


@functools.lru_cache(maxsize=16)
def _read_scheme(sidecar: Path) -> LabelScheme:
    record = _read_scheme_record(sidecar)
    path, name = sidecar.parent / record.get("table", f"{sidecar.stem}.tsv"), record["vocabulary"]
    vocabulary = _read_vocabulary(name, sidecar.parent, sidecar)
    indices = {each: index for index, each in enumerate(vocabulary.names)}
    ids: dict[int, int] = {}
    problems = []
    for number, row in enumerate(read_table(path, ("id", "name", "class")), start=2):
        id_ = int(row["id"]) if row["id"].isascii() and row["id"].isdigit() and len(row["id"]) <= 10 else -1
        if not 0 <= id_ <= LARGEST_ID:
            expected = f"a whole number from 0 to {LARGEST_ID} as id"
            problems.append(f"line {number}: expected {expected}, got {quoted(row['id'])}")
        elif id_ in ids:
            problems.append(f"line {number}: id {id_} occurs twice")
        elif row["class"] not in indices:
            problems.append(f"line {number}: class {quoted(row['class'])} is not in vocabulary {vocabulary.name!r}")
        else:
            ids[id_] = indices[row["class"]]
    if problems:
        raise InputError.of_many(f"{path}: label scheme has rows to correct:", problems)
    ids.setdefault(0, 0)
    return LabelScheme(sidecar.stem, path, vocabulary, ids, record.get("trim_csf", False))


def _read_scheme_record(sidecar: Path) -> dict[str, Any]:
    expected = 'a JSON file with the key "vocabulary"'
    remedy = 'Write {"vocabulary": "structures"} there, or the path of a vocabulary TSV relative to it.'
    record = read_json(sidecar, expected, remedy)
    if not isinstance(record, dict) or not isinstance(record.get("vocabulary"), str):
        raise InputError.of(sidecar, expected, quoted(record), remedy)
    check_form(sidecar, record, {"table?": str, "trim_csf?": bool}, "Correct it.")
    return record


def read_table(path: Path, columns: Sequence[str], others: Sequence[str] = ()) -> list[dict[str, str]]:
    """Read the columns of a TSV that it must have, and others that it may have.

    Raises:
        InputError: if it cannot be read, lacks a column or has over 100,000 rows.
    """
    try:
        with io.StringIO(read_text(path, "a readable TSV"), newline="") as stream:
            reader = csv.DictReader(stream, delimiter="\t", restval="")
            found = list(reader.fieldnames or [])
            rows = [
                {key: (row[key] or "").strip() for key in (*columns, *others) if key in row}
                for row in itertools.islice(reader, MOST_ROWS + 1)
            ]
    except csv.Error as error:
        raise InputError.of(path, "a readable TSV", str(error), "Check the file.") from error
    missing = [each for each in columns if each not in found]
    if missing:
        expected = f"tab-separated columns {', '.join(columns)}"
        raise InputError.of(path, expected, " | ".join(found) or "none", f"Add {', '.join(missing)}.")
    if len(rows) > MOST_ROWS:
        raise InputError.of(path, f"at most {MOST_ROWS} rows", "more", "Leave out what label maps do not hold.")
    return rows


def _vocabulary_problems(classes: Sequence[LabelClass]) -> list[str]:
    names = Counter(each.name for each in classes)
    problems = [f"class {name!r} occurs twice" for name, times in sorted(names.items()) if times > 1]
    if not 2 <= len(classes) <= MAX_CLASSES:
        problems.append(f"expected 2 to {MAX_CLASSES} classes, got {len(classes)}")
    if classes and classes[0].tissue != "background":
        problems.append(f"expected the background at index 0, got {quoted(classes[0].name)}")
    for each in classes:
        subject = f"class {quoted(each.name)}"
        if not is_name(each.name):
            problems.append(f"{subject}: expected a name of 1 to {LONGEST_NAME} printable characters")
        if each.tissue not in TISSUES:
            problems.append(f"{subject}: expected a tissue of {TISSUES}, got {quoted(each.tissue)}")
        if each.side not in SIDES:
            problems.append(f"{subject}: expected a side of {SIDES}, got {quoted(each.side)}")
        if each.parent is not None and each.parent not in names:
            problems.append(f"{subject}: parent {quoted(each.parent)} is not a class")
    return problems or _circular_parents(classes)


def _circular_parents(classes: Sequence[LabelClass]) -> list[str]:
    parents = {each.name: each.parent for each in classes}
    problems = []
    for name in parents:
        line: list[str | None] = [name]
        while line[-1] is not None and len(line) <= LONGEST_LINE_OF_PARENTS:
            line.append(parents[line[-1]])
        if line[-1] is not None:
            what = "runs in a circle" if len(set(line)) < len(line) else f"is over {LONGEST_LINE_OF_PARENTS} long"
            problems.append(f"class {name!r}: its line of parents {what}")
    return problems


def _as_integers(label_ids: np.ndarray, source: str) -> np.ndarray:
    if label_ids.dtype.kind in "iub":
        return label_ids.astype(np.uint8) if label_ids.dtype.kind == "b" else label_ids
    if not np.isfinite(label_ids).all() or (label_ids != np.rint(label_ids)).any():
        raise InputError.of(
            source,
            "integer label ids",
            "values that are not whole numbers",
            "A label map must be resampled with nearest-neighbour interpolation; use the original one.",
        )
    return label_ids.astype(np.int64)


def brain_mask(
    label_map: np.ndarray,
    spacing_mm: Sequence[float],
    closing_mm: float = 5.0,
    extracerebral: Collection[int] = (),
    source: str = "label map",
) -> np.ndarray:
    """Find the brain from labels alone: the labelled region, closed with a ball, holes filled.

    The ball's radius is `closing_mm`, measured between voxel centres with the spacing taken into account, so that the
    mask hardly depends on the grid. The border of the grid is no obstacle: the closing sees background beyond it.

    Args:
        label_map: (X, Y, Z) class indices, 0 = background.
        spacing_mm: voxel size along the three axes.
        closing_mm: radius of the ball; 0 closes nothing.
        extracerebral: class indices that are labelled but not brain (skull, skin).
        source: file or case, for messages.

    Returns:
        (X, Y, Z) bool.

    Raises:
        InputError: if no voxel is labelled as brain.
    """
    region = label_map != 0
    if extracerebral:
        region &= ~np.isin(label_map, list(extracerebral))
    if not region.any():
        raise InputError.of(
            source,
            "at least one labelled voxel",
            "an empty label map",
            "Check that this is the segmentation and that the label scheme is the one it was made with.",
        )
    box = ndimage.find_objects(region.view(np.uint8))[0]
    margin = [int(np.ceil(closing_mm / each)) + 1 for each in spacing_mm]
    padded = np.pad(region[box], [(each, each) for each in margin])
    inner = tuple(slice(each, -each) for each in margin)
    # The exact closing of a set never leaves the set's bounding box, so cropping back to it loses nothing.
    region[box] = ndimage.binary_fill_holes(_close_with_ball(padded, spacing_mm, closing_mm))[inner]
    return region


def _close_with_ball(region: np.ndarray, spacing_mm: Sequence[float], radius_mm: float) -> np.ndarray:
    """Dilate, then erode, by thresholding Euclidean distances; the region must be padded by more than the radius."""
    dilated = ndimage.distance_transform_edt(~region, sampling=spacing_mm) <= radius_mm
    return ndimage.distance_transform_edt(dilated, sampling=spacing_mm) > radius_mm


def fill_brain(
    label_map: np.ndarray,
    spacing_mm: Sequence[float],
    csf_index: int,
    closing_mm: float = 5.0,
    extracerebral: Collection[int] = (),
    source: str = "label map",
    trim_csf: bool = False,
) -> np.ndarray:
    """Give every unlabelled voxel inside the `brain_mask` (sulci, meninges) the class of CSF.

    Training and inference both call this, so that the networks meet the same kind of label map. Without extra-cerebral
    classes the brain mask of the result is simply ``result > 0``.

    Sources differ in how far out they label CSF: Neuromorphometrics and FreeSurfer hardly label it outside the brain,
    SynthSeg labels it up to the dura, 180 to 380 ml beyond the closed brain. `trim_csf` brings such a label map in line
    with the others; it changes nothing where CSF lies inside the closed brain, as in MALC 2012.

    Args:
        label_map: (X, Y, Z) class indices, 0 = background.
        spacing_mm: voxel size along the three axes.
        csf_index: class index of CSF.
        closing_mm: radius of the closing ball.
        extracerebral: class indices that are not brain; they keep their labels.
        source: file or case, for messages.
        trim_csf: do not let CSF extend the mask: CSF outside the closed rest of the brain becomes background.

    Returns:
        (X, Y, Z) class indices of the same dtype; a new array.

    Raises:
        InputError: if no voxel is labelled as brain.
    """
    filled = label_map.copy()
    if trim_csf:
        filled[filled == csf_index] = 0
    filled[brain_mask(filled, spacing_mm, closing_mm, extracerebral, source) & (filled == 0)] = csf_index
    return filled
