"""Label map to T1w in bounded memory: slices in batches, then patches.

On CPUs, networks in eval mode without spectral norm take the fast path of `trispade.inference.fast` and `fast_fusion`,
without gradients and without hooks; it gives the same image up to rounding.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from monai.inferers import Inferer, SlidingWindowInferer
from torch import Tensor, nn
from tqdm import tqdm

from trispade.distributed import is_first
from trispade.errors import InputError
from trispade.geometry import PLANES, Plane, slice_volume, stack_slices, with_neighbours
from trispade.inference.fast import fast_generator
from trispade.inference.fast_fusion import fast_fusion
from trispade.networks import fusion_input
from trispade.networks.style_encoder import style_from_seed

logger = logging.getLogger(__name__)

BACKGROUND = -1.0


class PlaneInferer(Inferer):
    """Paints a volume slice by slice with one generator.

    Args:
        plane: plane that the generator was trained in.
        batch_size: slices at a time; halved, for good, whenever the device has no room for so many.
        amp: autocast to bfloat16.
        on_progress: called with the number of slices that have just been dealt with.
        style: (1, style_dim) code of all slices; None is the mean style, or no style.
    """

    def __init__(
        self,
        plane: Plane,
        batch_size: int,
        amp: bool = False,
        on_progress: Callable[[int], object] | None = None,
        style: Tensor | None = None,
    ) -> None:
        self.plane = plane
        self.batch_size = batch_size
        self.amp = amp
        self.on_progress = on_progress
        self.style = style

    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Paint volumes.

        Args:
            inputs: label maps, (B, 1, X, Y, Z) class indices, RAS+, X, Y and Z multiples of 32.
            network: generator of (N, label_slices, H, W) slices to (N, 1, H, W); one that does not tell its
                ``label_slices`` sees each slice alone.
            args: none are used.
            kwargs: none are used.
            *args: not used.
            **kwargs: not used.

        Returns:
            (B, 1, X, Y, Z) float32 in [-1, 1], -1 where there is no label.

        Raises:
            InputError: if the device has no room for a single slice.
        """
        paint = fast_generator(network, self.amp, BACKGROUND)
        label_slices = getattr(network, "label_slices", 1)
        return torch.stack([self._paint(label_map, paint, label_slices) for label_map in inputs])

    def _paint(self, label_map: Tensor, paint: Callable[..., Tensor], label_slices: int) -> Tensor:
        slices = slice_volume(label_map, self.plane)
        seen = with_neighbours(slices, label_slices)
        painted = torch.full(slices.shape, BACKGROUND, device=slices.device)
        labelled = (slices > 0).flatten(1).any(dim=1).nonzero()[:, 0]
        done = 0
        while done < len(labelled):
            batch = labelled[done : done + self.batch_size]
            try:
                style = () if self.style is None else (self.style.to(slices.device).expand(len(batch), -1),)
                with autocast(slices.device, self.amp):
                    painted[batch] = paint(seen[batch], *style).float()
            except torch.OutOfMemoryError as error:
                self.batch_size = smaller_batch("slice_batch_size", len(batch), error)
                continue
            done += len(batch)
            self._report(len(batch))
        self._report(len(slices) - len(labelled))
        return stack_slices(painted.masked_fill_(slices == 0, BACKGROUND), self.plane)

    def _report(self, slices: int) -> None:
        if self.on_progress is not None:
            self.on_progress(slices)


class TriplanarInferer(Inferer):
    """Paints a volume in three planes and fuses the three.

    Args:
        slice_batch_size: slices at a time; halved, for good, whenever the device has no room for so many.
        fusion: how the fusion net is moved over the volume; its batches are halved likewise.
        amp: autocast to bfloat16.
        return_planes: return the three painted volumes before the fused one.
        progress: show a progress bar for each volume.
        style_seed: draws the style code that all slices, planes and volumes share, from N(0, 1), for a model that was
            trained with style; None is the code of zeros, the mean style.
        compile: compile the networks for which there is no fast path by `torch.compile`, in place, for many volumes on
            a GPU: the first takes minutes.
    """

    def __init__(
        self,
        slice_batch_size: int,
        fusion: SlidingWindowInferer,
        amp: bool = False,
        return_planes: bool = False,
        progress: bool = False,
        style_seed: int | None = None,
        compile: bool = False,
    ) -> None:
        self.slice_batch_size = slice_batch_size
        self.fusion = fusion
        self.amp = amp
        self.return_planes = return_planes
        self.progress = progress
        self.style_seed = style_seed
        self.compile = compile

    def __call__(self, inputs: Tensor, network: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Turn label maps into T1w volumes.

        Args:
            inputs: label maps, (B, 1, X, Y, Z) class indices, RAS+, X, Y and Z multiples of 32.
            network: `trispade.networks.TriplanarSynthesizer`.
            args: none are used.
            kwargs: none are used.
            *args: not used.
            **kwargs: not used.

        Returns:
            (B, 1, X, Y, Z) float32 in [-1, 1], -1 where there is no label; with ``return_planes`` (B, 4, X, Y, Z):
            axial, coronal, sagittal, fused.

        Raises:
            InputError: if there is a style seed and the model has no style, or if the device has no room for a single
                slice or patch.
        """
        style = self._style(network)
        if self.compile:
            self._compile(network)
        label_map = network.class_table[inputs.round().long()]
        with tqdm(
            total=sum(inputs.shape[2:]) * len(inputs),
            desc="paint",
            unit="slice",
            disable=not (self.progress and is_first()),
        ) as bar:
            planes = torch.cat(
                [self._paint(label_map, plane, network.generators[plane], bar, style) for plane in PLANES], dim=1
            )
            bar.set_description_str("fuse")
            fused = self.fuse(planes, label_map, network)
        return torch.cat([planes, fused], dim=1) if self.return_planes else fused

    def fuse(self, planes: Tensor, label_map: Tensor, network: Any) -> Tensor:
        """Fuse painted planes (B, 3, X, Y, Z), given known class indices (B, 1, X, Y, Z): (B, 1, X, Y, Z)."""
        merge = fast_fusion(network.fusion, self.amp, BACKGROUND)
        fused = self._slide(fusion_input(planes, label_map), merge)
        return fused.clamp(-1.0, 1.0).masked_fill(label_map == 0, BACKGROUND)

    def _paint(self, label_map: Tensor, plane: Plane, generator: Any, bar: tqdm, style: Tensor | None) -> Tensor:
        paint = PlaneInferer(plane, self.slice_batch_size, self.amp, bar.update, style)
        painted = paint(label_map, generator)
        self.slice_batch_size = paint.batch_size
        return painted

    def _slide(self, planes: Tensor, merge: Callable[..., Tensor]) -> Tensor:
        while True:
            try:
                with autocast(planes.device, self.amp):
                    return self.fusion(planes, merge).float()
            except torch.OutOfMemoryError as error:
                self.fusion.sw_batch_size = smaller_batch("sw_batch_size", self.fusion.sw_batch_size, error)

    def _compile(self, network: Any) -> None:
        paths = [(part, fast_generator(part, self.amp)) for part in network.generators.values()]
        part: nn.Module
        for part, path in [*paths, (network.fusion, fast_fusion(network.fusion, self.amp, BACKGROUND))]:
            # Once: that is where torch keeps what it has compiled.
            if path is part and part._compiled_call_impl is None:
                part.compile()

    def _style(self, network: Any) -> Tensor | None:
        if self.style_seed is None:
            return None
        if not network.style_dim:
            raise InputError.of("style_seed", "a model that was trained with style", "one without", "Set it to null.")
        return style_from_seed(network.style_dim, self.style_seed)


def smaller_batch(setting: str, size: int, error: torch.OutOfMemoryError) -> int:
    """Halve a batch that the device has no room for, and say so; what is painted does not depend on it.

    Raises:
        InputError: if it is of one item.
    """
    if size == 1:
        raise InputError.of(
            setting, "a device with room for a batch of 1", str(error)[:200], "Free its memory, or set device to cpu."
        ) from error
    torch.cuda.empty_cache()
    logger.warning("out of memory: %s is %d from here on, no longer %d", setting, size // 2, size)
    return size // 2


def autocast(device: torch.device, enabled: bool) -> AbstractContextManager[Any]:
    """Autocast to bfloat16 on a device, or do nothing."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)
