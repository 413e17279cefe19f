from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.transforms import Compose, MapTransform

from trispade.data import open_cases, plain_settings, prepare_cases
from trispade.errors import InputError
from trispade.geometry import Grid, WorkingGrid
from trispade.labels import LabelClass, LabelScheme, Vocabulary
from trispade.manifests import Case, Manifest

VOCABULARY = Vocabulary("two", (LabelClass("background", None, "background", ""), LabelClass("white", None, "wm", "")))
SETTINGS = {"spacing_mm": 2.0, "box": [8, 8, 8], "vocabulary": VOCABULARY}


class ReadNumbers(MapTransform):
    """Stand-in for the real chain: a file holds one digit, which becomes the case's only labelled voxel."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__(["label_map", "t1w"])
        self.scale = scale

    def __call__(self, data):
        label_map = np.zeros((1, 8, 8, 8), np.uint8)
        text = Path(data["label_map"]).read_text()
        if text == "bad":
            raise InputError.of(data["label_map"], "a digit", text, "Correct it.")
        label_map[0, 1, 2, 3] = int(text)
        t1w = torch.full((1, 8, 8, 8), self.scale * int(Path(data["t1w"]).read_text()) / 10)
        grid = WorkingGrid.around(Grid((8, 8, 8), np.diag([2.0, 2, 2, 1])), label_map[0] > 0, 2.0, multiple=8)
        return {
            **data,
            "label_map": label_map,
            "t1w": t1w,
            "working_grid": grid.to_dict(),
            "intensity_scaling": {"gain": 1.0, "offset": 0.0},
        }


@pytest.fixture
def manifest(tmp_path) -> Manifest:
    cases = []
    for number, (name, split) in enumerate([("a", "gan_train"), ("b", "gan_train"), ("c", "val")], start=1):
        image, label = tmp_path / f"{name}_T1w", tmp_path / f"{name}_dseg"
        image.write_text(str(number))
        label.write_text("1")
        fold = None if split == "val" else number % 2
        cases.append(Case(name, f"p{name}", image, label, split, fold, "CC0"))
    scheme = LabelScheme("digits", tmp_path / "digits.tsv", VOCABULARY, {0: 0, 1: 1})
    return Manifest("digits", tmp_path / "digits.json", scheme, tuple(cases))


@pytest.fixture
def cache_dir(tmp_path) -> Path:
    return tmp_path / "cache"


def prepare(manifest, cache_dir, scale=1.0, **settings) -> str:
    return prepare_cases(manifest, Compose([ReadNumbers(scale)]), cache_dir, {**SETTINGS, **settings})


def folders(cache_dir) -> set[str]:
    return {folder.name for folder in cache_dir.iterdir() if folder.is_dir()}


def test_a_prepared_case_comes_back_with_its_arrays_and_record(manifest, cache_dir):
    prepare(manifest, cache_dir)
    case, other = open_cases(manifest, cache_dir, ["gan_train"], SETTINGS)
    assert (case.case_id, case.person_id, case.split, case.fold) == ("a", "pa", "gan_train", 1)
    assert other.case_id == "b"
    assert case.label_map().dtype == np.uint8
    assert np.argwhere(case.label_map()).tolist() == [[1, 2, 3]]
    torch.testing.assert_close(case.t1w(), torch.full((8, 8, 8), 0.1), rtol=0, atol=1 / 65534)
    assert [case.labelled_slices(plane) for plane in ("sagittal", "coronal", "axial")] == [[1], [2], [3]]
    assert case.record["classes"] == [0, 1]


def test_what_is_prepared_is_not_prepared_again(manifest, cache_dir):
    assert "3 of them prepared now" in prepare(manifest, cache_dir)
    before = {path: path.stat().st_mtime_ns for path in cache_dir.rglob("*.npy")}
    assert "0 of them prepared now" in prepare(manifest, cache_dir)
    assert {path: path.stat().st_mtime_ns for path in cache_dir.rglob("*.npy")} == before


def test_a_changed_file_is_prepared_again_and_its_old_arrays_go(manifest, cache_dir):
    prepare(manifest, cache_dir)
    before = folders(cache_dir)
    manifest.cases[0].image.write_text("7")
    with pytest.raises(InputError, match=r"1 cases are missing or out of date:\n  - a: .*settings have changed since"):
        open_cases(manifest, cache_dir, ["gan_train"], SETTINGS)
    assert "1 of them prepared now" in prepare(manifest, cache_dir)
    assert len(folders(cache_dir) - before) == len(before - folders(cache_dir)) == 1
    assert open_cases(manifest, cache_dir, ["gan_train"], SETTINGS)[0].t1w()[0, 0, 0] == pytest.approx(0.7, abs=1e-4)


def test_a_file_that_was_only_touched_or_taken_away_does_not_make_the_cache_stale(manifest, cache_dir):
    prepare(manifest, cache_dir)
    os.utime(manifest.cases[0].image, ns=(1, 1))
    manifest.cases[1].image.unlink()
    assert len(open_cases(manifest, cache_dir, ["gan_train"], SETTINGS)) == 2


def test_a_changed_transform_setting_prepares_everything_again(manifest, cache_dir):
    prepare(manifest, cache_dir)
    assert "3 of them prepared now" in prepare(manifest, cache_dir, scale=0.5)
    assert open_cases(manifest, cache_dir, ["val"], SETTINGS)[0].t1w()[0, 0, 0] == pytest.approx(0.15, abs=1e-4)
    assert len(folders(cache_dir)) == 3


def test_cases_that_the_changed_setting_has_not_reached_are_refused(manifest, cache_dir):
    prepare(manifest, cache_dir)
    prepare(replace(manifest, cases=manifest.cases[:1]), cache_dir, scale=0.5)
    with pytest.raises(InputError, match=r"b: expected a prepared case in .*, got none that is up to date"):
        open_cases(manifest, cache_dir, ["gan_train"], SETTINGS)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [("spacing_mm", 1.0, "spacing_mm 2.0, not 1.0"), ("box", [8, 8, 16], r"box \[8, 8, 8\], not \[8, 8, 16\]")],
)
def test_a_stage_of_another_preset_is_refused(manifest, cache_dir, name, value, message):
    prepare(manifest, cache_dir)
    with pytest.raises(InputError, match=f"was prepared with {message}. Run the prepare stage with this preset."):
        open_cases(manifest, cache_dir, ["gan_train"], {**SETTINGS, name: value})


def test_an_edited_vocabulary_of_the_same_name_and_size_is_refused(manifest, cache_dir):
    prepare(manifest, cache_dir)
    edited = Vocabulary("two", (VOCABULARY.classes[0], LabelClass("grey", None, "gm", "")))
    with pytest.raises(InputError, match=r"vocabulary 'two \(2 classes, \w+\)', not 'two \(2 classes, \w+\)'"):
        open_cases(manifest, cache_dir, ["gan_train"], {**SETTINGS, "vocabulary": edited})


def test_settings_are_compared_as_json_keeps_them(manifest, cache_dir):
    prepare(manifest, cache_dir, box=(8, 8, 8))
    assert len(open_cases(manifest, cache_dir, ["val"], SETTINGS)) == 1
    assert plain_settings({"box": (1, 2)}) == {"box": [1, 2]}


def test_folds_can_be_chosen_and_left_out(manifest, cache_dir):
    prepare(manifest, cache_dir)

    def chosen(**folds):
        return [case.case_id for case in open_cases(manifest, cache_dir, ["gan_train"], SETTINGS, **folds)]

    assert chosen(folds=[1]) == ["a"]
    assert chosen(without_fold=1) == ["b"]


def test_the_manifest_decides_on_splits_even_after_preparation(manifest, cache_dir):
    prepare(manifest, cache_dir)
    moved = replace(manifest, cases=(replace(manifest.cases[0], split="test"), *manifest.cases[1:]))
    assert [case.case_id for case in open_cases(moved, cache_dir, ["gan_train"], SETTINGS)] == ["b"]


def test_failed_cases_do_not_stop_the_others_and_are_listed_at_the_end(manifest, cache_dir):
    manifest.cases[0].label.write_text("bad")
    manifest.cases[1].image.unlink()
    cases = (replace(manifest.cases[2], case_id="d", image=None), *manifest.cases)
    with pytest.raises(InputError) as caught:
        prepare(replace(manifest, cases=cases), cache_dir)
    headline, *problems = str(caught.value).splitlines()
    assert "3 of 4 cases could not be prepared" in headline
    assert [problem.strip(" -")[:2] for problem in problems] == ["d:", "a:", "b:"]
    assert "a row without image" in problems[0]
    assert "expected a digit, got bad" in problems[1]
    assert "expected a file, got nothing there" in problems[2]
    assert len(open_cases(manifest, cache_dir, ["val"], SETTINGS)) == 1


def test_a_fault_of_the_program_is_not_taken_for_bad_input(manifest, cache_dir):
    manifest.cases[0].label.write_text("not a digit")
    with pytest.raises(RuntimeError, match="applying transform"):
        prepare(manifest, cache_dir)


def test_a_preparation_that_broke_off_is_done_again(manifest, cache_dir):
    prepare(manifest, cache_dir)
    (name,) = [name for name in folders(cache_dir) if name.startswith("a-")]
    (cache_dir / name).rename(cache_dir / f".{name}.part")
    (cache_dir / f".{name}.part" / "case.json").unlink()
    with pytest.raises(InputError, match="a: expected a prepared case"):
        open_cases(manifest, cache_dir, ["gan_train"], SETTINGS)
    assert "1 of them prepared now" in prepare(manifest, cache_dir)
    assert not list(cache_dir.glob(".*.part"))


def test_a_missing_cache_names_the_stage_that_makes_it(manifest, cache_dir):
    with pytest.raises(InputError, match=r"cache: expected a prepared cache, got none. Run the prepare stage first."):
        open_cases(manifest, cache_dir, ["val"], SETTINGS)


def test_an_empty_choice_of_cases_is_refused(manifest, cache_dir):
    prepare(manifest, cache_dir)
    with pytest.raises(InputError, match=r"expected cases in splits test, got none. Choose other splits or folds."):
        open_cases(manifest, cache_dir, ["test"], SETTINGS)


def test_a_cache_that_cannot_be_written_is_one_clear_line(manifest, cache_dir):
    cache_dir.write_text("a file in the way")
    with pytest.raises(InputError, match=r"cache: expected a writable folder, got .* Set --work_dir."):
        prepare(manifest, cache_dir)


def test_arrays_that_are_removed_or_torn_while_a_stage_runs_are_one_clear_line(manifest, cache_dir):
    prepare(manifest, cache_dir)
    (case, *_) = open_cases(manifest, cache_dir, ["gan_train"], SETTINGS)
    (case.folder / "t1w.npy").write_bytes(b"torn")
    with pytest.raises(InputError, match=r"t1w.npy: expected an array that an earlier stage has stored, got .*Remove"):
        case.t1w()
    shutil.rmtree(case.folder)
    with pytest.raises(InputError, match=r"label_map.npy: expected an array .*, got nothing there. Remove .* run that"):
        case.label_map()


@pytest.mark.parametrize("moment", ["mkdir", "rename", "rmtree"])
def test_a_preparation_killed_at_any_moment_never_leaves_two_entries_of_a_case(
    manifest, cache_dir, monkeypatch, moment
):
    """The old entry may be gone before the new one is there, but a later stage never has to choose."""
    prepare(manifest, cache_dir)
    manifest.cases[0].image.write_text("7")
    owner = shutil if moment == "rmtree" else Path
    original, calls = getattr(owner, moment), []

    def die(path, *arguments, **options):
        if Path(path).name.lstrip(".").startswith("a-") and not options.get("ignore_errors"):
            calls.append(path)
            raise Killed
        return original(path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(owner, moment, die)
        with pytest.raises(Killed):
            prepare(manifest, cache_dir)
    assert len(calls) == 1
    assert len([folder for folder in cache_dir.glob("a-*") if (folder / "case.json").exists()]) <= 1
    prepare(manifest, cache_dir)
    assert [case.case_id for case in open_cases(manifest, cache_dir, ["gan_train"], SETTINGS)] == ["a", "b"]
    assert [file for file in cache_dir.iterdir() if file.name.startswith(".")] == []


def test_an_interrupt_while_a_case_is_written_leaves_no_half_of_it(manifest, cache_dir, monkeypatch):
    def interrupt(path, array):
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("trispade.data.entries.np.save", interrupt)
    with pytest.raises(KeyboardInterrupt):
        prepare(manifest, cache_dir)
    assert [file.name for file in cache_dir.iterdir()] == ["settings.json"]


class Killed(BaseException):
    """Stands in for a kill: nothing catches it, though clean-up blocks run."""
