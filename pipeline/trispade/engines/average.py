"""The moving average of a generator's weights, which paints better than the weights of any one moment."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from ignite.engine import Engine, Events
from torch import Tensor, nn

from trispade.networks import SpadeGenerator, plain_copy


class AverageWeights:
    """Handler that averages a generator's weights over the iterations, exponentially.

    What is averaged are the weights that the convolutions compute with, after spectral norm: the average of those
    before it would need singular vectors of its own. Up to the first ``1.44 * half_life`` iterations the average is the
    plain mean, so that it never holds on to the weights that training started from. Running statistics are not
    averaged: recalibrate the norms of ``network`` before it is used. The average is kept with the checkpoint as
    ``average``.

    Args:
        generator: that is trained.
        half_life: iterations after which a state counts half; None for no average.

    Attributes:
        average: a generator without spectral norm, in eval mode; None if there is no average.
        network: what to validate and to use: the average, or the generator itself.

    Source: Yazıcı et al., The Unusual Effectiveness of Averaging in GAN Training, ICLR 2019. Not in Park et al.
    """

    def __init__(self, generator: SpadeGenerator, half_life: float | None = None) -> None:
        self.generator = generator
        self.half_life = half_life
        self.average = None
        if half_life is not None:
            self.average = plain_copy(generator).requires_grad_(False)

    @property
    def network(self) -> SpadeGenerator:
        """The average if there is one, else the generator."""
        return self.generator if self.average is None else self.average

    def attach(self, engine: Engine) -> None:
        """Register with a trainer; attach it before the recalibration, the validation and the checkpoint."""
        if self.average is not None:
            engine.add_event_handler(Events.ITERATION_COMPLETED, self._follow)

    @torch.no_grad()
    def _follow(self, engine: Engine) -> None:
        assert self.average is not None
        assert self.half_life is not None
        share = max(1.0 - 0.5 ** (1.0 / self.half_life), 1.0 / engine.state.iteration)
        present = dict(_effective_weights(self.generator))
        for name, mean in self.average.named_parameters():
            mean.lerp_(present[name].to(mean.dtype), share)


def _effective_weights(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Walk over the weights that a network computes with; spectral norm does not iterate meanwhile."""
    was_training = network.training
    network.eval()
    for name, part in network.named_modules():
        if "parametrizations" in name:
            continue
        for own in ("weight", "bias"):
            value = getattr(part, own, None)
            if isinstance(value, Tensor):
                yield f"{name}.{own}", value
    network.train(was_training)
