"""A disk that fills up and one that is read-only, both real: a small tmpfs, which root may mount."""

from __future__ import annotations

import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from trispade.data.entries import entries_of, store_entry
from trispade.engines import load_checkpoint, save_checkpoint
from trispade.errors import InputError
from trispade.nifti import write_nifti

ROOM_KIB = 512
KEY = "0123456789ab"


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", f"size={ROOM_KIB}k", "tmpfs", str(folder)]
    try:
        refused = subprocess.run(mounting, capture_output=True, check=False).returncode != 0
    except FileNotFoundError:
        refused = True
    if refused:
        pytest.skip("mounting a tmpfs needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def names(folder: Path) -> set[str]:
    return {str(file.relative_to(folder)) for file in folder.rglob("*")}


def checkpoint(kib: int) -> dict[str, torch.Tensor]:
    return {"weight": torch.full((kib, 256), float(kib))}


@pytest.mark.parametrize("part_mib", [None, 0.1])
def test_a_full_disk_leaves_both_older_checkpoints_and_no_half_of_a_new_one(small_disk, part_mib):
    path, previous = small_disk / "stage" / "last.pt", small_disk / "stage" / "previous.pt"
    for kib in (100, 120):
        save_checkpoint(checkpoint(kib), path, part_mib, previous)
    before = names(small_disk)
    with pytest.raises(
        InputError, match=r"last.pt: expected a writable file, got No space left on device. Free the disk"
    ):
        save_checkpoint(checkpoint(400), path, part_mib, previous)
    assert names(small_disk) == before
    assert [len(load_checkpoint(each)["weight"]) for each in (path, previous)] == [120, 100]


def test_a_full_disk_leaves_finished_volumes_and_no_half_of_a_new_one(small_disk):
    chance = np.random.default_rng(0)
    small, large = (chance.integers(0, 1 << 15, (size,) * 3).astype(np.int16) for size in (40, 70))
    write_nifti(small_disk / "a.nii.gz", small, np.eye(4), dtype=np.int16, sidecar={"synthetic": True})
    before = names(small_disk)
    with pytest.raises(
        InputError, match=r"b.nii.gz: expected a folder that can be written to, got No space left on dev"
    ):
        write_nifti(small_disk / "b.nii.gz", large, np.eye(4), dtype=np.int16, sidecar={"synthetic": True})
    assert names(small_disk) == before
    np.testing.assert_array_equal(np.asarray(nib.load(small_disk / "a.nii.gz").dataobj), small)


def test_a_full_disk_leaves_prepared_cases_and_no_half_of_a_new_one(small_disk):
    folder = small_disk / "cache" / f"a-{KEY}"
    store_entry(folder, {"t1w": np.zeros((40, 40, 40), np.int16)}, {"key": KEY})
    before = names(small_disk)
    with pytest.raises(InputError, match=r"cache: expected a writable folder with room in it, got .* Make room"):
        store_entry(folder.with_name(f"a-{KEY[::-1]}"), {"t1w": np.zeros((70, 70, 70), np.int16)}, {})
    assert names(small_disk) == before
    assert entries_of(folder.parent, "a") == [folder]


def test_a_read_only_disk_is_one_clear_line_for_each_kind_of_output(small_disk):
    path, folder = small_disk / "last.pt", small_disk / "cache" / f"a-{KEY}"
    save_checkpoint(checkpoint(1), path)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(
        InputError, match=r"last.pt: expected a writable file, got Read-only file system. Free the disk or"
    ):
        save_checkpoint(checkpoint(2), path)
    with pytest.raises(
        InputError, match=r"a.nii.gz: expected a folder that can be written to, got Read-only file system"
    ):
        write_nifti(small_disk / "a.nii.gz", np.zeros((2, 2, 2)), np.eye(4))
    with pytest.raises(
        InputError, match=r"expected a writable folder with room in it, got Read-only file system. Make"
    ):
        store_entry(folder, {}, {})
    assert len(load_checkpoint(path)["weight"]) == 1
