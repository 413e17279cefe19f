"""An evaluator for batches of cases in which a bad case does not stop the others."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from monai.data import Dataset
from monai.engines import SupervisedEvaluator
from monai.engines.utils import IterationEvents
from monai.inferers import Inferer
from torch import Tensor, nn
from tqdm import tqdm

from trispade.distributed import gather, is_first
from trispade.errors import InputError, find_input_error

logger = logging.getLogger(__name__)

FAILURE = "failure"


class CaseResult(NamedTuple):
    """What became of a case.

    Attributes:
        case_id: its name.
        failure: why it failed; empty if it did not.
        seconds: that it took, loading included.
        rank: of the process that had it.
    """

    case_id: str
    failure: str
    seconds: float
    rank: int


class IsolateFailures:
    """Wraps a dictionary transform: what fails becomes an item that tells of it instead of an error.

    Args:
        transform: the wrapped transform.
        name_key: entry of the item that names the case.
    """

    def __init__(self, transform: Callable[[dict[str, Any]], dict[str, Any]], name_key: str) -> None:
        self.transform = transform
        self.name_key = name_key

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        """Transform an item, or return ``{name_key, "failure"}``."""
        try:
            return self.transform(item)
        except Exception as error:
            return {self.name_key: item[self.name_key], FAILURE: _reason(item[self.name_key], error)}


class CaseDataset(Dataset):
    """Cases one by one; one that fails becomes an item that tells of it (see `IsolateFailures`).

    Args:
        data: items with a ``case_id``.
        transform: dictionary transform.
    """

    def __init__(self, data: Sequence[dict[str, Any]], transform: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        super().__init__(data, IsolateFailures(transform, name_key="case_id"))


def first_of_batch(batch: list[dict[str, Any]]) -> dict[str, Any]:
    """Collate batches of one case: volumes of different sizes cannot be stacked."""
    (item,) = batch
    return item


def predict(image: Tensor, network: nn.Module, inferer: Inferer, device: torch.device) -> Tensor:
    """Run one case on a device: (C, X, Y, Z) in, float32 of the same form out, on the CPU."""
    return inferer(image[None].to(device), network)[0].float().cpu()


class CaseEvaluator(SupervisedEvaluator):
    """A `SupervisedEvaluator` over single cases, which lists the cases that failed at the end.

    A case fails by bad input, or by a fault of the program, whose trace is logged; the others run all the same. Several
    processes each have cases of their own, and the first one tells of all.

    Args:
        postprocessing: dictionary transform of the item with its ``pred`` (C, X, Y, Z), on the CPU.
        raise_failures: end a run in which cases failed with an error that lists them; if not, they are in ``failures``.
        report: called with the results of all cases, those of other processes too, at the end; None for none.
        options: those of `monai.engines.SupervisedEvaluator`.

    Its loader yields the items of a `CaseDataset` as they are (``collate_fn=first_of_batch``). The network's input gets
    its batch axis here and its output loses it, so that pre- and postprocessing see channel-first arrays.

    Attributes:
        results: of the last run, those of other processes too once it has ended.
        failures: ``case: reason`` for each failed case of the last run, likewise.
    """

    def __init__(
        self,
        *,
        postprocessing: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
        raise_failures: bool = True,
        report: Callable[[Sequence[CaseResult]], object] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options, decollate=False)
        self.raise_failures = raise_failures
        self.case_postprocessing = postprocessing
        self.report = report
        self.results: list[CaseResult] = []
        self.add_event_handler(Events.STARTED, self._start)
        self.add_event_handler(Events.ITERATION_COMPLETED, self._tell_progress)

    @property
    def failures(self) -> list[str]:
        """What failed, and why."""
        return [f"{result.case_id}: {result.failure}" for result in self.results if result.failure]

    def run(self, global_epoch: int = 1) -> None:
        """Run over all cases, if any are left.

        Raises:
            InputError: at the end, in the first process, if cases failed and ``raise_failures``; it lists them all.
        """
        self.results = []
        if self.state.epoch_length == 0:
            logger.info("no case is left to do")
        else:
            super().run(global_epoch)
        self.results = [result for part in gather(self.results) for result in part]
        if self.report is not None:
            self.report(self.results)
        if self.failures and self.raise_failures and is_first():
            raise InputError.of_many(f"{len(self.failures)} of {len(self.results)} cases failed:", self.failures)

    def _start(self, engine: Engine) -> None:
        self.since = self.last = time.monotonic()

    def _tell_progress(self, engine: Engine) -> None:
        """Log a line with rate and time left; all processes have as many cases, so that the first speaks for them."""
        done, total = engine.state.iteration, engine.state.epoch_length
        seconds = (time.monotonic() - self.since) / done
        others = f" on each of {idist.get_world_size()} processes" if idist.get_world_size() > 1 else ""
        logger.info(
            "%d of %d cases%s, %d failed, %.0f an hour, %s left",
            done,
            total,
            others,
            len(self.failures),
            idist.get_world_size() * 3600.0 / max(seconds, 1e-6),
            tqdm.format_interval(seconds * (total - done)),
        )

    def _iteration(self, engine: Engine, batchdata: dict[str, Any]) -> dict[str, Any]:
        name = batchdata.get("case_id", "?")
        if FAILURE in batchdata:
            return self._fail(name, batchdata[FAILURE])
        try:
            output = self._run_case(engine, batchdata)
        except Exception as error:
            return self._fail(name, _reason(name, error))
        self._note(name, "")
        return output

    def _run_case(self, engine: Engine, item: dict[str, Any]) -> dict[str, Any]:
        with engine.mode(engine.network):
            item["pred"] = predict(item["image"], engine.network, engine.inferer, engine.state.device)
        engine.fire_event(IterationEvents.FORWARD_COMPLETED)
        engine.state.output = item if self.case_postprocessing is None else self.case_postprocessing(item)
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return engine.state.output

    def _fail(self, name: str, reason: str) -> dict[str, Any]:
        self._note(name, reason)
        logger.warning("%s", self.failures[-1])
        return {FAILURE: reason}

    def _note(self, name: str, failure: str) -> None:
        now = time.monotonic()
        self.results.append(CaseResult(name, failure, now - self.last, idist.get_rank()))
        self.last = now


def _reason(name: str, error: Exception) -> str:
    """Tell why a case failed; the trace of a fault of the program is logged, since no one would find it otherwise."""
    found = find_input_error(error)
    if found is not None:
        return str(found)
    logger.error("%s: a fault of the program", name, exc_info=error)
    return f"a fault of the program, whose trace is above: {type(error).__name__}: {error}"
