"""The adversarial hinge loss over the scales of a `SpadeDiscriminator`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Features = Sequence[Sequence[Tensor]]
"""One sequence a scale: the features of each layer of a discriminator, its logits last."""


class GeneratorHingeLoss(nn.Module):
    """Ask the discriminator's logits on generated images to be high: ``-mean(logits_fake)``, averaged over scales.

    Source:
        Park et al., section 4; Lim and Ye, Geometric GAN, 2017.
    """

    def forward(self, fake: Features) -> Tensor:
        """Return the scalar loss for the features of generated images."""
        return -torch.stack([scale[-1].float().mean() for scale in fake]).mean()


class DiscriminatorHingeLoss(nn.Module):
    """Ask for logits above 1 on real images and below -1 on generated ones.

    ``mean(relu(1 - logits_real)) + mean(relu(1 + logits_fake))``, averaged over scales.

    Source:
        Park et al., section 4; Lim and Ye, Geometric GAN, 2017.
    """

    def forward(self, real: Features, fake: Features) -> Tensor:
        """Return the scalar loss for the features of real and of generated images."""
        on_real = torch.stack([F.relu(1 - scale[-1].float()).mean() for scale in real]).mean()
        on_fake = torch.stack([F.relu(1 + scale[-1].float()).mean() for scale in fake]).mean()
        return on_real + on_fake
