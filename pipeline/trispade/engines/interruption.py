"""Ctrl-C and SIGTERM during training: the iteration is finished, the checkpoint written, and then the program ends."""

from __future__ import annotations

import logging
import signal
import threading
from types import FrameType
from typing import Any

from ignite.engine import Engine, Events

from trispade.distributed import largest

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopOnSignal:
    """Ends a run with a checkpoint when Ctrl-C is pressed or a scheduler sends SIGTERM.

    As with `StopAfter`, an epoch whose last iteration is done is completed first. When the checkpoint is written, the
    signal does what it would have done without this: it ends the program, with exit code 130 or 143. A second Ctrl-C
    ends it at once, and the run then goes on from the checkpoint before; schedulers repeat SIGTERM as a habit, so that
    a second one changes nothing. With several processes all end at the same iteration, whoever of them was told.

    Attach it after `TrainingState`, and in the main thread; in others Python takes no signals, and it does nothing.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.agreed: int | None = None
        self.previous: dict[int, Any] = {}

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.STARTED, self._listen)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._check_within_epoch)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._check)
        engine.add_event_handler(Events.COMPLETED, self._pass_on)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._leave)

    def _listen(self, engine: Engine) -> None:
        if threading.current_thread() is threading.main_thread():
            self.received = self.agreed = None
            # A shell lets a command in the background ignore Ctrl-C, which then belongs to another one.
            heeded = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
            self.previous = {number: signal.signal(number, self._note) for number in heeded}

    def _note(self, number: int, frame: FrameType | None) -> None:
        # Nothing is written here: the signal may have come in the midst of writing a line.
        again = number == self.received == signal.SIGINT
        self.received = number
        if again:
            self._restore()
            signal.raise_signal(number)

    def _check_within_epoch(self, engine: Engine) -> None:
        if engine.state.iteration % engine.state.epoch_length:
            self._check(engine)

    def _check(self, engine: Engine) -> None:
        self.agreed = largest(self.received or 0) or None
        if self.agreed is not None:
            name = signal.Signals(self.agreed).name
            logger.info("%s: stopping at iteration %d, with a checkpoint", name, engine.state.iteration)
            engine.terminate()

    def _pass_on(self, engine: Engine) -> None:
        self._restore()
        number = self.agreed or self.received
        if number is not None:
            signal.raise_signal(number)

    def _leave(self, engine: Engine, error: BaseException) -> None:
        self._restore()
        raise error

    def _restore(self) -> None:
        while self.previous:
            signal.signal(*self.previous.popitem())
