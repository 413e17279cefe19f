"""The whole from its trained parts, and weights that must fit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from trispade.errors import InputError
from trispade.geometry import PLANES
from trispade.networks.spectral import add_spectral_norm, fold_spectral_norm
from trispade.networks.triplanar import SpadeGenerator, TriplanarSynthesizer


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
            add_spectral_norm(generator.blocks)
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
    check_weights(network, state, name)
    network.load_state_dict(state)


def check_weights(network: nn.Module, state: Mapping[str, Tensor], name: str) -> None:
    """Check that a state dict fits a network, which may be of the device ``meta``.

    Raises:
        InputError: that names the first weight that does not fit.
    """
    wanted = {key: value.shape for key, value in network.state_dict().items()}
    found = {key: value.shape for key, value in state.items() if isinstance(value, Tensor) and not value.is_complex()}
    misfits = [key for key in sorted({*wanted, *state}) if key not in wanted or wanted[key] != found.get(key)]
    if misfits:
        first = misfits[0]
        raise InputError.of(
            name,
            f"{first} of shape {_shape(wanted.get(first))}",
            f"{_shape(found.get(first))} ({len(misfits)} weights differ)",
            "Use the preset and the vocabulary that it was trained with.",
        )


def _take_up_style(synthesizer: TriplanarSynthesizer, state: Mapping[str, Tensor]) -> None:
    """Add the layers that a style code goes through where a state dict has them."""
    for plane, generator in synthesizer.generators.items():
        assert isinstance(generator, SpadeGenerator)
        weight = state.get(f"generators.{plane}.style.weight")
        if weight is not None and weight.ndim == 2:
            generator.style = nn.Linear(weight.shape[1], generator.head.out_channels)
            generator.style_dim = synthesizer.style_dim = weight.shape[1]


def _shape(shape: torch.Size | None) -> str:
    return "none" if shape is None else "x".join(map(str, shape)) or "()"
