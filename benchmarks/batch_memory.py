"""Memory of one process over many volumes: does a long batch grow?

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/batch_memory.py --volumes 500 --json result.json

Trains the smoke preset on phantoms, makes links to their label maps until there are enough, and synthesizes them all in
one run of inference.yaml, as ``trispade synthesize`` does. After each volume it notes the resident memory (Linux).
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import tempfile
from pathlib import Path

import numpy as np

from trispade.bundle_run import find_bundle, run_stage
from trispade.geometry import PLANES
from trispade.phantoms import write_phantom_dataset

WARM_UP = 50
"""Volumes after which caches are full, of shapes and of what the allocator keeps."""


class MemoryNotes(logging.Handler):
    """Notes the resident memory, MiB, whenever a line tells of a finished case."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.resident_mib: list[float] = []

    def emit(self, record: logging.LogRecord) -> None:
        if "cases" in record.getMessage() and "an hour" in record.getMessage():
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            self.resident_mib.append(pages * os.sysconf("SC_PAGE_SIZE") / 2**20)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--volumes", type=int, default=500)
    parser.add_argument("--json", type=Path, help="where to write the results")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        resident = synthesize_many(Path(folder), options.volumes)
    report = summarise(resident)
    print(json.dumps(report, indent=1))
    if options.json:
        options.json.write_text(json.dumps({**report, "resident_mib": resident}))


def synthesize_many(folder: Path, volumes: int) -> list[float]:
    """Train in small, then synthesize; give the resident memory after each volume, MiB."""
    bundle, _ = find_bundle()
    manifest = write_phantom_dataset(folder / "phantoms", num_people=5)
    model = folder / "model.pt"
    common = {"dataset_dir": folder / "phantoms", "manifest_file": manifest, "work_dir": folder / "work"}
    run_stage(bundle, "prepare", "smoke", **common)
    for plane in PLANES:
        run_stage(bundle, "train_spade", "smoke", plane=plane, max_epochs=1, **common)
    run_stage(bundle, "synthesize_planes", "smoke", **common)
    run_stage(bundle, "train_fusion", "smoke", max_epochs=1, model_file=model, **common)
    sources = sorted((folder / "phantoms").rglob("*_dseg.nii.gz"))
    (folder / "maps").mkdir()
    for number in range(volumes):
        os.link(sources[number % len(sources)], folder / "maps" / f"case{number:05d}_dseg.nii.gz")
    notes = MemoryNotes()
    logging.getLogger("trispade.engines.case_evaluator").addHandler(notes)
    given = {"input": folder / "maps", "dataset_dir": folder / "maps", "output_dir": folder / "out"}
    run_stage(bundle, "inference", "smoke", model_file=model, progress=False, **given)
    return notes.resident_mib


def summarise(resident: list[float]) -> dict[str, float]:
    """Fit a line to the memory after the warm-up."""
    later = np.array(resident[WARM_UP:])
    slope = np.polyfit(np.arange(len(later)), later, 1)[0]
    return {
        "volumes": len(resident),
        "after_warm_up_mib": round(float(later[0]), 1),
        "at_the_end_mib": round(float(later[-1]), 1),
        "peak_mib": round(max(resident), 1),
        "growth_mib_per_100_volumes": round(100 * float(slope), 2),
    }


if __name__ == "__main__":
    main()
