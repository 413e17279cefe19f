from __future__ import annotations

import pytest
import torch

from trispade.losses import DiscriminatorHingeLoss, GeneratorHingeLoss


def features(*logits: list[float]) -> list[list[torch.Tensor]]:
    return [[torch.full((2, 3), 1e6), torch.tensor(scale, requires_grad=True)] for scale in logits]


def test_the_generator_wants_high_logits_averaged_over_scales():
    assert GeneratorHingeLoss()(features([1.0, 3.0], [-4.0])).item() == pytest.approx(-(2.0 - 4.0) / 2)


def test_the_generator_is_never_satisfied():
    fake = features([50.0, 60.0])
    GeneratorHingeLoss()(fake).backward()
    assert fake[0][-1].grad.tolist() == [-0.5, -0.5]


def test_the_discriminator_pays_for_logits_within_its_margins():
    loss = DiscriminatorHingeLoss()(features([2.0, 0.5], [-1.0]), features([-3.0, 1.0], [0.0]))
    assert loss.item() == pytest.approx((0.25 + 2.0) / 2 + (1.0 + 1.0) / 2)


def test_the_discriminator_is_satisfied_beyond_its_margins():
    real, fake = features([1.5, 7.0]), features([-1.5, -7.0])
    loss = DiscriminatorHingeLoss()(real, fake)
    loss.backward()
    assert loss.item() == 0
    assert real[0][-1].grad.abs().max() == fake[0][-1].grad.abs().max() == 0


def test_gradients_push_real_logits_up_and_fake_ones_down():
    real, fake = features([0.0]), features([0.0])
    DiscriminatorHingeLoss()(real, fake).backward()
    assert real[0][-1].grad.item() == -1
    assert fake[0][-1].grad.item() == 1


def test_half_precision_logits_are_averaged_in_single_precision():
    logits = torch.full((4096,), 1.0 + 2**-7, dtype=torch.bfloat16)
    assert GeneratorHingeLoss()([[logits]]).item() == pytest.approx(-(1.0 + 2**-7), abs=1e-6)
