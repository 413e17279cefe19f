"""The losses of a SPADE-GAN: adversarial hinge, feature matching, perceptual, and the style code's divergence."""

from __future__ import annotations

from trispade.losses.adversarial import DiscriminatorHingeLoss, GeneratorHingeLoss
from trispade.losses.feature_matching import FeatureMatchingLoss
from trispade.losses.kld import StyleDivergence
from trispade.losses.perceptual import PerceptualLoss, perceptual_loss
from trispade.losses.texture import TextureLoss
