"""Spectral norm of the generator's convolutions, put on for training and folded into the weights afterwards."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import TypeVar

import torch
from torch import nn
from torch.nn.utils import skip_init
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


@torch.no_grad()
def plain_copy(generator: Network) -> Network:
    """Copy a generator with the present values of its spectrally normalised weights, which become plain ones.

    Unlike `fold_spectral_norm` on a copy, it leaves the original whole: PyTorch's parametrizations of a module and of
    its copy share a class, from which folding would take the weight.

    Returns:
        A network of its own, in eval mode.
    """
    was_training = generator.training
    plain = copy.deepcopy(generator.eval())
    generator.train(was_training)
    for part in list(plain.modules()):
        for name, child in list(part.named_children()):
            if is_parametrized(child, "weight"):
                setattr(part, name, _plain_convolution(child))
    return plain


def _plain_convolution(convolution: nn.Module) -> nn.Conv2d:
    assert isinstance(convolution, nn.Conv2d)
    plain = skip_init(
        nn.Conv2d,
        convolution.in_channels,
        convolution.out_channels,
        kernel_size=convolution.kernel_size,
        padding=convolution.padding,
        bias=convolution.bias is not None,
        device=convolution.weight.device,
    )
    plain.weight.copy_(convolution.weight)
    if convolution.bias is not None:
        plain.bias.copy_(convolution.bias)
    return plain.eval()
