from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from trispade.errors import InputError
from trispade.inference.downstream_arms import check_unseen, open_arm


class PaintByName:
    """Stands for `VolumeSynthesis`: a synthetic case is the prepared one under another key."""

    hash = "weights"

    def __init__(self, model_file: Path) -> None:
        self.model_file = model_file
        self.painted: list = []

    def paint(self, cases):
        self.painted += [case.case_id for case in cases]
        return tuple(replace(case, key=f"painted-{case.key}") for case in cases)


@pytest.fixture
def model_file(tmp_path) -> Path:
    (tmp_path / "model.json").write_text(json.dumps({"training": {"fusion": {"people": ["model-only", "p1"]}}}))
    return tmp_path / "model.pt"


@pytest.fixture
def people(make_case):
    annotated = [make_case(f"c{number}", person_id=f"p{number}") for number in (1, 2, 3)]
    annotated.append(make_case("c3-again", person_id="p3"))
    test = [make_case("t", person_id="test")]
    return {"real": annotated[1:], "annotated": annotated, "test": test, "dataset": "malc"}


@pytest.fixture
def synthesis(model_file):
    return PaintByName(model_file)


def keys(arm):
    return [[case.key for case in group] for group in arm.sources]


def test_each_arm_learns_from_the_groups_that_its_name_says(people, synthesis):
    few = ["key-c2", "key-c3", "key-c3-again"]
    every = ["key-c1", *few]
    painted = [f"painted-{key}" for key in every]
    expected = {"real": [few], "synthetic": [painted], "both": [few, painted], "real_all": [every]}
    for name, groups in expected.items():
        arm = open_arm(name, **people, synthesis=synthesis)
        assert keys(arm) == groups
        assert [case.key for case in arm.cases] == [key for group in groups for key in group]
        assert arm.num_cases == [len(group) for group in groups]
        assert arm.test_keys == ["key-t"]
        assert arm.model == ("weights" if name in ("synthetic", "both") else None)


def test_nothing_is_painted_for_arms_of_real_scans(people, synthesis):
    for name in ("real", "real_all"):
        open_arm(name, **people, synthesis=synthesis)
    assert synthesis.painted == []


def test_the_number_of_real_people_can_be_limited_and_scans_of_one_person_stay_together(people, synthesis):
    assert keys(open_arm("real", **people, synthesis=synthesis, num_real=1)) == [["key-c2"]]
    assert keys(open_arm("real", **people, synthesis=synthesis, num_real=2)) == [["key-c2", "key-c3", "key-c3-again"]]
    for number in (0, 3):
        with pytest.raises(InputError, match=rf"num_real: expected 1 to 2 people, as many .*, got {number}. Set"):
            open_arm("real", **people, synthesis=synthesis, num_real=number)


def test_an_unknown_arm_is_refused(people, synthesis):
    with pytest.raises(InputError, match=r"arm: expected one of real, synthetic, both, real_all, got 'fake'. Correct"):
        open_arm("fake", **people, synthesis=synthesis)


def test_a_test_person_whom_any_arm_is_trained_on_is_refused_in_every_arm(make_case, people, synthesis):
    people["test"].append(make_case("again", person_id="p2"))
    for name in ("real", "synthetic"):
        with pytest.raises(
            InputError, match="neither the model nor an arm's training has seen, got p2, on whom the segmentation netw"
        ):
            open_arm(name, **people, synthesis=synthesis)
    assert synthesis.painted == []


def test_a_test_person_whom_the_model_was_trained_on_is_refused(make_case, model_file):
    with pytest.raises(InputError, match=r"got model-only, on whom .*model.pt was trained. Choose other --test_splits"):
        check_unseen([make_case("t", person_id="model-only")], [], model_file, "malc")


def test_both_reasons_are_told_at_once(make_case, people, model_file):
    with pytest.raises(InputError, match=r"got p1, on whom the segmentation networks are trained; and p1, on whom .*"):
        check_unseen([make_case("t1", person_id="p1")], people["annotated"], model_file, "malc")


def test_people_who_are_new_to_all_are_accepted(people, model_file):
    check_unseen(people["test"], people["annotated"], model_file, "malc")
    check_unseen(people["test"], people["annotated"], model_file.with_name("no_record.pt"), "malc")


def test_people_of_the_same_name_in_the_models_other_data_set_are_other_people(make_case, tmp_path):
    test = [make_case("t", person_id="01")]
    for dataset in (None, "malc", "hcp"):
        (tmp_path / "model.json").write_text(
            json.dumps({"training": {"fusion": {"people": ["01"], "dataset": dataset}}})
        )
        if dataset == "hcp":
            check_unseen(test, [], tmp_path / "model.pt", "malc")
        else:
            with pytest.raises(InputError, match=r"got 01, on whom .*model.pt was trained"):
                check_unseen(test, [], tmp_path / "model.pt", "malc")
