"""Segmentation networks that learn from real and from synthetic phantoms, tested on a phantom that nobody has seen."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from trispade.engines import load_checkpoint
from trispade.errors import InputError

pytestmark = pytest.mark.slow
ARMS = ("real", "synthetic", "both", "real_all")


@pytest.fixture(scope="module")
def downstream(study, tmp_path_factory):
    """The study, whose arms have all been run, with a folder of synthetic volumes of its own."""
    work_dir = tmp_path_factory.mktemp("downstream")
    downstream = replace(study, work_dir=work_dir)
    for arm in ARMS:
        downstream.run("evaluate_downstream", arm=arm, cache_dir=study.work_dir / "cache")
    return downstream


def files(folder: Path, pattern: str = "**/*") -> dict[Path, int]:
    return {file: file.stat().st_mtime_ns for file in folder.glob(pattern) if file.is_file()}


def test_all_arms_stand_in_one_table_of_the_test_person(downstream):
    folder = downstream.work_dir / "downstream"
    with (folder / "downstream.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(dict.fromkeys(row["arm"] for row in rows)) == list(ARMS)
    assert {row["case_id"] for row in rows} == {"sub-05"}
    assert all(math.isnan(float(row["dice"])) or 0 <= float(row["dice"]) <= 1 for row in rows)
    content = json.loads((folder / "downstream.json").read_text())
    assert (content["missing"], content["left_out"]) == ([], {})
    assert [each["arm"] for each in content["differences"]] == ["synthetic", "both", "real_all"]
    assert (folder / "downstream.md").read_text().startswith("| Dice (n = 1) | real | synthetic | both | real all |\n")
    assert (folder / "both" / "sub-05.png").exists()


def test_every_arm_takes_as_many_steps_on_the_people_that_its_name_says(downstream):
    records = {arm: load_checkpoint(downstream.work_dir / "downstream" / arm / "last.pt")["record"] for arm in ARMS}
    assert {record["iterations"] for record in records.values()} == {2}
    assert {arm: record["num_cases"] for arm, record in records.items()} == {
        "real": [1],
        "synthetic": [6],
        "both": [1, 6],
        "real_all": [3],
    }
    assert records["real"]["people"] == ["03"]
    assert all(records[arm]["people"] == ["01", "02", "03"] for arm in ARMS[1:])
    assert len({record["prepared"] for record in records.values()}) == 4


def test_every_label_map_is_painted_once_and_kept_with_a_deformed_copy(downstream, study):
    painted = sorted(
        str(file.relative_to(downstream.work_dir))[:23] for file in files(downstream.work_dir, "synthetic/*/*/t1w.npy")
    )
    assert painted == [f"synthetic/copy_{copy}/sub-0{person}"[:23] for copy in (0, 1) for person in (1, 2, 3)]


def test_a_finished_arm_that_is_run_again_is_tested_again_and_gives_the_same(downstream, study):
    folder = downstream.work_dir / "downstream"
    scores = (folder / "downstream.csv").read_text()
    weights = load_checkpoint(folder / "synthetic" / "last.pt")["objects"]["network"]
    volumes = files(downstream.work_dir / "synthetic")
    downstream.run("evaluate_downstream", arm="synthetic", cache_dir=study.work_dir / "cache")
    again = load_checkpoint(folder / "synthetic" / "last.pt")["objects"]["network"]
    assert all(torch.equal(again[name], weights[name]) for name in weights)
    assert files(downstream.work_dir / "synthetic") == volumes
    assert (folder / "downstream.csv").read_text() == scores


def test_arms_start_from_the_same_weights(downstream, study):
    given = {"work_dir": downstream.work_dir, "cache_dir": study.work_dir / "cache"}
    weights = []
    for arm in ("real", "both"):
        workflow = downstream.workflow("evaluate_downstream", None, arm=arm, **given)
        workflow.initialize()
        trainer = workflow.parser.get_parsed_content("train#trainer")
        weights.append({name: value.clone() for name, value in trainer.network.state_dict().items()})
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_an_arm_that_was_stopped_goes_on_to_what_the_uninterrupted_one_is(downstream, study, tmp_path):
    given = {"arm": "real", "cache_dir": study.work_dir / "cache", "max_epochs": 2}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    downstream.run("evaluate_downstream", downstream_dir=whole, **given)
    downstream.run("evaluate_downstream", downstream_dir=parts, max_minutes=0, **given)
    assert load_checkpoint(parts / "real" / "last.pt")["iteration"] == 1
    assert not (parts / "downstream.md").exists()
    downstream.run("evaluate_downstream", downstream_dir=parts, **given)
    networks = [load_checkpoint(folder / "real" / "last.pt")["objects"]["network"] for folder in (whole, parts)]
    assert all(torch.equal(networks[0][name], networks[1][name]) for name in networks[0])
    assert (parts / "downstream.csv").read_text() == (whole / "downstream.csv").read_text()


def test_people_whom_the_model_has_seen_are_not_tested_on(downstream, study, tmp_path):
    given = {"cache_dir": study.work_dir / "cache", "downstream_dir": tmp_path}
    with pytest.raises(
        InputError, match=r"test_splits: .* got 03, on whom the segmentation networks are trained; and 03"
    ):
        downstream.run("evaluate_downstream", test_splits=["fusion_train"], **given)
    splits = {"annotated_splits": ["fusion_train"], "test_splits": ["gan_train"]}
    with pytest.raises(InputError, match=r"test_splits: .* got 01, 02, on whom .*model.pt was trained"):
        downstream.run("evaluate_downstream", **splits, **given)
    assert list(tmp_path.iterdir()) == []


def test_an_arm_does_not_go_on_with_the_volumes_of_another_model(downstream, study, tmp_path):
    folder = downstream.work_dir / "downstream"
    with pytest.raises(InputError, match=r"synthetic/last.pt: expected a checkpoint with prepared .* Go back to"):
        downstream.run(
            "evaluate_downstream",
            arm="synthetic",
            cache_dir=study.work_dir / "cache",
            num_deformed=0,
            downstream_dir=folder,
        )
