"""The whole synthesis as one module: three generators paint a volume in their planes, a 3D CNN fuses the three."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trispade.errors import InputError
from trispade.geometry import PLANES
from trispade.networks.generator import SpadeGenerator, add_spectral_norm, fold_spectral_norm


class ConvolutionPair(nn.Sequential):
    """Two 3x3x3 convolutions, each with an optional batch norm and a ReLU."""

    def __init__(self, in_channels: int, out_channels: int, norm: str) -> None:
        first = _convolution(in_channels, out_channels, norm)
        super().__init__(*first, *_convolution(out_channels, out_channels, norm))


class FusionNet(nn.Module):
    """3D U-Net-style CNN that merges the three planes' volumes.

    Max pooling on the way down, nearest upsampling and concatenation on the way up, a 1x1x1 convolution at the end
    without an activation.

    Args:
        in_channels: number of volumes to merge.
        out_channels: channels of the result.
        channels: width of each level, finest first.
        norm: "batch" (running statistics in eval mode) or "none"; nothing is computed over the patch at inference.
        residual: add the result to the mean of the inputs. The last convolution then starts at zero, so that an
            untrained net is the mean of the planes.

    Raises:
        InputError: if the norm is another one.

    Source:
        Ayaz et al., figure 2, which gives patches of 32^3 and three channels in; depth, width and norm are ours.
    """

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 1,
        channels: Iterable[int] = (16, 32, 64),
        norm: str = "none",
        residual: bool = False,
    ) -> None:
        super().__init__()
        widths = tuple(channels)
        self.residual = residual
        self.multiple = 2 ** (len(widths) - 1)
        self.entry = ConvolutionPair(in_channels, widths[0], norm)
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

        Intensities in are in [-1, 1]; those out are not bounded, so that overlapping patches average without bias.
        """
        x = self.entry(planes)
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
            x = x + planes.mean(dim=1, keepdim=True)
        return x


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
        style_dim: length of the style code; None for no style.
        slices_per_step: number of slices that a generator paints at once; bounds the memory, not the result.
        class_table: for each class index, the index of the class that had training data and stands in for it
            (`Vocabulary.fallback_table`); None when all had. It is part of the state dict.
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
        style_dim: int | None = None,
        slices_per_step: int = 8,
        class_table: Iterable[int] | None = None,
    ) -> None:
        super().__init__()
        self.style_dim = style_dim or 0
        self.slices_per_step = slices_per_step
        self.generators = nn.ModuleDict(
            {plane: SpadeGenerator(num_classes, 1, ngf, hidden, max_channels, style_dim, False) for plane in PLANES}
        )
        self.fusion = FusionNet(len(PLANES), 1, fusion_channels, fusion_norm, residual)
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
        return self.finish(self.fusion(self.paint_planes(label_map, style)), label_map)

    @torch.jit.export
    def paint_planes(self, label_map: Tensor, style: Tensor | None = None) -> Tensor:
        """Paint the volumes in each plane: (B, 3, X, Y, Z), planes in the order of `PLANES`, the fusion net's input."""
        return torch.cat([self.paint(label_map, plane, style) for plane in ("axial", "coronal", "sagittal")], dim=1)

    @torch.jit.export
    def paint(self, label_map: Tensor, plane: str, style: Tensor | None = None) -> Tensor:
        """Paint the volumes slice by slice in one plane: (B, 1, X, Y, Z) in [-1, 1], -1 in the background."""
        axis = {"axial": 4, "coronal": 3, "sagittal": 2}[plane]
        num_slices = label_map.shape[axis]
        slices = self.known_labels(label_map).movedim(axis, 1).flatten(0, 1)
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


def assemble(
    generators: Mapping[str, Mapping[str, Tensor]],
    fusion: Mapping[str, Tensor],
    class_table: Iterable[int],
    **architecture: Any,
) -> TriplanarSynthesizer:
    """Build the whole from the state dicts of its trained parts.

    Args:
        generators: for each plane, the state dict of its generator, with spectral norm as trained or already folded.
        fusion: state dict of the fusion net.
        class_table: see `TriplanarSynthesizer`.
        **architecture: the other arguments of `TriplanarSynthesizer`.

    Returns:
        The synthesizer in eval mode.

    Raises:
        InputError: if a plane is missing or weights do not fit the architecture.
    """
    missing = [plane for plane in PLANES if plane not in generators]
    if missing:
        raise InputError.of("synthesizer", "a generator for each plane", f"none for {', '.join(missing)}", "Train it.")
    synthesizer = TriplanarSynthesizer(**architecture, class_table=class_table)
    for plane, generator in synthesizer.generators.items():
        assert isinstance(generator, SpadeGenerator)
        if any("parametrizations" in name for name in generators[plane]):
            add_spectral_norm(generator)
        load_weights(generator, generators[plane], f"generator of the {plane} plane")
        fold_spectral_norm(generator)
    load_weights(synthesizer.fusion, fusion, "fusion net")
    return synthesizer.eval()


def load_weights(network: nn.Module, state: Mapping[str, Tensor], name: str) -> None:
    """Load a state dict that must fit exactly; only a style is the model's own matter, and is taken up if it has one.

    Raises:
        InputError: that names the first weight that does not fit.
    """
    if isinstance(network, TriplanarSynthesizer) and not network.style_dim:
        _take_up_style(network, state)
    wanted = {key: value.shape for key, value in network.state_dict().items()}
    found = {key: getattr(value, "shape", None) for key, value in state.items()}
    misfits = [key for key in sorted(wanted | found) if wanted.get(key) != found.get(key)]
    if misfits:
        first = misfits[0]
        raise InputError.of(
            name,
            f"{first} of shape {_shape(wanted.get(first))}",
            f"{_shape(found.get(first))} ({len(misfits)} weights differ)",
            "Use the preset and the vocabulary that it was trained with.",
        )
    network.load_state_dict(state)


def _take_up_style(synthesizer: TriplanarSynthesizer, state: Mapping[str, Tensor]) -> None:
    """Add the layers that a style code goes through where a state dict has them."""
    for plane, generator in synthesizer.generators.items():
        assert isinstance(generator, SpadeGenerator)
        weight = state.get(f"generators.{plane}.style.weight")
        if weight is not None:
            generator.style = nn.Linear(weight.shape[1], generator.head.out_channels)
            generator.style_dim = synthesizer.style_dim = weight.shape[1]


def _shape(shape: torch.Size | None) -> str:
    return "none" if shape is None else "x".join(map(str, shape)) or "()"


def _convolution(in_channels: int, out_channels: int, norm: str) -> list[nn.Module]:
    convolution = nn.Conv3d(in_channels, out_channels, 3, padding=1)
    nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
    norms: dict[str, list[nn.Module]] = {"none": [], "batch": [nn.BatchNorm3d(out_channels)]}
    if norm not in norms:
        raise InputError.of("fusion net", "norm none or batch", norm, "Others would use statistics of the patch.")
    return [convolution, *norms[norm], nn.ReLU()]
