"""An evaluator for batches of cases in which a bad case does not stop the others."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.data import Dataset
from monai.engines import SupervisedEvaluator
from monai.engines.utils import IterationEvents
from monai.inferers import Inferer
from torch import Tensor, nn

from trispade.errors import InputError, find_input_error

logger = logging.getLogger(__name__)

FAILURE = "failure"


class IsolateFailures:
    """Wraps a dictionary transform: bad input becomes an item that tells of it instead of an error.

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
            found = find_input_error(error)
            if found is None:
                raise
            return {self.name_key: item[self.name_key], FAILURE: str(found)}


class CaseDataset(Dataset):
    """Cases one by one; bad input becomes an item that tells of it (see `IsolateFailures`).

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

    Args:
        postprocessing: dictionary transform of the item with its ``pred`` (C, X, Y, Z), on the CPU.
        raise_failures: end a run in which cases failed with an error that lists them; if not, they are in ``failures``.
        options: those of `monai.engines.SupervisedEvaluator`.

    Its loader yields the items of a `CaseDataset` as they are (``collate_fn=first_of_batch``). The network's input gets
    its batch axis here and its output loses it, so that pre- and postprocessing see channel-first arrays.

    Attributes:
        failures: ``case: reason`` for each failed case of the last run.
    """

    def __init__(
        self,
        *,
        postprocessing: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
        raise_failures: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(**options, decollate=False)
        self.raise_failures = raise_failures
        self.case_postprocessing = postprocessing
        self.failures: list[str] = []
        self.add_event_handler(Events.STARTED, lambda engine: self.failures.clear())

    def run(self, global_epoch: int = 1) -> None:
        """Run over all cases, if any are left.

        Raises:
            InputError: at the end, if cases failed and ``raise_failures``; it lists them all.
        """
        if self.state.epoch_length == 0:
            logger.info("no case is left to do")
            return
        super().run(global_epoch)
        if self.failures and self.raise_failures:
            raise InputError.of_many(f"{len(self.failures)} of {self.state.iteration} cases failed:", self.failures)

    def _iteration(self, engine: Engine, batchdata: dict[str, Any]) -> dict[str, Any]:
        name = batchdata.get("case_id", "?")
        if FAILURE in batchdata:
            return self._fail(name, batchdata[FAILURE])
        try:
            return self._run_case(engine, batchdata)
        except Exception as error:
            found = find_input_error(error)
            if found is None:
                raise
            return self._fail(name, str(found))

    def _run_case(self, engine: Engine, item: dict[str, Any]) -> dict[str, Any]:
        with engine.mode(engine.network):
            item["pred"] = predict(item["image"], engine.network, engine.inferer, engine.state.device)
        engine.fire_event(IterationEvents.FORWARD_COMPLETED)
        engine.state.output = item if self.case_postprocessing is None else self.case_postprocessing(item)
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return engine.state.output

    def _fail(self, name: str, reason: str) -> dict[str, Any]:
        self.failures.append(f"{name}: {reason}")
        logger.warning("%s", self.failures[-1])
        return {FAILURE: reason}
