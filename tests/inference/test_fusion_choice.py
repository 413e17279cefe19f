from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from monai.inferers import SlidingWindowInferer

from trispade.engines import load_checkpoint, save_checkpoint
from trispade.errors import InputError
from trispade.inference import TriplanarInferer, export_model, load_model, open_realism, read_model_record
from trispade.networks import FusionNet, TriplanarSynthesizer

ARCHITECTURE = {"ngf": 2, "hidden": 4, "max_channels": 8}
FUSION_ARCHITECTURE = {"channels": [2, 3, 4], "norm": "none", "residual": False}
LABEL_ARCHITECTURE = {**FUSION_ARCHITECTURE, "label_channels": 2}
SETTINGS = {"spacing_mm": 1.0, "box": [32, 32, 32], "closing_mm": 5.0}


@pytest.fixture
def export(tmp_path, vocabulary):
    """Export a fusion net of ``tmp_path/fusion``; gives the model file."""

    def run(fusion: str = "fidelity", architecture=None, dtype: str = "float32") -> Path:
        model_file = tmp_path / "models" / "model.pt"
        export_model(
            checkpoints_dir=tmp_path,
            generator_checkpoint="last.pt",
            fusion=fusion,
            fusion_dir=tmp_path / "fusion",
            fusion_checkpoint="last.pt",
            model_file=model_file,
            vocabulary=vocabulary,
            architecture=ARCHITECTURE,
            fusion_architecture=architecture or FUSION_ARCHITECTURE,
            settings=SETTINGS,
            dtype=dtype,
        )
        return model_file

    return run


@pytest.fixture
def load(vocabulary):
    def run(model_file: Path, fusion: str = "fidelity", label_channels: int = 0) -> TriplanarSynthesizer:
        network = TriplanarSynthesizer(
            4, **ARCHITECTURE, fusion_channels=(2, 3, 4), fusion_label_channels=label_channels
        )
        return load_model(network, model_file, vocabulary, 1.0, 5.0, "cpu", fusion)

    return run


@pytest.fixture
def both(trained_parts, write_fusion, export):
    """A model with a second fusion net beside it; gives its file and the second net."""
    export()
    second = write_fusion(people=["p4"])
    return export("realism"), second


def test_the_chosen_fusion_net_is_that_of_the_loaded_model(both, trained_parts, load):
    model_file, second = both
    planes = 2 * torch.rand(1, 3, 32, 32, 32) - 1
    expected = {"fidelity": trained_parts["fusion"], "realism": second}
    for name, net in expected.items():
        torch.testing.assert_close(load(model_file, name).fusion(planes), net(planes))
    generators = [load(model_file, name).generators["axial"].state_dict() for name in expected]
    assert all(torch.equal(generators[0][key], generators[1][key]) for key in generators[1])


def test_the_second_net_is_one_small_file_and_the_models_record_tells_of_its_training(both, tmp_path):
    model_file, _ = both
    assert sorted(path.name for path in model_file.parent.iterdir()) == ["fusion_realism.pt", "model.json", "model.pt"]
    record = read_model_record(model_file)
    assert record["fusions"]["realism"]["training"]["people"] == ["p4"]
    assert record["training"]["fusion"]["people"] == ["p3"]
    assert set(load_checkpoint(model_file.with_name("fusion_realism.pt"))) == set(
        FusionNet(3, 1, (2, 3, 4)).state_dict()
    )


def test_a_net_that_the_model_does_not_have_is_one_clear_line(both, load):
    with pytest.raises(
        InputError, match=r"model.pt: expected a model with a fusion net 'sharp', got fidelity, realism"
    ):
        load(both[0], "sharp")


def test_another_file_than_the_record_describes_is_refused(both, load):
    path = both[0].with_name("fusion_realism.pt")
    state = load_checkpoint(path)
    state["exit.bias"] += 1
    save_checkpoint(state, path)
    with pytest.raises(InputError, match=r"fusion_realism.pt: expected the weights that model.json describes, got oth"):
        load(both[0], "realism")


def test_a_second_net_needs_the_model_it_joins(trained_parts, export):
    with pytest.raises(
        InputError, match=r"model.pt: expected a model that the fusion net joins, got none. Train the f"
    ):
        export("realism")


def test_a_second_net_of_other_generators_is_refused_and_nothing_is_written(
    both, write_generator, write_fusion, export
):
    before = both[0].with_suffix(".json").read_text()
    write_generator("axial", people=("p1", "p2", "p5"))
    write_fusion()
    with pytest.raises(InputError, match=r"expected the generators that realism learnt from, got others"):
        export("realism")
    assert both[0].with_suffix(".json").read_text() == before


def test_a_new_model_forgets_the_second_net_of_the_old_one(both, export, load):
    model_file = export()
    assert "fusions" not in json.loads(model_file.with_suffix(".json").read_text())
    with pytest.raises(InputError, match="expected a model with a fusion net 'realism', got fidelity"):
        load(model_file, "realism")


def test_classes_that_the_fusion_net_has_not_met_take_the_vector_of_their_stand_in(
    trained_parts, write_fusion, export, load, tmp_path, vocabulary, enliven
):
    net = enliven(FusionNet(3, 1, (2, 3, 4), label_channels=2, num_classes=4))
    content = load_checkpoint(tmp_path / "fusion" / "last.pt")
    content["objects"]["network"] = net.state_dict()
    content["record"] |= {"architecture": LABEL_ARCHITECTURE, "trained_classes": [0, 1, 2]}
    save_checkpoint(content, tmp_path / "fusion" / "last.pt")
    loaded = load(export(architecture=LABEL_ARCHITECTURE), label_channels=2).fusion.embedding.weight
    torch.testing.assert_close(loaded[:3], net.embedding.weight[:3])
    torch.testing.assert_close(loaded[3], net.embedding.weight[2])  # plexus stands in for by csf


def test_the_evaluation_opens_the_second_net_beside_the_first(both, load):
    model_file, _ = both
    network = load(model_file)
    inferer = TriplanarInferer(2, SlidingWindowInferer((32, 32, 32), overlap=0.5, mode="gaussian"), return_planes=True)
    label_map = torch.randint(0, 3, (1, 1, 32, 32, 32))
    painted = inferer(label_map, network)
    realism = open_realism(network, model_file, inferer)(painted[:, :3], label_map)
    expected = inferer(label_map, load(model_file, "realism"))[:, 3:]
    torch.testing.assert_close(realism, expected)
    assert (realism - painted[:, 3:]).abs().max() > 1e-3


def test_a_model_without_a_second_net_opens_none(trained_parts, export, load):
    model_file = export()
    inferer = TriplanarInferer(2, SlidingWindowInferer((32, 32, 32)))
    assert open_realism(load(model_file), model_file, inferer) is None
