"""Checkpoint files: written whole or not at all, in parts if asked, checked when read."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from trispade.errors import InputError

_PARTS_SUFFIX = ".parts.json"


def save_checkpoint(content: Mapping[str, Any], path: str | Path, part_mib: float | None = None) -> None:
    """Write a checkpoint atomically.

    Args:
        content: nested dicts of tensors and plain values, so that ``torch.load(weights_only=True)`` reads it.
        path: the file.
        part_mib: if given, write ``<path>.<hash>.000``, ``<path>.<hash>.001`` ... of at most this size and
            ``<path>.parts.json`` with their hashes instead of one file, to move a checkpoint where files are limited in
            size.

    Raises:
        InputError: if the folder cannot be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if part_mib is None:
            _write_atomically(path, lambda file: torch.save(dict(content), file))
            _remove_parts(path)
        else:
            _save_parts(content, path, max(1, int(part_mib * 2**20)))
            path.unlink(missing_ok=True)
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError.of(path, "a writable file", reason, "Free the disk or choose another --work_dir.") from error


def load_checkpoint(path: str | Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Read a checkpoint, whole or in parts, with ``weights_only=True``; where both lie, the parts count.

    Raises:
        InputError: if it is missing, torn, or not a checkpoint.
    """
    path = Path(path)
    try:
        source: Any = _join_parts(path) if _parts_list(path).exists() else path
        content = torch.load(source, map_location=map_location, weights_only=True)
    except FileNotFoundError as error:
        raise InputError.of(path, "a checkpoint", "nothing there", "Run the stage that trains it.") from error
    except InputError:
        raise
    except Exception as error:  # torch, pickle and zip each raise their own kinds for a torn file
        raise InputError.of(
            path,
            "a checkpoint written by trispade",
            f"an unreadable file ({type(error).__name__})",
            "Copy it again, or remove it.",
        ) from error
    if not isinstance(content, dict):
        raise InputError.of(path, "a checkpoint written by trispade", type(content).__name__, "Name another file.")
    return content


def checkpoint_exists(path: str | Path) -> bool:
    """Tell whether a checkpoint is there, whole or in parts."""
    return Path(path).exists() or _parts_list(Path(path)).exists()


def hash_tensors(state: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of a state dict's names and values, the same on every machine."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(state[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _write_atomically(path: Path, write: Any) -> None:
    temporary = path.with_name(f".{path.name}.part")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _parts_list(path: Path) -> Path:
    return path.with_name(path.name + _PARTS_SUFFIX)


def _save_parts(content: Mapping[str, Any], path: Path, part_bytes: int) -> None:
    buffer = io.BytesIO()
    torch.save(dict(content), buffer)
    data = buffer.getvalue()
    digest = hashlib.sha256(data).hexdigest()
    parts: list[dict[str, Any]] = []
    for number, start in enumerate(range(0, len(data), part_bytes)):
        block = data[start : start + part_bytes]
        name = f"{path.name}.{digest[:8]}.{number:03d}"
        _write_atomically(path.with_name(name), lambda file, block=block: file.write(block))
        parts.append({"name": name, "bytes": len(block), "sha256": hashlib.sha256(block).hexdigest()})
    listing = json.dumps({"sha256": digest, "parts": parts}, indent=1).encode()
    _write_atomically(_parts_list(path), lambda file: file.write(listing))
    _remove_parts(path, keep={part["name"] for part in parts})


def _remove_parts(path: Path, keep: set[str] | None = None) -> None:
    if keep is None:
        _parts_list(path).unlink(missing_ok=True)
    for part in path.parent.glob(f"{path.name}.????????.[0-9]*"):
        if part.name not in (keep or set()):
            part.unlink()


def _join_parts(path: Path) -> io.BytesIO:
    listing = json.loads(_parts_list(path).read_text())
    buffer = io.BytesIO()
    for part in listing["parts"]:
        file = path.with_name(part["name"])
        block = file.read_bytes() if file.exists() else b""
        if hashlib.sha256(block).hexdigest() != part["sha256"]:
            found = f"{len(block)} bytes that differ" if file.exists() else "nothing there"
            raise InputError.of(file, f"part of a checkpoint, {part['bytes']} bytes", found, "Copy all parts again.")
        buffer.write(block)
    buffer.seek(0)
    return buffer
