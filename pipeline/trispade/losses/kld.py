"""The divergence of a style code's distribution from the standard normal prior."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class StyleDivergence(nn.Module):
    """Kullback-Leibler divergence of N(mean, exp(log_variance)) from N(0, 1).

    Summed over a code's elements, averaged over the batch.

    Source:
        Park et al., section 4 and appendix A; Kingma and Welling, Auto-Encoding Variational Bayes, appendix B.
    """

    def forward(self, mean: Tensor, log_variance: Tensor) -> Tensor:
        """Return the scalar divergence for two (B, style_dim) tensors."""
        return -0.5 * torch.sum(1 + log_variance - mean**2 - log_variance.exp(), dim=1).mean()
