from __future__ import annotations

import math

import pytest
from report_content import comparison_row, summary_row, summary_rows

from trispade.metrics.statistics import Person
from trispade.metrics.table import summarise
from trispade.report.results_table import (
    COLUMNS,
    METHOD_NAMES,
    Cell,
    Table,
    comparison_table,
    interval,
    number,
    probability,
    results_table,
    signed,
)

NUMBERS = [21.224, 0.7774, 0.88, 0.7, 0.35, 0.93, 0.92, 0.95, 26.931]


def row_of(table: Table, start: str) -> list:
    (row,) = [list(row) for row in table.rows if str(row[0]).startswith(start)]
    return row


def test_every_method_stands_between_its_bounds_and_lacks_none():
    table = results_table(summary_rows({"fused": NUMBERS, "new_method": NUMBERS}), "gain_offset", "all test people")
    heads = [row[0] for row in table.rows]
    assert heads == [*METHOD_NAMES.values(), "new method"]
    assert heads[0].startswith("label mean")
    assert heads[-2].startswith("scan–rescan")
    assert row_of(table, "scan–rescan")[1:] == [None] * len(COLUMNS)
    assert table.caption == "All test people, with the gain and offset fit"


def test_cells_hold_mean_spread_and_interval():
    table = results_table(summary_rows({"fused": NUMBERS}), "gain_offset", "all")
    psnr, ssim, *_, full = row_of(table, "fused (")[1:]
    assert psnr == Cell("21.22 ± 0.42", "20.80 to 21.65")
    assert ssim == Cell("0.777 ± 0.016", "0.762 to 0.793")
    assert full == Cell("26.93 ± 0.54", "26.39 to 27.47")
    assert [table.header[index] for index in table.flattering] == ["full-grid PSNR (dB): flatters"]
    assert table.strong == "fused (this model)"


def test_fits_do_not_mix():
    rows = [summary_row("fused", "psnr", 20.0), summary_row("fused", "psnr", 10.0, fit="none")]
    assert row_of(results_table(rows, "none", "all"), "fused (")[1].text == "10.00 ± 0.20"


def test_n_stands_in_the_header_and_a_method_measured_on_others_says_its_own():
    rows = [summary_row("fused", "psnr", 20.0), summary_row("scan_rescan", "psnr", 27.0, people=3, scans=6)]
    table = results_table(rows, "gain_offset", "all")
    assert table.header[0] == "method (n = 6 people, 9 scans)"
    assert row_of(table, "scan–rescan")[0] == "scan–rescan (reference) (n = 3 people, 6 scans)"
    assert row_of(table, "label mean")[0] == "label mean (bound below)"


def test_one_person_has_neither_spread_nor_interval():
    table = results_table([summary_row("fused", "psnr", 20.0, people=1, scans=1)], "gain_offset", "all")
    assert row_of(table, "fused (")[1] == Cell("20.00", "")
    assert table.header[0] == "method (n = 1 person, 1 scan)"


def test_identical_volumes_are_said_and_not_shown_as_a_number():
    people = {"a": Person("p"), "b": Person("q"), "c": Person("r")}
    row = {"method": "fused", "region": "brain", "fit": "gain_offset", "metric": "psnr"}
    rows = [{**row, "case_id": case, "value": value} for case, value in (("a", math.inf), ("b", 20.0), ("c", 22.0))]
    table = results_table(summarise(rows, people), "gain_offset", "all")
    assert row_of(table, "fused (")[1].text == "21.00 ± 1.41"
    assert any("fused (this model), brain PSNR (dB): 1 scan infinite" in note for note in table.notes)
    only = results_table(summarise(rows[:1], people), "gain_offset", "all")
    assert row_of(only, "fused (")[1] == Cell("n/a", "identical volumes")


def test_an_empty_summary_gives_rows_without_numbers():
    table = results_table([], "gain_offset", "people scanned twice")
    assert table.header[0] == "method (n = 0 people, 0 scans)"
    assert all(row[1:] == [None] * len(COLUMNS) for row in table.rows)


def test_paired_differences_are_signed_with_interval_p_and_count():
    rows = [
        comparison_row("label_mean", 1.374, 1.21, 1.55),
        comparison_row("direct", -0.2, math.nan, math.nan, p=math.nan, people=1, positive=0, note="no test"),
    ]
    table = comparison_table(rows)
    assert list(table.rows[0]) == [
        "fused (this model) − label mean (bound below)",
        "brain PSNR, with the gain and offset fit",
        Cell("+1.37", "+1.21 to +1.55"),
        Cell("6 of 6"),
        Cell("0.031"),
    ]
    assert list(table.rows[1])[2:] == [Cell("−0.20", "no interval"), Cell("0 of 1"), Cell("n/a")]
    assert "fused (this model) − direct 3D U-Net (competitor): no test." in table.notes


def test_a_row_of_the_wrong_length_is_refused():
    with pytest.raises(ValueError, match=r"table 't': expected 2 cells a row, got \['a'\]"):
        Table("t", ["a", "b"], [["a"]])


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (number(-1.256, 2), "−1.26"),
        (number(None, 2), "n/a"),
        (number(math.inf, 2), "n/a"),
        (signed(0.5, 1), "+0.5"),
        (signed(math.nan, 1), "n/a"),
        (probability(0.00012), "< 0.001"),
        (probability(0.03125), "0.031"),
        (probability(None), "n/a"),
        (interval(1.0, math.nan, 1), "no interval"),
        (interval(-1.0, 1.0, 1, show=signed), "−1.0 to +1.0"),
    ],
)
def test_numbers_are_written_for_people(shown, expected):
    assert shown == expected
