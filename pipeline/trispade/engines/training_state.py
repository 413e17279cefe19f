"""Resuming: all that a run needs to go on as if it had never stopped, in one checkpoint."""

from __future__ import annotations

import logging
import math
import numbers
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from trispade.distributed import by_first_rank, refuse_lone_ranks
from trispade.engines.checkpoints import checkpoint_exists, load_checkpoint, load_newest_checkpoint, save_checkpoint
from trispade.engines.records import check_record
from trispade.errors import InputError
from trispade.untrusted import quoted

logger = logging.getLogger(__name__)

LAST, PREVIOUS, BEST = "last.pt", "previous.pt", "best.pt"

WHEN_NUMBERS_GO_WRONG = (
    "The last good checkpoint is kept: lower the learning rates or set amp to false, and run the command again."
)
"""Remedy for NaN and infinity. The same settings would come to the same numbers."""

RECORD_THAT_STAYS = (
    "vocabulary",
    "architecture",
    "plane",
    "settings",
    "people",
    "prepared",
    "batch_size",
    "generators",
)


_FORM = {
    "objects": {str: object},
    "record": {str: object},
    "iteration": int,
    "best_metric": numbers.Real,
    "rng": {"cpu": torch.Tensor, "cuda?": [torch.Tensor]},
}


class TrainingState:
    """Handler that takes a run up where its last checkpoint left it, and keeps the last and the best state.

    Loads ``last.pt`` when the trainer starts; saves it at the end of every epoch and whenever the run ends, time limit
    included. The one before it is kept as ``previous.pt`` and takes its place if it is torn. Since batches and flips
    depend on the seed and the iteration alone (see `trispade.data.StreamBatchSampler`), the resumed run computes what
    the uninterrupted one would have computed. Give the loader a ``generator`` of its own: it draws a number whenever an
    epoch starts or is taken up again. Several processes read the same file; the first one writes it.

    Learning rates are those of the configuration, not of the checkpoint: a run may be taken up with more epochs or
    another rate, and goes on at the rate that its own schedule gives for its epoch.

    Args:
        folder: of the stage; gets ``last.pt``, ``previous.pt`` and ``best.pt``.
        objects: name to network, optimizer, scheduler: whatever has a ``state_dict``; those that are None are left
            out. The trainer's own ``scalers``, if it has any, are kept as well. Schedulers other than `LambdaLR` take
            up their stored rates.
        record: plain values that describe the run; those in ``must_match`` must be the same on resuming.
        sampler: the `StreamBatchSampler` of the trainer's loader.
        must_match: keys of the record that a checkpoint must share with the run.
        part_mib: write checkpoints in parts of this size.
        resume: load ``last.pt``; if not, the run starts from the weights that the networks have, which with federated
            learning are those of the server, and each further run of the trainer goes on from its own state.

    Raises:
        InputError: when the run starts, if ``last.pt`` and ``previous.pt`` are torn, or if they are of another
            vocabulary, preset, plane or cache; when it saves, if there is no room or a weight is NaN or infinite.
    """

    def __init__(
        self,
        folder: str | Path,
        objects: Mapping[str, Any],
        record: Mapping[str, Any],
        sampler: Any,
        must_match: tuple[str, ...] = RECORD_THAT_STAYS,
        part_mib: float | None = None,
        resume: bool = True,
    ) -> None:
        self.folder = Path(folder)
        self.objects = {name: item for name, item in objects.items() if item is not None}
        self.record = dict(record)
        self.sampler = sampler
        self.must_match = must_match
        self.part_mib = part_mib
        self.takes_up = resume
        self.best_metric = -math.inf
        self.saved_at: int | None = None  # iteration of a last.pt that is whole

    def attach(self, engine: Engine) -> None:
        """Register with the trainer; attach it after the handlers whose work the checkpoint should hold."""
        self.trainer = engine
        if self.takes_up:
            engine.add_event_handler(Events.STARTED, self.resume)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._follow)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.save)
        engine.add_event_handler(Events.COMPLETED, self.save)

    def resume(self, engine: Engine) -> None:
        """Load the last checkpoint, if there is one."""
        refuse_lone_ranks()
        if not any(checkpoint_exists(self.folder / name) for name in (LAST, PREVIOUS)):
            return
        checkpoint, path = load_newest_checkpoint(self.folder / LAST, self.folder / PREVIOUS, _FORM)
        expected = {key: self.record[key] for key in self.must_match if key in self.record}
        remedy = f"Go back to the settings, data and generators of that run, or remove {self.folder} to start anew."
        check_record(path, checkpoint["record"], remedy, **expected)
        configured = {name: _base_rates(item) for name, item in self.objects.items() if isinstance(item, Optimizer)}
        self._load_objects(path, checkpoint["objects"], checkpoint["rng"])
        for name, rates in configured.items():
            with _of_this_preset(path, name):
                self._set_rates(name, rates)
        engine.state.iteration = self.sampler.iteration = checkpoint["iteration"]
        engine.state.epoch = checkpoint["iteration"] // engine.state.epoch_length
        self.best_metric = checkpoint["best_metric"]
        self.saved_at = checkpoint["iteration"] if path.name == LAST else None
        logger.info("%s: going on from iteration %d (epoch %d)", path, engine.state.iteration, engine.state.epoch)

    def save(self, engine: Engine) -> None:
        """Write the last checkpoint; the one that it replaces is kept, unless that is torn or of this iteration too."""
        iteration = self.trainer.state.iteration
        self._write(LAST, None if self.saved_at in (None, iteration) else self.folder / PREVIOUS)
        self.saved_at = iteration

    def keep_best(self, validator: Engine) -> None:
        """Write ``best.pt`` if a validating engine's key metric is higher than ever before."""
        metric = float(validator.state.metrics[validator.state.key_metric_name])
        if metric > self.best_metric:
            self.best_metric = metric
            self._write(BEST)

    def _load_objects(self, path: Path, states: Mapping[str, Any], rng: Mapping[str, Any]) -> None:
        for name, item in self.objects.items():
            with _of_this_preset(path, name):
                item.load_state_dict(states[name])
        for name, scaler in self._scalers().items():
            if states.get(name):  # empty if the run so far needed no scaling of the loss
                with _of_this_preset(path, name):
                    scaler.load_state_dict(states[name])
        device = self.trainer.state.device
        with _of_this_preset(path, "random numbers"):
            torch.set_rng_state(rng["cpu"])
            if device.type == "cuda" and "cuda" in rng:
                torch.cuda.set_rng_state(rng["cuda"][0], device)

    def _set_rates(self, name: str, base_rates: list[float]) -> None:
        """Give an optimizer the rates that its configured schedule has for the epoch that the checkpoint came to."""
        optimizer, rates = self.objects[name], base_rates
        schedulers = [item for item in self.objects.values() if isinstance(item, LRScheduler)]
        for scheduler in schedulers:
            if scheduler.optimizer is not optimizer:
                continue
            if not isinstance(scheduler, LambdaLR):
                return
            factors = [factor(scheduler.last_epoch) for factor in scheduler.lr_lambdas]
            rates = [base * factor for base, factor in zip(base_rates, factors, strict=True)]
            scheduler.base_lrs, scheduler._last_lr = list(base_rates), list(rates)
        for group, base, rate in zip(optimizer.param_groups, base_rates, rates, strict=True):
            if group["lr"] != rate:
                logger.info("%s goes on at a learning rate of %g; its checkpoint had %g", name, rate, group["lr"])
            group["lr"] = rate
            if "initial_lr" in group:
                group["initial_lr"] = base

    def _scalers(self) -> Mapping[str, torch.amp.GradScaler]:
        return getattr(self.trainer, "scalers", {})

    @by_first_rank
    def _write(self, name: str, previous: Path | None = None) -> None:
        state = self.trainer.state
        rng: dict[str, Any] = {"cpu": torch.get_rng_state()}
        if state.device.type == "cuda":
            rng["cuda"] = [torch.cuda.get_rng_state(state.device)]
        objects = {key: item.state_dict() for key, item in {**self.objects, **self._scalers()}.items()}
        self._check_finite(objects)
        content = {
            "objects": objects,
            "record": {
                **self.record,
                "iterations": state.iteration,
                "epochs": state.iteration // state.epoch_length,
                "finished": state.iteration >= state.epoch_length * state.max_epochs,
            },
            "iteration": state.iteration,
            "best_metric": self.best_metric,
            "rng": rng,
        }
        save_checkpoint(content, self.folder / name, self.part_mib, previous)

    def _check_finite(self, objects: Mapping[str, Any]) -> None:
        """Keep the last good checkpoint: weights may go wrong in a step whose losses were still finite."""
        for name, tensor in ((name, tensor) for name, state in objects.items() for tensor in _tensors_of(state)):
            if not torch.isfinite(tensor).all():
                raise InputError.of(
                    self.folder,
                    f"finite numbers in the state of the {name}",
                    f"NaN or infinity at iteration {self.trainer.state.iteration}, which is not saved",
                    WHEN_NUMBERS_GO_WRONG,
                )

    def _follow(self, engine: Engine) -> None:
        self.sampler.iteration = engine.state.iteration


@contextmanager
def _of_this_preset(path: Path, name: str) -> Iterator[None]:
    """Tell of a state that does not fit in one line: torch raises what its first odd part leads to."""
    try:
        yield
    except (LookupError, TypeError, AttributeError, RuntimeError, ValueError) as error:
        reason = quoted(" ".join(str(error).split()))
        remedy = "Use the preset that it was trained with."
        raise InputError.of(path, f"a state of the {name} of this preset", reason, remedy) from error


def _tensors_of(state: Any) -> Iterator[torch.Tensor]:
    """Walk through the floating-point tensors of a state dict, however deep."""
    if isinstance(state, torch.Tensor):
        if state.is_floating_point():
            yield state
    elif isinstance(state, Mapping | list | tuple):
        for each in state.values() if isinstance(state, Mapping) else state:
            yield from _tensors_of(each)


def is_finished(folder: str | Path) -> bool:
    """Tell whether the training that keeps its state in a folder has come to its last epoch."""
    path = Path(folder) / LAST
    return checkpoint_exists(path) and bool(
        load_checkpoint(path, {"record": _FORM["record"]})["record"].get("finished")
    )


class KeepBest:
    """Handler of a validating engine that keeps the trainer's state with the highest key metric as ``best.pt``.

    Args:
        state: the trainer's `TrainingState`.
    """

    def __init__(self, state: TrainingState) -> None:
        self.state = state

    def attach(self, engine: Engine) -> None:
        """Register with the validating engine."""
        engine.add_event_handler(Events.COMPLETED, self.state.keep_best)


def _base_rates(optimizer: Optimizer) -> list[float]:
    """Give the rates that an optimizer was made with; a scheduler keeps them as ``initial_lr``."""
    return [float(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups]


def constant_then_linear(total_epochs: int, decay_from: float) -> Callable[[int], float]:
    """Learning-rate factor: 1 for the first ``decay_from`` of the epochs, then linearly down to 0 after the last.

    Source: Park et al. 2019, section 4: constant for the first half of the epochs, linear decay for the second.
    """
    constant_epochs = round(total_epochs * decay_from)

    def factor(epoch: int) -> float:
        if epoch < constant_epochs:
            return 1.0
        return max(0.0, (total_epochs - epoch) / max(1, total_epochs - constant_epochs))

    return factor
