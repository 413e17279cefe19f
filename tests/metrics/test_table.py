from __future__ import annotations

import csv
import json
import math

import numpy as np
import pytest

from trispade.errors import InputError
from trispade.metrics import evaluate_methods, markdown_table, summarise, write_csv, write_json, write_text


def row(value, person="p1", case=None, method="fused", metric="psnr", region="brain", fit="gain_offset"):
    return {
        "case_id": case or person,
        "person_id": person,
        "method": method,
        "region": region,
        "fit": fit,
        "metric": metric,
        "value": value,
    }


def test_a_person_scanned_twice_counts_once():
    rows = [row(20.0, "p1", "p1-a"), row(24.0, "p1", "p1-b"), row(30.0, "p2"), row(32.0, "p3")]
    (summary,) = summarise(rows)
    assert (summary["people"], summary["scans"]) == (3, 4)
    assert summary["mean"] == pytest.approx((22 + 30 + 32) / 3)
    assert summary["sd"] == pytest.approx(np.std([22, 30, 32], ddof=1))


def test_methods_regions_fits_and_metrics_are_kept_apart_in_the_order_they_come_in():
    rows = [row(1.0, method="b"), row(2.0, method="a"), row(3.0, region="full"), row(4.0, fit="none"), row(5.0, "p2")]
    summary = summarise([*rows, row(6.0, metric="ssim"), row(7.0, "p2", method="b")])
    assert [(each["method"], each["region"], each["fit"], each["metric"], each["mean"]) for each in summary] == [
        ("b", "brain", "gain_offset", "psnr", 4.0),
        ("a", "brain", "gain_offset", "psnr", 2.0),
        ("fused", "full", "gain_offset", "psnr", 3.0),
        ("fused", "brain", "none", "psnr", 4.0),
        ("fused", "brain", "gain_offset", "psnr", 5.0),
        ("fused", "brain", "gain_offset", "ssim", 6.0),
    ]


@pytest.mark.parametrize("values", [(21.0,), (math.inf, 21.0), (math.inf, math.inf)])
def test_one_person_or_an_infinite_psnr_has_no_spread(values):
    (summary,) = summarise([row(value, f"p{number}") for number, value in enumerate(values)])
    assert summary["mean"] == np.mean(values)
    assert math.isnan(summary["sd"])


def test_what_is_not_finite_is_null_in_json(tmp_path):
    summary = summarise([row(math.inf), row(math.nan, metric="sharpness"), row(0.5, metric="ssim")])
    write_json({"rows": summary, "pair": (1, -math.inf)}, tmp_path / "new" / "summary.json")
    read = json.loads((tmp_path / "new" / "summary.json").read_text(), parse_constant=pytest.fail)
    assert [each["mean"] for each in read["rows"]] == [None, None, 0.5]
    assert [each["sd"] for each in read["rows"]] == [None] * 3
    assert read["pair"] == [1, None]


def test_csv_holds_every_measurement(tmp_path):
    rows = [row(20.5, "p1", "p1-a"), row(math.inf, "p2", metric="mse")]
    write_csv(rows, tmp_path / "metrics.csv")
    with (tmp_path / "metrics.csv").open(newline="") as file:
        read = list(csv.DictReader(file))
    assert list(read[0]) == ["case_id", "person_id", "method", "region", "fit", "metric", "value"]
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


def test_the_table_has_a_row_a_method_brain_before_full_grid():
    rows = []
    for person, shift in (("p1", 0.0), ("p2", 0.5)):
        for method, psnr in (("label_mean", 21.0), ("fused", 24.0)):
            rows.append(row(psnr + shift, person, method=method))
            rows.append(row(psnr + 6 + shift, person, method=method, region="full"))
            rows.append(row(0.875, person, method=method, metric="ssim"))
            rows.append(row(1.0, person, method=method, fit="none"))
    lines = markdown_table(summarise(rows)).splitlines()
    assert lines == [
        "| method (n = 2) | brain PSNR (dB) | brain SSIM | brain MSE | sharpness | full-grid PSNR (dB) "
        "| full-grid SSIM |",
        "|---|---|---|---|---|---|---|",
        "| label mean | 21.25 ± 0.35 | 0.875 ± 0.000 | – | – | 27.25 ± 0.35 | – |",
        "| fused | 24.25 ± 0.35 | 0.875 ± 0.000 | – | – | 30.25 ± 0.35 | – |",
    ]


def test_the_table_shows_one_person_without_spread_and_identical_volumes_as_infinite():
    table = markdown_table(summarise([row(math.inf), row(0.0, metric="mse"), row(math.nan, metric="sharpness")]))
    assert table.splitlines()[2] == "| fused | inf | – | 0.0000 | – | – | – |"


def test_a_table_of_methods_on_different_people_is_refused():
    with pytest.raises(ValueError, match=r"on the same people, got numbers of people \[1, 2\]"):
        markdown_table(summarise([row(1.0), row(2.0, "p2"), row(3.0, method="rescan")]))


def test_a_table_of_nothing_is_refused():
    with pytest.raises(ValueError, match=r"expected methods of fit 'none' on the same people, got numbers of people"):
        markdown_table(summarise([row(1.0)]), fit="none")


def test_the_rows_of_every_method_bear_its_name():
    mask = np.zeros((12, 12, 12), bool)
    mask[3:9, 2:8, 4:10] = True
    real = np.where(mask, np.random.default_rng(0).random(mask.shape) + 0.5, 0)
    rows = evaluate_methods({"same": real, "flat": 0 * real}, real, mask)
    assert [each["method"] for each in rows] == ["same"] * 14 + ["flat"] * 14
    wanted = ("psnr", "brain", "gain_offset")
    psnr = {each["method"]: each["value"] for each in rows if (each["metric"], each["region"], each["fit"]) == wanted}
    assert psnr["same"] > 60 > 20 > psnr["flat"]
