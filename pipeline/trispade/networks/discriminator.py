"""The multi-scale patch discriminator that judges slices together with their label maps."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from trispade.networks.triplanar import LEAKY_SLOPE, encode_labels, initialised

WIDEST = 8
"""Widths double from ``ndf`` with each layer up to this multiple of it."""


class PatchDiscriminator(nn.Module):
    """Judge overlapping patches of one resolution.

    Args:
        in_channels: channels of the label map and the image together.
        ndf: width of the first convolution; each next one is twice as wide, up to 8 times ``ndf``.
        num_layers: number of convolutions before the one that yields logits; all but the last of them halve the size.

    Source:
        Park et al., appendix A: 4x4 convolutions, spectral norm on all of them, parameter-free instance norm on all
        but the first and the last. Padding of 2, which the paper does not state, lets slices of 32x32 through.
    """

    def __init__(self, in_channels: int, ndf: int, num_layers: int) -> None:
        super().__init__()
        widths = [in_channels] + [ndf * min(2**layer, WIDEST) for layer in range(num_layers)]
        strides = [2] * (num_layers - 1) + [1]
        self.layers = nn.ModuleList(
            _layer(wide, wider, stride, normalised=index > 0)
            for index, (wide, wider, stride) in enumerate(zip(widths, widths[1:], strides, strict=False))
        )
        self.layers.append(spectral_norm(initialised(nn.Conv2d(widths[-1], 1, 4, padding=2))))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return each layer's output for ``x`` (B, in_channels, H, W); the last is the logits (B, 1, h, w)."""
        features: list[Tensor] = []
        for layer in self.layers:
            x = layer(x)
            features.append(x)
        return features


class SpadeDiscriminator(nn.Module):
    """Judge an image given its label map, at full size and at halved sizes.

    Args:
        num_classes: size of the label vocabulary, background included.
        ndf: width of the first convolution.
        num_scales: number of patch discriminators; each next one sees the average-pooled input of the one before.
        num_layers: number of convolutions before the logits.
        image_channels: channels of the image (1 for T1w).

    Source:
        Park et al., section 3 and appendix A; the pyramid is that of Wang et al., pix2pixHD, CVPR 2018.
    """

    def __init__(self, num_classes: int, ndf: int, num_scales: int, num_layers: int, image_channels: int = 1) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.scales = nn.ModuleList(
            PatchDiscriminator(num_classes + image_channels, ndf, num_layers) for _ in range(num_scales)
        )
        self.halve = nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False)

    def forward(self, label_map: Tensor, image: Tensor) -> list[list[Tensor]]:
        """Judge a batch; the instance norm treats every slice alone, so fake and real may share it.

        Args:
            label_map: (B, 1, H, W) class indices of any integer or floating type.
            image: (n B, image_channels, H, W) intensities in [-1, 1]: n images of every label map, such as all fakes,
                then all real ones.

        Returns:
            One list a scale, finest first: the features of each layer, the logits (n B, 1, h, w) last.
        """
        one_hot = encode_labels(label_map, self.num_classes).to(image.dtype)
        features = []
        for index, scale in enumerate(self.scales):
            if index > 0:
                # Each by itself, since only the image passes gradients on.
                one_hot, image = self.halve(one_hot), self.halve(image)
            features.append(scale(_join(one_hot, image)))
        return features


def _join(one_hot: Tensor, image: Tensor) -> Tensor:
    """Put labels and image together, channels last, as the convolutions want them: (n B, C, H, W)."""
    batch, classes, height, width = one_hot.shape
    assert len(image) % batch == 0, "each label map needs as many images as the others"
    x = image.new_empty((len(image) // batch, batch, height, width, classes + image.shape[1]))
    x[..., :classes] = one_hot.movedim(1, -1)
    x[..., classes:] = image.movedim(1, -1).unflatten(0, (-1, batch))
    return x.flatten(0, 1).movedim(-1, 1)


def _layer(in_channels: int, out_channels: int, stride: int, normalised: bool) -> nn.Module:
    # The instance norm would cancel a bias, so only the first layer has one.
    convolution = nn.Conv2d(in_channels, out_channels, 4, stride=stride, padding=2, bias=not normalised)
    norm = [nn.InstanceNorm2d(out_channels)] if normalised else []
    return nn.Sequential(spectral_norm(initialised(convolution)), *norm, nn.LeakyReLU(LEAKY_SLOPE))
