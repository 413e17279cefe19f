from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.engines import SupervisedEvaluator
from torch import nn
from torch.utils.data import DataLoader

from trispade.data.segmentation import SegmentationVolumeDataset
from trispade.engines import save_checkpoint
from trispade.inference.downstream_arms import Arm
from trispade.labels import LabelClass, Vocabulary
from trispade.report.downstream import DownstreamEvaluation

VOCABULARY = Vocabulary(
    "tiny",
    (
        LabelClass("background", None, "background", ""),
        *(LabelClass(name, None, "gm", "") for name in ("first_one", "second", "third", "plexus")),
    ),
)


class Threshold(nn.Module):
    """Segments `make_case`'s scans, whose classes 1, 2 and 3 have 1/4, 2/4 and 3/4 of [-1, 1], by their intensity."""

    def __init__(self, shift: float = 0.0) -> None:
        super().__init__()
        self.levels = nn.Parameter(torch.tensor([0.0, 0.625, 0.75, 0.875, 2.0]) + torch.tensor(shift))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return -(image - self.levels.view(1, -1, 1, 1, 1)).abs()


@pytest.fixture
def scans(make_case):
    return (
        make_case("p1-a", "p1", "test"),
        make_case("p1-b", "p1", "test", seed=1),
        make_case("p2", "p2", "test", seed=2),
    )


@pytest.fixture
def evaluate(scans, tmp_path):
    """Evaluate an arm whose trained network is given; gives the line and the content of ``downstream.json``."""

    def run(name: str = "real", network: nn.Module | None = None, finished: bool = True, **record):
        folder = tmp_path / "downstream"
        described = {"arm": name, "seed": 0, "iterations": 10, "model": None, "people": ["p3"], "finished": finished}
        described |= {"trained_classes": [0, 1, 2, 3], "num_cases": [1], "test": ["t"], **record}
        trained = network or Threshold()
        content = {"objects": {"network": trained.state_dict()}, "record": described}
        save_checkpoint(content, folder / name / "last.pt")
        evaluator = SupervisedEvaluator(
            device=torch.device("cpu"),
            val_data_loader=DataLoader(SegmentationVolumeDataset(scans)),
            network=Threshold(shift=1.0),  # whatever it holds now: what was trained is what is tested
            decollate=False,
        )
        arm = Arm(name, (), scans, None)
        line = DownstreamEvaluation(evaluator, arm, folder / name, folder, VOCABULARY).run()
        summary = folder / "downstream.json"
        return line, json.loads(summary.read_text()) if summary.exists() else None

    return run


def scores(folder: Path) -> list[dict[str, str]]:
    with (folder / "downstream.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_trained_network_of_the_arm_is_tested_and_its_scores_are_dice_by_scan_and_structure(
    evaluate, scans, tmp_path
):
    evaluate()
    rows = scores(tmp_path / "downstream")
    assert list(rows[0]) == ["case_id", "arm", "structure", "dice"]
    assert [row["case_id"] for row in rows[::4]] == ["p1-a", "p1-b", "p2"]
    assert {row["arm"] for row in rows} == {"real"}
    case = scans[1]
    with torch.no_grad():
        predicted = Threshold()(((case.t1w() + 1) / 2)[None, None]).argmax(1)[0].numpy()
    for row, index in zip(rows[4:7], (1, 2, 3), strict=True):
        truth, found = case.label_map() == index, predicted == index
        assert float(row["dice"]) == pytest.approx(2 * (truth & found).sum() / (truth.sum() + found.sum()))
        assert 0.7 < float(row["dice"]) < 1.0
    assert np.isnan(float(rows[7]["dice"]))
    assert rows[7]["structure"] == "plexus"


def test_the_tables_hold_all_arms_that_were_run_and_name_those_that_are_missing(evaluate, tmp_path):
    line, content = evaluate("real", Threshold(shift=0.05))
    assert line.endswith("downstream.md: arms real; missing: synthetic, both")
    assert content["missing"] == ["synthetic", "both"]
    line, content = evaluate("both")
    assert line.endswith("downstream.md: arms real, both; missing: synthetic")
    assert list(content["arms"]) == ["real", "both"]
    assert len(scores(tmp_path / "downstream")) == 2 * 3 * 4
    (difference,) = content["differences"]
    assert (difference["arm"], difference["people"], difference["better"]) == ("both", 2, 2)
    text = (tmp_path / "downstream" / "downstream.md").read_text(encoding="utf-8")
    assert text.startswith("| Dice (n = 2) | real | both |\n")
    assert "| first one | " in text
    assert "plexus" not in text  # no scan has it
    assert "higher for 2 of 2 people" in text
    assert "Arm synthetic is missing: run it with `--arm synthetic`." in text
    assert "real_all" not in text  # the bound is optional


def test_numbers_that_do_not_exist_are_null_in_json_and_survive_the_way_through_it(evaluate):
    evaluate("real")
    _, content = evaluate("both")
    for arm in ("real", "both"):
        row = next(each for each in content["summary"] if (each["arm"], each["structure"]) == (arm, "plexus"))
        assert (row["mean"], row["people"], row["absent_scans"]) == (None, 0, 3)


def test_arms_that_were_trained_otherwise_are_left_out_with_the_reason(evaluate, tmp_path):
    evaluate("real", iterations=20)
    _, content = evaluate("both")
    assert list(content["arms"]) == ["both"]
    assert content["left_out"] == {"real": "another iterations than the arm both; run it again"}
    assert content["missing"] == ["synthetic"]
    assert "Arm real is left out: another iterations" in (tmp_path / "downstream" / "downstream.md").read_text()


def test_volumes_of_two_models_do_not_stand_in_one_table_and_real_scans_have_no_model(evaluate):
    evaluate("real")
    evaluate("synthetic", model="one")
    _, content = evaluate("both", model="another")
    assert list(content["arms"]) == ["real", "both"]
    assert content["left_out"] == {"synthetic": "another model than the arm both; run it again"}


def test_structures_that_an_arm_has_never_seen_are_named(evaluate, tmp_path):
    evaluate("real", trained_classes=[0, 1, 2])
    text = (tmp_path / "downstream" / "downstream.md").read_text()
    assert "Never seen in the training of real: third." in text


def test_an_arm_that_is_not_trained_to_the_end_is_not_tested(evaluate, tmp_path):
    line, content = evaluate("real", finished=False)
    assert "arm real is not trained to the end yet: run the same command to go on" in line
    assert content is None
    assert not (tmp_path / "downstream" / "real" / "dice.json").exists()


def test_every_scan_has_its_picture(evaluate, tmp_path):
    evaluate()
    pictures = sorted(file.name for file in (tmp_path / "downstream" / "real").glob("*.png"))
    assert pictures == ["p1-a.png", "p1-b.png", "p2.png"]
