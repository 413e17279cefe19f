from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from trispade import __version__, cli
from trispade.bundle_run import BUNDLE_VARIABLE
from trispade.cli import app, main
from trispade.errors import InputError
from trispade.geometry import PLANES
from trispade.manifests import read_manifest
from trispade.phantoms import write_phantom_dataset

BUNDLE = Path(__file__).parents[1] / "bundle"
COMMANDS = (
    ["synthesize"],
    ["train"],
    ["evaluate"],
    ["demo"],
    ["package"],
    ["verify"],
    ["manifest"],
    *(["manifest", n] for n in ("malc2012", "hcp", "bids")),
)


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantoms")
    write_phantom_dataset(folder, 5, 0, spacing_mm=4.0)
    return folder


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None, dict[str, Any]]]:
    """The stages that a command would run: name, preset, values of config keys."""
    calls: list[tuple[str, str | None, dict[str, Any]]] = []

    def note(bundle: Path, stage: str, preset: str | None = None, overlay: str | None = None, **overrides: Any) -> None:
        calls.append((stage, preset, {key: value for key, value in overrides.items() if value is not None}))

    monkeypatch.setattr(cli, "run_stage", note)
    monkeypatch.setattr(cli, "_unfinished", lambda work_dir, *stages: False)
    return calls


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(each) for each in arguments], catch_exceptions=False)


def main_fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run the command as the shell does; it must end with code 1 and say why on its last line, without a trace."""
    monkeypatch.setattr(sys, "argv", ["trispade", *map(str, arguments)])
    with pytest.raises(SystemExit, match=r"^1$"):
        main()
    output = capsys.readouterr()
    assert output.out == ""
    assert "Traceback" not in output.err
    return output.err


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_explains_itself_and_its_options(command: list[str]):
    result = invoke(*command, "--help")
    assert result.exit_code == 0
    assert "Usage: root " + " ".join(command) in result.stdout


def test_every_option_has_a_help_text():
    from typer.main import get_command

    group = get_command(app)
    manifest = group.commands["manifest"]
    for command in (group, *group.commands.values(), *manifest.commands.values()):
        assert command.help or command is group
        for parameter in command.params:
            assert parameter.help, f"{command.name} {parameter.name}"


def test_the_version_is_printed():
    assert invoke("--version").stdout == f"{__version__}\n"


def test_the_command_alone_shows_what_there_is():
    result = invoke()
    assert result.exit_code == 0
    assert "synthesize" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["paint"], r"No such command 'paint'"),
        (["manifest"], r"Missing command\. See `trispade manifest --help`"),
        (["synthesize"], r"Missing argument 'LABELS'\. See `trispade synthesize --help`"),
        (["train"], r"Missing option '--dataset-dir'"),
        (["train", "--colour"], r"No such option: --colour"),
        (["train", "--dataset-dir", ".", "--plane", "oblique"], r"'--plane'.*'axial', 'coronal', 'sagittal'"),
        (["train", "--dataset-dir", ".", "--stage", "last"], r"'--stage'.*'prepare', 'train_spade'"),
        (["train", "--dataset-dir", ".", "--max-epochs", "0"], r"'--max-epochs'"),
        (["synthesize", "x", "-o", "o", "--unknown-labels", "csf"], r"'--unknown-labels'.*'error', 'background'"),
    ],
)
def test_wrong_usage_is_one_line_that_names_the_help(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str
):
    error = main_fails(monkeypatch, capsys, *arguments)
    assert re.match(rf"trispade: .*{expected}", error)
    assert re.search(r"See `trispade .*--help`\.\n$", error)
    assert error.count("\n") == 1


def test_bad_input_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    error = main_fails(monkeypatch, capsys, "manifest", "bids", tmp_path / "absent", "-o", tmp_path / "m.json")
    assert error.startswith(f"trispade: {tmp_path / 'absent'}: expected a folder, got nothing of that name.")
    assert error.count("\n") == 1
    assert not (tmp_path / "m.json").exists()


@pytest.mark.parametrize("command", [["train", "--dataset-dir", "."], ["synthesize", ".", "-o", "out"]])
def test_ctrl_c_ends_with_the_exit_code_of_an_interrupt(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: list[str]
):
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "run_stage", interrupt)
    monkeypatch.setattr(sys, "argv", ["trispade", *command])
    with pytest.raises(SystemExit, match=r"^130$"):
        main()
    assert capsys.readouterr().err.endswith("trispade: stopped; the same command goes on\n")


def test_synthesize_runs_inference_on_what_it_is_given(stages: list[Any], phantoms: Path, tmp_path: Path):
    label_map = phantoms / "sub-01" / "anat" / "sub-01_dseg.nii.gz"
    assert f"T1w volumes in {tmp_path}" in invoke("synthesize", label_map, "-o", tmp_path).stdout
    more = ("--unknown-labels", "background", "--overwrite", "--format", "dicom")
    invoke("synthesize", phantoms, "-o", tmp_path, *more)
    (one, preset, values), (folder, _, folder_values) = stages
    assert (one, folder, preset) == ("inference", "inference", "compact")
    assert (values["input"], values["dataset_dir"], values["label_scheme"]) == (
        label_map,
        label_map.parent,
        "freesurfer",
    )
    assert (folder_values["input"], folder_values["dataset_dir"]) == (phantoms, phantoms)
    assert (values["unknown_labels"], folder_values["unknown_labels"]) == ("error", "background")
    assert (values["output_format"], folder_values["output_format"]) == ("nifti", "dicom")
    assert (values["overwrite"], folder_values["overwrite"]) == (False, True)


def test_a_bundle_is_packaged_and_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    result = invoke("package", BUNDLE, "-o", tmp_path / "a.zip", "--without-weights")
    digest = (tmp_path / "a.zip.sha256").read_text().split()[0]
    assert f"SHA-256 {digest}, also in {tmp_path / 'a.zip'}.sha256" in result.stdout
    good = invoke("verify", tmp_path / "a.zip")
    assert (good.exit_code, "nothing that should not be there" in good.stdout) == (0, True)
    bad = invoke("verify", tmp_path / "a.zip", "--sha256", "0" * 64)
    assert (bad.exit_code, "REFUSED a.zip: is not the file that was sent" in bad.stdout) == (1, True)


def test_train_runs_the_stages_in_their_order(stages: list[Any]):
    invoke("train", "--dataset-dir", ".", "--preset", "smoke", "--max-minutes", 2)
    assert [stage for stage, _, _ in stages] == [
        "prepare",
        *["train_spade"] * 3,
        "synthesize_planes",
        *["train_fusion"] * 2,
    ]
    assert [values["plane"] for stage, _, values in stages if stage == "train_spade"] == list(PLANES)
    assert {preset for _, preset, _ in stages} == {"smoke"}
    assert [values.get("max_minutes") for _, _, values in stages] == [None, 2, 2, 2, None, 2, 2]


def test_train_can_be_one_stage_of_one_plane(stages: list[Any]):
    invoke("train", "--dataset-dir", ".", "--stage", "train_spade", "--plane", "coronal")
    ((stage, _, values),) = stages
    assert (stage, values["plane"]) == ("train_spade", "coronal")


def test_the_second_fusion_net_is_the_stage_of_the_first_with_an_overlay(monkeypatch: pytest.MonkeyPatch):
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(cli, "run_stage", lambda *args, overlay=None, **_: calls.append((*args[1:], overlay)))
    invoke("train", "--dataset-dir", ".", "--stage", "train_realism", "--preset", "smoke")
    assert calls == [("train_fusion", "smoke", "realism")]


def test_downstream_is_run_for_one_arm(stages: list[Any]):
    invoke("downstream", "--dataset-dir", ".", "--arm", "synthetic", "--preset", "smoke")
    ((stage, preset, values),) = stages
    assert (stage, preset, values["arm"]) == ("evaluate_downstream", "smoke", "synthetic")


def test_the_competitor_is_trained_when_it_is_asked_for(stages: list[Any]):
    invoke("train", "--dataset-dir", ".", "--stage", "train_direct", "--max-epochs", "3")
    ((stage, _, values),) = stages
    assert (stage, values["max_epochs"]) == ("train_direct", 3)


def test_train_stops_before_the_fusion_net_while_generators_have_epochs_left(stages: list[Any], monkeypatch: Any):
    monkeypatch.setattr(
        cli, "_unfinished", lambda work_dir, *stages: (work_dir, len(stages)) == (Path("runs/smoke"), 3)
    )
    result = invoke("train", "--dataset-dir", ".", "--preset", "smoke", "--max-minutes", "1")
    assert [stage for stage, _, _ in stages] == ["prepare", *["train_spade"] * 3]
    assert "the same command goes on" in result.output


def test_train_stops_before_the_second_fusion_net_while_the_first_has_epochs_left(stages: list[Any], monkeypatch: Any):
    monkeypatch.setattr(cli, "_unfinished", lambda _, *stages: stages == ("fusion",))
    result = invoke("train", "--dataset-dir", ".", "--preset", "smoke", "--max-minutes", "1")
    assert [stage for stage, _, _ in stages] == ["prepare", *["train_spade"] * 3, "synthesize_planes", "train_fusion"]
    assert "the fusion net is not trained to the end yet" in result.output


def test_train_gives_every_stage_the_same_scheme(stages: list[Any]):
    invoke("train", "--dataset-dir", ".", "--scheme", "malc_all")
    assert [values.get("label_scheme") for _, _, values in stages] == ["malc_all"] * 7


def test_every_value_that_a_command_sets_is_a_key_of_its_stage(stages: list[Any], phantoms: Path):
    manifest = phantoms / "phantoms.json"
    given = [
        "--dataset-dir",
        phantoms,
        "--manifest",
        manifest,
        "--scheme",
        "freesurfer",
        "--work-dir",
        "w",
        "--model",
        "m",
    ]
    invoke("train", *given, "--max-epochs", 1, "--max-minutes", 1)
    invoke("evaluate", *given, "-o", "o")
    invoke("synthesize", phantoms, "-o", "o", "--model", "m")
    assert len(stages) == 9
    for stage, preset, values in stages:
        files = (BUNDLE / "configs" / f"{stage}.yaml", BUNDLE / "configs" / "presets" / f"{preset}.yaml")
        known = set().union(*(yaml.safe_load(file.read_text()) for file in files))
        assert set(values) <= known, stage


def test_the_bundle_in_use_is_named(stages: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv(BUNDLE_VARIABLE, str(BUNDLE))
    assert f"bundle: {BUNDLE} (from $TRISPADE_BUNDLE)" in invoke("synthesize", tmp_path, "-o", tmp_path).stderr


def test_a_bids_tree_becomes_a_manifest_that_can_be_read(phantoms: Path, tmp_path: Path):
    result = invoke("manifest", "bids", phantoms, "-o", tmp_path / "m.json", "--seed", 3)
    assert result.stdout.startswith(f"{tmp_path / 'm.json'}: 5 scans of 5 people (")
    manifest = read_manifest(tmp_path / "m.json", phantoms, check_labels=True)
    assert (manifest.label_scheme.name, len(manifest.cases)) == ("freesurfer", 5)


def test_a_manifest_names_the_users_scheme_relative_to_itself(
    phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "own.tsv").write_text("id\tname\tclass\n0\tnone\tbackground\n2\twhite\tcerebral_white_matter\n")
    (tmp_path / "own.json").write_text('{"vocabulary": "structures"}')
    (tmp_path / "manifests").mkdir()
    monkeypatch.chdir(tmp_path)
    invoke("manifest", "bids", phantoms, "-o", "manifests/m.json", "--scheme", "own.tsv")
    assert json.loads(Path("manifests/m.json").read_text())["label_scheme"] == "../own.tsv"
    monkeypatch.chdir(phantoms)
    assert read_manifest(tmp_path / "manifests" / "m.json", phantoms).label_scheme.name == "own"


def test_desc_and_space_choose_among_label_maps(phantoms: Path, tmp_path: Path):
    for person in phantoms.glob("sub-*"):
        target = tmp_path / "tree" / person.name / "anat"
        target.mkdir(parents=True)
        for desc in ("manual", "auto"):
            (target / f"{person.name}_desc-{desc}_dseg.nii.gz").symlink_to(
                person / "anat" / f"{person.name}_dseg.nii.gz"
            )
        (target / f"{person.name}_T1w.nii.gz").symlink_to(person / "anat" / f"{person.name}_T1w.nii.gz")
    chosen = [tmp_path / "tree", "-o", tmp_path / "m.json"]
    with pytest.raises(
        InputError, match=r"expected one label map a scan, got several\. Set label_desc or space"
    ) as raised:
        invoke("manifest", "bids", *chosen)
    assert "sub-01" in str(raised.value)
    invoke("manifest", "bids", *chosen, "--label-desc", "auto")
    content = json.loads((tmp_path / "m.json").read_text())
    assert all("desc-auto" in row["label"] for row in content["training"])
    with pytest.raises(InputError, match="no pair among them"):
        invoke("manifest", "bids", *chosen, "--label-desc", "auto", "--space", "MNI")


def test_a_scheme_that_is_not_there_is_refused_before_the_manifest_is_written(phantoms: Path, tmp_path: Path):
    with pytest.raises(InputError, match="label scheme 'freesurfr': expected one of freesurfer, "):
        invoke("manifest", "bids", phantoms, "-o", tmp_path / "m.json", "--scheme", "freesurfr")
    assert not (tmp_path / "m.json").exists()


def test_malc_and_hcp_trees_without_scans_are_refused(tmp_path: Path):
    with pytest.raises(InputError, match="sub-0061 ses-1"):
        invoke("manifest", "malc2012", tmp_path, "-o", tmp_path / "m.json")
    with pytest.raises(InputError, match=r"T1w_acpc_dc_restore\.nii\.gz"):
        invoke("manifest", "hcp", tmp_path, "-o", tmp_path / "m.json", "--whole-head")


def test_the_demonstration_tells_where_everything_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    from trispade.report import demo

    made = demo.DemoFiles((Path("a_dseg.nii.gz"),), (Path("a_T1w.nii.gz"),), Path("demo.png"), Path("demo.html"))
    monkeypatch.setattr(demo, "run_demo", lambda bundle, folder, fusion: made)
    output = invoke("demo", "-o", tmp_path).stdout
    assert "T1w volume: a_T1w.nii.gz, from a_dseg.nii.gz\n" in output
    assert output.endswith("picture:    demo.png\npage:       demo.html\n")


def test_the_demonstration_from_scratch_is_another(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    from trispade.report import demo_from_scratch

    monkeypatch.setattr(
        demo_from_scratch, "run_demo_from_scratch", lambda bundle, folder: (folder / "a.nii.gz", folder / "demo.png")
    )
    output = invoke("demo", "--from-scratch", "-o", tmp_path).stdout
    assert output == f"T1w volume: {tmp_path / 'a.nii.gz'}\npicture:    {tmp_path / 'demo.png'}\n"


@pytest.mark.slow
def test_without_weights_the_installed_command_ends_with_one_clear_line(phantoms: Path, tmp_path: Path):
    command = ["synthesize", phantoms, "-o", tmp_path / "out", "--preset", "smoke", "--model", tmp_path / "model.pt"]
    done = subprocess.run(
        [sys.executable, "-m", "trispade.cli", *map(str, command)],
        env={**os.environ, "OMP_NUM_THREADS": "1", BUNDLE_VARIABLE: str(BUNDLE)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1].startswith(
        f"trispade: {tmp_path / 'model.pt'}: expected a checkpoint, got nothing"
    )
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("*.nii.gz"))
