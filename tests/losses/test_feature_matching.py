from __future__ import annotations

import pytest
import torch

from trispade.losses import FeatureMatchingLoss


def features(*scales: list[float]) -> list[list[torch.Tensor]]:
    return [[torch.full((1, 2, 3, 3), value, requires_grad=True) for value in scale] for scale in scales]


def test_layers_are_summed_and_scales_averaged_without_the_logits():
    loss = FeatureMatchingLoss()(
        features([1.0, 2.0, 99.0], [0.0, 0.0, 99.0]), features([0.0, 5.0, 0.0], [2.0, 0.0, 0.0])
    )
    assert loss.item() == pytest.approx(((1 + 3) + (2 + 0)) / 2)


def test_equal_features_cost_nothing():
    assert FeatureMatchingLoss()(features([1.0, 2.0]), features([1.0, 5.0])).item() == 0


def test_gradients_reach_the_fake_features_only():
    fake, real = features([1.0, 2.0]), features([0.0, 2.0])
    FeatureMatchingLoss()(fake, real).backward()
    assert fake[0][0].grad.sum().item() == pytest.approx(1)
    assert real[0][0].grad is None


def test_features_of_another_number_of_layers_are_refused():
    with pytest.raises(ValueError, match="zip"):
        FeatureMatchingLoss()(features([1.0, 2.0, 3.0]), features([1.0, 2.0]))
