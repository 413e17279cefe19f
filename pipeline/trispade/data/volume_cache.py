"""A cache of volumes by key, in memory or in a folder that processes may share."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from trispade.durable import sync_file, sync_folder
from trispade.errors import InputError

logger = logging.getLogger(__name__)

LONGEST_WRITE_S = 3600
"""Unfinished files that are older belong to no writer any more."""


class VolumeCache:
    """Keeps arrays that take long to make.

    In a folder each is a file of its own, ``<key>.npy``, written whole or not at all: processes that make one at the
    same time, or are killed, do no harm. A file that cannot be read is made again.

    Args:
        folder: where they are kept, made if missing; None keeps them in the memory of this process.
        num_in_memory: without a folder, how many of the latest are kept.
    """

    def __init__(self, folder: str | Path | None, num_in_memory: int) -> None:
        self.folder = None if folder is None else Path(folder)
        self.num_in_memory = num_in_memory
        self.in_memory: dict[str, np.ndarray] = {}

    def get(self, key: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        """Give the array of a key, made if it is not there; the caller must not change it.

        Raises:
            InputError: if the folder cannot be written to.
        """
        found = self.in_memory.pop(key, None) if self.folder is None else _read(self.folder / f"{key}.npy")
        array = make() if found is None else found
        if self.folder is None:
            self.in_memory[key] = array  # behind the others: those in front are the first to go
            while len(self.in_memory) > self.num_in_memory:
                self.in_memory.pop(next(iter(self.in_memory)), None)
        elif found is None:
            _write(self.folder / f"{key}.npy", array)
        return array


def _read(path: Path) -> np.ndarray | None:
    try:
        return np.load(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError) as error:
        logger.warning("%s: cannot be read (%s) and is made again", path, " ".join(str(error).split()))
        return None


def _write(path: Path, array: np.ndarray) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path.parent)
        # A name of its own for each writer: `nifti.replacing` takes away what another process is about to rename.
        descriptor, name = tempfile.mkstemp(suffix=".part", prefix=f".{path.stem}-", dir=path.parent)
        part = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as file:
                np.save(file, array)
            sync_file(part)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        sync_folder(path.parent)
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError.of(
            path.parent, "a writable folder with room in it", reason, "Make room, or set another cache_dir."
        ) from error


def _remove_leftovers(folder: Path) -> None:
    """Remove what writers that were killed have left; a younger one may still be at work."""
    for part in folder.glob(".*.part"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - part.stat().st_mtime > LONGEST_WRITE_S:
                part.unlink()
