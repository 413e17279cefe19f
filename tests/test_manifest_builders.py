from __future__ import annotations

import csv
import json
import logging
import os
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from monai.data import load_decathlon_datalist

from trispade.errors import InputError
from trispade.labels import data_manifests_folder
from trispade.manifest_builders import build_bids, build_hcp, build_malc2012, split_by_person, write_manifest
from trispade.manifests import SPLITS, read_manifest

DATA = Path(os.environ.get("TRISPADE_TEST_DATA", Path(__file__).parents[1] / "../shared/data")).resolve()
EVEN = dict.fromkeys(SPLITS, 0.25)


def write_pair(image: Path, label: Path) -> None:
    for path, value in ((image, 100), (label, 2)):
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(np.full((4, 5, 3), value, np.int16), np.eye(4)), path)


def write_bids_scan(
    folder: Path, name: str, image_suffix: str = "_T1w", label_suffix: str = "_dseg", derivatives: str = ""
) -> None:
    anat = Path(*[part for part in name.split("_") if part.startswith(("sub-", "ses-"))], "anat")
    write_pair(
        folder / anat / f"{name}{image_suffix}.nii.gz", folder / derivatives / anat / f"{name}{label_suffix}.nii.gz"
    )


def rows_of(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    return [*manifest["training"], *manifest["validation"], *manifest["test"]]


def malc_people() -> list[dict[str, str]]:
    with (data_manifests_folder() / "malc2012_participants.tsv").open() as stream:
        return list(csv.DictReader(stream, delimiter="\t"))


@pytest.mark.parametrize("r_folder", ["", "extdata", "inst/extdata"])
def test_malc_is_found_under_the_names_of_the_r_package(tmp_path: Path, r_folder: str):
    for person in malc_people():
        for suffix in ("SS", "glm"):
            path = tmp_path / r_folder / f"{person['malc_id']}_{suffix}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    manifest = build_malc2012(tmp_path)
    first = manifest["training"][0]
    start = f"{r_folder}/" if r_folder else ""
    assert (first["image"], first["label"]) == (f"{start}1000_SS.nii.gz", f"{start}1000_glm.nii.gz")
    assert (first["case_id"], first["person_id"], first["age"], first["sex"]) == ("sub-0061_ses-1", "0061", 20, "F")
    assert len(rows_of(manifest)) == 28


def test_the_committed_malc_manifest_is_what_the_builder_makes_of_bids_names(tmp_path: Path):
    for person in malc_people():
        stem = f"{person['participant_id']}_{person['session_id']}"
        anat = tmp_path / person["participant_id"] / person["session_id"] / "anat"
        anat.mkdir(parents=True)
        (anat / f"{stem}_desc-brain_T1w.nii.gz").touch()
        (anat / f"{stem}_dseg.nii.gz").touch()
    assert build_malc2012(tmp_path) == json.loads((data_manifests_folder() / "malc2012.json").read_text())


def test_both_namings_of_malc_give_the_same_split(tmp_path: Path):
    for person in malc_people():
        (tmp_path / f"{person['malc_id']}_SS.nii.gz").touch()
        (tmp_path / f"{person['malc_id']}_glm.nii.gz").touch()
    committed = json.loads((data_manifests_folder() / "malc2012.json").read_text())
    keys = ("case_id", "person_id", "split", "fold")
    built = build_malc2012(tmp_path)
    assert [[row[key] for key in keys] for row in rows_of(built)] == [
        [row[key] for key in keys] for row in rows_of(committed)
    ]


def test_all_malc_scans_that_are_missing_are_listed(tmp_path: Path):
    for person in malc_people()[2:]:
        (tmp_path / f"{person['malc_id']}_SS.nii.gz").touch()
        (tmp_path / f"{person['malc_id']}_glm.nii.gz").touch()
    with pytest.raises(InputError, match="expected the 28 scans of MALC 2012, got 26") as caught:
        build_malc2012(tmp_path)
    assert "sub-0061 ses-1 (challenge id 1000)" in str(caught.value)
    assert str(caught.value).count("\n  - ") == 2


def write_hcp_person(folder: Path, person: str, image: str = "T1w_acpc_dc_restore_brain.nii.gz") -> None:
    write_pair(folder / person / "T1w" / image, folder / person / "T1w" / "aparc+aseg.nii.gz")


def test_an_hcp_tree_becomes_a_manifest_that_the_reader_accepts(tmp_path: Path):
    for person in ("100307", "100408", "101107", "101309", "101915"):
        write_hcp_person(tmp_path / "hcp", person)
    write_manifest(build_hcp(tmp_path / "hcp"), tmp_path / "hcp.json")
    manifest = read_manifest(tmp_path / "hcp.json", tmp_path / "hcp", check_labels=True)
    assert {case.split for case in manifest.cases} == set(SPLITS)
    assert manifest.cases[0].image is not None
    assert manifest.cases[0].image.name == "T1w_acpc_dc_restore_brain.nii.gz"
    assert {case.case_id for case in manifest.cases} >= {"hcp-100307", "hcp-101915"}
    row = load_decathlon_datalist(tmp_path / "hcp.json", True, "test", tmp_path / "hcp")[0]
    assert row["person_id"].startswith("hcp-")


def test_whole_heads_of_hcp_are_the_other_file(tmp_path: Path):
    for person in ("1", "2", "3", "4"):
        write_hcp_person(tmp_path, person, "T1w_acpc_dc_restore.nii.gz")
    assert rows_of(build_hcp(tmp_path, whole_head=True))[0]["image"].endswith("/T1w/T1w_acpc_dc_restore.nii.gz")
    with pytest.raises(InputError, match=r"folders <id>/T1w with T1w_acpc_dc_restore_brain.nii.gz and aparc"):
        build_hcp(tmp_path)


def test_an_hcp_person_without_label_map_is_left_out_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    for person in ("1", "2", "3", "4", "5"):
        write_hcp_person(tmp_path, person)
    (tmp_path / "3/T1w/aparc+aseg.nii.gz").unlink()
    with caplog.at_level(logging.WARNING):
        rows = rows_of(build_hcp(tmp_path))
    assert {row["person_id"] for row in rows} == {"hcp-1", "hcp-2", "hcp-4", "hcp-5"}
    assert "no aparc+aseg.nii.gz, left out" in caplog.text


def test_a_bids_tree_with_sessions_and_runs_becomes_a_manifest_that_the_reader_accepts(tmp_path: Path):
    root = tmp_path / "tree"
    for name in ("sub-a_ses-1", "sub-a_ses-2", "sub-b_run-1", "sub-b_run-2", "sub-c", "sub-d_acq-mprage", "sub-e"):
        write_bids_scan(root, name)
    (root / "dataset_description.json").write_text('{"Name": "Tree", "License": "CC0"}')
    (root / "participants.tsv").write_text("participant_id\tage\tgender\nsub-a\t31\tf\nsub-b\tn/a\tM\nsub-c\t40.5\t\n")
    built = build_bids(root, label_scheme="neuromorphometrics")
    write_manifest(built, tmp_path / "tree.json")
    manifest = read_manifest(tmp_path / "tree.json", root)
    assert len(manifest.cases) == 7
    assert manifest.label_scheme.name == "neuromorphometrics"
    rows = {row["case_id"]: row for row in rows_of(built)}
    assert rows["sub-a_ses-2"]["image"] == "sub-a/ses-2/anat/sub-a_ses-2_T1w.nii.gz"
    assert (rows["sub-a_ses-1"]["age"], rows["sub-a_ses-1"]["sex"], rows["sub-c"]["age"]) == (31, "F", 40.5)
    assert "age" not in rows["sub-b_run-1"]
    assert rows["sub-b_run-2"]["label"].endswith("sub-b_run-2_dseg.nii.gz")
    assert {row["licence"] for row in rows.values()} == {"CC0"}


def test_label_maps_of_a_derivatives_folder_meet_the_scans_of_the_raw_one(tmp_path: Path):
    for person in "abcd":
        write_bids_scan(tmp_path, f"sub-{person}", label_suffix="_desc-aseg_dseg", derivatives="derivatives/freesurfer")
    row = rows_of(build_bids(tmp_path))[0]
    person = row["person_id"]
    assert row["image"] == f"sub-{person}/anat/sub-{person}_T1w.nii.gz"
    assert row["label"] == f"derivatives/freesurfer/sub-{person}/anat/sub-{person}_desc-aseg_dseg.nii.gz"


def test_a_brain_only_scan_is_preferred_and_a_synthetic_one_never_taken(tmp_path: Path):
    for person in "abcd":
        write_bids_scan(tmp_path, f"sub-{person}")
        for desc in ("synthetic", "brain", "preproc"):
            (tmp_path / f"sub-{person}/anat/sub-{person}_desc-{desc}_T1w.nii.gz").touch()
    assert all(row["image"].endswith("_desc-brain_T1w.nii.gz") for row in rows_of(build_bids(tmp_path)))


def test_image_and_label_map_are_matched_within_one_space_and_the_own_space_goes_first(tmp_path: Path):
    for person in "abcd":
        write_bids_scan(tmp_path, f"sub-{person}")
        write_bids_scan(tmp_path, f"sub-{person}", "_space-MNI_desc-preproc_T1w", "_space-MNI_dseg")
    own, mni = build_bids(tmp_path), build_bids(tmp_path, space="MNI")
    assert all("space-" not in row["image"] + row["label"] for row in rows_of(own))
    assert all("space-MNI" in row["image"] and "space-MNI" in row["label"] for row in rows_of(mni))


def test_several_label_maps_of_a_scan_are_for_the_user_to_choose_from(tmp_path: Path):
    for person in "abcd":
        write_bids_scan(tmp_path, f"sub-{person}", label_suffix="_desc-aseg_dseg")
    write_bids_scan(tmp_path, "sub-b", label_suffix="_dseg")
    with pytest.raises(InputError, match=r"expected one label map a scan, got several\. Set label_desc") as caught:
        build_bids(tmp_path)
    assert str(caught.value).count("\n  - ") == 1
    assert len(rows_of(build_bids(tmp_path, label_desc="aseg"))) == 4


def test_a_label_map_without_run_meets_the_only_run_but_not_one_of_two(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    for person in "abcd":
        write_pair(
            tmp_path / f"sub-{person}/anat/sub-{person}_run-1_T1w.nii.gz",
            tmp_path / f"sub-{person}/anat/sub-{person}_dseg.nii.gz",
        )
    assert len(rows_of(build_bids(tmp_path))) == 4
    (tmp_path / "sub-c/anat/sub-c_run-2_T1w.nii.gz").touch()
    with caplog.at_level(logging.WARNING):
        rows = rows_of(build_bids(tmp_path, fractions={"gan_train": 0.5, "test": 0.5}))
    assert {row["person_id"] for row in rows} == {"a", "b", "d"}
    assert "sub-c_dseg.nii.gz: no T1w scan that belongs to it" in caplog.text


def test_a_tree_without_pairs_is_refused(tmp_path: Path):
    (tmp_path / "sub-a_T1w.nii.gz").touch()
    with pytest.raises(InputError, match="1 T1w scans and 0 label maps, no pair among them"):
        build_bids(tmp_path)


def test_a_broken_dataset_description_is_named(tmp_path: Path):
    write_bids_scan(tmp_path, "sub-a")
    (tmp_path / "dataset_description.json").write_text("{")
    with pytest.raises(InputError, match=r"dataset_description.json: expected JSON"):
        build_bids(tmp_path)


@pytest.mark.parametrize("build", [build_malc2012, build_hcp, build_bids])
def test_a_folder_that_is_not_there_is_refused(build: Any, tmp_path: Path):
    with pytest.raises(InputError, match="nowhere: expected a folder, got nothing of that name"):
        build(tmp_path / "nowhere")


def scans_of(num_people: int) -> list[dict[str, Any]]:
    return [{"case_id": f"{p}-{s}", "person_id": f"{p:03d}"} for p in range(num_people) for s in range(1 + p % 2)]


def test_a_split_depends_on_the_seed_alone_and_not_on_the_order_of_rows():
    rows = scans_of(20)
    first = {row["case_id"]: row["split"] for row in split_by_person(rows, seed=3)}
    assert {row["case_id"]: row["split"] for row in split_by_person(rows[::-1], seed=3)} == first
    assert {row["case_id"]: row["split"] for row in split_by_person(rows, seed=4)} != first


def test_all_scans_of_a_person_get_one_split_and_one_fold_and_only_training_people_a_fold():
    rows = split_by_person(scans_of(40), num_folds=4)
    assert len({(row["person_id"], row["split"], row["fold"]) for row in rows}) == 40
    for row in rows:
        assert (row["fold"] in range(4)) == row["split"].endswith("train")
        assert (row["fold"] is None) == (not row["split"].endswith("train"))


@pytest.mark.parametrize("num_people", [4, 5, 7, 10, 33, 200])
def test_every_split_gets_its_share_and_at_least_one_person(num_people: int):
    fractions = {"gan_train": 0.6, "fusion_train": 0.2, "val": 0.1, "test": 0.1}
    people = {row["person_id"]: row["split"] for row in split_by_person(scans_of(num_people), fractions=fractions)}
    counts = {split: list(people.values()).count(split) for split in SPLITS}
    assert sum(counts.values()) == num_people
    assert all(counts[split] >= 1 for split in SPLITS)
    assert all(abs(counts[split] - fractions[split] * num_people) < 1.5 for split in SPLITS)


def test_a_split_without_a_share_stays_empty():
    rows = split_by_person(scans_of(3), fractions={"test": 1.0})
    assert {row["split"] for row in rows} == {"test"}


def test_fewer_people_than_splits_are_refused():
    with pytest.raises(InputError, match=r"split by person: expected at least 4 people, .*got 3\. Add people"):
        split_by_person(scans_of(3), fractions=EVEN)


@pytest.mark.parametrize("fractions", [{"train": 1.0}, {"test": 0.4}, {"test": 1.5, "val": -0.5}])
def test_fractions_that_are_none_are_refused(fractions: dict[str, float]):
    with pytest.raises(InputError, match="fractions: expected shares for gan_train, fusion_train, val, test"):
        split_by_person(scans_of(8), fractions=fractions)


def test_no_fold_at_all_is_refused():
    with pytest.raises(InputError, match="num_folds: expected at least 1, got 0"):
        split_by_person(scans_of(8), num_folds=0)


def test_a_written_manifest_is_the_same_json_with_one_row_a_line(tmp_path: Path):
    manifest = {"name": "x", "training": [{"a": 1}, {"a": 2}], "validation": [], "test": [{"é": None}]}
    write_manifest(manifest, tmp_path / "x.json")
    text = (tmp_path / "x.json").read_text(encoding="utf-8")
    assert json.loads(text) == manifest
    assert '    {"a": 2}\n' in text
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


def test_a_manifest_cannot_be_written_below_a_file(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"x\.json: expected a folder that can be written to"):
        write_manifest({"name": "x"}, tmp_path / "file" / "x.json")


@pytest.mark.real_data
@pytest.mark.skipif(not (DATA / "malc2012").is_dir(), reason=f"no scans under {DATA}")
def test_the_real_malc_tree_is_found_by_both_builders():
    assert build_malc2012(DATA / "malc2012") == json.loads((data_manifests_folder() / "malc2012.json").read_text())
    as_bids = build_bids(DATA / "malc2012", label_scheme="neuromorphometrics")
    assert len(rows_of(as_bids)) == 28
    assert len({(row["person_id"], row["split"]) for row in rows_of(as_bids)}) == 25
