"""Spectral norm of the generator's convolutions, put on for training and folded into the weights afterwards."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init
from torch.nn.utils.parametrizations import spectral_norm
from torch.nn.utils.parametrize import is_parametrized, remove_parametrizations

Network = TypeVar("Network", bound=nn.Module)

POWER_ITERATIONS = 30
"""Of a weight that is loaded. One follows in each step of the training."""


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


@torch.no_grad()
def with_spectral_norm(state: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Give weights into which spectral norm was folded the form of a network that normalises its weights.

    A folded weight has a spectral norm of 1: normalised once more it stays what it is, once the singular vectors that
    go with it are found.

    Args:
        state: weights by their plain names (``conv.weight``); what is not normalised, or not folded, is left as it is.
        network: of the same shapes; left as it is.

    Returns:
        A state dict with ``conv.parametrizations.weight.original`` and its singular vectors.
    """
    found = dict(state)
    for name, part in network.named_modules():
        weight = found.get(f"{name}.weight")
        if weight is None or not is_parametrized(part, "weight"):
            continue
        del found[f"{name}.weight"]
        convolution = skip_init(nn.Conv2d, weight.shape[1], weight.shape[0], kernel_size=tuple(weight.shape[2:]))
        convolution.weight.copy_(weight)
        spectral_norm(convolution, n_power_iterations=POWER_ITERATIONS).train()
        _ = convolution.weight  # asked for in training mode, it improves the singular vectors
        parametrized = convolution.parametrizations.state_dict(prefix=f"{name}.parametrizations.")
        found.update(parametrized)
    return found


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
