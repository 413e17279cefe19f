"""What bounds a training of the GANs on many GPUs, on paper: nothing here was run on several GPUs.

    .venv/bin/python benchmarks/ranks_on_paper.py --preset paper

Counted, from the networks that the config describes: parameters, operations of a step (the convolutions' multiply-adds,
backward twice the forward), batch norms. Assumed, and to be replaced by what a cluster has: the arguments.
"""

from __future__ import annotations

import argparse
from math import ceil

import torch
import yaml
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

from trispade.bundle_run import find_bundle
from trispade.labels import load_scheme
from trispade.networks import SpadeDiscriminator, SpadeGenerator

GPUS = (1, 8, 64, 512)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="paper")
    parser.add_argument("--teraflops", type=float, default=100.0, help="sustained by one GPU in bfloat16")
    parser.add_argument("--gigabytes-inside", type=float, default=200.0, help="all-reduce bandwidth within a node, /s")
    parser.add_argument("--gigabytes-between", type=float, default=25.0, help="per GPU between nodes of 8, /s")
    parser.add_argument(
        "--latency-us", type=float, default=30.0, help="of one small all-reduce, times log2 of the GPUs"
    )
    options = parser.parse_args()
    counted = count(options.preset)
    for name, value in counted.items():
        print(f"{name}: {value:,}")
    print("\n| GPUs | slices a GPU | batch | compute | gradients | small messages | steps a second | slices a second |")
    print("|---|---|---|---|---|---|---|---|")
    for grows in (False, True):
        for gpus in GPUS:
            print(row(gpus, counted, options, grows))


def count(preset: str) -> dict[str, int]:
    """Count what a step of the preset's GAN takes, for axial slices."""
    bundle, _ = find_bundle()
    texts = [bundle / "configs" / name for name in ("train_spade.yaml", f"presets/{preset}.yaml")]
    config = {}
    for text in texts:
        config.update(yaml.safe_load(text.read_text(encoding="utf-8")))
    classes = load_scheme("freesurfer").vocabulary.num_classes
    with torch.device("meta"):
        generator = SpadeGenerator(classes, 1, config["ngf"], config["hidden"], config["max_channels"])
        discriminator = SpadeDiscriminator(classes, config["ndf"], config["num_scales"], config["num_layers"])
        labels = torch.zeros(1, 1, *config["box"][:2], dtype=torch.long)
    with FlopCounterMode(display=False) as painting:
        fake = generator.eval()(labels)
    with FlopCounterMode(display=False) as judging:
        discriminator.eval()(labels, torch.cat([fake, fake]))
    # G's step: G forward and backward, D forward on both images and backward to the fake; D's step: both ways.
    operations = 3 * painting.get_total_flops() + 5 * judging.get_total_flops()
    parameters = [sum(p.numel() for p in network.parameters()) for network in (generator, discriminator)]
    return {
        "parameters of G": parameters[0],
        "parameters of D": parameters[1],
        "bytes of gradients a step": 4 * sum(parameters),
        "operations a slice": operations,
        "batch norms": _norms(generator),
        "bytes read a slice": 3 * labels.numel(),  # uint8 classes, int16 intensities
        "batch": config["slice_batch_size"],
    }


def row(gpus: int, counted: dict[str, int], options: argparse.Namespace, grows: bool) -> str:
    """Time of a step: the busiest GPU's operations, a ring all-reduce not hidden behind them, small messages."""
    batch = counted["batch"] * (gpus if grows else 1)
    busiest = ceil(batch / gpus)
    compute = busiest * counted["operations a slice"] / (options.teraflops * 1e12)
    bandwidth = options.gigabytes_inside if gpus <= 8 else options.gigabytes_between
    gradients = 2 * (gpus - 1) / gpus * counted["bytes of gradients a step"] / (bandwidth * 1e9)
    messages = 2 * counted["batch norms"] * options.latency_us * 1e-6 * max(0, gpus - 1).bit_length()
    step = compute + gradients + messages
    times = " | ".join(f"{1000 * each:.1f} ms" for each in (compute, gradients, messages))
    return f"| {gpus} | {busiest} | {batch} | {times} | {1 / step:.1f} | {batch / step:.0f} |"


def _norms(network: nn.Module) -> int:
    return sum(isinstance(part, _BatchNorm) for part in network.modules())


if __name__ == "__main__":
    main()
