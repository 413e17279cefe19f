"""Time and memory of synthesis and of a training step against size, classes, batch, threads and processes or devices.

    OMP_NUM_THREADS=2 .venv/bin/python benchmarks/scaling.py --preset compact --json result.json
    ... --only size classes

One setting varies at a time, around the preset's own (its box, batch and 24 labels; all threads). Synthesis is what
ships: `TriplanarInferer` in bfloat16, with random weights. A training step is `SpadeTrainer`'s on axial slices, without
its loader and without a perceptual loss. Each measurement runs in processes of its own, after a warm-up (on a CPU with
32^3 voxels), and can stand in several tables. Peak memory counts the process with its libraries; "above start" leaves
out what it took before it had read the label map and built the networks. On a GPU both are its own. The memory of
processes is read from /proc, which Linux has. It includes two caches of prepared convolutions, of 1024 each, which fill
as batches differ in the box of their labels: LRU_CACHE_CAPACITY and ONEDNN_PRIMITIVE_CACHE_CAPACITY bound them.

The label map is one phantom head sampled on grids of every size, so that the labelled share of the volume stays the
same while structures become coarser. A finer vocabulary is made from it by cutting the largest class into blocks of
space, again and again, as a parcellation divides cortex and white matter, so that many labels meet within a slice. What
the fast path pays for is the number of distinct neighbourhoods of labels; it is counted in a volume's axial batches.
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from monai.inferers import SlidingWindowInferer
from torch import Tensor, nn

from trispade.engines import SpadeTrainer
from trispade.geometry import slice_volume
from trispade.inference import TriplanarInferer
from trispade.inference.fast import NUMBERED_AT_ONCE, labelled_box
from trispade.inference.fast_spade import find_columns, find_neighbourhoods
from trispade.labels import fill_brain, load_scheme
from trispade.losses import DiscriminatorHingeLoss, FeatureMatchingLoss, GeneratorHingeLoss
from trispade.networks import SpadeDiscriminator, SpadeGenerator, TriplanarSynthesizer
from trispade.phantoms import make_phantom

CONFIGS = Path(__file__).resolve().parent.parent / "bundle/configs"
AXES = {
    "size": "volume size",
    "classes": "labels of the vocabulary",
    "batch": "slices at a time",
    "threads": "threads",
    "processes": "processes x threads, on the same volumes",
    "devices": "GPUs, two volumes each",
    "training_classes": "training: labels of the vocabulary",
    "training_batch": "training: slices a step",
}
ON_CPU = tuple(axis for axis in AXES if axis != "devices")
ON_GPU = tuple(axis for axis in AXES if axis not in ("threads", "processes"))
FRACTIONS_OF_BOX = (1 / 2, 2 / 3, 5 / 6, 1)
LABELS = (24, 138)  # of the vocabulary `structures`, and of all that MALC names
BATCHES = (1, 4, 12, 32)
TRAINING_BATCHES = (1, 4, 12)
MULTIPLE = 32  # of the sizes that the networks take
MIDDLE_FRACTION = 1  # index into FRACTIONS_OF_BOX: the box that processes share out, to save time

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Job:
    """What is measured.

    Attributes:
        shape: of the label map in voxels.
        labels: of the vocabulary, without background.
        batch_size: slices at a time.
        threads: of each process.
        processes: at the same time; on GPUs each has its own.
        volumes: of all processes together.
        stage: "synthesis" of the volumes, or one step of "training" on slices of one.
        device: "cpu" or "cuda".
    """

    shape: Shape
    labels: int
    batch_size: int
    threads: int
    processes: int = 1
    volumes: int = 1
    stage: str = "synthesis"
    device: str = "cpu"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="compact")
    parser.add_argument("--only", nargs="*", choices=tuple(AXES), metavar="AXIS", help=f"some of: {', '.join(AXES)}")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, help="where to write the results")
    options = parser.parse_args()
    settings = read_settings(options.preset)
    cores = len(os.sched_getaffinity(0))
    num_devices = torch.cuda.device_count() if options.device == "cuda" else 0
    print(f"preset {options.preset}, {options.device}, {torch.get_num_threads()} threads, {cores} cores")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(settings, Path(folder))
        for axis in options.only or (ON_CPU if options.device == "cpu" else ON_GPU):
            jobs = jobs_of(axis, settings, torch.get_num_threads(), cores, options.device, num_devices)
            rows += show(axis, (bench.row(axis, value, job) for value, job in jobs.items()))
    if num_devices < 2:
        print("world size: n/a: 1 or no GPU")
    if options.json:
        report = {"preset": options.preset, "device": options.device, "cores": cores, "rows": rows}
        options.json.write_text(json.dumps(report, indent=1) + "\n")


def read_settings(preset: str) -> dict[str, Any]:
    """Give the settings of train_spade.yaml as a preset overrides them."""
    files = (CONFIGS / "train_spade.yaml", CONFIGS / f"presets/{preset}.yaml")
    return {key: value for file in files for key, value in yaml.safe_load(file.read_text()).items()}


def jobs_of(
    axis: str, settings: dict[str, Any], threads: int, cores: int, device: str, num_devices: int
) -> dict[str | int, Job]:
    """Give what to measure along an axis, by the value that stands in its table."""
    shapes = shapes_up_to(settings["box"])
    usual = Job(shapes[-1], LABELS[0], settings["slice_batch_size"], threads, device=device)
    training = replace(usual, stage="training")
    if axis == "size":
        return {"x".join(map(str, shape)): replace(usual, shape=shape) for shape in shapes}
    if axis in ("classes", "training_classes"):
        return {labels: replace(training if "training" in axis else usual, labels=labels) for labels in LABELS}
    if axis == "batch":
        return {size: replace(usual, batch_size=size) for size in BATCHES}
    if axis == "training_batch":
        return {size: replace(training, batch_size=size) for size in TRAINING_BATCHES}
    if axis == "threads":
        numbers = {2**power for power in range(cores.bit_length()) if 2**power < cores} | {cores}
        return {number: replace(usual, threads=number) for number in sorted(numbers)}
    if axis == "processes":
        smaller = replace(usual, shape=shapes[min(MIDDLE_FRACTION, len(shapes) - 1)], volumes=2)
        ways = ((1, 1), (1, 2), (2, 1))
        return {f"{n} x {each}": replace(smaller, processes=n, threads=each) for n, each in ways}
    devices = range(1, num_devices + 1) if num_devices > 1 else ()
    return {number: replace(usual, processes=number, volumes=2 * number) for number in devices}


def shapes_up_to(box: Iterable[int]) -> list[Shape]:
    """Give boxes of the same proportions, as far as multiples of 32 allow, from half the edges on."""
    shapes = [
        tuple(max(1, round(edge * fraction / MULTIPLE)) * MULTIPLE for edge in box) for fraction in FRACTIONS_OF_BOX
    ]
    return list(dict.fromkeys(shapes))  # type: ignore[arg-type]


def make_label_map(settings: dict[str, Any], shape: Shape, labels: int) -> np.ndarray:
    """Sample the phantom head of the preset's box on a grid of another size; (X, Y, Z) uint8, 0 the background."""
    scheme = load_scheme("freesurfer")
    spacing_mm = [settings["spacing_mm"] * edge / n for edge, n in zip(settings["box"], shape, strict=True)]
    indices = scheme.to_indices(make_phantom(0, shape, spacing_mm).label_map, "phantom")
    filled = fill_brain(indices, spacing_mm, scheme.vocabulary.index("csf"), settings["closing_mm"])
    return filled if labels < scheme.vocabulary.num_classes else split_classes(filled, labels)


def split_classes(label_map: np.ndarray, labels: int) -> np.ndarray:
    """Cut a label map's classes into blocks of space until there are so many.

    The largest piece is halved across its longest side, as often as it takes. On a head of MALC 2012 (1 mm, batches of
    12), 16% of the positions differ in their neighbourhood with 24 labels, 31% with 138 made so, and 32% with MALC's
    own 138.

    Args:
        label_map: (X, Y, Z) class indices, 0 the background, which stays as it is.
        labels: number of pieces, from that of the classes in the map to 255.

    Returns:
        (X, Y, Z) uint8, each of 1 to ``labels`` a part of one class.
    """
    pieces = [np.argwhere(label_map == index).astype(np.int16) for index in np.unique(label_map) if index]
    assert len(pieces) <= labels <= 255, "fewer labels than classes, or more than uint8 holds"
    queue = [(-len(points), number, points) for number, points in enumerate(pieces)]
    heapq.heapify(queue)
    for number in range(len(pieces), labels):
        points = heapq.heappop(queue)[2]
        order = np.argsort(points[:, np.ptp(points, axis=0).argmax()], kind="stable")
        first, second = (points[half] for half in np.array_split(order, 2))
        assert len(second), "more labels than voxels"
        heapq.heappush(queue, (-len(first), 2 * number, first))
        heapq.heappush(queue, (-len(second), 2 * number + 1, second))
    split = np.zeros(label_map.shape, np.uint8)
    for label, (_, _, points) in enumerate(sorted(queue, key=lambda piece: piece[1]), start=1):
        split[tuple(points.T)] = label
    return split


def count_neighbourhoods(label_map: np.ndarray, labels: int, batch_size: int) -> dict[str, int]:
    """Count what the axial generator's last blocks meet, batch by batch: distinct 5x5 neighbourhoods, and positions."""
    slices = slice_volume(torch.from_numpy(label_map)[None], "axial")
    slices = slices[(slices > 0).flatten(1).any(dim=1)]
    at_once = max(1, NUMBERED_AT_ONCE // slices[0].numel())
    count = {"neighbourhoods": 0, "positions": 0}
    for batch in slices.split(batch_size):
        for part in batch.split(at_once):
            box = labelled_box(part)
            assert box is not None
            found = find_neighbourhoods(*find_columns(part, labels + 1), box)
            count["neighbourhoods"] += len(found.members)
            count["positions"] += found.kind.numel()
    return count


class Bench:
    """Measures jobs, each once, whatever the number of tables that it stands in.

    Args:
        settings: see `read_settings`.
        folder: where label maps are kept.
    """

    def __init__(self, settings: dict[str, Any], folder: Path) -> None:
        self.settings = settings
        self.folder = folder
        self._facts: dict[tuple[Shape, int], dict[str, int]] = {}
        self._neighbourhoods: dict[tuple[Shape, int, int], dict[str, int]] = {}
        self._measured: dict[Job, dict[str, float]] = {}

    def row(self, axis: str, value: str | int, job: Job) -> dict[str, Any]:
        """Measure a job, unless it has been, and give its row."""
        file = self._label_map(job)
        if job not in self._measured:
            self._measured[job] = measure(job, self.settings, file)
        measured, facts = self._measured[job], self._facts[job.shape, job.labels]
        row = {"axis": axis, "value": value, **asdict(job), "shape": list(job.shape), **facts}
        if job.stage == "synthesis":
            row |= {"voxels": facts["voxels"] * job.volumes} | self._neighbourhoods_of(job, file)
        else:
            row["voxels"] = job.batch_size * job.shape[0] * job.shape[1]
        return row | measured | {"nanoseconds_per_voxel": measured["seconds"] * 1e9 / row["voxels"]}

    def _label_map(self, job: Job) -> Path:
        key = (job.shape, job.labels)
        file = self.folder / f"{'x'.join(map(str, job.shape))}_{job.labels}.npy"
        if key not in self._facts:
            label_map = make_label_map(self.settings, job.shape, job.labels)
            np.save(file, label_map)
            self._facts[key] = {
                "voxels": label_map.size,
                "labelled_voxels": int((label_map > 0).sum()),
                "labels_present": len(np.unique(label_map)) - 1,
            }
        return file

    def _neighbourhoods_of(self, job: Job, file: Path) -> dict[str, int]:
        key = (job.shape, job.labels, job.batch_size)
        if key not in self._neighbourhoods:
            self._neighbourhoods[key] = count_neighbourhoods(np.load(file), job.labels, job.batch_size)
        return self._neighbourhoods[key]


def measure(job: Job, settings: dict[str, Any], label_map: Path) -> dict[str, float]:
    """Run a job in processes of its own; seconds from when all are ready until the last is done, memory summed."""
    context = get_context("spawn")
    pipes, processes = [], []
    for index in range(job.processes):
        pipe, end = context.Pipe()
        process = context.Process(target=work, args=(end, index, job, settings, label_map), daemon=True)
        process.start()
        end.close()  # the other end is the child's alone, so that its death is noticed
        pipes.append(pipe)
        processes.append(process)
    try:
        for pipe in pipes:
            pipe.recv()
        start = time.perf_counter()
        for pipe in pipes:
            pipe.send("go")
        results = [pipe.recv() for pipe in pipes]
        seconds = time.perf_counter() - start
    except (EOFError, OSError):
        message = "expected a result, got none: a process ended early. Memory may be short."
        raise SystemExit(f"{job}: {message}") from None
    for process in processes:
        process.join()
    return {"seconds": seconds} | {name: sum(result[name] for result in results) for name in results[0]}


def work(pipe: Connection, index: int, job: Job, settings: dict[str, Any], label_map: Path) -> None:
    """Do a process's part of a job, when told to; send what it took."""
    torch.set_num_threads(job.threads)
    torch.manual_seed(0)
    device = torch.device("cpu" if job.device == "cpu" else f"cuda:{index}")
    start_gib = memory_gib(device, "VmRSS")
    volume = torch.from_numpy(np.load(label_map)).to(device)
    run = prepare_synthesis(job, settings, device) if job.stage == "synthesis" else prepare_step(job, settings, device)
    middle = tuple(slice((n - MULTIPLE) // 2, (n + MULTIPLE) // 2) for n in volume.shape)
    run(volume[middle] if job.device == "cpu" else volume)
    pipe.send("ready")
    pipe.recv()
    start = time.process_time()
    for _ in range(job.volumes // job.processes):
        run(volume)
    spent, peak_gib = time.process_time() - start, memory_gib(device, "VmHWM")
    gib = {"start_gib": start_gib, "peak_gib": peak_gib, "above_start_gib": peak_gib - start_gib}
    pipe.send({"processor_seconds": spent, **gib})


def memory_gib(device: torch.device, entry: str) -> float:
    """Memory of this process now ("VmRSS") or at most ("VmHWM"), or of its GPU.

    Not from `getrusage`, whose peak a process takes over from the one that started it.
    """
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
        return (torch.cuda.memory_allocated(device) if entry == "VmRSS" else peak) / 2**30
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{entry}:")[1].split()[0]) / 2**20


def prepare_synthesis(job: Job, settings: dict[str, Any], device: torch.device) -> Callable[[Tensor], object]:
    """Give what synthesizes one (X, Y, Z) label map as the bundle does."""
    network = TriplanarSynthesizer(
        job.labels + 1,
        ngf=settings["ngf"],
        hidden=settings["hidden"],
        max_channels=settings["max_channels"],
        fusion_channels=settings["fusion_channels"],
        fusion_norm=settings["fusion_norm"],
        residual=settings["residual"],
        fusion_label_channels=settings["fusion_label_channels"],
    )
    for parameter in network.parameters():
        # Initial weights are so small that features would fade, in the end to denormal numbers.
        nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1)
    network = network.eval().to(device)
    fusion = SlidingWindowInferer((32, 32, 32), sw_batch_size=8, overlap=0.5, mode="gaussian")
    inferer = TriplanarInferer(job.batch_size, fusion, amp=True)

    def synthesize(label_map: Tensor) -> None:
        with torch.inference_mode():
            inferer(label_map[None, None], network).cpu()

    return synthesize


def prepare_step(job: Job, settings: dict[str, Any], device: torch.device) -> Callable[[Tensor], object]:
    """Give what trains both networks for one step on the middle axial slices of a label map."""
    architecture = {key: settings[key] for key in ("ngf", "hidden", "max_channels")}
    generator = SpadeGenerator(job.labels + 1, 1, **architecture).to(device)
    scales = {key: settings[key] for key in ("ndf", "num_scales", "num_layers")}
    discriminator = SpadeDiscriminator(job.labels + 1, **scales).to(device)
    optimizers = [
        torch.optim.Adam(network.parameters(), settings[rate], settings["betas"])
        for network, rate in ((generator, "generator_rate"), (discriminator, "discriminator_rate"))
    ]

    def step(label_map: Tensor) -> None:
        slices = slice_volume(label_map[None], "axial")
        first = max(0, (len(slices) - job.batch_size) // 2)
        slices = slices[first : first + job.batch_size]
        SpadeTrainer(
            device=device,
            max_epochs=1,
            train_data_loader=[{"label_map": slices, "t1w": slices / (job.labels / 2) - 1}],
            network=generator,
            optimizer=optimizers[0],
            discriminator=discriminator,
            discriminator_optimizer=optimizers[1],
            generator_loss=GeneratorHingeLoss(),
            discriminator_loss=DiscriminatorHingeLoss(),
            feature_matching=FeatureMatchingLoss(),
            feature_matching_weight=settings["feature_matching_weight"],
            amp=settings["amp"],
        ).run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return step


def show(axis: str, rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Print a table, row by row as they come, and what it says of the whole axis."""
    done: list[dict[str, Any]] = []
    for row in rows:
        if not done:
            print(f"\n{AXES[axis]}")
            print(f"{'':>12}{'s':>9}{'processor s':>13}{'ns/voxel':>10}{'peak GiB':>10}{'above start':>13}")
        done.append(row)
        line = f"{row['value']:>12}{row['seconds']:9.2f}{row['processor_seconds']:13.2f}"
        line += f"{row['nanoseconds_per_voxel']:10.0f}{row['peak_gib']:10.2f}{row['above_start_gib']:13.2f}"
        print(line + notes(row), flush=True)
    if axis == "size" and len(done) > 1:
        print(f"peak memory grows by {bytes_per_voxel(done[0], done[-1]):.0f} bytes a voxel, all caches included")
    return done


def notes(row: dict[str, Any]) -> str:
    """Say what explains a row: for synthesis, how many positions of a batch differ in their neighbourhood of labels."""
    if row["stage"] == "training":
        return f"  {row['labels']} labels, {row['batch_size']} slices"
    speed = "" if row["volumes"] == 1 else f"  {row['volumes'] / row['seconds']:.3f} volumes/s"
    share = row["neighbourhoods"] / row["positions"]
    return f"{speed}  {row['neighbourhoods']} neighbourhoods at {share:.1%} of the positions"


def bytes_per_voxel(smaller: dict[str, Any], larger: dict[str, Any]) -> float:
    """By how much peak memory grows with the volume."""
    grown = (larger["peak_gib"] - smaller["peak_gib"]) * 2**30
    return grown / (larger["voxels"] - smaller["voxels"])


if __name__ == "__main__":
    main()
