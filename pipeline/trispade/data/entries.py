"""Entries of a cache: folders named ``<case_id>-<key>`` with arrays and a record, written whole or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from trispade.durable import sync_file, sync_folder
from trispade.errors import InputError

KEY_LENGTH = 12


def store_entry(folder: Path, arrays: Mapping[str, np.ndarray], record: Mapping[str, Any]) -> None:
    """Store an entry in place of older ones of the same case.

    A run that is killed at any moment leaves the older ones, the new one, or none: never two, of which a later stage
    might take the wrong one.

    Args:
        folder: ``<case_id>-<key>``.
        arrays: name to array, each stored as ``<name>.npy``.
        record: plain values, stored as ``case.json``.

    Raises:
        InputError: if the folder cannot be written or the disk is full; nothing is left behind.
    """
    part = folder.with_name(f".{folder.name}.part")
    try:
        _remove_leftovers(folder)
        part.mkdir(parents=True)
        for name, array in arrays.items():
            np.save(part / f"{name}.npy", array)
        (part / "case.json").write_text(json.dumps(dict(record), indent=1))
        for file in part.iterdir():
            sync_file(file)
        for stale in _of_same_case(folder):
            _remove(stale)
        part.rename(folder)
        sync_folder(folder.parent)
    except OSError as error:
        reason = error.strerror or str(error)
        remedy = "Make room, or set another --work_dir."
        raise InputError.of(folder.parent, "a writable folder with room in it", reason, remedy) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def entries_of(cache_dir: Path, case_id: str) -> list[Path]:
    """List the entries of a case, whatever their keys."""
    return sorted(file.parent for file in cache_dir.glob(f"{case_id}-{'?' * KEY_LENGTH}/case.json"))


def load_array(folder: Path, name: str) -> np.ndarray:
    """Map an array of an entry into memory, to be read.

    Raises:
        InputError: if it is gone or torn, which it may be though the stage found it when it started.
    """
    path = folder / f"{name}.npy"
    try:
        return np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        found = "nothing there" if isinstance(error, FileNotFoundError) else " ".join(str(error).split())
        raise InputError.of(
            path, "an array that an earlier stage has stored", found, f"Remove {folder} and run that stage again."
        ) from error


def _of_same_case(folder: Path, prefix: str = "", suffix: str = "") -> list[Path]:
    case_id = folder.name[: -KEY_LENGTH - 1]
    return list(folder.parent.glob(f"{prefix}{case_id}-{'?' * KEY_LENGTH}{suffix}"))


def _remove(folder: Path) -> None:
    """Remove an entry so that no part of it is ever seen under its name."""
    gone = folder.with_name(f".{folder.name}.gone")
    folder.rename(gone)
    shutil.rmtree(gone)


def _remove_leftovers(folder: Path) -> None:
    """Remove what runs that were killed have left of a case."""
    for suffix in (".part", ".gone"):
        for left in _of_same_case(folder, ".", suffix):
            shutil.rmtree(left)
