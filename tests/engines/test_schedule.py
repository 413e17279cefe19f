from __future__ import annotations

from trispade.engines import constant_then_linear


def test_learning_rates_are_constant_then_fall_linearly_to_zero():
    factor = constant_then_linear(total_epochs=8, decay_from=0.5)
    assert [factor(epoch) for epoch in range(9)] == [1, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0]
    assert factor(20) == 0
    assert {constant_then_linear(3, decay_from=1.0)(epoch) for epoch in range(3)} == {1.0}
