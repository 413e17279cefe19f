"""Gamma and beta of SPADE from tables: each distinct neighbourhood of labels is computed once for a batch of slices.

Gamma and beta depend on the labels alone, through 5x5 neighbourhoods of the label map at their scale, and a batch of
neighbouring slices holds few distinct ones: on a brain label map one in six positions at full size. Numbering them is
exact, at the borders of the slice too, so that nothing is approximated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trispade.networks.triplanar import Spade

TAPS = 9  # positions of a 3x3 kernel
CENTRE = 4  # the one in its middle
LARGEST_KEY = 2**62
COLUMNS_AT_ONCE = 256  # bounds the memory that one table takes while it is made


class Region(NamedTuple):
    """Rows ``top`` to ``bottom`` and columns ``left`` to ``right`` of a slice, the last ones excluded."""

    top: int
    bottom: int
    left: int
    right: int

    def grown(self, margin: int, height: int, width: int) -> Region:
        """Add a margin on all sides, round outwards to even numbers, and cut it off at the slice's borders."""
        return Region(
            max((self.top - margin) // 2 * 2, 0),
            min((self.bottom + margin + 1) // 2 * 2, height),
            max((self.left - margin) // 2 * 2, 0),
            min((self.right + margin + 1) // 2 * 2, width),
        )

    def halved(self) -> Region:
        """Give the same region at half the size; its numbers must be even."""
        return Region(*(number // 2 for number in self))

    def within(self, outer: Region) -> tuple[slice, slice]:
        """Give the rows and columns of this region in an array that holds only ``outer``."""
        return (
            slice(self.top - outer.top, self.bottom - outer.top),
            slice(self.left - outer.left, self.right - outer.left),
        )


class Neighbourhoods(NamedTuple):
    """The distinct neighbourhoods of labels in a region of a batch of slices.

    Attributes:
        columns: (K, label_slices) what lies one above the other in the label slices that the generator sees, each that
            occurs; class indices, ``num_classes`` where the label is outside the vocabulary.
        cells: (M, 9) which column lies in each cell of the distinct 3x3 neighbourhoods, row by row; K outside the
            slice.
        members: (L, 9) which 3x3 neighbourhood lies around each cell of the middle 3x3 of the distinct 5x5
            neighbourhoods; M for a cell outside the slice.
        kind: (N, height, width) which 5x5 neighbourhood each position of the region has.
    """

    columns: Tensor
    cells: Tensor
    members: Tensor
    kind: Tensor


def find_columns(label_map: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Number the columns of label slices that lie one above the other.

    Args:
        label_map: (N, label_slices, H, W) class indices of any integer or floating type.
        num_classes: stands for what is no index of the vocabulary.

    Returns:
        (N, H, W) long, the number of each position's column, and (K, label_slices) the classes of each column. Of a
        single slice the numbers are the classes themselves.
    """
    codes = label_map.long()
    known = (codes >= 0) & (codes < num_classes) & (codes == label_map)
    codes = torch.where(known, codes, num_classes)
    if codes.shape[1] == 1:
        return codes[:, 0], torch.arange(num_classes + 1, device=codes.device)[:, None]
    keys = _Keys(codes[:, 0], num_classes + 1)
    for each in codes[:, 1:].unbind(1):
        keys = _Keys(keys.values * (num_classes + 1) + each, keys.size * (num_classes + 1)).numbered()[0]
    _, where = keys.numbered()
    return keys.values, codes.movedim(1, -1).reshape(-1, codes.shape[1])[where]


def find_neighbourhoods(numbers: Tensor, columns: Tensor, region: Region) -> Neighbourhoods:
    """Number the distinct 3x3 and 5x5 neighbourhoods around the positions of a region.

    Args:
        numbers: (N, H, W) long, of the columns that `find_columns` gives, at the scale of the region.
        columns: (K, label_slices), what it gives, too.
        region: of which positions.
    """
    outside = len(columns)
    padded = F.pad(numbers, (2, 2, 2, 2), value=outside)
    padded = padded[:, region.top : region.bottom + 4, region.left : region.right + 4]
    triples = _Keys(padded, outside + 1).joined((0, 0), (0, 1), (0, 2))
    small, where = triples.joined((0, 0), (1, 0), (2, 0)).numbered()
    cells = _around(padded, where, small.values.shape)
    # The four 3x3 neighbourhoods at the corners of the middle 3x3 cover all 25 cells.
    large, where = small.joined((0, 0), (0, 2)).joined((0, 0), (2, 0)).numbered()
    members = _around(small.values, where, large.values.shape)
    # What lies outside the slice has no hidden features at all, whatever the labels around it.
    members = torch.where((cells[:, CENTRE] == outside)[members], len(cells), members)
    return Neighbourhoods(columns, cells, members, large.values)


class SpadeTables:
    """Turns neighbourhoods into the scale and the shift that some SPADE layers apply at one scale.

    With running statistics, normalising and modulating is one affine map a pixel,
    ``x * (1 + gamma) / sigma + beta - mean * (1 + gamma) / sigma``; the statistics are folded into the weights.

    Args:
        spades: layers in eval mode that see the same label map.
        num_classes: of each label slice that they see.
        dtype: of the tables.
    """

    def __init__(self, spades: Sequence[Spade], num_classes: int, dtype: torch.dtype) -> None:
        self.embedding = torch.cat([_embedding(spade.shared, num_classes) for spade in spades], dim=-1)
        self.bias = torch.cat([_bias(spade.shared) for spade in spades])
        self.hidden = [spade.shared.out_channels for spade in spades]
        self.layers = [_folded(spade, dtype) for spade in spades]
        self.dtype = dtype

    def make(self, found: Neighbourhoods) -> list[Tensor]:
        """Give for each layer (L, 2 channels): the scales of each distinct 5x5 neighbourhood, then its shifts."""
        embedding = self._of_columns(found.columns)
        num_codes = len(embedding) // TAPS
        taps = torch.arange(TAPS, device=found.cells.device)
        anatomy = F.relu(F.embedding_bag(taps * num_codes + found.cells, embedding, mode="sum") + self.bias)
        rows = found.members * TAPS + taps
        return [
            torch.cat([_sum_of_taps(hidden.contiguous(), *part, rows) for part in parts], dim=1)
            for hidden, parts in zip(anatomy.to(self.dtype).split(self.hidden, dim=1), self.layers, strict=True)
        ]

    def _of_columns(self, columns: Tensor) -> Tensor:
        """Give (9 (K + 1), hidden): what each column adds at each tap; the last of each, outside the slice, nothing."""
        rows = torch.stack([self.embedding[:, place, classes] for place, classes in enumerate(columns.unbind(1))])
        return F.pad(rows.sum(dim=0), (0, 0, 0, 1)).flatten(0, 1)


def modulate(x: Tensor, table: Tensor, kind: Tensor, slope: float) -> Tensor:
    """Apply SPADE and LeakyReLU from a table.

    Args:
        x: (N, C, h, w), laid out channels-last.
        table: (L, 2 C) scales and shifts.
        kind: (N, h, w) row of the table for each position.
        slope: of the LeakyReLU.

    Returns:
        (N, C, h, w), laid out channels-last.
    """
    channels = x.shape[1]
    rows = x.permute(0, 2, 3, 1).reshape(-1, channels)
    affine = table.index_select(0, kind.flatten())
    y = torch.addcmul(affine[:, channels:], rows, affine[:, :channels])
    return F.leaky_relu_(y, slope).view(*kind.shape, channels).permute(0, 3, 1, 2)


class _Keys(NamedTuple):
    """One whole number a position, below ``size``; two positions have the same if and only if they look the same."""

    values: Tensor
    size: int

    def joined(self, *offsets: tuple[int, int]) -> _Keys:
        """Give each position one key for what lies at some offsets (rows down, columns right) of it."""
        keys = self if self.size ** len(offsets) <= LARGEST_KEY else self.numbered()[0]
        size = keys.size ** len(offsets)
        assert size <= LARGEST_KEY, "more than a million distinct keys"
        height = keys.values.shape[1] - max(row for row, _ in offsets)
        width = keys.values.shape[2] - max(column for _, column in offsets)
        key = torch.zeros((), dtype=torch.long, device=keys.values.device)
        for row, column in offsets:
            key = key * keys.size + keys.values[:, row : row + height, column : column + width]
        return _Keys(key, size)

    def numbered(self) -> tuple[_Keys, Tensor]:
        """Replace the keys by consecutive ones; also give, for each, a position (in the flattened map) that has it."""
        distinct, values = torch.unique(self.values, return_inverse=True)
        where = torch.empty(len(distinct), dtype=torch.long, device=values.device)
        where[values.flatten()] = torch.arange(values.numel(), device=values.device)
        return _Keys(values, len(distinct)), where


def _around(values: Tensor, where: Tensor, shape: torch.Size) -> Tensor:
    """Give (len(where), 9): the 3x3 values around positions of a map of ``shape`` that lacks a margin of 1."""
    batch, rest = where // (shape[1] * shape[2]), where % (shape[1] * shape[2])
    row, column = rest // shape[2], rest % shape[2]
    return torch.stack([values[batch, row + tap // 3, column + tap % 3] for tap in range(TAPS)], dim=1)


def _embedding(convolution: nn.Conv2d, num_classes: int) -> Tensor:
    """Rows of a convolution over one-hot labels, (9, label_slices, num_classes + 1, hidden); zeros for no class."""
    rows = convolution.weight.detach().permute(2, 3, 1, 0).flatten(0, 1)
    return F.pad(rows.unflatten(1, (-1, num_classes)), (0, 0, 0, 1)).float()


def _bias(convolution: nn.Conv2d) -> Tensor:
    assert convolution.bias is not None
    return convolution.bias.detach().float()


def _folded(spade: Spade, dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
    """Weights (hidden, 9 columns) and bias (9 columns) of scale and shift, in parts of the columns.

    The bias stands at the middle tap, which is never outside the slice.
    """
    mean, variance = spade.norm.running_mean, spade.norm.running_var
    assert mean is not None
    assert variance is not None
    inverse = (variance.double() + spade.norm.eps).rsqrt()
    mean = mean.double()
    gamma, beta = (layer.weight.detach().double().permute(1, 2, 3, 0) for layer in (spade.gamma, spade.beta))
    scale, scale_bias = gamma * inverse, (1 + _bias(spade.gamma).double()) * inverse
    weight = torch.cat([scale, beta - mean * scale], dim=-1).flatten(1, 2)
    middle = torch.cat([scale_bias, _bias(spade.beta).double() - mean * scale_bias])
    bias = torch.zeros(weight.shape[1:], dtype=torch.double, device=weight.device)
    bias[CENTRE] = middle
    return [
        (columns.flatten(1).to(dtype).contiguous(), part.flatten().to(dtype))
        for columns, part in zip(weight.split(COLUMNS_AT_ONCE, dim=2), bias.split(COLUMNS_AT_ONCE, dim=1), strict=True)
    ]


def _sum_of_taps(hidden: Tensor, weight: Tensor, bias: Tensor, rows: Tensor) -> Tensor:
    """Convolve hidden features (M, hidden) by way of a sum of nine rows for each 5x5 neighbourhood."""
    by_tap = torch.addmm(bias, hidden, weight)
    # One more for what lies outside the slice: it adds nothing.
    by_tap = F.pad(by_tap, (0, 0, 0, 1)).view(-1, weight.shape[1] // TAPS)
    return F.embedding_bag(rows, by_tap, mode="sum")
