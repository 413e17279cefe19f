from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer

from trispade.engines import hash_tensors, load_checkpoint, save_checkpoint
from trispade.errors import InputError
from trispade.inference import DirectInferer, export_direct, load_direct, open_direct, read_model_record
from trispade.labels import Vocabulary
from trispade.networks import DirectUNet

ARCHITECTURE = {"channels": [2, 2, 3, 3, 4]}
SETTINGS = {"spacing_mm": 1.0, "box": [32, 32, 32], "closing_mm": 5.0}
SHAPE = (32, 48, 64)


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


@pytest.fixture
def write_direct(tmp_path, vocabulary) -> Callable[..., DirectUNet]:
    """Write the checkpoint of a ``train_direct`` run; gives the network that is in it."""

    def write(name: str = "last.pt", **record: Any) -> DirectUNet:
        network = DirectUNet(vocabulary.num_classes, **ARCHITECTURE)
        for parameter in network.parameters():
            if parameter.ndim > 1:
                torch.nn.init.kaiming_normal_(parameter)  # large enough for every class to show
        described = {
            "preset": "tiny",
            "vocabulary": vocabulary.to_dict(),
            "architecture": ARCHITECTURE,
            "settings": SETTINGS,
            "people": ["p1", "p2"],
            "patch_size": 32,
            "trained_classes": [0, 1, 2],
        }
        content = {"objects": {"network": network.state_dict()}, "record": {**described, **record}}
        save_checkpoint(content, tmp_path / "direct" / name)
        return network

    return write


def export(folder: Path, vocabulary: Vocabulary, **changes: Any) -> Path:
    options = {
        "stage_dir": folder / "direct",
        "checkpoint": "best.pt",
        "model_file": folder / "models" / "direct_model.pt",
        "vocabulary": vocabulary,
        "architecture": ARCHITECTURE,
        "settings": SETTINGS,
        "dtype": "float32",
    }
    line = export_direct(**{**options, **changes})
    assert line.startswith(str(folder / "models" / "direct_model.pt"))
    return folder / "models" / "direct_model.pt"


def load(model_file: Path, vocabulary: Vocabulary, spacing_mm: float = 1.0, closing_mm: float = 5.0) -> DirectUNet:
    return load_direct(model_file, vocabulary, spacing_mm, closing_mm, "cpu")


@pytest.fixture
def model_file(write_direct, tmp_path, vocabulary) -> Path:
    write_direct()
    return export(tmp_path, vocabulary)


@pytest.fixture
def label_map() -> torch.Tensor:
    """Noise of four classes in a box off the middle; (1, 1, X, Y, Z) uint8."""
    labels = torch.zeros((1, 1, *SHAPE), dtype=torch.uint8)
    labels[0, 0, 5:27, 10:40, 12:55] = torch.randint(0, 4, (22, 30, 43), dtype=torch.uint8)
    return labels


def inferer(roi_size: int | tuple[int, ...] = 32, **options: Any) -> DirectInferer:
    return DirectInferer(SlidingWindowInferer(roi_size, overlap=0.25, mode="gaussian"), **options)


def test_a_window_as_large_as_the_volume_gives_the_networks_own_result(write_direct, label_map):
    network = write_direct()
    painted = inferer(SHAPE)(label_map, network)
    torch.testing.assert_close(painted, network(label_map), atol=1e-6, rtol=1e-5)
    assert painted[label_map > 0].std() > 1e-2


def test_windows_cover_the_whole_volume_and_leave_the_background_exactly_minus_one(write_direct, label_map):
    network = write_direct()
    painted = inferer()(label_map, network)
    assert (painted[label_map == 0] == -1).all()
    assert painted[label_map > 0].min() > -1
    assert painted.max() < 1
    assert 0 < (painted - network(label_map)).abs()[label_map > 0].mean() < 0.1


def test_a_metatensor_of_floats_is_taken_as_it_is(write_direct, label_map):
    network = write_direct()
    painted = inferer()(MetaTensor(label_map.float()), network)
    assert torch.equal(torch.as_tensor(painted), inferer()(label_map, network))


def test_bfloat16_changes_the_result_by_little(write_direct, label_map):
    network = write_direct()
    exact, rounded = inferer()(label_map, network), inferer(amp=True)(label_map, network)
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).abs().mean() < 0.02


def test_an_exported_network_paints_as_the_trained_one_does(write_direct, tmp_path, vocabulary, label_map):
    trained = write_direct()
    network = load(export(tmp_path, vocabulary), vocabulary)
    known = label_map.clamp(max=2)
    assert torch.equal(network(known), trained(known))
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_a_class_without_training_data_is_painted_as_the_one_it_falls_back_on(model_file, vocabulary, label_map):
    network = load(model_file, vocabulary)
    assert network.class_table.tolist() == [0, 1, 2, 2]
    assert torch.equal(inferer()(label_map, network), inferer()(label_map.clamp(max=2), network))


def test_an_opened_model_paints_in_windows_of_the_size_that_it_was_trained_on(model_file, vocabulary, label_map):
    expected = inferer(32, amp=True)(label_map, load(model_file, vocabulary))
    paint = open_direct(model_file, vocabulary, 1.0, 5.0, "cpu", amp=True)
    assert torch.equal(paint(label_map), expected)
    assert (expected != inferer(SHAPE, amp=True)(label_map, load(model_file, vocabulary))).any()


def test_without_a_trained_model_there_is_nothing_to_paint_with(tmp_path, vocabulary, caplog):
    with caplog.at_level("INFO"):
        assert open_direct(tmp_path / "direct_model.pt", vocabulary, 1.0, 5.0, "cpu", amp=False) is None
    assert "direct_model.pt: not there, so nothing is compared with a direct 3D U-Net" in caplog.text


def test_the_record_beside_the_weights_says_what_they_are(model_file, vocabulary):
    record = read_model_record(model_file)
    assert record["network"] == "DirectUNet"
    assert record["sha256"] == hash_tensors(load_checkpoint(model_file))
    assert Vocabulary.from_dict(record["vocabulary"]) == vocabulary
    assert record["architecture"] == ARCHITECTURE
    assert (record["spacing_mm"], record["closing_mm"]) == (1.0, 5.0)
    assert record["trained_classes"] == [0, 1, 2]
    assert record["training"]["direct"]["people"] == ["p1", "p2"]
    assert record["training"]["direct"]["preset"] == "tiny"
    assert json.loads(model_file.with_suffix(".json").read_text()) == record


def test_float16_weights_give_almost_the_same_volume(write_direct, tmp_path, vocabulary, label_map):
    trained = write_direct()
    model_file = export(tmp_path, vocabulary, dtype="float16")
    halved = load(model_file, vocabulary)
    state = load_checkpoint(model_file)
    assert {state[name].dtype for name, _ in halved.named_parameters()} == {torch.float16}
    assert all(parameter.dtype == torch.float32 for parameter in halved.parameters())
    known = label_map.clamp(max=2)
    assert 0 < (halved(known) - trained(known)).abs().max() < 0.05


def test_the_best_network_is_taken_if_one_was_kept(write_direct, tmp_path, vocabulary):
    write_direct()
    best = write_direct("best.pt").unet.final_conv.bias
    assert torch.equal(load(export(tmp_path, vocabulary), vocabulary).unet.final_conv.bias, best)


def test_a_stored_type_that_is_neither_float16_nor_float32_is_refused(write_direct, tmp_path, vocabulary):
    write_direct()
    with pytest.raises(InputError, match="model_dtype: expected float16 or float32, got 'int8'"):
        export(tmp_path, vocabulary, dtype="int8")
    assert not (tmp_path / "models").exists()


def test_a_network_of_another_vocabulary_preset_or_cache_is_not_exported(write_direct, tmp_path, vocabulary):
    write_direct()
    with pytest.raises(InputError, match=r"direct/last.pt: expected a checkpoint with vocabulary 'other'"):
        export(tmp_path, dataclasses.replace(vocabulary, name="other"))
    with pytest.raises(InputError, match=r"direct/last.pt: expected a checkpoint with architecture"):
        export(tmp_path, vocabulary, architecture={"channels": [2, 2, 3, 3, 5]})
    with pytest.raises(InputError, match=r"last.pt: expected a checkpoint with settings .*'closing_mm': 3.0"):
        export(tmp_path, vocabulary, settings={**SETTINGS, "closing_mm": 3.0})
    assert not (tmp_path / "models").exists()


def test_without_training_there_is_nothing_to_export(tmp_path, vocabulary):
    with pytest.raises(InputError, match=r"direct/last.pt: expected a checkpoint, got nothing there. Run the stage"):
        export(tmp_path, vocabulary)


def test_a_model_of_another_preset_or_network_is_not_overwritten(write_direct, model_file, tmp_path, vocabulary):
    before = model_file.read_bytes()
    write_direct(preset="large")
    with pytest.raises(InputError, match=r"expected nothing, or a direct model of preset large, got one of tiny. Move"):
        export(tmp_path, vocabulary)
    assert model_file.read_bytes() == before
    model_file.with_suffix(".json").write_text('{"training": {"fusion": {"preset": "large"}}}')
    with pytest.raises(InputError, match=r"of preset large, got the model of another network. Move it"):
        export(tmp_path, vocabulary)
    assert model_file.read_bytes() == before


def test_a_model_of_the_same_preset_is_replaced(write_direct, model_file, tmp_path, vocabulary):
    bias = write_direct().unet.final_conv.bias
    assert torch.equal(load(export(tmp_path, vocabulary), vocabulary).unet.final_conv.bias, bias)


def test_a_model_of_another_vocabulary_spacing_or_brain_mask_is_one_clear_line(model_file, vocabulary):
    with pytest.raises(InputError, match=r"direct_model.pt: expected a checkpoint with vocabulary 'other' of 4 cl"):
        load(model_file, dataclasses.replace(vocabulary, name="other"))
    with pytest.raises(InputError, match=r"with spacing_mm 2.0, got 1.0. Use the preset, the voxel size"):
        load(model_file, vocabulary, spacing_mm=2.0)
    with pytest.raises(InputError, match=r"with closing_mm 3.0, got 5.0. Use the preset, the voxel size") as caught:
        load(model_file, vocabulary, closing_mm=3.0)
    assert "\n" not in str(caught.value)


def test_the_model_of_another_network_is_not_taken_for_a_direct_one(model_file, vocabulary):
    record = read_model_record(model_file)
    del record["network"]
    model_file.with_suffix(".json").write_text(json.dumps(record))
    with pytest.raises(InputError, match=r"network 'DirectUNet', got None. Name the file that train_direct"):
        load(model_file, vocabulary)


def test_a_missing_or_torn_model_is_one_clear_line(model_file, vocabulary):
    model_file.write_bytes(model_file.read_bytes()[:2000])
    with pytest.raises(InputError, match=r"direct_model.pt: expected a checkpoint written by trispade, got an unread"):
        load(model_file, vocabulary)
    model_file.unlink()
    with pytest.raises(InputError, match=r"direct_model.pt: expected a checkpoint, got nothing there"):
        load(model_file, vocabulary)


def test_weights_without_their_record_or_with_that_of_others_are_refused(model_file, vocabulary):
    state = load_checkpoint(model_file)
    state["unet.final_conv.bias"] += 1e-3
    save_checkpoint(state, model_file)
    with pytest.raises(InputError, match=r"expected the weights that the .json beside it describes, got others. Copy"):
        load(model_file, vocabulary)
    model_file.with_suffix(".json").unlink()
    with pytest.raises(InputError, match=r"expected a .json beside it that says what it is, got none. Copy both"):
        load(model_file, vocabulary)
