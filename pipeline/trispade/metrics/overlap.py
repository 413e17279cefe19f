"""Dice overlap of segmented structures, summed up over people and arms of a comparison."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from monai.metrics import DiceMetric
from torch import Tensor

Row = Mapping[str, Any]
OVERALL = "mean of structures"


def dice_by_structure(y_pred: Tensor, y: Tensor, names: Sequence[str]) -> dict[str, float]:
    """Compare two label maps class by class.

    Args:
        y_pred: (1, 1, X, Y, Z) predicted class indices, integer.
        y: (1, 1, X, Y, Z) true class indices, integer.
        names: of the classes by index; the first is the background, which is left out.

    Returns:
        Name to Dice = 2 |A and B| / (|A| + |B|); nan for a class that is absent from ``y``.
    """
    metric = DiceMetric(include_background=False, reduction="none", ignore_empty=True, num_classes=len(names))
    return dict(zip(names[1:], metric(y_pred, y)[0].tolist(), strict=True))


def summarise_dice(rows: Sequence[Row], people: Mapping[str, str]) -> list[dict[str, Any]]:
    """Average over people for each arm and structure; the scans of one person are averaged first.

    Args:
        rows: ``{"case_id", "arm", "structure", "dice"}``; nan where the structure is absent from the scan's label map.
        people: case to person.

    Returns:
        ``{"arm", "structure", "mean", "sd", "people", "scans", "absent_scans"}``. Scans without the structure are
        counted as absent and do not enter the mean. The structure `OVERALL` is each scan's mean over the structures
        that it has. ``sd`` is the sample standard deviation over people; nan for fewer than two.
    """
    summary = []
    for (arm, structure), scores in _grouped(rows).items():
        present = {case: value for case, value in scores.items() if not math.isnan(value)}
        values = np.array(list(_by_person(present, people).values()))
        summary.append(
            {
                "arm": arm,
                "structure": structure,
                "mean": float(values.mean()) if len(values) else math.nan,
                "sd": float(values.std(ddof=1)) if len(values) > 1 else math.nan,
                "people": len(values),
                "scans": len(present),
                "absent_scans": len(scores) - len(present),
            }
        )
    return summary


def compare_arms(rows: Sequence[Row], people: Mapping[str, str], reference: str) -> list[dict[str, Any]]:
    """Take each arm's mean over structures minus that of a reference arm, person by person.

    Returns:
        ``{"arm", "reference", "mean", "sd", "people", "better"}``; ``better`` counts the people whose difference is
        positive. Empty if the reference has no rows.
    """
    overall = {arm: _by_person(scores, people) for (arm, name), scores in _grouped(rows).items() if name == OVERALL}
    base = overall.pop(reference, {})
    differences = []
    for arm, values in overall.items():
        paired = np.array([values[person] - base[person] for person in values if person in base])
        if len(paired):
            spread = float(paired.std(ddof=1)) if len(paired) > 1 else math.nan
            found = {
                "mean": float(paired.mean()),
                "sd": spread,
                "people": len(paired),
                "better": int((paired > 0).sum()),
            }
            differences.append({"arm": arm, "reference": reference, **found})
    return differences


def dice_table(summary: Sequence[Row], arms: Sequence[str]) -> str:
    """Lay out a summary as a Markdown table: a row a structure, a column an arm, mean ± SD over people.

    Structures that no scan has are left out; a row of fewer people than the first says how many.
    """
    found = {(row["arm"], row["structure"]): row for row in summary}
    structures = [name for name in dict.fromkeys(row["structure"] for row in summary) if name != OVERALL]
    num_people = max((row["people"] for row in summary), default=0)
    lines = [f"| Dice (n = {num_people}) | " + " | ".join(arm.replace("_", " ") for arm in arms) + " |"]
    lines.append("|---" * (len(arms) + 1) + "|")
    for name in (OVERALL, *structures):
        row = found[arms[0], name]
        if row["people"]:
            count = "" if row["people"] == num_people else f" (n = {row['people']})"
            cells = " | ".join(_cell(found[arm, name]) for arm in arms)
            lines.append(f"| {name.replace('_', ' ')}{count} | {cells} |")
    return "\n".join(lines)


def _grouped(rows: Sequence[Row]) -> dict[tuple[str, str], dict[str, float]]:
    """Give (arm, structure) -> case -> Dice, with `OVERALL` after each arm's structures."""
    groups: dict[tuple[str, str], dict[str, float]] = {}
    for row in rows:
        groups.setdefault((row["arm"], row["structure"]), {})[row["case_id"]] = float(row["dice"])
    for arm in dict.fromkeys(row["arm"] for row in rows):
        scans: dict[str, list[float]] = {}
        for row in rows:
            if row["arm"] == arm and not math.isnan(row["dice"]):
                scans.setdefault(row["case_id"], []).append(float(row["dice"]))
        groups[arm, OVERALL] = {case: float(np.mean(values)) for case, values in scans.items()}
    return groups


def _by_person(scores: Mapping[str, float], people: Mapping[str, str]) -> dict[str, float]:
    scans: dict[str, list[float]] = {}
    for case, value in scores.items():
        scans.setdefault(people[case], []).append(value)
    return {person: float(np.mean(values)) for person, values in scans.items()}


def _cell(row: Row) -> str:
    spread = f" ± {row['sd']:.3f}" if math.isfinite(row["sd"]) else ""
    return f"{row['mean']:.3f}{spread}"
