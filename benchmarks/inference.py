"""Naive against fast synthesis of one volume: seconds, memory, difference, and the floor of this machine.

    OMP_NUM_THREADS=2 .venv/bin/python benchmarks/inference.py --preset compact --json result.json
    ... --labels sub-01_dseg.nii.gz:neuromorphometrics other.nii.gz:freesurfer --model-file bundle/models/model.pt

Naive is what a good engineer would write in a day: batches of slices (of the best size) over all slices for three
generators, then MONAI's `SlidingWindowInferer` with patches of 32^3, 50% overlap and sw_batch_size 8, in fp32, with as
many threads and the same rule of fusion. Each way runs in a process of its own, which gives its peak memory; the ways
take turns, some seconds each, so that other work on the machine meets all of them alike. A large preset can be measured
on some of the slices (--slices); its seconds are then scaled to all slices, and the report says so.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
import torch.nn.functional as F
import yaml
from monai.inferers import SlidingWindowInferer
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from trispade.geometry import PLANES, slice_axis, slice_volume
from trispade.inference import PlaneInferer
from trispade.inference.fast_fusion import fast_fusion
from trispade.inference.inferer import BACKGROUND
from trispade.labels import load_scheme
from trispade.networks import TriplanarSynthesizer, fusion_input, recalibrate_norms
from trispade.phantoms import make_phantom
from trispade.transforms import FillBraind, LoadLabelMapd, MapLabelsd, ToWorkingGridd

PRESETS = Path(__file__).resolve().parent.parent / "bundle/configs/presets"
WAYS = ("naive", "fast_fp32", "fast_bf16")
NAIVE_BATCHES = (1, 4, 12)
TURNS = 8
"""Turns that each way takes at each stage."""
RANDOM_SPREAD = 0.2
"""Spread of random weights' images, in [-1, 1].

The error of bfloat16 grows with it: at 0.2 its mean was 2.1e-3 (compact, a MALC map); on trained weights 7e-4."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="compact")
    parser.add_argument("--labels", nargs="*", default=[], metavar="FILE:SCHEME", help="default: a phantom")
    parser.add_argument("--model-file", help="trained weights; default: random ones")
    parser.add_argument("--own-box", action="store_true", help="the head's smallest box, not at least the preset's")
    parser.add_argument("--slices", type=int, help="slices of each plane; default: all")
    parser.add_argument("--json", type=Path, help="where to write the results")
    options = parser.parse_args()
    preset = yaml.safe_load((PRESETS / f"{options.preset}.yaml").read_text())
    report: dict[str, Any] = {"preset": options.preset, "threads": torch.get_num_threads(), "volumes": []}
    rates = matrix_rates()
    report |= {"weights": options.model_file or "random", "matrix_rate_gflops": rates}
    with tempfile.TemporaryDirectory() as folder:
        for name in options.labels or [write_phantom(Path(folder), preset)]:
            label_map = read_labels(name, preset)
            if not options.own_box:
                label_map = padded_to(label_map, preset["box"])
            model = Path(folder) / "model.pt"
            if not model.exists():
                torch.save(weights(preset, label_map, options.model_file).state_dict(), model)
            volume = measure(preset, label_map, model, Path(folder), options.slices, rates)
            report["volumes"].append({"labels": Path(name).name, "shape": list(label_map.shape), **volume})
            show(report, report["volumes"][-1])
    worst = report["volumes"]
    for key in ("speedup_fp32", "speedup_bf16"):
        report[key] = min(volume[key] for volume in worst)
    for key in ("max_abs_diff_fp32", "mean_abs_diff_fp32", "max_abs_diff_bf16", "mean_abs_diff_bf16"):
        report[key] = max(volume[key] for volume in worst)
    for key in ("seconds", "peak_gib"):
        report[key] = {way: max(volume[key][way] for volume in worst) for way in WAYS}
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


def read_labels(file: str, preset: dict[str, Any]) -> Tensor:
    """Give (X, Y, Z) uint8 class indices on the preset's grid."""
    path, _, name = file.partition(":")
    scheme = load_scheme(name or "freesurfer")
    case: Any = {"image": path}
    for transform in (
        LoadLabelMapd(keys="image"),
        MapLabelsd(keys="image", scheme=scheme, unknown_labels="background"),
        ToWorkingGridd(keys="image", label_key="image", spacing_mm=preset["spacing_mm"]),
        FillBraind(keys="image", scheme=scheme, closing_mm=5.0),
    ):
        case = transform(case)
    return torch.as_tensor(np.asarray(case["image"]))[0].to(torch.uint8)


def write_phantom(folder: Path, preset: dict[str, Any]) -> str:
    phantom = make_phantom(0, tuple(preset["box"]), preset["spacing_mm"])
    file = str(folder / "phantom.nii.gz")
    nib.save(nib.Nifti1Image(phantom.label_map, phantom.affine), file)
    return file


def padded_to(label_map: Tensor, box: list[int]) -> Tensor:
    """Centre a label map in a box that is at least as large as both."""
    shape = [max(size, least) for size, least in zip(label_map.shape, box, strict=True)]
    out = torch.zeros(shape, dtype=label_map.dtype)
    place = [slice((n - size) // 2, (n - size) // 2 + size) for n, size in zip(shape, label_map.shape, strict=True)]
    out[tuple(place)] = label_map
    return out


def synthesizer(preset: dict[str, Any]) -> TriplanarSynthesizer:
    return TriplanarSynthesizer(
        load_scheme("freesurfer").vocabulary.num_classes,
        ngf=preset["ngf"],
        hidden=preset["hidden"],
        max_channels=preset["max_channels"],
        fusion_channels=preset["fusion_channels"],
        fusion_norm=preset["fusion_norm"],
        residual=preset["residual"],
        fusion_label_channels=preset["fusion_label_channels"],
    )


@torch.no_grad()
def weights(preset: dict[str, Any], label_map: Tensor, model_file: str | None) -> TriplanarSynthesizer:
    """Trained weights, or random ones with statistics of their own, whose images have the spread `RANDOM_SPREAD`."""
    torch.manual_seed(0)
    network = synthesizer(preset)
    if model_file:
        network.load_state_dict(torch.load(model_file, weights_only=True))
        return network.eval()
    for plane, generator in network.generators.items():
        for parameter in generator.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 100
            nn.init.normal_(parameter, std=fan_in**-0.5)
        slices = slice_volume(label_map[None], plane)
        few = slices[len(slices) // 3 :: len(slices) // 5][:2]
        recalibrate_norms(generator, [few])
        before_tanh = torch.atanh(generator.eval()(few).clamp(-0.999, 0.999))
        generator.tail.weight.mul_(RANDOM_SPREAD / before_tanh.std())
        generator.tail.bias.sub_(before_tanh.mean()).mul_(RANDOM_SPREAD / before_tanh.std())
    nn.init.normal_(network.fusion.exit.weight, std=0.1)
    return network.eval()


def measure(
    preset: dict[str, Any],
    label_map: Tensor,
    model: Path,
    folder: Path,
    num_slices: int | None,
    rates: dict[str, float],
) -> dict[str, Any]:
    """Run all ways on one label map, in turns; give what is reported of it."""
    context = get_context("spawn")
    processes, pipes = {}, {}
    for way in (*WAYS, "operations"):
        pipes[way], end = context.Pipe()
        arguments = (way, end, preset, label_map, model, folder / f"{way}.npy", num_slices)
        processes[way] = context.Process(target=work, args=arguments, daemon=True)
        processes[way].start()
    seconds: dict[str, dict[str, float]] = {way: dict.fromkeys((*PLANES, "fusion"), 0.0) for way in WAYS}
    processor: dict[str, float] = dict.fromkeys(WAYS, 0.0)
    for way in WAYS:
        pipes[way].recv()
    for stage in (*PLANES, "fusion"):
        active = list(WAYS)
        while active:
            for way in tuple(active):
                pipes[way].send(stage)
                done, wall, cpu = pipes[way].recv()
                seconds[way][stage] += wall
                processor[way] += cpu
                if done:
                    active.remove(way)
    results: dict[str, Any] = {}
    for way in WAYS:
        pipes[way].send("end")
        results[way] = pipes[way].recv()
    pipes["operations"].send("count")
    counted = pipes["operations"].recv()
    for process in processes.values():
        process.join()
    total = {way: sum(stages.values()) for way, stages in seconds.items()}
    out: dict[str, Any] = {
        "slices": num_slices or "all",
        "naive_batch_size": results["naive"]["batch_size"],
        "seconds": total,
        "seconds_per_stage": seconds,
        "processor_seconds": processor,
        "peak_gib": {way: results[way]["peak_gib"] for way in WAYS},
        "tera_operations": counted,
        "floor_seconds": {
            "naive": counted["naive"] * 1e3 / rates["fp32"],
            "fast_fp32": counted["fast_fp32"] * 1e3 / rates["fp32"],
            "fast_bf16": counted["fast_bf16"] * 1e3 / rates["bf16"],
        },
        "speedup_fp32": total["naive"] / total["fast_fp32"],
        "speedup_bf16": total["naive"] / total["fast_bf16"],
        "processor_speedup_fp32": processor["naive"] / processor["fast_fp32"],
        "processor_speedup_bf16": processor["naive"] / processor["fast_bf16"],
    }
    # From [-1, 1] to [0, 1]. Where slices were left out, the planes are compared and not what was fused instead.
    output = slice(-1, None) if num_slices is None else slice(None, -1)
    expected = np.load(folder / "naive.npy")[output]
    painted = expected > BACKGROUND
    for kind in ("fp32", "bf16"):
        difference = np.abs(np.load(folder / f"fast_{kind}.npy")[output] - expected)[painted] / 2
        out[f"max_abs_diff_{kind}"] = float(difference.max())
        out[f"mean_abs_diff_{kind}"] = float(difference.mean())
    return out


def work(
    way: str,
    pipe: Connection,
    preset: dict[str, Any],
    label_map: Tensor,
    model: Path,
    result: Path,
    num_slices: int | None,
) -> None:
    """Run one way in a process of its own: a stage for each message, then what it came to."""
    network = synthesizer(preset).eval()
    network.load_state_dict(torch.load(model, weights_only=True, mmap=True), assign=True)
    with torch.inference_mode():
        if way == "operations":
            pipe.recv()
            pipe.send(count_operations(network, label_map, preset))
            return
        batch_size = preset["slice_batch_size"]
        if way == "naive":
            batch_size = best_batch_size(network.generators["axial"], label_map)
        pipe.send("ready")
        volumes = torch.full((len(PLANES) + 1, *label_map.shape), BACKGROUND)
        for index, stage in enumerate((*PLANES, "fusion")):
            turns = TakeTurns(pipe, stage)
            run_stage(way, stage, network, label_map, volumes, index, batch_size, num_slices, turns)
            turns.end()
    np.save(result, volumes.numpy())
    pipe.recv()
    # Of this process alone: what getrusage gives begins at its parent's peak.
    peak_gib = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 2**20
    pipe.send({"peak_gib": peak_gib, "batch_size": batch_size})


class TakeTurns:
    """Lets a stage go on when its turn comes, and tells of each turn whether it was the last, its wall and CPU seconds.

    Args:
        pipe: the stage's name comes in for each turn.
        stage: that is waited for.

    Attributes:
        total: slices or calls of the stage, set before the first is done.
        scale: factor from the slices that are painted to all of them.
    """

    def __init__(self, pipe: Connection, stage: str) -> None:
        self.pipe = pipe
        self.stage = stage
        self.total = 1
        self.scale = 1.0
        self.done = 0
        self._start()

    def _start(self) -> None:
        assert self.pipe.recv() == self.stage
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def _tell(self, last: bool) -> None:
        wall, cpu = time.perf_counter() - self.wall, time.process_time() - self.cpu
        self.pipe.send((last, wall * self.scale, cpu * self.scale))

    def step(self, number: int = 1) -> None:
        """Tell that so many slices or calls are done; where a turn ends with them, wait for the next."""
        before, self.done = self.done * TURNS // self.total, self.done + number
        if before < self.done * TURNS // self.total < TURNS:
            self._tell(last=False)
            self._start()

    def end(self) -> None:
        """Tell that the stage is done."""
        self._tell(last=True)


def run_stage(
    way: str,
    stage: str,
    network: TriplanarSynthesizer,
    label_map: Tensor,
    volumes: Tensor,
    index: int,
    batch_size: int,
    num_slices: int | None,
    turns: TakeTurns,
) -> None:
    """Paint one plane, or fuse."""
    if stage == "fusion":
        planes = volumes[None, :-1]
        if num_slices is not None:
            # The planes are not complete: something of the same outline is fused in all ways.
            planes = (label_map / 12 - 1).clamp(max=1.0).expand(1, len(PLANES), -1, -1, -1)
        fusion = SlidingWindowInferer((32, 32, 32), sw_batch_size=8, overlap=0.5, mode="gaussian")
        net = network.fusion if way == "naive" else fast_fusion(network.fusion, way == "fast_bf16", BACKGROUND)
        turns.total = -(-F.max_pool3d(label_map.float()[None, None], 32, 16).numel() // fusion.sw_batch_size)

        def merge(windows: Tensor) -> Tensor:
            merged = net(windows)
            turns.step()
            return merged

        merged = fusion(fusion_input(planes, label_map[None, None]), merge)[0, 0]
        volumes[-1] = merged.clamp_(-1.0, 1.0).masked_fill_(label_map == 0, BACKGROUND)
        return
    plane = stage
    chosen, turns.scale = chosen_slices(label_map.shape[slice_axis(plane)], num_slices)
    turns.total = len(chosen)
    part = label_map.index_select(slice_axis(plane), chosen)
    if way == "naive":
        painted = paint_naively(network.generators[plane], part, plane, batch_size, turns)
    else:
        inferer = PlaneInferer(plane, batch_size, amp=way == "fast_bf16", on_progress=turns.step)
        painted = inferer(part[None, None], network.generators[plane])[0, 0]
    volumes[index].index_copy_(slice_axis(plane), chosen, painted)


def chosen_slices(size: int, number: int | None, run: int = 12) -> tuple[Tensor, float]:
    """Choose runs of neighbouring slices, evenly over the axis, and give the factor from their number to all."""
    if number is None or number >= size:
        return torch.arange(size), 1.0
    runs = max(1, number // run)
    starts = torch.linspace(0, size - run, runs + 2)[1:-1].long()
    chosen = torch.unique(starts[:, None] + torch.arange(run))
    return chosen, size / len(chosen)


def paint_naively(generator: nn.Module, label_map: Tensor, plane: Any, batch_size: int, turns: TakeTurns) -> Tensor:
    parts = []
    for batch in slice_volume(label_map[None], plane).split(batch_size):
        parts.append(generator(batch))
        turns.step(len(batch))
    painted = torch.cat(parts)
    return painted.movedim(0, slice_axis(plane) + 1)[0].masked_fill(label_map == 0, BACKGROUND)


def best_batch_size(generator: nn.Module, label_map: Tensor) -> int:
    """The fastest of some numbers of slices at a time, a slice."""
    slices = slice_volume(label_map[None], "axial")
    few = slices[len(slices) // 2 :][: max(NAIVE_BATCHES)]
    generator(few[:1])

    def seconds(batch_size: int) -> float:
        start = time.process_time()
        for _ in range(2):
            generator(few[:batch_size])
        return (time.process_time() - start) / batch_size

    return min((size for size in NAIVE_BATCHES if size <= len(few)), key=seconds)


def count_operations(
    network: TriplanarSynthesizer, label_map: Tensor, preset: dict[str, Any], counted_slices: int = 36
) -> dict[str, float]:
    """Count the operations of convolutions and matrix products, in 10^12, two for a multiply-add.

    The fast path's depend on the labels: its generators' are counted on some of the slices and scaled, its fusion's on
    all windows, and in bfloat16 it crops them.
    """
    naive = fast = 0.0
    for plane in PLANES:
        slices = slice_volume(label_map[None], plane)
        generator = network.generators[plane]
        with torch.device("meta"):
            outline = synthesizer(preset).generators[plane].eval()
            naive += len(slices) * operations(outline, torch.zeros_like(slices[:1], device="meta"))
        chosen, scale = chosen_slices(len(slices), counted_slices)
        painter = PlaneInferer(plane, preset["slice_batch_size"], amp=True)
        part = label_map.index_select(slice_axis(plane), chosen)[None, None]
        fast += scale * operations(painter, part, generator)
    number = F.max_pool3d((label_map > 0).float()[None, None], 32, 16).numel()
    naive += (
        number
        / 2
        * operations(network.fusion, fusion_input(torch.rand(2, len(PLANES), 32, 32, 32), torch.ones(2, 1, 32, 32, 32)))
    )
    planes = torch.where(label_map > 0, 0.0, BACKGROUND).expand(1, len(PLANES), -1, -1, -1)
    slide = SlidingWindowInferer((32, 32, 32), sw_batch_size=8, overlap=0.5, mode="gaussian")
    fused = {
        kind: operations(
            slide, fusion_input(planes, label_map[None, None]), fast_fusion(network.fusion, kind == "bf16", BACKGROUND)
        )
        for kind in ("fp32", "bf16")
    }
    return {"naive": naive, **{f"fast_{kind}": fast + count for kind, count in fused.items()}}


def operations(function: Callable[..., Tensor], *arguments: Any) -> float:
    with FlopCounterMode(display=False) as counter:
        function(*arguments)
    return counter.get_total_flops() / 1e12


def matrix_rates(size: int | None = None, device: torch.device | str = "cpu") -> dict[str, float]:
    """Measured rate of a square matrix product in 10^9 operations a second; on a CPU, other work left out."""
    device = torch.device(device)
    size = size or (8192 if device.type == "cuda" else 2048)
    rates = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        matrix = torch.randn(size, size, device=device).to(dtype)
        best = float("inf")
        for _ in range(6):
            start = _seconds_of_work(device)
            matrix @ matrix
            best = min(best, _seconds_of_work(device) - start)
        rates[name] = 2 * size**3 / best / 1e9
    return rates


def _seconds_of_work(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time() / torch.get_num_threads()


def show(report: dict[str, Any], volume: dict[str, Any]) -> None:
    shape = "x".join(map(str, volume["shape"]))
    print(f"{volume['labels']}: {shape}, preset {report['preset']}, weights: {report['weights']}")
    if volume["slices"] != "all":
        print(f"measured on {volume['slices']} slices of each plane and scaled to all; the fusion in full")
    for way in WAYS:
        stages = ", ".join(f"{stage} {spent:.1f}" for stage, spent in volume["seconds_per_stage"][way].items())
        floor, peak_gib = volume["floor_seconds"][way], volume["peak_gib"][way]
        print(f"{way:10} {volume['seconds'][way]:7.1f} s ({stages}), floor {floor:.1f} s, peak {peak_gib:.2f} GiB")
    for kind in ("fp32", "bf16"):
        print(
            f"{kind}: {volume[f'speedup_{kind}']:.1f} times as fast"
            f" ({volume[f'processor_speedup_{kind}']:.1f} in processor time),"
            f" max |d| {volume[f'max_abs_diff_{kind}']:.1e}, mean |d| {volume[f'mean_abs_diff_{kind}']:.1e}"
        )


if __name__ == "__main__":
    main()
