"""A model's second fusion net over volumes that are painted already, for the evaluation to compare."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from trispade.engines import read_model_record
from trispade.inference.fusion_choice import choose_fusion
from trispade.inference.inferer import TriplanarInferer
from trispade.networks import TriplanarSynthesizer

REALISM = "realism"


def open_realism(
    network: TriplanarSynthesizer, model_file: str | Path, inferer: TriplanarInferer
) -> Callable[[Tensor, Tensor], Tensor] | None:
    """Open the fusion net ``realism`` of a loaded model; None if the model has none.

    Args:
        network: the loaded model; it stays as it is.
        model_file: where it was loaded from.
        inferer: moves the net over the volume.

    Returns:
        A function of painted planes (B, 3, X, Y, Z) in [-1, 1] and class indices (B, 1, X, Y, Z), which gives the fused
        volumes (B, 1, X, Y, Z).

    Raises:
        InputError: if the net's file is missing, torn or another one.
    """
    record = read_model_record(model_file)
    if REALISM not in record.get("fusions", {}):
        return None
    second = copy.deepcopy(network)
    choose_fusion(second, model_file, record, REALISM)
    device = next(second.parameters()).device

    @torch.inference_mode()
    def fuse(planes: Tensor, label_map: Tensor) -> Tensor:
        known = second.class_table[label_map.to(device).round().long()]
        return inferer.fuse(planes.to(device), known, second).cpu()

    return fuse
