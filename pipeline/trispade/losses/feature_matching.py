"""The feature-matching loss between a discriminator's features of generated and of real images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trispade.losses.adversarial import Features


class FeatureMatchingLoss(nn.Module):
    """L1 distance of every layer's features, logits excluded: summed over layers, averaged over scales.

    The real features are a fixed target: no gradient flows into them.

    Source:
        Wang et al., pix2pixHD, CVPR 2018, equation 4, as used by Park et al., section 4.
    """

    def forward(self, fake: Features, real: Features) -> Tensor:
        """Return the scalar loss for the features of generated images and of the real images they imitate."""
        per_scale = [
            torch.stack(
                [
                    F.l1_loss(f.float(), r.detach().float())
                    for f, r in zip(fake_scale[:-1], real_scale[:-1], strict=True)
                ]
            ).sum()
            for fake_scale, real_scale in zip(fake, real, strict=True)
        ]
        return torch.stack(per_scale).mean()
