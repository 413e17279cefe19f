"""What the tests of the engines share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trispade.engines import SpadeTrainer
from trispade.engines.style import make_style_encoder, trainable_parameters
from trispade.losses import DiscriminatorHingeLoss, FeatureMatchingLoss, GeneratorHingeLoss, StyleDivergence
from trispade.networks import SpadeDiscriminator, SpadeGenerator, StyleEncoder


class NoisyGenerator(SpadeGenerator):
    """A generator whose training draws random numbers, so that resuming has to restore them."""

    def forward(self, label_map: Tensor, style: Tensor | None = None) -> Tensor:
        painted = super().forward(label_map, style)
        return painted + 0.1 * torch.randn_like(painted) if self.training else painted


@dataclass
class Gan:
    """Tiny networks and their optimizers, the same for the same seed."""

    generator: nn.Module
    discriminator: nn.Module
    generator_optimizer: torch.optim.Optimizer
    discriminator_optimizer: torch.optim.Optimizer
    encoder: StyleEncoder | None = None

    def trainer(self, loader: Any, **options: Any) -> SpadeTrainer:
        given = {
            "device": "cpu",
            "max_epochs": 1,
            "train_data_loader": loader,
            "network": self.generator,
            "optimizer": self.generator_optimizer,
            "discriminator": self.discriminator,
            "discriminator_optimizer": self.discriminator_optimizer,
            "generator_loss": GeneratorHingeLoss(),
            "discriminator_loss": DiscriminatorHingeLoss(),
            "feature_matching": FeatureMatchingLoss(),
            "feature_matching_weight": 10.0,
            "encoder": self.encoder,
            "style_divergence": StyleDivergence(),
            "style_divergence_weight": 0.05,
        }
        return SpadeTrainer(**{**given, **options})


def build_gan(
    seed: int = 0,
    num_classes: int = 4,
    noisy: bool = False,
    ndf: int = 4,
    style_dim: int = 0,
    encoder_file: Any = None,
    label_slices: int = 1,
) -> Gan:
    torch.manual_seed(seed)
    kind = NoisyGenerator if noisy else SpadeGenerator
    sizes = {"ngf": 2, "hidden": 4, "max_channels": 8, "style_dim": style_dim, "label_slices": label_slices}
    generator = kind(num_classes=num_classes, out_channels=1, **sizes)
    encoder = make_style_encoder(style_dim, 1, "cpu", encoder_file)
    discriminator = SpadeDiscriminator(num_classes=num_classes, ndf=ndf, num_scales=2, num_layers=2)
    return Gan(
        generator,
        discriminator,
        torch.optim.Adam(trainable_parameters([generator, encoder]), lr=1e-3, betas=(0.0, 0.9)),
        torch.optim.Adam(discriminator.parameters(), lr=4e-3, betas=(0.0, 0.9)),
        encoder,
    )


@pytest.fixture(name="build_gan")
def _build_gan():
    return build_gan
