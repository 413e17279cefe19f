"""How examples are drawn and what each must keep to: one clear line or a result, in bounded time and memory."""

from __future__ import annotations

import copy
import json
import re
import signal
import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.errors import HypothesisWarning
from hypothesis.strategies import SearchStrategy

from trispade.errors import InputError
from trispade.volume_limits import LARGEST_VOLUME

SECONDS = 10
MIB = 1 << 20


def few_or_many(few: int, many: int) -> Any:
    """Parametrize a test by its number of examples: always the same few ones, or, if asked for (-m long), many."""
    return pytest.mark.parametrize(
        "num_examples", [few, pytest.param(many, marks=pytest.mark.long)], ids=["few", "many"]
    )


def for_each(num_examples: int, check: Callable[..., None], *strategies: SearchStrategy[Any]) -> None:
    """Call a check with examples, and shrink the one that it fails on.

    The examples are drawn from the check alone, so that a gate that was green stays green.
    """
    options = settings(
        max_examples=num_examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HypothesisWarning)  # of failing examples that are long to write
        options(given(*strategies)(check))()


@contextmanager
def bounded(mib: float | None = None) -> Iterator[None]:
    """Fail if the block takes over 10 s, warns of anything or, where a bound is given, holds more memory at a time."""
    before = signal.signal(signal.SIGALRM, _too_long)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    if mib is not None:
        tracemalloc.start()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            yield
        if mib is not None:
            peak = tracemalloc.get_traced_memory()[1]
            assert peak <= mib * MIB, f"{peak / MIB:.1f} MiB, allowed are {mib}"
    finally:
        tracemalloc.stop()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _too_long(number: int, frame: FrameType | None) -> None:
    raise AssertionError(f"it takes longer than {SECONDS} s")


def assert_one_clear_line(error: InputError, subject: object) -> None:
    """Hold an error to the house form: ``{subject}: expected {what}, got {value}. {remedy}``."""
    text = str(error)
    assert text.startswith(f"{subject}")
    assert ": expected " in text
    assert ", got " in text
    assert text.endswith(".")
    assert text.isprintable(), text
    assert len(text) < 1500


def assert_clear_lines(error: InputError, *subjects: object) -> None:
    """Hold an error to one line in the house form, or to a headline and one line for each problem."""
    headline, *problems = str(error).split("\n")
    if not problems:
        assert_one_clear_line(error, "")
    assert headline.startswith(tuple(map(str, subjects)))
    for line in (headline, *problems):
        assert line.isprintable(), line
        assert len(line) < 1500
    assert all(re.match(r"(  - |\.\.\. and \d+ lines more)", line) for line in problems)


DEEP, DIGITS = "<deep>", "<digits>"
NUMBERS = [0, 1, -1, 2**31, 2**63, 10**400, 0.5, 1e308, float("nan"), float("inf")]
TEXTS = ["", " ", ".", "..", "../../outside", "/etc/hostname", "a\0b", "a\nb", "\x1b[31m", "\ud800", "\u2028", "\u00e9"]
TEXTS += ["a" * 129, "a" * 300, "a/" * 3000, DEEP, DIGITS]
_LEAVES = st.one_of(
    st.sampled_from([None, True, False, *NUMBERS, *TEXTS]), st.integers(), st.floats(), st.text(max_size=20)
)
HOSTILE = st.recursive(
    _LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
"""Values that a record may have where another is expected."""


@st.composite
def spoilt_records(draw: st.DrawFn, record: Any, values: st.SearchStrategy[Any] = HOSTILE) -> Any:
    """A record of which some parts, at any depth, are others, gone, new or there twice."""
    record = copy.deepcopy(record)
    for _ in range(draw(st.integers(1, 3))):
        parent, key = None, None
        node = record
        while isinstance(node, dict | list) and node and (parent is None or draw(st.booleans())):
            parent, key = node, draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
            node = parent[key]
        if parent is None:
            return draw(values)
        match draw(st.sampled_from(["other", "other", "gone", "new", "twice"])):
            case "other":
                parent[key] = draw(values)
            case "gone":
                del parent[key]
            case "new" if isinstance(parent, dict):
                parent[draw(st.text(max_size=5))] = draw(values)
            case "new":
                parent.append(draw(values))
            case "twice":
                _put_twice(parent, key)
    return record


def _put_twice(parent: Any, key: Any) -> None:
    if isinstance(parent, dict):
        parent[f"{key} "] = copy.deepcopy(parent[key])
    else:
        parent.append(copy.deepcopy(parent[key]))


@st.composite
def spoilt_texts(draw: st.DrawFn, texts: st.SearchStrategy[str]) -> bytes:
    """The bytes of a text, in another encoding, with bytes turned, put in or torn off; mostly as they are."""
    content = bytearray(draw(texts).encode(draw(st.sampled_from(["utf-8"] * 6 + ["utf-16", "utf-8-sig"])), "replace"))
    if draw(st.sampled_from([True, True, False])):
        return bytes(content)
    for place in draw(st.lists(st.integers(0, max(0, len(content) - 1)), max_size=3)):
        content[place : place + draw(st.integers(0, 2))] = draw(st.binary(max_size=3))
    del content[draw(st.one_of(st.just(len(content)), st.integers(0, len(content)))) :]
    return bytes(content)


def spoilt_json(record: Any) -> st.SearchStrategy[bytes]:
    """A JSON file of a record of which some parts are others, some of its bytes too."""
    return spoilt_texts(st.builds(_as_json, spoilt_records(record), st.sampled_from([30, 33, 900, 100_000])))


def _as_json(record: Any, depth: int) -> str:
    text = json.dumps(record, ensure_ascii=depth == 30)
    return text.replace(f'"{DEEP}"', "[" * depth + "]" * depth).replace(f'"{DIGITS}"', "9" * 5000)


def assert_usable(volume: np.ndarray, affine: np.ndarray) -> None:
    """Hold what a reader gave to what the rest of the program counts on."""
    assert volume.ndim == 3
    assert 0 < volume.size <= LARGEST_VOLUME
    assert np.isfinite(volume).all()
    assert volume.any()
    assert np.isfinite(np.linalg.inv(affine)).all()
