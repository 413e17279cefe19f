from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from trispade.engines import hash_tensors, load_checkpoint, save_checkpoint
from trispade.errors import InputError
from trispade.geometry import PLANES
from trispade.inference import describe_model, export_model, load_generator, load_model, read_model_record
from trispade.labels import Vocabulary
from trispade.networks import StyleEncoder, TriplanarSynthesizer

ARCHITECTURE = {"ngf": 2, "hidden": 4, "max_channels": 8}
FUSION_ARCHITECTURE = {"channels": [2, 3, 4], "norm": "none", "residual": False}
SETTINGS = {"spacing_mm": 1.0, "box": [32, 32, 32], "closing_mm": 5.0}


def export(folder: Path, vocabulary: Vocabulary, dtype: str = "float32", **changes) -> Path:
    options = {
        "checkpoints_dir": folder,
        "generator_checkpoint": "last.pt",
        "fusion": "fidelity",
        "fusion_dir": folder / "fusion",
        "fusion_checkpoint": "best.pt",
        "model_file": folder / "models" / "model.pt",
        "vocabulary": vocabulary,
        "architecture": ARCHITECTURE,
        "fusion_architecture": FUSION_ARCHITECTURE,
        "settings": SETTINGS,
        "dtype": dtype,
    }
    export_model(**{**options, **changes})
    return folder / "models" / "model.pt"


def synthesizer(num_classes: int = 4, **changes) -> TriplanarSynthesizer:
    return TriplanarSynthesizer(num_classes, **{**ARCHITECTURE, **changes}, fusion_channels=(2, 3, 4))


def load(
    model_file: Path, vocabulary: Vocabulary, spacing_mm: float = 1.0, closing_mm: float = 5.0, **changes
) -> TriplanarSynthesizer:
    return load_model(synthesizer(**changes), model_file, vocabulary, spacing_mm, closing_mm, "cpu")


@pytest.fixture
def model_file(trained_parts, tmp_path, vocabulary) -> Path:
    return export(tmp_path, vocabulary)


@torch.no_grad()
def test_a_model_that_was_exported_and_loaded_paints_and_fuses_as_its_trained_parts_do(
    model_file, trained_parts, vocabulary
):
    network = load(model_file, vocabulary)
    slices = torch.randint(0, 3, (2, 1, 32, 32))
    for plane, generator in network.generators.items():
        torch.testing.assert_close(generator(slices), trained_parts[plane](slices), atol=1e-5, rtol=1e-4)
    planes = torch.rand(1, 3, 32, 32, 32) * 2 - 1
    torch.testing.assert_close(network.fusion(planes), trained_parts["fusion"](planes))
    assert network.class_table.tolist() == [0, 1, 2, 2]
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())


@torch.no_grad()
def test_a_model_with_style_brings_it_along_whatever_the_network_was_made_with(
    write_generator, write_fusion, tmp_path, vocabulary
):
    encoder = StyleEncoder(1, 1, 3)
    generators = {plane: write_generator(plane, style_dim=3, encoder=encoder) for plane in PLANES}
    write_fusion()
    model_file = export(tmp_path, vocabulary)
    assert read_model_record(model_file)["architecture"] == {**ARCHITECTURE, "style_dim": 3}
    slices, style = torch.randint(0, 3, (2, 1, 32, 32)), torch.randn(2, 3)
    for network in (load(model_file, vocabulary), load(model_file, vocabulary, style_dim=3)):
        assert network.style_dim == 3
        for plane, generator in network.generators.items():
            torch.testing.assert_close(generator(slices, style), generators[plane](slices, style), atol=1e-5, rtol=1e-4)
    with pytest.raises(InputError, match=r"model.pt: expected generators.axial.style.weight of shape 8x4, got 8x3"):
        load(model_file, vocabulary, style_dim=4)


def test_only_classes_that_all_generators_know_count_as_trained(write_generator, write_fusion, tmp_path, vocabulary):
    for plane in PLANES:
        write_generator(plane, trained=(0, 1, 2) if plane == "coronal" else (0, 1, 2, 3))
    write_fusion()
    model_file = export(tmp_path, vocabulary)
    assert read_model_record(model_file)["trained_classes"] == [0, 1, 2]
    assert load(model_file, vocabulary).class_table.tolist() == [0, 1, 2, 2]


def test_the_record_beside_the_weights_says_what_they_are(model_file, vocabulary):
    record = read_model_record(model_file)
    assert record["sha256"] == hash_tensors(load_checkpoint(model_file))
    assert Vocabulary.from_dict(record["vocabulary"]) == vocabulary
    assert record["architecture"] == ARCHITECTURE
    assert record["fusion_architecture"] == FUSION_ARCHITECTURE
    assert (record["spacing_mm"], record["closing_mm"]) == (1.0, 5.0)
    assert record["training"]["generator_coronal"]["people"] == ["p1", "p2"]
    assert record["training"]["fusion"]["people"] == ["p3"]
    assert describe_model(model_file) == {"file": "model.pt", "sha256": record["sha256"], "preset": "tiny"}


@torch.no_grad()
def test_float16_weights_give_almost_the_same_volume_at_half_the_size(trained_parts, tmp_path, vocabulary):
    exact = load(export(tmp_path, vocabulary), vocabulary)
    model_file = export(tmp_path, vocabulary, "float16")
    halved = load(model_file, vocabulary)
    label_map = torch.randint(0, 4, (1, 1, 32, 32, 32))
    assert all(parameter.dtype == torch.float32 for parameter in halved.parameters())
    assert 0 < (halved(label_map) - exact(label_map)).abs().max() < 0.05
    state = load_checkpoint(model_file)
    assert {state[name].dtype for name, _ in halved.named_parameters()} == {torch.float16}


def test_running_statistics_beyond_float16_survive(trained_parts, write_fusion, tmp_path, vocabulary):
    path = tmp_path / "spade_axial" / "last.pt"
    content = load_checkpoint(path)
    name = next(name for name in content["objects"]["generator"] if name.endswith("running_var"))
    content["objects"]["generator"][name].fill_(1e6)
    save_checkpoint(content, path)
    write_fusion()
    network = load(export(tmp_path, vocabulary, "float16"), vocabulary)
    assert (network.state_dict()[f"generators.axial.{name}"] == 1e6).all()


def test_the_best_fusion_net_is_taken_if_one_was_kept(trained_parts, tmp_path, vocabulary):
    content = load_checkpoint(tmp_path / "fusion" / "last.pt")
    content["objects"]["network"]["exit.bias"].fill_(7.0)
    save_checkpoint(content, tmp_path / "fusion" / "best.pt")
    assert load(export(tmp_path, vocabulary), vocabulary).fusion.exit.bias.item() == 7.0


def test_a_plane_that_is_not_trained_is_one_clear_line_and_no_model_is_written(trained_parts, tmp_path, vocabulary):
    (tmp_path / "spade_sagittal" / "last.pt").unlink()
    with pytest.raises(InputError, match=r"expected a trained generator, got none. Run train_spade --plane sagittal"):
        export(tmp_path, vocabulary)
    assert not (tmp_path / "models").exists()


def write_folds(write_generator, tmp_path: Path, vocabulary: Vocabulary) -> dict[str, list[str]]:
    """Write each plane's generators of two folds; gives their hashes."""
    hashes = {}
    for plane in PLANES:
        stages = [f"spade_{plane}_fold{fold}" for fold in (0, 1)]
        for stage in stages:
            write_generator(plane, people=(stage,), stage=stage)
        paths = [tmp_path / stage / "last.pt" for stage in stages]
        hashes[plane] = [load_generator(p, plane, vocabulary, ARCHITECTURE, SETTINGS, "cpu").hash for p in paths]
    return hashes


def test_generators_of_folds_alone_make_no_model(trained_parts, write_generator, tmp_path, vocabulary):
    write_folds(write_generator, tmp_path, vocabulary)
    (tmp_path / "spade_coronal" / "last.pt").unlink()
    with pytest.raises(
        InputError,
        match=r"spade_coronal/last.pt: expected a generator of the coronal plane that was trained on all people, .*"
        r"got only those of cross-fitting, spade_coronal_fold0, spade_coronal_fold1. Run train_spade --plane coronal w",
    ):
        export(tmp_path, vocabulary)
    assert not (tmp_path / "models").exists()


@torch.no_grad()
def test_the_model_of_cross_fitting_holds_the_generators_of_all_people_and_the_fusion_net_of_the_folds(
    trained_parts, write_generator, write_fusion, tmp_path, vocabulary
):
    write_fusion(generators=write_folds(write_generator, tmp_path, vocabulary))
    model_file = export(tmp_path, vocabulary)
    slices = torch.randint(0, 3, (2, 1, 32, 32))
    for plane, generator in load(model_file, vocabulary).generators.items():
        torch.testing.assert_close(generator(slices), trained_parts[plane](slices), atol=1e-5, rtol=1e-4)
    assert read_model_record(model_file)["training"]["generator_axial"]["people"] == ["p1", "p2"]


def test_parts_of_another_vocabulary_or_preset_are_not_assembled(trained_parts, tmp_path, vocabulary):
    with pytest.raises(InputError, match=r"spade_axial/last.pt: expected a checkpoint with architecture"):
        export(tmp_path, vocabulary, architecture={**ARCHITECTURE, "hidden": 5})
    with pytest.raises(InputError, match=r"fusion/last.pt: expected a checkpoint with architecture"):
        export(tmp_path, vocabulary, fusion_architecture={**FUSION_ARCHITECTURE, "residual": True})
    with pytest.raises(InputError, match=r"expected a checkpoint with vocabulary 'other'"):
        export(tmp_path, dataclasses.replace(vocabulary, name="other"))
    with pytest.raises(
        InputError, match=r"spade_axial/last.pt: expected a checkpoint with settings .*'closing_mm': 3.0"
    ):
        export(tmp_path, vocabulary, settings={**SETTINGS, "closing_mm": 3.0})
    assert not (tmp_path / "models").exists()


def test_a_fusion_net_of_other_settings_is_not_assembled(trained_parts, write_fusion, tmp_path, vocabulary):
    write_fusion(settings={**SETTINGS, "spacing_mm": 2.0})
    with pytest.raises(InputError, match=r"fusion/last.pt: expected a checkpoint with settings .*'spacing_mm': 1.0"):
        export(tmp_path, vocabulary)
    assert not (tmp_path / "models").exists()


def test_a_fusion_net_that_learnt_from_other_generators_is_not_assembled(
    trained_parts, write_generator, tmp_path, vocabulary
):
    assert export(tmp_path, vocabulary).exists()
    write_generator("coronal")
    with pytest.raises(InputError, match=r"from the present coronal generator, got one that learnt from another. Run"):
        export(tmp_path, vocabulary)


def test_a_model_of_another_preset_is_not_overwritten(
    trained_parts, write_fusion, write_generator, tmp_path, vocabulary
):
    model_file = export(tmp_path, vocabulary)
    before = [file.read_bytes() for file in (model_file, model_file.with_suffix(".json"))]
    for plane in PLANES:
        write_generator(plane, preset="other")
    write_fusion(preset="other")
    with pytest.raises(
        InputError,
        match=r"model.pt: expected nothing, or a model of preset other, got one of tiny. Move it, or set --m",
    ):
        export(tmp_path, vocabulary)
    assert [file.read_bytes() for file in (model_file, model_file.with_suffix(".json"))] == before
    assert export(tmp_path, vocabulary, model_file=tmp_path / "models" / "other.pt").exists()


def test_a_model_of_the_same_preset_is_replaced(trained_parts, write_fusion, tmp_path, vocabulary):
    first = read_model_record(export(tmp_path, vocabulary))["sha256"]
    write_fusion()
    assert read_model_record(export(tmp_path, vocabulary))["sha256"] != first


def test_weights_are_stored_in_one_of_two_types(trained_parts, tmp_path, vocabulary):
    with pytest.raises(InputError, match="model_dtype: expected float16 or float32, got 'int8'"):
        export(tmp_path, vocabulary, "int8")


def test_a_model_of_another_vocabulary_is_one_clear_line(model_file, vocabulary):
    other = dataclasses.replace(vocabulary, name="other")
    with pytest.raises(
        InputError, match=r"model.pt: expected a checkpoint with vocabulary 'other' of 4 classes, got 'ti"
    ):
        load(model_file, other)


@pytest.mark.parametrize("changes", [{"ngf": 4}, {"hidden": 5}, {"num_classes": 5}])
def test_a_model_of_another_preset_is_one_clear_line(model_file, vocabulary, changes):
    with pytest.raises(
        InputError, match=r"model.pt: expected .* of shape .* weights differ\). Use the preset"
    ) as caught:
        load(model_file, vocabulary, **changes)
    assert "\n" not in str(caught.value)


def test_a_model_of_another_spacing_or_brain_mask_is_one_clear_line(model_file, vocabulary):
    with pytest.raises(
        InputError,
        match=r"model.pt: expected a checkpoint with spacing_mm 2.0, got 1.0. Use the preset, the voxel size",
    ) as caught:
        load(model_file, vocabulary, spacing_mm=2.0)
    assert "\n" not in str(caught.value)
    with pytest.raises(
        InputError, match=r"model.pt: expected a checkpoint with closing_mm 3.0, got 5.0. Use the preset"
    ):
        load(model_file, vocabulary, closing_mm=3.0)


def test_a_training_checkpoint_is_not_taken_for_a_model(model_file, tmp_path, vocabulary):
    with pytest.raises(InputError, match=r"last.pt: expected a Tensor under 'objects', got .* Name a file of the kind"):
        load(tmp_path / "spade_axial" / "last.pt", vocabulary)


def test_a_missing_or_torn_model_is_one_clear_line(model_file, vocabulary):
    model_file.write_bytes(model_file.read_bytes()[:2000])
    with pytest.raises(
        InputError, match=r"model.pt: expected a checkpoint written by trispade, got an unreadable file"
    ):
        load(model_file, vocabulary)
    model_file.unlink()
    with pytest.raises(InputError, match=r"model.pt: expected a checkpoint, got nothing there. Run the stage that"):
        load(model_file, vocabulary)


def test_weights_that_are_not_those_of_the_record_are_refused(model_file, vocabulary):
    state = load_checkpoint(model_file)
    state["fusion.exit.bias"] += 1e-3
    save_checkpoint(state, model_file)
    with pytest.raises(InputError, match=r"expected the weights that the .json beside it describes, got others. Copy"):
        load(model_file, vocabulary)


@pytest.mark.parametrize("text", ['{"sha256": ', "[]"])
def test_a_torn_record_is_one_clear_line(model_file, vocabulary, text):
    model_file.with_suffix(".json").write_text(text)
    with pytest.raises(InputError, match=r"model.json: expected the record of a model, got .* Copy it again."):
        load(model_file, vocabulary)


def test_weights_without_a_record_are_loaded_with_a_warning(model_file, vocabulary, caplog):
    model_file.with_suffix(".json").unlink()
    load(model_file, vocabulary)
    assert "no .json beside it" in caplog.text
    assert describe_model(model_file) == {"file": "model.pt", "sha256": None, "preset": None}


def test_the_record_is_plain_json(model_file):
    assert json.loads(model_file.with_suffix(".json").read_text()) == read_model_record(model_file)


def test_a_fusion_net_that_corrects_is_not_taken_for_one_that_paints_anew(model_file, vocabulary):
    record_file = model_file.with_suffix(".json")
    record = json.loads(record_file.read_text())
    record["fusion_architecture"]["residual"] = not record["fusion_architecture"]["residual"]
    record_file.write_text(json.dumps(record))
    with pytest.raises(InputError, match="expected a checkpoint with residual"):
        load(model_file, vocabulary)


def test_a_model_says_how_many_label_slices_its_generators_see(model_file, vocabulary):
    assert "label_slices" not in read_model_record(model_file)["architecture"]  # as published
    with pytest.raises(InputError, match=r"expected a checkpoint with label_slices 3, got 1.*Set label_slices to that"):
        load(model_file, vocabulary, label_slices=3)
