from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from trispade.bundle_run import BUNDLE_VARIABLE, build_components, find_bundle, run_stage
from trispade.errors import InputError

CONFIG = """
imports:
- $import json
- $from pathlib import Path
size: 1
where: nowhere
record: $json.dumps(dict(size=@size, where=@where, bundle_root=@bundle_root))
run:
- $Path(@bundle_root + '/record.json').write_text(@record)
"""
FAILING = {
    "bad_input": "run:\n- $__import__('trispade.manifests').manifests.read_manifest('absent.json', '.')\n",
    "bug": "run:\n- $1 / 0\n",
}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    presets = tmp_path / "bundle" / "configs" / "presets"
    presets.mkdir(parents=True)
    (presets.parent / "metadata.json").write_text("{}")
    (presets.parent / "logging.conf").write_text(
        "[loggers]\nkeys=root\n[handlers]\nkeys=\n[formatters]\nkeys=\n[logger_root]\nhandlers=\n"
    )
    (presets.parent / "stage.yaml").write_text(CONFIG)
    (presets / "large.yaml").write_text("size: 2\n")
    for name, text in FAILING.items():
        (presets.parent / f"{name}.yaml").write_text(text)
    return tmp_path / "bundle"


@pytest.fixture(autouse=True)
def _keep_logging_and_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A bundle's logging.conf replaces the handlers of the root logger, which are pytest's."""
    monkeypatch.delenv(BUNDLE_VARIABLE, raising=False)
    handlers = list(logging.root.handlers)
    yield
    logging.root.handlers[:] = handlers


def record_of(bundle: Path) -> dict[str, object]:
    return json.loads((bundle / "record.json").read_text())


def test_a_bundle_is_found_by_argument_then_environment_then_checkout(bundle: Path, monkeypatch: pytest.MonkeyPatch):
    checkout = Path(__file__).parents[1] / "bundle"
    assert find_bundle() == (checkout, "the checkout")
    monkeypatch.setenv(BUNDLE_VARIABLE, str(bundle))
    assert find_bundle() == (bundle, "$TRISPADE_BUNDLE")
    assert find_bundle(checkout) == (checkout, "--bundle")


def test_an_empty_environment_variable_is_none(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(BUNDLE_VARIABLE, "")
    assert find_bundle()[1] == "the checkout"


def test_a_folder_that_is_no_bundle_is_refused_and_says_who_named_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(InputError, match=r"expected a bundle with configs/metadata.json \(from --bundle\), got none"):
        find_bundle(tmp_path)
    monkeypatch.setenv(BUNDLE_VARIABLE, str(tmp_path))
    with pytest.raises(InputError, match=r"\(from \$TRISPADE_BUNDLE\), got none\. Name its root folder"):
        find_bundle()


def test_without_a_checkout_the_remedy_names_option_and_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("trispade.bundle_run.__file__", str(tmp_path / "site-packages" / "trispade" / "bundle_run.py"))
    with pytest.raises(InputError, match=r"got no folder\. Give --bundle, or set \$TRISPADE_BUNDLE"):
        find_bundle()


def test_presets_go_over_the_config_and_overrides_over_both(bundle: Path):
    run_stage(bundle, "stage")
    assert record_of(bundle) == {"size": 1, "where": "nowhere", "bundle_root": str(bundle)}
    run_stage(bundle, "stage", "large", where=None)
    assert record_of(bundle)["size"] == 2
    assert record_of(bundle)["where"] == "nowhere"
    run_stage(bundle, "stage", "large", size=3)
    assert record_of(bundle)["size"] == 3


@pytest.mark.parametrize("name", ["plain", "$HOME", "@size", "%size", "a@b"])
def test_a_path_reaches_the_stage_as_the_path_that_was_given(bundle: Path, name: str):
    run_stage(bundle, "stage", where=Path(name))
    assert Path(str(record_of(bundle)["where"])) == Path(name)


def test_a_path_that_the_config_reader_would_change_is_refused(bundle: Path):
    with pytest.raises(InputError, match="study#1/scans: expected a path without '#'"):
        run_stage(bundle, "stage", where=Path("study#1/scans"))


def test_unknown_stages_and_presets_list_those_there_are(bundle: Path):
    with pytest.raises(InputError, match=r"configs: expected one of bad_input, bug, stage, got .absent."):
        run_stage(bundle, "absent")
    with pytest.raises(InputError, match=r"presets: expected one of large, got .small."):
        run_stage(bundle, "stage", "small")


def test_the_json_configs_of_a_packaged_bundle_are_run_too(bundle: Path):
    configs = bundle / "configs"
    for file in (configs / "stage.yaml", configs / "presets" / "large.yaml"):
        file.with_suffix(".json").write_text(json.dumps(yaml.safe_load(file.read_text())))
        file.unlink()
    run_stage(bundle, "stage", "large")
    assert record_of(bundle)["size"] == 2


def test_bad_input_comes_out_of_what_monai_wraps_it_in(bundle: Path):
    with pytest.raises(InputError, match=r"^absent\.json: expected a JSON manifest"):
        run_stage(bundle, "bad_input")


def test_a_config_that_is_not_yaml_is_one_clear_line(bundle: Path):
    (bundle / "configs" / "stage.yaml").write_text("a: b: c\n")
    with pytest.raises(InputError, match=r"stage\.yaml: expected YAML, got .*line 1, column 5\. Correct the file\."):
        run_stage(bundle, "stage")


def test_a_fault_of_the_software_keeps_its_trace(bundle: Path):
    with pytest.raises(RuntimeError, match="Failed to evaluate") as raised:
        run_stage(bundle, "bug")
    assert isinstance(raised.value.__cause__, ZeroDivisionError)


def test_a_stage_prints_nothing_of_monais_own(bundle: Path, capsys: pytest.CaptureFixture[str]):
    run_stage(bundle, "stage", "large")
    assert capsys.readouterr() == ("", "")


def test_components_are_built_as_a_run_would_and_nothing_is_run(bundle: Path):
    assert build_components(bundle, "stage", ["size", "where"], "large", where=Path("here")) == [2, "here"]
    (record,) = build_components(bundle, "stage", ["record"], size=None)
    assert json.loads(record) == {"size": 1, "where": "nowhere", "bundle_root": str(bundle)}
    assert not (bundle / "record.json").exists()


def test_a_component_is_not_built_with_a_setting_that_its_config_does_not_have(bundle: Path):
    with pytest.raises(InputError, match=r"stage.yaml: expected settings that it has, got siez, hwere. Correct"):
        build_components(bundle, "stage", ["size"], siez=1, hwere=2)


def test_bad_input_comes_out_of_what_monai_wraps_it_in_when_a_component_is_built(bundle: Path):
    with pytest.raises(InputError, match=r"absent.json: expected a JSON manifest"):
        build_components(bundle, "bad_input", ["run#0"])
