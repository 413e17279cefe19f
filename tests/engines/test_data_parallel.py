from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from trispade.engines import wrap
from trispade.engines.data_parallel import SynchronisedNorm, unwrapped
from trispade.errors import InputError
from trispade.networks.triplanar import ParameterFreeNorm

ALL = SimpleNamespace(batch_size=5, share=1.0)


@pytest.mark.parametrize("norm", [ParameterFreeNorm(3), nn.BatchNorm2d(3), nn.BatchNorm2d(3).eval()])
def test_the_norm_over_one_process_is_the_norm_that_it_replaces(norm):
    norm.double().running_mean.fill_(0.5)
    if norm.affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    start = {name: value.clone() for name, value in norm.state_dict().items() if "running" in name}
    x = 3.0 * torch.randn(5, 3, 4, 2, dtype=torch.float64) + 7.0
    weights = torch.randn_like(x)
    found = []
    for each in (norm, SynchronisedNorm(norm, ALL)):
        norm.load_state_dict(start, strict=False)
        given = x.clone().requires_grad_()
        painted = each(given)
        (painted * weights).sum().backward()
        found.append((painted, given.grad, norm.running_mean.clone(), norm.running_var.clone()))
    for mine, other in zip(*found, strict=True):
        torch.testing.assert_close(mine, other)


def test_one_value_a_channel_is_normalised_by_the_running_statistics():
    norm = SynchronisedNorm(ParameterFreeNorm(2), SimpleNamespace(batch_size=1, share=1.0))
    torch.testing.assert_close(norm(torch.full((1, 2, 1, 1), 3.0)), torch.full((1, 2, 1, 1), 3.0), rtol=1e-4, atol=0)
    assert norm.running_mean.tolist() == [0.0, 0.0]


def test_a_single_process_trains_the_network_itself():
    network = nn.Conv2d(1, 1, 1)
    assert wrap(network, ALL) is network
    assert unwrapped(network) is network


def test_a_style_needs_one_process(build_gan, monkeypatch):
    monkeypatch.setattr("trispade.engines.spade_trainer.num_ranks", lambda: 2)
    with pytest.raises(InputError, match=r"style_dim: expected 0 with several processes, got a style. Train it with"):
        build_gan(style_dim=2).trainer([])
