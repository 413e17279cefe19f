from __future__ import annotations

import errno
import io
import json
import re
from pathlib import Path

import pytest
import torch

from trispade.engines import (
    checkpoint_exists,
    hash_tensors,
    load_checkpoint,
    load_newest_checkpoint,
    save_checkpoint,
)
from trispade.errors import InputError

PART_MIB = 4 / 1024


@pytest.fixture
def content() -> dict:
    generator = torch.Generator().manual_seed(0)
    return {
        "objects": {"network": {"weight": torch.randn(40, 50, generator=generator), "count": torch.tensor(3)}},
        "record": {"plane": "axial", "people": ["p1", "p2"], "best": -1.5, "cap": None},
    }


def assert_same(loaded: dict, content: dict) -> None:
    assert loaded["record"] == content["record"]
    network, expected = loaded["objects"]["network"], content["objects"]["network"]
    assert all(torch.equal(network[name], expected[name]) for name in expected)


@pytest.mark.parametrize("part_mib", [None, PART_MIB, 100.0])
def test_a_checkpoint_comes_back_as_it_was(content, tmp_path, part_mib):
    path = tmp_path / "stage" / "last.pt"
    assert not checkpoint_exists(path)
    save_checkpoint(content, path, part_mib)
    assert checkpoint_exists(path)
    assert_same(load_checkpoint(path), content)


def test_parts_have_the_size_asked_for_and_stand_instead_of_the_file(content, tmp_path):
    save_checkpoint(content, tmp_path / "last.pt", PART_MIB)
    parts = [file for file in tmp_path.iterdir() if file.name != "last.pt.parts.json"]
    assert len(parts) >= 3
    assert max(file.stat().st_size for file in parts) == 4096
    assert not (tmp_path / "last.pt").exists()


def test_parts_can_be_moved_to_another_folder(content, tmp_path):
    save_checkpoint(content, tmp_path / "here" / "last.pt", PART_MIB)
    (tmp_path / "here").rename(tmp_path / "there")
    assert_same(load_checkpoint(tmp_path / "there" / "last.pt"), content)


@pytest.mark.parametrize(("first", "second"), [(None, PART_MIB), (PART_MIB, None), (PART_MIB, 2 * PART_MIB)])
def test_a_newer_checkpoint_replaces_the_older_one_in_whatever_form(content, tmp_path, first, second):
    path = tmp_path / "last.pt"
    save_checkpoint(content, path, first)
    content["objects"]["network"]["weight"] += 1
    save_checkpoint(content, path, second)
    assert_same(load_checkpoint(path), content)
    fresh = tmp_path / "fresh"
    save_checkpoint(content, fresh / "last.pt", second)
    assert {file.name for file in tmp_path.iterdir() if file.is_file()} == {file.name for file in fresh.iterdir()}


def test_parts_brought_beside_an_older_whole_file_count(content, tmp_path):
    save_checkpoint({"record": "older"}, tmp_path / "last.pt")
    save_checkpoint(content, tmp_path / "elsewhere" / "last.pt", PART_MIB)
    for part in (tmp_path / "elsewhere").iterdir():
        part.rename(tmp_path / part.name)
    assert_same(load_checkpoint(tmp_path / "last.pt"), content)


def test_more_than_a_thousand_parts_are_kept_and_replaced(content, tmp_path, monkeypatch):
    monkeypatch.setattr("trispade.durable.os.fsync", lambda _: None)
    path = tmp_path / "last.pt"
    save_checkpoint(content, path, 8 / 2**20)
    assert len(list(tmp_path.iterdir())) > 1001
    assert_same(load_checkpoint(path), content)
    save_checkpoint(content, path)
    assert [file.name for file in tmp_path.iterdir()] == ["last.pt"]


def test_best_and_last_do_not_touch_each_other(content, tmp_path):
    save_checkpoint(content, tmp_path / "best.pt", PART_MIB)
    save_checkpoint({"record": {"plane": "other"}}, tmp_path / "last.pt")
    assert_same(load_checkpoint(tmp_path / "best.pt"), content)


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (lambda file: file.write_bytes(file.read_bytes()[:-1]), "4095 bytes that differ"),
        (lambda file: file.unlink(), "nothing there"),
    ],
)
def test_a_torn_or_missing_part_is_named(content, tmp_path, damage, found):
    save_checkpoint(content, tmp_path / "last.pt", PART_MIB)
    name = json.loads((tmp_path / "last.pt.parts.json").read_text())["parts"][1]["name"]
    damage(tmp_path / name)
    with pytest.raises(
        InputError, match=f"{name}: expected part of a checkpoint, 4096 bytes, got {found}. Copy all parts"
    ):
        load_checkpoint(tmp_path / "last.pt")


def test_a_missing_checkpoint_names_the_remedy(tmp_path):
    with pytest.raises(
        InputError, match=r"last.pt: expected a checkpoint, got nothing there. Run the stage that trains it"
    ):
        load_checkpoint(tmp_path / "last.pt")


def test_a_torn_checkpoint_is_one_clear_line(content, tmp_path):
    path = tmp_path / "last.pt"
    save_checkpoint(content, path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(InputError, match=r"last.pt: expected a checkpoint written by trispade, got an unreadable file"):
        load_checkpoint(path)


def test_a_file_that_would_run_code_is_refused(tmp_path):
    torch.save({"record": tmp_path}, tmp_path / "last.pt")  # a path is an object, not a plain value
    with pytest.raises(InputError, match="expected a checkpoint written by trispade, got an unreadable file"):
        load_checkpoint(tmp_path / "last.pt")


def test_a_file_of_another_content_is_refused(tmp_path):
    torch.save([1, 2], tmp_path / "last.pt")
    with pytest.raises(InputError, match=r"expected a checkpoint written by trispade, got list. Name another file"):
        load_checkpoint(tmp_path / "last.pt")


def test_a_list_of_parts_that_is_torn_is_one_clear_line(content, tmp_path):
    save_checkpoint(content, tmp_path / "last.pt", PART_MIB)
    (tmp_path / "last.pt.parts.json").write_text('{"parts": [')
    with pytest.raises(InputError, match=r"parts.json: expected the list of a checkpoint's parts, got text that"):
        load_checkpoint(tmp_path / "last.pt")


def test_a_folder_that_cannot_be_written_is_one_clear_line(content, tmp_path):
    (tmp_path / "stage").write_text("a file in the way")
    with pytest.raises(
        InputError, match=r"last.pt: expected a writable file, got .* Free the disk or choose another --work_dir"
    ):
        save_checkpoint(content, tmp_path / "stage" / "last.pt")


@pytest.mark.parametrize("part_mib", [None, PART_MIB])
def test_a_write_that_breaks_off_leaves_the_older_checkpoint_whole(content, tmp_path, monkeypatch, part_mib):
    path = tmp_path / "last.pt"
    save_checkpoint(content, path, part_mib)
    files = {file.name for file in tmp_path.iterdir()}

    def disk_full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("trispade.durable.os.fsync", disk_full)
    newer = {"objects": {"network": {"weight": torch.zeros(40, 50), "count": torch.tensor(4)}}, "record": {}}
    with pytest.raises(InputError, match=r"last.pt: expected a writable file, got No space left on device"):
        save_checkpoint(newer, path, part_mib)
    assert_same(load_checkpoint(path), content)
    assert {file.name for file in tmp_path.iterdir()} == files


def test_a_hash_tells_values_and_names_apart_and_nothing_else():
    state = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(True)}
    same = {"b": torch.tensor(True), "a": torch.arange(6.0).view(3, 2).T.contiguous().T.reshape(2, 3)}
    assert hash_tensors(state) == hash_tensors(same)
    assert hash_tensors(state) != hash_tensors({**state, "a": torch.arange(6.0).view(2, 3) + 1e-6})
    assert hash_tensors(state) != hash_tensors({"c": state["a"], "b": state["b"]})
    half = {"a": torch.ones(4, dtype=torch.bfloat16)}
    assert hash_tensors(half) == hash_tensors({"a": torch.ones(4, dtype=torch.bfloat16)})


def test_a_hash_at_the_end_tells_of_a_single_changed_byte(content, tmp_path):
    path = tmp_path / "last.pt"
    save_checkpoint(content, path)
    data = bytearray(path.read_bytes())
    data[data.index(content["objects"]["network"]["weight"].numpy().tobytes()) + 100] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(
        InputError, match=r"last.pt: expected a checkpoint written by trispade, got .*(differs|unreadab)"
    ):
        load_checkpoint(path)


def test_a_checkpoint_with_a_hash_is_a_plain_file_of_torch(content, tmp_path):
    save_checkpoint(content, tmp_path / "last.pt")
    for mmap in (False, True):
        assert_same(torch.load(tmp_path / "last.pt", weights_only=True, mmap=mmap), content)


def test_a_checkpoint_that_lost_its_hash_or_never_had_one_is_taken_as_it_is(content, tmp_path, caplog):
    path = tmp_path / "last.pt"
    torch.save(content, path)
    assert_same(load_checkpoint(path), content)
    save_checkpoint(content, path)
    sealed = path.read_bytes()
    assert sealed[-81:].startswith(b"\ntrispade sha256 ")
    for lost in (81, 70, 1):
        path.write_bytes(sealed[:-lost])
        assert_same(load_checkpoint(path), content)
    assert caplog.text == ""


@pytest.mark.parametrize(("first", "second"), [(None, None), (PART_MIB, PART_MIB), (None, PART_MIB), (PART_MIB, None)])
def test_the_checkpoint_before_the_last_is_kept_and_takes_the_place_of_a_torn_or_missing_one(
    content, tmp_path, caplog, first, second
):
    path, previous = tmp_path / "last.pt", tmp_path / "previous.pt"
    for number, part_mib in ((0, second), (1, first), (2, second)):
        content["objects"]["network"]["weight"] += 1
        save_checkpoint({**content, "number": number}, path, part_mib, previous)
    assert load_newest_checkpoint(path, previous)[0]["number"] == 2
    assert load_checkpoint(previous)["number"] == 1
    assert caplog.text == ""
    tear(path)
    newest, source = load_newest_checkpoint(path, previous)
    assert (newest["number"], source) == (1, previous)
    assert re.search(
        r"last.pt.* expected .* Passed over: .*previous.pt, the one before it, takes its place", caplog.text
    )
    save_checkpoint({"number": 3}, path, first)  # in place of the torn one: previous.pt stays
    assert load_checkpoint(previous)["number"] == 1
    assert load_checkpoint(path)["number"] == 3


def tear(path) -> None:
    listing = path.with_name("last.pt.parts.json")
    torn = path.with_name(json.loads(listing.read_text())["parts"][0]["name"]) if listing.exists() else path
    torn.write_bytes(torn.read_bytes()[:1000])


@pytest.mark.parametrize("part_mib", [None, PART_MIB])
def test_a_checkpoint_and_the_one_before_it_that_are_both_torn_are_one_clear_line(content, tmp_path, part_mib):
    path, previous = tmp_path / "last.pt", tmp_path / "previous.pt"
    for _ in range(2):
        save_checkpoint(content, path, part_mib, previous)
    for file in tmp_path.glob("last.pt.*.000") if part_mib else (path, previous):
        file.write_bytes(b"torn")
    with pytest.raises(InputError, match=r"last.pt: expected a whole checkpoint there or in previous.pt, got two that"):
        load_newest_checkpoint(path, previous)


def test_a_run_that_is_killed_between_two_renames_has_the_checkpoint_before_the_last(content, tmp_path):
    path, previous = tmp_path / "last.pt", tmp_path / "previous.pt"
    save_checkpoint(content, path)
    path.rename(previous)
    assert_same(load_newest_checkpoint(path, previous)[0], content)


def test_parts_of_a_run_that_was_killed_are_removed_by_the_next_one(content, tmp_path):
    for name in ("last.pt.01234567.000", ".last.pt.01234567.001.part"):
        (tmp_path / name).write_bytes(b"half")
    save_checkpoint(content, tmp_path / "last.pt")
    assert [file.name for file in tmp_path.iterdir()] == ["last.pt"]


class FullDisk(io.FileIO):
    """A file on a disk that has room for 3 KB more."""

    def write(self, data) -> int:
        if self.tell() + len(data) > 3000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(data)


OPEN = Path.open


def open_on_full_disk(path, mode="r", *arguments, **options):
    return FullDisk(path, mode) if "w" in mode else OPEN(path, mode, *arguments, **options)


@pytest.mark.parametrize("part_mib", [None, PART_MIB])
def test_a_disk_that_fills_up_is_one_clear_line_and_both_older_checkpoints_stay(
    content, tmp_path, monkeypatch, part_mib
):
    path, previous = tmp_path / "last.pt", tmp_path / "previous.pt"
    for number in range(2):
        save_checkpoint({**content, "number": number}, path, part_mib, previous)
    files = {file.name for file in tmp_path.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", open_on_full_disk)
        with pytest.raises(
            InputError, match=r"last.pt: expected a writable file, got No space left on device. Free the"
        ):
            save_checkpoint(content, path, part_mib, previous)
    assert [load_checkpoint(each)["number"] for each in (path, previous)] == [1, 0]
    assert {file.name for file in tmp_path.iterdir()} == files
