"""Processes for the tests, and what they run: small trainings put together as the configs do it."""

from __future__ import annotations

import io
import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import ValidationHandler
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler

from trispade.data import PatchDataset, PreparedCase, SliceDataset, StreamBatchSampler, VolumeDataset
from trispade.data.painted import PaintedCase
from trispade.data.quantised import quantise
from trispade.distributed import join_ranks, leave_ranks
from trispade.engines import (
    AutocastInferer,
    AverageWeights,
    BrainPSNR,
    ClipGradients,
    KeepBest,
    RecalibrateBeforeUse,
    ReduceLosses,
    ReportValidation,
    SpadeTrainer,
    StopAtBadNumbers,
    TensorBoardTraining,
    TrainingState,
    WatchDiscriminator,
    label_map_and_t1w,
    planes_and_t1w,
    scalar_outputs,
    wrap,
)
from trispade.geometry import PLANES, slice_axis
from trispade.inference import PlaneInferer
from trispade.losses import DiscriminatorHingeLoss, FeatureMatchingLoss, GeneratorHingeLoss, TextureLoss
from trispade.networks import FusionNet, SpadeDiscriminator, SpadeGenerator

STEPS = 20
SLURM = {f"SLURM_{name}": value for name, value in (("JOB_ID", "1"), ("PROCID", "0"), ("LOCALID", "0"))}
SLURM |= {"SLURM_NTASKS": "2", "SLURM_JOB_NODELIST": "a,b", "SLURM_JOB_NUM_NODES": "2"}  # one task on each of two nodes
EPOCHS = 2
CONTEXT = multiprocessing.get_context("forkserver")  # one import of torch and MONAI for all processes
CONTEXT.set_forkserver_preload(["ranks"])


def run_ranks(work: Callable[..., Any], world_size: int, *arguments: Any, seconds: float = 120.0) -> list[Any]:
    """Run ``work(rank, world_size, *arguments)`` in processes that have joined; give what each returns."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    results = CONTEXT.SimpleQueue()
    given = (work, world_size, port, results, arguments)
    processes = [CONTEXT.Process(target=_join_and_work, args=(rank, *given), daemon=True) for rank in range(world_size)]
    for process in processes:
        process.start()
    received = dict(results.get() for _ in processes)
    found = {rank: torch.load(io.BytesIO(content), weights_only=True) for rank, content in received.items()}
    for process in processes:
        process.join(seconds)
        assert process.exitcode == 0, (process.exitcode, found)
    return [found[rank] for rank in range(world_size)]


def _join_and_work(
    rank: int, work: Callable[..., Any], world_size: int, port: int, results: Any, arguments: Sequence[Any]
) -> None:
    torch.set_num_threads(1)
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "MASTER_ADDR": "127.0.0.1"}
    os.environ.update({name: str(value) for name, value in places.items()})
    os.environ.update(MASTER_PORT=str(port), TORCHELASTIC_RUN_ID="test", **SLURM)
    try:
        join_ranks(timeout_minutes=1)
        results.put((rank, _to_bytes(work(rank, world_size, *arguments))))
        leave_ranks()
    except BaseException:
        results.put((rank, _to_bytes(traceback.format_exc())))
        raise


def _to_bytes(value: Any) -> bytes:
    buffer = io.BytesIO()  # tensors that travel otherwise need the process that they come from
    torch.save(value, buffer)
    return buffer.getvalue()


def train_gan(
    rank: int,
    world_size: int,
    folder: Path,
    cases: Sequence[PreparedCase],
    batch_size: int,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Any]:
    """Train a tiny GAN for 20 steps, or what is left of them, with validation, an average and checkpoints."""
    torch.manual_seed(0)
    generator = SpadeGenerator(num_classes=4, out_channels=1, ngf=2, hidden=4, max_channels=8).to(dtype)
    discriminator = SpadeDiscriminator(num_classes=4, ndf=4, num_scales=2, num_layers=2).to(dtype)
    for parameter in (*generator.parameters(), *discriminator.parameters()):
        # With the published gain of 0.02, gradients of nets this small are rounding errors, which Adam takes for steps.
        nn.init.normal_(parameter, std=0.7 / max(10, parameter[0].numel()) ** 0.5)
    average = AverageWeights(generator, half_life=10)
    average.average.to(dtype)
    optimizers = {
        "generator_optimizer": torch.optim.Adam(generator.parameters(), lr=2e-5, betas=(0.0, 0.9)),
        "discriminator_optimizer": torch.optim.Adam(discriminator.parameters(), lr=8e-5, betas=(0.0, 0.9)),
    }
    dataset = SliceDataset(cases, "axial", flip=True)
    objects = {"generator": generator, "discriminator": discriminator, "average": average.average, **optimizers}
    stage = Stage(rank, world_size, folder, objects, dataset, batch_size)
    recalibration = RecalibrateBeforeUse(average.network, dataset, num_batches=2, batch_size=4)
    validation = stage.validation(
        VolumeDataset(cases[:2]), average.network, PlaneInferer("axial", 8), label_map_and_t1w
    )
    trainer = SpadeTrainer(
        device="cpu",
        max_epochs=EPOCHS,
        train_data_loader=stage.loader,
        network=wrap(generator, stage.sampler),
        optimizer=optimizers["generator_optimizer"],
        discriminator=wrap(discriminator, stage.sampler),
        discriminator_optimizer=optimizers["discriminator_optimizer"],
        generator_loss=GeneratorHingeLoss(),
        discriminator_loss=DiscriminatorHingeLoss(),
        feature_matching=FeatureMatchingLoss(),
        feature_matching_weight=10.0,
        reconstruction_weight=1.0,
        train_handlers=[average, WatchDiscriminator(), recalibration, validation, *stage.handlers()],
    )
    return stage.run(trainer)


def train_all(rank: int, world_size: int, folder: Path, cases: Sequence[PaintedCase]) -> dict[str, Any]:
    """Train everything, two processes less; each gets its own folder, and only the first one's may be written to."""
    own, prepared = folder / str(rank), [case.prepared for case in cases]
    found = {
        "gan": train_gan(rank, world_size, own / "gan", prepared, batch_size=5),
        "fusion": train_fusion(rank, world_size, own / "fusion", cases, batch_size=5),
    }
    if world_size != 2:
        found["gan in double precision"] = train_gan(rank, world_size, own / "double", prepared, 5, torch.float64)
        found["gan of two slices a batch"] = train_gan(rank, world_size, own / "two", prepared, batch_size=2)
        found["fusion of two patches a batch"] = train_fusion(rank, world_size, own / "patches", cases, batch_size=2)
    if (folder / "resumed").exists():
        found["gan, resumed"] = train_gan(rank, world_size, folder / "resumed", prepared, batch_size=5)
    return found


def make_cases(folder: Path, count: int) -> list[PaintedCase]:
    """Write small painted cases: boxes of three classes, noise on all volumes."""
    return [_make_case(folder / str(seed), seed) for seed in range(count)]


def _make_case(folder: Path, seed: int) -> PaintedCase:
    generator = np.random.default_rng(seed)
    label_map = np.zeros((32, 32, 32), np.uint8)
    # Up to the corners: were they all background, coarse features would have no variance, and norms blow up noise.
    label_map[:, :, 6:26] = generator.integers(1, 4, (4, 4, 20)).repeat(8, axis=0).repeat(8, axis=1)
    folder.mkdir(parents=True)
    np.save(folder / "label_map.npy", label_map)
    for name in ("t1w", *PLANES):
        noisy = label_map / 4 + generator.normal(0, 0.05, label_map.shape)
        np.save(folder / f"{name}.npy", quantise(np.where(label_map > 0, noisy, -1.0)))
    slices = {
        plane: np.flatnonzero(np.moveaxis(label_map > 0, slice_axis(plane), 0).any(axis=(1, 2))).tolist()
        for plane in PLANES
    }
    record = {"classes": [0, 1, 2, 3], "labelled_slices": slices}
    return PaintedCase(PreparedCase(str(seed), str(seed), "gan_train", None, folder, str(seed), record), folder, {})


def train_fusion(
    rank: int, world_size: int, folder: Path, cases: Sequence[PaintedCase], batch_size: int
) -> dict[str, Any]:
    """Train a tiny fusion net for 20 steps, or what is left of them, its gradients clipped."""
    torch.manual_seed(0)
    network = FusionNet(channels=(4, 8), residual=True, label_channels=2, num_classes=4)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    dataset = PatchDataset(cases, patch_size=16, overlap=0.5, flip=True)
    stage = Stage(rank, world_size, folder, {"network": network, "optimizer": optimizer}, dataset, batch_size)
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=EPOCHS,
        train_data_loader=stage.loader,
        network=wrap(network, stage.sampler),
        optimizer=optimizer,
        loss_function=TextureLoss(0.5),
        inferer=AutocastInferer(amp=False),
        prepare_batch=planes_and_t1w,
        train_handlers=[
            ClipGradients(network, 0.1),
            stage.validation(VolumeDataset(cases[:2]), network, AutocastInferer(amp=False), planes_and_t1w),
            *stage.handlers(image_keys=("pred", "label")),
        ],
        decollate=False,
    )
    return stage.run(trainer)


class Stream(StreamBatchSampler):
    """Epochs of ten batches, however little data there is."""

    def __len__(self) -> int:
        return STEPS // EPOCHS


class Stage:
    """What the training stages have in common."""

    def __init__(
        self, rank: int, world_size: int, folder: Path, objects: dict[str, Any], dataset: Any, batch_size: int
    ) -> None:
        self.rank, self.world_size = rank, world_size
        self.sampler = Stream(len(dataset), batch_size, rank=rank, world_size=world_size)
        self.loader = DataLoader(dataset, batch_sampler=self.sampler, generator=torch.Generator())
        self.state = TrainingState(folder, objects, {"people": ["a"]}, self.sampler)
        self.tensorboard = TensorBoardTraining(folder / "tensorboard", {}, 5, 1)
        self.objects = {name: item for name, item in objects.items() if item is not None}
        self.metrics: list[float] = []

    def validation(self, dataset: Any, network: nn.Module, inferer: Any, prepare_batch: Any) -> ValidationHandler:
        sampler = DistributedSampler(dataset, self.world_size, self.rank, shuffle=False)
        evaluator = SupervisedEvaluator(
            device=torch.device("cpu"),
            val_data_loader=DataLoader(dataset, sampler=sampler),
            network=network,
            inferer=inferer,
            prepare_batch=prepare_batch,
            key_val_metric={"brain_psnr": BrainPSNR()},
            val_handlers=[ReportValidation(self.tensorboard), KeepBest(self.state)],
            decollate=False,
        )
        evaluator.add_event_handler(
            Events.COMPLETED, lambda engine: self.metrics.append(engine.state.metrics["brain_psnr"])
        )
        return ValidationHandler(1, evaluator)

    def handlers(self, **options: Any) -> list[Any]:
        self.tensorboard.image_keys = options.get("image_keys", self.tensorboard.image_keys)
        return [StopAtBadNumbers(), self.tensorboard, self.state, ReduceLosses(self.sampler)]

    def run(self, trainer: Any) -> dict[str, Any]:
        losses: list[dict[str, float]] = []

        @trainer.on(Events.ITERATION_COMPLETED)
        def note(engine: Engine) -> None:
            losses.append({str(name): value for name, value in scalar_outputs(engine.state.output).items()})

        trainer.run()
        networks = {name: item.state_dict() for name, item in self.objects.items() if isinstance(item, nn.Module)}
        return {"losses": losses, "metrics": self.metrics, "networks": networks}
