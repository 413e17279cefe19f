from __future__ import annotations

import json

import pytest
import torch

from trispade.engines import describe_training, hash_tensors, load_checkpoint, save_checkpoint, start_from
from trispade.engines.discriminators import save_discriminators
from trispade.errors import InputError
from trispade.geometry import middle_slice
from trispade.labels import LabelClass, Vocabulary
from trispade.networks import plain_copy

VOCABULARY = Vocabulary(
    "small",
    tuple(
        LabelClass(n, None, "background" if n == "background" else "other", "") for n in ("background", "a", "b", "c")
    ),
)
ARCHITECTURE = {"ngf": 2}


@pytest.fixture
def checkpoint(build_gan, tmp_path):
    """A coarser run's checkpoint, and its networks."""
    gan = build_gan(seed=3)
    networks = {"generator": gan.generator, "discriminator": gan.discriminator}
    record = {
        "plane": "axial",
        "vocabulary": VOCABULARY.to_dict(),
        "architecture": ARCHITECTURE,
        "people": ["p1", "p9"],
        "settings": {"spacing_mm": 2.0},
    }
    objects = {name: network.state_dict() for name, network in networks.items()}
    save_checkpoint({"objects": objects, "record": record}, tmp_path / "last.pt")
    return tmp_path / "last.pt", networks


def start(path, networks, **changes):
    options = {"vocabulary": VOCABULARY, "architecture": ARCHITECTURE, "plane": "axial"}
    return start_from(path, networks, **{**options, **changes})


def new_networks(build_gan):
    gan = build_gan(seed=4)
    return {"generator": gan.generator, "discriminator": gan.discriminator}


def test_the_networks_take_over_all_weights_and_the_record_says_whose(checkpoint, build_gan):
    path, trained = checkpoint
    networks = new_networks(build_gan)
    told = start(path, networks)
    for name, network in networks.items():
        expected = trained[name].state_dict()
        assert all(torch.equal(value, expected[key]) for key, value in network.state_dict().items())
        assert told["weights"][name] == hash_tensors(expected)
    assert told["people"] == ["p1", "p9"]
    assert told["settings"] == {"spacing_mm": 2.0}


def test_the_people_of_the_first_run_count_as_seen(checkpoint, build_gan, make_case):
    told = start(checkpoint[0], new_networks(build_gan))
    record = describe_training([make_case("a", "p2")], VOCABULARY, ARCHITECTURE, {"vocabulary": VOCABULARY}, start=told)
    assert record["people"] == ["p1", "p2", "p9"]
    assert record["start"]["people"] == ["p1", "p9"]


def test_without_a_checkpoint_nothing_is_loaded_and_nothing_told(build_gan, make_case):
    networks = new_networks(build_gan)
    before = {name: hash_tensors(network.state_dict()) for name, network in networks.items()}
    assert start(None, networks) is None
    assert before == {name: hash_tensors(network.state_dict()) for name, network in networks.items()}
    record = describe_training([make_case()], VOCABULARY, ARCHITECTURE, {"vocabulary": VOCABULARY}, start=None)
    assert "start" not in record


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"plane": "coronal"}, "plane 'coronal', got 'axial'"),
        ({"architecture": {"ngf": 4}}, "architecture {'ngf': 4}, got {'ngf': 2}"),
    ],
)
def test_another_plane_or_size_is_refused_before_anything_is_loaded(checkpoint, build_gan, changes, message):
    networks = new_networks(build_gan)
    before = hash_tensors(networks["generator"].state_dict())
    with pytest.raises(InputError, match=f"last.pt: expected a checkpoint with {message}. Choose a checkpoint"):
        start(checkpoint[0], networks, **changes)
    assert hash_tensors(networks["generator"].state_dict()) == before


def test_a_generator_that_starts_to_see_neighbours_paints_as_before_and_learns_to_use_them(checkpoint, build_gan):
    path, trained = checkpoint
    gan = build_gan(seed=4, label_slices=5)
    networks = {"generator": gan.generator, "discriminator": gan.discriminator}
    start(path, networks, architecture={**ARCHITECTURE, "label_slices": 5})
    label_maps = torch.randint(0, 4, (2, 5, 32, 32))
    generator, alone = gan.generator.eval(), trained["generator"].eval()
    painted = generator(label_maps)
    torch.testing.assert_close(painted, alone(middle_slice(label_maps)))
    painted.square().mean().backward()
    assert all(part.any() for part in generator.head.weight.grad.chunk(5, dim=1))


def test_a_generator_that_saw_neighbours_does_not_start_one_that_sees_others(checkpoint, build_gan):
    content = load_checkpoint(checkpoint[0])
    content["record"]["architecture"] = {**ARCHITECTURE, "label_slices": 3}
    save_checkpoint(content, checkpoint[0])
    for changes in ({}, {"architecture": {**ARCHITECTURE, "label_slices": 5}}):
        with pytest.raises(InputError, match="expected a checkpoint with architecture"):
            start(checkpoint[0], new_networks(build_gan), **changes)


@pytest.fixture
def model(build_gan, tmp_path):
    """A model file with one generator, spectral norm folded, and what trained it."""
    generator = build_gan(seed=3).generator
    for _ in range(50):  # as after some training: its weights' norm is then near 1
        _ = [block.conv_0.weight for block in generator.train().blocks]
    folded = plain_copy(generator)
    state = {f"generators.axial.{name}": value for name, value in folded.state_dict().items()}
    save_checkpoint(state, tmp_path / "model.pt")
    record = {
        "vocabulary": VOCABULARY.to_dict(),
        "architecture": ARCHITECTURE,
        "training": {"generator_axial": {"plane": "axial", "people": ["p1"], "settings": {"spacing_mm": 1.0}}},
    }
    (tmp_path / "model.json").write_text(json.dumps(record))
    return tmp_path / "model.pt", folded


@pytest.mark.parametrize("label_slices", [1, 3])
def test_training_starts_from_the_generator_of_a_model_and_a_new_discriminator(model, build_gan, label_slices):
    path, folded = model
    gan = build_gan(seed=4, label_slices=label_slices)
    networks = {"generator": gan.generator, "discriminator": gan.discriminator}
    before = hash_tensors(gan.discriminator.state_dict())
    told = start(path, networks, architecture={**ARCHITECTURE, "label_slices": label_slices})
    label_maps = torch.randint(0, 4, (2, label_slices, 32, 32))
    with torch.no_grad():
        expected = folded(middle_slice(label_maps))
        torch.testing.assert_close(gan.generator.eval()(label_maps), expected, atol=1e-4, rtol=1e-3)
        gan.generator.train()(label_maps)  # its power iteration finds the norm where it was
        moved = plain_copy(gan.generator).blocks[0].conv_0.weight
    torch.testing.assert_close(moved, folded.blocks[0].conv_0.weight, atol=1e-3, rtol=1e-2)
    assert hash_tensors(gan.discriminator.state_dict()) == before
    assert told["people"] == ["p1"]
    assert list(told["weights"]) == ["generator"]


def test_a_model_without_its_record_is_one_clear_line(model, build_gan):
    path, _ = model
    path.with_suffix(".json").unlink()
    message = r"model.pt: expected a checkpoint, or a model whose .json tells of its generator_axial, got neither. Copy"
    with pytest.raises(InputError, match=message):
        start(path, new_networks(build_gan))


@pytest.mark.parametrize("of_model", [True, False])
def test_the_discriminator_of_another_run_is_taken_over(model, checkpoint, build_gan, of_model):
    networks = new_networks(build_gan)
    before = hash_tensors(networks["generator"].state_dict())
    start_file = model[0] if of_model else None
    judged, trained = checkpoint
    content = load_checkpoint(judged)
    content["record"]["architecture"] = {"ngf": 64, "label_slices": 3}  # of a discriminator, they say nothing
    save_checkpoint(content, judged)
    told = start(start_file, networks, discriminator_checkpoint=judged)
    expected = hash_tensors(trained["discriminator"].state_dict())
    assert hash_tensors(networks["discriminator"].state_dict()) == expected
    assert told["discriminator"]["weights"] == {"discriminator": expected}
    assert told["people"] == ["p1", "p9"]
    assert (hash_tensors(networks["generator"].state_dict()) != before) == of_model
    assert ("weights" in told) == of_model


def test_a_checkpoint_s_own_discriminator_gives_way_to_the_one_that_is_named(checkpoint, build_gan, tmp_path):
    path, trained = checkpoint
    other = build_gan(seed=5)
    content = load_checkpoint(path)
    content["objects"]["discriminator"] = other.discriminator.state_dict()
    save_checkpoint(content, tmp_path / "other.pt")
    networks = new_networks(build_gan)
    told = start(path, networks, discriminator_checkpoint=tmp_path / "other.pt")
    assert list(told["weights"]) == ["generator"]
    expected = {"generator": trained["generator"], "discriminator": other.discriminator}
    for name, network in networks.items():
        assert hash_tensors(network.state_dict()) == hash_tensors(expected[name].state_dict())


@pytest.mark.parametrize(
    ("of_model", "changes", "message"),
    [
        (True, {}, "model.pt: expected a checkpoint of train_spade, got no discriminator. Name a plane's last.pt"),
        (False, {"plane": "coronal"}, "last.pt: expected a checkpoint with plane 'coronal', got 'axial'"),
    ],
)
def test_what_has_no_discriminator_for_the_plane_is_refused(model, checkpoint, build_gan, of_model, changes, message):
    named = model[0] if of_model else checkpoint[0]
    with pytest.raises(InputError, match=message):
        start(None, new_networks(build_gan), discriminator_checkpoint=named, **changes)


@pytest.fixture
def model_with_discriminators(model, checkpoint):
    """The model with discriminators beside it; gives its file and the axial one."""
    path, _ = model
    told = save_discriminators({"axial": checkpoint[0], "coronal": checkpoint[0]}, path, "float32")
    record = json.loads(path.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps({**record, "discriminators": told}))
    return path, checkpoint[1]["discriminator"]


def test_the_discriminator_beside_a_model_is_taken_over_with_its_generator(model_with_discriminators, build_gan):
    path, discriminator = model_with_discriminators
    networks = new_networks(build_gan)
    told = start(path, networks)
    expected = hash_tensors(discriminator.state_dict())
    assert hash_tensors(networks["discriminator"].state_dict()) == told["weights"]["discriminator"] == expected


def test_discriminators_of_another_model_are_refused(model_with_discriminators, build_gan):
    beside = model_with_discriminators[0].with_name("discriminators.pt")
    state = load_checkpoint(beside)
    save_checkpoint({name: value + 1 for name, value in state.items()}, beside)
    with pytest.raises(InputError, match=r"discriminators.pt: expected the weights that model.json describes, got oth"):
        start(model_with_discriminators[0], new_networks(build_gan))


def test_checkpoints_without_a_discriminator_leave_nothing_beside_the_model(checkpoint, tmp_path):
    content = load_checkpoint(checkpoint[0])
    del content["objects"]["discriminator"]
    save_checkpoint(content, checkpoint[0])
    assert save_discriminators({"axial": checkpoint[0]}, tmp_path / "model.pt", "float16") == {}
    assert not (tmp_path / "discriminators.pt").exists()
