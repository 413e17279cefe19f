"""The prepared cache: every case once on the working grid, compact, memory-mapped, keyed by content.

    cache_dir/settings.json                 what every case was prepared with
    cache_dir/<case_id>-<key>/label_map.npy class indices, uint8 or int16, (X, Y, Z)
                              t1w.npy       intensities in [-1, 1] as int16, (X, Y, Z)
                              case.json     sources with their hashes, grid, scaling, classes

The key is a hash of both source files' content and of the whole chain of transforms, so that neither a changed scan nor
a changed setting ever meets what was prepared before.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from trispade.data.entries import KEY_LENGTH, entries_of, load_array, store_entry
from trispade.data.quantised import dequantise, quantise
from trispade.digests import files_in, sha256_of
from trispade.errors import InputError, find_input_error
from trispade.geometry import PLANES, Plane, WorkingGrid, slice_axis
from trispade.labels import Vocabulary
from trispade.manifests import Case, Manifest
from trispade.transforms import fingerprint

logger = logging.getLogger(__name__)

CACHE_FORMAT = 1


@dataclass(frozen=True)
class PreparedCase:
    """One case of the cache.

    Attributes:
        case_id: scan, unique in its manifest.
        person_id: person; one person may have several scans.
        split: ``gan_train``, ``fusion_train``, ``val`` or ``test``.
        fold: fold for cross-fitting, or None.
        folder: where the arrays lie.
        key: hash of sources and settings.
        record: the content of ``case.json``.
    """

    case_id: str
    person_id: str
    split: str
    fold: int | None
    folder: Path
    key: str
    record: Mapping[str, Any]

    def label_map(self) -> np.ndarray:
        """Class indices, (X, Y, Z) uint8 or int16, memory-mapped, RAS+."""
        return load_array(self.folder, "label_map")

    def stored_t1w(self) -> np.ndarray:
        """Quantised intensities, (X, Y, Z) int16, memory-mapped (see `trispade.data.quantised`)."""
        return load_array(self.folder, "t1w")

    def t1w(self) -> torch.Tensor:
        """Intensities in [-1, 1], (X, Y, Z) float32, -1 outside the brain mask."""
        return dequantise(self.stored_t1w())

    def labelled_slices(self, plane: str) -> list[int]:
        """Indices of the plane's slices that hold at least one labelled voxel."""
        return list(self.record["labelled_slices"][plane])


def prepare_cases(
    manifest: Manifest,
    transform: Callable[[dict[str, Any]], dict[str, Any]],
    cache_dir: str | Path,
    settings: Mapping[str, Any],
) -> str:
    """Bring every case of a manifest onto the working grid and store it; finished cases are not done again.

    Args:
        manifest: cases with T1w and label map.
        transform: dictionary transform from ``{"case_id", "label_map", "t1w"}`` (paths) to arrays (1, X, Y, Z).
        cache_dir: folder of the cache, made if needed.
        settings: what the later stages compare with their own (spacing, box, vocabulary).

    Returns:
        One line that says what was done.

    Raises:
        InputError: at the end, if cases failed; it lists them all. The others are prepared.
    """
    cache_dir = Path(cache_dir)
    chain = fingerprint(transform)
    _write_settings(cache_dir, {"format": CACHE_FORMAT, "fingerprint": chain, **plain_settings(settings)})
    failures, prepared = [], 0
    progress = tqdm(manifest.cases, desc="prepare", unit="scan")
    for case in progress:
        progress.set_postfix_str(case.case_id)
        try:
            prepared += _prepare_case(case, transform, chain, cache_dir)
        except Exception as error:  # MONAI wraps what a transform raises
            found = find_input_error(error)
            if found is None:
                raise
            failures.append(f"{case.case_id}: {found}")
    if failures:
        raise InputError.of_many(
            f"{manifest.path}: {len(failures)} of {len(manifest.cases)} cases could not be prepared:", failures
        )
    line = f"{len(manifest.cases)} cases in {cache_dir}, {prepared} of them prepared now"
    logger.info(line)
    return line


def open_cases(
    manifest: Manifest,
    cache_dir: str | Path,
    splits: Sequence[str],
    settings: Mapping[str, Any],
    folds: Sequence[int] | None = None,
    without_fold: int | None = None,
) -> tuple[PreparedCase, ...]:
    """Open the prepared cases of some splits.

    Args:
        manifest: the manifest that the cache was prepared from; its splits and folds count, not those of back then.
        cache_dir: folder that `prepare_cases` wrote.
        splits: names of splits.
        settings: the stage's own spacing, box and vocabulary, which must be those of the cache.
        folds: keep these folds only.
        without_fold: leave this fold out (cross-fitting).

    Returns:
        Cases in the manifest's order.

    Raises:
        InputError: if the cache is missing, was prepared with other settings, or holds another content of a file.
    """
    cache_dir = Path(cache_dir)
    stored = _read_settings(cache_dir)
    wanted = {"format": CACHE_FORMAT, **plain_settings(settings)}
    different = [
        f"{name} {stored.get(name)!r}, not {value!r}" for name, value in wanted.items() if stored.get(name) != value
    ]
    if different:
        raise InputError(
            f"{cache_dir}: was prepared with {'; '.join(different)}. Run the prepare stage with this preset."
        )
    cases = [c for c in manifest.select(splits, folds) if without_fold is None or c.fold != without_fold]
    if not cases:
        raise InputError.of(
            manifest.path, f"cases in splits {', '.join(splits)}", "none", "Choose other splits or folds."
        )
    opened, problems = [], []
    for case in cases:
        try:
            opened.append(_open_case(case, stored["fingerprint"], cache_dir))
        except InputError as error:
            problems.append(str(error))
    if problems:
        raise InputError.of_many(f"{cache_dir}: {len(problems)} cases are missing or out of date:", problems)
    return tuple(opened)


def plain_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Give settings as JSON keeps them; a vocabulary as its name, its size and a hash of its classes."""
    return dict(json.loads(json.dumps(dict(settings), default=_describe_vocabulary)))


def _describe_vocabulary(vocabulary: Vocabulary) -> str:
    content = hashlib.sha256(json.dumps(vocabulary.to_dict()).encode()).hexdigest()
    return f"{vocabulary.name} ({vocabulary.num_classes} classes, {content[:8]})"


def _prepare_case(
    case: Case, transform: Callable[[dict[str, Any]], dict[str, Any]], chain: str, cache_dir: Path
) -> int:
    if case.image is None:
        raise InputError.of(case.case_id, "a T1w image for training", "a row without image", "Name it in the manifest.")
    sources = {"image": _describe(case.image), "label": _describe(case.label)}
    key = _key(chain, sources)
    folder = cache_dir / f"{case.case_id}-{key[:KEY_LENGTH]}"
    if (folder / "case.json").exists():
        return 0
    data = transform({"case_id": case.case_id, "label_map": str(case.label), "t1w": str(case.image)})
    label_map, t1w = np.asarray(data["label_map"])[0], np.asarray(data["t1w"], dtype=np.float32)[0]
    record = {
        "key": key,
        "sources": sources,
        "shape": list(label_map.shape),
        "affine": WorkingGrid.from_dict(data["working_grid"]).affine.tolist(),
        "intensity_scaling": data["intensity_scaling"],
        "classes": np.unique(label_map).tolist(),
        "labelled_slices": {plane: _labelled_slices(label_map, plane) for plane in PLANES},
    }
    store_entry(folder, {"label_map": label_map, "t1w": quantise(t1w)}, record)
    return 1


def _labelled_slices(label_map: np.ndarray, plane: Plane) -> list[int]:
    others = tuple(axis for axis in range(3) if axis != slice_axis(plane))
    return np.flatnonzero((label_map > 0).any(axis=others)).tolist()


def _open_case(case: Case, chain: str, cache_dir: Path) -> PreparedCase:
    remedy = "Run the prepare stage."
    for folder in entries_of(cache_dir, case.case_id):
        record = json.loads((folder / "case.json").read_text())
        sources = {
            name: _describe(path, record["sources"][name]) if path is not None else record["sources"][name]
            for name, path in (("image", case.image), ("label", case.label))
        }
        if record["key"] == _key(chain, sources):
            return PreparedCase(case.case_id, case.person_id, case.split, case.fold, folder, record["key"], record)
        remedy = "Its files or the settings have changed since. Run the prepare stage again."
    raise InputError.of(case.case_id, f"a prepared case in {cache_dir}", "none that is up to date", remedy)


def _key(chain: str, sources: Mapping[str, Mapping[str, Any]]) -> str:
    content = [str(CACHE_FORMAT), chain, *(sources[name]["sha256"] for name in sorted(sources))]
    return hashlib.sha256("\n".join(content).encode()).hexdigest()


def _describe(path: Path, known: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Hash a file or a series; what is known of it counts while its size and time stay, or where it is absent."""
    if not path.exists():
        if known is not None:
            return dict(known)
        raise InputError.of(path, "a file", "nothing there", "Check --dataset_dir and the manifest.")
    stats = [file.stat() for file in files_in(path)]
    size, time_ns = sum(each.st_size for each in stats), max((each.st_mtime_ns for each in stats), default=0)
    if known is not None and (known["bytes"], known["mtime_ns"]) == (size, time_ns):
        return dict(known)
    return {"name": path.name, "bytes": size, "mtime_ns": time_ns, "sha256": sha256_of(path)}


def _write_settings(cache_dir: Path, settings: Mapping[str, Any]) -> None:
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        temporary = cache_dir / ".settings.json.part"
        temporary.write_text(json.dumps(settings, indent=1))
        temporary.replace(cache_dir / "settings.json")
    except OSError as error:
        raise InputError.of(cache_dir, "a writable folder", error.strerror or "an error", "Set --work_dir.") from error


def _read_settings(cache_dir: Path) -> dict[str, Any]:
    try:
        return json.loads((cache_dir / "settings.json").read_text())
    except FileNotFoundError as error:
        raise InputError.of(cache_dir, "a prepared cache", "none", "Run the prepare stage first.") from error
