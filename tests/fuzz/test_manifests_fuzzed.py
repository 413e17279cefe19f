"""Manifests with anything in them: a checked data list or one clear line a fault, and no name that leaves a folder."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from examples import HOSTILE, assert_clear_lines, bounded, few_or_many, for_each, spoilt_json, spoilt_texts
from hypothesis import strategies as st

from trispade.errors import InputError
from trispade.manifest_builders import build_bids
from trispade.manifests import LIST_OF_SPLIT, LISTS, read_manifest
from trispade.nifti import header_of
from trispade.transforms.output_format import FORMATS, output_files
from trispade.untrusted import BYTES_A_CHARACTER, LARGEST_TEXT, MOST_ROWS, MOST_VALUES

MIB = 1 << 20
PEOPLE = {"a": "gan_train", "b": "fusion_train", "c": "val", "d": "test"}


@pytest.fixture
def dataset_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    for person in PEOPLE:
        nib.save(nib.Nifti1Image(np.full((6, 7, 5), 2, np.int16), np.eye(4)), folder / f"{person}_dseg.nii")
        nib.save(nib.Nifti1Image(np.full((6, 7, 5), 9, np.int16), np.eye(4)), folder / f"{person}_T1w.nii")
    (folder / "torn.nii.gz").write_bytes(b"\x1f\x8b torn")
    with pytest.raises(InputError):
        header_of(folder)  # loads parts of itk, whose warnings must not become errors
    return folder


def sound_content() -> dict[str, Any]:
    content: dict[str, Any] = {"name": "four", "licence": "CC0", "reference": "none", "label_scheme": "freesurfer"}
    content |= {each: [] for each in LISTS}
    for person, split in PEOPLE.items():
        row = {"case_id": f"scan-{person}", "person_id": person, "split": split, "fold": None, "age": 30, "sex": "F"}
        row |= {"image": f"{person}_T1w.nii", "label": f"{person}_dseg.nii", "licence": "CC0"}
        content[LIST_OF_SPLIT[split]].append(row)
    return content


def allowed_mib(size: int) -> float:
    """What reading a text may take, the errors about it and what Python keeps of code it runs for the first time."""
    return 4 + BYTES_A_CHARACTER * size / MIB


@few_or_many(150, 8000)
@pytest.mark.parametrize("check", [True, False], ids=["with_files", "rows_alone"])
def test_whatever_a_manifest_holds_it_is_read_or_each_fault_is_one_clear_line(
    tmp_path: Path, dataset_dir: Path, check: bool, num_examples: int
) -> None:
    path = tmp_path / "four.json"
    outputs = tmp_path / "out"

    def hold(content: bytes) -> None:
        path.write_bytes(content)
        try:
            with bounded(allowed_mib(len(content))):
                manifest = read_manifest(path, dataset_dir, check_files=check, check_labels=check)
        except InputError as error:
            assert_clear_lines(error, path)
            return
        ids = [case.case_id for case in manifest.cases]
        assert len(set(ids)) == len(ids)
        for case_id in ids:
            for kind in FORMATS:
                assert all(file.resolve().is_relative_to(outputs) for file in output_files(outputs, case_id, kind))

    for_each(num_examples, hold, spoilt_json(sound_content()))


@few_or_many(100, 8000)
def test_whatever_a_case_is_called_its_files_lie_in_the_output_folder_or_it_is_one_clear_line(
    tmp_path: Path, num_examples: int
) -> None:
    outputs = tmp_path / "out"

    def hold(case_id: Any, kind: str) -> None:
        try:
            with bounded():
                files = output_files(outputs, str(case_id), kind)
        except InputError as error:
            text = str(error)
            assert ": expected a case whose name " in text
            assert text.isprintable()
            assert len(text) < 1500
        else:
            for file in files:
                assert Path(os.path.normpath(file)) == file
                assert file.is_relative_to(outputs)
                assert len(file.name.encode()) <= 255
                assert file.name.isprintable()

    for_each(num_examples, hold, st.one_of(HOSTILE, st.text(), st.text("./\\:~ ab")), st.sampled_from(FORMATS))


@few_or_many(40, 2000)
def test_whatever_stands_beside_the_scans_of_a_bids_tree_a_manifest_is_built_and_read_or_it_is_one_clear_line(
    tmp_path: Path, num_examples: int
) -> None:
    root = tmp_path / "bids"
    for person in PEOPLE:
        folder = root / f"sub-{person}" / "anat"
        folder.mkdir(parents=True)
        for kind in ("T1w", "dseg"):
            nib.save(
                nib.Nifti1Image(np.full((6, 7, 5), 2, np.int16), np.eye(4)), folder / f"sub-{person}_{kind}.nii.gz"
            )
    table = "participant_id\tage\tsex\n" + "".join(f"sub-{person}\t3\tF\n" for person in PEOPLE)
    described = {"Name": "four", "License": "CC0", "ReferencesAndLinks": ["none"], "Authors": ["nobody"]}

    def hold(people: bytes, description: bytes) -> None:
        (root / "participants.tsv").write_bytes(people)
        (root / "dataset_description.json").write_bytes(description)
        try:
            with bounded(allowed_mib(len(people) + len(description))):
                manifest = build_bids(root)
        except InputError as error:
            assert_clear_lines(error, root)
            return
        (tmp_path / "built.json").write_text(json.dumps(manifest))
        assert len(read_manifest(tmp_path / "built.json", root).cases) == len(PEOPLE)

    ages = st.sampled_from(["29", "-1", "n/a", "1e999", "9" * 5000, "\u0663", "131", "\t", "\n", '"'])
    tables = st.builds(lambda age: table.replace("\t3\t", f"\t{age}\t", 2), ages)
    for_each(num_examples, hold, spoilt_texts(tables), spoilt_json(described))


@pytest.mark.parametrize("unit", ["[],", "{},", '"\u00e9\U0001f9e0",', "1.5,", '{"a":0},', "\U0001f9e0"])
def test_a_manifest_of_the_largest_size_is_read_in_bounded_time_and_memory_and_a_larger_one_not_at_all(
    tmp_path: Path, unit: str
) -> None:
    path = tmp_path / "large.json"
    most = min(LARGEST_TEXT // len(unit.encode()) - 100, (MOST_VALUES - 100) // max(1, sum(map(unit.count, ",[{"))))
    path.write_text('{"training": [' + unit * most, encoding="utf-8")
    with pytest.raises(InputError, match=r"large.json: expected a JSON manifest, got text that is not JSON"), bounded():
        read_manifest(path, tmp_path)
    with path.open("a") as file:
        file.write("[" * MOST_VALUES)
    with pytest.raises(InputError, match=r"a JSON manifest of at most \d+ (bytes|values), got more"), bounded():
        read_manifest(path, tmp_path)


def test_a_manifest_of_too_many_rows_or_faults_is_bounded_in_what_it_says(tmp_path: Path) -> None:
    path = tmp_path / "many.json"
    path.write_text(json.dumps({"label_scheme": "freesurfer", "training": [0] * MOST_ROWS}))
    with pytest.raises(InputError, match=r"many.json: 100000 problems in the manifest") as caught, bounded():
        read_manifest(path, tmp_path)
    assert_clear_lines(caught.value, path)
    assert str(caught.value).endswith("\n... and 99001 lines more")
    path.write_text(json.dumps({"label_scheme": "freesurfer", "training": [0] * (MOST_ROWS + 1)}))
    with pytest.raises(InputError, match="expected a manifest of at most 100000 rows, got more"), bounded():
        read_manifest(path, tmp_path)


@pytest.mark.parametrize("name", ["pipe", "folder", "loop", "zero", "a" * 300, "a\0b"])
def test_what_is_no_file_is_one_clear_line_and_not_waited_for(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "loop.json").symlink_to("loop.json")
    (tmp_path / "zero.json").symlink_to("/dev/zero")
    with pytest.raises(InputError, match="expected a JSON manifest, got") as caught, bounded(1):
        read_manifest(f"{tmp_path / name}.json", tmp_path)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1500
