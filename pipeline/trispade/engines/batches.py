"""How the engines take a batch apart: MONAI's ``prepare_batch`` functions and metric inputs."""

from __future__ import annotations

from typing import Any

import torch
from monai.inferers import SimpleInferer
from torch import Tensor, nn

from trispade.networks import fusion_input


def label_map_and_t1w(
    batch: dict[str, Any], device: torch.device, non_blocking: bool = False, **kwargs: Any
) -> tuple[Tensor, Tensor]:
    """Return ``label_map`` and ``t1w`` of a batch on the device: a generator's input and target."""
    return _to(batch["label_map"], device, non_blocking), _to(batch["t1w"], device, non_blocking)


def planes_and_t1w(
    batch: dict[str, Any], device: torch.device, non_blocking: bool = False, **kwargs: Any
) -> tuple[Tensor, Tensor]:
    """Return ``planes`` with ``label_map``, and ``t1w`` of a batch on the device: the fusion net's input and target."""
    planes, label_map, t1w = (_to(batch[key], device, non_blocking) for key in ("planes", "label_map", "t1w"))
    return fusion_input(planes, label_map), t1w


def _to(value: Tensor, device: torch.device, non_blocking: bool) -> Tensor:
    return value.to(device=device, non_blocking=non_blocking)


class AutocastInferer(SimpleInferer):
    """Runs a network under bfloat16 autocast, on CPU and CUDA alike, and returns float32.

    Args:
        amp: whether to autocast.
    """

    def __init__(self, amp: bool) -> None:
        super().__init__()
        self.amp = amp

    def __call__(self, inputs: Tensor, network: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        """Return ``network(inputs)``."""
        with torch.autocast(inputs.device.type, dtype=torch.bfloat16, enabled=self.amp):
            return network(inputs, *args, **kwargs).float()
