"""Rows of measurements, their summary over people, and tables of both."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trispade.metrics.evaluation_space import compare_in_evaluation_space
from trispade.nifti import replacing

Row = Mapping[str, Any]
CSV_COLUMNS = ("case_id", "person_id", "method", "region", "fit", "metric", "value")


def evaluate_methods(volumes: Mapping[str, np.ndarray], real: np.ndarray, mask: np.ndarray) -> list[dict[str, Any]]:
    """Compare each method's volume with the real scan of one case.

    Args:
        volumes: method to (X, Y, Z) float volume on the scan's grid.
        real: (X, Y, Z) float, bias-corrected scan, background 0.
        mask: (X, Y, Z) bool, the brain.

    Returns:
        The rows of `compare_in_evaluation_space`, each with its ``method``.
    """
    return [
        {"method": method, **row}
        for method, volume in volumes.items()
        for row in compare_in_evaluation_space(volume, real, mask)
    ]


def summarise(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Average over people; the scans of one person are averaged first, so that nobody counts twice.

    Args:
        rows: with the columns of `CSV_COLUMNS`.

    Returns:
        ``{"method", "region", "fit", "metric", "mean", "sd", "people", "scans"}``, by first appearance; ``sd`` is the
        sample standard deviation over people, nan for one person or an infinite value (PSNR of identical volumes).
    """
    groups: dict[tuple[str, ...], dict[str, list[float]]] = {}
    for row in rows:
        key = tuple(str(row[name]) for name in ("method", "region", "fit", "metric"))
        groups.setdefault(key, {}).setdefault(str(row["person_id"]), []).append(float(row["value"]))
    summary = []
    for (method, region, fit, metric), people in groups.items():
        values = np.array([np.mean(scans) for scans in people.values()])
        has_spread = len(values) > 1 and bool(np.isfinite(values).all())
        summary.append(
            {
                "method": method,
                "region": region,
                "fit": fit,
                "metric": metric,
                "mean": float(values.mean()),
                "sd": float(values.std(ddof=1)) if has_spread else float("nan"),
                "people": len(values),
                "scans": sum(len(scans) for scans in people.values()),
            }
        )
    return summary


def markdown_table(summary: Sequence[Row], fit: str = "gain_offset") -> str:
    """Lay out a summary as a Markdown table: a row a method, mean and SD over people, brain-only before full grid.

    Raises:
        ValueError: if the summary has no row of this fit, or its methods were not measured on as many people.
    """
    columns = (
        ("brain", "psnr", "brain PSNR (dB)", 2),
        ("brain", "ssim", "brain SSIM", 3),
        ("brain", "mse", "brain MSE", 4),
        ("brain", "sharpness", "sharpness", 2),
        ("full", "psnr", "full-grid PSNR (dB)", 2),
        ("full", "ssim", "full-grid SSIM", 3),
    )
    found = {(row["method"], row["region"], row["metric"]): row for row in summary if row["fit"] == fit}
    methods = list(dict.fromkeys(method for method, _, _ in found))
    numbers = sorted({row["people"] for row in found.values()})
    if len(numbers) != 1:
        raise ValueError(
            f"summary: expected methods of fit {fit!r} on the same people, got numbers of people {numbers}"
        )
    lines = [
        f"| method (n = {numbers[0]}) | " + " | ".join(title for *_, title, _ in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for method in methods:
        cells = [_cell(found.get((method, region, metric)), digits) for region, metric, _, digits in columns]
        lines.append(f"| {method.replace('_', ' ')} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


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


def _cell(row: Row | None, digits: int) -> str:
    if row is None or math.isnan(row["mean"]):
        return "–"
    spread = f" ± {row['sd']:.{digits}f}" if math.isfinite(row["sd"]) else ""
    return f"{row['mean']:.{digits}f}{spread}"


def _finite_or_null(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {name: _finite_or_null(value) for name, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finite_or_null(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
