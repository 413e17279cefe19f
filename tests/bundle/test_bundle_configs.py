from __future__ import annotations

import importlib
import itertools
import json
import logging
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from metadata_schema import METADATA
from monai.bundle import ConfigParser, verify_net_in_out
from monai.bundle.properties import InferProperties, TrainProperties

from trispade.labels import load_scheme

BUNDLE = Path(__file__).parents[2] / "bundle"
CONFIGS = BUNDLE / "configs"
STAGES = sorted(file.stem for file in CONFIGS.glob("*.yaml"))
TRAINING = ["train_spade", "train_fusion", "train_direct"]
OVERLAYS = {"realism": ["train_fusion"], "federated": TRAINING, "multi_gpu": TRAINING}
DISTRIBUTED = {"device", "rank", "world_size", "wrap"}
PRESETS = sorted(file.stem for file in (CONFIGS / "presets").glob("*.yaml"))
WORKFLOW_TYPES = {
    "train_spade": "train",
    "train_fusion": "train",
    "train_direct": "train",
    "inference": "infer",
    "evaluate": "infer",
}
PROPERTIES = {"train": TrainProperties, "infer": InferProperties}
ENTRIES = ("imports", "initialize", "run", "bundle_root")
REFERENCE = re.compile(r"@([A-Za-z_][\w]*(?:(?:#|::)\w+)*)")


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())


def texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from texts(each)


def nodes(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict | list):
        if isinstance(value, dict):
            yield value
        for each in value.values() if isinstance(value, dict) else value:
            yield from nodes(each)


def is_plain(value: Any) -> bool:
    """Whether a value stands for itself: no component, reference or expression."""
    return not isinstance(value, dict) and not any(text.startswith(("$", "@")) for text in texts(value))


def references(value: Any) -> set[str]:
    return {found.replace("::", "#") for text in texts(value) for found in REFERENCE.findall(text)}


def lookup(config: Any, key: str) -> Any:
    for part in key.split("#"):
        config = config[int(part)] if isinstance(config, list) else config[part]
    return config


def used_keys(config: dict[str, Any], start: Iterable[str]) -> set[str]:
    """Follow references from some keys; what is reached, with all keys above it."""
    reached: set[str] = set()
    waiting = list(start)
    while waiting:
        key = waiting.pop()
        if key not in reached:
            reached.add(key)
            waiting += references(lookup(config, key))
    return reached


def keys_of(config: dict[str, Any]) -> set[str]:
    """Keys of the first level, and of the second for the groups ``train`` and ``validate``."""
    groups = {"train", "validate"} & set(config)
    return (set(config) - groups) | {f"{group}#{key}" for group in groups for key in config[group]}


def test_there_is_a_config_for_each_stage_and_a_preset_for_each_use():
    assert STAGES == [
        "evaluate",
        "evaluate_downstream",
        "inference",
        "prepare",
        "synthesize_planes",
        "train_direct",
        "train_fusion",
        "train_spade",
    ]
    assert PRESETS == ["compact", "paper", "smoke"]


@pytest.mark.parametrize("stage", STAGES)
def test_a_config_has_no_key_that_its_stage_does_not_use(stage):
    config = read(stage)
    properties = PROPERTIES.get(WORKFLOW_TYPES.get(stage, ""), {})
    required = {each["id"].replace("::", "#") for each in properties.values() if each["required"]}
    used = used_keys(config, {*ENTRIES, *required})
    unused = {key for key in keys_of(config) if not any(key == u or u.startswith(f"{key}#") for u in used)}
    assert unused == set()


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_ends_in_one_line_on_bad_input_and_on_signals(stage):
    assert read(stage)["initialize"][:2] == ["$show_input_errors_as_one_line()", "$exit_on_sigterm()"]


@pytest.mark.parametrize("stage", STAGES)
def test_whatever_trains_watches_its_numbers_and_stops_on_signals_after_its_checkpoint(stage):
    trainers = [node for node in nodes(read(stage)) if "train_handlers" in node]
    assert bool(trainers) == (stage in ("train_spade", "train_fusion", "train_direct", "evaluate_downstream"))
    for trainer in trainers:
        assert trainer["train_handlers"].endswith("@training_state, @stop_on_signal]")
        targets = [handler["_target_"] for handler in read(stage)["train"]["handlers"]]
        assert "trispade.engines.StopAtBadNumbers" in targets
        assert ("trispade.engines.WatchDiscriminator" in targets) == (stage == "train_spade")


@pytest.mark.parametrize("stage", STAGES)
def test_every_reference_names_a_key_of_its_config(stage):
    config = read(stage)
    for key in references(config):
        lookup(config, key)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_without_a_preset_is_the_compact_preset(stage):
    config, compact = read(stage), read("presets/compact")
    shared = {key: config[key] for key in config.keys() & compact.keys()}
    assert shared == {key: compact[key] for key in shared}
    assert "spacing_mm" in shared


def test_an_overlay_changes_values_of_its_stages_and_adds_none_but_how_processes_meet_and_part():
    assert sorted(file.stem for file in (CONFIGS / "overlays").glob("*.yaml")) == sorted(OVERLAYS)
    meeting = {"+imports", "+initialize", "finalize", "backend", "timeout_minutes"}
    for overlay, stages in OVERLAYS.items():
        keys = set(read(f"overlays/{overlay}")) - (meeting if overlay == "multi_gpu" else set())
        for stage, key in itertools.product(stages, keys):
            lookup(read(stage), key)


def test_the_overlay_for_several_processes_holds_device_wrapping_samplers_start_and_end_and_nothing_else():
    overlay = read("overlays/multi_gpu")
    assert set(overlay) == DISTRIBUTED | {"+imports", "+initialize", "finalize", "backend", "timeout_minutes"}
    assert overlay["finalize"] == ["$leave_ranks()"]


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_is_one_process_or_takes_the_overlay_for_several_as_a_whole(stage):
    config = read(stage)
    several = config.keys() & (DISTRIBUTED - {"device"})
    trains = {"rank", "world_size", "wrap"}
    expected = {"inference": {"rank", "world_size"}, "synthesize_planes": {"rank", "world_size"}}
    expected |= dict.fromkeys(OVERLAYS["multi_gpu"], trains)
    assert several == expected.get(stage, set())
    if several:
        assert (config["rank"], config["world_size"]) == (0, 1)
    if several == trains:
        assert config["train"]["trainer"]["network"] == "$@wrap(@network)"
        assert config["train"]["handlers"][0]["_target_"] == "trispade.engines.ReduceLosses"
        for sampler, count in (("train", "world_size"), ("validate", "num_replicas")):
            part = config[sampler].get("sampler") or config[sampler]["dataloader"]["sampler"]
            assert (part["rank"], part[count]) == ("@rank", "@world_size")


@pytest.mark.parametrize("preset", PRESETS)
def test_every_key_of_a_preset_belongs_to_a_stage_and_its_name_is_its_own(preset):
    known = {key for stage in STAGES for key in read(stage)}
    assert set(read(f"presets/{preset}")) <= known
    assert read(f"presets/{preset}")["preset"] == preset
    assert set(read(f"presets/{preset}")) >= set(read("presets/compact"))


@pytest.mark.parametrize("preset", PRESETS)
def test_the_boxes_of_the_presets_are_multiples_of_32(preset):
    assert all(extent % 32 == 0 for extent in read(f"presets/{preset}")["box"])


@pytest.mark.parametrize("stage", STAGES)
def test_values_that_stages_share_are_the_same_in_all_of_them(stage):
    own = {"label_scheme", "splits", "train_splits", "val_interval"}
    config = {key: value for key, value in read(stage).items() if is_plain(value) and key not in own}
    for name in STAGES:
        other = read(name)
        shared = {key for key in config.keys() & other.keys() if is_plain(other[key])}
        if (stage == "inference") != (name == "inference"):
            shared -= {"dataset_dir"}
        assert {key: config[key] for key in shared} == {key: other[key] for key in shared}


def test_inference_takes_a_manifests_own_folder_and_all_other_stages_name_one():
    folders = {stage: read(stage)["dataset_dir"] for stage in STAGES if "dataset_dir" in read(stage)}
    assert folders.pop("inference") is None
    assert folders
    assert all(isinstance(folder, str) for folder in folders.values())


@pytest.mark.parametrize("stage", STAGES)
def test_expressions_are_few_and_decide_nothing(stage):
    config = read(stage)
    is_path = re.compile(r"\$(@\w+|'\w+/') \+ ('/[^']*'|@\w+)|.*'/spade_' \+ @plane")
    expressions = [text for text in texts(config) if text.startswith("$") and not is_path.fullmatch(text)]
    setup = [*config["imports"], *config["initialize"], *config["run"]]
    targets = [node for node in nodes(config) if "_target_" in node]
    assert len([text for text in expressions if text not in setup]) <= len(targets)
    decisions = re.compile(r"\blambda\b|\bfor\b|\btorch\.load\b|\bif\b")
    assert [t for t in expressions if decisions.search(t) and "cuda.is_available" not in t] == []


@pytest.mark.parametrize("stage", STAGES)
def test_every_target_can_be_imported(stage):
    known_to_monai = ConfigParser().locator
    for node in nodes(read(stage)):
        target = node.get("_target_")
        if target is None:
            continue
        if "." in target:
            module, name = target.rsplit(".", 1)
            assert hasattr(importlib.import_module(module), name), target
        else:
            assert known_to_monai.get_component_module_name(target) is not None, target


def test_the_configs_of_one_network_describe_it_alike():
    assert read("inference")["network_def"] == read("evaluate")["network_def"]
    assert read("inference")["network"] == read("evaluate")["network"]
    fusion = {key: read("inference")["inferer"]["fusion"][key] for key in ("roi_size", "overlap", "mode")}
    for other in (read("evaluate")["inferer"]["fusion"], read("train_fusion")["validate"]["inferer"]):
        assert (
            fusion
            == {key: other[key] for key in fusion}
            == {"roi_size": [32, 32, 32], "overlap": 0.5, "mode": "gaussian"}
        )


@pytest.fixture
def metadata() -> dict[str, Any]:
    return json.loads((CONFIGS / "metadata.json").read_text())


def test_the_metadata_are_what_monais_schema_asks_for(metadata):
    jsonschema.validate(metadata, METADATA)
    assert metadata["version"] in metadata["changelog"]


def test_the_metadata_describe_each_network(metadata):
    formats = {key.removesuffix("_data_format") for key in metadata if key.endswith("_data_format")}
    assert formats == {"network", "axial_generator", "coronal_generator", "sagittal_generator", "fusion"}
    assert set(metadata["network_data_format"]["inputs"]) == {"image"}
    assert set(metadata["network_data_format"]["outputs"]) == {"pred"}


def test_the_metadata_name_the_classes_of_the_vocabulary(metadata):
    names = load_scheme("freesurfer").vocabulary.names
    assert metadata["image_vocabulary"] == {str(index): name for index, name in enumerate(names)}
    assert metadata["network_data_format"]["inputs"]["image"]["value_range"] == [0, len(names) - 1]


def test_the_logging_configuration_uses_classes_of_the_standard_library_alone():
    classes = re.findall(r"^class=(.*)$", (CONFIGS / "logging.conf").read_text(), flags=re.MULTILINE)
    assert classes
    assert all(hasattr(logging, name) for name in classes)


def test_the_network_turns_data_of_the_described_form_into_data_of_the_described_form():
    verify_net_in_out(
        net_id="network_def",
        meta_file=str(CONFIGS / "metadata.json"),
        config_file=[str(CONFIGS / "inference.yaml"), str(CONFIGS / "presets" / "smoke.yaml")],
        device="cpu",
        p=2,
        n=1,
    )
