"""The downstream comparison's segmentation network: half the resolution inside, the scan's own outside."""

from __future__ import annotations

import pytest
import torch

from trispade.errors import InputError
from trispade.losses import CellDiceCELoss
from trispade.networks import HalfResolutionUNet


def test_logits_are_coarse_in_training_and_as_fine_as_the_scan_in_evaluation():
    network = HalfResolutionUNet(num_classes=5, channels=[4, 8, 8])
    image = torch.rand(2, 1, 16, 24, 32)
    assert network.train()(image).shape == (2, 5, 8, 12, 16)
    assert network.eval()(image).shape == (2, 5, 16, 24, 32)


def test_a_size_that_the_levels_do_not_divide_is_refused():
    with pytest.raises(InputError, match="multiples of 8, got 16x16x20"):
        HalfResolutionUNet(num_classes=2, channels=[4, 8, 8])(torch.rand(1, 1, 16, 16, 20))


def test_one_level_is_refused():
    with pytest.raises(InputError, match="two widths or more"):
        HalfResolutionUNet(num_classes=2, channels=[4])


def test_it_learns_a_bright_cube_and_finds_it_at_the_same_place_at_full_resolution():
    torch.manual_seed(0)
    label = torch.zeros(1, 1, 32, 32, 32, dtype=torch.long)
    label[..., 6:18, 12:26, 9:21] = 1
    image = 0.2 + 0.6 * label + 0.02 * torch.randn(label.shape)
    network = HalfResolutionUNet(num_classes=2, channels=[4, 8, 8])
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    loss_function = CellDiceCELoss()
    for _ in range(60):
        optimizer.zero_grad()
        loss_function(network(image), label).backward()
        optimizer.step()
    found = network.eval()(image).argmax(1, keepdim=True)
    overlap = 2 * (found * label).sum() / (found.sum() + label.sum())
    shifted = 2 * (found.roll(1, 2) * label).sum() / (found.sum() + label.sum())
    assert overlap > 0.93
    assert overlap > shifted
