"""The GPU benchmark runs, and says so where there is no GPU."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module("gpu")
    for name in ("gpu", "inference"):
        sys.modules.pop(name, None)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_benchmark_says_so(gpu: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr("sys.argv", ["gpu.py", "--preset", "smoke"])
    with pytest.raises(SystemExit):
        gpu.main()
    assert "expected a machine with a GPU, got one without" in capsys.readouterr().err


@pytest.mark.long
def test_the_benchmark_runs_from_end_to_end(gpu: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    options = ["--device", "cpu", "--preset", "smoke", "--volumes", "1", "--json", str(file)]
    monkeypatch.setattr("sys.argv", ["gpu.py", *options])
    gpu.main()
    report = json.loads(file.read_text())
    assert report["shape"] == [64, 64, 64]
    assert report["tera_operations"] > 0
    shipped = report["ways"]["shipped"]
    assert 0 < shipped["share_of_matrix_rate"] < 1
    assert shipped["mean_abs_diff"] < 0.02
    assert 0 < sum(entry["share"] for entry in shipped["profile"]) <= 1 + 1e-9
