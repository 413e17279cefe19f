from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from trispade.engines import load_checkpoint, save_checkpoint
from trispade.errors import InputError
from trispade.geometry import PLANES
from trispade.inference import read_model_record
from trispade.phantoms import make_phantom, phantom_affine

pytestmark = pytest.mark.slow


def times(folder: Path, pattern: str = "**/*") -> dict[Path, int]:
    return {file: file.stat().st_mtime_ns for file in folder.glob(pattern) if file.is_file()}


def changed_by(folder: Path, act: Callable[[], object]) -> list[str]:
    """Cases whose volume an action writes anew."""
    before = times(folder)
    act()
    changed = [file.name for file, time in times(folder).items() if before.get(file) != time]
    return sorted(name.split("_")[0] for name in changed if name.endswith(".nii.gz"))


def outputs(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir() if file.name != "results.tsv")


def volume_of(folder: Path, case: str) -> nib.Nifti1Image:
    return nib.load(folder / f"{case}_desc-synthetic_T1w.nii.gz")


def save_phantom(path: Path, orientation: str, spacing_mm: tuple[float, ...], codes: tuple[int, int]) -> Path:
    shape = (44, 40, 36)
    affine = phantom_affine(shape, spacing_mm, orientation, oblique_degrees=15)
    image = nib.Nifti1Image(make_phantom(3, shape, affine=affine).label_map, affine)
    image.set_qform(affine, codes[0])
    image.set_sform(affine, codes[1])
    nib.save(image, path)
    return path


@pytest.fixture
def grey_model(study, tmp_path) -> Path:
    """The study's model; its fusion net, run without residual, gives 0, the middle of the range, all over the brain."""
    state = load_checkpoint(study.model_file)
    for name in ("fusion.exit.weight", "fusion.exit.bias"):
        state[name].zero_()
    save_checkpoint(state, tmp_path / "grey.pt")
    return tmp_path / "grey.pt"


def test_each_stage_leaves_what_the_next_one_reads(study):
    prepared = sorted(folder.name[:6] for folder in (study.work_dir / "cache").iterdir() if folder.is_dir())
    assert prepared == ["sub-01", "sub-02", "sub-03", "sub-04", "sub-05"]
    for plane in PLANES:
        record = load_checkpoint(study.work_dir / f"spade_{plane}" / "last.pt")["record"]
        assert (record["plane"], record["preset"], record["people"]) == (plane, "smoke", ["01", "02"])
    painted = {folder.name[:6]: folder for folder in (study.work_dir / "planes").iterdir()}
    assert sorted(painted) == ["sub-03", "sub-04"]
    assert json.loads((painted["sub-03"] / "case.json").read_text())["generator_people"] == ["01", "02"]
    assert read_model_record(study.model_file)["training"]["fusion"]["people"] == ["03"]
    assert load_checkpoint(study.model_file)["fusion.exit.weight"].dtype == torch.float16


def test_a_training_stage_writes_scalars_and_images_for_tensorboard(study):
    for stage in (*(f"spade_{plane}" for plane in PLANES), "fusion"):
        assert list((study.work_dir / stage / "tensorboard").glob("events.out.tfevents.*"))


def test_running_a_finished_stage_again_does_nothing_anew(study):
    data, checkpoint = times(study.work_dir / "cache", "*/*"), study.work_dir / "spade_axial" / "last.pt"
    planes, weights = times(study.work_dir / "planes"), read_model_record(study.model_file)["sha256"]
    before = load_checkpoint(checkpoint)
    study.run("prepare")
    study.run("train_spade", plane="axial", max_epochs=1)
    study.run("synthesize_planes")
    study.run("train_fusion", max_epochs=1)
    after = load_checkpoint(checkpoint)
    assert times(study.work_dir / "cache", "*/*") == data
    assert times(study.work_dir / "planes") == planes
    assert after["iteration"] == before["iteration"]
    generators = after["objects"]["generator"], before["objects"]["generator"]
    assert all(torch.equal(generators[0][name], generators[1][name]) for name in generators[1])
    assert read_model_record(study.model_file)["sha256"] == weights


def test_a_training_stage_goes_on_where_it_stopped(study, tmp_path):
    shutil.copytree(study.work_dir / "spade_sagittal", tmp_path / "spade_sagittal")
    study.run("train_spade", plane="sagittal", max_epochs=2, stage_dir=tmp_path / "spade_sagittal")
    first = load_checkpoint(study.work_dir / "spade_sagittal" / "last.pt")
    second = load_checkpoint(tmp_path / "spade_sagittal" / "last.pt")
    assert second["iteration"] == 2 * first["iteration"]
    assert second["record"]["epochs"] == 2


def test_a_model_with_style_is_trained_and_gives_another_volume_for_another_seed(study, output_of, tmp_path):
    shutil.copytree(study.work_dir / "cache", tmp_path / "work" / "cache")
    options = {"work_dir": tmp_path / "work", "max_epochs": 1}
    for plane in PLANES:
        file = None if plane == "axial" else tmp_path / "work" / "spade_axial" / "last.pt"
        study.run("train_spade", plane=plane, style_dim=3, **options, **({"style_encoder_file": file} if file else {}))
    states = [load_checkpoint(tmp_path / "work" / f"spade_{plane}" / "last.pt") for plane in PLANES]
    assert all(
        torch.equal(value, states[0]["objects"]["encoder"][name])
        for state in states[1:]
        for name, value in state["objects"]["encoder"].items()
    )
    study.run("synthesize_planes", work_dir=tmp_path / "work")
    study.run("train_fusion", model_file=tmp_path / "styled.pt", **options)
    volumes = []
    for seed in (1, 2):
        folder = output_of(study.label_map(), model_file=tmp_path / "styled.pt", style_seed=seed)
        assert json.loads((folder / "sub-05_desc-synthetic_T1w.json").read_text())["Settings"]["style_seed"] == seed
        volumes.append(volume_of(folder, "sub-05").get_fdata())
    assert not np.array_equal(*volumes)
    with pytest.raises(InputError, match="style_seed: expected a model that was trained with style, got one without"):
        output_of(study.label_map(), style_seed=1)


def test_generators_that_see_neighbouring_label_slices_go_through_all_stages(study, output_of, tmp_path):
    shutil.copytree(study.work_dir / "cache", tmp_path / "work" / "cache")
    options = {"work_dir": tmp_path / "work", "max_epochs": 1, "label_slices": 3}
    for plane in PLANES:
        study.run("train_spade", plane=plane, **options)
    study.run("synthesize_planes", work_dir=tmp_path / "work", label_slices=3)
    study.run("train_fusion", model_file=tmp_path / "model.pt", **options)
    folder = output_of(study.label_map(), model_file=tmp_path / "model.pt", label_slices=3)
    assert volume_of(folder, "sub-05").get_fdata().std() > 1
    with pytest.raises(InputError, match=r"model.pt: expected a checkpoint with label_slices 1, got 3"):
        output_of(study.label_map(), model_file=tmp_path / "model.pt")


def test_a_second_fusion_net_is_trained_from_the_first_and_chosen_by_name(study, output_of, tmp_path):
    for name in ("cache", "planes", "fusion"):
        shutil.copytree(study.work_dir / name, tmp_path / "work" / name)
    for name in ("model.pt", "model.json"):
        shutil.copy(study.model_file.with_name(name), tmp_path / name)
    for plane in PLANES:
        shutil.copytree(study.work_dir / f"spade_{plane}", tmp_path / "work" / f"spade_{plane}")
    options = {"work_dir": tmp_path / "work", "model_file": tmp_path / "model.pt"}
    study.run("train_fusion", "realism", max_epochs=1, learning_rate=0.01, **options)
    told = read_model_record(tmp_path / "model.pt")["fusions"]["realism"]["training"]
    assert told["texture_weight"] > 0
    assert told["start"]["people"] == ["03"]
    volumes = {}
    for fusion in ("fidelity", "realism"):
        folder = output_of(study.label_map(), model_file=tmp_path / "model.pt", fusion=fusion)
        volumes[fusion] = volume_of(folder, "sub-05").get_fdata()
        assert json.loads((folder / "sub-05_desc-synthetic_T1w.json").read_text())["Settings"]["fusion"] == fusion
    assert not np.array_equal(*volumes.values())
    with pytest.raises(
        InputError, match=r"model.pt: expected a model with a fusion net 'sharp', got fidelity, realism"
    ):
        output_of(study.label_map(), model_file=tmp_path / "model.pt", fusion="sharp")


def test_what_the_paper_does_not_have_is_trained_by_switches_and_resumed(study, tmp_path):
    shutil.copytree(study.work_dir / "cache", tmp_path / "work" / "cache")
    options = {
        "work_dir": tmp_path / "work",
        "plane": "axial",
        "average_half_life": 3.0,
        "reconstruction_weight": 10.0,
        "augmentation_probability": 1.0,
        "start_checkpoint": study.work_dir / "spade_axial" / "last.pt",
    }
    study.run("train_spade", max_epochs=1, **options)
    study.run("train_spade", max_epochs=2, **options)
    last = load_checkpoint(tmp_path / "work" / "spade_axial" / "last.pt")
    assert last["record"]["start"]["people"] == ["01", "02"]
    objects = last["objects"]
    assert not any("parametrizations" in name for name in objects["average"])
    start = load_checkpoint(study.work_dir / "spade_axial" / "last.pt")["objects"]["generator"]["tail.weight"]
    present, average = objects["generator"]["tail.weight"], objects["average"]["tail.weight"]
    assert 0 < (average - start).norm() < (present - start).norm()


def test_a_plane_is_trained_on_from_a_model_and_the_discriminators_beside_it(study, tmp_path):
    shutil.copytree(study.work_dir / "cache", tmp_path / "work" / "cache")
    options = {"work_dir": tmp_path / "work", "plane": "sagittal", "max_epochs": 1}
    study.run("train_spade", start_checkpoint=study.model_file, **options)
    told = load_checkpoint(tmp_path / "work" / "spade_sagittal" / "last.pt")["record"]["start"]
    assert sorted(told["weights"]) == ["discriminator", "generator"]
    judges = load_checkpoint(study.model_file.with_name("discriminators.pt"))
    trained = load_checkpoint(study.work_dir / "spade_sagittal" / "last.pt")["objects"]["discriminator"]
    name = "scales.0.layers.4.parametrizations.weight.original"
    torch.testing.assert_close(judges[f"sagittal.{name}"], trained[name], rtol=2e-3, atol=1e-3, check_dtype=False)


def test_one_label_map_becomes_one_volume_with_a_sidecar_that_says_it_is_synthetic(study, output_of):
    folder = output_of(study.label_map())
    assert outputs(folder) == ["sub-05_desc-synthetic_T1w.json", "sub-05_desc-synthetic_T1w.nii.gz"]
    labels, volume = nib.load(study.label_map()), volume_of(folder, "sub-05")
    t1w = volume.get_fdata()
    assert volume.get_data_dtype() == np.float32
    np.testing.assert_array_equal(volume.affine, labels.affine)
    assert (t1w[0] == 0).all()
    assert 0 <= t1w.min() < t1w.max() <= 255
    sidecar = json.loads((folder / "sub-05_desc-synthetic_T1w.json").read_text())
    assert sidecar["synthetic"] is True
    assert sidecar["Sources"] == [str(study.label_map())]
    assert sidecar["LabelScheme"] == "freesurfer"
    record = read_model_record(study.model_file)
    assert sidecar["Model"] == {"file": "model.pt", "sha256": record["sha256"], "preset": "smoke"}


@pytest.mark.parametrize(
    ("orientation", "spacing_mm", "codes"),
    [("LPI", (4.0, 4.0, 4.0), (1, 1)), ("ASR", (4.0, 3.5, 4.0), (0, 2)), ("PIL", (3.0, 4.0, 4.0), (3, 0))],
)
def test_the_volume_lies_on_the_grid_of_an_oblique_label_map_with_its_space_codes(
    output_of, grey_model, tmp_path, orientation, spacing_mm, codes
):
    path = save_phantom(tmp_path / "a_dseg.nii.gz", orientation, spacing_mm, codes)
    labels, volume = nib.load(path), volume_of(output_of(path, model_file=grey_model, residual=False), "a")
    assert volume.shape == labels.shape
    assert volume.affine.tobytes() == labels.affine.tobytes()
    assert (int(volume.header["qform_code"]), int(volume.header["sform_code"])) == codes
    brain, t1w = np.asarray(labels.dataobj) > 0, volume.get_fdata()
    assert set(np.unique(t1w)) == {0, 127.5}
    assert (t1w[brain] > 0).mean() > 0.95
    assert (t1w > 0).sum() < 1.4 * brain.sum()


def test_int16_volumes_have_the_range_that_was_asked_for(study, output_of):
    folder = output_of(study.label_map(), output_dtype="int16", value_range=[100, 1000])
    volume = volume_of(folder, "sub-05")
    assert volume.get_data_dtype() == np.int16
    assert np.asarray(volume.dataobj).min() == 100
    assert 100 < np.asarray(volume.dataobj).max() <= 1000
    assert json.loads((folder / "sub-05_desc-synthetic_T1w.json").read_text())["ValueRange"] == [100, 1000]


def test_all_label_maps_of_a_folder_are_synthesized_and_finished_ones_left_alone(study, output_of):
    folder = output_of(study.dataset_dir)
    assert outputs(folder)[1::2] == [f"sub-0{i}_desc-synthetic_T1w.nii.gz" for i in range(1, 6)]
    (folder / "sub-03_desc-synthetic_T1w.nii.gz").unlink()
    assert changed_by(folder, lambda: output_of(study.dataset_dir)) == ["sub-03"]
    assert changed_by(folder, lambda: output_of(study.dataset_dir)) == []
    assert changed_by(folder, lambda: output_of(study.label_map(), value_range=[0, 1])) == ["sub-05"]
    assert changed_by(folder, lambda: output_of(study.label_map("02"), overwrite=True)) == ["sub-02"]
    assert len(outputs(folder)) == 10


def test_a_run_that_is_stopped_goes_on_with_the_case_that_was_next(study, output_of, tmp_path, monkeypatch):
    save = nib.save

    def stop_at_the_third(image, path):
        if "sub-03" in str(path):
            raise KeyboardInterrupt
        save(image, path)

    with monkeypatch.context() as patch:
        patch.setattr(nib, "save", stop_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            output_of(study.dataset_dir)
    folder = tmp_path / "out"
    assert outputs(folder)[1::2] == [f"sub-0{i}_desc-synthetic_T1w.nii.gz" for i in (1, 2)]
    assert changed_by(folder, lambda: output_of(study.dataset_dir)) == ["sub-03", "sub-04", "sub-05"]
    assert len(outputs(folder)) == 10


def test_a_volume_that_trispade_did_not_make_is_not_overwritten(study, output_of, tmp_path):
    foreign = tmp_path / "out" / "sub-05_desc-synthetic_T1w.nii.gz"
    foreign.parent.mkdir()
    foreign.write_bytes(b"a scan of somebody's")
    with pytest.raises(
        InputError, match=r"that trispade did not make, got sub-05_desc-synthetic_T1w.nii.gz. Move them"
    ):
        output_of(study.label_map())
    assert foreign.read_bytes() == b"a scan of somebody's"


def test_the_label_maps_of_some_splits_of_a_manifest_are_synthesized(study, output_of):
    folder = output_of(study.manifest_file, splits=["val", "test"])
    assert outputs(folder)[1::2] == ["sub-04_desc-synthetic_T1w.nii.gz", "sub-05_desc-synthetic_T1w.nii.gz"]


def test_the_number_of_slices_at_a_time_does_not_change_the_volume(study, output_of):
    first = volume_of(output_of(study.label_map()), "sub-05").get_fdata()
    second = volume_of(output_of(study.label_map(), slice_batch_size=9, overwrite=True), "sub-05").get_fdata()
    np.testing.assert_allclose(second, first, atol=0.01)


@pytest.fixture(scope="module")
def evaluation(study, tmp_path_factory):
    """The evaluation of the study's model, run once; gives its folder."""
    folder = tmp_path_factory.mktemp("evaluated") / "evaluation"
    study.run("evaluate", output_dir=folder)
    return folder


def rows_of(evaluation):
    with (evaluation / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_evaluation_compares_every_method_on_the_test_people(evaluation):
    rows = rows_of(evaluation)
    assert list(rows[0]) == ["case_id", "method", "region", "fit", "metric", "value"]
    methods = {"label_mean", *PLANES, "mean_of_planes", "fused", "real_resampled"}
    assert {row["method"] for row in rows} == methods
    assert {row["case_id"] for row in rows} == {"sub-05"}
    assert {row["region"] for row in rows} >= {"brain", "full", "thalamus"}
    psnr = {
        row["method"]: float(row["value"])
        for row in rows
        if (row["metric"], row["region"], row["fit"]) == ("psnr", "brain", "gain_offset")
    }
    assert set(psnr) == methods
    assert psnr["label_mean"] > 20
    assert psnr["real_resampled"] == max(psnr.values())


def test_evaluation_writes_a_summary_and_a_page(evaluation):
    summary = json.loads((evaluation / "summary.json").read_text())
    assert {each["people"] for each in summary["all"] if each["metric"] == "psnr"} == {1}
    assert summary["scanned_twice"] == []
    assert summary["distances"] == "fewer than two people"
    assert any("1 " in each["text"] for each in summary["verdict"])
    assert "fused" in (evaluation / "summary.md").read_text()
    page = (evaluation / "report.html").read_text()
    assert page.startswith("<!doctype html>") or page.startswith("<!DOCTYPE html>")
    assert "sub-05" in page
    assert "http://" not in page.replace("http://www.w3.org", "").replace("http://Neuromorphometrics.com", "")


def test_evaluation_goes_on_with_what_it_has_stored(study, evaluation, tmp_path, caplog):
    before = {file: file.stat().st_mtime_ns for file in evaluation.rglob("*.npy")}
    assert before
    (evaluation / "report.html").unlink()
    study.run("evaluate", output_dir=evaluation)
    assert (evaluation / "report.html").exists()
    assert {file: file.stat().st_mtime_ns for file in evaluation.rglob("*.npy")} == before


def test_a_test_scan_that_fails_is_told_of_and_the_others_have_their_page(study, tmp_path):
    manifest = json.loads(study.manifest_file.read_text())
    row = manifest["test"][0]
    broken = {"case_id": "sub-06", "person_id": "06", "image": "none.nii.gz", "label": "no.nii.gz"}
    manifest["test"].append({**row, **broken})
    path = study.manifest_file.with_name("one_broken.json")
    path.write_text(json.dumps(manifest))
    folder = tmp_path / "evaluation"
    with pytest.raises(InputError, match=r"1 of 2 cases failed:\n  - sub-06: .*no.nii.gz: expected a NIfTI file"):
        study.run("evaluate", output_dir=folder, manifest_file=path)
    assert {row["case_id"] for row in rows_of(folder)} == {"sub-05"}
    assert "no.nii.gz: expected a NIfTI file" in (folder / "report.html").read_text()


def test_stages_in_the_wrong_order_name_the_one_to_run_first(study, tmp_path):
    empty = {"work_dir": tmp_path / "work"}
    with pytest.raises(InputError, match=r"cache: expected a prepared cache, got none. Run the prepare stage first."):
        study.run("train_spade", **empty)
    cache = {"cache_dir": study.work_dir / "cache"}
    with pytest.raises(InputError, match=r"a trained generator, got none. Run train_spade --plane axial first."):
        study.run("synthesize_planes", **empty, **cache)
    with pytest.raises(InputError, match=r"sub-03: not painted, or prepared again since. Run the synthesize_planes"):
        study.run("train_fusion", **empty, **cache)
    with pytest.raises(InputError, match=r"model.pt: expected a checkpoint, got nothing there. Run the stage"):
        study.run("inference", input=study.label_map(), model_file=tmp_path / "model.pt", output_dir=tmp_path / "out")


def test_a_stage_of_another_preset_does_not_meet_the_cache(study):
    with pytest.raises(InputError, match=r"cache: was prepared with spacing_mm 4.0, not 2.0. Run the prepare stage"):
        study.run("train_spade", spacing_mm=2.0)


def test_people_whom_the_generators_have_seen_are_not_painted_for_the_fusion_net(study):
    with pytest.raises(
        InputError, match="sub-01: expected a generator of the axial plane that was not trained on pers"
    ):
        study.run("synthesize_planes", splits=["gan_train"])


@pytest.mark.parametrize(
    ("stage", "kind"),
    [
        *(("train_spade", "train"), ("train_fusion", "train"), ("train_direct", "train")),
        *(("inference", "infer"), ("evaluate", "infer")),
    ],
)
def test_monai_finds_every_property_of_a_workflow_however_often_it_is_parsed(study, tmp_path, stage, kind):
    workflow = study.workflow(stage, kind, output_dir=str(tmp_path))
    for _ in range(2):
        workflow.initialize()
        assert workflow.check_properties() == []


@pytest.mark.parametrize("stage", ["prepare", "synthesize_planes", "evaluate_downstream"])
def test_the_metadata_of_a_stage_that_is_no_workflow_of_monais_are_found(study, stage):
    workflow = study.workflow(stage, None)
    for _ in range(2):
        workflow.initialize()
        assert workflow.check_properties() == []
    assert workflow.version == "0.1.0"
