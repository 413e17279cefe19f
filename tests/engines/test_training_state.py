from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ignite.engine import Events
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import LrScheduleHandler, ValidationHandler
from torch import Tensor
from torch.utils.data import DataLoader

from trispade.data import (
    PatchDataset,
    SliceDataset,
    StreamBatchSampler,
    VolumeDataset,
    open_painted_cases,
    store_painted_case,
)
from trispade.data.painted import painted_folder
from trispade.engines import (
    AutocastInferer,
    BrainPSNR,
    KeepBest,
    RecalibrateBeforeUse,
    StopAfter,
    TrainingState,
    constant_then_linear,
    is_finished,
    label_map_and_t1w,
    load_checkpoint,
    planes_and_t1w,
    save_checkpoint,
    scalar_outputs,
)
from trispade.errors import InputError
from trispade.geometry import PLANES, slice_volume, stack_slices
from trispade.networks import FusionNet

RECORD = {"plane": "axial", "architecture": {"ngf": 2}, "people": ["p1"], "settings": {"box": [32, 32, 32]}}
EPOCHS, LENGTH = 3, 4


class Clock:
    """Handler under which every iteration takes a minute."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def attach(self, engine) -> None:
        engine.add_event_handler(Events.ITERATION_STARTED, self.tick)

    def tick(self, engine) -> None:
        self.now += 60.0


@pytest.fixture(autouse=True)
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("trispade.engines.handlers.time", clock)
    monkeypatch.setattr("trispade.durable.os.fsync", lambda _: None)  # no power fails here
    return clock


def validation(network, dataset, prepare_batch, inferer, state) -> ValidationHandler:
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(dataset),
        network=network,
        prepare_batch=prepare_batch,
        inferer=inferer,
        key_val_metric={"brain_psnr": BrainPSNR()},
        val_handlers=[KeepBest(state)],
        decollate=False,
    )
    return ValidationHandler(1, evaluator)


def paint_axial(label_map: Tensor, network) -> Tensor:
    return stack_slices(network(slice_volume(label_map[0], "axial")), "axial")[None]


class Stage:
    """A training stage as its config builds it, in small; `run` is one start of the command."""

    def __init__(self, folder, clock: Clock) -> None:
        self.folder, self.clock = folder, clock

    def run(self, minutes: float | None = None, die_at: int | None = None, **changes: Any) -> list[dict[str, float]]:
        """Train, until the time is up or the machine dies; return the losses of each iteration of this run."""
        trainer, losses = self.build(minutes, **changes), []
        self.rates: list[float] = []

        @trainer.on(Events.ITERATION_COMPLETED)
        def note(engine):
            losses.append({"iteration": engine.state.iteration, **scalar_outputs(engine.state.output)})
            self.rates.append(self.optimizer.param_groups[0]["lr"])
            if engine.state.iteration == die_at:
                raise ConnectionError("the machine is gone")

        if die_at is None:
            trainer.run()
        else:
            with pytest.raises(ConnectionError):
                trainer.run()
        return losses

    def loader(self, dataset, batch_size, workers=0) -> tuple[StreamBatchSampler, DataLoader]:
        sampler = StreamBatchSampler(len(dataset), batch_size, seed=3)
        loader = DataLoader(dataset, batch_sampler=sampler, num_workers=workers, generator=torch.Generator())
        assert len(loader) == LENGTH
        return sampler, loader


class GanStage(Stage):
    def __init__(self, folder, clock, build_gan, make_case) -> None:
        super().__init__(folder, clock)
        self.build_gan = build_gan
        self.cases = [make_case("a"), make_case("b", seed=1)]

    def build(self, minutes, record=RECORD, max_epochs=EPOCHS, workers=0, part_mib=None, rate=1e-3, **gan_options):
        gan = self.build_gan(noisy=True, **gan_options)
        gan.generator_optimizer.param_groups[0]["lr"] = rate
        dataset = SliceDataset(self.cases, "axial", flip=True, seed=3)
        sampler, loader = self.loader(dataset, 3, workers)
        objects = {name: getattr(gan, name) for name in vars(gan)}
        for name in ("generator", "discriminator"):
            schedule = constant_then_linear(max_epochs, decay_from=0.5)
            objects[f"{name}_scheduler"] = torch.optim.lr_scheduler.LambdaLR(objects[f"{name}_optimizer"], schedule)
        state = TrainingState(self.folder, objects, record, sampler, part_mib=part_mib)
        handlers = [
            self.clock,
            StopAfter(minutes),
            *(LrScheduleHandler(objects[f"{n}_scheduler"], print_lr=False) for n in ("generator", "discriminator")),
            RecalibrateBeforeUse(gan.generator, dataset, num_batches=2, batch_size=4),
            validation(gan.generator, VolumeDataset(self.cases[:1]), label_map_and_t1w, paint_axial, state),
            state,
        ]
        self.schedule, self.state, self.optimizer = objects["generator_scheduler"], state, gan.generator_optimizer
        return gan.trainer(loader, max_epochs=max_epochs, train_handlers=handlers)


class FusionStage(Stage):
    def __init__(self, folder, clock, make_case) -> None:
        super().__init__(folder, clock)
        case = make_case("a")
        planes = {plane: case.t1w() * (0.4 + 0.2 * i) for i, plane in enumerate(PLANES)}
        record = {"prepared_key": case.key, "generator_people": []}
        store_painted_case(painted_folder(folder / "planes", case, dict.fromkeys(PLANES, "g")), planes, record)
        self.cases = open_painted_cases([case], folder / "planes")

    def build(self, minutes, record=RECORD, max_epochs=EPOCHS, workers=0, part_mib=None, rate=1e-3):
        torch.manual_seed(0)
        network = torch.nn.Sequential(FusionNet(channels=(2, 4)), torch.nn.Dropout3d(0.2))
        optimizer = self.optimizer = torch.optim.Adam(network.parameters(), lr=rate)
        sampler, loader = self.loader(PatchDataset(self.cases, 16, 0.5, flip=True, seed=3), 6, workers)
        state = TrainingState(
            self.folder, {"network": network, "optimizer": optimizer}, record, sampler, part_mib=part_mib
        )
        inferer = AutocastInferer(amp=True)
        validate = validation(network, VolumeDataset(self.cases), planes_and_t1w, inferer, state)
        return SupervisedTrainer(
            device=torch.device("cpu"),
            max_epochs=max_epochs,
            train_data_loader=loader,
            network=network,
            optimizer=optimizer,
            loss_function=torch.nn.MSELoss(),
            inferer=inferer,
            prepare_batch=planes_and_t1w,
            train_handlers=[self.clock, StopAfter(minutes), validate, state],
            decollate=False,
        )


@pytest.fixture(params=["gan", "fusion"])
def make_stage(request, tmp_path, clock, build_gan, make_case):
    def make(name: str) -> Stage:
        folder = tmp_path / name
        folder.mkdir()

        def case(case_id, **options):
            return make_case(f"{name}-{case_id}", **options)

        return GanStage(folder, clock, build_gan, case) if request.param == "gan" else FusionStage(folder, clock, case)

    return make


def flatten(value: Any, name: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        return {key: leaf for k, each in value.items() for key, leaf in flatten(each, f"{name}/{k}").items()}
    if isinstance(value, list | tuple):
        return flatten(dict(enumerate(value)), name)
    return {name: value}


def assert_equal_to_the_last_bit(folder, other, name="last.pt") -> None:
    first, second = flatten(load_checkpoint(folder / name)), flatten(load_checkpoint(other / name))
    assert first.keys() == second.keys()
    different = [
        key
        for key, value in first.items()
        if not (torch.equal(value, second[key]) if isinstance(value, Tensor) else value == second[key])
    ]
    assert different == []


@pytest.fixture
def uninterrupted(make_stage):
    stage = make_stage("uninterrupted")
    return SimpleNamespace(folder=stage.folder, losses=stage.run())


@pytest.mark.parametrize("stops", [[4], [6], [1, 4, 1, 3]], ids=str)
def test_a_stopped_run_goes_on_as_if_never_stopped(make_stage, uninterrupted, stops):
    stage = make_stage("stopped")
    losses = [loss for minutes in stops for loss in stage.run(minutes)]
    assert len(losses) == sum(stops)
    losses += stage.run()
    assert losses == uninterrupted.losses
    assert len(losses) == EPOCHS * LENGTH
    for name in ("last.pt", "best.pt"):
        assert_equal_to_the_last_bit(stage.folder, uninterrupted.folder, name)


def test_a_run_that_dies_goes_on_from_its_last_whole_epoch(make_stage, uninterrupted):
    stage = make_stage("dead")
    stage.run(die_at=6)
    assert stage.run() == uninterrupted.losses[4:]
    assert_equal_to_the_last_bit(stage.folder, uninterrupted.folder)


def test_loader_workers_and_checkpoints_in_parts_change_nothing(make_stage, uninterrupted):
    stage = make_stage("workers")
    losses = stage.run(6, workers=1, part_mib=0.01) + stage.run(workers=1, part_mib=0.01)
    assert losses == uninterrupted.losses
    assert (stage.folder / "last.pt.parts.json").exists()
    assert_equal_to_the_last_bit(stage.folder, uninterrupted.folder)


def test_a_finished_run_started_again_does_nothing(make_stage, uninterrupted):
    stage = make_stage("finished")
    stage.run()
    assert stage.run() == []
    assert_equal_to_the_last_bit(stage.folder, uninterrupted.folder)


def test_a_longer_run_takes_up_a_finished_one(make_stage):
    stage = make_stage("longer")
    stage.run()
    assert [loss["iteration"] for loss in stage.run(max_epochs=EPOCHS + 1)] == [13, 14, 15, 16]


def test_a_run_that_is_given_more_epochs_goes_on_as_if_it_had_been_given_them_at_once(make_stage):
    at_once, extended = make_stage("at_once"), make_stage("extended")
    expected = at_once.run(max_epochs=2 * EPOCHS)
    losses = extended.run(LENGTH) + extended.run(max_epochs=2 * EPOCHS)
    assert losses == expected
    assert extended.rates == at_once.rates[LENGTH:]
    assert_equal_to_the_last_bit(extended.folder, at_once.folder)


def test_a_finished_run_that_is_given_more_epochs_learns_at_the_rate_of_the_longer_schedule(gan_stage):
    gan_stage.run()
    assert gan_stage.optimizer.param_groups[0]["lr"] == 0
    gan_stage.run(max_epochs=2 * EPOCHS)
    assert gan_stage.rates == [rate for rate in (1e-3, 1e-3 * (2 / 3), 1e-3 * (1 / 3)) for _ in range(LENGTH)]


def test_a_changed_learning_rate_is_taken_up_said_and_kept(make_stage, caplog):
    stage = make_stage("changed")
    with caplog.at_level("INFO"):
        stage.run(LENGTH)
        stage.run(1)
    assert "learning rate" not in caplog.text
    with caplog.at_level("INFO"):
        stage.run(1, rate=5e-4)
    assert "optimizer goes on at a learning rate of 0.0005; its checkpoint had 0.001" in caplog.text
    assert stage.rates == [5e-4]
    caplog.clear()
    with caplog.at_level("INFO"):
        stage.run(1, rate=5e-4)
    assert "learning rate" not in caplog.text


def test_a_checkpoint_says_how_far_it_got(make_stage):
    stage = make_stage("short")
    stage.run(6)
    record = load_checkpoint(stage.folder / "last.pt")["record"]
    assert record == {**RECORD, "iterations": 6, "epochs": 1, "finished": False}
    assert not is_finished(stage.folder)
    stage.run()
    assert is_finished(stage.folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"plane": "coronal"}, "plane 'coronal', got 'axial'"),
        ({"architecture": {"ngf": 64}}, "architecture {'ngf': 64}, got {'ngf': 2}"),
        ({"settings": {"box": [64, 64, 64]}}, "settings {'box': .64, 64, 64.}, got {'box': .32, 32, 32.}"),
        ({"people": ["p1", "p2"]}, r"people \['p1', 'p2'\], got \['p1'\]"),
        ({"vocabulary": {"name": "other", "classes": [1, 2]}}, "vocabulary 'other' of 2 classes, got None"),
    ],
)
def test_a_checkpoint_of_another_run_is_one_clear_line(make_stage, changes, message):
    stage = make_stage("other")
    stage.run(1)
    with pytest.raises(
        InputError, match=f"last.pt: expected a checkpoint with {message}. Go back to the settings"
    ) as caught:
        stage.run(record={**RECORD, **changes})
    assert "\n" not in str(caught.value)


def test_a_stopped_run_with_style_goes_on_as_if_never_stopped(tmp_path, clock, build_gan, make_case):
    def stage(name):
        return GanStage(tmp_path / name, clock, build_gan, lambda case_id, **kw: make_case(f"{name}-{case_id}", **kw))

    uninterrupted, stopped = stage("uninterrupted"), stage("stopped")
    losses = uninterrupted.run(2 * LENGTH, style_dim=3)
    assert losses[0]["style_divergence"] != losses[-1]["style_divergence"]
    assert stopped.run(3, style_dim=3) + stopped.run(2 * LENGTH - 3, style_dim=3) == losses
    assert "mean.weight" in load_checkpoint(stopped.folder / "last.pt")["objects"]["encoder"]
    assert_equal_to_the_last_bit(stopped.folder, uninterrupted.folder)


def test_a_checkpoint_without_style_has_no_entry_for_it(gan_stage):
    gan_stage.run(1)
    assert set(load_checkpoint(gan_stage.folder / "last.pt")["objects"]) == {
        *("generator", "generator_optimizer", "generator_scheduler", "generator_scaler"),
        *("discriminator", "discriminator_optimizer", "discriminator_scheduler", "discriminator_scaler"),
    }


@pytest.fixture
def gan_stage(tmp_path, clock, build_gan, make_case) -> GanStage:
    return GanStage(tmp_path / "stage", clock, build_gan, make_case)


def test_weights_that_do_not_fit_are_one_clear_line(gan_stage):
    gan_stage.run(1)
    with pytest.raises(
        InputError, match=r"last.pt: expected a state of the discriminator of this preset, got"
    ) as caught:
        gan_stage.run(ndf=8)
    assert "\n" not in str(caught.value)


def test_a_torn_checkpoint_without_one_before_it_stops_the_run_before_it_is_overwritten(gan_stage):
    gan_stage.run(1)
    last = gan_stage.folder / "last.pt"
    last.write_bytes(last.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"last.pt: expected a checkpoint written by trispade, got an unreadable file"):
        gan_stage.run()
    assert last.stat().st_size == 1000


def test_a_torn_checkpoint_is_passed_over_and_the_run_goes_on_from_the_one_before(make_stage, uninterrupted, caplog):
    stage = make_stage("torn")
    stage.run(6)
    last, previous = stage.folder / "last.pt", stage.folder / "previous.pt"
    assert load_checkpoint(previous)["iteration"] == LENGTH
    last.write_bytes(last.read_bytes()[:1000])
    assert stage.run(1) == uninterrupted.losses[LENGTH : LENGTH + 1]
    assert "previous.pt, the one before it, takes its place" in caplog.text
    assert load_checkpoint(previous)["iteration"] == LENGTH  # the torn one has not taken its place
    assert stage.run() == uninterrupted.losses[LENGTH + 1 :]
    for name in ("last.pt", "previous.pt", "best.pt"):
        assert_equal_to_the_last_bit(stage.folder, uninterrupted.folder, name)


def test_the_checkpoint_before_the_last_is_of_another_iteration(make_stage):
    stage = make_stage("kept")
    for minutes, expected in ((6, LENGTH), (1, 6), (1, 7)):
        stage.run(minutes)
        assert load_checkpoint(stage.folder / "previous.pt")["iteration"] == expected
    stage.run()
    stage.run()  # a finished run saves its state again
    assert load_checkpoint(stage.folder / "previous.pt")["iteration"] == (EPOCHS - 1) * LENGTH


def test_the_best_state_is_kept_over_a_restart_and_a_worse_or_undefined_one_is_not(tmp_path):
    network = torch.nn.Linear(1, 1)

    def validated(metric, weight):
        state = TrainingState(tmp_path, {"network": network}, {}, SimpleNamespace())
        state.trainer = SimpleNamespace(
            state=SimpleNamespace(device=torch.device("cpu"), iteration=weight, epoch_length=1, max_epochs=9)
        )
        if (tmp_path / "last.pt").exists():
            state.resume(SimpleNamespace(state=SimpleNamespace(device=torch.device("cpu"), epoch_length=1)))
        torch.nn.init.constant_(network.weight, weight)
        state.keep_best(SimpleNamespace(state=SimpleNamespace(metrics={"psnr": metric}, key_metric_name="psnr")))
        state.save(None)
        if not (tmp_path / "best.pt").exists():
            return None
        return float(load_checkpoint(tmp_path / "best.pt")["objects"]["network"]["weight"])

    metrics = [float("nan"), 20.0, 19.0, float("nan"), 21.0, 20.5]
    assert [validated(metric, i) for i, metric in enumerate(metrics)] == [None, 1.0, 1.0, 1.0, 4.0, 4.0]


def test_a_stop_at_an_epochs_end_does_not_delay_the_schedule(gan_stage):
    gan_stage.run(2 * LENGTH)
    assert gan_stage.schedule.last_epoch == 2
    gan_stage.run(1)
    assert gan_stage.schedule.last_epoch == 2


class Scaler:
    """Stand-in for an enabled gradient scaler, which needs a GPU."""

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def state_dict(self) -> dict[str, float]:
        return {"scale": self.scale} if self.scale else {}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.scale = state["scale"]


@pytest.mark.parametrize(("stored", "restored"), [(1024.0, 1024.0), (0.0, 2.0)])
def test_gradient_scales_are_kept_unless_the_run_so_far_had_none(gan_stage, stored, restored):
    trainer = gan_stage.build(minutes=1)
    trainer.scalers = {"generator_scaler": Scaler(stored)}
    state = gan_stage.state
    state.save(trainer)
    trainer.scalers = {"generator_scaler": Scaler(2.0)}
    state.resume(trainer)
    assert trainer.scalers["generator_scaler"].scale == restored


def test_a_checkpoint_that_lacks_an_object_is_one_clear_line(gan_stage):
    gan_stage.run(1)
    path = gan_stage.folder / "last.pt"
    content = load_checkpoint(path)
    del content["objects"]["generator_scheduler"]
    save_checkpoint(content, path)
    with pytest.raises(InputError, match="expected a state of the generator_scheduler of this preset"):
        gan_stage.run()
