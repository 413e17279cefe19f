"""Several processes over gloo train as one does: the same losses, the same weights, one checkpoint."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import STEPS, make_cases, run_ranks, train_all

RUNS = [
    ("gan", 2),
    ("gan", 3),
    ("gan in double precision", 3),
    ("gan of two slices a batch", 3),
    ("fusion", 2),
    ("fusion", 3),
    ("fusion of two patches a batch", 3),
]
each_run = pytest.mark.parametrize(("training", "world_size"), RUNS)
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def runs(folder: Path) -> dict[int, list[dict[str, Any]]]:
    """What one, two and three processes found; the three also took up a checkpoint of the two, half-way."""
    cases = make_cases(folder / "cases", count=3)
    found = {1: [train_all(0, 1, folder / "1", cases)], 2: run_ranks(train_all, 2, folder / "2", cases)}
    (folder / "3" / "resumed").mkdir(parents=True)
    shutil.copy(folder / "2" / "0" / "gan" / "previous.pt", folder / "3" / "resumed" / "last.pt")
    found[3] = run_ranks(train_all, 3, folder / "3", cases)
    return found


def largest_difference(found: list[dict[str, float]], expected: list[dict[str, float]]) -> float:
    pairs = zip(found, expected, strict=True)
    return max(abs(mine[name] - other[name]) / max(1.0, abs(other[name])) for mine, other in pairs for name in other)


@each_run
def test_twenty_steps_have_the_losses_of_one_process(runs, training, world_size):
    (expected,), found = runs[1], runs[world_size]
    assert len(expected[training]["losses"]) == STEPS
    assert largest_difference(found[0][training]["losses"], expected[training]["losses"]) < 1e-4
    assert all(other[training]["losses"] == found[0][training]["losses"] for other in found)


@each_run
def test_all_processes_end_with_the_same_weights_and_statistics(runs, training, world_size):
    first, *others = (found[training]["networks"] for found in runs[world_size])
    for other in others:
        for name, state in first.items():
            assert all(torch.equal(value, other[name][key]) for key, value in state.items())


def test_weights_statistics_and_average_in_double_precision_are_those_of_one_process(runs):
    expected = runs[1][0]["gan in double precision"]["networks"]
    found = runs[3][0]["gan in double precision"]["networks"]
    assert list(found) == ["generator", "discriminator", "average"]
    for name, state in expected.items():
        for key, value in state.items():
            torch.testing.assert_close(found[name][key], value, rtol=0, atol=1e-6)


@each_run
def test_validation_over_processes_is_the_mean_over_all_cases_each_once(runs, training, world_size):
    expected = runs[1][0][training]["metrics"]
    assert len(expected) == 2
    for found in runs[world_size]:
        assert found[training]["metrics"] == pytest.approx(expected, abs=1e-3)
        assert found[training]["metrics"] == runs[world_size][0][training]["metrics"]
        assert all(math.isfinite(value) for value in found[training]["metrics"])


@pytest.mark.parametrize("world_size", [2, 3])
def test_only_the_first_process_writes(runs, folder, world_size):
    written = sorted(path.name for path in (folder / str(world_size) / "0" / "gan").iterdir())
    assert written == ["best.pt", "last.pt", "previous.pt", "tensorboard"]
    assert not any((folder / str(world_size) / str(rank)).exists() for rank in range(1, world_size))


def test_a_run_of_two_processes_goes_on_with_three_as_if_nothing_had_happened(runs):
    (expected,) = runs[1]
    for found in runs[3]:
        resumed = found["gan, resumed"]["losses"]
        assert largest_difference(resumed, expected["gan"]["losses"][STEPS // 2 :]) < 1e-4
