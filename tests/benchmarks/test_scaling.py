"""The scaling benchmark measures what it says: sizes, labels, neighbourhoods, and rows that hold everything."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from multiprocessing import Pipe
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
COLUMNS = {
    "axis", "value", "shape", "labels", "batch_size", "threads", "processes", "volumes", "stage", "device", "voxels",
    "labelled_voxels", "labels_present", "seconds", "processor_seconds", "start_gib", "peak_gib", "above_start_gib",
    "nanoseconds_per_voxel",
}  # fmt: skip
SMALL, LARGE = (32, 32, 32), (64, 64, 64)


@pytest.fixture(scope="module")
def scaling() -> Iterator[Any]:
    sys.path.insert(0, str(BENCHMARKS))  # where the benchmark's processes find it too
    yield importlib.import_module("scaling")
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def smoke(scaling: Any) -> dict[str, Any]:
    return scaling.read_settings("smoke")


@pytest.fixture(scope="module")
def head(scaling: Any, smoke: dict[str, Any]) -> np.ndarray:
    return scaling.make_label_map(smoke, LARGE, 24)


def test_boxes_keep_the_presets_proportions_in_multiples_of_32(scaling: Any) -> None:
    shapes = [(96, 128, 96), (128, 160, 128), (160, 192, 160), (192, 224, 192)]
    assert scaling.shapes_up_to([192, 224, 192]) == shapes
    assert scaling.shapes_up_to([64, 64, 64]) == [SMALL, LARGE]


def test_a_preset_overrides_the_settings_of_training(scaling: Any, smoke: dict[str, Any]) -> None:
    assert (smoke["ngf"], smoke["amp"], smoke["num_scales"]) == (4, False, 2)
    assert (scaling.read_settings("compact")["ngf"], scaling.read_settings("compact")["amp"]) == (16, True)


def test_each_axis_varies_one_setting_around_the_presets_own(scaling: Any, smoke: dict[str, Any]) -> None:
    def jobs(axis: str, devices: int = 0) -> dict[Any, Any]:
        return scaling.jobs_of(axis, smoke, 2, 6, "cpu", devices)

    usual = scaling.Job(LARGE, 24, 4, 2)
    assert jobs("size") == {"32x32x32": scaling.Job(SMALL, 24, 4, 2), "64x64x64": usual}
    assert jobs("classes") == {24: usual, 138: scaling.Job(LARGE, 138, 4, 2)}
    assert {value: job.batch_size for value, job in jobs("batch").items()} == {1: 1, 4: 4, 12: 12, 32: 32}
    assert [job.threads for job in jobs("threads").values()] == [1, 2, 4, 6]
    shared = [(job.processes, job.threads, job.volumes) for job in jobs("processes").values()]
    assert shared == [(1, 1, 2), (1, 2, 2), (2, 1, 2)]
    assert jobs("devices", 1) == {}
    assert [(job.processes, job.volumes) for job in jobs("devices", 3).values()] == [(1, 2), (2, 4), (3, 6)]
    assert {job.stage for axis in ("training_batch", "training_classes") for job in jobs(axis).values()} == {"training"}


def test_a_finer_vocabulary_has_138_labels_in_the_same_outline(scaling: Any, head: np.ndarray) -> None:
    split = scaling.split_classes(head, 138)
    assert split.dtype == np.uint8
    assert np.array_equal(np.unique(split), np.arange(139))
    assert np.array_equal(split > 0, head > 0)
    assert all(len(np.unique(head[split == label])) == 1 for label in range(1, 139))


def test_the_largest_class_is_halved_across_its_longest_side(scaling: Any) -> None:
    label_map = np.zeros((2, 8, 3), np.uint8)
    label_map[0, :6, 1:] = 7
    label_map[1, 0, 0] = 9
    split = scaling.split_classes(label_map, 3)
    parts = {tuple(map(tuple, np.argwhere(split == label)[:, 1:2])) for label in (1, 2, 3)}
    assert parts == {((0,),), tuple((y,) for y in (0, 0, 1, 1, 2, 2)), tuple((y,) for y in (3, 3, 4, 4, 5, 5))}


def test_one_label_to_the_borders_has_25_neighbourhoods_a_batch(scaling: Any) -> None:
    label_map = np.zeros((32, 64, 32), np.uint8)
    label_map[:, :, 8:13] = 1
    # Along each axis: the first, the second, the last but one, the last position, and all others.
    expected = {"neighbourhoods": 25 * 3, "positions": 32 * 64 * 5}
    assert scaling.count_neighbourhoods(label_map, 24, 2) == expected


def test_more_voxels_more_labels_and_smaller_batches_have_more_neighbourhoods(
    scaling: Any, smoke: dict[str, Any], head: np.ndarray
) -> None:
    def count(label_map: np.ndarray, labels: int, batch_size: int) -> int:
        return scaling.count_neighbourhoods(label_map, labels, batch_size)["neighbourhoods"]

    assert count(scaling.make_label_map(smoke, SMALL, 24), 24, 4) < count(head, 24, 4)
    assert count(head, 24, 4) < count(scaling.make_label_map(smoke, LARGE, 138), 138, 4)
    assert count(head, 24, 4) < count(head, 24, 2) < count(head, 24, 1)


def test_the_head_fills_the_same_share_of_every_box(scaling: Any, smoke: dict[str, Any], head: np.ndarray) -> None:
    small = scaling.make_label_map(smoke, SMALL, 24)
    assert small.shape == SMALL
    assert (small > 0).mean() == pytest.approx((head > 0).mean(), rel=0.05)


def test_a_process_of_its_own_gives_a_complete_row(scaling: Any, smoke: dict[str, Any], tmp_path: Path) -> None:
    job = scaling.Job(SMALL, 24, 4, 1)
    row = scaling.Bench(smoke, tmp_path).row("size", "32x32x32", job)
    assert set(row) == COLUMNS | {"neighbourhoods", "positions"}
    assert (row["shape"], row["voxels"], row["device"]) == (list(SMALL), 32**3, "cpu")
    assert row["nanoseconds_per_voxel"] == row["seconds"] * 1e9 / 32**3
    assert row["peak_gib"] > row["start_gib"] > 0
    assert json.loads(json.dumps(row)) == row


@pytest.mark.parametrize(("stage", "labels"), [("synthesis", 138), ("training", 24), ("training", 138)])
def test_every_stage_runs(scaling: Any, smoke: dict[str, Any], tmp_path: Path, stage: str, labels: int) -> None:
    np.save(tmp_path / "map.npy", scaling.make_label_map(smoke, SMALL, labels))
    near, far = Pipe()
    near.send("go")
    scaling.work(
        far, 0, scaling.Job(SMALL, labels, 2, torch.get_num_threads(), stage=stage), smoke, tmp_path / "map.npy"
    )
    assert near.recv() == "ready"
    assert near.recv()["processor_seconds"] > 0


def test_a_job_in_two_tables_is_measured_once(
    scaling: Any, smoke: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[Any] = []
    result = {"seconds": 2.0, "processor_seconds": 2.0, "start_gib": 0.5, "peak_gib": 1.0, "above_start_gib": 0.5}
    monkeypatch.setattr(scaling, "measure", lambda job, *_: measured.append(job) or result)
    bench, job = scaling.Bench(smoke, tmp_path), scaling.Job(SMALL, 24, 4, 1)
    rows = [bench.row("size", "32x32x32", job), bench.row("threads", 1, job)]
    training = bench.row("training_batch", 2, scaling.Job(SMALL, 24, 2, 1, stage="training"))
    assert len(measured) == 2
    assert {key for key in rows[0] if rows[0][key] != rows[1][key]} == {"axis", "value"}
    assert set(training) == COLUMNS
    assert training["voxels"] == 2 * 32 * 32


def test_tables_say_by_how_much_memory_grows(scaling: Any, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"seconds": 2.0, "processor_seconds": 4.0, "nanoseconds_per_voxel": 3.0, "above_start_gib": 0.5}
    row |= {"stage": "synthesis", "volumes": 4, "neighbourhoods": 30, "positions": 120}
    rows = [
        {"value": "small", "peak_gib": 1.0, "voxels": 2**20, **row},
        {"value": "large", "peak_gib": 1.5, "voxels": 2**24 + 2**20, **row},
    ]
    assert scaling.show("size", iter(rows)) == rows
    shown = capsys.readouterr().out.splitlines()
    assert shown[1] == "volume size"
    line = "large 2.00 4.00 3 1.50 0.50 2.000 volumes/s 30 neighbourhoods at 25.0% of the positions"
    assert " ".join(shown[4].split()) == line
    assert shown[5] == "peak memory grows by 32 bytes a voxel, all caches included"


def test_a_process_that_ends_early_is_reported(scaling: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "work", print)
    with pytest.raises(SystemExit, match="expected a result, got none: a process ended early"):
        scaling.measure(SimpleNamespace(processes=2), {}, Path())
