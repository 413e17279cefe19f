"""One site of the NVFlare simulation: the server's weights go to `MonaiAlgo`, and what it has learnt to the server."""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path
from typing import Any

import nvflare.client as flare
from ignite.engine import Events
from monai.fl.client import MonaiAlgo
from monai.fl.utils.exchange_object import ExchangeObject

ROUNDS = 2
LOCAL_EPOCHS = 5  # of three batches each: the losses of fewer are those of their patches


def make_site(bundle: Path, folder: Path) -> MonaiAlgo:
    """The fusion stage of the bundle on this site's data, prepared and painted."""
    configs = [f"configs/{name}.yaml" for name in ("train_fusion", "presets/smoke", "overlays/federated")]
    settings: dict[str, Any] = {
        "dataset_dir": str(folder / "phantoms"),
        "manifest_file": str(folder / "phantoms" / "phantoms.json"),
        "work_dir": str(folder / "work"),
        "max_epochs": ROUNDS * LOCAL_EPOCHS,  # for the schedule of the learning rate
    }
    site = MonaiAlgo(
        bundle_root=str(bundle),
        local_epochs=LOCAL_EPOCHS,
        send_weight_diff=False,
        config_train_filename=configs,
        train_kwargs=dict(settings),
        config_evaluate_filename=list(configs),
        eval_kwargs=dict(settings),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MONAI's, that a federation's configs are code: these are our own
        site.initialize()
    return site


def main() -> None:
    """Train and evaluate as long as the server has rounds; write the losses and the metric of each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    options = parser.parse_args()

    flare.init()
    folder = options.folder / flare.get_site_name()
    site = make_site(options.bundle, folder)
    losses: list[float] = []
    site.trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: losses.append(float(engine.state.output["loss"]))
    )
    rounds = []
    while flare.is_running():
        model = flare.receive()
        assert set(model.params) == set(site.trainer.network.state_dict())
        losses.clear()
        weights = ExchangeObject(weights=model.params)
        metrics = site.evaluate(weights, extra={}).metrics
        site.train(weights, extra={})
        rounds.append({"loss": sum(losses) / len(losses), "received_brain_psnr": float(metrics["brain_psnr"])})
        (folder / "rounds.json").write_text(json.dumps(rounds))
        learnt = {name: value.numpy() for name, value in site.get_weights().weights.items()}
        flare.send(flare.FLModel(params=learnt, metrics=rounds[-1]))
    site.finalize()


if __name__ == "__main__":
    main()
