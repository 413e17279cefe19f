"""Downstream use: how well networks that learnt from real or synthetic scans segment the scans of new people.

output_dir/<arm>/last.pt      the arm's trained network
                 dice.json    its Dice scores, and what it was trained on
                 <case>.png   label map, scan and segmentation
output_dir/downstream.csv     case_id, arm, structure, dice: all arms found
           downstream.json    mean and spread over people, differences between arms, arms that are missing
           downstream.md      the table
"""

from __future__ import annotations

import csv
import io
import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from monai.engines import SupervisedEvaluator

from trispade.engines import WEIGHTS_FORM, is_finished, load_checkpoint
from trispade.engines.training_state import LAST
from trispade.inference.downstream_arms import ARMS, Arm
from trispade.labels import Vocabulary
from trispade.metrics import write_json, write_text
from trispade.metrics.overlap import compare_arms, dice_by_structure, dice_table, summarise_dice
from trispade.networks import load_weights
from trispade.report.figure import save_triplanar_figure

logger = logging.getLogger(__name__)

CSV_COLUMNS = ("case_id", "arm", "structure", "dice")
REFERENCE = "real"
# Arms that differ in one of these cannot stand in one table.
SHARED_BY_ARMS = ("vocabulary", "architecture", "settings", "batch_size", "patch_size", "seed", "iterations", "test")
OPTIONAL = ("real_all",)


class DownstreamEvaluation:
    """Segments the test scans with an arm's trained network, and tabulates all arms that have been run so far.

    Args:
        evaluator: of the arm's network over a `SegmentationVolumeDataset` of its test cases, one at a time.
        arm: its cases.
        arm_dir: folder of its checkpoints; gets its scores and figures.
        output_dir: folder of all arms; gets the tables.
        vocabulary: names the structures.
    """

    def __init__(
        self,
        evaluator: SupervisedEvaluator,
        arm: Arm,
        arm_dir: str | Path,
        output_dir: str | Path,
        vocabulary: Vocabulary,
    ) -> None:
        self.evaluator = evaluator
        self.arm = arm
        self.arm_dir = Path(arm_dir)
        self.output_dir = Path(output_dir)
        self.vocabulary = vocabulary
        evaluator.add_event_handler(Events.ITERATION_COMPLETED, self._measure)

    def run(self) -> str:
        """Evaluate the arm if its training is finished; return one line that says what was done."""
        if not is_finished(self.arm_dir):
            line = f"{self.arm_dir}: arm {self.arm.name} is not trained to the end yet: run the same command to go on"
            logger.info(line)
            return line
        path = self.arm_dir / LAST
        checkpoint = load_checkpoint(path, {"objects": {"network": WEIGHTS_FORM}, "record": {str: object}})
        load_weights(self.evaluator.network, checkpoint["objects"]["network"], str(path))
        self.rows: list[dict[str, Any]] = []
        self.evaluator.run()
        write_json({"record": checkpoint["record"], "rows": self.rows}, self.arm_dir / "dice.json")
        return self._tabulate(checkpoint["record"])

    def _measure(self, engine: Engine) -> None:
        case_id = engine.state.batch["case_id"][0]
        label = engine.state.output["label"]
        predicted = engine.state.output["pred"].argmax(dim=1, keepdim=True)
        for structure, dice in dice_by_structure(predicted, label, self.vocabulary.names).items():
            self.rows.append({"case_id": case_id, "arm": self.arm.name, "structure": structure, "dice": dice})
        columns = {
            "label map": label[0, 0].cpu().numpy(),
            "scan": engine.state.output["image"][0, 0].cpu().numpy(),
            f"learnt from {self.arm.name.replace('_', ' ')}": predicted[0, 0].cpu().numpy(),
        }
        save_triplanar_figure(columns, self.arm_dir / f"{case_id}.png", title=case_id)

    def _tabulate(self, record: Mapping[str, Any]) -> str:
        found, left_out = self._find_arms(record)
        rows = [row for arm in found.values() for row in arm["rows"]]
        people = {case.case_id: case.person_id for case in self.arm.test}
        missing = [arm for arm in ARMS if arm not in found and arm not in left_out and arm not in OPTIONAL]
        content: dict[str, Any] = {
            "arms": {name: _outline(arm["record"]) for name, arm in found.items()},
            "missing": missing,
            "left_out": left_out,
            "summary": summarise_dice(rows, people),
            "differences": compare_arms(rows, people, REFERENCE),
        }
        text = f"{dice_table(content['summary'], list(found))}\n\n{_notes(content, self.vocabulary)}\n"
        _write_rows(rows, self.output_dir / "downstream.csv")
        write_json(content, self.output_dir / "downstream.json")
        write_text(text, self.output_dir / "downstream.md")
        logger.info("%s\n%s", self.output_dir / "downstream.md", text)
        return f"{self.output_dir / 'downstream.md'}: arms {', '.join(found)}; missing: {', '.join(missing) or 'none'}"

    def _find_arms(self, record: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
        """Read the scores of all arms; those that were trained or tested otherwise are left out, with the reason."""
        found: dict[str, Any] = {}
        left_out: dict[str, str] = {}
        for name in ARMS:
            path = self.output_dir / name / "dice.json"
            if not path.exists():
                continue
            arm = json.loads(path.read_text())
            different = [key for key in SHARED_BY_ARMS if arm["record"].get(key) != record.get(key)]
            if None not in (record["model"], arm["record"]["model"]) and record["model"] != arm["record"]["model"]:
                different.append("model")
            if different:
                left_out[name] = f"another {', '.join(different)} than the arm {self.arm.name}; run it again"
            else:
                rows = [{**row, "dice": math.nan if row["dice"] is None else row["dice"]} for row in arm["rows"]]
                found[name] = {"record": arm["record"], "rows": rows}
        return found, left_out


def _outline(record: Mapping[str, Any]) -> dict[str, Any]:
    keys = ("people", "num_cases", "iterations", "batch_size", "patch_size", "seed", "model", "trained_classes")
    return {key: record.get(key) for key in keys}


def _notes(content: Mapping[str, Any], vocabulary: Vocabulary) -> str:
    """Say below the table what it averages, what differs, and what it lacks."""
    lines = ["Mean ± SD over people, the scans of one person averaged first; on the working grid, test scans all real."]
    for each in content["differences"]:
        spread = f" ± {each['sd']:.3f}" if math.isfinite(each["sd"]) else ""
        lines.append(
            f"{each['arm']} minus {each['reference']}, mean of structures: {each['mean']:+.3f}{spread}, higher for"
            f" {each['better']} of {each['people']} people."
        )
    present = [row for row in content["summary"] if row["people"]]
    absent = {row["structure"]: row["absent_scans"] for row in present if row["absent_scans"]}
    if absent:
        listed = ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in absent.items())
        lines.append(f"Scans whose label map lacks a structure are not averaged (number of scans): {listed}.")
    for name, arm in content["arms"].items():
        known = {vocabulary.names[index] for index in arm["trained_classes"]}
        unknown = [row["structure"] for row in present if row["arm"] == name and row["structure"] in vocabulary.names]
        unknown = [structure.replace("_", " ") for structure in unknown if structure not in known]
        if unknown:
            lines.append(f"Never seen in the training of {name}: {', '.join(unknown)}.")
    lines += [f"Arm {name} is left out: {reason}." for name, reason in content["left_out"].items()]
    lines += [f"Arm {name} is missing: run it with `--arm {name}`." for name in content["missing"]]
    return "\n".join(f"- {line}" for line in lines)


def _write_rows(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(text.getvalue(), path)
