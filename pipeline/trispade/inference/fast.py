"""The generators' fast path at inference: the same image as the plain network's, for a fraction of its operations.

Three things make it fast, none of which approximates:

- gamma and beta come from tables of distinct label neighbourhoods (`trispade.inference.fast_spade`);
- where only labelled pixels are wanted, each scale is painted in the region that they depend on: the box of the
  labels and a margin of one pixel for each 3x3 convolution that follows at that scale;
- feature maps are laid out channels-last, and the large ones are worked on in pieces that stay in the cache.

The plain network remains the reference and what is exported.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from trispade.geometry import middle_slice
from trispade.inference.fast_spade import (
    Neighbourhoods,
    Region,
    SpadeTables,
    find_columns,
    find_neighbourhoods,
    modulate,
)
from trispade.networks.triplanar import LEAKY_SLOPE, SpadeGenerator, SpadeResBlock

CONVOLUTIONS_A_BLOCK = 2  # of 3x3, one behind the other
PIXELS_AT_ONCE = 2**15  # of feature maps, which then stay in the cache
NUMBERED_AT_ONCE = 2**20  # positions of the label map; bounds the memory of the tables


def fast_generator(generator: Callable[..., Tensor], amp: bool, outside: float | None = None) -> Callable[..., Tensor]:
    """Give the fast path of a trained generator where there is one, or the generator itself.

    There is one on CPUs for a `SpadeGenerator` in eval mode whose spectral norm is folded and whose parameters need no
    gradients. On GPUs, where it has not been tried, the plain network is taken.

    Args:
        generator: (N, label_slices, H, W) class indices to (N, 1, H, W).
        amp: compute in bfloat16, where the processor does.
        outside: see `FastGenerator`.
    """
    if not isinstance(generator, SpadeGenerator) or generator.training or generator.head.weight.device.type != "cpu":
        return generator
    if any(is_parametrized(part) for part in generator.modules()):
        return generator
    if torch.is_grad_enabled() and any(parameter.requires_grad for parameter in generator.parameters()):
        return generator
    return FastGenerator(generator, fast_dtype(amp), outside)


def fast_dtype(amp: bool) -> torch.dtype:
    """Give bfloat16 if it is asked for and the processor computes with it; elsewhere float32 is faster."""
    return torch.bfloat16 if amp and _has_bfloat16() else torch.float32


def _has_bfloat16() -> bool:
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


class FastGenerator(nn.Module):
    """A trained generator, with the weights that it has now, for inference.

    Args:
        generator: in eval mode, spectral norm folded.
        dtype: of feature maps and tables; float32 or bfloat16.
        outside: value of the pixels outside the smallest box that holds all labels of a batch, which are then not
            painted; None paints them all.
    """

    def __init__(self, generator: SpadeGenerator, dtype: torch.dtype, outside: float | None = None) -> None:
        super().__init__()
        self.generator = generator
        self.dtype = dtype
        self.outside = outside
        self.blocks = [_FastBlock(block, generator.num_classes, dtype) for block in generator.blocks]  # type: ignore[arg-type]
        self.tail = _weights(generator.tail, torch.float32)

    @torch.no_grad()
    def forward(self, label_map: Tensor, style: Tensor | None = None) -> Tensor:
        """Paint a batch of slices; arguments, result and errors are those of `SpadeGenerator`, always float32."""
        generator = self.generator
        label_map = label_map.as_subclass(Tensor)  # a MetaTensor would carry its metadata through every operation
        height, width = label_map.shape[-2:]
        coarsest = generator.label_strides[0]
        if height % coarsest or width % coarsest or label_map.shape[1] != generator.label_slices:
            return generator(label_map, style)
        at_once = max(1, NUMBERED_AT_ONCE // (height * width))
        if len(label_map) > at_once:
            styles = [None] * len(label_map) if style is None else style.split(at_once)
            return torch.cat([self(*part) for part in zip(label_map.split(at_once), styles, strict=False)])
        wanted = middle_slice(label_map)
        box = Region(0, height, 0, width) if self.outside is None else labelled_box(wanted)
        image = torch.full(wanted.shape, self.outside or 0.0, dtype=torch.float32, device=label_map.device)
        if box is None:
            return image
        with torch.autocast(label_map.device.type, enabled=False):
            painted, region = self._paint(label_map, style, box)
        rows, columns = box.within(region)
        image[:, :, box.top : box.bottom, box.left : box.right] = painted[:, :, rows, columns]
        return image

    def _paint(self, label_map: Tensor, style: Tensor | None, box: Region) -> tuple[Tensor, Region]:
        """Paint the box and give it with a margin around it that may be wrong, and what it covers."""
        generator = self.generator
        strides = generator.label_strides
        regions = needed_regions(box, strides, label_map.shape[-2], label_map.shape[-1])
        numbers, columns = find_columns(label_map, generator.num_classes)
        x = self._start(label_map, style)
        region = Region(0, x.shape[-2], 0, x.shape[-1])
        for index, block in enumerate(self.blocks):
            stride = strides[index]
            is_finer = index > 0 and stride < strides[index - 1]
            if index == 0 or is_finer:
                found = find_neighbourhoods(numbers[:, ::stride, ::stride].contiguous(), columns, regions[stride])
            if is_finer:
                height, width = regions[stride].halved().within(region)
                x = x[:, :, height, width]
            x = block(x, found, is_finer)
            region = regions[stride]
        pieces = [
            F.conv2d(F.leaky_relu(piece, LEAKY_SLOPE).float(), *self.tail, padding=1).tanh_()
            for piece in x.split(_slices_at_once(x))
        ]
        return torch.cat(pieces), region

    def _start(self, label_map: Tensor, style: Tensor | None) -> Tensor:
        generator = self.generator
        x = generator.head(generator.encode(label_map, generator.label_strides[0]))
        if generator.style is not None:
            code = x.new_zeros(len(x), generator.style_dim) if style is None else style
            x = x + generator.style(code.to(x.dtype))[:, :, None, None]
        return x.to(self.dtype, memory_format=torch.channels_last)


class _FastBlock:
    """A `SpadeResBlock` whose SPADE layers read tables."""

    def __init__(self, block: SpadeResBlock, num_classes: int, dtype: torch.dtype) -> None:
        spades = [block.spade_0, block.spade_1, *([block.spade_shortcut] if block.spade_shortcut else [])]
        self.tables = SpadeTables(spades, num_classes, dtype)
        self.conv_0, self.conv_1 = _weights(block.conv_0, dtype), _weights(block.conv_1, dtype)
        self.conv_shortcut = _weights(block.conv_shortcut, dtype)[0].flatten(1) if block.conv_shortcut else None

    def __call__(self, x: Tensor, found: Neighbourhoods, upsample: bool) -> Tensor:
        """Map (N, C, h, w), of half the region's size if it is to be upsampled first, to the region."""
        tables = self.tables.make(found)
        at_once = max(1, PIXELS_AT_ONCE // found.kind[0].numel())
        return torch.cat(
            [
                self._apply(piece, tables, kind, upsample)
                for piece, kind in zip(x.split(at_once), found.kind.split(at_once), strict=True)
            ]
        )

    def _apply(self, x: Tensor, tables: list[Tensor], kind: Tensor, upsample: bool) -> Tensor:
        if upsample:
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        x = x.contiguous(memory_format=torch.channels_last)
        y = F.conv2d(modulate(x, tables[0], kind, LEAKY_SLOPE), *self.conv_0, padding=1)
        y = F.conv2d(modulate(y, tables[1], kind, LEAKY_SLOPE), *self.conv_1, padding=1)
        if self.conv_shortcut is not None:
            x = modulate(x, tables[2], kind, LEAKY_SLOPE)
            # A 1x1 convolution as what it is: PyTorch's own, which it takes for one slice on one thread, is slow.
            x = F.linear(x.permute(0, 2, 3, 1), self.conv_shortcut).permute(0, 3, 1, 2)
        return y.add_(x)


def labelled_box(label_map: Tensor) -> Region | None:
    """Give the smallest box that holds every label above 0 of (N, 1, H, W) slices; None if there is none."""
    labelled = (label_map > 0).flatten(0, 1).any(dim=0)
    rows, columns = labelled.any(dim=1).nonzero()[:, 0], labelled.any(dim=0).nonzero()[:, 0]
    if len(rows) == 0:
        return None
    return Region(int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1)


def needed_regions(box: Region, strides: list[int], height: int, width: int) -> dict[int, Region]:
    """Give for each scale the region to paint, so that a box of the image comes out as if everything were painted.

    What a convolution gives at the rim of a region is wrong, because it sees zeros beyond it; the next one carries
    that one pixel further in. Each region is therefore larger than what the next scale takes from it, by one pixel
    for each 3x3 convolution at its scale. At the border of the slice the zeros are right, and the region ends there.

    Args:
        box: of the image.
        strides: label grid of each block in pixels, coarsest first.
        height: of the image in pixels.
        width: of the image in pixels.

    Returns:
        The region at each stride, in steps of the stride; at the coarsest the whole slice.
    """
    regions: dict[int, Region] = {}
    needed, margin = box, 1  # the last convolution
    for stride in sorted(set(strides)):
        margin += CONVOLUTIONS_A_BLOCK * strides.count(stride)
        regions[stride] = needed.grown(margin, height // stride, width // stride)
        needed, margin = regions[stride].halved(), 0
    coarsest = max(strides)
    regions[coarsest] = Region(0, height // coarsest, 0, width // coarsest)
    return regions


def _slices_at_once(x: Tensor) -> int:
    return max(1, PIXELS_AT_ONCE // (x.shape[-2] * x.shape[-1]))


def _weights(convolution: nn.Conv2d, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Give weight, laid out channels-last, and bias."""
    bias = convolution.bias
    weight = convolution.weight.detach().to(dtype, memory_format=torch.channels_last)
    return weight, None if bias is None else bias.detach().to(dtype)
