"""A segmentation network that learns from T1w made on the fly: all that it is given are label maps.

    python examples/augment_segmentation.py --labels LABEL_MAPS --scheme freesurfer --output augment_segmentation

To an existing MONAI training, `SynthesizeT1wd` is one more line of its transforms. Here a small UNet learns to tell
tissues apart. Each label map, and deformed copies of it, are painted once and then come from the cache, so that the
first epochs are slow and the others are not. The last label map is kept for the test: its T1w is synthetic as well, so
that the Dice says that the network has learnt, not how well it does on real scans. For that, see docs/downstream.md.

Without --labels it works on phantoms, in minutes on a CPU.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from monai.data import DataLoader, Dataset, decollate_batch
from monai.inferers import sliding_window_inference
from monai.losses import DiceCELoss
from monai.metrics import DiceMetric
from monai.networks.nets import UNet
from monai.networks.utils import one_hot
from monai.transforms import (
    Compose,
    LoadImaged,
    MapLabelValued,
    Orientationd,
    RandAdjustContrastd,
    RandBiasFieldd,
    RandGaussianNoised,
    RandSpatialCropd,
    ScaleIntensityRanged,
    SpatialPadd,
)
from monai.utils import set_determinism

from trispade import Synthesizer, SynthesizeT1wd
from trispade.errors import show_input_errors_as_one_line
from trispade.inference import list_label_maps
from trispade.labels import load_scheme
from trispade.phantoms import write_phantom_dataset
from trispade.report.figure import save_triplanar_figure
from trispade.transforms import MapLabelsd

TISSUES = ("background", "csf", "gm", "wm")
PATCH = (32, 32, 32)


def make_transforms(synthesizer: Synthesizer, scheme: str, cache_dir: Path, num_deformed: int, seed: int) -> Compose:
    """What the training has of its own, and one line more: from a path to ``label`` and ``image``, (1, X, Y, Z)."""
    tissues = [each.tissue for each in load_scheme(scheme).vocabulary.classes]
    targets = [TISSUES.index(tissue) if tissue in TISSUES else 0 for tissue in tissues]
    return Compose(
        [
            LoadImaged("label", ensure_channel_first=True),
            Orientationd("label", axcodes="RAS", labels=(("L", "R"), ("P", "A"), ("I", "S"))),
            SynthesizeT1wd(
                "label", "image", synthesizer=synthesizer, cache_dir=cache_dir, seed=seed, num_deformed=num_deformed
            ),
            MapLabelsd("label", scheme=scheme),
            MapLabelValued("label", orig_labels=range(len(targets)), target_labels=targets, dtype=np.int64),
            ScaleIntensityRanged("image", 0, 255, 0, 1),
        ]
    )


def make_augmentation() -> Compose:
    """What scanners differ in, and a patch of it."""
    return Compose(
        [
            RandBiasFieldd("image", prob=0.5),
            RandAdjustContrastd("image", prob=0.5),
            RandGaussianNoised("image", prob=0.5, std=0.05),
            SpatialPadd(["image", "label"], PATCH),
            RandSpatialCropd(["image", "label"], PATCH, random_size=False),
        ]
    )


def train(network: UNet, loader: DataLoader, num_epochs: int) -> None:
    """Train with Dice and cross-entropy."""
    loss_function = DiceCELoss(to_onehot_y=True, softmax=True)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for epoch in range(1, num_epochs + 1):
        losses = []
        for batch in loader:
            optimizer.zero_grad()
            loss = loss_function(network(batch["image"].as_tensor()), batch["label"].as_tensor())
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        print(f"epoch {epoch}: loss {np.mean(losses):.3f}", flush=True)


@torch.no_grad()
def test(network: UNet, item: dict) -> tuple[np.ndarray, list[float]]:
    """Segment one volume; gives its tissues (X, Y, Z) and the Dice of each but the background."""
    network.eval()
    logits = sliding_window_inference(item["image"].as_tensor()[None], PATCH, 4, network, overlap=0.5)
    predicted = logits.argmax(dim=1, keepdim=True)
    dice = DiceMetric(include_background=False)
    truth = one_hot(item["label"].as_tensor()[None], len(TISSUES))
    dice(decollate_batch(one_hot(predicted, len(TISSUES))), decollate_batch(truth))
    return predicted[0, 0].numpy(), dice.aggregate("mean_batch").tolist()


def main() -> None:
    """Paint and train, test, show."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--labels", type=Path, help="folder of label maps; phantoms if not given")
    parser.add_argument("--scheme", default="freesurfer", help="what their ids mean")
    parser.add_argument("--people", type=int, default=6, help="phantoms, at least 5")
    parser.add_argument("--size", type=int, default=64, help="voxels along each axis of the phantoms, of 1 mm")
    parser.add_argument("--num-deformed", type=int, default=2, help="deformed copies of each label map")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--patches", type=int, default=6, help="patches an epoch from each label map")
    parser.add_argument("--workers", type=int, default=0, help="processes that paint and load")
    parser.add_argument("--output", type=Path, default=Path("augment_segmentation"), help="folder")
    options = parser.parse_args()
    show_input_errors_as_one_line()

    set_determinism(seed=0)
    if options.labels is None:
        options.labels = options.output / "phantoms"
        write_phantom_dataset(options.labels, options.people, spacing_mm=1.0, shape=(options.size,) * 3)
    *training, last = [{"label": case["image"]} for case in list_label_maps(options.labels)]

    # In worker processes a synthesizer paints on the CPU; with --workers 0 it may have the GPU.
    synthesizer = Synthesizer.from_bundle(device="cpu" if options.workers else None, scheme=options.scheme)
    cache_dir = options.output / "cache"
    pairs = make_transforms(synthesizer, options.scheme, cache_dir, options.num_deformed, seed=0)
    dataset = Dataset(training * options.patches, Compose([pairs, make_augmentation()]))
    loader = DataLoader(dataset, batch_size=4, shuffle=True, num_workers=options.workers)

    network = UNet(3, 1, len(TISSUES), channels=(8, 16, 32), strides=(2, 2), num_res_units=1)
    train(network, loader, options.epochs)

    item = make_transforms(synthesizer, options.scheme, cache_dir, num_deformed=0, seed=0)(last)
    segmented, dice = test(network, item)
    print("Dice: " + ", ".join(f"{name} {value:.3f}" for name, value in zip(TISSUES[1:], dice, strict=True)))
    columns = {
        "synthetic T1w": item["image"].numpy()[0],
        "label map": item["label"].numpy()[0],
        "segmentation": segmented,
    }
    print(save_triplanar_figure(columns, options.output / "segmentation.png", spacing_mm=item["image"].pixdim.tolist()))


if __name__ == "__main__":
    main()
