"""Event handlers of the training stages: progress, time limit, TensorBoard, norms."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from ignite.engine import Engine, Events
from ignite.handlers.tqdm_logger import ProgressBar
from monai.engines.utils import IterationEvents
from torch import Tensor, nn
from torch.utils.data import Dataset
from torch.utils.tensorboard import SummaryWriter

from trispade.distributed import is_first, largest
from trispade.errors import InputError
from trispade.networks import recalibrate_norms

logger = logging.getLogger(__name__)


def scalar_outputs(output: dict[str, Tensor]) -> dict[str, float]:
    """Pick the scalars (losses, mean logits) of an engine's output."""
    return {k: float(v.detach()) for k, v in output.items() if isinstance(v, Tensor) and v.numel() == 1}


class Progress:
    """Progress bar of an epoch with the current losses and, after validation, the metrics.

    Args:
        label: what is trained.
    """

    def __init__(self, label: str) -> None:
        self.label = label

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        if is_first():
            bar = ProgressBar(persist=False, desc=self.label)
            bar.attach(engine, output_transform=lambda output: {"loss": float(output["loss"].detach())})
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._log)

    def _log(self, engine: Engine) -> None:
        losses = ", ".join(f"{name} {value:.3f}" for name, value in scalar_outputs(engine.state.output).items())
        logger.info("%s: epoch %d of %d, %s", self.label, engine.state.epoch, engine.state.max_epochs, losses)


class ClipGradients:
    """Scales the gradients of a step down where their norm is above a bound.

    A network without norms that Adam trains on small, steady gradients is thrown out of its minimum by a single large
    one: the direct net was, at 1 mm, after 700 steps.

    Args:
        network: whose gradients.
        max_norm: bound of their common Euclidean norm.

    Raises:
        ValueError: on attaching, if the trainer scales its loss or accumulates gradients, which this does not know.
    """

    def __init__(self, network: nn.Module, max_norm: float) -> None:
        self.network = network
        self.max_norm = max_norm

    def attach(self, engine: Engine) -> None:
        """Register with a `SupervisedTrainer`."""
        if getattr(engine, "scaler", None) is not None or getattr(engine, "accumulation_steps", 1) > 1:
            raise ValueError("trainer: expected neither loss scaling nor accumulation of gradients, got one of them.")
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self._clip)

    def _clip(self, engine: Engine) -> None:
        nn.utils.clip_grad_norm_(self.network.parameters(), self.max_norm)


class StopAfter:
    """Ends a run cleanly, with a checkpoint, when its time is up.

    An epoch whose last iteration is done is completed first: its learning-rate step, validation and checkpoint belong
    to it, and a resumed run begins with the next one.

    Args:
        minutes: time for this run, counted from its start; None for no limit.
    """

    def __init__(self, minutes: float | None) -> None:
        self.minutes = minutes

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        if self.minutes is not None:
            engine.add_event_handler(Events.STARTED, self._start)
            engine.add_event_handler(Events.ITERATION_COMPLETED, self._check_within_epoch)
            engine.add_event_handler(Events.EPOCH_COMPLETED, self._check)

    def _start(self, engine: Engine) -> None:
        self.deadline = time.monotonic() + 60.0 * float(self.minutes or 0.0)

    def _check_within_epoch(self, engine: Engine) -> None:
        if engine.state.iteration % engine.state.epoch_length:
            self._check(engine)

    def _check(self, engine: Engine) -> None:
        if largest(int(time.monotonic() >= self.deadline)):  # clocks differ, and all processes must end together
            logger.info(
                "%s minutes are up at iteration %d: run the same command to go on", self.minutes, engine.state.iteration
            )
            engine.terminate()


class RecalibrateBeforeUse:
    """Measures the generator's normalisation statistics anew before each validation and at the end of the run.

    Args:
        network: the generator.
        dataset: of slices; an evenly spaced sample of it is used.
        num_batches: how many batches.
        batch_size: slices a batch.
        interval: epochs between validations.
    """

    def __init__(
        self,
        network: nn.Module,
        dataset: Dataset,
        num_batches: int,
        batch_size: int,
        interval: int = 1,
    ) -> None:
        self.network = network
        self.dataset = dataset
        self.num_batches = num_batches
        self.batch_size = batch_size
        self.interval = interval
        self.changed = False

    def attach(self, engine: Engine) -> None:
        """Register with the trainer; attach it before the validation and the checkpoint."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._note_change)
        engine.add_event_handler(Events.EPOCH_COMPLETED(every=self.interval), self)
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Recalibrate the network's norms, unless its weights are those of the last time."""
        if not self.changed:
            return
        self.changed = False
        count = min(len(self.dataset), self.num_batches * self.batch_size)  # type: ignore[arg-type]
        picked = torch.linspace(0, len(self.dataset) - 1, count).long()  # type: ignore[arg-type]
        # Neighbouring slices look alike: a stride through the sample mixes positions and people in every batch.
        batches = [
            picked[start :: max(1, count // self.batch_size)] for start in range(max(1, count // self.batch_size))
        ]
        recalibrate_norms(self.network, (self._label_maps(batch, engine.state.device) for batch in batches))

    def _note_change(self, engine: Engine) -> None:
        self.changed = True

    def _label_maps(self, indices: Tensor, device: torch.device) -> Tensor:
        return torch.stack([self.dataset[int(i)]["label_map"] for i in indices]).to(device)


class TensorBoardTraining:
    """Writes scalars every few iterations, the learning rate each epoch, and images of the last batch.

    Of several processes only the first writes.

    Args:
        log_dir: folder of the event files.
        optimizers: name to optimizer, for the learning rates.
        scalar_interval: iterations between scalars.
        image_interval: epochs between images.
        image_keys: entries of the output, (B, C, H, W) or (B, C, X, Y, Z) in [-1, 1], shown side by side.
    """

    def __init__(
        self,
        log_dir: str | Path,
        optimizers: dict[str, torch.optim.Optimizer],
        scalar_interval: int,
        image_interval: int,
        image_keys: Sequence[str] = ("pred", "t1w"),
    ) -> None:
        self.log_dir = str(log_dir)
        self.optimizers = optimizers
        self.scalar_interval = scalar_interval
        self.image_interval = image_interval
        self.image_keys = image_keys

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        if not is_first():
            return
        self.trainer = engine
        engine.add_event_handler(Events.STARTED, self._open)
        engine.add_event_handler(Events.ITERATION_COMPLETED(every=self.scalar_interval), self._write_scalars)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._write_rates)
        engine.add_event_handler(Events.EPOCH_COMPLETED(every=self.image_interval), self._write_images)
        engine.add_event_handler(Events.COMPLETED, self._close)

    def write_metrics(self, validator: Engine) -> None:
        """Write a validating engine's metrics at the trainer's iteration."""
        if not is_first():
            return
        self._add("validation", {name: float(value) for name, value in validator.state.metrics.items()})

    def _open(self, engine: Engine) -> None:
        with self._told_in_one_line():
            self.writer = SummaryWriter(self.log_dir)

    def _write_scalars(self, engine: Engine) -> None:
        self._add("train", scalar_outputs(engine.state.output))

    def _write_rates(self, engine: Engine) -> None:
        self._add("rate", {name: each.param_groups[0]["lr"] for name, each in self.optimizers.items()})

    def _add(self, group: str, values: dict[str, float]) -> None:
        with self._told_in_one_line():
            for name, value in values.items():
                self.writer.add_scalar(f"{group}/{name}", value, self.trainer.state.iteration)

    def _write_images(self, engine: Engine) -> None:
        shown = [_middle_slice(engine.state.output[key]) for key in self.image_keys]
        image = torch.cat(shown, dim=-1).float().add(1.0).div(2.0).clamp(0.0, 1.0)
        with self._told_in_one_line():
            self.writer.add_image("painted | real", image, engine.state.iteration)

    def _close(self, engine: Engine) -> None:
        with self._told_in_one_line():
            self.writer.close()

    @contextmanager
    def _told_in_one_line(self) -> Iterator[None]:
        """Tell of a folder that cannot be written or a full disk; the writer's own thread may meet it much later."""
        try:
            yield
        except OSError as error:
            reason = error.strerror or str(error)
            remedy = "Set --work_dir, or make room."
            raise InputError.of(self.log_dir, "a writable folder", reason, remedy) from error


class ReportValidation:
    """Handler of a validating engine that logs its metrics and writes them to TensorBoard.

    Args:
        tensorboard: the trainer's `TensorBoardTraining`.
    """

    def __init__(self, tensorboard: TensorBoardTraining) -> None:
        self.tensorboard = tensorboard

    def attach(self, engine: Engine) -> None:
        """Register with the validating engine."""
        engine.add_event_handler(Events.COMPLETED, self.tensorboard.write_metrics)
        engine.add_event_handler(Events.COMPLETED, self._log)

    def _log(self, engine: Engine) -> None:
        logger.info("validation: %s", ", ".join(f"{n} {float(v):.3f}" for n, v in engine.state.metrics.items()))


def _middle_slice(batch: Tensor) -> Tensor:
    """First item and channel of a batch, cut to its middle slice if it is a volume; (1, W, H) for display."""
    image = batch[0, 0].detach().cpu()
    if image.ndim == 3:
        image = image[..., image.shape[-1] // 2]
    return image.T.flip(0)[None]
