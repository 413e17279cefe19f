"""Several processes that work as one: how they meet, agree and part, and who of them writes.

A process that was not joined by others is the first and only one, for which everything here costs nothing.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any, ParamSpec, TypeVar

import ignite.distributed as idist
import torch
import torch.distributed as dist

from trispade.errors import InputError

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def join_ranks(timeout_minutes: float, backend: str | None = None) -> None:
    """Meet the other processes that torchrun started; what those other than the first do is not logged.

    Args:
        timeout_minutes: how long a process waits for the others before it takes one of them for dead.
        backend: ``nccl`` or ``gloo``; None takes nccl where there are GPUs and gloo elsewhere.

    Raises:
        InputError: if torchrun did not start this process.
    """
    if not started_by_torchrun():
        raise InputError.of("multi_gpu", "torchrun to start the processes", "none", "See docs/scaling.md.")
    chosen = backend or ("nccl" if torch.cuda.is_available() else "gloo")
    slurm_job = os.environ.pop("SLURM_JOB_ID", None)  # Ignite would take Slurm's tasks, one a node, for the processes
    try:
        idist.initialize(chosen, timeout=timedelta(minutes=timeout_minutes))
    finally:
        if slurm_job is not None:
            os.environ["SLURM_JOB_ID"] = slurm_job
    if not is_first():
        logging.disable(logging.INFO)


def leave_ranks() -> None:
    """Part from the other processes."""
    logging.disable(logging.NOTSET)
    idist.finalize()


def started_by_torchrun() -> bool:
    """Tell whether this process is one of torchrun's."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def refuse_lone_ranks() -> None:
    """Refuse to go on where torchrun started several processes that have not joined, and would write the same files.

    Raises:
        InputError: that names the overlay.
    """
    if started_by_torchrun() and int(os.environ["WORLD_SIZE"]) > 1 and num_ranks() == 1:
        remedy = "Name it after the stage and the preset, or run without torchrun."
        raise InputError.of("torchrun", "overlays/multi_gpu.yaml among the configs", "several runs of one", remedy)


def num_ranks() -> int:
    """Count the processes."""
    return idist.get_world_size()


def is_first() -> bool:
    """Tell whether this is the process that writes and talks."""
    return idist.get_rank() == 0


def largest(number: int) -> int:
    """Agree on the largest number that any process gives; all of them must call it."""
    return number if num_ranks() == 1 else int(idist.all_reduce(number, op="MAX"))


def gather(value: Result) -> list[Result]:
    """Collect a picklable value of each process, by rank, in all of them; all of them must call it."""
    if num_ranks() == 1:
        return [value]
    found: list[Any] = [None] * num_ranks()
    dist.all_gather_object(found, value)
    return found


def by_first_rank(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Have a function run in the first process alone; the others wait and get what it returns, which must be picklable.

    If it fails, the first process raises, and the others end without a word, so that its message is the one to be read.
    """

    @functools.wraps(function)
    def run(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        if num_ranks() == 1:
            return function(*args, **kwargs)
        outcome: list[Any] = [False, None]
        try:
            if is_first():
                outcome = [True, function(*args, **kwargs)]
        finally:
            dist.broadcast_object_list(outcome, src=0)
        done, result = outcome
        if not done:
            raise SystemExit(1)
        return result

    return run
