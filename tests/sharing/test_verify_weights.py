"""Weights that would run code when they are unpickled, or that two programs could read differently."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from zips import FOLDER, write_twice, write_zip

MODEL = f"{FOLDER}/models/model.pt"


class Call:
    """Pickles as a call of ``os.system``."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("id",)


def saved(content: object) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


def weights_of(pickled: bytes, **more: bytes) -> bytes:
    """An archive such as torch writes, around a pickle."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in {"model/data.pkl": pickled, "model/version": b"3\n", **more}.items():
            archive.writestr(name, content)
    return stream.getvalue()


@pytest.fixture
def check_weights(files, tmp_path: Path, check) -> Callable[[bytes], list[str]]:
    def run(content: bytes) -> list[str]:
        return check(write_zip(tmp_path / "a.zip", {**files, MODEL: content}))

    return run


DTYPES = ("float32", "float16", "bfloat16", "float64", "int64", "int32", "int16", "int8", "uint8", "bool")


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_plain_state_dict_passes(check_weights, dtype):
    tensor = torch.ones(2, 300, dtype=getattr(torch, dtype))
    assert check_weights(saved({"a.weight": tensor, "b": tensor.T, "empty": tensor[:0]})) == []
    assert check_weights(saved(OrderedDict(a=tensor))) == []


def test_a_hash_at_their_end_must_be_that_of_the_weights(check_weights):
    content = saved({"a": torch.ones(3)})
    seal, digest = b"\ntrispade sha256 ", hashlib.sha256(content).hexdigest().encode()
    assert check_weights(content + seal + digest) == []
    refused = ["models/model.pt: is not laid out as one plain zip: something follows its end record"]
    for tail in (b"0" * 64, digest + b"\n", digest + seal + digest, b""):
        assert check_weights(content + seal + tail) == refused


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_a_pickle_that_calls_os_system_is_refused(check_weights, protocol):
    findings = check_weights(weights_of(pickle.dumps({"a": Call()}, protocol)))
    if protocol < 4:
        assert (
            f"models/model.pt: its pickle would call {os.system.__module__}.system, which is not on the list"
            in findings
        )
    else:
        assert "models/model.pt: its pickle holds STACK_GLOBAL, which a plain state dict does not need" in findings


@pytest.mark.parametrize(
    ("pickled", "expected"),
    [
        (b"(S'id'\nios\nsystem\n.", "its pickle holds INST, which a plain state dict does not need"),
        (b"(cos\nsystem\nS'id'\no.", "its pickle holds OBJ, which a plain state dict does not need"),
        (b"\x80\x02ctorch.hub\nload\n)R.", "its pickle would call torch.hub.load, which is not on the list"),
        (b"\x80\x02cbuiltins\neval\nX\x01\x00\x00\x001\x85R.", "its pickle would call builtins.eval, which"),
        (b"\x80\x02ccollections\nOrderedDict\n)R}b.", "its pickle holds BUILD, which a plain state dict does not need"),
        (
            b"\x80\x02ccollections\nOrderedDict\n)\x81.",
            "its pickle holds NEWOBJ, which a plain state dict does not need",
        ),
        (b"\x80\x02\x82\x01.", "its pickle holds EXT1, which a plain state dict does not need"),
        (b"\x80\x02}.cos\nsystem\nX\x02\x00\x00\x00id\x85R.", "something follows the end of its pickle"),
        (b"\x80\x02\xff.", "its pickle cannot be read (ValueError)"),
    ],
    ids=["INST", "OBJ", "torch.hub", "eval", "BUILD", "NEWOBJ", "EXT1", "two pickles", "no opcode"],
)
def test_every_other_way_of_a_pickle_to_code_is_refused(check_weights, pickled, expected):
    findings = check_weights(weights_of(pickled))
    assert any(finding.startswith(f"models/model.pt: {expected}") for finding in findings)


def test_a_bare_pickle_is_refused(check_weights):
    stream = io.BytesIO()
    torch.save({"a": torch.ones(1)}, stream, _use_new_zipfile_serialization=False)
    assert check_weights(stream.getvalue()) == ["models/model.pt: weights of the old format, a bare pickle"]


def test_a_network_with_its_code_is_refused(check_weights):
    content = weights_of(b"\x80\x02}.", **{"model/code/__torch__.py": b"", "model/constants.pkl": b"\x80\x02)."})
    assert check_weights(content) == [
        "models/model.pt: model/code/__torch__.py is no part of a plain state dict",
        "models/model.pt: model/constants.pkl is no part of a plain state dict",
    ]


def test_a_second_pickle_is_refused(check_weights, tmp_path):
    two_folders = weights_of(b"\x80\x02}.", **{"other/data.pkl": pickle.dumps(Call(), 2)})
    assert check_weights(two_folders) == ["models/model.pt: expected one data.pkl in one folder, got 2"]
    twice = write_twice(tmp_path / "model.pt", {"model/data.pkl": b"\x80\x02}."}, "model/data.pkl", b"\x80\x02}.")
    (finding,) = check_weights(twice.read_bytes())
    assert finding == "models/model.pt: model/data.pkl: occurs twice (capitals do not count)"


def test_the_large_end_record_that_torch_writes_must_be_the_one_that_is_read(check_weights):
    content = saved({"a": torch.ones(3)})
    locator = len(content) - 42
    assert content[locator : locator + 4] == b"PK\x06\x07"
    elsewhere = content[: locator + 8] + struct.pack("<Q", 0) + content[locator + 16 :]
    (finding,) = check_weights(elsewhere)
    # Python's newer versions refuse it as well, when they open it.
    assert finding.startswith("models/model.pt: ")
    assert "its large end record is not at its end" in finding or "cannot be read as a zip" in finding


def test_every_file_of_weights_is_scanned(files, tmp_path, check):
    attack = {**files, f"{FOLDER}/models/fusion_realism.pt": weights_of(pickle.dumps(Call(), 2))}
    (finding,) = check(write_zip(tmp_path / "a.zip", attack))
    called = f"{os.system.__module__}.system"
    assert finding == f"models/fusion_realism.pt: its pickle would call {called}, which is not on the list"


def test_compressed_parts_are_refused(check_weights):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model/data.pkl", b"\x80\x02}." + bytes(1000))
    (finding,) = check_weights(stream.getvalue())
    assert finding.startswith("models/model.pt: model/data.pkl: is compressed, where a bundle's files are stored")
