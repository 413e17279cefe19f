"""How itk computes the same on every machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def one_itk_thread(itk: Any) -> Iterator[None]:
    """Keep the order of sums, and with it the result, the same on every machine; ``itk`` is the imported package."""
    threader = itk.MultiThreaderBase
    before = threader.GetGlobalDefaultNumberOfThreads()
    threader.SetGlobalDefaultNumberOfThreads(1)
    try:
        yield
    finally:
        threader.SetGlobalDefaultNumberOfThreads(before)
