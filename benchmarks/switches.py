"""What each switch of the recipe gives by itself: short trainings at 2 mm, each with one setting changed.

    .venv/bin/python benchmarks/switches.py "$MALC2012" runs/switches --json result.json

Generators are those of the axial plane, trained from random weights, with the learning rates of the short run; fusion
nets learn from what three generators as published, trained as long, have painted. Compared are the validation people,
brain only, with the fit. Two rows differ in the seed alone: what lies within their difference tells nothing. CPU
minutes are those of this machine, one thread. After a stop, the same command goes on; a variant that is done is not run
again. Two commands, one for each --kind, may share a folder and a file once its cache is prepared.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trispade.bundle_run import build_components, find_bundle, run_stage
from trispade.data.cache import PreparedCase
from trispade.engines import load_checkpoint
from trispade.geometry import PLANES
from trispade.inference import PlaneInferer, load_generator
from trispade.metrics import compare_in_evaluation_space
from trispade.metrics.table import write_text
from trispade.networks import fusion_input

GENERATORS: dict[str, dict[str, Any]] = {
    "as published": {},
    "as published, another seed": {"seed": 1},
    "three label slices": {"label_slices": 3},
    "five label slices": {"label_slices": 5},
    "seven label slices": {"label_slices": 7},
    "half of the slices deformed": {"augmentation_probability": 0.5},
    "L1 x10": {"reconstruction_weight": 10.0},
    "averaged weights, half-life 100": {"average_half_life": 100.0},
    "hidden width 16": {"hidden": 16},
    "ngf 8": {"ngf": 8},
    "batches of 12, rates of the paper": {"slice_batch_size": 12, "generator_rate": 1.0e-4},
    "hidden width 64": {"hidden": 64},
    "ngf 24": {"ngf": 24, "max_channels": 192},
}
PUBLISHED_FUSION = {"residual": False, "fusion_label_channels": 0}
FUSION_NETS: dict[str, dict[str, Any]] = {
    "as published": PUBLISHED_FUSION,
    "as published, another seed": {**PUBLISHED_FUSION, "seed": 1},
    "batch norm": {**PUBLISHED_FUSION, "fusion_norm": "batch"},
    "corrects the mean of the planes": {**PUBLISHED_FUSION, "residual": True},
    "sees the labels": {**PUBLISHED_FUSION, "fusion_label_channels": 8},
    "both (the default)": {},
    "both, texture weight 150": {"texture_weight": 150.0},
}
DIGITS = {"psnr": 2, "ssim": 3, "sharpness": 2}
INCOHERENCE = ("incoherence_axial", "incoherence_coronal", "incoherence_sagittal")
METRICS = (*DIGITS, *INCOHERENCE)
COARSE = {"spacing_mm": 2.0, "box": [96, 96, 96]}
RATES = {"slice_batch_size": 4, "generator_rate": 4.0e-4}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset_dir", type=Path, help="MALC 2012")
    parser.add_argument("work_dir", type=Path, help="for the cache, what is painted and what is trained")
    parser.add_argument("--epochs", type=int, default=6, help="of each generator")
    parser.add_argument("--fusion-epochs", type=int, default=8, help="of each fusion net")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="variants to train; the others are left as they are")
    parser.add_argument("--kind", choices=("generators", "fusion-nets"), help="default: both")
    parser.add_argument("--json", type=Path, required=True, help="where the results are kept")
    options = parser.parse_args()
    torch.set_num_threads(1)
    given = {"dataset_dir": str(options.dataset_dir), "work_dir": str(options.work_dir), **COARSE}
    run("prepare", given)
    for kind, variants, epochs in (
        ("generator", GENERATORS, options.epochs),
        ("fusion net", FUSION_NETS, options.fusion_epochs),
    ):
        if options.kind and options.kind[:3] != kind[:3]:
            continue
        train = train_generator if kind == "generator" else train_fusion
        for name, settings in variants.items():
            key = f"{kind}, {epochs} epochs: {name}"
            if key in read(options.json) or (options.only and name not in options.only):
                continue
            if kind == "fusion net":
                paint_planes(given, options.epochs)
            folder = options.work_dir / "switches" / f"{kind}-{epochs}-{name}".replace(" ", "_").replace(",", "")
            result = train(folder, {**given, **settings}, epochs)
            write_text(json.dumps({**read(options.json), key: result}, indent=1) + "\n", options.json)
            print(f"{key}: {result}", flush=True)
        print_table(kind, epochs, variants, read(options.json))


def read(file: Path) -> dict[str, Any]:
    """Read the results that there are."""
    return json.loads(file.read_text()) if file.exists() else {}


def run(stage: str, settings: dict[str, Any]) -> None:
    """Run a stage to its end, or go on with it; where it has ended, nothing is done."""
    run_stage(find_bundle()[0], stage, "compact", None, **settings)


def paint_planes(given: dict[str, Any], epochs: int) -> None:
    """Train a generator of each plane as published, and paint the people of the fusion nets with them."""
    for plane in PLANES:
        run("train_spade", {**given, **RATES, "plane": plane, "max_epochs": epochs, "val_interval": epochs})
    run("synthesize_planes", given)


def train_generator(folder: Path, settings: dict[str, Any], epochs: int) -> dict[str, Any]:
    """Train an axial generator, and compare what it paints with the scans of the validation people."""
    settings = {"plane": "axial", **RATES, **settings}
    minutes = trained("train_spade", folder, settings, epochs)
    vocabulary, prepared, cases = components("train_spade", ["vocabulary", "settings", "validate#cases"], settings)
    architecture = load_checkpoint(folder / "last.pt")["record"]["architecture"]
    generator = load_generator(folder / "last.pt", "axial", vocabulary, architecture, prepared, "cpu")
    paint = PlaneInferer("axial", 8, amp=True)
    people = [
        compared_with_scan(case, lambda labels: paint(generator.class_table[labels], generator.network))
        for case in cases
    ]
    return {"cpu_minutes": minutes, "parameters": number_of_parameters(generator.network), "people": people}


def train_fusion(folder: Path, settings: dict[str, Any], epochs: int) -> dict[str, Any]:
    """Train a fusion net on the painted planes, and compare what it makes of them with the scans."""
    settings = {"patch_batch_size": 10, **settings}
    minutes = trained("train_fusion", folder, {**settings, "model_file": str(folder / "model.pt")}, epochs)
    network, slide, cases = components("train_fusion", ["network", "validate#inferer", "validate#cases"], settings)
    network.load_state_dict(load_checkpoint(folder / "last.pt")["objects"]["network"])
    network.eval()
    people = [
        compared_with_scan(
            case.prepared, lambda labels, case=case: slide(fusion_input(case.planes()[None], labels), network)
        )
        for case in cases
    ]
    return {"cpu_minutes": minutes, "parameters": number_of_parameters(network), "people": people}


def trained(stage: str, folder: Path, settings: dict[str, Any], epochs: int) -> float:
    """Train to the end, or go on; the minutes of processor that this took since the start or the stop."""
    start = time.process_time()
    run(stage, {**settings, "stage_dir": str(folder), "max_epochs": epochs, "val_interval": epochs})
    return (time.process_time() - start) / 60


def components(stage: str, names: Sequence[str], settings: dict[str, Any]) -> list[Any]:
    """Build components of a stage as it was trained."""
    return build_components(find_bundle()[0], stage, names, "compact", **settings)


def number_of_parameters(network: torch.nn.Module) -> int:
    """Count the parameters of a network."""
    return sum(parameter.numel() for parameter in network.parameters())


@torch.inference_mode()
def compared_with_scan(case: PreparedCase, make: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    """Compare a volume made of a case's class indices (1, 1, X, Y, Z) with the scan, in the brain, with the fit."""
    labels = torch.from_numpy(np.array(case.label_map())).long()
    brain = (labels > 0).numpy()
    volume = make(labels[None, None])[0, 0].float().clamp(-1.0, 1.0).numpy()
    scan = (case.t1w().numpy() + 1) / 2 * brain
    affine = np.diag([*3 * [COARSE["spacing_mm"]], 1.0])
    rows = compare_in_evaluation_space(np.where(brain, volume, -1.0), scan, brain, affine=affine)
    found = {row["metric"]: row["value"] for row in rows if (row["region"], row["fit"]) == ("brain", "gain_offset")}
    return {"case_id": case.case_id, **{metric: found[metric] for metric in METRICS}}


def print_table(kind: str, epochs: int, variants: Sequence[str], results: dict[str, Any]) -> None:
    """Print a variant a row, each person's values in the order of the manifest."""
    print(f"\n{kind}, {epochs} epochs at 2 mm, each validation person\n")
    print(
        "| variant | brain PSNR (dB) | SSIM | sharpness | incoherence axial, coronal, sagittal | parameters | CPU min |"
    )
    print("|---|---|---|---|---|---|---|")
    for name in variants:
        row = results.get(f"{kind}, {epochs} epochs: {name}")
        if row is None:
            continue
        people = row["people"]
        texts = [", ".join(f"{person[metric]:.{digits}f}" for person in people) for metric, digits in DIGITS.items()]
        rough = ", ".join(" ".join(f"{person[metric]:.2f}" for metric in INCOHERENCE) for person in people)
        size = f"{row['parameters'] / 1e6:.2f} M"
        print(f"| {name} | {' | '.join(texts)} | {rough} | {size} | {row['cpu_minutes']:.0f} |")


if __name__ == "__main__":
    main()
