"""`monai.fl.client.MonaiAlgo` drives a training stage as one site of a federation."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.fl.client import MonaiAlgo
from monai.fl.utils.constants import WeightType
from monai.fl.utils.exchange_object import ExchangeObject
from monai.utils import set_determinism
from torch import nn

from trispade.engines import load_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*(provision|execut):UserWarning")]


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    """A config's ``initialize`` sets seeds, the hook for errors and the handler for SIGTERM."""
    hook, handler = sys.excepthook, signal.getsignal(signal.SIGTERM)
    yield
    sys.excepthook = hook
    signal.signal(signal.SIGTERM, handler)
    set_determinism(seed=None)


def make_site(study: Any, stage: str, stage_dir: Path, **options: Any) -> MonaiAlgo:
    """One site with the phantoms as its data, in two rounds of one epoch each."""
    settings = {
        "dataset_dir": str(study.dataset_dir),
        "manifest_file": str(study.manifest_file),
        "work_dir": str(study.work_dir),
        "stage_dir": str(stage_dir),
        "max_epochs": 2,
        **options,
    }
    files = [f"configs/{name}.yaml" for name in (stage, "presets/smoke", "overlays/federated")]
    site = MonaiAlgo(
        bundle_root=str(study.bundle),
        local_epochs=1,
        send_weight_diff=False,
        config_train_filename=files,
        train_kwargs=dict(settings),
        config_evaluate_filename=list(files),
        eval_kwargs=dict(settings),
    )
    site.initialize()
    return site


def servers_weights(network: nn.Module, number: int) -> dict[str, np.ndarray]:
    """Weights that no site has come to by itself."""
    return {
        name: (value + 0.01 * number if value.is_floating_point() else value).numpy().copy()
        for name, value in network.state_dict().items()
    }


def weights_at_each_start(trainer: Any, part: str = "network") -> list[dict[str, torch.Tensor]]:
    """Keep the weights that a part of a trainer has when a run has started, after all other handlers."""
    begun: list[dict[str, torch.Tensor]] = []

    def keep(engine: Any) -> None:
        begun.append({name: value.clone() for name, value in getattr(engine, part).state_dict().items()})

    trainer.add_event_handler(Events.STARTED, keep)
    return begun


def assert_all_arrived(found: dict[str, torch.Tensor], sent: dict[str, np.ndarray]) -> None:
    assert set(found) == set(sent)
    for name, value in found.items():
        np.testing.assert_array_equal(value.numpy(), sent[name], err_msg=name)


@pytest.mark.parametrize(("stage", "options"), [("train_spade", {"plane": "coronal"}), ("train_fusion", {})])
def test_every_key_of_the_servers_weights_arrives_in_trainer_and_evaluator_round_after_round(
    study, tmp_path, stage, options
):
    site = make_site(study, stage, tmp_path / "site", **options)
    begun = weights_at_each_start(site.trainer)
    iterations = 0
    for number in (1, 2):
        sent = servers_weights(site.trainer.network, number)
        site.train(ExchangeObject(weights=sent), extra={})
        assert len(begun) == number
        assert_all_arrived(begun[-1], sent)
        assert site.trainer.state.iteration > iterations
        iterations = site.trainer.state.iteration
        learnt = site.get_weights()
        assert learnt.weight_type is WeightType.WEIGHTS
        assert set(learnt.weights) == set(sent)
        assert any(not np.array_equal(learnt.weights[name].numpy(), sent[name]) for name in sent)
        metrics = site.evaluate(ExchangeObject(weights=sent), extra={}).metrics
        assert_all_arrived(site.evaluator.network.state_dict(), sent)
        assert np.isfinite(metrics["brain_psnr"])
    last = load_checkpoint(tmp_path / "site" / "last.pt")
    assert last["iteration"] == iterations
    site.finalize()


def test_the_discriminator_and_the_optimizers_stay_at_their_site(study, tmp_path):
    site = make_site(study, "train_spade", tmp_path / "site")
    sent = servers_weights(site.trainer.network, 0)
    site.train(ExchangeObject(weights=sent), extra={})
    exchanged = site.get_weights()
    assert exchanged.optim is None
    assert not any("discriminator" in name or name.startswith("scales") for name in exchanged.weights)
    before = {name: value.clone() for name, value in site.trainer.discriminator.state_dict().items()}
    begun = weights_at_each_start(site.trainer, "discriminator")
    site.train(ExchangeObject(weights=sent), extra={})
    assert all(torch.equal(value, before[name]) for name, value in begun[0].items())
    site.finalize()


def test_a_checkpoint_that_a_site_has_left_does_not_take_the_place_of_the_servers_weights(study, tmp_path):
    first = make_site(study, "train_fusion", tmp_path / "site")
    first.train(ExchangeObject(weights=servers_weights(first.trainer.network, 1)), extra={})
    again = make_site(study, "train_fusion", tmp_path / "site")
    sent = servers_weights(again.trainer.network, 5)
    begun = weights_at_each_start(again.trainer)
    again.train(ExchangeObject(weights=sent), extra={})
    assert_all_arrived(begun[0], sent)
