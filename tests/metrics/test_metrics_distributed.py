"""The metrics as Ignite and two processes use them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from ignite.engine import Engine
from monai.handlers import IgniteMetricHandler

from trispade.metrics import (
    MaskedIncoherence,
    MaskedMSE,
    MaskedMSSSIM,
    MaskedPSNR,
    MaskedSharpness,
    MaskedSpectrumRatio,
    MaskedSSIM,
    PatchDistance,
    StructureError,
)

SHAPE = (34, 33, 35)
NUM_CASES = 3


def make_metrics() -> dict[str, object]:
    return {
        "mse": MaskedMSE(),
        "psnr": MaskedPSNR(),
        "ssim": MaskedSSIM(),
        "ms_ssim": MaskedMSSSIM(weights=(0.4, 0.6)),
        "sharpness": MaskedSharpness(),
        "spectrum_ratio": MaskedSpectrumRatio((1.0, 1.0, 1.0)),
        "incoherence": MaskedIncoherence(),
        "mean_error": StructureError(3, "mean"),
        "sd_error": StructureError(3, "sd"),
        "frechet_distance": PatchDistance("frechet"),
        "kernel_distance": PatchDistance("kernel"),
    }


def make_case(number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Synthetic volume (1, X, Y, Z), and the real one with its label map as second channel (2, X, Y, Z)."""
    generator = torch.Generator().manual_seed(number)
    y = torch.rand(1, *SHAPE, generator=generator)
    y_pred = (y + (0.05 + 0.05 * number) * torch.rand(1, *SHAPE, generator=generator)).clamp(0, 1)
    label_map = torch.zeros(1, *SHAPE)
    label_map[:, 1:33, :, 1:] = 1
    label_map[:, 1:15, :, 1:] = 2
    return y_pred, torch.cat([y, label_map])


def run_engine(numbers: list[int]) -> dict[str, torch.Tensor]:
    engine = Engine(lambda _, number: [make_case(number)])
    for name, metric in make_metrics().items():
        handler = IgniteMetricHandler(
            metric, output_transform=lambda output: ([each[0] for each in output], [each[1] for each in output])
        )
        handler.attach(engine, name)
    engine.run(numbers)
    return {name: torch.as_tensor(value) for name, value in engine.state.metrics.items()}


def directly() -> dict[str, torch.Tensor]:
    metrics = make_metrics()
    for y_pred, y in map(make_case, range(NUM_CASES)):
        for metric in metrics.values():
            metric(y_pred[None], y[None, :1], mask=y[None, 1:])  # type: ignore[operator]
    return {name: metric.aggregate() for name, metric in metrics.items()}  # type: ignore[attr-defined]


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    values = run_engine([[0, 2], [1]][rank])
    torch.save(values, Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name].double().squeeze(), value.double().squeeze(), rtol=1e-6, atol=1e-7)


@pytest.fixture(scope="module")
def expected() -> dict[str, torch.Tensor]:
    values = directly()
    assert all(value.isfinite().all() and (value != 0).any() for value in values.values())
    return values


def test_every_metric_works_through_ignites_handler_with_the_mask_as_second_channel(expected):
    assert_equal(run_engine(list(range(NUM_CASES))), expected)


def test_two_processes_with_two_cases_and_one_give_what_one_process_gives(expected, tmp_path):
    mp.spawn(work, args=(str(tmp_path),), nprocs=2)
    for rank in range(2):
        assert_equal(torch.load(tmp_path / f"{rank}.pt"), expected)
