from __future__ import annotations

import copy

import pytest
import torch
from ignite.engine import Events
from torch import nn

from trispade.engines import AverageWeights
from trispade.networks import fold_spectral_norm, plain_copy


def run_with_average(gan, batch, half_life, iterations):
    """Train with an average; gives it, and the plain weights after each iteration."""
    average = AverageWeights(gan.generator, half_life)
    trainer = gan.trainer([batch] * iterations, train_handlers=[average])
    states = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: states.append(plain_copy(gan.generator).state_dict()))
    trainer.run()
    return average, states


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    label_map = torch.randint(0, 4, (3, 1, 32, 32), generator=generator, dtype=torch.uint8)
    return {"label_map": label_map, "t1w": torch.rand(3, 1, 32, 32, generator=generator) * 2 - 1}


def test_a_plain_copy_paints_as_the_generator_does_and_leaves_it_whole(build_gan, enliven):
    generator = enliven(build_gan().generator)
    labels = torch.randint(0, 4, (2, 1, 32, 32))
    plain = plain_copy(generator)
    before = copy.deepcopy(generator.state_dict())
    torch.testing.assert_close(plain(labels), generator.eval()(labels), rtol=1e-5, atol=1e-6)
    assert not any("parametrizations" in name for name in plain.state_dict())
    generator.train()(labels).sum().backward()
    assert any(not torch.equal(value, before[name]) for name, value in generator.state_dict().items())
    fold_spectral_norm(generator)


def test_up_to_its_memory_the_average_is_the_mean_of_the_weights_after_each_iteration(build_gan, batch):
    average, states = run_with_average(build_gan(), batch, half_life=100, iterations=4)
    for name, value in average.average.named_parameters():
        torch.testing.assert_close(value, torch.stack([state[name] for state in states]).mean(dim=0))


def test_later_a_state_counts_half_after_each_half_life(build_gan, batch):
    average, states = run_with_average(build_gan(), batch, half_life=1, iterations=5)
    expected = states[0]
    for state in states[1:]:  # from the second iteration on, each new state has a share of one half
        expected = {name: (expected[name] + state[name]) / 2 for name in state}
    for name, value in average.average.named_parameters():
        torch.testing.assert_close(value, expected[name])


def test_following_a_generator_does_not_change_how_it_is_trained(build_gan, batch):
    averaged, alone = build_gan(), build_gan()
    run_with_average(averaged, batch, half_life=2, iterations=3)
    alone.trainer([batch] * 3).run()
    states = averaged.generator.state_dict(), alone.generator.state_dict()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[1])


def test_without_a_half_life_the_generator_itself_is_used(build_gan, batch):
    gan = build_gan()
    average = AverageWeights(gan.generator)
    gan.trainer([batch], train_handlers=[average]).run()
    assert average.average is None
    assert average.network is gan.generator


def test_the_average_needs_no_gradients_and_stays_in_eval_mode(build_gan, batch):
    average, _ = run_with_average(build_gan(), batch, half_life=2, iterations=2)
    assert not average.network.training
    assert not any(parameter.requires_grad for parameter in average.network.parameters())
    assert isinstance(average.network.blocks[0].conv_0, nn.Conv2d)
