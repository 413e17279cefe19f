"""The SPADE generator: a label map modulates every normalised feature map on the way to the image.

Source:
    Park et al., Semantic Image Synthesis with Spatially-Adaptive Normalization, CVPR 2019, sections 3 and appendix A.
    Written from the paper's text. Where we deviate, the class that does so says it.
"""

from __future__ import annotations

from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.nn.utils.parametrize import is_parametrized, remove_parametrizations

from trispade.errors import InputError

STAGES = ((16, 16, 32), (16, 16, 16), (16, 16, 16), (16, 8, 8), (8, 4, 4), (4, 2, 2), (2, 1, 1))
"""One row a residual block: width in and width out in units of ``ngf``, and the step of its label grid in pixels."""

INIT_GAIN = 0.02
LEAKY_SLOPE = 0.2

Layer = TypeVar("Layer", nn.Conv2d, nn.Linear)
Network = TypeVar("Network", bound=nn.Module)


def encode_labels(label_map: Tensor, num_classes: int, stride: int = 1) -> Tensor:
    """One-hot encode a label map, taking every ``stride``-th row and column (nearest-neighbour downsampling).

    Args:
        label_map: (B, 1, H, W) class indices of any integer or floating type.
        num_classes: number of channels of the result.
        stride: step in pixels.

    Returns:
        (B, num_classes, H / stride, W / stride) bool, laid out channels-last. An index outside the vocabulary gives
        zeros in all channels.
    """
    coarse = label_map[:, 0, ::stride, ::stride].unsqueeze(-1)
    return (coarse == torch.arange(num_classes, device=label_map.device)).permute(0, 3, 1, 2)


def initialised(layer: Layer) -> Layer:
    """Give a layer Xavier-normal weights of gain 0.02 and a bias of zero (Park et al., appendix A)."""
    nn.init.xavier_normal_(layer.weight, gain=INIT_GAIN)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class ParameterFreeNorm(nn.BatchNorm2d):
    """Batch normalisation without scale and shift, as SPADE uses it before its own modulation.

    In eval mode it uses running statistics only, so that a pixel does not change with the field of view. A batch that
    holds one value a channel (a single 32x32 slice on the coarsest grid) has no variance: it is normalised by the
    running statistics in training mode too.
    """

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, H, W) channel by channel."""
        use_batch = self.training and x.numel() > x.shape[1]
        return F.batch_norm(x, self.running_mean, self.running_var, None, None, use_batch, 0.1, self.eps)


class Spade(nn.Module):
    """Spatially-adaptive normalisation: ``norm(x) * (1 + gamma) + beta``, gamma and beta painted from the label map.

    Args:
        channels: channels of the feature map.
        num_classes: channels of the one-hot label map.
        hidden: channels of the layer that gamma and beta share.

    Source:
        Park et al., equation 1 and figure 2. Gamma and beta are plain convolutions: no normalisation, no activation.
    """

    def __init__(self, channels: int, num_classes: int, hidden: int) -> None:
        super().__init__()
        self.norm = ParameterFreeNorm(channels)
        self.shared = initialised(nn.Conv2d(num_classes, hidden, 3, padding=1))
        self.gamma = initialised(nn.Conv2d(hidden, channels, 3, padding=1))
        self.beta = initialised(nn.Conv2d(hidden, channels, 3, padding=1))

    def forward(self, x: Tensor, one_hot: Tensor) -> Tensor:
        """Modulate ``x`` (B, C, H, W) by ``one_hot`` (B, num_classes, H, W) of the same grid."""
        anatomy = F.relu(self.shared(one_hot))
        return self.norm(x) * (1 + self.gamma(anatomy)) + self.beta(anatomy)


class SpadeResBlock(nn.Module):
    """Residual block whose convolutions each stand behind SPADE and LeakyReLU; the shortcut is learnt if widths differ.

    Source:
        Park et al., figure 4 and appendix A. Spectral norm on the block's convolutions, not on SPADE's own.
    """

    def __init__(self, in_channels: int, out_channels: int, num_classes: int, hidden: int) -> None:
        super().__init__()
        middle = min(in_channels, out_channels)
        self.spade_0 = Spade(in_channels, num_classes, hidden)
        self.conv_0 = initialised(nn.Conv2d(in_channels, middle, 3, padding=1))
        self.spade_1 = Spade(middle, num_classes, hidden)
        self.conv_1 = initialised(nn.Conv2d(middle, out_channels, 3, padding=1))
        learnt = in_channels != out_channels
        self.spade_shortcut = Spade(in_channels, num_classes, hidden) if learnt else None
        self.conv_shortcut = initialised(nn.Conv2d(in_channels, out_channels, 1, bias=False)) if learnt else None
        self.activation = nn.LeakyReLU(LEAKY_SLOPE)

    def forward(self, x: Tensor, one_hot: Tensor) -> Tensor:
        """Map ``x`` (B, in_channels, H, W) to (B, out_channels, H, W)."""
        y = self.conv_0(self.activation(self.spade_0(x, one_hot)))
        y = self.conv_1(self.activation(self.spade_1(y, one_hot)))
        if self.spade_shortcut is not None and self.conv_shortcut is not None:
            x = self.conv_shortcut(self.activation(self.spade_shortcut(x, one_hot)))
        return x + y


class SpadeGenerator(nn.Module):
    """Paint the slices of a label map: seven SPADE residual blocks from 1/32 of the size to full size.

    Args:
        num_classes: size of the label vocabulary, background included.
        out_channels: channels of the image (1 for T1w).
        ngf: width of the last block; the first has 16 times as many channels.
        hidden: width of the layer that gamma and beta share in each SPADE.
        max_channels: cap on the width of every block; None for the published widths.
        style_dim: length of the style code that is added to the coarsest features; None for no style.
        spectral: normalise the blocks' convolutions spectrally; False for a generator whose norm has been folded.

    Source:
        Park et al., appendix A. Deviations: the first layer is a convolution of the coarsest label map, as in the
        paper's variant without an encoder, and a style code is added to it through a linear layer that is shared by
        all positions, so that every slice size works; in the paper a linear layer paints a grid of fixed size.
    """

    def __init__(
        self,
        num_classes: int,
        out_channels: int,
        ngf: int,
        hidden: int,
        max_channels: int | None = None,
        style_dim: int | None = None,
        spectral: bool = True,
    ) -> None:
        super().__init__()
        cap = max_channels or 16 * ngf
        self.num_classes = num_classes
        self.style_dim = style_dim or 0
        self.label_strides = [stride for _, _, stride in STAGES]
        widest = min(16 * ngf, cap)
        self.head = initialised(nn.Conv2d(num_classes, widest, 3, padding=1))
        self.style = initialised(nn.Linear(style_dim, widest)) if style_dim else None
        self.blocks = nn.ModuleList(
            SpadeResBlock(min(wide * ngf, cap), min(narrow * ngf, cap), num_classes, hidden)
            for wide, narrow, _ in STAGES
        )
        self.activation = nn.LeakyReLU(LEAKY_SLOPE)
        self.tail = initialised(nn.Conv2d(min(ngf, cap), out_channels, 3, padding=1))
        if spectral:
            add_spectral_norm(self)

    def forward(self, label_map: Tensor, style: Tensor | None = None) -> Tensor:
        """Paint a batch of slices.

        Args:
            label_map: (B, 1, H, W) class indices of any integer or floating type; H and W multiples of 32.
            style: (B, style_dim) code; None is the code of zeros, the mean of the prior.

        Returns:
            (B, out_channels, H, W) intensities in [-1, 1].

        Raises:
            InputError: if H or W is not a multiple of 32.
        """
        height, width = label_map.shape[-2], label_map.shape[-1]
        stride = self.label_strides[0]
        if height % stride != 0 or width % stride != 0:
            raise InputError(
                f"label map: expected a height and a width that are multiples of {stride}, got {height}x{width}. "
                "Pad it with background."
            )
        one_hot = self.encode(label_map, stride)
        x = self.head(one_hot)
        if self.style is not None:
            code = torch.zeros(len(x), self.style_dim, device=x.device, dtype=x.dtype) if style is None else style
            x = x + self.style(code)[:, :, None, None]
        for index, block in enumerate(self.blocks):
            if self.label_strides[index] < stride:
                stride = self.label_strides[index]
                one_hot = self.encode(label_map, stride)
                x = F.interpolate(x, scale_factor=2.0, mode="nearest")
            x = block(x, one_hot)
        return torch.tanh(self.tail(self.activation(x)))

    def encode(self, label_map: Tensor, stride: int) -> Tensor:
        """One-hot encode the label map at ``1 / stride`` of its size, in the precision of the weights."""
        return encode_labels(label_map, self.num_classes, stride).to(self.head.weight.dtype)


def add_spectral_norm(generator: SpadeGenerator) -> SpadeGenerator:
    """Normalise the convolutions of a generator's residual blocks spectrally, in place.

    Source:
        Park et al., section 4; Miyato et al., Spectral Normalization for GANs, ICLR 2018. SPADE's own convolutions,
        the first and the last one stay plain.
    """
    for block in generator.blocks:
        for name in ("conv_0", "conv_1", "conv_shortcut"):
            convolution = getattr(block, name)
            if convolution is not None:
                spectral_norm(convolution)
    return generator


def fold_spectral_norm(module: Network) -> Network:
    """Replace every spectrally normalised weight by its present value, in place.

    The module afterwards computes what it computed in eval mode, its state dict names plain weights (``conv.weight``),
    and it can be scripted. It can no longer be trained on as before: keep the unfolded checkpoint for that.

    Returns:
        The same module, in eval mode.
    """
    module.eval()
    for part in module.modules():
        if is_parametrized(part, "weight"):
            remove_parametrizations(part, "weight", leave_parametrized=True)
    return module
