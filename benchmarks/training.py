"""A textbook fp32 loop against the trainer that ships: slices a second, time waiting for data, operations a second.

    OMP_NUM_THREADS=2 .venv/bin/python benchmarks/training.py --preset compact --json result.json
    ... --dataset-dir "$MALC2012" --manifest malc2012 --work-dir runs/compact     # real scans, prepared before

Ours is the trainer of train_spade.yaml with its loader, losses, optimizers and handlers, as the config builds it. The
textbook loop trains the same two networks from the same weights on the same slices: fp32, its own plain loader, fake
and real shown to the discriminator one after the other, nothing frozen. The two take turns of a few steps, so that
other work on the machine meets both alike. Without a data set, phantoms of the preset's size are made and prepared.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import resource
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from ignite.engine import Engine, Events
from inference import matrix_rates
from monai.bundle import ConfigWorkflow
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from trispade.bundle_run import run_stage
from trispade.losses import DiscriminatorHingeLoss, FeatureMatchingLoss, GeneratorHingeLoss
from trispade.phantoms import write_phantom_dataset

BUNDLE = Path(__file__).resolve().parent.parent / "bundle"
TURN = 3
"""Steps that one loop makes before the other's turn."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="compact")
    parser.add_argument("--plane", default="axial", choices=("axial", "coronal", "sagittal"))
    parser.add_argument("--turns", type=int, default=6, help="of each loop, after one that is not counted")
    parser.add_argument("--batch-size", type=int, help="slices a step; default: the preset's")
    parser.add_argument("--num-workers", type=int, default=0, help="processes that load ours")
    parser.add_argument("--dataset-dir", type=Path, help="default: phantoms")
    parser.add_argument("--manifest", default="malc2012")
    parser.add_argument("--work-dir", type=Path, help="where prepare has put its cache; with --dataset-dir")
    parser.add_argument("--json", type=Path, help="where to write the results")
    options = parser.parse_args()
    if options.dataset_dir and not options.work_dir:
        parser.error("--dataset-dir: expected --work-dir with it, got none. Name the work_dir that prepare has filled.")
    with tempfile.TemporaryDirectory() as folder:
        report = measure(options, Path(folder))
    show(report)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Train both ways in turns and give what is reported of them."""
    preset = yaml.safe_load((BUNDLE / f"configs/presets/{options.preset}.yaml").read_text())
    data = {"dataset_dir": options.dataset_dir, "manifest_file": options.manifest}
    cache_dir = options.work_dir / "cache" if options.work_dir else folder / "cache"
    if not options.dataset_dir:
        data = prepare_phantoms(options.preset, preset, folder)
    parser = load_config(
        options.preset,
        **data,
        cache_dir=cache_dir,
        stage_dir=folder / "stage",
        work_dir=folder,
        plane=options.plane,
        num_workers=options.num_workers,
        slice_batch_size=options.batch_size or preset["slice_batch_size"],
    )
    textbook = TextbookLoop(parser)
    trainer = parser.get_parsed_content("train#trainer")
    ours = TakeTurns(trainer, textbook, options.turns)
    trainer.run()
    batch_size = parser.get_parsed_content("slice_batch_size")
    operations = {"textbook": textbook.operations(), "ours": operations_of(trainer, textbook.batch())}
    cuda = torch.cuda.is_available()
    rates = matrix_rates(device="cuda" if cuda else "cpu")
    report: dict[str, Any] = {
        "preset": options.preset,
        "plane": options.plane,
        "data": "phantoms" if not options.dataset_dir else options.manifest,
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "threads": torch.get_num_threads(),
        "batch_size": batch_size,
        "steps": len(ours.seconds["ours"]) * TURN,
        "matrix_rate_gflops": rates,
        "tera_operations_per_step": operations,
        "peak_gib": peak_gib(),
    }
    for name, seconds in ours.seconds.items():
        step = statistics.median(seconds) / TURN
        report[name] = {
            "slices_per_second": batch_size / step,
            "slices_per_second_range": [batch_size * TURN / max(seconds), batch_size * TURN / min(seconds)],
            "share_waiting_for_data": ours.waiting[name] / sum(seconds),
            "giga_operations_per_second": operations[name] * 1e3 / step,
        }
    report["speedup"] = report["ours"]["slices_per_second"] / report["textbook"]["slices_per_second"]
    ratios = [a / b for a, b in zip(ours.seconds["textbook"], ours.seconds["ours"], strict=True)]
    report["speedup_range"] = [min(ratios), max(ratios)]
    return report


class TextbookLoop:
    """What one writes from the paper in a day: fp32, a plain loader, nothing frozen, fake and real one after the other.

    Args:
        parser: the config of train_spade, before its trainer is built.
    """

    def __init__(self, parser: Any) -> None:
        get = parser.get_parsed_content
        self.device = get("device")
        self.generator = copy.deepcopy(get("generator")).to(self.device)
        self.discriminator = copy.deepcopy(get("discriminator")).to(self.device)
        self.optimizers = [
            torch.optim.Adam(network.parameters(), lr=get(rate), betas=get("betas"))
            for network, rate in ((self.generator, "generator_rate"), (self.discriminator, "discriminator_rate"))
        ]
        self.losses = (GeneratorHingeLoss(), DiscriminatorHingeLoss(), FeatureMatchingLoss())
        self.weight = get("feature_matching_weight")
        self.loader = DataLoader(get("train#dataset"), get("slice_batch_size"), shuffle=True, drop_last=True)
        self.batches = self._forever()

    def _forever(self) -> Iterator[dict[str, Any]]:
        while True:
            yield from self.loader

    def batch(self) -> dict[str, Any]:
        return next(self.batches)

    def step(self, batch: dict[str, Any]) -> None:
        adversarial, hinge, matching = self.losses
        label_map, t1w = batch["label_map"].to(self.device), batch["t1w"].to(self.device)
        fake = self.generator(label_map)
        seen, real = self.discriminator(label_map, fake), self.discriminator(label_map, t1w)
        self._update(0, adversarial(seen) + self.weight * matching(seen, real))
        seen, real = self.discriminator(label_map, fake.detach()), self.discriminator(label_map, t1w)
        self._update(1, hinge(real, seen))

    def _update(self, index: int, loss: Tensor) -> None:
        self.optimizers[index].zero_grad()
        loss.backward()
        self.optimizers[index].step()

    def turn(self) -> tuple[float, float]:
        """Make some steps; give the seconds they took, and those of them spent on data."""
        start, waiting = now(), 0.0
        for _ in range(TURN):
            asked = now()
            batch = self.batch()
            waiting += now() - asked
            self.step(batch)
        return now() - start, waiting

    def operations(self) -> float:
        """Operations of convolutions and matrix products of one step in 10^12, two for a multiply-add."""
        batch = self.batch()
        with FlopCounterMode(display=False) as counter:
            self.step(batch)
        return counter.get_total_flops() / 1e12


class TakeTurns:
    """Lets the textbook loop make its steps between those of a running trainer, and times both.

    Args:
        trainer: ours.
        textbook: the other loop.
        turns: of each, after a first that is not counted; the trainer is stopped after the last.

    Attributes:
        seconds: name to the seconds of each turn.
        waiting: name to the seconds of all turns that were spent waiting for data.
    """

    def __init__(self, trainer: Engine, textbook: TextbookLoop, turns: int) -> None:
        self.textbook = textbook
        self.turns = turns
        self.done = -1
        self.seconds: dict[str, list[float]] = {"textbook": [], "ours": []}
        self.waiting = {"textbook": 0.0, "ours": 0.0}
        self._data = 0.0
        trainer.add_event_handler(Events.STARTED, self._begin)
        trainer.add_event_handler(Events.GET_BATCH_STARTED, self._asked)
        trainer.add_event_handler(Events.GET_BATCH_COMPLETED, self._given)
        # Registered last: it comes after the trainer's own handlers of the same event, which belong to its turn.
        trainer.add_event_handler(Events.ITERATION_COMPLETED(every=TURN), self._change)

    def _begin(self) -> None:
        self._start = now()

    def _asked(self) -> None:
        self._asked_at = now()

    def _given(self) -> None:
        self._data += now() - self._asked_at

    def _change(self, trainer: Engine) -> None:
        ours = now() - self._start, self._data
        textbook = self.textbook.turn()
        if self.done >= 0:
            for name, (seconds, waiting) in (("ours", ours), ("textbook", textbook)):
                self.seconds[name].append(seconds)
                self.waiting[name] += waiting
        self.done += 1
        if self.done == self.turns:
            trainer.terminate()
        self._start, self._data = now(), 0.0


def now() -> float:
    """Seconds, once the device has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def operations_of(trainer: Any, batch: dict[str, Any]) -> float:
    """Operations of one step of our trainer, counted as `TextbookLoop.operations` counts them."""
    with FlopCounterMode(display=False) as counter:
        trainer._iteration(trainer, batch)
    return counter.get_total_flops() / 1e12


def prepare_phantoms(name: str, preset: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Make a small data set of the preset's size and prepare it; give where it is."""
    manifest = write_phantom_dataset(folder / "data", 5, spacing_mm=preset["spacing_mm"], shape=tuple(preset["box"]))
    data = {"dataset_dir": folder / "data", "manifest_file": manifest}
    few_iterations = {"transform#transforms#3#iterations": [2]}
    run_stage(BUNDLE, "prepare", name, **data, **few_iterations, cache_dir=folder / "cache", work_dir=folder)
    return data


def load_config(preset: str, **values: Any) -> Any:
    """Read train_spade with a preset as `monai.bundle run` does; give its parser."""
    logging.getLogger("monai.bundle.workflows").setLevel(logging.ERROR)
    configs = BUNDLE / "configs"
    workflow = ConfigWorkflow(
        config_file=[str(configs / "train_spade.yaml"), str(configs / f"presets/{preset}.yaml")],
        meta_file=str(configs / "metadata.json"),
        logging_file=False,
        workflow_type=None,
        bundle_root=str(BUNDLE),
        **{key: str(value) if isinstance(value, Path) else value for key, value in values.items()},
    )
    workflow.initialize()
    return workflow.parser


def peak_gib() -> float:
    """Peak memory of both loops in one process: an upper bound of each."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def show(report: dict[str, Any]) -> None:
    print(
        f"preset {report['preset']}, {report['plane']}, {report['data']}, {report['device']}, "
        f"{report['threads']} threads, batches of {report['batch_size']}, {report['steps']} steps of each"
    )
    for name in ("textbook", "ours"):
        row = report[name]
        low, high = row["slices_per_second_range"]
        print(
            f"{name:9} {row['slices_per_second']:7.2f} slices/s [{low:.2f}, {high:.2f}], "
            f"{row['share_waiting_for_data']:.1%} of the time waiting for data, "
            f"{report['tera_operations_per_step'][name]:.3f}e12 operations a step, "
            f"{row['giga_operations_per_second']:.0f}e9 a second"
        )
    low, high = report["speedup_range"]
    rates = ", ".join(f"{kind} {rate:.0f}e9" for kind, rate in report["matrix_rate_gflops"].items())
    share = report["ours"]["giga_operations_per_second"] / report["matrix_rate_gflops"]["bf16"]
    print(f"ours is {report['speedup']:.2f} times as fast [{low:.2f}, {high:.2f} turn by turn]")
    print(f"matrix rate of this machine: {rates}; ours has {share:.0%} of bf16's")
    print(f"peak memory of both {report['peak_gib']:.2f} GiB")


if __name__ == "__main__":
    main()
