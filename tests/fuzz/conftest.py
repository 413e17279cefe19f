from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _without_remarks_on_headers() -> Iterator[None]:
    """Nibabel tells of each field that it puts right, and pytest keeps what it tells."""
    logger = logging.getLogger("nibabel.global")
    before, logger.level = logger.level, logging.CRITICAL + 1
    yield
    logger.setLevel(before)
