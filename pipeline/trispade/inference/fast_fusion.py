"""The fusion net's fast path at inference: the same windows through fewer and better laid out operations.

- A window that holds background alone has one result; it is computed once.
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

from trispade.networks import FusionNet

Weights = tuple[Tensor, Tensor | None]


def fast_fusion(fusion: Callable[..., Tensor], amp: bool, outside: float) -> Callable[..., Tensor]:
    """Give the fast path of a trained fusion net where there is one, or the net itself.

    There is one on CPUs for a `FusionNet` in eval mode.

    Args:
        fusion: (N, C, X, Y, Z) windows to (N, 1, X, Y, Z).
        amp: compute in bfloat16.
        outside: see `FastFusion`.
    """
    if not isinstance(fusion, FusionNet) or fusion.training or fusion.exit.weight.device.type != "cpu":
        return fusion
    return FastFusion(fusion, torch.bfloat16 if amp else torch.float32, outside)


class FastFusion(nn.Module):
    """A trained fusion net, with the weights that it has now, for inference.

    Args:
        fusion: in eval mode.
        dtype: of feature maps; float32 or bfloat16.
        outside: intensity of the background; windows that hold nothing else are computed once.
    """

    def __init__(self, fusion: FusionNet, dtype: torch.dtype, outside: float) -> None:
        super().__init__()
        self.fusion = fusion
        self.dtype = dtype
        self.outside = outside
        self.entry = _pair(fusion.entry, dtype)
        self.down = [_pair(level, dtype) for level in fusion.down]
        self.up = [_up(level, dtype) for level in fusion.up]
        self.exit = (fusion.exit.weight.detach().flatten(1).float(), fusion.exit.bias)
        self._of_background: dict[torch.Size, Tensor] = {}

    @torch.no_grad()
    def forward(self, planes: Tensor) -> Tensor:
        """Merge windows; arguments and result are those of `FusionNet`, always float32."""
        with torch.autocast(planes.device.type, enabled=False):
            planes = planes.as_subclass(Tensor).float()
            busy = (planes != self.outside).flatten(1).any(dim=1)
            if busy.all():
                return self._merge(planes)
            merged = self._background(planes[:1].shape).repeat(len(planes), 1, 1, 1, 1)
            if busy.any():
                merged[busy] = self._merge(planes[busy])
            return merged

    def _background(self, shape: torch.Size) -> Tensor:
        if shape not in self._of_background:
            self._of_background[shape] = self._merge(torch.full(shape, self.outside))
        return self._of_background[shape]

    def _merge(self, planes: Tensor) -> Tensor:
        if len(planes) == 1 and self.dtype == torch.float32:
            # For one small window PyTorch takes its own convolution, ten times slower than oneDNN's for two.
            return self._merge(planes.expand(2, -1, -1, -1, -1))[:1]
        x = _convolve_pair(planes.to(self.dtype, memory_format=torch.channels_last_3d), *self.entry)
        skipped = [x]
        for pair in self.down:
            x = _convolve_pair(F.max_pool3d(x, 2), *pair)
            skipped.append(x)
        skipped.pop()
        for fine, coarse, last in self.up:
            x = F.relu_(_convolve_upsampled(x, skipped.pop(), fine, coarse))
            x = F.relu_(F.conv3d(x, *last, padding=1))
        merged = F.linear(x.movedim(1, -1).float(), *self.exit).movedim(-1, 1)
        return merged + planes.mean(dim=1, keepdim=True) if self.fusion.residual else merged


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
