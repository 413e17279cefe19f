"""Checkpoint files: written whole or not at all, in parts if asked, checked when read."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from trispade.durable import sync_file, sync_folder
from trispade.engines.loaded_content import check_archive, check_content
from trispade.errors import InputError
from trispade.untrusted import check_form, read_json

logger = logging.getLogger(__name__)

_PARTS_SUFFIX = ".parts.json"
_LISTING = {"parts": [{"name": str, "bytes": int, "sha256": str}]}
_SEAL = b"\ntrispade sha256 "
_SEAL_BYTES = len(_SEAL) + hashlib.sha256().digest_size * 2


def save_checkpoint(
    content: Mapping[str, Any],
    path: str | Path,
    part_mib: float | None = None,
    previous: str | Path | None = None,
) -> None:
    """Write a checkpoint so that it is whole under its name, or not there, even if the power fails.

    A file ends with a hash of all before it, which ``torch.load`` does not mind.

    Args:
        content: nested dicts of tensors and plain values, so that ``torch.load(weights_only=True)`` reads it.
        path: the file.
        part_mib: if given, write ``<path>.<hash>.000``, ``<path>.<hash>.001`` ... of at most this size and
            ``<path>.parts.json`` with their hashes instead of one file, to move a checkpoint where files are limited in
            size.
        previous: what the checkpoint that lies at ``path`` becomes, in the same folder; None to replace it. A run that
            is killed in between leaves ``previous`` alone, see `load_newest_checkpoint`.

    Raises:
        InputError: if the folder cannot be written or the disk is full; what lies at ``path`` is left alone.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if part_mib is None:
            with _replacing(path, lambda: _move(path, previous)) as temporary:
                _write_sealed(content, temporary)
            _parts_list(path).unlink(missing_ok=True)
        else:
            listing = _write_parts(content, path, max(1, int(part_mib * 2**20)))
            with _replacing(_parts_list(path), lambda: _move(path, previous)) as temporary:
                temporary.write_text(json.dumps(listing, indent=1))
            path.unlink(missing_ok=True)
        _remove_unnamed_parts(path)
    except OSError as error:
        with contextlib.suppress(OSError):  # what is read-only now is reported all the same
            _remove_unnamed_parts(path)
        reason = error.strerror or str(error)
        raise InputError.of(path, "a writable file", reason, "Free the disk or choose another --work_dir.") from error


def load_checkpoint(path: str | Path, form: Any = dict) -> dict[str, Any]:
    """Read a checkpoint onto the CPU, whole or in parts, with ``weights_only=True``; where both lie, the parts count.

    A file without a hash, older than these, is taken as it is.

    Args:
        path: of the checkpoint.
        form: that its content must have, see `trispade.untrusted.check_form`.

    Raises:
        InputError: if it is missing, torn, not a checkpoint or not of this form.
    """
    path = Path(path)
    try:
        source: Any = _join_parts(path) if _parts_list(path).exists() else path
        inside = check_archive(source, path)
        content = torch.load(source, map_location="cpu", weights_only=True)
        if source is path:
            _check_seal(path)
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
    check_content(content, path, inside, form)
    return content


def load_newest_checkpoint(path: str | Path, previous: str | Path, form: Any = dict) -> tuple[dict[str, Any], Path]:
    """Read a checkpoint or, if it is torn or missing, the one before it; see `load_checkpoint`.

    Returns:
        The content, and which of the two it is of; a warning tells of one that is passed over.

    Raises:
        InputError: if neither can be read.
    """
    path, previous = Path(path), Path(previous)
    try:
        return load_checkpoint(path, form), path
    except InputError as error:
        if not checkpoint_exists(previous):
            raise
        torn = error
    try:
        content = load_checkpoint(previous, form)
    except InputError as error:
        raise InputError.of(
            path,
            f"a whole checkpoint there or in {previous.name}",
            "two that are torn",
            f"Copy one of them again, or remove {path.parent} to start anew.",
        ) from error
    logger.warning("%s Passed over: %s, the one before it, takes its place.", torn, previous)
    return content, previous


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


class _Hashing:
    """A file to be written that hashes what goes into it, and keeps the reason why it could not be written.

    Raises:
        OSError: as the file does; torch turns it into a `RuntimeError` that names no reason.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.digest = hashlib.sha256()
        self.failure: OSError | None = None

    def write(self, data: Any) -> int:
        self.digest.update(data)
        try:
            return self.file.write(data)
        except OSError as error:
            self.failure = error
            raise

    def flush(self) -> None:
        self.file.flush()


def _write_sealed(content: Mapping[str, Any], path: Path) -> None:
    with path.open("wb") as file:
        hashing: Any = _Hashing(file)
        try:
            torch.save(dict(content), hashing)
        except RuntimeError as error:
            if hashing.failure is None:
                raise
            raise hashing.failure from error
        file.write(_SEAL + hashing.digest.hexdigest().encode())


def _check_seal(path: Path) -> None:
    """Compare the hash at the end of a file with its content; a file without a hash passes."""
    with path.open("rb") as file:
        left = path.stat().st_size - _SEAL_BYTES
        digest = hashlib.sha256()
        while left > 0:
            block = file.read(min(left, 1 << 20))
            digest.update(block)
            left -= len(block)
        seal = file.read()
    if seal.startswith(_SEAL) and seal.removeprefix(_SEAL).decode(errors="replace") != digest.hexdigest():
        raise InputError.of(
            path,
            "a checkpoint written by trispade",
            "content that differs from the hash at its end",
            "Copy it again, or remove it.",
        )


@contextlib.contextmanager
def _replacing(path: Path, make_way: Callable[[], None] = lambda: None) -> Iterator[Path]:
    """Give a temporary path that takes the path's place, synced, when the block ends well."""
    temporary = path.with_name(f".{path.name}.part")
    try:
        yield temporary
        sync_file(temporary)
        make_way()
        temporary.replace(path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _move(path: Path, target: str | Path | None) -> None:
    """Rename a checkpoint, in whatever form it is, if there is a new name for it."""
    if target is None:
        return
    target = Path(target)
    if _parts_list(path).exists():
        _parts_list(path).replace(_parts_list(target))
        target.unlink(missing_ok=True)
    elif path.exists():
        path.replace(target)
        _parts_list(target).unlink(missing_ok=True)


def _parts_list(path: Path) -> Path:
    return path.with_name(path.name + _PARTS_SUFFIX)


def _write_parts(content: Mapping[str, Any], path: Path, part_bytes: int) -> dict[str, Any]:
    buffer = io.BytesIO()
    torch.save(dict(content), buffer)
    data = buffer.getvalue()
    digest = hashlib.sha256(data).hexdigest()
    parts: list[dict[str, Any]] = []
    for number, start in enumerate(range(0, len(data), part_bytes)):
        block = data[start : start + part_bytes]
        name = f"{path.name}.{digest[:8]}.{number:03d}"
        with _replacing(path.with_name(name)) as temporary:
            temporary.write_bytes(block)
        parts.append({"name": name, "bytes": len(block), "sha256": hashlib.sha256(block).hexdigest()})
    return {"sha256": digest, "parts": parts}


def _remove_unnamed_parts(path: Path) -> None:
    """Remove parts that no list in the folder names: of older checkpoints, and of runs that were killed."""
    named = {name for listing in path.parent.glob(f"*{_PARTS_SUFFIX}") for name in _names_in(listing)}
    for pattern in (f"{path.name}.????????.[0-9]*", f".{path.name}.????????.[0-9]*.part"):
        for part in path.parent.glob(pattern):
            if part.name not in named:
                part.unlink()


def _names_in(listing: Path) -> set[str]:
    try:
        return {part["name"] for part in json.loads(listing.read_text())["parts"]}
    except (ValueError, KeyError, TypeError):  # a torn list, which names nothing that could be read
        return set()


def _join_parts(path: Path) -> io.BytesIO:
    listing = read_json(_parts_list(path), "the list of a checkpoint's parts", "Copy all parts again.")
    check_form(_parts_list(path), listing, _LISTING, "Copy all parts again.")
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
