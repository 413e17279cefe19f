from __future__ import annotations

import csv
import json
import math

import numpy as np
import pytest

from trispade.errors import InputError
from trispade.metrics.statistics import Person, bootstrap_interval
from trispade.metrics.table import (
    by_age,
    evaluate_methods,
    markdown_table,
    summarise,
    write_csv,
    write_json,
    write_text,
)


def row(value, case="p1", method="fused", metric="psnr", region="brain", fit="gain_offset"):
    return {"case_id": case, "method": method, "region": region, "fit": fit, "metric": metric, "value": value}


PEOPLE = {
    "p1": Person("p1", age=25.0),
    "p1-b": Person("p1", age=25.0),
    "p2": Person("p2", age=40.0),
    "p3": Person("p3", age=83.0),
    "p4": Person("p4"),
}


def table(rows, **settings):
    return markdown_table(summarise(rows, PEOPLE), **settings).splitlines()


def test_a_person_scanned_twice_counts_once():
    rows = [row(20.0, "p1"), row(24.0, "p1-b"), row(30.0, "p2"), row(32.0, "p3")]
    (summary,) = summarise(rows, PEOPLE)
    assert (summary["people"], summary["scans"]) == (3, 4)
    assert summary["mean"] == pytest.approx((22 + 30 + 32) / 3)
    assert summary["sd"] == pytest.approx(np.std([22, 30, 32], ddof=1))
    assert (summary["low"], summary["high"]) == bootstrap_interval(np.array([22.0, 30.0, 32.0]))


def test_methods_regions_fits_and_metrics_are_kept_apart_in_the_order_they_come_in():
    rows = [row(1.0, method="b"), row(2.0, method="a"), row(3.0, region="full"), row(4.0, fit="none"), row(5.0, "p2")]
    summary = summarise([*rows, row(6.0, metric="ssim"), row(7.0, "p2", method="b")], PEOPLE)
    assert [(each["method"], each["region"], each["fit"], each["metric"], each["mean"]) for each in summary] == [
        ("b", "brain", "gain_offset", "psnr", 4.0),
        ("a", "brain", "gain_offset", "psnr", 2.0),
        ("fused", "full", "gain_offset", "psnr", 3.0),
        ("fused", "brain", "none", "psnr", 4.0),
        ("fused", "brain", "gain_offset", "psnr", 5.0),
        ("fused", "brain", "gain_offset", "ssim", 6.0),
    ]


def test_each_age_group_is_summarised_by_itself_youngest_first_and_unknown_last():
    rows = [row(1.0, "p4"), row(2.0, "p3"), row(3.0, "p1"), row(5.0, "p1-b"), row(6.0, "p2")]
    groups = by_age(rows, PEOPLE)
    assert [(name, each["mean"], each["people"]) for name, (each,) in groups.items()] == [
        *(("<40", 4.0, 1), ("40-64", 6.0, 1), (">=65", 2.0, 1), ("unknown", 1.0, 1)),
    ]
    assert list(by_age(rows[1:4], PEOPLE, edges=(83,))) == ["<83", ">=83"]


def test_a_case_of_nobody_is_refused():
    with pytest.raises(ValueError, match="expected one for every case, got none for 'p9'"):
        summarise([row(1.0, "p9")], PEOPLE)


def test_what_is_not_finite_is_null_in_json(tmp_path):
    rows = [row(math.inf), row(math.nan, metric="sharpness"), row(0.5, metric="ssim")]
    summary = summarise(rows, PEOPLE)
    write_json({"rows": summary, "pair": (1, -math.inf)}, tmp_path / "new" / "summary.json")
    read = json.loads((tmp_path / "new" / "summary.json").read_text(), parse_constant=pytest.fail)
    assert [each["mean"] for each in read["rows"]] == [None, None, 0.5]
    assert [each["sd"] for each in read["rows"]] == [None] * 3
    assert read["pair"] == [1, None]


def test_csv_holds_every_measurement(tmp_path):
    rows = [row(20.5, "p1-b"), row(math.inf, "p2", metric="mse")]
    write_csv(rows, tmp_path / "metrics.csv")
    with (tmp_path / "metrics.csv").open(newline="") as file:
        read = list(csv.DictReader(file))
    assert list(read[0]) == ["case_id", "method", "region", "fit", "metric", "value"]
    assert [{**each, "value": float(each["value"])} for each in read] == rows


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path):
    path = tmp_path / "metrics.csv"
    write_csv([row(1.0)], path)
    before = path.read_text()
    with pytest.raises(ValueError, match="dict contains fields not in fieldnames: 'surprise'"):
        write_csv([{**row(2.0), "surprise": 1}], path)
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_json({"a": object()}, path)
    assert path.read_text() == before
    assert [each.name for each in tmp_path.iterdir()] == ["metrics.csv"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(InputError, match=r"taken/summary\.md: expected a folder that can be written to"):
        write_text("x", tmp_path / "taken" / "summary.md")


HEADER = (
    "| method (n = {}) | brain PSNR (dB) | brain SSIM | brain MSE | sharpness | full-grid PSNR (dB) | full-grid SSIM |"
)


def test_the_table_has_a_row_a_method_brain_before_full_grid():
    rows = []
    for person, shift in (("p1", 0.0), ("p2", 0.5)):
        for method, psnr in (("label_mean", 21.0), ("fused", 24.0)):
            rows.append(row(psnr + shift, person, method=method))
            rows.append(row(psnr + 6 + shift, person, method=method, region="full"))
            rows.append(row(0.875, person, method=method, metric="ssim"))
            rows.append(row(1.0, person, method=method, fit="none"))
    assert table(rows) == [
        HEADER.format(2),
        "|---|---|---|---|---|---|---|",
        "| label mean | 21.25 ± 0.35 [21.00, 21.50] | 0.875 ± 0.000 [0.875, 0.875] | n/a | n/a | 27.25 ± 0.35 | n/a |",
        "| fused | 24.25 ± 0.35 [24.00, 24.50] | 0.875 ± 0.000 [0.875, 0.875] | n/a | n/a | 30.25 ± 0.35 | n/a |",
    ]
    assert table(rows, intervals=False)[3].startswith("| fused | 24.25 ± 0.35 | 0.875 ± 0.000 |")


def test_one_person_is_shown_without_spread_and_it_is_said():
    assert table([row(21.0), row(0.25, metric="mse")])[2:] == [
        "| fused | 21.00 | n/a | 0.2500 | n/a | n/a | n/a |",
        "",
        "One person: no spread, no interval.",
    ]


def test_identical_volumes_are_left_out_of_a_mean_and_counted_below_the_table():
    rows = [
        row(20.0),
        row(22.0, "p2"),
        row(math.inf, "p3"),
        *(row(0.0, case, metric="mse") for case in ("p1", "p2", "p3")),
    ]
    assert table(rows)[2:] == [
        "| fused | 21.00 ± 1.41 [20.00, 22.00] (n = 2) | n/a | 0.0000 ± 0.0000 | n/a | n/a | n/a |",
        "",
        "fused, brain PSNR (dB): 1 scan infinite (identical volumes), left out.",
    ]


def test_where_all_volumes_are_identical_the_cell_says_inf():
    lines = table([row(math.inf), row(math.inf, "p2"), row(math.nan, metric="sharpness")])
    assert lines[2] == "| fused | inf | n/a | n/a | n/a | n/a | n/a |"
    assert "fused, brain PSNR (dB): 2 scans infinite (identical volumes), left out" in lines[4]


def test_a_method_on_fewer_people_tells_its_own_number_of_them():
    lines = table([row(1.0), row(2.0, "p2"), row(3.0, method="scan_rescan")])
    assert lines[0] == HEADER.format(2)
    assert lines[3] == "| scan rescan | 3.00 (n = 1) | n/a | n/a | n/a | n/a | n/a |"


def test_a_method_that_was_asked_for_and_not_measured_has_a_row_of_its_own():
    lines = table([row(1.0), row(2.0, "p2"), row(9.0, method="axial")], methods=("fused", "scan_rescan"))
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| fused", "| scan rescan"]
    assert lines[3] == "| scan rescan | n/a | n/a | n/a | n/a | n/a | n/a |"


def test_a_table_of_nothing_is_refused():
    with pytest.raises(ValueError, match=r"summary: expected rows of fit 'none', got none"):
        markdown_table(summarise([row(1.0)], PEOPLE), fit="none")


def test_the_rows_of_every_method_bear_its_name():
    mask = np.zeros((12, 12, 12), bool)
    mask[3:9, 2:8, 4:10] = True
    real = np.where(mask, np.random.default_rng(0).random(mask.shape) + 0.5, 0)
    rows = evaluate_methods({"same": real, "flat": 0 * real}, real, mask)
    assert [each["method"] for each in rows] == ["same"] * 14 + ["flat"] * 14
    wanted = ("psnr", "brain", "gain_offset")
    psnr = {each["method"]: each["value"] for each in rows if (each["metric"], each["region"], each["fit"]) == wanted}
    assert psnr["same"] > 60 > 20 > psnr["flat"]
