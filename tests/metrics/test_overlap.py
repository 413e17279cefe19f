from __future__ import annotations

import math

import pytest
import torch

from trispade.metrics.overlap import OVERALL, compare_arms, dice_by_structure, dice_table, summarise_dice

NAMES = ("background", "white", "grey", "plexus")
PEOPLE = {"p1-a": "p1", "p1-b": "p1", "p2": "p2", "p3": "p3"}


def rows_of(arm: str, scores: dict[str, dict[str, float]]) -> list[dict]:
    return [
        {"case_id": case, "arm": arm, "structure": structure, "dice": dice}
        for case, structures in scores.items()
        for structure, dice in structures.items()
    ]


REAL = rows_of(
    "real",
    {
        "p1-a": {"white": 0.9, "grey": 0.5, "plexus": math.nan},
        "p1-b": {"white": 0.7, "grey": math.nan, "plexus": math.nan},
        "p2": {"white": 0.6, "grey": 0.4, "plexus": math.nan},
    },
)
BOTH = rows_of(
    "both",
    {
        "p1-a": {"white": 0.9, "grey": 0.7, "plexus": math.nan},
        "p1-b": {"white": 0.9, "grey": math.nan, "plexus": math.nan},
        "p2": {"white": 0.5, "grey": 0.3, "plexus": math.nan},
    },
)


def find(summary: list[dict], arm: str, structure: str) -> dict:
    return next(each for each in summary if (each["arm"], each["structure"]) == (arm, structure))


def test_dice_is_twice_the_overlap_over_the_sum_of_the_sizes_and_nan_where_the_structure_is_absent():
    y, y_pred = torch.zeros(1, 1, 4, 4, 4, dtype=torch.long), torch.zeros(1, 1, 4, 4, 4, dtype=torch.long)
    y[..., 0] = 1  # 16 voxels
    y_pred[..., :2, 0] = 1  # 8 of these
    y[..., 1] = 2
    y_pred[..., 3] = 3  # there is no plexus in y: a false positive of an absent structure has no Dice
    dice = dice_by_structure(y_pred, y, NAMES)
    assert list(dice) == ["white", "grey", "plexus"]
    assert dice["white"] == pytest.approx(2 * 8 / (16 + 8))
    assert dice["grey"] == 0.0
    assert math.isnan(dice["plexus"])


def test_scans_of_one_person_are_averaged_first_and_absent_structures_are_counted_and_not_averaged():
    summary = summarise_dice(REAL, PEOPLE)
    white, grey, plexus = (find(summary, "real", name) for name in NAMES[1:])
    assert white["mean"] == pytest.approx((0.8 + 0.6) / 2)
    assert white["sd"] == pytest.approx(0.2 / math.sqrt(2))
    assert (white["people"], white["scans"], white["absent_scans"]) == (2, 3, 0)
    assert grey["mean"] == pytest.approx((0.5 + 0.4) / 2)
    assert (grey["people"], grey["scans"], grey["absent_scans"]) == (2, 2, 1)
    assert math.isnan(plexus["mean"])
    assert (plexus["people"], plexus["scans"], plexus["absent_scans"]) == (0, 0, 3)


def test_the_mean_of_structures_is_taken_scan_by_scan_over_what_the_scan_has():
    overall = find(summarise_dice(REAL, PEOPLE), "real", OVERALL)
    assert overall["mean"] == pytest.approx(((0.7 + 0.7) / 2 + 0.5) / 2)
    assert overall["people"] == 2


def test_arms_are_compared_person_by_person():
    (difference,) = compare_arms([*REAL, *BOTH], PEOPLE, "real")
    first, second = (0.8 + 0.9) / 2 - 0.7, 0.4 - 0.5
    assert difference["mean"] == pytest.approx((first + second) / 2)
    assert difference["sd"] == pytest.approx(abs(first - second) / math.sqrt(2))
    assert (difference["arm"], difference["reference"]) == ("both", "real")
    assert (difference["people"], difference["better"]) == (2, 1)


def test_without_the_reference_arm_nothing_is_compared():
    assert compare_arms(BOTH, PEOPLE, "real") == []


def test_one_person_has_no_spread():
    one = [row for row in REAL if row["case_id"] == "p2"]
    assert math.isnan(find(summarise_dice(one, PEOPLE), "real", "white")["sd"])
    assert "| white | 0.600 |" in dice_table(summarise_dice(one, PEOPLE), ["real"])


def test_the_table_has_a_row_a_structure_that_any_scan_has_and_a_column_an_arm():
    lines = dice_table(summarise_dice([*REAL, *BOTH], PEOPLE), ["real", "both"]).splitlines()
    assert lines[0] == "| Dice (n = 2) | real | both |"
    assert lines[1] == "|---|---|---|"
    assert lines[2] == "| mean of structures | 0.600 ± 0.141 | 0.625 ± 0.318 |"
    assert lines[3] == "| white | 0.700 ± 0.141 | 0.700 ± 0.283 |"
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| mean of structures", "| white", "| grey"]


def test_a_row_of_fewer_people_says_how_many():
    rows = [*REAL, *rows_of("real", {"p3": {"white": 0.5, "grey": math.nan, "plexus": 0.2}})]
    lines = dice_table(summarise_dice(rows, PEOPLE), ["real"]).splitlines()
    assert lines[0] == "| Dice (n = 3) | real |"
    assert lines[4].startswith("| grey (n = 2) |")
    assert lines[5] == "| plexus (n = 1) | 0.200 |"
