from __future__ import annotations

import dataclasses

import pytest
import torch

from trispade.engines import load_checkpoint, save_checkpoint
from trispade.errors import InputError
from trispade.inference import load_generator
from trispade.inference.trained_parts import find_checkpoints, shared_style_dim
from trispade.networks import StyleEncoder

ARCHITECTURE = {"ngf": 2, "hidden": 4, "max_channels": 8}
SETTINGS = {"spacing_mm": 1.0, "box": [32, 32, 32], "closing_mm": 5.0}


def test_a_loaded_generator_paints_what_the_trained_one_does(tmp_path, vocabulary, write_generator):
    trained = write_generator("axial")
    loaded = load_generator(tmp_path / "spade_axial" / "last.pt", "axial", vocabulary, ARCHITECTURE, SETTINGS, "cpu")
    slices = torch.randint(0, 4, (2, 1, 32, 64))
    with torch.no_grad():
        torch.testing.assert_close(loaded.network(slices), trained(slices), atol=1e-5, rtol=1e-4)
    assert not loaded.network.training
    assert not any(parameter.requires_grad for parameter in loaded.network.parameters())
    assert loaded.people == {"p1", "p2"}


def test_a_class_without_training_data_is_redirected(tmp_path, vocabulary, write_generator):
    write_generator("axial", trained=(0, 1, 2))
    write_generator("coronal", trained=(0, 1, 2, 3))
    tables = [
        load_generator(path, plane, vocabulary, ARCHITECTURE, SETTINGS, "cpu").class_table.tolist()
        for plane in ("axial", "coronal")
        for path in find_checkpoints(tmp_path, plane, "last.pt")
    ]
    assert tables == [[0, 1, 2, 2], [0, 1, 2, 3]]


def test_a_class_that_nothing_can_stand_in_for_is_an_input_error(tmp_path, vocabulary, write_generator):
    write_generator("axial", trained=(0, 1))
    with pytest.raises(InputError, match="expected training data for each class or one of its ancestors"):
        load_generator(tmp_path / "spade_axial" / "last.pt", "axial", vocabulary, ARCHITECTURE, SETTINGS, "cpu")


def test_the_hash_tells_weights_and_class_tables_apart(tmp_path, vocabulary, write_generator):
    path = tmp_path / "spade_axial" / "last.pt"

    def load() -> str:
        return load_generator(path, "axial", vocabulary, ARCHITECTURE, SETTINGS, "cpu").hash

    write_generator("axial")
    first = load()
    assert load() == first
    content = load_checkpoint(path)
    content["record"]["trained_classes"] = [0, 1, 2, 3]
    save_checkpoint(content, path)
    other_table = load()
    content["objects"]["generator"]["tail.bias"] += 1e-3
    save_checkpoint(content, path)
    assert len({first, other_table, load()}) == 3


def test_a_checkpoint_of_another_plane_vocabulary_or_preset_is_one_clear_line(tmp_path, vocabulary, write_generator):
    write_generator("axial")
    path = tmp_path / "spade_axial" / "last.pt"
    with pytest.raises(InputError, match=r"last.pt: expected a checkpoint with plane 'coronal', got 'axial'. Use the"):
        load_generator(path, "coronal", vocabulary, ARCHITECTURE, SETTINGS, "cpu")
    with pytest.raises(InputError, match=r"expected a checkpoint with architecture .*'ngf': 3.*, got .*'ngf': 2"):
        load_generator(path, "axial", vocabulary, {**ARCHITECTURE, "ngf": 3}, SETTINGS, "cpu")
    other = dataclasses.replace(vocabulary, name="other")
    with pytest.raises(InputError, match=r"vocabulary 'other' of 4 classes, got 'tiny' of 4 classes. Use the preset"):
        load_generator(path, "axial", other, ARCHITECTURE, SETTINGS, "cpu")


@pytest.mark.parametrize("change", [{"spacing_mm": 2.0}, {"box": [64, 32, 32]}, {"closing_mm": 3.0}])
def test_a_generator_of_other_settings_is_one_clear_line(tmp_path, vocabulary, write_generator, change):
    write_generator("axial")
    path = tmp_path / "spade_axial" / "last.pt"
    with pytest.raises(
        InputError, match=r"last.pt: expected a checkpoint with settings {.*}, got {.*}. Use the preset"
    ):
        load_generator(path, "axial", vocabulary, ARCHITECTURE, {**SETTINGS, **change}, "cpu")


def test_a_checkpoint_of_something_else_is_one_clear_line(tmp_path, vocabulary):
    save_checkpoint({"weight": torch.zeros(2)}, tmp_path / "last.pt")
    with pytest.raises(InputError, match=r"last.pt: expected the key 'objects', got none"):
        load_generator(tmp_path / "last.pt", "axial", vocabulary, ARCHITECTURE, SETTINGS, "cpu")


def test_checkpoints_of_cross_fitting_come_after_the_one_trained_on_all(tmp_path, write_generator):
    for stage in ("spade_axial_fold1", "spade_axial_fold0", "spade_axial"):
        write_generator("axial", stage=stage)
    found = [path.parent.name for path in find_checkpoints(tmp_path, "axial", "last.pt")]
    assert found == ["spade_axial", "spade_axial_fold0", "spade_axial_fold1"]


def test_a_plane_without_a_checkpoint_names_the_stage_to_run(tmp_path, write_generator):
    write_generator("axial")
    with pytest.raises(InputError, match=r"spade_coronal/last.pt: .*got none. Run train_spade --plane coronal first"):
        find_checkpoints(tmp_path, "coronal", "last.pt")


def load_planes(tmp_path, vocabulary):
    planes = [path.parent.name.removeprefix("spade_") for path in sorted(tmp_path.glob("spade_*/last.pt"))]
    return [
        load_generator(tmp_path / f"spade_{p}" / "last.pt", p, vocabulary, ARCHITECTURE, SETTINGS, "cpu")
        for p in planes
    ]


def test_generators_with_one_encoder_share_a_style(tmp_path, vocabulary, write_generator, caplog):
    encoder = StyleEncoder(1, 1, 3)
    for plane in ("axial", "coronal"):
        write_generator(plane, style_dim=3, encoder=encoder)
    assert shared_style_dim(load_planes(tmp_path, vocabulary)) == 3
    assert caplog.text == ""
    write_generator("coronal", style_dim=3, encoder=StyleEncoder(1, 1, 3))
    assert shared_style_dim(load_planes(tmp_path, vocabulary)) == 3
    assert "style encoders differ" in caplog.text


def test_generators_without_style_share_none(tmp_path, vocabulary, write_generator, caplog):
    for plane in ("axial", "coronal"):
        write_generator(plane)
    assert shared_style_dim(load_planes(tmp_path, vocabulary)) == 0
    assert caplog.text == ""


def test_generators_of_different_styles_are_refused(tmp_path, vocabulary, write_generator):
    write_generator("axial", style_dim=3)
    write_generator("coronal")
    with pytest.raises(
        InputError, match=r"generators: expected the same style_dim in all planes, got 0, 3. Train them"
    ):
        shared_style_dim(load_planes(tmp_path, vocabulary))
