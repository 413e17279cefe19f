"""Ctrl-C and SIGTERM as a shell and a scheduler send them, to the real commands."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from kill_script import BUNDLE, Run, run_through

from trispade.engines import load_checkpoint
from trispade.phantoms import write_phantom_dataset

pytestmark = pytest.mark.slow

CONFIGS = BUNDLE / "configs"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("signals")
    write_phantom_dataset(folder / "phantoms", num_people=5)
    run = Run(folder, folder / "phantoms")
    run_through(run, ["prepare"])
    return run


def monai_command(run: Run) -> list[str]:
    files = [CONFIGS / "train_spade.yaml", CONFIGS / "presets" / "smoke.yaml"]
    options = {
        "config_file": str([str(file) for file in files]),
        "meta_file": CONFIGS / "metadata.json",
        "logging_file": CONFIGS / "logging.conf",
        "bundle_root": BUNDLE,
        "dataset_dir": run.dataset_dir,
        "manifest_file": run.dataset_dir / "phantoms.json",
        "work_dir": run.folder / "work",
        "plane": "coronal",
        "max_epochs": 1000,
    }
    arguments = [str(each) for name, value in options.items() for each in (f"--{name}", value)]
    return [sys.executable, "-m", "monai.bundle", "run", *arguments]


def own_command(run: Run) -> list[str]:
    options = {
        "dataset-dir": run.dataset_dir,
        "manifest": run.dataset_dir / "phantoms.json",
        "work-dir": run.folder / "work",
        "stage": "train_spade",
        "plane": "axial",
        "preset": "smoke",
        "max-epochs": 1000,
    }
    arguments = [str(each) for name, value in options.items() for each in (f"--{name}", value)]
    return [sys.executable, "-m", "trispade.cli", "train", *arguments]


@pytest.mark.parametrize(
    ("command", "number", "codes"),
    # A program that ends by the signal itself has, in a shell, the code 130 too.
    [(monai_command, signal.SIGTERM, (143,)), (own_command, signal.SIGINT, (130, -signal.SIGINT))],
    ids=["sigterm-to-monai", "ctrl-c-to-trispade"],
)
def test_a_signal_during_training_is_a_clean_stop_with_a_checkpoint_one_line_and_its_exit_code(
    prepared, command, number, codes
):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "pipeline"), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command(prepared),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=environment,
        cwd=prepared.folder,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored if the tests run in the background
    )
    assert process.stderr is not None
    seen = b""
    while b"epoch 1 of 1000" not in seen:  # at work in the second
        block = process.stderr.read1()
        assert block, seen[-2000:].decode()
        seen += block
    process.send_signal(number)
    rest = process.communicate(timeout=120)[1].decode()
    assert process.returncode in codes, rest
    assert "Traceback" not in rest
    assert rest.rstrip().endswith("trispade: stopped; the same command goes on")
    stage = next((prepared.folder / "work").glob(f"spade_{'coronal' if command is monai_command else 'axial'}"))
    checkpoint = load_checkpoint(stage / "last.pt")
    assert f"{number.name}: stopping at iteration {checkpoint['iteration']}, with a checkpoint" in rest
    assert [file.name for file in stage.iterdir() if file.name.startswith(".")] == []
