"""The segmentation network of the downstream comparison: MONAI's U-Net at half the resolution of the scan."""

from __future__ import annotations

from collections.abc import Sequence

from monai.networks.nets import UNet
from torch import Tensor, nn
from torch.nn import functional

from trispade.errors import InputError

STEM_STRIDE = 2


class HalfResolutionUNet(nn.Module):
    """Segment a volume with a U-Net that works on half the scan's resolution, behind a strided convolution.

    At the scan's own resolution nearly all the time goes into the last level and the loss, each over as many channels
    as there are classes. At half of it, a CPU trains on patches of 96 voxels in half the time that those of 64 took.

    Args:
        num_classes: size of the label vocabulary, background included.
        channels: width of each level of the U-Net; the strided convolution is as wide as the first.

    Raises:
        InputError: if there are fewer than two widths.

    Source:
        Falk et al., U-Net: deep learning for cell counting, detection, and morphometry, Nature Methods 16, 2019, with
        residual units (Kerfoot et al. 2019) as MONAI has it; the strided convolution and the widths are ours.
    """

    def __init__(self, num_classes: int, channels: Sequence[int]) -> None:
        super().__init__()
        if len(channels) < 2:
            raise InputError.of(
                "segmentation network", "two widths or more", f"{list(channels)}", "Correct downstream_channels."
            )
        self.multiple = STEM_STRIDE * 2 ** (len(channels) - 1)
        self.stem = nn.Sequential(
            nn.Conv3d(1, channels[0], kernel_size=4, stride=STEM_STRIDE, padding=1),
            nn.InstanceNorm3d(channels[0], affine=True),
            nn.PReLU(),
        )
        self.unet = UNet(
            spatial_dims=3,
            in_channels=channels[0],
            out_channels=num_classes,
            channels=channels,
            strides=[2] * (len(channels) - 1),
            num_res_units=1,
            norm="instance",
        )

    def forward(self, image: Tensor) -> Tensor:
        """Segment volumes or patches.

        Args:
            image: (B, 1, X, Y, Z) intensities in [0, 1]; sizes are multiples of `multiple`.

        Returns:
            Logits: in training (B, num_classes, X/2, Y/2, Z/2), each of a cell of 2x2x2 voxels, for
            `trispade.losses.CellDiceCELoss`; in evaluation (B, num_classes, X, Y, Z), interpolated.

        Raises:
            InputError: if a size is not such a multiple.
        """
        if any(size % self.multiple for size in image.shape[2:]):
            raise InputError.of(
                "segmentation network",
                f"sizes that are multiples of {self.multiple}",
                "x".join(str(size) for size in image.shape[2:]),
                "Correct downstream_patch.",
            )
        logits: Tensor = self.unet(self.stem(image))
        if self.training:
            return logits
        return functional.interpolate(logits, scale_factor=STEM_STRIDE, mode="trilinear")
