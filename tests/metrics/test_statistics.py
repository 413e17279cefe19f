from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from trispade.metrics.statistics import (
    Person,
    PersonValues,
    age_group,
    age_groups,
    best_method,
    bootstrap_interval,
    compare_pairs,
    compare_with_bounds,
    person_of,
)

PEOPLE = {f"{person}{scan}": Person(person) for person in "abcdefgh" for scan in ("", "-2")}


def rows_of(method, values, metric="psnr", region="brain", fit="gain_offset"):
    return [
        {"case_id": case_id, "method": method, "region": region, "fit": fit, "metric": metric, "value": value}
        for case_id, value in values.items()
    ]


def described(*values):
    return PersonValues.average(("abcdefgh"[number], value) for number, value in enumerate(values)).describe()


def test_the_interval_of_the_mean_is_that_of_all_resamples_of_the_people():
    values = np.array([20.0, 21.0, 23.0, 27.0])
    low, high = bootstrap_interval(values)
    means = np.mean(
        list(itertools.product(values, repeat=4)), axis=1
    )  # all 256 resamples, where the product draws 9999
    assert low == pytest.approx(np.percentile(means, 2.5), abs=0.26)
    assert high == pytest.approx(np.percentile(means, 97.5), abs=0.26)


def test_the_interval_of_many_people_is_that_of_the_normal_distribution():
    values = np.random.default_rng(1).normal(25, 2, 400)
    error = values.std() / 20
    assert bootstrap_interval(values) == pytest.approx(
        (values.mean() - 1.96 * error, values.mean() + 1.96 * error), abs=0.01
    )


def test_the_interval_is_the_same_each_time_and_does_not_touch_the_global_seed():
    values = np.arange(6.0)
    np.random.seed(3)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    assert bootstrap_interval(values) == bootstrap_interval(values)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


def test_equal_values_have_an_interval_of_no_width():
    assert bootstrap_interval(np.full(5, 2.0)) == (2.0, 2.0)


def test_six_normal_people_are_held_by_their_interval_about_as_often_as_its_documentation_says():
    draws = np.random.default_rng(0).normal(size=(400, 6))
    intervals = [bootstrap_interval(values) for values in draws]
    assert 0.82 < np.mean([low < 0 < high for low, high in intervals]) < 0.91


def test_mean_and_sample_sd_are_over_people_whose_scans_are_averaged_first():
    found = PersonValues.average([("a", 20.0), ("b", 30.0), ("a", 24.0), ("c", 32.0)]).describe()
    assert (found["people"], found["scans"]) == (3, 4)
    assert found["mean"] == pytest.approx((22 + 30 + 32) / 3)
    assert found["sd"] == pytest.approx(np.std([22, 30, 32], ddof=1))
    assert found["low"] < found["mean"] < found["high"]
    assert found["note"] == ""


def test_one_person_has_neither_spread_nor_interval_and_it_is_said():
    found = described(21.0)
    assert found["mean"] == 21.0
    assert all(math.isnan(found[name]) for name in ("sd", "low", "high"))
    assert found["note"] == "fewer than two people: no spread, no interval"


def test_infinite_and_missing_values_are_counted_and_left_out():
    found = described(20.0, math.inf, 22.0, math.nan, math.nan)
    assert (found["mean"], found["people"], found["infinite"], found["missing"]) == (21.0, 2, 1, 2)
    assert found["note"] == "1 scan infinite (identical volumes), left out; 2 scans without a value, left out"


@pytest.mark.parametrize(("value", "mean"), [(math.inf, math.inf), (math.nan, math.nan)])
def test_where_nobody_has_a_finite_value_the_mean_says_which_kind(value, mean):
    found = described(value, value)
    assert found["mean"] == pytest.approx(mean, nan_ok=True)
    assert (found["people"], found["scans"]) == (0, 0)


def test_a_person_with_one_identical_scan_counts_by_the_other():
    found = PersonValues.average([("a", math.inf), ("a", 24.0), ("b", 26.0)]).describe()
    assert (found["mean"], found["people"], found["scans"], found["infinite"]) == (25.0, 2, 2, 1)


def test_a_case_without_person_is_refused():
    with pytest.raises(ValueError, match=r"people: expected one for every case, got none for 'z'"):
        person_of("z", PEOPLE)


def test_the_paired_difference_is_that_of_scans_averaged_over_people():
    rows = rows_of("x", {"a": 25.0, "a-2": 23.0, "b": 22.0, "c": 30.0})
    rows += rows_of("y", {"a": 24.0, "a-2": 20.0, "b": 23.0, "d": 90.0})
    found = compare_pairs(rows, PEOPLE, "x", "y")
    assert found["difference"] == pytest.approx(((1 + 3) / 2 - 1) / 2)
    assert (found["people"], found["scans"], found["positive"]) == (2, 3, 1)
    assert (found["a"], found["b"], found["metric"], found["region"], found["fit"]) == (
        *("x", "y", "psnr", "brain", "gain_offset"),
    )


def signed_rank_by_enumeration(differences):
    """Two-sided p of the signed-rank statistic over all assignments of signs."""
    ranks = stats.rankdata(np.abs(differences))
    centre = ranks.sum() / 2
    totals = [np.dot(ranks, signs) for signs in itertools.product((0, 1), repeat=len(ranks))]
    extreme = abs(np.dot(ranks, np.asarray(differences) > 0) - centre)
    return np.mean(np.abs(np.array(totals) - centre) >= extreme - 1e-9)


@pytest.mark.parametrize("differences", [(1.0, 2.0, 3.0, 4.0, 5.0, 6.0), (1.5, -0.25, 2.0, 0.75, -1.0, 3.0, 0.5)])
def test_the_p_value_is_that_of_all_assignments_of_signs(differences):
    rows = rows_of("x", dict(zip("abcdefg", differences, strict=False)))
    rows += rows_of("y", dict.fromkeys("abcdefg", 0.0))
    assert compare_pairs(rows, PEOPLE, "x", "y")["p"] == pytest.approx(signed_rank_by_enumeration(differences))


def test_differences_of_zero_take_no_part_in_the_test_but_in_the_mean():
    values = dict(zip("abcdefg", (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 0.0), strict=True))
    found = compare_pairs(rows_of("x", values) + rows_of("y", dict.fromkeys(values, 0.0)), PEOPLE, "x", "y")
    assert found["difference"] == 3.0
    assert found["p"] == pytest.approx(2 / 64)
    assert found["note"] == ""


@pytest.mark.parametrize(
    ("values", "note"),
    [
        ({"a": 1.0}, "fewer than two people: no spread, no interval; no test"),
        ({"a": 0.0, "b": 0.0}, "all differences are zero: no test"),
        ({}, "fewer than two people: no spread, no interval; no test"),
    ],
)
def test_where_there_is_nothing_to_test_p_is_nan_and_the_note_says_why(values, note):
    found = compare_pairs(rows_of("x", values) + rows_of("y", dict.fromkeys(values, 0.0)), PEOPLE, "x", "y")
    assert math.isnan(found["p"])
    assert found["note"] == note


def test_too_few_people_for_a_small_p_are_told():
    values = dict(zip("abcde", range(1, 6), strict=True))
    found = compare_pairs(rows_of("x", values) + rows_of("y", dict.fromkeys(values, 0.0)), PEOPLE, "x", "y")
    assert found["p"] == pytest.approx(2 / 32)
    assert found["note"] == "5 people cannot give p < 0.062"


def test_identical_volumes_take_no_part_in_a_comparison_and_are_counted():
    x, y = {"a": math.inf, "b": 22.0, "c": 25.0, "d": math.inf}, {"a": 20.0, "b": 21.0, "c": 21.0, "d": math.inf}
    found = compare_pairs(rows_of("x", x) + rows_of("y", y), PEOPLE, "x", "y")
    assert (found["difference"], found["people"], found["infinite"]) == (2.5, 2, 2)


def test_only_rows_of_the_metric_region_and_fit_are_compared():
    rows = rows_of("x", {"a": 1.0, "b": 2.0}, metric="ssim") + rows_of("y", {"a": 0.0, "b": 0.0}, metric="ssim")
    rows += [
        {**row, **other, "value": 99.0}
        for row in rows
        for other in ({"fit": "none"}, {"region": "full"})
        if row["method"] == "x"
    ]
    assert compare_pairs(rows, PEOPLE, "x", "y", metric="ssim")["difference"] == 1.5


def test_the_best_plane_is_the_best_in_the_mean_over_people_and_lowest_for_errors():
    rows = rows_of("axial", {"a": 20.0, "a-2": 20.0, "b": 30.0}) + rows_of(
        "coronal", {"a": 24.0, "a-2": 24.0, "b": 24.0}
    )
    assert (
        best_method(rows, PEOPLE, ("axial", "coronal", "sagittal")) == "axial"
    )  # 25 to 24; over scans it is 23.3 to 24
    errors = [{**row, "metric": "mse"} for row in rows]
    assert best_method(errors, PEOPLE, ("axial", "coronal"), metric="mse") == "coronal"
    assert best_method(rows, PEOPLE, ("sagittal",)) is None


def test_the_fused_volume_is_compared_with_the_best_plane_and_every_other_bound():
    values = dict.fromkeys("abcdef", 20.0)
    rows = [
        row
        for number, name in enumerate(("label_mean", "axial", "coronal", "mean_of_planes", "fused"))
        for row in rows_of(name, {c: v + number for c, v in values.items()})
    ]
    found = compare_with_bounds(rows, PEOPLE)
    assert [(each["role"], each["b"], each["difference"]) for each in found] == [
        ("best plane", "coronal", 2.0),
        ("mean of planes", "mean_of_planes", 1.0),
        ("label mean", "label_mean", 4.0),
    ]
    assert compare_with_bounds([row for row in rows if row["method"] != "fused"], PEOPLE) == []


@pytest.mark.parametrize(
    ("age", "group"),
    [
        (18, "<40"),
        (39.9, "<40"),
        (40, "40-64"),
        (64.5, "40-64"),
        (65, ">=65"),
        (None, "unknown"),
        (math.nan, "unknown"),
    ],
)
def test_an_edge_is_the_youngest_age_of_the_group_it_opens(age, group):
    assert age_group(age) == group


def test_the_edges_of_age_groups_can_be_chosen():
    assert age_groups((50,)) == ["<50", ">=50", "unknown"]
    assert [age_group(age, (20, 30, 40)) for age in (10, 20, 35, 90)] == ["<20", "20-29", "30-39", ">=40"]
