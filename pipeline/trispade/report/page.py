"""The report page: one HTML file that holds everything it shows and asks nothing of a network."""

from __future__ import annotations

import base64
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jinja2 import Environment, PackageLoader, StrictUndefined

from trispade.nifti import replacing
from trispade.report.results_table import NOT_AVAILABLE, Cell, Table, Value, number
from trispade.report.verdict import Finding, Status

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_STATUS_SIGNS: dict[Status, str] = {"good": "✓", "mixed": "≈", "bad": "✗", "not measured": "?"}


@dataclass(frozen=True)
class Panel:
    """One picture: the bytes of a PNG, what it shows in words for who cannot see it, and its caption."""

    png: bytes
    alt: str
    caption: str = ""


@dataclass(frozen=True)
class ReportFigure:
    """Pictures that belong together; they flow side by side as far as the page is wide.

    Attributes:
        title: of the figure.
        caption: what is seen and how to read it.
        panels: its pictures.
        size: width of a panel: ``"small"`` (two stand side by side on a phone), ``"medium"`` or ``"large"``.
        scale: the colour scale that the panels share, shown below them.
    """

    title: str
    caption: str
    panels: Sequence[Panel]
    size: Literal["small", "medium", "large"] = "medium"
    scale: Panel | None = None


@dataclass(frozen=True)
class HashedFile:
    """A file that the numbers depend on, by its name and the hash of its content."""

    name: str
    sha256: str


@dataclass(frozen=True)
class Provenance:
    """What made the numbers.

    Attributes:
        command: the command that was run.
        configs: configuration files, and what overrides them.
        data: the data manifest.
        weights: the models.
        versions: of Python and of packages, by name.
        seeds: by what they seed.
        people: number of people in each split.
    """

    command: str
    configs: Sequence[str]
    data: HashedFile
    weights: Sequence[HashedFile]
    versions: Mapping[str, str]
    seeds: Mapping[str, int | str]
    people: Mapping[str, int]


@dataclass(frozen=True)
class ReportContent:
    """All that the page shows, as plain data. A part that is None or empty is said to be missing.

    Attributes:
        title: of the page.
        date: of the evaluation, as it is to be read.
        verdict: what the numbers say, see `trispade.report.verdict.verdict_of`.
        provenance: what made the numbers.
        results: `trispade.report.results_table.results_table` of all test people, with and without the fit.
        comparisons: `trispade.report.results_table.comparison_table`.
        rescan: the tables of results of the people scanned twice.
        by_age: the tables of results of each age group.
        figures: see `trispade.report.page_figures`.
        memorisation: nearest training scan and nearest unseen scan of each synthetic volume.
        memorisation_verdict: what that table says.
        distribution: Fréchet distance and MMD, with real against real as their floor.
        downstream: Dice of a network trained on real, synthetic, or both.
        failures: case that could not be measured to the reason.
        credits: lines on licences and origin that must go with the data.
    """

    title: str
    date: str
    verdict: Sequence[Finding]
    provenance: Provenance
    results: Sequence[Table] = ()
    comparisons: Table | None = None
    rescan: Sequence[Table] = ()
    by_age: Sequence[Table] = ()
    figures: Sequence[ReportFigure] = ()
    memorisation: Table | None = None
    memorisation_verdict: str = ""
    distribution: Table | None = None
    downstream: Table | None = None
    failures: Mapping[str, str] | None = None
    credits: Sequence[str] = ()


def write_report(content: ReportContent, path: str | Path) -> Path:
    """Write the page, whole or not at all.

    Args:
        content: what it shows; all of its text is escaped.
        path: of the HTML file.

    Returns:
        The path.

    Raises:
        InputError: if the folder cannot be written.
        ValueError: if a panel is not a PNG.
    """
    html = render_report(content)
    path = Path(path)
    with replacing(path) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return path


def render_report(content: ReportContent) -> str:
    """Return the page as HTML, see `write_report`."""
    counts = Counter(finding.status for finding in content.verdict)
    tally = [(status, counts[status]) for status in _STATUS_SIGNS if counts[status]]
    return render_page("report.html", content=content, signs=_STATUS_SIGNS, tally=tally)


def render_page(template: str, **parts: Any) -> str:
    """Fill one of the templates in ``templates/``; text is escaped, and a part that is missing is an error."""
    environment = Environment(
        loader=PackageLoader("trispade.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(laid_out=_laid_out, data_uri=_data_uri, shown=_shown)
    return environment.get_template(template).render(**parts)


def _laid_out(table: Table) -> dict[str, Any]:
    """Turn a table's values into text, and say below it what n/a means where there is any."""
    rows: list[dict[str, Any]] = [
        {"head": _shown(row[0]).text, "cells": [_shown(value) for value in row[1:]], "strong": row[0] == table.strong}
        for row in table.rows
    ]
    missing = any(cell.text == NOT_AVAILABLE for row in rows for cell in row["cells"])
    notes = [*table.notes, *(["n/a: not measured, or without a finite value."] if missing else [])]
    return {
        "rows": rows,
        "notes": notes,
        "classes": [_column_class(table, column) for column, _ in enumerate(table.header)],
    }


def _column_class(table: Table, column: int) -> str:
    """Names for the style sheet: columns of words read from the left, numbers that flatter are set back."""
    words = "words" if all(isinstance(row[column], str) for row in table.rows) else ""
    return f"flattering {words}".strip() if column in table.flattering else words


def _shown(value: Value) -> Cell:
    if isinstance(value, Cell):
        return value
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return Cell(NOT_AVAILABLE)
    return Cell(number(value, 3) if isinstance(value, float) else str(value))


def _data_uri(png: bytes) -> str:
    if not png.startswith(PNG_SIGNATURE):
        raise ValueError(f"panel: expected the bytes of a PNG, got {png[:8]!r}")
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
