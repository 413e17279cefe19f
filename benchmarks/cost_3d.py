"""The cost of three 2D nets and a fusion net against 3D generators: parameters, operations, bytes, what fits a card.

    .venv/bin/python benchmarks/cost_3d.py --preset paper --json result.json
    ... --preset compact --shape 192 224 192

Nothing is computed: the networks run on PyTorch's meta device, which knows shapes and no values, so any size will do.

- Operations: of convolutions and matrix products in fp32 synthesis of one volume, two for a multiply-add; ours paints
  all slices of three planes and fuses all windows of 32^3 at 50% overlap, background too. The fast path, which
  `inference.py` measures, takes fewer.
- Kept: bytes that one training step in fp32 keeps for its backward pass, those of norms, losses and spectrally
  normalised weights among them, without the networks' own parameters and buffers. An adversarial step is the
  generator's, as `SpadeTrainer` takes it: generator, discriminator on fakes and real ones, hinge and feature matching
  losses, no perceptual loss. The discriminator's own step comes after it, without the generator's tensors. The loss of
  the other nets is the mean squared error.
- State: weights, gradients and Adam's two moments, the discriminator's too.
- A step takes the sum of both, and working memory besides, which is not counted: gradients on their way back, and
  what the convolutions' algorithms need. So what fits is an upper bound, for all networks alike.
- Synthesis: a lower bound of the bytes at work, those of the largest operation's inputs and outputs; ours also holds
  the three planes' volumes and the result.

1 GB is 10^9 bytes. The 3D networks see whole volumes, as the paper's references do, except where patches are named.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import yaml
from inference import PRESETS, operations, synthesizer
from networks_3d import ConditionalGenerator3d, Discriminator3d, Spade3dGenerator
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from trispade.errors import InputError
from trispade.geometry import PLANES, slice_axis
from trispade.labels import load_scheme
from trispade.losses import FeatureMatchingLoss, GeneratorHingeLoss
from trispade.networks import DirectUNet, SpadeDiscriminator, SpadeGenerator

BUDGETS_GB = (8, 11, 24, 80)
WINDOW, OVERLAP = 32, 0.5
WINDOWS_AT_ONCE = 8
MULTIPLE = 32
STATES = 4
"""A parameter's copies in training: itself, its gradient and Adam's two moments."""


@dataclass(frozen=True)
class Candidate:
    """A network in training: what it sees in one step, and whether that grows with the volume."""

    name: str
    network: nn.Module
    discriminator: nn.Module | None
    batch: int
    shape: tuple[int, ...]
    in_channels: int = 1
    is_patch: bool = False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="compact")
    parser.add_argument("--shape", type=int, nargs=3, metavar=("X", "Y", "Z"), help="default: the preset's box")
    parser.add_argument("--json", type=Path, help="where to write the results")
    options = parser.parse_args()
    settings = read_settings(options.preset)
    report = compare(settings, tuple(options.shape or settings["box"]))
    show(report)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


def read_settings(preset: str) -> dict[str, Any]:
    """Read a preset over the settings that all presets share."""
    config = yaml.safe_load((PRESETS.parent / "train_spade.yaml").read_text())
    shared = {name: config[name] for name in ("num_scales", "num_layers", "feature_matching_weight")}
    return shared | yaml.safe_load((PRESETS / f"{preset}.yaml").read_text())


def compare(settings: dict[str, Any], shape: tuple[int, ...]) -> dict[str, Any]:
    """Count everything for volumes of (X, Y, Z) voxels; what `--json` writes."""
    if any(extent % MULTIPLE for extent in shape):
        got = "x".join(map(str, shape))
        raise InputError.of("--shape", f"multiples of {MULTIPLE}", got, "Name the box that holds the head.")
    num_classes = load_scheme("freesurfer").vocabulary.num_classes
    rows: dict[str, dict[str, Any]] = {}
    for key, candidate in candidates(settings, num_classes, shape).items():
        rows[key] = training_cost(candidate, settings["feature_matching_weight"])
    for key, network in generators_of_volumes(settings, num_classes).items():
        rows[key] |= synthesis_of_volume(network, shape)
    rows["ours"] = ours(settings, shape, rows)
    report: dict[str, Any] = {
        "preset": settings["preset"],
        "shape": list(shape),
        "num_classes": num_classes,
        "precision": "float32",
        "rows": rows,
    }
    report["ratios"] = ratios(rows)
    report["findings"] = findings(rows, report["ratios"])
    return report


def candidates(
    settings: dict[str, Any], num_classes: int, shape: tuple[int, ...], device: str = "meta"
) -> dict[str, Candidate]:
    """The networks as they are trained; ours sees the largest of the three planes' slices."""
    widths = settings["ngf"], settings["hidden"], settings["max_channels"]
    judge = settings["ndf"], settings["num_scales"], settings["num_layers"]
    slice_shape = max((tuple(shape[:axis] + shape[axis + 1 :]) for axis in range(3)), key=math.prod)
    batch, patches = settings["slice_batch_size"], settings["direct_batch_size"]
    patch_shape = (settings["direct_patch_size"],) * 3
    with torch.device(device):
        plane = SpadeGenerator(num_classes, 1, *widths), SpadeDiscriminator(num_classes, *judge)
        fusion = synthesizer(settings).fusion
        direct = DirectUNet(num_classes, settings["direct_channels"])
        judge_3d = Discriminator3d(num_classes, *judge)
        spade_3d = Spade3dGenerator(num_classes, *widths)
        conditional = ConditionalGenerator3d(num_classes, settings["ngf"])
    return {
        "plane": Candidate("2D SPADE, one plane", *plane, batch, slice_shape),
        "plane_of_one_slice": Candidate("2D SPADE, one slice", *plane, 1, slice_shape),
        "fusion": Candidate(
            "fusion net", fusion, None, settings["patch_batch_size"], (WINDOW,) * 3, len(PLANES) + 1, is_patch=True
        ),
        "spade_3d": Candidate("3D SPADE, like for like", spade_3d, judge_3d, 1, shape),
        "conditional_3d": Candidate("3D conditional, SC-GAN-like", conditional, judge_3d, 1, shape),
        "direct_3d": Candidate("3D U-Net", direct, None, 1, shape),
        "direct_3d_patches": Candidate("3D U-Net, patches", direct, None, patches, patch_shape, is_patch=True),
    }


def generators_of_volumes(settings: dict[str, Any], num_classes: int) -> dict[str, nn.Module]:
    """The 3D networks as they synthesize, spectral norm folded as ours is."""
    with torch.device("meta"):
        return {
            "spade_3d": Spade3dGenerator(
                num_classes, settings["ngf"], settings["hidden"], settings["max_channels"], spectral=False
            ),
            "conditional_3d": ConditionalGenerator3d(num_classes, settings["ngf"], spectral=False),
            "direct_3d": DirectUNet(num_classes, settings["direct_channels"]),
        }


def training_cost(candidate: Candidate, feature_matching_weight: float) -> dict[str, Any]:
    kept: dict[tuple[int, ...], int] = {}

    def step_bytes(shape: tuple[int, ...]) -> int:
        if shape not in kept:
            kept[shape] = kept_bytes(lambda: step_loss(candidate, shape, feature_matching_weight), networks)
        return kept[shape] + state

    networks = [network for network in (candidate.network, candidate.discriminator) if network is not None]
    state = STATES * sum(map(parameter_bytes, networks))
    total = step_bytes(candidate.shape)
    dimensions = len(candidate.shape)
    return {
        "name": candidate.name,
        "step": f"{candidate.batch} x {'x'.join(map(str, candidate.shape))}",
        "parameters": num_parameters(candidate.network),
        "discriminator_parameters": num_parameters(candidate.discriminator) if candidate.discriminator else 0,
        "kept_bytes": kept[candidate.shape],
        "state_bytes": state,
        "step_bytes": total,
        "largest_edge": {
            str(budget): ("any" if total <= budget * 1e9 else None)
            if candidate.is_patch
            else largest_edge(lambda edge: step_bytes((edge,) * dimensions), budget * 1e9)
            for budget in BUDGETS_GB
        },
    }


def step_loss(candidate: Candidate, shape: tuple[int, ...], feature_matching_weight: float) -> Tensor:
    """The generator's loss of one training step on examples of ``shape``, on the device of the network."""
    device = next(candidate.network.parameters()).device
    volumes = (candidate.batch, 1, *shape)
    real = torch.zeros(volumes, device=device)
    if candidate.in_channels > 1:
        seen = torch.zeros((candidate.batch, candidate.in_channels, *shape), device=device)
    else:
        seen = torch.zeros(volumes, dtype=torch.uint8, device=device)
    painted = candidate.network.train()(seen)
    if candidate.discriminator is None:
        return F.mse_loss(painted, real)
    judge = candidate.discriminator.requires_grad_(False).eval()
    halves = [[feature.chunk(2) for feature in scale] for scale in judge(seen, torch.cat([painted, real]))]
    fakes, reals = ([[pair[index] for pair in scale] for scale in halves] for index in (0, 1))
    matching = feature_matching_weight * FeatureMatchingLoss()(fakes, reals)
    return torch.stack([GeneratorHingeLoss()(fakes), matching]).sum()


def kept_bytes(forward: Callable[[], Tensor], networks: Iterable[nn.Module]) -> int:
    """Bytes that a forward pass keeps for backward, each storage once, parameters and buffers left out."""
    own = {_storage(t) for network in networks for t in (*network.parameters(), *network.buffers())}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if _storage(tensor) not in own:
            # Held, so that no later storage takes its place in memory and is mistaken for it.
            kept[_storage(tensor)] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        forward()
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def parameter_bytes(network: nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in network.parameters())


def num_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def largest_edge(bytes_of_edge: Callable[[int], int], budget: float) -> int | None:
    """The largest multiple of 32 whose bytes, which grow with it, stay within the budget; None if no one does."""
    fits, too_large = 0, 1
    while bytes_of_edge(too_large * MULTIPLE) <= budget:
        fits, too_large = too_large, 2 * too_large
    while too_large - fits > 1:
        middle = (fits + too_large) // 2
        if bytes_of_edge(middle * MULTIPLE) <= budget:
            fits = middle
        else:
            too_large = middle
    return fits * MULTIPLE or None


class LargestOperation(TorchDispatchMode):
    """Records the most bytes that one operation reads and writes: they are all in memory at once."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, Tensor)]
        storages = {_storage(tensor): tensor.untyped_storage().nbytes() for tensor in tensors}
        self.bytes = max(self.bytes, sum(storages.values()))
        return out


@torch.no_grad()
def synthesis_cost(network: nn.Module, seen: Tensor) -> tuple[float, int]:
    """Operations, in 10^12, and the largest operation's bytes."""
    with LargestOperation() as largest:
        tera = operations(network.eval(), seen)
    return tera, largest.bytes


def synthesis_of_volume(network: nn.Module, shape: tuple[int, ...]) -> dict[str, Any]:
    tera, least = synthesis_cost(network, torch.zeros((1, 1, *shape), dtype=torch.uint8, device="meta"))
    return {"tera_operations": tera, "synthesis_bytes_at_least": least}


def ours(settings: dict[str, Any], shape: tuple[int, ...], rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """All four networks: what the largest of their trainings takes, which come one after another, and synthesis."""
    with torch.device("meta"):
        network = synthesizer(settings)
    tera, least = {}, 0
    for plane in PLANES:
        axis = slice_axis(plane)
        slices = (settings["slice_batch_size"], 1, *shape[:axis], *shape[axis + 1 :])
        labels = torch.zeros(slices, dtype=torch.uint8, device="meta")
        cost, largest = synthesis_cost(network.generators[plane], labels)
        tera[str(plane)], least = cost * shape[axis] / len(labels), max(least, largest)
    windows = torch.zeros((WINDOWS_AT_ONCE, len(PLANES) + 1, *(WINDOW,) * 3), device="meta")
    cost, largest = synthesis_cost(network.fusion, windows)
    tera["fusion"] = cost * num_windows(shape) / len(windows)
    volumes = (len(PLANES) + 1) * math.prod(shape) * torch.float32.itemsize
    stages = rows["plane"], rows["fusion"]
    heaviest = max(stages, key=lambda row: row["step_bytes"])
    edges = {
        budget: edge if rows["fusion"]["largest_edge"][budget] else None
        for budget, edge in rows["plane"]["largest_edge"].items()
    }
    return {
        "name": "ours: three planes, fusion",
        "step": "one after another",
        "parameters": num_parameters(network),
        "discriminator_parameters": len(PLANES) * rows["plane"]["discriminator_parameters"],
        "kept_bytes": heaviest["kept_bytes"],
        "state_bytes": heaviest["state_bytes"],
        "step_bytes": heaviest["step_bytes"],
        "largest_edge": edges,
        "tera_operations": sum(tera.values()),
        "tera_operations_by_stage": tera,
        "synthesis_bytes_at_least": max(least, largest) + volumes,
    }


def num_windows(shape: tuple[int, ...]) -> int:
    """Number of windows over (X, Y, Z), each extent at least a window."""
    step = int(WINDOW * (1 - OVERLAP))
    return math.prod(math.ceil((extent - WINDOW) / step) + 1 for extent in shape)


def ratios(rows: dict[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    """What each 3D network takes for one of ours, in each column."""
    out = {}
    for key in ("spade_3d", "conditional_3d", "direct_3d"):
        out[key] = {
            column: rows[key][column] / rows["ours"][column]
            for column in ("parameters", "tera_operations", "kept_bytes", "step_bytes", "synthesis_bytes_at_least")
        }
        out[key]["kept_bytes_to_one_slice"] = rows[key]["kept_bytes"] / rows["plane_of_one_slice"]["kept_bytes"]
    return out


def findings(rows: dict[str, dict[str, Any]], of_ours: dict[str, dict[str, float]]) -> list[str]:
    """What the numbers say, in sentences."""
    like, conditional, plain = of_ours["spade_3d"], of_ours["conditional_3d"], of_ours["direct_3d"]
    names = "the like-for-like 3D net's", "the SC-GAN-like net's", "the plain 3D U-Net's"

    def shares(column: str) -> str:
        values = (like[column], conditional[column], plain[column])
        return ", ".join(f"{share(value)} {name}" for value, name in zip(values, names, strict=True))

    stages = rows["ours"]["tera_operations_by_stage"]
    patches, volumes = rows["direct_3d_patches"], "; ".join(edges_in(rows, str(budget)) for budget in BUDGETS_GB)
    return [
        f"Bytes kept by a step, {rows['plane']['step']}: ours keeps {shares('kept_bytes')}.",
        f"Bytes kept by a step, {rows['plane_of_one_slice']['step']}: ours keeps {shares('kept_bytes_to_one_slice')}.",
        f"Two orders of magnitude fewer than like for like: {holds(like['kept_bytes'] >= 100)} at the preset's batch,"
        f" {holds(like['kept_bytes_to_one_slice'] >= 100)} at one slice.",
        f"With weights, gradients and moments: a step of ours takes {shares('step_bytes')}.",
        f"Operations of a volume: ours takes {shares('tera_operations')}; of its own, fusion takes"
        f" {stages['fusion'] / sum(stages.values()):.0%}. Not fewer than a plain 3D net:"
        f" {holds(plain['tera_operations'] <= 1)}.",
        f"On patches ({patches['step']}) the plain 3D U-Net trains on any volume too, and a step of it takes"
        f" {share(rows['ours']['step_bytes'] / patches['step_bytes'])} ours.",
        f"Largest edge, ours (of a slice, of which a volume may have any number) against 3D SPADE, 3D conditional and"
        f" 3D U-Net: {volumes}.",
        f"Synthesis at once: the largest operation of 3D SPADE takes {share(1 / like['synthesis_bytes_at_least'])} ours"
        " and its four volumes.",
    ]


def edges_in(rows: dict[str, dict[str, Any]], budget: str) -> str:
    first, *others = (
        rows[key]["largest_edge"][budget] or "none" for key in ("ours", "spade_3d", "conditional_3d", "direct_3d")
    )
    return f"{budget} GB {first} against {', '.join(map(str, others))}"


def share(ratio: float) -> str:
    """Say what one is of ``ratio``: "1/21 of", "0.91 of" or "1.9 times"."""
    if ratio >= 2:
        return f"1/{ratio:.3g} of"
    return f"{1 / ratio:.2f} of" if ratio > 1 else f"{1 / ratio:.3g} times"


def holds(claim: bool) -> str:
    return "holds" if claim else "does not hold"


def show(report: dict[str, Any]) -> None:
    shape = "x".join(map(str, report["shape"]))
    print(f"preset {report['preset']}, volumes of {shape}, {report['num_classes']} classes, {report['precision']}")
    budgets = "".join(f"{f'{budget} GB':>8}" for budget in BUDGETS_GB)
    print(
        f"{'':28}{'step':>18}{'params':>9}{'Top a':>9}{'kept':>9}{'state':>8}{'step':>9}{'synth.':>8}  largest edge in"
    )
    print(f"{'':28}{'':>18}{'M':>9}{'volume':>9}{'GB':>9}{'GB':>8}{'GB':>9}{'GB >=':>8}{budgets}")
    for row in report["rows"].values():
        edges = "".join(f"{row['largest_edge'][str(budget)] or 'none':>8}" for budget in BUDGETS_GB)
        tera, least = row.get("tera_operations"), row.get("synthesis_bytes_at_least")
        print(
            f"{row['name']:28}{row['step']:>18}{row['parameters'] / 1e6:9.2f}"
            f"{f'{tera:.1f}' if tera else '':>9}{row['kept_bytes'] / 1e9:9.2f}{row['state_bytes'] / 1e9:8.2f}"
            f"{row['step_bytes'] / 1e9:9.2f}{f'{least / 1e9:.2f}' if least else '':>8}{edges}"
        )
    for sentence in report["findings"]:
        print(f"- {sentence}")


if __name__ == "__main__":
    main()
