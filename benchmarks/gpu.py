"""Synthesis on a GPU: seconds of a volume from label map to T1w, share of the matrix rate, memory, where the time goes.

    .venv/bin/python benchmarks/gpu.py --preset paper --json result.json
    ... --labels sub-01_dseg.nii.gz:freesurfer --model-file bundle/models/model.pt --preset compact

Two ways take turns: the inferer as it ships, and with its networks compiled (torch.compile), both in bfloat16. A
volume's seconds run from the label map in the machine's memory to the T1w in the machine's memory. Differences are from
the same networks in float32. The matrix rate is that of a bfloat16 product. Training on a GPU: benchmarks/training.py.
Without a GPU, --device cpu shows that the script runs; nothing is compiled there.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from inference import PRESETS, matrix_rates, operations, padded_to, read_labels, synthesizer, weights, write_phantom
from monai.inferers import SlidingWindowInferer
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from trispade.geometry import PLANES, slice_volume
from trispade.inference import TriplanarInferer
from trispade.networks import TriplanarSynthesizer, fusion_input

PROFILED = 10
"""Entries of the profile that are shown."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="paper")
    parser.add_argument("--labels", metavar="FILE:SCHEME", help="default: a phantom")
    parser.add_argument("--model-file", help="trained weights; default: random ones")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--ways", nargs="+", choices=("shipped", "compiled"), help="default: both; on a CPU: shipped")
    parser.add_argument("--slice-batch-size", type=int, help="default: the preset's")
    parser.add_argument("--sw-batch-size", type=int, default=64, help="patches at a time")
    parser.add_argument("--volumes", type=int, default=5, help="of each way, after one that is not counted")
    parser.add_argument("--json", type=Path, help="where to write the results")
    options = parser.parse_args()
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error(
            "--device: expected a machine with a GPU, got one without. Add --device cpu to see the script run."
        )
    report = measure(options)
    show(report)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Synthesize one label map in all ways, in turns; give what is reported."""
    device = torch.device(options.device)
    preset = yaml.safe_load((PRESETS / f"{options.preset}.yaml").read_text())
    with tempfile.TemporaryDirectory() as folder:
        label_map = read_labels(options.labels or write_phantom(Path(folder), preset), preset)
    label_map = padded_to(label_map, preset["box"])
    network = weights(preset, label_map, options.model_file).to(device)
    batches = options.slice_batch_size or preset["slice_batch_size"], options.sw_batch_size
    ways = options.ways or (["shipped"] if device.type == "cpu" else ["shipped", "compiled"])
    inferers = {way: make_inferer(batches, amp=True, compile=way == "compiled") for way in ways}
    # Compiling changes a network in place, so that each way has one of its own.
    networks = {way: copy_of(network, preset, device) for way in ways}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    first: dict[str, float] = {}
    peak_gib: dict[str, float | None] = {}
    made: dict[str, Tensor] = {}
    for turn in range(options.volumes + 1):
        for way in ways:
            reset_peak(device)
            made[way], spent = synthesize(label_map, inferers[way], networks[way], device)
            peak_gib[way] = peak(device)
            if turn:
                seconds[way].append(spent)
            else:
                first[way] = spent
    exact, _ = synthesize(label_map, make_inferer(batches, amp=False, compile=False), network, device)
    counted = count_operations(label_map, network, preset)
    rate = matrix_rates(device=device)["bf16"]
    report: dict[str, Any] = {
        "preset": options.preset,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "shape": list(label_map.shape),
        "weights": options.model_file or "random",
        "slice_batch_size": batches[0],
        "sw_batch_size": batches[1],
        "matrix_rate_gflops": rate,
        "tera_operations": counted,
        "ways": {},
    }
    for way in ways:
        difference = (made[way] - exact).abs()[label_map > 0] / 2  # from [-1, 1] to [0, 1]
        median = statistics.median(seconds[way])
        report["ways"][way] = {
            "seconds": median,
            "seconds_range": [min(seconds[way]), max(seconds[way])],
            "seconds_of_the_first": first[way],
            "peak_gib": peak_gib[way],
            "share_of_matrix_rate": counted * 1e3 / median / rate,
            "max_abs_diff": float(difference.max()),
            "mean_abs_diff": float(difference.mean()),
            "profile": top_entries(label_map, inferers[way], networks[way], device),
        }
    return report


def make_inferer(batches: tuple[int, int], amp: bool, compile: bool) -> TriplanarInferer:
    """Give the inferer of inference.yaml with given batches of slices and of patches."""
    slide = SlidingWindowInferer((32, 32, 32), sw_batch_size=batches[1], overlap=0.5, mode="gaussian")
    return TriplanarInferer(batches[0], slide, amp=amp, compile=compile)


def copy_of(network: TriplanarSynthesizer, preset: dict[str, Any], device: torch.device) -> TriplanarSynthesizer:
    copy = synthesizer(preset).to(device).eval()
    copy.load_state_dict(network.state_dict())
    return copy


@torch.inference_mode()
def synthesize(
    label_map: Tensor, inferer: TriplanarInferer, network: TriplanarSynthesizer, device: torch.device
) -> tuple[Tensor, float]:
    """Give the T1w (X, Y, Z) in the machine's memory, and the seconds that it took."""
    start = time.perf_counter()
    volume = inferer(label_map[None, None].to(device), network)[0, 0].cpu()
    return volume, time.perf_counter() - start


def count_operations(label_map: Tensor, network: TriplanarSynthesizer, preset: dict[str, Any]) -> float:
    """Count the operations of convolutions of the plain networks, where there is a label, in 10^12."""
    total = 0.0
    with torch.device("meta"):
        outline = synthesizer(preset).eval()
    for plane in PLANES:
        slices = slice_volume(label_map[None], plane)
        painted = int((slices > 0).flatten(1).any(dim=1).sum())
        total += painted * operations(outline.generators[plane], torch.zeros_like(slices[:1], device="meta"))
    windows = torch.nn.functional.max_pool3d((label_map > 0).float()[None, None], 32, 16).numel()
    patch = fusion_input(torch.rand(1, len(PLANES), 32, 32, 32), torch.ones(1, 1, 32, 32, 32))
    return total + windows * operations(outline.fusion, patch.to("meta"))


def top_entries(
    label_map: Tensor, inferer: TriplanarInferer, network: TriplanarSynthesizer, device: torch.device
) -> list[dict[str, Any]]:
    """Give the operators in which one volume spends most of the device's time."""
    cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities) as record:
        synthesize(label_map, inferer, network, device)
    time_of = "self_device_time_total" if cuda else "self_cpu_time_total"
    events = sorted(record.key_averages(), key=lambda event: -getattr(event, time_of))
    total = sum(getattr(event, time_of) for event in events) or 1.0
    return [
        {"name": event.key, "calls": event.count, "share": getattr(event, time_of) / total}
        for event in events[:PROFILED]
    ]


def reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak(device: torch.device) -> float | None:
    """Peak of the GPU's memory in GiB since the last reset; None on a CPU."""
    return torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None


def show(report: dict[str, Any]) -> None:
    shape = "x".join(map(str, report["shape"]))
    print(f"{report['preset']}, {shape}, {report['device']}, weights: {report['weights']}")
    print(
        f"batches of {report['slice_batch_size']} slices, {report['sw_batch_size']} patches; "
        f"{report['tera_operations']:.1f}e12 operations; bf16 matrix rate {report['matrix_rate_gflops'] / 1e3:.1f}e12/s"
    )
    for way, row in report["ways"].items():
        low, high = row["seconds_range"]
        memory = "" if row["peak_gib"] is None else f", peak {row['peak_gib']:.2f} GiB"
        print(
            f"{way:9} {row['seconds']:.3f} s [{low:.3f}, {high:.3f}], the first {row['seconds_of_the_first']:.1f} s, "
            f"{row['share_of_matrix_rate']:.0%} of the matrix rate{memory}, "
            f"max |d| {row['max_abs_diff']:.1e}, mean |d| {row['mean_abs_diff']:.1e}"
        )
        for entry in row["profile"]:
            print(f"    {entry['share']:6.1%}  {entry['calls']:6d} x {entry['name']}")


if __name__ == "__main__":
    main()
