from __future__ import annotations

import pytest
import torch

from trispade.errors import InputError
from trispade.networks.recalibration import recalibrate_norms
from trispade.networks.triplanar import SpadeGenerator

NUM_CLASSES = 5


@pytest.fixture
def generator(enliven) -> SpadeGenerator:
    return enliven(SpadeGenerator(NUM_CLASSES, 1, ngf=4, hidden=8, max_channels=32)).train()


def mixed_batches(number: int, batch: int = 96) -> list[torch.Tensor]:
    blocks = torch.randint(0, NUM_CLASSES, (number, batch, 1, 8, 8))
    return list(blocks.repeat_interleave(8, dim=-1).repeat_interleave(8, dim=-2))


def train_mode_output(generator: SpadeGenerator, label_map: torch.Tensor) -> torch.Tensor:
    generator.eval()
    for part in generator.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.train()
            part.momentum = 0.0
    with torch.no_grad():
        return generator(label_map)


def gap_between_modes(generator: SpadeGenerator, label_map: torch.Tensor) -> float:
    with torch.no_grad():
        evaluated = generator.eval()(label_map)
    return (train_mode_output(generator, label_map) - evaluated).abs().mean().item()


def test_eval_mode_equals_train_mode_exactly_for_the_batch_of_the_recalibration(generator):
    (batch,) = mixed_batches(1, batch=12)
    recalibrate_norms(generator, [batch])
    assert gap_between_modes(generator, batch) < 1e-4


def test_eval_mode_agrees_with_train_mode_on_new_batches(generator):
    new = mixed_batches(1)[0]
    before = gap_between_modes(generator, new)
    recalibrate_norms(generator.train(), mixed_batches(4))
    after = gap_between_modes(generator, new)
    assert after < 0.05
    assert after < before / 4


def test_statistics_are_pooled_over_all_batches_with_what_lies_between_them(generator):
    uneven = [torch.zeros(2, 1, 64, 64), torch.full((3, 1, 32, 96), 3), *mixed_batches(1, batch=4)]
    recalibrate_norms(generator, uneven)
    with torch.no_grad():
        heads = [generator.head(generator.encode(batch, 32)).transpose(0, 1).flatten(1) for batch in uneven]
    pooled = torch.cat(heads, dim=1)
    norm = generator.blocks[0].spade_0.norm
    torch.testing.assert_close(norm.running_mean, pooled.mean(dim=1), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(norm.running_var, pooled.var(dim=1, unbiased=False), atol=1e-5, rtol=1e-4)


def test_nothing_but_the_running_statistics_changes(generator):
    before = {name: value.clone() for name, value in generator.state_dict().items()}
    recalibrate_norms(generator, mixed_batches(2, batch=4))
    changed = {name for name, value in generator.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all(name.endswith(("running_mean", "running_var")) for name in changed)


@pytest.mark.parametrize("training", [True, False])
def test_the_generator_stays_in_its_mode(generator, training):
    recalibrate_norms(generator.train(training), mixed_batches(1, batch=4))
    assert {part.training for part in generator.modules()} == {training}


def test_no_batch_is_refused(generator):
    with pytest.raises(InputError, match="expected at least one batch of label maps, got none"):
        recalibrate_norms(generator, [])
