"""What the tests of the report page share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from report_content import make_full_content, shown_case

from trispade.report.page import HashedFile, Provenance, ReportContent
from trispade.report.page_figures import ShownCase


@pytest.fixture(scope="session")
def cases() -> tuple[ShownCase, ShownCase]:
    """A better and a worse phantom at 6 mm."""
    return shown_case(7, (32, 38, 32), 6.0), shown_case(8, (32, 38, 32), 6.0, blur=2.0)


@pytest.fixture(scope="session")
def content(cases: tuple[ShownCase, ShownCase]) -> ReportContent:
    """A page with every part."""
    return make_full_content(cases)


@pytest.fixture
def bare_content() -> Callable[..., ReportContent]:
    """A page with nothing but what it must have, and what is given."""

    def make(**parts: Any) -> ReportContent:
        provenance = Provenance("trispade evaluate", [], HashedFile("data.json", "ab" * 32), [], {}, {}, {})
        return ReportContent(**{"title": "A page", "date": "today", "verdict": [], "provenance": provenance} | parts)

    return make
