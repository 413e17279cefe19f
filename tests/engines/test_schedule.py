from __future__ import annotations

from types import SimpleNamespace

import torch

from trispade.engines import TrainingState, constant_then_linear


def test_learning_rates_are_constant_then_fall_linearly_to_zero():
    factor = constant_then_linear(total_epochs=8, decay_from=0.5)
    assert [factor(epoch) for epoch in range(9)] == [1, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0]
    assert factor(20) == 0
    assert {constant_then_linear(3, decay_from=1.0)(epoch) for epoch in range(3)} == {1.0}


def test_rates_of_a_schedule_that_depends_on_the_past_are_those_of_the_checkpoint(tmp_path):
    def build(rate):
        network = torch.nn.Linear(1, 1)
        optimizer = torch.optim.Adam(network.parameters(), lr=rate)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.1)
        state = TrainingState(tmp_path, {"optimizer": optimizer, "scheduler": scheduler}, {}, SimpleNamespace())
        state.trainer = SimpleNamespace(
            state=SimpleNamespace(device=torch.device("cpu"), iteration=1, epoch_length=1, max_epochs=9)
        )
        return optimizer, scheduler, state

    optimizer, scheduler, state = build(1.0)
    optimizer.step()
    scheduler.step()
    state.save(None)
    resumed, _, state = build(0.5)
    state.resume(SimpleNamespace(state=SimpleNamespace(device=torch.device("cpu"), epoch_length=1)))
    assert resumed.param_groups[0]["lr"] == 0.1
