"""The losses of a SPADE-GAN (hinge, feature matching, perceptual, style divergence), of fusion and of segmentation."""

from __future__ import annotations

from trispade.losses.adversarial import DiscriminatorHingeLoss, GeneratorHingeLoss
from trispade.losses.cell_dice_ce import CellDiceCELoss
from trispade.losses.feature_matching import FeatureMatchingLoss
from trispade.losses.kld import StyleDivergence
from trispade.losses.perceptual import PerceptualLoss, perceptual_loss
from trispade.losses.texture import TextureLoss
