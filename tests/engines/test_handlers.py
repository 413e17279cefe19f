from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedTrainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from trispade.data import SliceDataset
from trispade.engines import (
    ClipGradients,
    Progress,
    RecalibrateBeforeUse,
    ReportValidation,
    StopAfter,
    TensorBoardTraining,
    scalar_outputs,
)
from trispade.errors import InputError


class Losses:
    """Process function of an engine: a loss with a gradient, an image and its target."""

    def __call__(self, engine: Engine, batch: int) -> dict[str, torch.Tensor]:
        loss = torch.tensor(float(batch), requires_grad=True) * 1.0
        image = torch.full((2, 1, 4, 6), -1.0)
        return {"loss": loss, "pred": image, "t1w": -image}


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until a test moves it, in seconds."""
    clock = SimpleNamespace(now=100.0)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr("trispade.engines.handlers.time", clock)
    return clock


def run_with_limit(clock, minutes, epochs=3, length=4):
    """Run iterations of one minute each; return the engine and the events that it fired."""
    engine, fired = Engine(lambda engine, batch: batch), []
    StopAfter(minutes).attach(engine)

    @engine.on(Events.ITERATION_STARTED)
    def tick():
        clock.now += 60.0

    for event in (Events.EPOCH_COMPLETED, Events.COMPLETED):
        engine.add_event_handler(event, lambda engine, event=event: fired.append((event, engine.state.iteration)))
    engine.run(range(length), max_epochs=epochs)
    return engine, fired


def test_a_run_stops_when_its_time_is_up_within_an_epoch(clock):
    engine, fired = run_with_limit(clock, 6)
    assert engine.state.iteration == 6
    assert fired == [(Events.EPOCH_COMPLETED, 4), (Events.COMPLETED, 6)]


def test_an_epoch_whose_iterations_are_done_is_completed_before_the_stop(clock):
    engine, fired = run_with_limit(clock, 8)
    assert engine.state.iteration == 8
    assert fired == [(Events.EPOCH_COMPLETED, 4), (Events.EPOCH_COMPLETED, 8), (Events.COMPLETED, 8)]


def test_time_that_goes_by_between_epochs_counts(clock):
    engine = Engine(lambda engine, batch: batch)
    StopAfter(10).attach(engine)

    @engine.on(Events.EPOCH_COMPLETED)
    def validate():
        clock.now += 700.0

    engine.run(range(4), max_epochs=3)
    assert engine.state.iteration <= 5


@pytest.mark.parametrize("minutes", [None, 1000])
def test_without_a_limit_or_within_it_a_run_goes_to_its_end(clock, minutes):
    assert run_with_limit(clock, minutes)[0].state.iteration == 12


def test_no_time_at_all_still_makes_one_step_of_progress(clock):
    assert run_with_limit(clock, 0)[0].state.iteration == 1


def test_scalars_are_picked_from_an_output_and_images_are_not():
    assert scalar_outputs(Losses()(None, 3)) == {"loss": 3.0}


def test_progress_logs_each_epoch_with_its_losses(caplog):
    engine = Engine(Losses())
    Progress("spade axial").attach(engine)
    with caplog.at_level(logging.INFO, "trispade.engines.handlers"):
        engine.run([5], max_epochs=2)
    lines = [record.message for record in caplog.records if record.name == "trispade.engines.handlers"]
    assert lines == ["spade axial: epoch 1 of 2, loss 5.000", "spade axial: epoch 2 of 2, loss 5.000"]


def read_events(folder) -> EventAccumulator:
    events = EventAccumulator(str(folder))
    events.Reload()
    return events


def attach_tensorboard(folder, engine) -> TensorBoardTraining:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.25)
    handler = TensorBoardTraining(folder, {"generator": optimizer}, scalar_interval=2, image_interval=2)
    handler.attach(engine)
    return handler


def test_tensorboard_gets_scalars_rates_images_and_metrics(tmp_path):
    engine, validator = Engine(Losses()), Engine(lambda engine, batch: None)
    handler = attach_tensorboard(tmp_path / "tensorboard", engine)
    ReportValidation(handler).attach(validator)
    validator.state.metrics = {"brain_psnr": 21.5}
    engine.add_event_handler(Events.EPOCH_COMPLETED(every=2), lambda: validator.run([0]))
    engine.run([1, 2, 3], max_epochs=2)
    events = read_events(tmp_path / "tensorboard")
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(2, 2.0), (4, 1.0), (6, 3.0)]
    assert [(e.step, e.value) for e in events.Scalars("rate/generator")] == [(3, 0.25), (6, 0.25)]
    assert [(e.step, e.value) for e in events.Scalars("validation/brain_psnr")] == [(6, 21.5)]
    (image,) = events.Images("painted | real")
    assert (image.step, image.width, image.height) == (6, 2 * 4, 6)


def test_a_log_folder_that_cannot_be_written_is_one_clear_line(tmp_path):
    (tmp_path / "stage").write_text("a file in the way")
    engine = Engine(Losses())
    attach_tensorboard(tmp_path / "stage" / "tensorboard", engine)
    with pytest.raises(InputError, match=r"tensorboard: expected a writable folder, got .* Set --work_dir."):
        engine.run([1])


def test_a_log_that_finds_no_room_is_one_clear_line(tmp_path, monkeypatch):
    engine = Engine(Losses())
    handler = attach_tensorboard(tmp_path / "tensorboard", engine)

    def disk_full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    @engine.on(Events.STARTED)
    def fill_the_disk():
        monkeypatch.setattr(handler.writer, "add_scalar", disk_full)

    with pytest.raises(InputError, match=r"tensorboard: expected a writable folder, got No space left on device. Set"):
        engine.run([1, 2])
    handler.writer.close()


def running_statistics(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in network.named_buffers() if "running" in name}


def recalibrated(build_gan, dataset, steps: int) -> nn.Module:
    gan = build_gan()
    engine = Engine(lambda engine, batch: None)
    engine.state.device = torch.device("cpu")
    RecalibrateBeforeUse(gan.generator, dataset, num_batches=2, batch_size=3, interval=2).attach(engine)
    seen = []
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda: seen.append(running_statistics(gan.generator)))
    engine.run([0], max_epochs=steps)
    return gan.generator, seen


def test_norms_are_measured_before_each_validation_and_at_the_end(build_gan, make_case):
    dataset = SliceDataset([make_case()], "axial", flip=True)
    untouched = running_statistics(build_gan().generator)
    network, (first, second, third) = recalibrated(build_gan, dataset, steps=3)
    assert all(torch.equal(first[name], untouched[name]) for name in untouched)
    assert any(not torch.equal(second[name], untouched[name]) for name in untouched)
    assert all(torch.equal(third[name], second[name]) for name in untouched)  # the weights have not changed
    assert network.training


def test_recalibration_changes_running_statistics_alone(build_gan, make_case):
    before = build_gan().generator.state_dict()
    network, _ = recalibrated(build_gan, SliceDataset([make_case()], "axial"), steps=1)
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all("running" in name for name in changed)


def test_a_small_sample_of_a_large_dataset_is_spread_over_all_of_it(build_gan, make_case):
    asked = []

    class Asked(SliceDataset):
        def __getitem__(self, index):
            asked.append(index)
            return super().__getitem__(index)

    dataset = Asked([make_case(name) for name in "abcde"], "axial")
    recalibrated(build_gan, dataset, steps=1)
    assert sorted(asked) == [0, 5, 11, 17, 23, 29]
    assert asked[:3] == [0, 11, 23]


@pytest.mark.parametrize("options", [{"scaler": object()}, {"scaler": None, "accumulation_steps": 2}])
def test_gradients_that_are_scaled_or_accumulated_are_not_clipped_in_silence(options):
    engine = Engine(lambda engine, batch: None)
    for name, value in options.items():
        setattr(engine, name, value)
    with pytest.raises(ValueError, match="expected neither loss scaling nor accumulation"):
        ClipGradients(nn.Linear(1, 1), max_norm=0.5).attach(engine)


@pytest.mark.parametrize(("slope", "length"), [(30.0, 0.5), (0.25, 0.25)])
def test_a_step_along_a_large_gradient_is_as_long_as_the_bound_and_a_small_one_as_it_was(slope, length):
    network = nn.Linear(1, 1, bias=False)
    before = network.weight.item()
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=[{"image": torch.ones(1, 1), "label": torch.zeros(1, 1)}],
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=1.0),
        loss_function=lambda pred, _: slope * pred.sum(),
        train_handlers=[ClipGradients(network, max_norm=0.5)],
        decollate=False,
    )
    trainer.run()
    assert before - network.weight.item() == pytest.approx(length, rel=1e-4)
