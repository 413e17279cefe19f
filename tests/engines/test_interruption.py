from __future__ import annotations

import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from ignite.engine import Engine, Events

from trispade.engines import StopOnSignal, TrainingState, load_checkpoint
from trispade.errors import exit_on_sigterm

LENGTH, EPOCHS = 4, 3
ENDS = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: SystemExit}


@pytest.fixture(autouse=True)
def _own_handlers():
    """Give Python's own handlers to a test, and pytest's back after it."""
    before = {number: signal.getsignal(number) for number in ENDS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    exit_on_sigterm()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def train(folder: Path, interrupt=lambda engine: None, event=Events.ITERATION_STARTED) -> list[int]:
    """Run, or take up, a training of 12 iterations; gives the iterations that this start came to the end of."""
    network = torch.nn.Linear(1, 1)
    done: list[int] = []
    engine = Engine(lambda engine, batch: {"loss": torch.tensor(1.0)})
    engine.state.device = torch.device("cpu")
    state = TrainingState(folder, {"network": network}, {}, SimpleNamespace())
    engine.add_event_handler(event, interrupt)
    state.attach(engine)
    StopOnSignal().attach(engine)
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: done.append(engine.state.iteration))
    engine.run(range(LENGTH), max_epochs=EPOCHS, epoch_length=LENGTH)
    return done


def send(number: int, at: int, times: int = 1):
    def interrupt(engine: Engine) -> None:
        if engine.state.iteration == at:
            for _ in range(times):
                signal.raise_signal(number)

    return interrupt


@pytest.mark.parametrize("number", ENDS)
@pytest.mark.parametrize("at", [1, 6, 8, 12])
def test_a_signal_ends_the_run_after_its_iteration_with_a_checkpoint_and_the_same_command_goes_on(
    tmp_path, number, at, caplog
):
    folder = tmp_path / "stage"
    with caplog.at_level("INFO"), pytest.raises(ENDS[number]) as caught:
        train(folder, send(number, at))
    if number == signal.SIGTERM:
        assert caught.value.code == 143
    assert f"{signal.Signals(number).name}: stopping at iteration {at}, with a checkpoint" in caplog.text
    checkpoint = load_checkpoint(folder / "last.pt")
    assert checkpoint["iteration"] == at
    assert checkpoint["record"]["epochs"] == at // LENGTH
    assert train(folder) == list(range(at + 1, EPOCHS * LENGTH + 1))
    assert load_checkpoint(folder / "last.pt")["record"]["finished"]


def test_a_signal_between_iterations_waits_for_the_end_of_the_epoch(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "stage", lambda engine: signal.raise_signal(signal.SIGINT), Events.EPOCH_COMPLETED)
    assert load_checkpoint(tmp_path / "stage" / "last.pt")["record"]["epochs"] == 1


def test_a_second_ctrl_c_ends_the_run_at_once_and_a_second_sigterm_does_not(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "int", send(signal.SIGINT, 6, times=2))
    assert load_checkpoint(tmp_path / "int" / "last.pt")["iteration"] == LENGTH
    with pytest.raises(SystemExit):
        train(tmp_path / "term", send(signal.SIGTERM, 6, times=2))
    assert load_checkpoint(tmp_path / "term" / "last.pt")["iteration"] == 6


@pytest.mark.parametrize("fails", [True, False])
def test_signals_are_given_back_when_the_run_ends_however_it_ends(tmp_path, fails):
    before = {number: signal.getsignal(number) for number in ENDS}

    def fail(engine: Engine) -> None:
        assert {number: signal.getsignal(number) for number in ENDS} != before
        if fails:
            raise ConnectionError("the machine is gone")

    if fails:
        with pytest.raises(ConnectionError):
            train(tmp_path / "stage", fail)
    else:
        train(tmp_path / "stage", fail)
    assert {number: signal.getsignal(number) for number in ENDS} == before


def test_a_signal_that_was_ignored_before_stays_ignored(tmp_path):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    assert train(tmp_path, send(signal.SIGINT, at=6)) == list(range(1, 13))
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
