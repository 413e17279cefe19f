"""Kills a smoke run of all stages with ``kill -9`` at random moments, runs the same stage again, and compares.

    python tests/reliability/kill_script.py --kills 20 --folder killed

What the run ends with must be what an uninterrupted one ends with, to the last bit, and no temporary file may be left.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trispade.bundle_run import run_stage
from trispade.geometry import PLANES
from trispade.phantoms import write_phantom_dataset

BUNDLE = Path(__file__).parents[2] / "bundle"
STAGES = ("prepare", *(f"train_spade {plane}" for plane in PLANES), "synthesize_planes", "train_fusion", "inference")
HISTORY = ("tensorboard", "results.tsv")  # what a run writes down of its course, which a kill is part of
HEAVY = ("torch.utils.tensorboard", "monai.bundle", "monai.handlers", "trispade.inference", "trispade.transforms")

# A server that has imported what is slow to import forks each run, so that kills fall into the work of a stage.
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(list(HEAVY))


@dataclass(frozen=True)
class Run:
    """A run of some stages, in a folder of its own.

    Attributes:
        folder: for cache, checkpoints, model, volumes and logs.
        dataset_dir: phantoms and their manifest, which runs share.
    """

    folder: Path
    dataset_dir: Path

    def start(self, stage: str) -> Any:
        """Start a stage in a process of its own."""
        self.folder.mkdir(parents=True, exist_ok=True)
        process = processes.Process(target=work, args=(stage, self.folder, self.dataset_dir))
        process.start()
        return process

    def finish(self, stage: str) -> float:
        """Run a stage to its end; gives the seconds that it took."""
        start = time.monotonic()
        process = self.start(stage)
        process.join()
        if process.exitcode != 0:
            log = (self.folder / "log.txt").read_text()[-3000:]
            raise RuntimeError(f"{stage} ended with {process.exitcode}:\n{log}")
        return time.monotonic() - start

    def kill(self, stage: str, after: float) -> bool:
        """Start a stage and kill it after some seconds; tells whether it was still at work."""
        process = self.start(stage)
        process.join(after)
        process.kill()
        process.join()
        return process.exitcode == -signal.SIGKILL

    def results(self) -> dict[str, str]:
        """Hash all files but logs and histories, by their names; temporary files of killed runs count."""
        files = [file for file in sorted(self.folder.rglob("*")) if file.is_file() and file.name != "log.txt"]
        return {
            str(file.relative_to(self.folder)): hashlib.sha256(file.read_bytes()).hexdigest()
            for file in files
            if not set(HISTORY) & set(file.parts)
        }


def work(stage: str, folder: Path, dataset_dir: Path) -> None:
    """Run a stage with the smoke preset; its messages go to a file."""
    with (folder / "log.txt").open("a") as log:
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
    name, *plane = stage.split()
    options: dict[str, Any] = {"dataset_dir": dataset_dir, "model_file": folder / "model.pt"}
    if name == "inference":
        options |= {"input": dataset_dir, "output_dir": folder / "volumes", "progress": False}
    else:
        options |= {"work_dir": folder / "work", "manifest_file": dataset_dir / "phantoms.json"}
    if name == "prepare":
        options["transform#transforms#3#iterations"] = [2]  # of N4
    if name not in ("inference", "train_fusion"):
        del options["model_file"]
    run_stage(BUNDLE, name, "smoke", **options, **({"plane": plane[0]} if plane else {}))


def run_through(run: Run, stages: Sequence[str]) -> dict[str, float]:
    """Run stages to their ends; gives the seconds of each."""
    warm_up = processes.Process(target=int)  # the server's imports belong to no stage
    warm_up.start()
    warm_up.join()
    return {stage: run.finish(stage) for stage in stages}


def run_with_kills(
    run: Run, stages: Sequence[str], seconds: dict[str, float], kills: int, chance: random.Random
) -> Counter[str]:
    """Run stages, each killed some times at random moments and then run to its end.

    Args:
        run: a run in an empty folder.
        stages: in their order.
        seconds: that each takes when it is left alone.
        kills: attempts for each stage.
        chance: draws the moments, uniformly over the time that the stage takes.

    Returns:
        The kills that found a stage at work.
    """
    killed: Counter[str] = Counter()
    for stage in stages:
        for _ in range(kills):
            killed[stage] += run.kill(stage, chance.uniform(0, seconds[stage]))
        run.finish(stage)
    return killed


def differences(run: Run, reference: Run) -> list[str]:
    """Name the files that only one of two runs has, or that differ by a bit."""
    found, expected = run.results(), reference.results()
    return sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))


def main() -> None:
    """Kill until there are enough kills; print what was killed and what differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    report = kill_often(options.folder, options.kills, options.seed)
    print(json.dumps(report, indent=1))
    sys.exit(bool(report["different"]))


def kill_often(folder: Path, kills: int, seed: int) -> dict[str, Any]:
    """Go through all stages again and again, three kills a stage, until there are enough kills.

    Returns:
        ``seconds`` of each stage left alone, ``killed`` (how often each stage was), ``rounds``, and ``different``: the
        files that differ from those of the uninterrupted run.
    """
    dataset_dir = folder / "phantoms"
    write_phantom_dataset(dataset_dir, num_people=5, spacing_mm=4.0)
    reference = Run(folder / "uninterrupted", dataset_dir)
    seconds = run_through(reference, STAGES)
    print("uninterrupted:", {stage: round(each, 1) for stage, each in seconds.items()}, flush=True)
    chance, killed, different, rounds = random.Random(seed), Counter[str](), list[str](), 0
    while killed.total() < kills:
        run = Run(folder / f"killed_{rounds}", dataset_dir)
        killed += run_with_kills(run, STAGES, seconds, 3, chance)
        different += differences(run, reference)
        rounds += 1
        print(f"round {rounds}: {killed.total()} kills so far, {dict(killed)}; different: {different}", flush=True)
        shutil.rmtree(run.folder)
    return {"seconds": seconds, "killed": dict(killed), "rounds": rounds, "different": different}


if __name__ == "__main__":
    main()
