"""Dice and cross-entropy of coarse logits: MONAI's at equal sizes, closed forms at others."""

from __future__ import annotations

import math

import pytest
import torch
from monai.losses import DiceCELoss

from trispade.errors import InputError
from trispade.losses import CellDiceCELoss


def test_at_equal_sizes_it_is_monais_loss():
    torch.manual_seed(0)
    logits, label = torch.randn(2, 3, 4, 4, 4), torch.randint(3, (2, 1, 4, 4, 4))
    expected = DiceCELoss(to_onehot_y=True, softmax=True, batch=True)(logits, label)
    assert torch.allclose(CellDiceCELoss()(logits, label), expected, atol=1e-6)


def test_one_cell_of_eight_voxels_of_which_two_are_labelled_is_the_closed_form():
    label = torch.zeros(1, 1, 2, 2, 2, dtype=torch.long)
    label[0, 0, 0, 0] = 1
    logits = torch.tensor([0.75, 0.25]).log().view(1, 2, 1, 1, 1)
    cross_entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    dice = [1 - (2 * p * p + 1e-5) / (2 * p + 1e-5) for p in (0.75, 0.25)]
    assert CellDiceCELoss()(logits, label).item() == pytest.approx(cross_entropy + sum(dice) / 2, abs=1e-5)


@pytest.mark.parametrize("size", [(4, 4, 6), (5, 5, 5)])
def test_a_label_map_that_is_no_whole_multiple_is_refused(size):
    with pytest.raises(InputError, match="whole multiple of the logits' \\(2, 2, 2\\) voxels"):
        CellDiceCELoss()(torch.zeros(1, 2, 2, 2, 2), torch.zeros(1, 1, *size, dtype=torch.long))
