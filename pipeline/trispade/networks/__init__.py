"""The networks: three SPADE generators, their discriminators, and the 3D CNN that fuses what they paint."""

from __future__ import annotations

from trispade.networks.assembly import assemble, check_weights, load_weights
from trispade.networks.direct import DirectUNet
from trispade.networks.discriminator import SpadeDiscriminator
from trispade.networks.recalibration import recalibrate_norms
from trispade.networks.segmentation import HalfResolutionUNet
from trispade.networks.spectral import fold_spectral_norm, plain_copy, with_spectral_norm
from trispade.networks.style_encoder import StyleEncoder
from trispade.networks.triplanar import FusionNet, SpadeGenerator, TriplanarSynthesizer, fusion_input
