"""Rows of measurements, their summary over people, and tables of both."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trispade.metrics.evaluation_space import compare_in_evaluation_space
from trispade.metrics.statistics import AGE_EDGES, Person, PersonValues, Row, age_group, age_groups, person_of
from trispade.nifti import replacing

SUMMARY_KEYS = ("method", "region", "fit", "metric")
CSV_COLUMNS = ("case_id", *SUMMARY_KEYS, "value")


def evaluate_methods(
    volumes: Mapping[str, np.ndarray], real: np.ndarray, mask: np.ndarray, **settings: Any
) -> list[dict[str, Any]]:
    """Compare each method's volume with the real scan of one case.

    Args:
        volumes: method to (X, Y, Z) float volume on the scan's grid.
        real: (X, Y, Z) float, bias-corrected scan, background 0.
        mask: (X, Y, Z) bool, the brain.
        settings: further arguments of `compare_in_evaluation_space`.

    Returns:
        The rows of `compare_in_evaluation_space`, each with its ``method``.
    """
    return [
        {"method": method, **row}
        for method, volume in volumes.items()
        for row in compare_in_evaluation_space(volume, real, mask, **settings)
    ]


def summarise(rows: Sequence[Row], people: Mapping[str, Person]) -> list[dict[str, Any]]:
    """Average over people; the scans of one person are averaged first, so that nobody counts twice.

    Args:
        rows: with the columns of `CSV_COLUMNS`.
        people: case to person.

    Returns:
        ``{"method", "region", "fit", "metric"}`` with the keys of `PersonValues.describe`, by first appearance.

    Raises:
        ValueError: if a case has no person.
    """
    groups: dict[tuple[str, ...], list[tuple[str, float]]] = {}
    for row in rows:
        key = tuple(str(row[name]) for name in SUMMARY_KEYS)
        groups.setdefault(key, []).append((person_of(str(row["case_id"]), people).person_id, float(row["value"])))
    return [
        {**dict(zip(SUMMARY_KEYS, key, strict=True)), **PersonValues.average(measured).describe()}
        for key, measured in groups.items()
    ]


def by_age(
    rows: Sequence[Row], people: Mapping[str, Person], edges: Sequence[float] = AGE_EDGES
) -> dict[str, list[dict[str, Any]]]:
    """Summarise each age group by itself (`summarise`).

    Args:
        rows: with the columns of `CSV_COLUMNS`.
        people: case to person; the age at the scan counts.
        edges: rising; each is the youngest age of the group that it opens.

    Returns:
        Group to summary, youngest first, ``unknown`` last; groups without people are left out.
    """
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(age_group(person_of(str(row["case_id"]), people).age, edges), []).append(row)
    return {name: summarise(groups[name], people) for name in age_groups(edges) if name in groups}


def markdown_table(
    summary: Sequence[Row], fit: str = "gain_offset", methods: Sequence[str] | None = None, intervals: bool = True
) -> str:
    """Lay out a summary as a Markdown table: a row a method, mean and SD over people, brain-only before full grid.

    The header tells the number of people; a cell of fewer tells its own. What was left out stands below the table.

    Args:
        summary: from `summarise`.
        fit: the rows to show.
        methods: rows wanted, in this order; one that was not measured says n/a. All that were measured, if None.
        intervals: add the 95% intervals of brain-only PSNR and SSIM.

    Raises:
        ValueError: if the summary has no row of this fit.
    """
    found = {(row["method"], row["region"], row["metric"]): row for row in summary if row["fit"] == fit}
    if not found:
        raise ValueError(f"summary: expected rows of fit {fit!r}, got none")
    wanted = list(methods) if methods is not None else list(dict.fromkeys(method for method, _, _ in found))
    shown = [row for (method, region, metric), row in found.items() if method in wanted and (region, metric) in _SHOWN]
    most = max((row["people"] for row in shown), default=0)
    header = [f"method (n = {most})", *(column.title for column in _COLUMNS)]
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    for method in wanted:
        cells = [column.cell(found.get((method, column.region, column.metric)), most, intervals) for column in _COLUMNS]
        lines.append(f"| {_words(method)} | " + " | ".join(cells) + " |")
    notes = [f"{_words(row['method'])}, {_SHOWN[row['region'], row['metric']].title}: {row['note']}" for row in shown]
    said = [note for note, row in zip(notes, shown, strict=True) if row["infinite"] or row["missing"]]
    if most == 1:
        said.append("One person: no spread, no interval")
    return "\n".join([*lines, *([""] if said else []), *(f"{note}.\n" for note in said)]).rstrip("\n")


@dataclass(frozen=True)
class _Column:
    region: str
    metric: str
    title: str
    digits: int
    has_interval: bool = False

    def cell(self, row: Row | None, most: int, intervals: bool) -> str:
        """Write mean ± SD, the interval where it is wanted, and n where it is not everybody."""
        if row is None:
            return "n/a"
        if math.isnan(row["mean"]):
            return "n/a"
        text = f"{row['mean']:.{self.digits}f}"
        if math.isfinite(row["sd"]):
            text += f" ± {row['sd']:.{self.digits}f}"
            if intervals and self.has_interval:
                text += f" [{row['low']:.{self.digits}f}, {row['high']:.{self.digits}f}]"
        return text if row["people"] in (0, most) else f"{text} (n = {row['people']})"


_COLUMNS = (
    _Column("brain", "psnr", "brain PSNR (dB)", 2, has_interval=True),
    _Column("brain", "ssim", "brain SSIM", 3, has_interval=True),
    _Column("brain", "mse", "brain MSE", 4),
    _Column("brain", "sharpness", "sharpness", 2),
    _Column("full", "psnr", "full-grid PSNR (dB)", 2),
    _Column("full", "ssim", "full-grid SSIM", 3),
)
_SHOWN = {(column.region, column.metric): column for column in _COLUMNS}


def write_csv(rows: Sequence[Row], path: str | Path) -> None:
    """Write measurements as CSV with the columns of `CSV_COLUMNS`, whole or not at all."""
    text = io.StringIO()
    writer = csv.DictWriter(text, CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(text.getvalue(), path)


def write_json(content: Any, path: str | Path) -> None:
    """Write JSON, whole or not at all; numbers that are not finite become null, which every JSON reader knows."""
    write_text(json.dumps(_finite_or_null(content), indent=1, allow_nan=False) + "\n", path)


def write_text(text: str, path: str | Path) -> None:
    """Write a text file, whole or not at all.

    Raises:
        InputError: if the folder cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _words(method: str) -> str:
    return method.replace("_", " ")


def _finite_or_null(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {name: _finite_or_null(value) for name, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finite_or_null(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
