"""Handlers that watch the numbers of a training run and tell when they go wrong."""

from __future__ import annotations

import logging

import torch
from ignite.engine import Engine, Events
from torch import Tensor

from trispade.distributed import is_first
from trispade.engines.training_state import WHEN_NUMBERS_GO_WRONG
from trispade.errors import InputError

logger = logging.getLogger(__name__)


class StopAtBadNumbers:
    """Ends a run at the first iteration with a loss that is NaN or infinite, without a checkpoint of it.

    `TrainingState` refuses weights that are no numbers, so that the last checkpoint is always a good one.

    Raises:
        InputError: within a run; it names the iteration and the losses.
    """

    def attach(self, engine: Engine) -> None:
        """Register with a trainer; attach it before the handlers that use the losses."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._check)

    def _check(self, engine: Engine) -> None:
        scalars = _scalars(engine.state.output)
        if scalars and not torch.stack([value.double() for value in scalars.values()]).isfinite().all():
            bad = ", ".join(f"{name} {float(value)}" for name, value in scalars.items() if not value.isfinite())
            where = f"iteration {engine.state.iteration} (epoch {engine.state.epoch})"
            raise InputError.of(where, "finite losses", bad, WHEN_NUMBERS_GO_WRONG)


class WatchDiscriminator:
    """Warns after an epoch in which the discriminator was of no use to the generator; the run goes on.

    It has won where its hinge loss (2 for one that answers at random, 0 for one that is never wrong) is almost 0. It
    has collapsed where the distance of its logits for real and painted images, or that of its features (the
    feature-matching loss), falls to a small share of the largest of all epochs since the run was started or taken up.
    All are means over an epoch: early in a training, both distances are small and rise. It has learnt nothing where the
    logits were never apart in two epochs or more, as one does that starts beside a trained generator.

    Args:
        won_below: hinge loss under which it has won.
        collapsed_below: share of its largest distance under which it has collapsed.
        least_gap: distance of the logits that an epoch must have reached for a fall to count.
        nothing_learnt_below: distance of the logits that one of the first two epochs should reach.
    """

    NAMES = ("logits_real", "logits_fake", "discriminator", "feature_matching")

    def __init__(
        self,
        won_below: float = 0.1,
        collapsed_below: float = 0.1,
        least_gap: float = 0.1,
        nothing_learnt_below: float = 0.01,
    ) -> None:
        self.won_below = won_below
        self.collapsed_below = collapsed_below
        self.least_gap = least_gap
        self.nothing_learnt_below = nothing_learnt_below
        self.epochs = 0
        self.largest_gap = self.largest_features = 0.0

    def attach(self, engine: Engine) -> None:
        """Register with a `SpadeTrainer`."""
        if not is_first():
            return
        engine.add_event_handler(Events.EPOCH_STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._add)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._judge)

    def _start(self, engine: Engine) -> None:
        self.sums: dict[str, Tensor] = {}
        self.count = 0

    def _add(self, engine: Engine) -> None:
        for name in self.NAMES:
            value = engine.state.output[name].detach()
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.count += 1

    def _judge(self, engine: Engine) -> None:
        real, fake, loss, features = (float(self.sums[name]) / self.count for name in self.NAMES)
        gap = real - fake
        found = f"epoch {engine.state.epoch}: logits {real:.3g} for real and {fake:.3g} for painted slices, "
        found += f"discriminator loss {loss:.3g}, feature matching {features:.3g}: the discriminator"
        if loss < self.won_below:
            logger.warning("%s has won and teaches little. Try a lower discriminator_rate.", found)
        if self.largest_gap >= self.least_gap and gap < self.collapsed_below * self.largest_gap:
            remedy = "Try a higher discriminator_rate or a lower generator_rate, from an earlier checkpoint."
            logger.warning("%s no longer tells them apart (it did by %.3g). %s", found, self.largest_gap, remedy)
        if features < self.collapsed_below * self.largest_features:
            remedy = "Try a lower discriminator_rate, from an earlier checkpoint."
            logger.warning("%s sees them alike (it was %.3g). %s", found, self.largest_features, remedy)
        self.epochs += 1
        if self.epochs > 1 and max(self.largest_gap, gap) < self.nothing_learnt_below:
            remedy = "Give it that of another training: --discriminator_checkpoint LAST.PT."
            logger.warning("%s has learnt nothing yet: the other losses alone train the generator. %s", found, remedy)
        self.largest_gap = max(self.largest_gap, gap)
        self.largest_features = max(self.largest_features, features)


def _scalars(output: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: v.detach() for name, v in output.items() if isinstance(v, Tensor) and v.numel() == 1}
