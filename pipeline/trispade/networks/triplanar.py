"""What turns a label map into a T1w volume: a SPADE generator for each plane, the fusion net, and the four as one.

Source:
    Park et al., Semantic Image Synthesis with Spatially-Adaptive Normalization, CVPR 2019, section 3 and appendix A,
    for the generator; Ayaz et al., figure 2, for the fusion net. Written from the papers' text. Where we deviate, the
    class that does so says it.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trispade.errors import InputError
from trispade.geometry import PLANES, check_label_slices, with_neighbours
from trispade.networks.spectral import add_spectral_norm

STAGES = ((16, 16, 32), (16, 16, 16), (16, 16, 16), (16, 8, 8), (8, 4, 4), (4, 2, 2), (2, 1, 1))
"""One row a residual block: width in and width out in units of ``ngf``, and the step of its label grid in pixels."""

INIT_GAIN = 0.02
LEAKY_SLOPE = 0.2

Layer = TypeVar("Layer", nn.Conv2d, nn.Linear)


def encode_labels(label_map: Tensor, num_classes: int, stride: int = 1) -> Tensor:
    """One-hot encode a label map, taking every ``stride``-th row and column (nearest-neighbour downsampling).

    Args:
        label_map: (B, S, H, W) class indices of any integer or floating type, of S slices.
        num_classes: number of channels that each slice gives.
        stride: step in pixels.

    Returns:
        (B, S * num_classes, H / stride, W / stride) bool, slice after slice, laid out channels-last. An index outside
        the vocabulary gives zeros in all channels of its slice.
    """
    coarse = label_map[:, :, ::stride, ::stride].permute(0, 2, 3, 1).unsqueeze(-1)
    one_hot = coarse == torch.arange(num_classes, device=label_map.device)
    return one_hot.contiguous().flatten(3).permute(0, 3, 1, 2)


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
        # 1 + gamma and beta as one convolution of twice the channels, which takes less time than two.
        gamma_bias, beta_bias = self.gamma.bias, self.beta.bias
        assert gamma_bias is not None
        assert beta_bias is not None
        weight, bias = torch.cat([self.gamma.weight, self.beta.weight]), torch.cat([1 + gamma_bias, beta_bias])
        scale, shift = F.conv2d(anatomy, weight, bias, padding=1).chunk(2, dim=1)
        return torch.addcmul(shift, self.norm(x), scale)


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
        label_slices: label slices that it sees, the one to paint in their middle; odd. 1 as published.

    Raises:
        InputError: if ``label_slices`` is not odd.

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
        label_slices: int = 1,
    ) -> None:
        super().__init__()
        cap = max_channels or 16 * ngf
        self.label_slices = check_label_slices(label_slices)
        self.num_classes = num_classes
        self.style_dim = style_dim or 0
        self.label_strides = [stride for _, _, stride in STAGES]
        widest = min(16 * ngf, cap)
        seen = label_slices * num_classes
        self.head = initialised(nn.Conv2d(seen, widest, 3, padding=1))
        self.style = initialised(nn.Linear(style_dim, widest)) if style_dim else None
        self.blocks = nn.ModuleList(
            SpadeResBlock(min(wide * ngf, cap), min(narrow * ngf, cap), seen, hidden) for wide, narrow, _ in STAGES
        )
        self.activation = nn.LeakyReLU(LEAKY_SLOPE)
        self.tail = initialised(nn.Conv2d(min(ngf, cap), out_channels, 3, padding=1))
        if spectral:
            add_spectral_norm(self.blocks)

    def forward(self, label_map: Tensor, style: Tensor | None = None) -> Tensor:
        """Paint a batch of slices.

        Args:
            label_map: (B, label_slices, H, W) class indices of any integer or floating type; H and W multiples of 32.
            style: (B, style_dim) code; None is the code of zeros, the mean of the prior.

        Returns:
            (B, out_channels, H, W) intensities in [-1, 1].

        Raises:
            InputError: if H or W is not a multiple of 32, or the number of slices another.
        """
        height, width = label_map.shape[-2], label_map.shape[-1]
        stride = self.label_strides[0]
        if height % stride != 0 or width % stride != 0:
            raise InputError(
                f"label map: expected a height and a width that are multiples of {stride}, got {height}x{width}. "
                "Pad it with background."
            )
        if label_map.shape[1] != self.label_slices:
            raise InputError(
                f"label map: expected {self.label_slices} slices at once, got {label_map.shape[1]}. "
                "Set label_slices to what the generator was trained with."
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


class ConvolutionPair(nn.Sequential):
    """Two 3x3x3 convolutions, each with an optional batch norm and a ReLU."""

    def __init__(self, in_channels: int, out_channels: int, norm: str) -> None:
        first = _convolution(in_channels, out_channels, norm)
        super().__init__(*first, *_convolution(out_channels, out_channels, norm))


class FusionNet(nn.Module):
    """3D U-Net-style CNN that merges the three planes' volumes.

    Max pooling on the way down, nearest upsampling and concatenation on the way up, a 1x1x1 convolution at the end
    without an activation.

    It may see the label map too: each voxel's class gives a learnt vector, which joins the volumes as further channels.

    Args:
        in_channels: number of volumes to merge.
        out_channels: channels of the result.
        channels: width of each level, finest first.
        norm: "batch" (running statistics in eval mode) or "none"; nothing is computed over the patch at inference.
        residual: add the result to the mean of the inputs. The last convolution then starts at zero, so that an
            untrained net is the mean of the planes.
        label_channels: length of the vector that a class gives; 0: the net does not see labels, as published.
        num_classes: size of the label vocabulary; needed with ``label_channels``.

    Raises:
        InputError: if the norm is another one.

    Source:
        Ayaz et al., figure 2, which gives patches of 32^3 and three channels in; depth, width and norm are ours, and so
        is what the net may see of the labels.
    """

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 1,
        channels: Iterable[int] = (16, 32, 64),
        norm: str = "none",
        residual: bool = False,
        label_channels: int = 0,
        num_classes: int = 0,
    ) -> None:
        super().__init__()
        widths = tuple(channels)
        self.in_channels = in_channels
        self.residual = residual
        self.multiple = 2 ** (len(widths) - 1)
        self.embedding = nn.Embedding(num_classes, label_channels) if label_channels else None
        self.entry = ConvolutionPair(in_channels + label_channels, widths[0], norm)
        self.pool = nn.MaxPool3d(2)
        self.down = nn.ModuleList(ConvolutionPair(fine, coarse, norm) for fine, coarse in pairwise(widths))
        self.up = nn.ModuleList(
            ConvolutionPair(fine + coarse, fine, norm) for fine, coarse in reversed(list(pairwise(widths)))
        )
        self.exit = nn.Conv3d(widths[0], out_channels, 1)
        if residual:
            nn.init.zeros_(self.exit.weight)
            assert self.exit.bias is not None
            nn.init.zeros_(self.exit.bias)

    def forward(self, planes: Tensor) -> Tensor:
        """Merge (B, in_channels, X, Y, Z), sizes multiples of 4 for three levels, into (B, out_channels, X, Y, Z).

        Intensities in are in [-1, 1]; those out are not bounded, so that overlapping patches average without bias. One
        channel more, of class indices, may follow (`fusion_input`); a net that sees labels needs it.
        """
        volumes = planes[:, : self.in_channels]
        x = self.entry(self.join_labels(planes))
        skipped = [x]
        for level in self.down:
            x = level(self.pool(x))
            skipped.append(x)
        skipped.pop()
        for level in self.up:
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
            x = level(torch.cat([x, skipped.pop()], dim=1))
        x = self.exit(x)
        if self.residual:
            x = x + volumes.mean(dim=1, keepdim=True)
        return x

    @torch.jit.export
    def join_labels(self, planes: Tensor) -> Tensor:
        """Replace the channel of class indices, if there is one, by the classes' vectors, or drop it."""
        volumes = planes[:, : self.in_channels]
        if self.embedding is None:
            return volumes
        last = self.embedding.num_embeddings - 1
        vectors = self.embedding(planes[:, self.in_channels].round().long().clamp(0, last))
        return torch.cat([volumes, vectors.movedim(-1, 1).to(volumes.dtype)], dim=1)


def fusion_input(planes: Tensor, label_map: Tensor) -> Tensor:
    """Join painted volumes (B, 3, X, Y, Z) and class indices (B, 1, X, Y, Z) to what `FusionNet` takes."""
    return torch.cat([planes, label_map.to(planes.dtype)], dim=1)


class TriplanarSynthesizer(nn.Module):
    """Three generators and the fusion net as one module: a label map in, a T1w volume out.

    The generators carry no spectral norm: their weights are those of trained ones after `fold_spectral_norm`. The
    module can be scripted.

    Args:
        num_classes: size of the label vocabulary, background included.
        ngf: width of the generators' last block.
        hidden: width of the layer that gamma and beta share in each SPADE.
        max_channels: cap on the width of the generators' blocks; None for the published widths.
        fusion_channels: width of each level of the fusion net.
        fusion_norm: "batch" or "none", see `FusionNet`.
        residual: the fusion net corrects the mean of the planes instead of painting anew.
        fusion_label_channels: what the fusion net sees of the labels, see `FusionNet`; 0 for nothing.
        style_dim: length of the style code; None for no style.
        slices_per_step: number of slices that a generator paints at once; bounds the memory, not the result.
        class_table: for each class index, the index of the class that had training data and stands in for it
            (`Vocabulary.fallback_table`); None when all had. It is part of the state dict.
        label_slices: label slices that a generator sees at once, see `SpadeGenerator`.
    """

    def __init__(
        self,
        num_classes: int,
        ngf: int,
        hidden: int,
        max_channels: int | None = None,
        fusion_channels: Iterable[int] = (16, 32, 64),
        fusion_norm: str = "none",
        residual: bool = False,
        fusion_label_channels: int = 0,
        style_dim: int | None = None,
        slices_per_step: int = 8,
        class_table: Iterable[int] | None = None,
        label_slices: int = 1,
    ) -> None:
        super().__init__()
        self.style_dim = style_dim or 0
        self.label_slices = label_slices
        self.slices_per_step = slices_per_step
        sizes = (num_classes, 1, ngf, hidden, max_channels, style_dim, False, label_slices)
        self.generators = nn.ModuleDict({plane: SpadeGenerator(*sizes) for plane in PLANES})
        self.fusion = FusionNet(
            len(PLANES), 1, fusion_channels, fusion_norm, residual, fusion_label_channels, num_classes
        )
        self.class_table: Tensor
        table = range(num_classes) if class_table is None else class_table
        self.register_buffer("class_table", torch.tensor([int(index) for index in table], dtype=torch.long))

    def forward(self, label_map: Tensor, style: Tensor | None = None) -> Tensor:
        """Synthesize whole volumes.

        Args:
            label_map: (B, 1, X, Y, Z) class indices of any integer or floating type, on a RAS grid whose sizes are
                multiples of 32.
            style: (B, style_dim) codes, one a volume, shared by all planes; None is the mean of the prior.

        Returns:
            (B, 1, X, Y, Z) intensities in [-1, 1], exactly -1 where the label is background.

        Raises:
            InputError: if a size is not a multiple of 32.
        """
        planes = self.paint_planes(label_map, style)
        return self.finish(self.fusion(fusion_input(planes, self.known_labels(label_map))), label_map)

    @torch.jit.export
    def paint_planes(self, label_map: Tensor, style: Tensor | None = None) -> Tensor:
        """Paint the volumes in each plane: (B, 3, X, Y, Z), planes in the order of `PLANES`."""
        return torch.cat([self.paint(label_map, plane, style) for plane in ("axial", "coronal", "sagittal")], dim=1)

    @torch.jit.export
    def paint(self, label_map: Tensor, plane: str, style: Tensor | None = None) -> Tensor:
        """Paint the volumes slice by slice in one plane: (B, 1, X, Y, Z) in [-1, 1], -1 in the background."""
        axis = {"axial": 4, "coronal": 3, "sagittal": 2}[plane]
        num_slices = label_map.shape[axis]
        slices = with_neighbours(self.known_labels(label_map).movedim(axis, 1), self.label_slices).flatten(0, 1)
        if style is not None:
            style = style.repeat_interleave(num_slices, dim=0)
        painted: list[Tensor] = []
        for name, generator in self.generators.items():
            if name == plane:
                for start in range(0, len(slices), self.slices_per_step):
                    stop = start + self.slices_per_step
                    painted.append(generator(slices[start:stop], style[start:stop] if style is not None else None))
        volumes = torch.cat(painted).unflatten(0, (len(label_map), num_slices)).movedim(1, axis)
        return self.finish(volumes, label_map)

    @torch.jit.export
    def known_labels(self, label_map: Tensor) -> Tensor:
        """Replace each class index by that of the class that stands in for it; long, same shape."""
        return self.class_table[label_map.round().long()]

    @torch.jit.export
    def finish(self, volumes: Tensor, label_map: Tensor) -> Tensor:
        """Bound intensities to [-1, 1] and set them to -1 in the background; both (B, 1, X, Y, Z)."""
        return volumes.clamp(-1.0, 1.0).masked_fill(self.known_labels(label_map) == 0, -1.0)


def _convolution(in_channels: int, out_channels: int, norm: str) -> list[nn.Module]:
    convolution = nn.Conv3d(in_channels, out_channels, 3, padding=1)
    nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
    norms: dict[str, list[nn.Module]] = {"none": [], "batch": [nn.BatchNorm3d(out_channels)]}
    if norm not in norms:
        raise InputError.of("fusion net", "norm none or batch", norm, "Others would use statistics of the patch.")
    return [convolution, *norms[norm], nn.ReLU()]
