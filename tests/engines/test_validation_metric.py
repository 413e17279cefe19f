from __future__ import annotations

import math

import pytest
import torch
from monai.engines import SupervisedEvaluator

from trispade.engines import AutocastInferer, BrainPSNR, label_map_and_t1w, planes_and_t1w


def psnr(y_pred, y, mask) -> float:
    metric = BrainPSNR()
    metric.update((y_pred, y, mask))
    return metric.compute()


def test_it_is_the_psnr_of_intensities_between_0_and_1():
    y = torch.zeros(1, 1, 4, 4, 4)
    mask = torch.ones_like(y, dtype=torch.bool)
    assert psnr(y + 0.2, y, mask) == pytest.approx(-10 * math.log10(0.1**2), abs=1e-4)


def test_what_lies_outside_the_brain_does_not_count():
    y = torch.zeros(1, 1, 4, 4, 4)
    mask = torch.zeros_like(y, dtype=torch.bool)
    mask[..., :2] = True
    far_off_outside = torch.where(mask, 0.2, -0.9)
    assert psnr(far_off_outside, y, mask) == pytest.approx(20.0, abs=1e-4)


def test_predictions_beyond_the_range_are_clipped_and_perfect_ones_stay_finite():
    y = torch.ones(1, 1, 4, 4, 4)
    assert psnr(y * 5, y, y > 0) == pytest.approx(120.0)


def test_it_is_the_mean_over_volumes_not_over_voxels():
    y = torch.zeros(2, 1, 4, 4, 4)
    mask = torch.ones_like(y, dtype=torch.bool)
    mask[1, ..., 1:] = False
    y_pred = torch.stack([torch.full((1, 4, 4, 4), 0.2), torch.full((1, 4, 4, 4), 0.02)])
    assert psnr(y_pred, y, mask) == pytest.approx((20 + 40) / 2, abs=1e-3)


@pytest.mark.parametrize(("prepare", "channels"), [(label_map_and_t1w, 1), (planes_and_t1w, 4)])
def test_an_evaluator_reports_it_as_its_key_metric(prepare, channels):
    def item(error):
        t1w = torch.zeros(1, 1, 4, 4, 4)
        mask = torch.ones_like(t1w, dtype=torch.bool)
        return {"label_map": t1w + error, "planes": (t1w + error).expand(1, 3, 4, 4, 4), "t1w": t1w, "mask": mask}

    network = torch.nn.Conv3d(channels, 1, 1, bias=False)
    torch.nn.init.constant_(network.weight, 1 / channels)
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=[item(0.2), item(0.02)],
        network=network,
        prepare_batch=prepare,
        inferer=AutocastInferer(amp=False),
        key_val_metric={"brain_psnr": BrainPSNR()},
        decollate=False,
    )
    for _ in range(2):
        evaluator.run()
        assert evaluator.state.metrics["brain_psnr"] == pytest.approx(30.0, abs=1e-3)
    assert evaluator.state.key_metric_name == "brain_psnr"


def test_autocast_computes_in_half_precision_and_returns_single():
    network = torch.nn.Conv2d(1, 1, 1)
    dtypes = []
    network.register_forward_hook(lambda _, __, output: dtypes.append(output.dtype))
    inputs = torch.rand(1, 1, 4, 4)
    assert AutocastInferer(amp=True)(inputs, network).dtype == torch.float32
    assert AutocastInferer(amp=False)(inputs, network).dtype == torch.float32
    assert dtypes == [torch.bfloat16, torch.float32]
