from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest

from trispade.errors import InputError
from trispade.metrics import compare_in_evaluation_space
from trispade.metrics.statistics import Person
from trispade.phantoms import make_phantom
from trispade.phantoms.phantom import phantom_affine
from trispade.report.rescan import (
    SCAN_RESCAN,
    compare_scan_with_rescan,
    rescan_volume,
    rows_of_people_scanned_twice,
)


@dataclass(frozen=True, eq=False)
class Scan:
    case_id: str
    person_id: str
    volume: np.ndarray
    brain: np.ndarray
    affine: np.ndarray

    def label_map(self):
        return self.brain

    def real(self):
        return self.volume


def scan_of(person: int, case_id: str, orientation="RAS", oblique_degrees=0.0, gain=1.0) -> Scan:
    shape = (30, 32, 30)
    phantom = make_phantom(person, shape, affine=phantom_affine(shape, 6.5, orientation, oblique_degrees))
    brain = (phantom.t1w > 0).astype(np.uint8)
    return Scan(case_id, f"person-{person}", gain * phantom.t1w, brain, phantom.affine)


def value(rows, case_id, metric="psnr", region="brain", fit="gain_offset"):
    wanted = (case_id, metric, region, fit)
    (found,) = [r["value"] for r in rows if (r["case_id"], r["metric"], r["region"], r["fit"]) == wanted]
    return found


def test_each_scan_of_a_person_scanned_twice_is_compared_with_the_other():
    first, second = scan_of(1, "1-a"), scan_of(1, "1-b", "LPI", 12.0, gain=2.5)
    rows = compare_scan_with_rescan([first, scan_of(2, "2-a"), second])
    assert {row["method"] for row in rows} == {SCAN_RESCAN}
    assert list(dict.fromkeys(row["case_id"] for row in rows)) == ["1-a", "1-b"]
    keys = [(row["case_id"], row["region"], row["fit"], row["metric"]) for row in rows]
    assert len(keys) == len(set(keys))
    expected = compare_in_evaluation_space(
        rescan_volume(first, second), first.real(), first.brain > 0, affine=first.affine
    )
    assert [row["value"] for row in rows if row["case_id"] == "1-a"] == pytest.approx(
        [row["value"] for row in expected], nan_ok=True
    )


def test_a_rescan_on_another_grid_is_nearer_than_another_person():
    one, again, other = scan_of(1, "1-a"), scan_of(1, "1-b", "LPI", 12.0, gain=2.5), scan_of(5, "1-c")
    same = compare_scan_with_rescan([one, again])
    strangers = compare_scan_with_rescan([one, Scan("1-b", one.person_id, other.volume, other.brain, other.affine)])
    for fit in ("gain_offset", "none"):
        assert value(same, "1-a", fit=fit) > value(strangers, "1-a", fit=fit) + 1


def test_the_rescan_is_on_its_own_scale_so_that_it_can_be_compared_without_a_fit():
    one, again = scan_of(1, "1-a"), scan_of(1, "1-b", gain=2.5)
    volume = rescan_volume(one, again)
    assert volume.dtype == np.float32
    assert volume.min() == -1
    assert np.percentile(volume[one.brain > 0], 99.5) == pytest.approx(1, abs=0.02)


def test_of_three_scans_each_is_compared_with_the_next():
    scans = [scan_of(1, "1-a"), scan_of(1, "1-b", gain=2.0), scan_of(1, "1-c", gain=3.0)]
    rows = compare_scan_with_rescan(scans)
    assert list(dict.fromkeys(row["case_id"] for row in rows)) == ["1-a", "1-b", "1-c"]
    assert len([row for row in rows if row["metric"] == "mse"]) == 3 * 4
    assert value(rows, "1-c", metric="mse") == pytest.approx(0, abs=1e-6)  # identical but for the gain


def test_single_scans_have_no_rescan():
    assert compare_scan_with_rescan([scan_of(1, "1-a"), scan_of(2, "2-a")]) == []


def test_structures_are_told_by_name():
    one, again = scan_of(1, "1-a"), scan_of(1, "1-b", gain=2.0)
    rows = compare_scan_with_rescan([one, again], class_names=("background", "brain tissue"))
    assert "brain tissue" in {row["region"] for row in rows}


def test_a_scan_that_cannot_be_registered_is_named():
    one, again = scan_of(1, "1-a"), scan_of(1, "1-b")
    again.volume[0, 0, 0] = math.nan
    with pytest.raises(InputError, match="1-b: expected finite intensities to register by"):
        compare_scan_with_rescan([one, again])


def test_every_method_is_repeated_on_the_people_scanned_twice_alone():
    people = {"1-a": Person("1"), "1-b": Person("1"), "2": Person("2"), "3-a": Person("3"), "3-b": Person("3")}
    rows = [{"case_id": case_id, "method": method} for case_id in people for method in ("fused", "axial")]
    assert rows_of_people_scanned_twice(rows, people) == []
    rescans = [{"case_id": case_id, "method": SCAN_RESCAN} for case_id in ("1-a", "1-b")]
    assert rows_of_people_scanned_twice([*rows, *rescans], people) == [*rows[:4], *rescans]
