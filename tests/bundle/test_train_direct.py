from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from trispade.engines import load_checkpoint
from trispade.errors import InputError
from trispade.inference import open_direct, read_model_record
from trispade.inference.direct import WINDOW_OVERLAP
from trispade.manifests import read_manifest

pytestmark = pytest.mark.slow

SHORT = {"max_epochs": 1, "patches_per_scan": 4}


def train(study, folder: Path, **overrides: Any) -> Path:
    """Run the stage with the smoke preset, all that it writes in a folder of its own."""
    own = {"stage_dir": folder / "direct", "direct_model_file": folder / "direct_model.pt"}
    study.run("train_direct", **{**SHORT, **own, **overrides})
    return folder


@pytest.fixture(scope="module")
def trained(study, tmp_path_factory) -> Path:
    return train(study, tmp_path_factory.mktemp("direct"))


def test_the_people_of_both_training_splits_teach_the_direct_network(trained):
    record = load_checkpoint(trained / "direct" / "last.pt")["record"]
    assert record["people"] == ["01", "02", "03"]
    assert (record["preset"], record["epochs"], record["finished"]) == ("smoke", 1, True)
    assert list((trained / "direct" / "tensorboard").glob("events.out.tfevents.*"))


def test_the_best_state_on_the_validation_people_is_kept(trained):
    best = load_checkpoint(trained / "direct" / "best.pt")
    assert 0 < best["best_metric"] < 40


def test_the_trained_network_is_exported_and_paints(study, trained):
    record = read_model_record(trained / "direct_model.pt")
    assert record["training"]["direct"]["people"] == ["01", "02", "03"]
    assert load_checkpoint(trained / "direct_model.pt")["unet.final_conv.bias"].dtype == torch.float16
    vocabulary = read_manifest(study.manifest_file, study.dataset_dir).label_scheme.vocabulary
    paint = open_direct(trained / "direct_model.pt", vocabulary, 4.0, 5.0, device="cpu", amp=False)
    label_map = torch.randint(0, vocabulary.num_classes, (1, 1, 64, 64, 64))
    painted = paint(label_map)
    assert (painted[label_map == 0] == -1).all()
    assert painted[label_map > 0].min() > -1


def test_a_run_that_was_stopped_goes_on_to_the_weights_of_one_that_was_not(study, trained, tmp_path):
    train(study, tmp_path, max_minutes=0)
    stopped = load_checkpoint(tmp_path / "direct" / "last.pt")
    train(study, tmp_path)
    resumed, whole = (load_checkpoint(folder / "direct" / "last.pt") for folder in (tmp_path, trained))
    assert (stopped["iteration"], resumed["iteration"], whole["iteration"]) == (1, 3, 3)
    for name, weight in whole["objects"]["network"].items():
        assert torch.equal(resumed["objects"]["network"][name], weight), name
    assert any(
        not torch.equal(stopped["objects"]["network"][name], weight)
        for name, weight in whole["objects"]["network"].items()
    )


def test_monai_finds_every_property_of_the_workflow_however_often_it_is_parsed(study):
    workflow = study.workflow("train_direct", "train")
    for _ in range(2):
        workflow.initialize()
        assert workflow.check_properties() == []


def test_without_a_cache_the_stage_names_the_one_to_run_first(study, tmp_path):
    with pytest.raises(InputError, match=r"expected a prepared cache, got none. Run the prepare stage first."):
        train(study, tmp_path, work_dir=tmp_path / "work")


def test_a_patch_larger_than_the_box_is_one_line_a_case(study, tmp_path):
    with pytest.raises(
        InputError, match=r"3 of 3 cases give no patches:\n  - sub-01: expected at least 96 voxels an axi"
    ):
        train(study, tmp_path, direct_patch_size=96)


def test_validation_moves_the_network_as_the_comparison_does(study):
    config = yaml.safe_load((study.bundle / "configs" / "train_direct.yaml").read_text())
    window = config["validate"]["inferer"]["window"]
    assert (window["roi_size"], window["overlap"]) == ("@direct_patch_size", WINDOW_OVERLAP)
    assert (window["mode"], config["record"]["patch_size"]) == ("gaussian", "@direct_patch_size")
