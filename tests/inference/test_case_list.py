from __future__ import annotations

import json
from pathlib import Path

import pytest

from trispade.errors import InputError
from trispade.inference import leave_finished_out, list_label_maps, list_pairs
from trispade.labels import load_scheme
from trispade.manifests import read_manifest
from trispade.transforms import SaveSyntheticd, output_files


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def names(cases: list[dict]) -> list[str]:
    return [case["case_id"] for case in cases]


@pytest.fixture
def manifest_file(tmp_path: Path) -> Path:
    """A manifest none of whose files exist."""
    rows = [
        {"case_id": f"c{i}", "person_id": f"p{i}", "image": None if i == 2 else f"{i}_T1w.nii", "label": f"{i}.nii"}
        for i in range(4)
    ]
    splits = ("gan_train", "val", "test", "test")
    rows = [{**row, "split": split, "fold": None} for row, split in zip(rows, splits, strict=True)]
    content = {"name": "d", "label_scheme": "freesurfer", "training": rows[:1], "validation": rows[1:2]}
    path = tmp_path / "m.json"
    path.write_text(json.dumps({**content, "test": rows[2:]}))
    return path


@pytest.mark.parametrize(
    ("file", "case_id"),
    [("sub-1_dseg.nii.gz", "sub-1"), ("a.b.nii", "a.b"), ("aparc+aseg.mgz", "aparc+aseg"), ("a.seg.nrrd", "a")],
)
def test_one_label_map_is_one_case_named_after_it(tmp_path, file, case_id):
    touch(tmp_path / file)
    assert list_label_maps(tmp_path / file) == [{"case_id": case_id, "image": str(tmp_path / file)}]


def test_in_a_folder_dseg_files_are_taken_and_their_scans_are_not(tmp_path):
    for person in ("sub-2", "sub-1"):
        touch(tmp_path / person / "anat" / f"{person}_dseg.nii.gz", tmp_path / person / "anat" / f"{person}_T1w.nii.gz")
    assert names(list_label_maps(tmp_path)) == ["sub-1", "sub-2"]


def test_in_a_folder_without_dseg_files_all_images_are_taken_but_what_is_synthetic_or_half_written(tmp_path):
    touch(tmp_path / "b.nii", tmp_path / "a.nii.gz", tmp_path / ".partial-1-c.nii.gz", tmp_path / "notes.txt")
    touch(tmp_path / "d.nrrd", *output_files(tmp_path / "out", "a"))
    assert names(list_label_maps(tmp_path)) == ["a", "b", "d"]


def test_in_freesurfers_folders_the_segmentations_are_taken_and_the_images_are_not(tmp_path):
    for person in ("sub-1", "sub-2"):
        touch(*(tmp_path / person / "mri" / f"{name}.mgz" for name in ("T1", "aparc+aseg", "brainmask")))
    assert names(list_label_maps(tmp_path)) == ["sub-1_mri_aparc+aseg", "sub-2_mri_aparc+aseg"]


def test_files_of_one_name_in_several_folders_are_told_apart_by_their_path(tmp_path):
    touch(tmp_path / "x" / "seg_dseg.nii.gz", tmp_path / "y" / "seg_dseg.nii.gz", tmp_path / "z_dseg.nii.gz")
    assert names(list_label_maps(tmp_path)) == ["x_seg", "y_seg", "z"]


def test_two_files_that_would_be_written_under_one_name_are_refused(tmp_path):
    touch(tmp_path / "a.nii", tmp_path / "a.nii.gz", tmp_path / "b.nii")
    with pytest.raises(InputError, match=r"expected label maps of different names, got .*a.nii, .*a.nii.gz. Rename"):
        list_label_maps(tmp_path)


def test_a_folder_without_label_maps_is_an_input_error(tmp_path):
    touch(tmp_path / "notes.txt")
    with pytest.raises(
        InputError,
        match=r"expected a folder with label maps \(\*.nii.gz, \*.nii, \*.nrrd, DICOM SEG, aparc\+aseg.mgz\), got none",
    ):
        list_label_maps(tmp_path)


def test_an_input_that_is_not_there_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="nowhere: expected a label map, a folder or a manifest, got nothing there"):
        list_label_maps(tmp_path / "nowhere")


def test_a_manifest_gives_the_label_maps_of_its_splits_whether_they_are_there_or_not(manifest_file, tmp_path):
    assert names(list_label_maps(manifest_file)) == ["c0", "c1", "c2", "c3"]
    cases = list_label_maps(manifest_file, dataset_dir=tmp_path / "d", splits=["test"])
    assert cases[0] == {"case_id": "c2", "image": str(tmp_path / "d" / "2.nii")}
    assert names(cases) == ["c2", "c3"]


def test_a_manifest_of_another_label_scheme_is_refused(manifest_file):
    assert len(list_label_maps(manifest_file, scheme=load_scheme("freesurfer"))) == 4
    with pytest.raises(InputError, match=r"scheme 'malc_all', got 'freesurfer'. Set the label scheme to freesurfer."):
        list_label_maps(manifest_file, scheme=load_scheme("malc_all"))
    with pytest.raises(InputError, match=r"scheme 'synthseg', got 'freesurfer'. Set the label scheme to freesurfer."):
        list_label_maps(manifest_file, scheme=load_scheme("synthseg"))


def test_splits_without_a_case_are_an_input_error(manifest_file):
    with pytest.raises(InputError, match=r"m.json: expected cases in the chosen splits, got none. Choose other"):
        list_label_maps(manifest_file, splits=["fusion_train"])
    manifest = read_manifest(manifest_file, manifest_file.parent, check_files=False)
    with pytest.raises(InputError, match=r"m.json: expected cases in the chosen splits, got none. Choose other"):
        list_pairs(manifest, ["fusion_train"], [manifest_file.parent / "model.pt"])


def test_pairs_are_the_cases_that_have_a_scan(manifest_file):
    manifest = read_manifest(manifest_file, manifest_file.parent, check_files=False)
    folder = manifest_file.parent
    assert list_pairs(manifest, ["test"], [folder / "model.pt"]) == [
        {
            "case_id": "c3",
            "person_id": "p3",
            **{key: str(folder / "3.nii") for key in ("image", "label_path")},
            **{key: str(folder / "3_T1w.nii") for key in ("t1w", "t1w_path")},
        }
    ]


@pytest.mark.parametrize("part", ["generator_coronal", "fusion"])
def test_evaluation_refuses_people_whom_any_part_of_the_model_was_trained_on(manifest_file, part):
    manifest = read_manifest(manifest_file, manifest_file.parent, check_files=False)
    training = {name: {"people": ["p0"]} for name in ("generator_axial", "generator_coronal", "fusion")}
    training[part] = {"people": ["p0", "p3"]}
    model_file = manifest_file.parent / "model.pt"
    model_file.with_suffix(".json").write_text(json.dumps({"training": training}))
    with pytest.raises(
        InputError, match=r"m.json: expected people whom the model has not seen, got p3, on whom .*model.pt"
    ):
        list_pairs(manifest, ["val", "test"], [manifest_file.parent / "none.pt", model_file])
    assert names(list_pairs(manifest, ["val"], [model_file])) == ["c1"]


@pytest.mark.parametrize(("dataset", "refused"), [("another", False), ("d", True), (None, True)])
def test_a_person_of_another_data_set_is_another_person(manifest_file, dataset, refused):
    manifest = read_manifest(manifest_file, manifest_file.parent, check_files=False)
    model_file = manifest_file.parent / "model.pt"
    record = {"people": ["p3"], **({"dataset": dataset} if dataset else {})}
    model_file.with_suffix(".json").write_text(json.dumps({"training": {"fusion": record}}))
    if refused:
        with pytest.raises(InputError, match="people whom the model has not seen, got p3"):
            list_pairs(manifest, ["test"], [model_file])
    else:
        assert names(list_pairs(manifest, ["test"], [model_file])) == ["c3"]


@pytest.fixture
def cases(tmp_path: Path) -> list[dict]:
    touch(*(tmp_path / f"{name}.nii" for name in "abc"))
    return [{"case_id": name, "image": str(tmp_path / f"{name}.nii")} for name in "abc"]


@pytest.fixture
def save(tmp_path: Path) -> SaveSyntheticd:
    return SaveSyntheticd("pred", tmp_path / "out", record={"sha256": "5a"}, scheme="freesurfer")


def finish(save: SaveSyntheticd, case: dict) -> None:
    """Leave what the transform leaves, but for the voxels."""
    volume, sidecar = output_files(save.output_dir, case["case_id"])
    touch(volume)
    sidecar.write_text(json.dumps(save._sidecar(case["image"])))


def test_finished_cases_are_left_out_and_counted_unless_they_are_to_be_made_again(tmp_path, cases, save, caplog):
    finish(save, cases[0])
    finish(save, cases[2])
    with caplog.at_level("INFO"):
        assert names(leave_finished_out(cases, save, overwrite=False)) == ["b"]
    assert f"2 of 3 volumes are finished in {tmp_path / 'out'} and left alone" in caplog.text
    assert names(leave_finished_out(cases, save, overwrite=True)) == ["a", "b", "c"]
    assert len(list((tmp_path / "out").iterdir())) == 4


def test_volumes_of_another_model_are_made_again(tmp_path, cases, save):
    finish(save, cases[0])
    other = SaveSyntheticd("pred", tmp_path / "out", record={"sha256": "5b"}, scheme="freesurfer")
    finish(other, cases[1])
    assert names(leave_finished_out(cases, save, overwrite=False)) == ["b", "c"]


def test_files_that_trispade_did_not_make_are_not_overwritten_in_silence(tmp_path, cases, save):
    finish(save, cases[0])
    foreign = output_files(save.output_dir, "b")[0], output_files(save.output_dir, "c")[1]
    touch(*foreign)
    with pytest.raises(
        InputError,
        match=r"out: expected no files under the names of the volumes that trispade did not make, got b_desc-synthetic"
        r"_T1w.nii.gz, c_desc-synthetic_T1w.nii.gz. Move them, choose another --output_dir, or set overwrite.",
    ):
        leave_finished_out(cases, save, overwrite=False)
    assert names(leave_finished_out(cases, save, overwrite=True)) == ["a", "b", "c"]


def test_an_output_folder_that_cannot_be_written_is_known_before_the_first_case(tmp_path, cases, save):
    touch(tmp_path / "out")
    with pytest.raises(InputError, match=r"out: expected a folder that can be written to, got .*--output_dir"):
        leave_finished_out(cases, save, overwrite=True)
