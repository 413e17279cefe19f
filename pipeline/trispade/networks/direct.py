"""The direct competitor: a 3D U-Net from label map to T1w, without planes and without an adversary."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from monai.networks.nets import BasicUNet
from torch import Tensor, nn

from trispade.errors import InputError

NUM_LEVELS = 5  # of MONAI's BasicUNet
MULTIPLE = 2 ** (NUM_LEVELS - 1)


class DirectUNet(nn.Module):
    """Paint a volume from its label map with one 3D U-Net: MONAI's `BasicUNet` between one-hot labels and tanh.

    It has no norm: nothing is computed over the patch, so that a voxel does not change with the field of view. In
    one short run each on MALC at 2 mm (30 s of one core) batch norm did no better: 22.2 dB against 22.5.

    Args:
        num_classes: size of the label vocabulary, background included.
        channels: width of each of the five levels, finest first.
        class_table: for each class index, the index of the class that had training data and stands in for it
            (`Vocabulary.fallback_table`); None when all had. It is part of the state dict.

    Raises:
        InputError: if there are not five widths.

    Source:
        Falk et al., U-Net: deep learning for cell counting, detection, and morphometry, Nature Methods 16, 2019, as
        MONAI has it; the widths are ours. Small on purpose: what a plain network reaches in half an hour on a CPU is
        what three GANs and a fusion net have to beat.
    """

    def __init__(self, num_classes: int, channels: Iterable[int], class_table: Iterable[int] | None = None) -> None:
        super().__init__()
        widths = tuple(channels)
        if len(widths) != NUM_LEVELS:
            raise InputError.of(
                "direct U-Net", f"a width for each of {NUM_LEVELS} levels", f"{len(widths)}", "Correct direct_channels."
            )
        self.num_classes = num_classes
        self.unet = BasicUNet(
            spatial_dims=3,
            in_channels=num_classes,
            out_channels=1,
            features=(*widths, widths[0]),
            norm=None,
        )
        self.class_table: Tensor
        table = range(num_classes) if class_table is None else class_table
        self.register_buffer("class_table", torch.tensor([int(index) for index in table], dtype=torch.long))

    def forward(self, label_map: Tensor) -> Tensor:
        """Paint volumes or patches.

        Args:
            label_map: (B, 1, X, Y, Z) class indices of any integer or floating type, on a RAS grid whose sizes are
                multiples of 16.

        Returns:
            (B, 1, X, Y, Z) intensities in [-1, 1], exactly -1 where the label is background. So the mean squared error
            over a patch is that of its brain, weighted by how much brain it holds.

        Raises:
            InputError: if a size is not a multiple of 16.
        """
        if any(extent % MULTIPLE for extent in label_map.shape[2:]):
            raise InputError.of(
                "label map",
                f"sizes that are multiples of {MULTIPLE}",
                "x".join(map(str, label_map.shape[2:])),
                "Pad it with background, or choose another patch size.",
            )
        known = self.known_labels(label_map)
        # In float32 even under autocast: bfloat16 has steps of 0.004 near 1.
        return torch.tanh(self.unet(self.encode(known)).float()).masked_fill(known == 0, -1.0)

    def known_labels(self, label_map: Tensor) -> Tensor:
        """Replace each class index by that of the class that stands in for it; long, same shape."""
        return self.class_table[torch.as_tensor(label_map).round().long()]

    def encode(self, known: Tensor) -> Tensor:
        """One-hot encode (B, 1, X, Y, Z) class indices: (B, num_classes, X, Y, Z) in the type of the weights."""
        classes = torch.arange(self.num_classes, device=known.device).view(1, -1, 1, 1, 1)
        return (known == classes).to(next(self.unet.parameters()).dtype)
