"""What a checkpoint may hold: plain values and dense tensors, no larger than their file and no deeper than ours."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from trispade.errors import InputError
from trispade.untrusted import MOST_NESTED, check_form

MOST_PARTS = 100_000
"""Tensors, values and keys of a checkpoint; ours have some thousands."""

_TAKEN = (Mapping, list, tuple, str, bytes, bool, int, float, type(None), torch.dtype, torch.device, torch.Tensor)
_EXPECTED, _REMEDY = "a checkpoint written by trispade", "Copy it again, or remove it."


def check_archive(source: Path | BinaryIO, path: Path) -> int:
    """Check a file before torch reads it, which would unpack what it announces.

    Args:
        source: the file, or its content.
        path: for the message.

    Returns:
        Bytes of all that is in it, no more than the file has.

    Raises:
        InputError: if it is packed smaller than it is, or has parts that lie within one another.
        zipfile.BadZipFile: if it is no zip, which all that torch has written since version 1.6 are.
        OSError: if it cannot be read.
    """
    if isinstance(source, Path) and source.exists() and not source.is_file():  # a pipe would be waited for
        raise InputError.of(path, _EXPECTED, "something that is no file", _REMEDY)
    with zipfile.ZipFile(source) as archive:
        entries = archive.infolist()
        packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
        inside = sum(entry.file_size for entry in entries)
    size = source.stat().st_size if isinstance(source, Path) else source.seek(0, 2)
    if not isinstance(source, Path):
        source.seek(0)
    if packed or inside > size or len(entries) > MOST_PARTS:
        raise InputError.of(path, _EXPECTED, "a file that unpacks to more than it holds", _REMEDY)
    return inside


def check_content(content: Any, path: Path, inside: int, form: Any) -> None:
    """Check what torch has read, before anything is made of it.

    Args:
        content: of the checkpoint.
        path: for the message.
        inside: bytes of it that lie in the file.
        form: that it must have, see `trispade.untrusted.check_form`.

    Raises:
        InputError: that names the first part that cannot be one of a checkpoint.
    """
    if not isinstance(content, dict):
        raise InputError.of(path, _EXPECTED, type(content).__name__, "Name another file.")
    for each in _parts_of(content, path):
        if isinstance(each, torch.Tensor):
            _check_tensor(each, path, inside)
        elif not isinstance(each, _TAKEN):
            raise InputError.of(path, _EXPECTED, f"one with a {type(each).__name__} in it", _REMEDY)
    for each in _parts_of(content.get("record"), path):
        if isinstance(each, torch.Tensor):  # it has no one answer to whether it is what a run expects
            raise InputError.of(path, "plain values under 'record'", "a tensor", _REMEDY)
    check_form(path, content, form, "Name a file of the kind that is asked for, or copy it again.")


def _parts_of(content: Any, path: Path) -> Iterator[Any]:
    """Walk through a value and all that is in it, level by level, as deep and as far as ours go."""
    level: list[Any] = [content]
    parts = 0
    for _ in range(MOST_NESTED):
        parts += len(level)
        if parts > MOST_PARTS:
            raise InputError.of(path, f"{_EXPECTED}, at most {MOST_PARTS} parts", "more", _REMEDY)
        yield from level
        inner: list[Any] = []
        for each in level:
            if isinstance(each, Mapping):
                inner += [*each.keys(), *each.values()]
            elif isinstance(each, list | tuple):
                inner += each
        level = inner
        if not level:
            return
    raise InputError.of(path, _EXPECTED, f"values nested over {MOST_NESTED} deep", _REMEDY)


def _check_tensor(tensor: torch.Tensor, path: Path, inside: int) -> None:
    """A tensor with no values of its own, or whose strides repeat a few, may have any size."""
    is_dense = tensor.layout == torch.strided and not (tensor.is_meta or tensor.is_quantized or tensor.is_nested)
    if not is_dense or tensor.numel() * tensor.element_size() > inside:
        shape = "x".join(map(str, tensor.shape))
        raise InputError.of(path, _EXPECTED, f"a tensor of shape {shape} whose values are not in it", _REMEDY)
