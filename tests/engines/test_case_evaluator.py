from __future__ import annotations

import pytest
import torch
from monai.transforms import Compose
from torch.utils.data import DataLoader

from trispade.engines import CaseEvaluator, IsolateFailures, first_of_batch
from trispade.errors import InputError


class Load:
    """Stand-in for preprocessing: a case named bad... is bad input, one named broken... a fault of the program."""

    def __call__(self, item):
        if item["case_id"].startswith("bad"):
            raise InputError.of(f"{item['case_id']}.nii.gz", "3 axes", "4", "Take one volume.")
        if item["case_id"].startswith("broken"):
            raise KeyError("no_such_key")
        size = item["size"]
        return {**item, "image": torch.full((1, size, size, size), 2.0)}


class Cases(torch.utils.data.Dataset):
    def __init__(self, *names):
        self.items = [{"case_id": name, "size": 2 + number} for number, name in enumerate(names)]
        self.transform = IsolateFailures(Compose([Load()]), name_key="case_id")

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.transform(self.items[index])


class Collect:
    """Stand-in for saving: keeps what arrives; a case named full... cannot be saved."""

    def __init__(self):
        self.arrived = []

    def __call__(self, item):
        if item["case_id"].startswith("full"):
            raise InputError.of("out", "a writable folder", "no space", "Free the disk.")
        self.arrived.append((item["case_id"], tuple(item["pred"].shape), float(item["pred"].mean())))
        return item


def run(*names: str, inferer=None) -> tuple[CaseEvaluator, Collect]:
    collect = Collect()
    network = torch.nn.Conv3d(1, 1, 1)
    torch.nn.init.constant_(network.weight, 3.0)
    torch.nn.init.zeros_(network.bias)
    evaluator = CaseEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Cases(*names), collate_fn=first_of_batch),
        network=network,
        inferer=inferer,
        postprocessing=Compose([collect]),
    )
    return evaluator, collect


def test_cases_of_different_sizes_go_through_one_by_one_without_a_batch_axis():
    evaluator, collect = run("a", "b")
    evaluator.run()
    assert collect.arrived == [("a", (1, 2, 2, 2), 6.0), ("b", (1, 3, 3, 3), 6.0)]
    assert evaluator.failures == []
    assert evaluator.network.training


def test_a_failed_case_does_not_stop_the_others_and_is_listed_at_the_end():
    evaluator, collect = run("bad-1", "a", "full-2", "b", "bad-3")
    with pytest.raises(InputError) as caught:
        evaluator.run()
    assert [case for case, _, _ in collect.arrived] == ["a", "b"]
    assert str(caught.value).splitlines() == [
        "3 of 5 cases failed:",
        "  - bad-1: bad-1.nii.gz: expected 3 axes, got 4. Take one volume.",
        "  - full-2: out: expected a writable folder, got no space. Free the disk.",
        "  - bad-3: bad-3.nii.gz: expected 3 axes, got 4. Take one volume.",
    ]


def test_a_failure_of_the_network_on_bad_input_is_isolated_too():
    def inferer(image, network):
        if image.shape[-1] == 3:
            raise InputError.of("label map", "multiples of 32", "3", "Pad it.")
        return network(image)

    evaluator, collect = run("a", "b", "c", inferer=inferer)
    with pytest.raises(InputError, match="1 of 3 cases failed:\n  - b: label map: expected multiples of 32, got 3"):
        evaluator.run()
    assert [case for case, _, _ in collect.arrived] == ["a", "c"]


def test_failures_are_those_of_the_last_run():
    evaluator, _ = run("bad", "a")
    for _ in range(2):
        with pytest.raises(InputError, match="1 of 2 cases failed"):
            evaluator.run()
    assert len(evaluator.failures) == 1


def test_a_fault_of_the_program_stops_no_other_case_and_is_not_hidden(caplog):
    evaluator, collect = run("a", "broken", "b")
    with pytest.raises(
        InputError, match="1 of 3 cases failed:\n  - broken: a fault of the program, whose trace is above"
    ):
        evaluator.run()
    assert [case for case, _, _ in collect.arrived] == ["a", "b"]
    assert "Traceback" in caplog.text
    assert "KeyError: 'no_such_key'" in caplog.text


def test_each_case_is_followed_by_a_line_with_rate_and_time_left(caplog):
    caplog.set_level("INFO")
    evaluator, _ = run("a", "bad", "b")
    evaluator.raise_failures = False
    evaluator.run()
    lines = [message for message in caplog.messages if "an hour" in message]
    assert [line.split(" an hour")[0].rsplit(",", 1)[0] for line in lines] == [
        "1 of 3 cases, 0 failed",
        "2 of 3 cases, 1 failed",
        "3 of 3 cases, 1 failed",
    ]
    assert lines[-1].endswith("00:00 left")


def test_what_became_of_each_case_is_reported_at_the_end():
    evaluator, _ = run("a", "bad")
    reported = []
    evaluator.report, evaluator.raise_failures = reported.extend, False
    evaluator.run()
    assert [(result.case_id, bool(result.failure), result.rank) for result in reported] == [("a", 0, 0), ("bad", 1, 0)]
    assert all(result.seconds >= 0 for result in reported)


def test_a_failed_item_tells_its_case_and_reason():
    assert Cases("bad")[0] == {"case_id": "bad", "failure": "bad.nii.gz: expected 3 axes, got 4. Take one volume."}


def test_a_batch_of_several_cases_is_a_fault_of_the_config():
    with pytest.raises(ValueError, match="too many values"):
        first_of_batch([{}, {}])
