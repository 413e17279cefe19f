"""What the tests of the networks share."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def enliven() -> Callable[[nn.Module], nn.Module]:
    """Give a network weights and running statistics large enough for every path to show in its output."""

    def enliven(network: nn.Module) -> nn.Module:
        for parameter in network.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 10
            nn.init.normal_(parameter, std=0.7 / fan_in**0.5)
        for name, buffer in network.named_buffers():
            if name.endswith("running_mean"):
                nn.init.normal_(buffer, std=0.3)
        for part in network.modules():
            if is_parametrized(part, "weight"):
                for _ in range(10):
                    part.weight  # noqa: B018  each look at a weight is one power iteration
        return network

    return enliven
