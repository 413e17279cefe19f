"""Checkpoints and models with anything in them: networks that paint, or one clear line."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from examples import HOSTILE, MIB, assert_one_clear_line, bounded, few_or_many, for_each, spoilt_json, spoilt_records
from hypothesis import strategies as st
from torch import nn

from trispade.data import StreamBatchSampler
from trispade.engines import TrainingState, hash_tensors, load_checkpoint, save_checkpoint, start_from
from trispade.engines.style import make_style_encoder
from trispade.errors import InputError
from trispade.geometry import PLANES
from trispade.inference import load_generator, load_model
from trispade.inference.direct import load_direct
from trispade.labels import LabelClass, Vocabulary
from trispade.networks import DirectUNet, SpadeGenerator, StyleEncoder, TriplanarSynthesizer

WHITE, CSF = LabelClass("white", None, "wm", ""), LabelClass("csf", None, "csf", "")
VOCABULARY = Vocabulary("tiny", (LabelClass("background", None, "background", ""), WHITE, CSF))
ARCHITECTURE = {"ngf": 2, "hidden": 4, "max_channels": 8}
FUSION_ARCHITECTURE = {"channels": [2, 3, 4], "norm": "none", "residual": False}
SETTINGS = {"spacing_mm": 1.0, "box": [32, 32, 32], "closing_mm": 5.0}
TRAINED = {
    "plane": "axial",
    "vocabulary": VOCABULARY.to_dict(),
    "architecture": ARCHITECTURE,
    "settings": SETTINGS,
    "people": ["p1", "p2"],
    "trained_classes": [0, 1, 2],
}
ODD_TENSORS = [
    torch.zeros(0),
    torch.zeros(2, 3),
    torch.tensor(float("nan")),
    torch.tensor(1).expand(1 << 20),
    torch.zeros(4, dtype=torch.complex64),
    torch.ones(2, 2).to_sparse(),
    torch.zeros(3, 3, device="meta"),
    torch.zeros(2, dtype=torch.bool),
    nn.Parameter(torch.ones(2)),
    torch.float16,
    (1, 2),
    b"bytes",
]
VALUES = st.one_of(HOSTILE, st.sampled_from(ODD_TENSORS))


class Loading:
    """A file that some part of trispade loads, and how."""

    def __init__(self, content: dict[str, Any], load: Callable[[Path], Any], beside: dict[str, Any] | None = None):
        self.content, self.load, self.beside = content, load, beside


def generator() -> SpadeGenerator:
    return SpadeGenerator(VOCABULARY.num_classes, 1, **ARCHITECTURE)


def training() -> TrainingState:
    """A run whose state is that of a network and its optimizer, ready to go on."""
    network = nn.Linear(2, 1)
    objects = {"network": network, "optimizer": torch.optim.Adam(network.parameters())}
    state = TrainingState(Path(), objects, TRAINED, StreamBatchSampler(4, 2, seed=0))
    state.trainer = SimpleNamespace(
        state=SimpleNamespace(iteration=0, epoch_length=2, max_epochs=3, device=torch.device("cpu"))
    )
    return state


def resume(path: Path) -> None:
    state = training()
    state.folder = path.parent
    before = torch.get_rng_state()
    try:
        state.resume(state.trainer)
    finally:
        torch.set_rng_state(before)


def training_content() -> dict[str, Any]:
    state = training()
    state.objects["network"](torch.ones(1, 2)).sum().backward()
    state.objects["optimizer"].step()
    objects = {name: item.state_dict() for name, item in state.objects.items()}
    rng = {"cpu": torch.get_rng_state()}
    return {"objects": objects, "record": TRAINED, "iteration": 2, "best_metric": -float("inf"), "rng": rng}


def model_loading() -> Loading:
    network = TriplanarSynthesizer(VOCABULARY.num_classes, **ARCHITECTURE, fusion_channels=(2, 3, 4))
    parts = {f"generator_{plane}": TRAINED for plane in PLANES}
    told = {"generators": {plane: ["a"] for plane in PLANES}, "people": ["p3"], "preset": "tiny"}
    record = {
        "vocabulary": VOCABULARY.to_dict(),
        "architecture": ARCHITECTURE,
        "fusion_architecture": FUSION_ARCHITECTURE,
        "spacing_mm": 1.0,
        "closing_mm": 5.0,
        "trained_classes": [0, 1, 2],
        "training": {**parts, "fusion": told},
        "sha256": hash_tensors(network.state_dict()),
        "fusions": {"realism": {"sha256": "0", "training": told}},
    }

    def load(path: Path) -> None:
        load_model(
            TriplanarSynthesizer(VOCABULARY.num_classes, **ARCHITECTURE, fusion_channels=(2, 3, 4)),
            path,
            VOCABULARY,
            1.0,
            5.0,
            "cpu",
        )
        start_from(path, {"generator": generator()}, VOCABULARY, ARCHITECTURE, "axial")

    return Loading(network.state_dict(), load, record)


def direct_loading() -> Loading:
    network = DirectUNet(VOCABULARY.num_classes, [2] * 5)
    record = {
        "network": "DirectUNet",
        "vocabulary": VOCABULARY.to_dict(),
        "architecture": {"channels": [2] * 5},
        "spacing_mm": 1.0,
        "closing_mm": 5.0,
        "training": {"direct": {"patch_size": [32, 32, 32], "people": ["p1"]}},
        "sha256": hash_tensors(network.state_dict()),
    }
    return Loading(network.state_dict(), lambda path: load_direct(path, VOCABULARY, 1.0, 5.0, "cpu"), record)


@pytest.fixture(scope="module")
def loadings() -> dict[str, Loading]:
    torch.manual_seed(0)
    checkpoint = {"objects": {"generator": generator().state_dict()}, "record": TRAINED}
    encoder = {"objects": {"encoder": StyleEncoder(1, 1, 3).state_dict()}, "record": {**TRAINED, "finished": True}}
    return {
        "generator": Loading(
            checkpoint, lambda path: load_generator(path, "axial", VOCABULARY, ARCHITECTURE, SETTINGS, "cpu")
        ),
        "start": Loading(
            checkpoint, lambda path: start_from(path, {"generator": generator()}, VOCABULARY, ARCHITECTURE, "axial")
        ),
        "encoder": Loading(encoder, lambda path: make_style_encoder(3, 1, "cpu", path)),
        "resumed": Loading(training_content(), resume),
        "model": model_loading(),
        "direct": direct_loading(),
    }


KINDS = ("generator", "start", "encoder", "resumed", "model", "direct")


def write(loading: Loading, path: Path) -> None:
    save_checkpoint(loading.content, path)
    if loading.beside is not None:
        path.with_suffix(".json").write_text(json.dumps(loading.beside))


def assert_loads_or_one_clear_line(loading: Loading, path: Path) -> None:
    try:
        with bounded():
            loading.load(path)
    except InputError as error:
        assert_one_clear_line(error, "")


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_loads_when_nothing_is_wrong(loadings: dict[str, Loading], kind: str, tmp_path: Path) -> None:
    write(loadings[kind], tmp_path / "last.pt")
    loadings[kind].load(tmp_path / "last.pt")


@pytest.mark.parametrize("kind", KINDS)
@few_or_many(15, 1500)
def test_whatever_a_checkpoint_holds_it_is_loaded_or_one_clear_line(
    loadings: dict[str, Loading], kind: str, num_examples: int, tmp_path: Path
) -> None:
    path = tmp_path / "last.pt"
    write(loadings[kind], path)

    def check(content: Any) -> None:
        with path.open("wb") as file:
            torch.save(content, file)
        assert_loads_or_one_clear_line(loadings[kind], path)

    for_each(num_examples, check, spoilt_records(loadings[kind].content, VALUES))


@pytest.mark.parametrize("kind", ["model", "direct"])
@few_or_many(25, 1500)
def test_whatever_the_record_beside_a_model_is_it_is_loaded_or_one_clear_line(
    loadings: dict[str, Loading], kind: str, num_examples: int, tmp_path: Path
) -> None:
    path = tmp_path / "model.pt"
    write(loadings[kind], path)

    def check(text: bytes) -> None:
        path.with_suffix(".json").write_bytes(text)
        assert_loads_or_one_clear_line(loadings[kind], path)

    for_each(num_examples, check, spoilt_json(loadings[kind].beside))


@few_or_many(40, 4000)
def test_whatever_the_bytes_of_a_checkpoint_are_it_is_loaded_or_one_clear_line(
    loadings: dict[str, Loading], num_examples: int, tmp_path: Path
) -> None:
    path = tmp_path / "last.pt"
    write(loadings["resumed"], path)
    whole = path.read_bytes()
    archive = io.BytesIO()
    torch.save(loadings["resumed"].content, archive)
    without_seal = archive.getvalue()
    places = st.integers(0, len(without_seal) - 1)

    def check(original: bytes, changes: list[tuple[int, bytes]], length: int | None) -> None:
        content = bytearray(original)
        for place, new in changes:
            content[place : place + len(new)] = new
        path.write_bytes(bytes(content[:length]))
        assert_loads_or_one_clear_line(loadings["resumed"], path)

    changes = st.lists(st.tuples(places, st.binary(min_size=1, max_size=8)), min_size=1, max_size=4)
    for_each(num_examples, check, st.sampled_from([whole, without_seal]), changes, st.one_of(st.none(), places))


@few_or_many(60, 4000)
def test_whatever_the_pickle_of_a_checkpoint_says_it_is_loaded_or_one_clear_line(
    loadings: dict[str, Loading], num_examples: int, tmp_path: Path
) -> None:
    """Bytes of the pickle are changed, and the archive around it is put right."""
    path = tmp_path / "last.pt"
    archive = io.BytesIO()
    torch.save(loadings["resumed"].content, archive)
    with zipfile.ZipFile(archive) as parts:
        files = {name: parts.read(name) for name in parts.namelist()}
    name = next(name for name in files if name.endswith("data.pkl"))
    places = st.integers(0, len(files[name]) - 1)

    def check(changes: list[tuple[int, bytes, int]]) -> None:
        content = bytearray(files[name])
        for place, new, gone in changes:
            content[place : place + gone] = new
        with zipfile.ZipFile(path, "w") as parts:
            for each, data in files.items():
                parts.writestr(each, bytes(content) if each == name else data)
        assert_loads_or_one_clear_line(loadings["resumed"], path)

    pieces = st.one_of(st.binary(max_size=4), st.sampled_from([b"0", b".", b"}", b"]", b"t", b"h\x00", b"\x8a\xff"]))
    for_each(num_examples, check, st.lists(st.tuples(places, pieces, st.integers(0, 4)), min_size=1, max_size=3))


def bomb(path: Path, **options: Any) -> None:
    archive = io.BytesIO()
    torch.save({"weight": torch.zeros(16 << 20)}, archive)
    with zipfile.ZipFile(archive) as parts, zipfile.ZipFile(path, "w", **options) as packed:
        for name in parts.namelist():
            packed.writestr(name, parts.read(name))


def test_a_packed_archive_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    bomb(tmp_path / "last.pt", compression=zipfile.ZIP_DEFLATED)
    assert (tmp_path / "last.pt").stat().st_size < MIB
    with bounded(2), pytest.raises(InputError, match=r"last.pt: expected .*got a file that unpacks to more than it"):
        load_checkpoint(tmp_path / "last.pt")


def test_values_that_refer_to_one_another_over_and_over_are_refused(tmp_path: Path) -> None:
    circle: dict[str, Any] = {}
    circle["objects"] = circle
    branches: Any = [1]
    for _ in range(30):
        branches = [branches, branches]
    for content, found in ((circle, "values nested over 32 deep"), ({"record": branches}, "more")):
        with (tmp_path / "last.pt").open("wb") as file:
            torch.save(content, file)
        with bounded(64), pytest.raises(InputError, match=found):
            load_checkpoint(tmp_path / "last.pt")


class Code:
    """What a pickle would run."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path: Path) -> None:
    path, trace = tmp_path / "last.pt", tmp_path / "it_ran"
    with path.open("wb") as file:
        torch.save({"objects": Code(trace)}, file)
    with pytest.raises(InputError, match=r"last.pt: expected a checkpoint written by trispade, got"):
        load_checkpoint(path)
    path.write_bytes(pickle.dumps({"objects": Code(trace)}))
    with pytest.raises(InputError, match=r"last.pt: expected a checkpoint written by trispade, got"):
        load_checkpoint(path)
    assert not trace.exists()
