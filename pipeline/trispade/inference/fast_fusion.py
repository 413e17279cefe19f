"""The fusion net's fast path at inference: the same windows through fewer and better laid out operations.

- A window that holds background alone has one result; it is computed once.
- Within a window, what follows the coarsest level is computed in the box of the painted voxels and a margin of one
  voxel for each 3x3x3 convolution that follows at that level; beyond the box there is background anyway.
- A convolution of a nearest-upsampled map and a skipped one is the sum of two: at the fine grid over the skipped map,
  and at the coarse grid, with 2x2x2 kernels for each of the eight positions within a coarse voxel, over the other.
- Feature maps are laid out channels-last, in bfloat16 if asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trispade.inference.fast import fast_dtype
from trispade.networks import FusionNet

Weights = tuple[Tensor, Tensor | None]
Extent = tuple[int, int]
"""First voxel and the one behind the last, along one axis."""

CONVOLUTIONS_A_LEVEL = 2  # of 3x3x3, one behind the other


def fast_fusion(fusion: Callable[..., Tensor], amp: bool, outside: float) -> Callable[..., Tensor]:
    """Give the fast path of a trained fusion net where there is one, or the net itself.

    There is one on CPUs for a `FusionNet` in eval mode whose parameters need no gradients.

    Args:
        fusion: (N, C, X, Y, Z) windows to (N, 1, X, Y, Z).
        amp: compute in bfloat16, where the processor does.
        outside: see `FastFusion`.
    """
    if not isinstance(fusion, FusionNet) or fusion.training or fusion.exit.weight.device.type != "cpu":
        return fusion
    if torch.is_grad_enabled() and any(parameter.requires_grad for parameter in fusion.parameters()):
        return fusion
    return FastFusion(fusion, fast_dtype(amp), outside)


class FastFusion(nn.Module):
    """A trained fusion net, with the weights that it has now, for inference.

    Args:
        fusion: in eval mode.
        dtype: of feature maps; float32 or bfloat16.
        outside: intensity of the background. Windows that hold nothing else are computed once.
        crop: give ``outside`` to voxels beyond the box of those that are something else in any plane, instead of
            computing them. By default in bfloat16 only: one window at a time is slow in float32.
    """

    def __init__(self, fusion: FusionNet, dtype: torch.dtype, outside: float, crop: bool | None = None) -> None:
        super().__init__()
        self.fusion = fusion
        self.dtype = dtype
        self.outside = outside
        self.crop = dtype == torch.bfloat16 if crop is None else crop
        self.entry = _pair(fusion.entry, dtype)
        self.down = [_pair(level, dtype) for level in fusion.down]
        self.up = [_up(level, dtype) for level in fusion.up]
        bias = fusion.exit.bias
        assert bias is not None
        self.exit = (fusion.exit.weight.detach().flatten(1).float(), bias.detach().float())
        self._of_background: dict[torch.Size, Tensor] = {}

    @torch.no_grad()
    def forward(self, planes: Tensor) -> Tensor:
        """Merge windows; arguments and result are those of `FusionNet`, always float32."""
        with torch.autocast(planes.device.type, enabled=False):
            planes = planes.as_subclass(Tensor).float()
            busy = self._painted(planes).flatten(1).any(dim=1)
            if busy.all():
                return self._merge(planes)
            merged = self._of_nothing(planes[:1]).repeat(len(planes), 1, 1, 1, 1)
            if busy.any():
                merged[busy] = self._merge(planes[busy])
            return merged

    def _painted(self, planes: Tensor) -> Tensor:
        """Tell for each value whether it is not that of the background: an intensity, or the index of a class."""
        volumes = self.fusion.in_channels
        return torch.cat([planes[:, :volumes] != self.outside, planes[:, volumes:] != 0], dim=1)

    def _of_nothing(self, window: Tensor) -> Tensor:
        """Merge a window of background alone, of the size of the given one; computed once for each size."""
        if window.shape not in self._of_background:
            empty = torch.zeros_like(window)
            empty[:, : self.fusion.in_channels] = self.outside
            self._of_background[window.shape] = self._merge(empty)
        return self._of_background[window.shape]

    def _merge(self, planes: Tensor) -> Tensor:
        if len(planes) == 1 and self.dtype == torch.float32:
            # For one small window PyTorch takes its own convolution, ten times slower than oneDNN's for two.
            return self._merge(planes.expand(2, -1, -1, -1, -1))[:1]
        x = self.fusion.join_labels(planes).to(self.dtype, memory_format=torch.channels_last_3d)
        x = _convolve_pair(x, *self.entry)
        skipped = [x]
        for pair in self.down:
            x = _convolve_pair(F.max_pool3d(x, 2), *pair)
            skipped.append(x)
        mean = planes[:, : self.fusion.in_channels].mean(dim=1, keepdim=True)
        if not self.crop:
            whole = [(0, size) for size in planes.shape[2:]]
            return self._ascend(skipped, mean, whole)
        merged = mean.new_full((len(mean), len(self.exit[0]), *mean.shape[2:]), self.outside)
        for index, window in enumerate(self._painted(planes)):
            one = slice(index, index + 1)
            if window.any():
                box = painted_box(window.any(dim=0))
                _part(merged[one], box).copy_(self._ascend([level[one] for level in skipped], mean[one], box))
        return merged

    def _ascend(self, skipped: list[Tensor], mean: Tensor, box: list[Extent]) -> Tensor:
        """Go the way up from the features of each level, finest first, for a box of the window."""
        regions = needed_regions(box, [list(level.shape[2:]) for level in skipped])
        x = skipped[-1]
        for (fine, coarse, last), index in zip(self.up, reversed(range(len(self.up))), strict=True):
            region = regions[index]
            x = _part(x, _within(_halved(region), regions[index + 1]))
            x = F.relu_(_convolve_upsampled(x, _part(skipped[index], region), fine, coarse))
            x = F.relu_(F.conv3d(x, *last, padding=1))
        x = _part(x, _within(box, regions[0]))
        merged = F.linear(x.movedim(1, -1).float(), *self.exit).movedim(-1, 1)
        return merged + _part(mean, box) if self.fusion.residual else merged


def painted_box(painted: Tensor) -> list[Extent]:
    """Give the smallest box that holds every true voxel of (X, Y, Z), one extent an axis; there must be one."""
    extents = []
    for axis in range(3):
        along = painted.movedim(axis, 0).flatten(1).any(dim=1).nonzero()[:, 0]
        extents.append((int(along[0]), int(along[-1]) + 1))
    return extents


def needed_regions(box: list[Extent], sizes: list[list[int]]) -> list[list[Extent]]:
    """Give for each level, finest first, the region to compute, so that a box comes out as if everything were.

    What a convolution gives at the rim of a region is wrong, because it sees zeros beyond it, unless the window ends
    there. Each region is therefore larger than what is taken from it, by one voxel for each 3x3x3 convolution.

    Args:
        box: wanted of the finest level, one extent an axis.
        sizes: of each level, finest first, each half of the one before.

    Returns:
        An extent an axis for each level, in its own voxels; the coarsest is whole. The others begin and end at quarters
        of the window where these are even: each new shape costs the time and memory of preparing its convolutions.
    """
    regions, wanted = [], box
    for size in sizes[:-1]:
        region = [_grown(*extent, length) for extent, length in zip(wanted, size, strict=True)]
        regions.append(region)
        wanted = _halved(region)
    return [*regions, [(0, length) for length in sizes[-1]]]


def _grown(first: int, end: int, length: int) -> Extent:
    step = max(length // 8 * 2, 2)
    low, high = first - CONVOLUTIONS_A_LEVEL, end + CONVOLUTIONS_A_LEVEL
    return max(low // step * step, 0), min(-(-high // step) * step, length)


def _halved(region: list[Extent]) -> list[Extent]:
    return [(first // 2, end // 2) for first, end in region]


def _within(region: list[Extent], outer: list[Extent]) -> list[Extent]:
    """Give where a region lies in an array that holds only ``outer``."""
    return [(first - start, end - start) for (first, end), (start, _) in zip(region, outer, strict=True)]


def _part(x: Tensor, region: list[Extent]) -> Tensor:
    (top, bottom), (left, right), (front, back) = region
    return x[:, :, top:bottom, left:right, front:back]


def _convolve_pair(x: Tensor, first: Weights, second: Weights) -> Tensor:
    x = F.relu_(F.conv3d(x, *first, padding=1))
    return F.relu_(F.conv3d(x, *second, padding=1))


def _convolve_upsampled(x: Tensor, skipped: Tensor, fine: Weights, coarse: Tensor) -> Tensor:
    """Convolve the concatenation of the upsampled ``x`` and ``skipped``, whose grid is twice as fine."""
    y = F.conv3d(skipped, *fine, padding=1)
    # Entry b along an axis saw coarse voxels b - 1 and b: it serves the second half of the one, the first of the other.
    parts = F.conv3d(x, coarse, padding=1).split(y.shape[1], dim=1)
    for part, (i, j, k) in zip(parts, product((0, 1), repeat=3), strict=True):
        depth, height, width = x.shape[2:]
        y[:, :, i::2, j::2, k::2] += part[:, :, i : i + depth, j : j + height, k : k + width]
    return y


def _pair(pair: nn.Module, dtype: torch.dtype) -> tuple[Weights, Weights]:
    first, second = (_converted(weight, bias, dtype) for weight, bias in _folded(pair))
    return first, second


def _up(pair: nn.Module, dtype: torch.dtype) -> tuple[Weights, Tensor, Weights]:
    """Split the first convolution of a level on the way up, whose skipped channels come last."""
    (weight, bias), last = _folded(pair)
    skipped = weight.shape[0]
    upsampled = weight.shape[1] - skipped
    coarse = torch.cat([_coarse_kernel(weight[:, :upsampled], half) for half in product((0, 1), repeat=3)])
    return (
        _converted(weight[:, upsampled:], bias, dtype),
        _converted(coarse, None, dtype)[0],
        _converted(*last, dtype),
    )


def _coarse_kernel(weight: Tensor, halves: tuple[int, ...]) -> Tensor:
    """Sum those taps of a 3x3x3 kernel that meet the same coarse voxel, for one half of the voxel along each axis."""
    for axis, half in enumerate(halves, start=2):
        low, middle, high = weight.unbind(axis)
        weight = torch.stack([low + middle, high] if half else [low, middle + high], dim=axis)
    return weight


def _folded(pair: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Weight and bias of a pair's convolutions, with the norm behind each, if any, folded in."""
    folded: list[tuple[Tensor, Tensor]] = []
    for part in pair.children():
        if isinstance(part, nn.Conv3d):
            assert part.bias is not None
            folded.append((part.weight.detach().double(), part.bias.detach().double()))
        elif isinstance(part, nn.BatchNorm3d):
            assert part.running_mean is not None
            assert part.running_var is not None
            weight, bias = folded.pop()
            scale = part.weight.detach().double() * (part.running_var.double() + part.eps).rsqrt()
            shift = part.bias.detach().double() - part.running_mean.double() * scale
            folded.append((weight * scale[:, None, None, None, None], bias * scale + shift))
    return folded


def _converted(weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Weights:
    weight = weight.to(dtype).contiguous(memory_format=torch.channels_last_3d)
    return weight, None if bias is None else bias.to(dtype)
