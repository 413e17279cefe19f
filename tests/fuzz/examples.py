"""How examples are drawn and what each must keep to: one clear line or a result, in bounded time and memory."""

from __future__ import annotations

import signal
import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import SearchStrategy

from trispade.errors import InputError

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
