"""Fingerprint of a transform chain: the key under which its results may be cached."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.transforms import Compose, Randomizable, Transform

from trispade.labels import LabelScheme


def fingerprint(transform: Any) -> str:
    """Hash what decides a transform's output: its class, its attributes, and the content of its label scheme.

    Two chains with the same settings agree on any machine; another value, order or row of a scheme's table gives
    another hash. Paths count as text, so give the content's hash beside it where a file's content matters.

    Args:
        transform: a MONAI transform, `Compose`, or a nest of plain values (numbers, text, paths, arrays, sequences,
            mappings, label schemes).

    Returns:
        64 hexadecimal digits (SHA-256).

    Raises:
        TypeError: naming what has no stable content (a function, a random transform, ...).
    """
    text = json.dumps(_describe(transform, type(transform).__name__), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _describe(value: Any, where: str) -> Any:
    """Give a value as JSON that tells its type, so that 1, 1.0, True and "1" differ."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, Enum):
        return ["enum", _class_name(value), value.name]
    if isinstance(value, float | np.generic):
        return [type(value).__name__, repr(value.item() if isinstance(value, np.generic) else value)]
    if isinstance(value, Path):
        return ["path", value.as_posix()]
    if isinstance(value, torch.dtype | np.dtype):
        return ["dtype", str(value)]
    if isinstance(value, torch.Tensor):
        return _describe_array(value.detach().cpu().numpy(), where)
    if isinstance(value, np.ndarray):
        return _describe_array(value, where)
    return _describe_nested(value, where)


def _describe_array(array: np.ndarray, where: str) -> list[Any]:
    if array.dtype.hasobject:
        raise _unsupported(array, where)
    return ["array", str(array.dtype), list(array.shape), hashlib.sha256(array.tobytes()).hexdigest()]


def _describe_nested(value: Any, where: str) -> Any:
    if isinstance(value, LabelScheme):
        return ["scheme", value.vocabulary.to_dict(), sorted((int(each), int(to)) for each, to in value.ids.items())]
    if isinstance(value, Mapping):
        return ["mapping", sorted([str(key), _describe(each, f"{where}[{key!r}]")] for key, each in value.items())]
    if isinstance(value, tuple | list):
        return ["sequence", [_describe(each, f"{where}[{i}]") for i, each in enumerate(value)]]
    if isinstance(value, set | frozenset):
        return ["set", sorted(json.dumps(_describe(each, where), sort_keys=True) for each in value)]
    if isinstance(value, Compose):
        return ["chain", [_describe(each, f"{type(each).__name__}") for each in value.transforms]]
    if isinstance(value, Transform) and not isinstance(value, Randomizable):
        attributes = sorted(vars(value).items())
        described = [[name, _describe(each, f"{where}.{name}")] for name, each in attributes]
        return ["transform", _class_name(value), described]
    raise _unsupported(value, where)


def _class_name(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _unsupported(value: Any, where: str) -> TypeError:
    return TypeError(
        f"{where}: expected plain values, arrays, label schemes or transforms of these, got {type(value).__name__}. "
        "Its results cannot be cached; leave the transform out of the cached part of the chain."
    )
