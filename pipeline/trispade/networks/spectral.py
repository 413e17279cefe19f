"""Spectral norm of the generator's convolutions, put on for training and folded into the weights afterwards."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from torch import nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.nn.utils.parametrize import is_parametrized, remove_parametrizations

Network = TypeVar("Network", bound=nn.Module)


def add_spectral_norm(blocks: Iterable[nn.Module]) -> None:
    """Normalise the convolutions of a generator's residual blocks spectrally, in place.

    Source:
        Park et al., section 4; Miyato et al., Spectral Normalization for GANs, ICLR 2018. SPADE's own convolutions,
        the first and the last one stay plain.
    """
    for block in blocks:
        for name in ("conv_0", "conv_1", "conv_shortcut"):
            convolution = getattr(block, name)
            if convolution is not None:
                spectral_norm(convolution)


def fold_spectral_norm(module: Network) -> Network:
    """Replace every spectrally normalised weight by its present value, in place.

    The module afterwards computes what it computed in eval mode, its state dict names plain weights (``conv.weight``),
    and it can be scripted. It can no longer be trained on as before: keep the unfolded checkpoint for that.

    Returns:
        The same module, in eval mode.
    """
    module.eval()
    for part in module.modules():
        if is_parametrized(part, "weight"):
            remove_parametrizations(part, "weight", leave_parametrized=True)
    return module
