from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from monai.data import load_decathlon_datalist

from trispade.errors import InputError
from trispade.labels import data_manifests_folder, load_scheme
from trispade.manifests import LIST_OF_SPLIT, SPLITS, Manifest, read_manifest

DATA = Path(os.environ.get("TRISPADE_TEST_DATA", Path(__file__).parents[1] / "../shared/data")).resolve()
PEOPLE = {"a": "gan_train", "b": "gan_train", "c": "fusion_train", "d": "val", "e": "test"}

Content = dict[str, Any]


def write_volume(path: Path, value: int = 2, shape: tuple[int, ...] = (6, 7, 5), shift_mm: float = 0.0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([1.0, 1.2, 0.9, 1.0])
    affine[0, 3] = shift_mm
    nib.save(nib.Nifti1Image(np.full(shape, value, np.int16), affine), path)


def row_of(person: str, split: str, fold: int | None = None) -> Content:
    return {
        "case_id": f"scan-{person}",
        "person_id": person,
        "image": f"{person}/t1w.nii.gz",
        "label": f"{person}/labels.nii.gz",
        "split": split,
        "fold": fold,
        "licence": "CC0",
    }


@pytest.fixture
def dataset_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    for person in PEOPLE:
        write_volume(folder / person / "t1w.nii.gz", value=100)
        write_volume(folder / person / "labels.nii.gz")
    return folder


@pytest.fixture
def content() -> Content:
    lists: Content = {"training": [], "validation": [], "test": []}
    for place, (person, split) in enumerate(PEOPLE.items()):
        lists[LIST_OF_SPLIT[split]].append(row_of(person, split, place % 2 if split.endswith("train") else None))
    return {"name": "five", "licence": "CC0", "label_scheme": "freesurfer", **lists}


@pytest.fixture
def read(tmp_path: Path, dataset_dir: Path) -> Callable[..., Manifest]:
    def write_and_read(content: Content, **options: Any) -> Manifest:
        path = tmp_path / "five.json"
        path.write_text(json.dumps(content))
        return read_manifest(path, dataset_dir, **options)

    return write_and_read


def test_a_sound_manifest_becomes_cases_with_absolute_paths(
    read: Callable[..., Manifest], content: Content, dataset_dir: Path
):
    manifest = read(content, check_labels=True)
    assert manifest.name == "five"
    assert manifest.label_scheme is load_scheme("freesurfer")
    assert [case.case_id for case in manifest.cases] == ["scan-a", "scan-b", "scan-c", "scan-d", "scan-e"]
    assert manifest.cases[1].image == dataset_dir / "b/t1w.nii.gz"
    assert manifest.cases[1].label == dataset_dir / "b/labels.nii.gz"
    assert (manifest.cases[1].fold, manifest.cases[3].fold) == (1, None)


def test_cases_are_selected_by_split_and_fold(read: Callable[..., Manifest], content: Content):
    manifest = read(content)
    assert [case.person_id for case in manifest.select(["val", "gan_train"])] == ["a", "b", "d"]
    assert [case.person_id for case in manifest.select("test")] == ["e"]
    assert [case.person_id for case in manifest.select(SPLITS, folds=[0])] == ["a", "c"]


def test_a_split_that_does_not_exist_cannot_be_selected(read: Callable[..., Manifest], content: Content):
    with pytest.raises(InputError, match="splits: expected some of gan_train, fusion_train, val, test, got train"):
        read(content).select(["train"])


@pytest.mark.parametrize("list_name", ["training", "validation", "test"])
def test_monai_reads_the_same_files(tmp_path: Path, content: Content, dataset_dir: Path, list_name: str):
    path = tmp_path / "five.json"
    path.write_text(json.dumps(content))
    rows = load_decathlon_datalist(path, True, list_name, dataset_dir)
    cases = [case for case in read_manifest(path, dataset_dir).cases if LIST_OF_SPLIT[case.split] == list_name]
    assert [(row["image"], row["label"]) for row in rows] == [(str(case.image), str(case.label)) for case in cases]


def test_a_row_may_have_no_image_and_takes_the_licence_of_the_whole(read: Callable[..., Manifest], content: Content):
    content["test"][0].update(image=None, licence=None)
    case = read(content).select(["test"])[0]
    assert case.image is None
    assert case.licence == "CC0"


def test_a_row_may_tell_age_and_sex(read: Callable[..., Manifest], content: Content):
    content["test"][0].update(age=29.5, sex="F")
    case, other = read(content).select(["test"])[0], read(content).select(["gan_train"])[0]
    assert (case.age, case.sex) == (29.5, "F")
    assert (other.age, other.sex) == (None, None)


def test_a_scheme_given_by_the_caller_goes_before_the_one_in_the_file(read: Callable[..., Manifest], content: Content):
    scheme = load_scheme("neuromorphometrics")
    assert read(content, scheme=scheme).label_scheme is scheme


def test_a_scheme_may_stand_beside_the_manifest(read: Callable[..., Manifest], content: Content, tmp_path: Path):
    (tmp_path / "mine.tsv").write_text("id\tname\tclass\n2\twhite\tcerebral_white_matter\n")
    (tmp_path / "mine.json").write_text('{"vocabulary": "structures"}')
    assert read({**content, "label_scheme": "mine.tsv"}).label_scheme.name == "mine"


def test_without_file_checks_the_data_need_not_be_there(
    read: Callable[..., Manifest], content: Content, dataset_dir: Path
):
    (dataset_dir / "a/t1w.nii.gz").unlink()
    assert len(read(content, check_files=False).cases) == 5


def set_row(list_name: str, **changes: Any) -> Callable[[Content], None]:
    return lambda content: content[list_name][0].update(changes)


def drop_key(list_name: str, key: str) -> Callable[[Content], None]:
    return lambda content: content[list_name][0].pop(key)


FAULTS = [
    (
        drop_key("training", "person_id"),
        r"training\[0\] \(scan-a\): expected text under 'person_id', got 'no such key'",
    ),
    (set_row("test", label=7), r"test\[0\] \(scan-e\): expected a path under 'label', got 7"),
    (set_row("test", image=3), r"expected a path or null under 'image', got 3"),
    (set_row("training", split="train"), r"expected a split of gan_train, fusion_train, val, test, got 'train'"),
    (set_row("test", split="val"), r"expected split 'val' under 'validation', got it under 'test'. Move the row"),
    (set_row("training", fold="one"), r"expected a whole number from 0 to 9999 or null under 'fold', got 'one'"),
    (set_row("training", fold=-1), r"under 'fold', got -1"),
    (set_row("test", age="29"), r"expected years from 0 to 130 or null under 'age', got '29'"),
    (set_row("test", age=290), r"expected years from 0 to 130 or null under 'age', got 290"),
    (set_row("training", case_id="../a"), r"expected a case_id of letters.*got '../a'"),
    (set_row("test", case_id="scan-a"), r"case_id 'scan-a': expected once, got it in training\[0\].*test\[0\]"),
    (set_row("test", person_id="a"), r"person 'a': expected one split, got gan_train, test. Keep all scans"),
    (set_row("training", person_id="b"), r"person 'b': expected one fold, got 0, 1. Keep all scans"),
    (set_row("test", label="a/../a/labels.nii.gz"), r"a/labels.nii.gz: expected in one place, got it as"),
    (set_row("test", image="e/labels.nii.gz"), r"test\[0\] \(scan-e\) label, test\[0\] \(scan-e\) image"),
    (
        set_row("test", label="e/none.nii.gz"),
        r"test\[0\] \(scan-e\): .*none.nii.gz: expected a NIfTI file, got no file",
    ),
    (lambda content: content["test"].append("a.nii.gz"), r"test\[1\]: expected an object with case_id.*got str"),
    (lambda content: content.update(validation={}), r"validation: expected a list of rows, got dict"),
    (lambda content: content.pop("label_scheme"), r'expected the key "label_scheme", got none'),
    (lambda content: content.update(label_scheme="fs"), r"label scheme 'fs': expected one of freesurfer"),
]


@pytest.mark.parametrize(("spoil", "message"), FAULTS, ids=[message[:50] for _, message in FAULTS])
def test_each_fault_is_named_with_its_row(
    read: Callable[..., Manifest], content: Content, spoil: Callable[[Content], None], message: str
):
    spoil(content)
    with pytest.raises(InputError, match=message):
        read(content)


def test_all_faults_of_all_rows_come_in_one_error(read: Callable[..., Manifest], content: Content, dataset_dir: Path):
    content["training"][0]["split"] = "train"
    content["validation"][0]["case_id"] = "scan-e"
    (dataset_dir / "b/t1w.nii.gz").unlink()
    write_volume(dataset_dir / "c/t1w.nii.gz", shape=(6, 7, 6))
    with pytest.raises(InputError, match=r"five\.json: 4 problems in the manifest") as caught:
        read(content)
    assert str(caught.value).count("\n  - ") == 4


def test_image_and_label_map_of_other_shapes_are_reported(
    read: Callable[..., Manifest], content: Content, dataset_dir: Path
):
    write_volume(dataset_dir / "d/t1w.nii.gz", shape=(6, 7, 6))
    with pytest.raises(
        InputError, match=r"validation\[0\] \(scan-d\): .*expected the shape of .*, 6 x 7 x 5, got 6 x 7 x 6"
    ):
        read(content)


def test_image_and_label_map_of_other_affines_are_reported(
    read: Callable[..., Manifest], content: Content, dataset_dir: Path
):
    write_volume(dataset_dir / "d/t1w.nii.gz", shift_mm=0.5)
    with pytest.raises(InputError, match=r"scan-d.*expected the affine of .*differs from it by up to 0.5 mm"):
        read(content)
    write_volume(dataset_dir / "d/t1w.nii.gz", shift_mm=0.0005)
    assert len(read(content).cases) == 5


def test_a_file_that_is_no_nifti_is_reported(read: Callable[..., Manifest], content: Content, dataset_dir: Path):
    (dataset_dir / "a/labels.nii.gz").write_bytes(b"this is no scan")
    with pytest.raises(
        InputError, match=r"training\[0\] \(scan-a\): .*labels.nii.gz: expected a whole, readable NIfTI"
    ):
        read(content)


def test_unknown_label_ids_are_reported_when_asked_for(
    read: Callable[..., Manifest], content: Content, dataset_dir: Path
):
    write_volume(dataset_dir / "b/labels.nii.gz", value=871)
    write_volume(dataset_dir / "e/labels.nii.gz", value=872)
    assert len(read(content).cases) == 5
    with pytest.raises(InputError, match="2 problems") as caught:
        read(content, check_labels=True)
    assert "training[1] (scan-b)" in str(caught.value)
    assert "label id 872 is not in scheme 'freesurfer'" in str(caught.value)


def test_a_dataset_dir_that_is_not_there_is_one_problem_and_not_ten(tmp_path: Path, content: Content):
    path = tmp_path / "five.json"
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"1 problem .*\n.*nowhere: expected a folder") as caught:
        read_manifest(path, tmp_path / "nowhere")
    assert str(caught.value).count("\n") == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "expected a JSON manifest, got text that is not JSON"),
        ("[]", "expected a JSON object with the lists training, validation, test, got list"),
        ('{"cases": []}', "training, validation, test, got none of them"),
    ],
)
def test_text_that_is_no_manifest_is_refused(tmp_path: Path, text: str, message: str):
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_manifest(path, tmp_path)


def test_a_manifest_that_is_not_there_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="expected a JSON manifest, got No such file"):
        read_manifest(tmp_path / "none.json", tmp_path)


def test_reading_does_not_depend_on_the_working_directory(
    read: Callable[..., Manifest], content: Content, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    absolute = read(copy.deepcopy(content))
    monkeypatch.chdir(tmp_path)
    relative = read_manifest("five.json", "data")
    assert relative.cases == absolute.cases


def test_the_committed_malc_manifest_keeps_the_designed_split():
    manifest = read_manifest(data_manifests_folder() / "malc2012.json", ".", check_files=False)
    people = {split: {case.person_id for case in manifest.select([split])} for split in SPLITS}
    assert people["test"] == {"0101", "0111", "0117", "0282", "0331", "0113"}
    assert [len(people[split]) for split in SPLITS] == [12, 5, 2, 6]
    assert {"0091", "0220"} <= people["gan_train"]
    assert len(manifest.cases) == 28
    assert len(manifest.select(["test"])) == 9


def test_the_folds_of_the_committed_malc_manifest_are_even_and_only_of_training_people():
    manifest = read_manifest(data_manifests_folder() / "malc2012.json", ".", check_files=False)
    folds = [case.fold for case in manifest.select(["gan_train", "fusion_train"])]
    assert sorted(folds.count(fold) for fold in {0, 1, 2}) == [5, 6, 6]
    assert {case.fold for case in manifest.select(["val", "test"])} == {None}


@pytest.mark.real_data
@pytest.mark.skipif(not (DATA / "malc2012").is_dir(), reason=f"no scans under {DATA}")
def test_the_committed_malc_manifest_fits_the_real_scans():
    manifest = read_manifest(data_manifests_folder() / "malc2012.json", DATA / "malc2012", check_labels=True)
    assert len(manifest.cases) == 28
