"""Entries of a cache: folders named ``<case_id>-<key>`` with arrays and a record, written whole or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from trispade.errors import InputError

KEY_LENGTH = 12


def store_entry(folder: Path, arrays: Mapping[str, np.ndarray], record: Mapping[str, Any]) -> None:
    """Store an entry, and remove older ones of the same case.

    Args:
        folder: ``<case_id>-<key>``.
        arrays: name to array, each stored as ``<name>.npy``.
        record: plain values, stored as ``case.json``.

    Raises:
        InputError: if the folder cannot be written or the disk is full; nothing is left behind.
    """
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        for name, array in arrays.items():
            np.save(part / f"{name}.npy", array)
        (part / "case.json").write_text(json.dumps(dict(record), indent=1))
        part.rename(folder)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        reason = error.strerror or str(error)
        remedy = "Make room, or set another --work_dir."
        raise InputError.of(folder.parent, "a writable folder with room in it", reason, remedy) from error
    for stale in entries_of(folder.parent, folder.name[: -KEY_LENGTH - 1]):
        if stale != folder:
            shutil.rmtree(stale)


def entries_of(cache_dir: Path, case_id: str) -> list[Path]:
    """List the entries of a case, whatever their keys."""
    return sorted(cache_dir.glob(f"{case_id}-{'?' * KEY_LENGTH}"))
