"""The style option of the GANs: a code for each volume, estimated from its real slices while the GANs are trained.

Three GANs that are trained apart would each learn an encoder, and so a code space, of its own, while one code must mean
one style in all planes. So the second and the third plane take over the first one's encoder and keep it as it is
(``style_encoder_file``). Park et al. train one GAN and meet no such question.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trispade.engines.checkpoints import load_checkpoint
from trispade.engines.records import WEIGHTS_FORM
from trispade.errors import InputError
from trispade.networks import StyleEncoder, load_weights

logger = logging.getLogger(__name__)


def make_style_encoder(
    style_dim: int, ndf: int, device: torch.device | str, encoder_file: str | Path | None = None
) -> StyleEncoder | None:
    """Make a style encoder to be trained, or take over that of another plane, frozen.

    Args:
        style_dim: length of the code; 0 for no style, which makes no encoder and draws no random number.
        ndf: width of its first convolution.
        device: where it goes.
        encoder_file: ``train_spade`` checkpoint of the plane whose encoder is taken over; None for a new one.

    Raises:
        InputError: if the checkpoint holds no style encoder of this size, or if there is one but no style.
    """
    if not style_dim:
        if encoder_file is not None:
            raise InputError.of("style_encoder_file", "a style_dim above 0 beside it", "0", "Set style_dim.")
        return None
    encoder = StyleEncoder(1, ndf, style_dim).to(device)
    if encoder_file is not None:
        checkpoint = load_checkpoint(encoder_file, {"objects": {"encoder?": WEIGHTS_FORM}, "record?": {str: object}})
        state = checkpoint["objects"].get("encoder")
        if state is None:
            raise InputError.of(
                encoder_file, "a checkpoint with a style encoder", "one without", "Train that plane with a style_dim."
            )
        load_weights(encoder, state, f"style encoder of {encoder_file}")
        encoder.requires_grad_(False)
        if not checkpoint.get("record", {}).get("finished"):
            logger.warning("%s: not trained to its end; what it learns from now on will not be shared", encoder_file)
    return encoder


def generator_architecture(
    ngf: int, hidden: int, max_channels: int | None, style_dim: int = 0, label_slices: int = 1
) -> dict[str, int | None]:
    """Collect what a checkpoint tells of its generator's size; of style and slices only where not as published."""
    style = {"style_dim": style_dim} if style_dim else {}
    slices = {"label_slices": label_slices} if label_slices != 1 else {}
    return {"ngf": ngf, "hidden": hidden, "max_channels": max_channels, **style, **slices}


def trainable_parameters(networks: Sequence[nn.Module | None]) -> list[nn.Parameter]:
    """List the parameters of networks that are not frozen, for one optimizer; networks that are None have none."""
    return [
        parameter
        for network in networks
        if network is not None
        for parameter in network.parameters()
        if parameter.requires_grad
    ]


def case_of_slices(case_ids: Sequence[str]) -> Tensor:
    """Number the cases of a batch: (B,) long, for each slice the number of its case."""
    cases = list(dict.fromkeys(case_ids))
    return torch.tensor([cases.index(case_id) for case_id in case_ids])


class WithDrawnStyles(nn.Module):
    """A generator whose slices each get a code from the prior, the same ones whenever it is called.

    The statistics of its norms are measured through it, so that they hold for all styles and not for the mean one
    alone. It draws from a random generator of its own. Without a style it is the generator.
    """

    def __init__(self, generator: Any) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, label_map: Tensor) -> Tensor:
        """Paint (B, label_slices, H, W) class indices."""
        if not self.generator.style_dim:
            return self.generator(label_map)
        shape = (len(label_map), self.generator.style_dim)
        styles = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        return self.generator(label_map, styles.to(label_map.device))
