"""Recompute the statistics that the generator's norms use in eval mode."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle

from trispade.errors import InputError


class PooledMoments:
    """Mean and variance of a norm's input over all positions of all batches, what lies between batches included."""

    def __init__(self, norm: nn.Module) -> None:
        self.norm = norm
        self.count = 0
        self.total: Tensor | float = 0.0
        self.total_of_squares: Tensor | float = 0.0

    def watch(self) -> RemovableHandle:
        """Add up every input of the norm from now on."""
        return self.norm.register_forward_pre_hook(self._add)

    def store(self) -> None:
        """Write the pooled mean and variance into the norm's running statistics."""
        assert isinstance(self.norm, _BatchNorm)
        assert isinstance(self.norm.running_mean, Tensor)
        assert isinstance(self.norm.running_var, Tensor)
        mean = torch.as_tensor(self.total / self.count)
        self.norm.running_mean.copy_(mean)
        self.norm.running_var.copy_((self.total_of_squares / self.count - mean**2).clamp(min=0))

    def _add(self, _: nn.Module, inputs: tuple[Tensor]) -> None:
        # Squares cancel against the mean in `store`, which single precision would not survive.
        x = inputs[0].double()
        self.count += x.numel() // x.shape[1]
        self.total = self.total + x.sum(dim=(0, 2, 3))
        self.total_of_squares = self.total_of_squares + x.square().sum(dim=(0, 2, 3))


@torch.no_grad()
def recalibrate_norms(generator: nn.Module, label_batches: Iterable[Tensor]) -> None:
    """Set the norms' running statistics to those of the present weights, so that eval mode agrees with train mode.

    The moving average that training leaves behind mixes the statistics of older weights, averages variances within
    batches and so misses the variance between them. Here every batch is painted once as in train mode and the moments
    are pooled exactly. Nothing but the running statistics changes; the spectral norm's power iteration stands still.

    Args:
        generator: network with `ParameterFreeNorm` (or its synchronised form); left in the mode it came in.
        label_batches: (B, label_slices, H, W) class indices, mixed as in training: a batch of neighbouring slices has
            statistics of its own, which eval mode cannot reproduce.

    Raises:
        InputError: if there is no batch.
    """
    was_training = generator.training
    norms = [part for part in generator.modules() if isinstance(part, _BatchNorm)]
    moments = [PooledMoments(norm) for norm in norms]
    hooks = [pooled.watch() for pooled in moments]
    generator.eval()
    for norm in norms:
        norm.train()
    try:
        for label_map in label_batches:
            generator(label_map)
    finally:
        for hook in hooks:
            hook.remove()
        generator.train(was_training)
    if any(pooled.count == 0 for pooled in moments):
        raise InputError.of("recalibration", "at least one batch of label maps", "none", "Give it training slices.")
    for pooled in moments:
        pooled.store()
