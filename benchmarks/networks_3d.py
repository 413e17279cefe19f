"""3D generators that `cost_3d.py` counts: SPADE with three axes, and a conditional U-Net with self-attention.

They are there to be counted, not to be trained: their weights start as PyTorch leaves them.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from trispade.networks.discriminator import WIDEST
from trispade.networks.spectral import add_spectral_norm
from trispade.networks.triplanar import LEAKY_SLOPE, STAGES


def encode_volume(label_map: Tensor, num_classes: int, stride: int = 1) -> Tensor:
    """One-hot encode (B, 1, X, Y, Z) class indices, every ``stride``-th voxel: (B, num_classes, X / stride, ...)."""
    coarse = label_map[:, 0, ::stride, ::stride, ::stride].unsqueeze(1)
    classes = torch.arange(num_classes, device=label_map.device).view(1, -1, 1, 1, 1)
    return (coarse == classes).to(torch.get_default_dtype())


class Spade3d(nn.Module):
    """`trispade.networks.triplanar.Spade` with 3x3x3 convolutions."""

    def __init__(self, channels: int, num_classes: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm3d(channels, affine=False)
        self.shared = nn.Conv3d(num_classes, hidden, 3, padding=1)
        self.gamma = nn.Conv3d(hidden, channels, 3, padding=1)
        self.beta = nn.Conv3d(hidden, channels, 3, padding=1)

    def forward(self, x: Tensor, one_hot: Tensor) -> Tensor:
        """Modulate ``x`` (B, C, X, Y, Z) by ``one_hot`` (B, num_classes, X, Y, Z)."""
        anatomy = F.relu(self.shared(one_hot))
        gamma_bias, beta_bias = self.gamma.bias, self.beta.bias
        assert gamma_bias is not None
        assert beta_bias is not None
        weight, bias = torch.cat([self.gamma.weight, self.beta.weight]), torch.cat([1 + gamma_bias, beta_bias])
        scale, shift = F.conv3d(anatomy, weight, bias, padding=1).chunk(2, dim=1)
        # A batch of one value a channel, a cube of 32, has no variance.
        use_batch = self.training and x.numel() > x.shape[1]
        x = F.batch_norm(x, self.norm.running_mean, self.norm.running_var, None, None, use_batch)
        return torch.addcmul(shift, x, scale)


class SpadeResBlock3d(nn.Module):
    """`trispade.networks.triplanar.SpadeResBlock` with 3x3x3 convolutions."""

    def __init__(self, in_channels: int, out_channels: int, num_classes: int, hidden: int) -> None:
        super().__init__()
        middle = min(in_channels, out_channels)
        self.spade_0 = Spade3d(in_channels, num_classes, hidden)
        self.conv_0 = nn.Conv3d(in_channels, middle, 3, padding=1)
        self.spade_1 = Spade3d(middle, num_classes, hidden)
        self.conv_1 = nn.Conv3d(middle, out_channels, 3, padding=1)
        learnt = in_channels != out_channels
        self.spade_shortcut = Spade3d(in_channels, num_classes, hidden) if learnt else None
        self.conv_shortcut = nn.Conv3d(in_channels, out_channels, 1, bias=False) if learnt else None
        self.activation = nn.LeakyReLU(LEAKY_SLOPE)

    def forward(self, x: Tensor, one_hot: Tensor) -> Tensor:
        """Map ``x`` (B, in_channels, X, Y, Z) to (B, out_channels, X, Y, Z)."""
        y = self.conv_0(self.activation(self.spade_0(x, one_hot)))
        y = self.conv_1(self.activation(self.spade_1(y, one_hot)))
        if self.spade_shortcut is not None and self.conv_shortcut is not None:
            x = self.conv_shortcut(self.activation(self.spade_shortcut(x, one_hot)))
        return x + y


class Spade3dGenerator(nn.Module):
    """`trispade.networks.SpadeGenerator`, like for like: same blocks and widths, every 2D convolution made 3D.

    Args:
        num_classes: size of the label vocabulary, background included.
        ngf: width of the last block.
        hidden: width of the layer that gamma and beta share in each SPADE.
        max_channels: cap on the width of every block; None for the published widths.
        spectral: normalise the blocks' convolutions spectrally, as in training.
    """

    def __init__(
        self, num_classes: int, ngf: int, hidden: int, max_channels: int | None = None, spectral: bool = True
    ) -> None:
        super().__init__()
        cap = max_channels or 16 * ngf
        self.num_classes = num_classes
        self.head = nn.Conv3d(num_classes, min(16 * ngf, cap), 3, padding=1)
        self.blocks = nn.ModuleList(
            SpadeResBlock3d(min(wide * ngf, cap), min(narrow * ngf, cap), num_classes, hidden)
            for wide, narrow, _ in STAGES
        )
        self.activation = nn.LeakyReLU(LEAKY_SLOPE)
        self.tail = nn.Conv3d(min(ngf, cap), 1, 3, padding=1)
        if spectral:
            add_spectral_norm(self.blocks)

    def forward(self, label_map: Tensor) -> Tensor:
        """Paint (B, 1, X, Y, Z) class indices, sizes multiples of 32: (B, 1, X, Y, Z) in [-1, 1]."""
        stride = STAGES[0][2]
        one_hot = encode_volume(label_map, self.num_classes, stride)
        x = self.head(one_hot)
        for block, (_, _, finer) in zip(self.blocks, STAGES, strict=True):
            if finer < stride:
                stride = finer
                one_hot = encode_volume(label_map, self.num_classes, stride)
                x = F.interpolate(x, scale_factor=2.0, mode="nearest")
            x = block(x, one_hot)
        return torch.tanh(self.tail(self.activation(x)))


class SelfAttention3d(nn.Module):
    """Every voxel looks at every other one: ``x + scale * attention(x)``, with a learnt scale that starts at zero.

    Source:
        Zhang et al., Self-attention generative adversarial networks, ICML 2019, section 3: queries, keys and values
        have an eighth of the channels. The map of (X Y Z)^2 weights is kept, as the paper writes it.
    """

    def __init__(self, channels: int, spectral: bool) -> None:
        super().__init__()
        narrow = max(1, channels // 8)
        self.query, self.key, self.value = (
            _normalised(nn.Conv3d(channels, narrow, 1, bias=False), spectral) for _ in range(3)
        )
        self.out = _normalised(nn.Conv3d(narrow, channels, 1, bias=False), spectral)
        self.scale = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """Attend over (B, C, X, Y, Z)."""
        query, key, value = (layer(x).flatten(2) for layer in (self.query, self.key, self.value))
        attention = torch.softmax(query.transpose(1, 2) @ key, dim=-1)
        attended = (value @ attention.transpose(1, 2)).unflatten(2, x.shape[2:])
        return x + self.scale * self.out(attended)


class ConditionalGenerator3d(nn.Module):
    """3D conditional U-Net with spectral norm and self-attention, after SC-GAN.

    Taken from the paper's abstract: a 2D conditional GAN made 3D, a 3D self-attention module, spectral norm, volumes
    synthesized whole. Assumed, since the abstract gives neither widths nor the attention's place, and the authors'
    code, which is not free for commercial use, was not looked at: the 2D conditional GAN's generator is pix2pix's U-Net
    of convolutions of kernel 4 and stride 2, of widths 1-2-4-8-8 times ``width``, without dropout; its batch norm is an
    instance norm, which is the same for a batch of one. It ends at 1/32 of the size, so that multiples of 32 fit, where
    pix2pix goes on down to one pixel: that saves few bytes and operations, but most of the parameters. The attention
    stands at the coarsest level, where it costs least.

    Args:
        num_classes: size of the label vocabulary, background included.
        width: width of the finest level.
        spectral: normalise all convolutions spectrally, as in training.

    Source:
        Lan et al., SC-GAN, bioRxiv 2020 and Magnetic Resonance in Medicine 2021; Isola et al., Image-to-image
        translation with conditional adversarial networks, CVPR 2017, appendix 6.1.
    """

    def __init__(self, num_classes: int, width: int, spectral: bool = True) -> None:
        super().__init__()
        self.num_classes = num_classes
        widths = [width * step for step in (1, 2, 4, 8, 8)]
        self.down = nn.ModuleList(
            _normalised(nn.Conv3d(fine, coarse, 4, stride=2, padding=1), spectral)
            for fine, coarse in pairwise([num_classes, *widths])
        )
        self.down_norms = nn.ModuleList(_norms(widths, without=(0, len(widths) - 1)))
        self.attention = SelfAttention3d(widths[-1], spectral)
        # All but the coarsest level also get what skips to them.
        inputs = [widths[-1]] + [2 * channels for channels in widths[-2::-1]]
        outputs = [*widths[-2::-1], 1]
        self.up = nn.ModuleList(
            _normalised(nn.ConvTranspose3d(coarse, fine, 4, stride=2, padding=1), spectral)
            for coarse, fine in zip(inputs, outputs, strict=True)
        )
        self.up_norms = nn.ModuleList(_norms(outputs, without=(len(outputs) - 1,)))

    def forward(self, label_map: Tensor) -> Tensor:
        """Paint (B, 1, X, Y, Z) class indices, sizes multiples of 32: (B, 1, X, Y, Z) in [-1, 1]."""
        x = encode_volume(label_map, self.num_classes)
        skipped: list[Tensor] = []
        for level, (convolution, norm) in enumerate(zip(self.down, self.down_norms, strict=True)):
            x = norm(convolution(F.leaky_relu(x, LEAKY_SLOPE) if level else x))
            skipped.append(x)
        x = self.attention(skipped.pop())
        for level, (convolution, norm) in enumerate(zip(self.up, self.up_norms, strict=True)):
            x = torch.cat([x, skipped.pop()], dim=1) if level else x
            x = norm(convolution(F.relu(x)))
        return torch.tanh(x)


class Discriminator3d(nn.Module):
    """`trispade.networks.SpadeDiscriminator` with 4x4x4 convolutions: the judge of either 3D generator."""

    def __init__(self, num_classes: int, ndf: int, num_scales: int, num_layers: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        widths = [num_classes + 1] + [ndf * min(2**layer, WIDEST) for layer in range(num_layers)]
        self.scales = nn.ModuleList(_patch_layers(widths) for _ in range(num_scales))
        self.halve = nn.AvgPool3d(3, stride=2, padding=1, count_include_pad=False)

    def forward(self, label_map: Tensor, image: Tensor) -> list[list[Tensor]]:
        """Judge fakes, then real ones, (2 B, 1, X, Y, Z) of (B, 1, X, Y, Z) labels: features of each scale's layers."""
        one_hot = encode_volume(label_map, self.num_classes)
        features = []
        for index, layers in enumerate(self.scales):
            if index > 0:
                one_hot, image = self.halve(one_hot), self.halve(image)
            x = torch.cat([torch.cat([one_hot] * (len(image) // len(one_hot))), image], dim=1)
            of_scale = []
            for layer in layers.children():
                x = layer(x)
                of_scale.append(x)
            features.append(of_scale)
        return features


def _patch_layers(widths: list[int]) -> nn.ModuleList:
    layers = nn.ModuleList()
    for index, (wide, wider) in enumerate(pairwise(widths)):
        stride = 2 if index < len(widths) - 2 else 1
        convolution = spectral_norm(nn.Conv3d(wide, wider, 4, stride=stride, padding=2, bias=index == 0))
        norm = [nn.InstanceNorm3d(wider)] if index else []
        layers.append(nn.Sequential(convolution, *norm, nn.LeakyReLU(LEAKY_SLOPE)))
    layers.append(spectral_norm(nn.Conv3d(widths[-1], 1, 4, padding=2)))
    return layers


def _norms(widths: Iterable[int], without: tuple[int, ...]) -> list[nn.Module]:
    return [nn.Identity() if index in without else nn.InstanceNorm3d(channels) for index, channels in enumerate(widths)]


def _normalised(convolution: nn.Module, spectral: bool) -> nn.Module:
    return spectral_norm(convolution) if spectral else convolution
