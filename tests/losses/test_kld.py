from __future__ import annotations

import torch
from torch.distributions import Normal, kl_divergence

from trispade.losses import StyleDivergence


def test_the_prior_itself_costs_nothing():
    assert StyleDivergence()(torch.zeros(3, 4), torch.zeros(3, 4)).item() == 0


def test_it_is_the_divergence_from_the_standard_normal_summed_over_the_code_and_averaged_over_the_batch():
    torch.manual_seed(0)
    mean, log_variance = torch.randn(3, 4), torch.randn(3, 4)
    expected = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0)).sum(dim=1).mean()
    torch.testing.assert_close(StyleDivergence()(mean, log_variance), expected)
