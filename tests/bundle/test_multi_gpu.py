"""Two processes that torchrun starts, over gloo: inference, and a training of which one dies."""

from __future__ import annotations

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from trispade.engines import load_checkpoint

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


def start(arguments: list[str], folder: Path) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "pipeline"), "OMP_NUM_THREADS": "1"}
    with (folder / "log.txt").open("w") as log:
        return subprocess.Popen([*TORCHRUN, *arguments], stdout=log, stderr=log, env=environment, cwd=folder)


def process_of_rank(rank: int, launcher: int) -> int:
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    (found,) = [pid for pid in children if f"\0RANK={rank}\0" in Path(f"/proc/{pid}/environ").read_text()]
    return int(found)


def test_two_processes_share_the_label_maps_skip_what_is_done_and_a_bad_one_stops_none(study, tmp_path):
    maps, out = tmp_path / "maps", tmp_path / "out"
    maps.mkdir()
    for person in ("01", "02", "03"):
        shutil.copy(study.label_map(person), maps)
    (maps / "sub-00_dseg.nii.gz").write_bytes(b"torn")
    study.run("inference", input=maps / "sub-01_dseg.nii.gz", output_dir=out, dataset_dir=maps)
    before = {file: file.stat().st_mtime_ns for file in out.iterdir()}
    options = {"preset": "smoke", "model": study.model_file, "bundle": study.bundle, "output-dir": out}
    arguments = [str(each) for name, value in options.items() for each in (f"--{name}", value)]
    command = start(["-m", "trispade.cli", "synthesize", str(maps), *arguments], tmp_path)
    assert command.wait(timeout=300) == 1
    rows = list(csv.DictReader((out / "results.tsv").read_text().splitlines(), delimiter="\t"))
    assert [(row["case_id"], row["status"]) for row in rows] == [
        ("sub-00", "failed"),
        ("sub-01", "finished_before"),
        ("sub-02", "made"),
        ("sub-03", "made"),
    ]
    assert {row["rank"] for row in rows} == {"0", "1", ""}
    assert all((out / f"sub-0{i}_desc-synthetic_T1w.nii.gz").exists() for i in (1, 2, 3))
    assert {file: file.stat().st_mtime_ns for file in before} == before
    log = (tmp_path / "log.txt").read_text()
    assert "1 of 4 volumes are finished" in log
    assert log.count("trispade: 1 of 3 cases failed:\n  - sub-00: ") == 1


def test_a_process_that_dies_ends_the_job_with_a_message_and_one_process_goes_on(study, tmp_path):
    work_dir = tmp_path / "work"
    shutil.copytree(study.work_dir / "cache", work_dir / "cache")
    configs = [
        study.bundle / "configs" / f"{name}.yaml" for name in ("train_spade", "presets/smoke", "overlays/multi_gpu")
    ]
    options = {
        "config_file": str([str(file) for file in configs]),
        "meta_file": study.bundle / "configs" / "metadata.json",
        "logging_file": study.bundle / "configs" / "logging.conf",
        "bundle_root": study.bundle,
        "dataset_dir": study.dataset_dir,
        "manifest_file": study.manifest_file,
        "work_dir": work_dir,
        "timeout_minutes": 1,
        "max_epochs": 1000,
    }
    arguments = [str(each) for name, value in options.items() for each in (f"--{name}", value)]
    command = start(["-m", "monai.bundle", "run", *arguments], tmp_path)
    last = work_dir / "spade_axial" / "last.pt"
    while not last.exists():
        assert command.poll() is None, (tmp_path / "log.txt").read_text()[-3000:]
        time.sleep(0.2)
    killed = time.monotonic()
    os.kill(process_of_rank(1, command.pid), signal.SIGKILL)
    assert command.wait(timeout=90) == 1
    assert time.monotonic() - killed < 60
    log = (tmp_path / "log.txt").read_text()
    assert "trispade: processes: expected all of them to take part in each step" in log
    assert "exitcode  : -9" in log
    iteration = load_checkpoint(last)["iteration"]
    study.run("train_spade", plane="axial", work_dir=work_dir, max_epochs=1000, max_minutes=0)
    assert load_checkpoint(last)["iteration"] > iteration
