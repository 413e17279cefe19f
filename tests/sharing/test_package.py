from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from monai.bundle import ConfigParser
from zips import FOLDER, ROOT, VERSION, read_zip

from trispade.errors import InputError
from trispade.sharing import package, package_bundle, verify
from trispade.sharing.package import MANIFEST_KINDS, SOURCE_KINDS
from trispade.sharing.sbom import LICENSES, bill_of_materials

CONFIGS = ROOT / "bundle" / "configs"
STAGES = sorted(file.relative_to(CONFIGS).as_posix() for file in CONFIGS.rglob("*.yaml"))


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    return shutil.copytree(bundle, tmp_path / "bundle")


def edited(copy: Path, name: str, change: Callable[[str], str]) -> Path:
    file = copy / name
    file.write_text(change(file.read_text()))
    return copy


def test_what_is_packaged_passes_the_check_and_lies_in_one_folder(packaged: Path):
    assert verify(packaged).findings == []
    assert {name.split("/")[0] for name in read_zip(packaged)} == {FOLDER}


def test_the_same_files_give_the_same_bytes_wherever_and_whenever(bundle: Path, packaged: Path, tmp_path: Path):
    for number, file in enumerate(sorted(bundle.rglob("*"), reverse=True)):
        other = tmp_path / "other" / file.relative_to(bundle)
        other.parent.mkdir(parents=True, exist_ok=True)
        if file.is_file():
            shutil.copyfile(file, other)
            other.chmod(0o755)
            os.utime(other, (1e9 + number, 1e9 + number))
    package_bundle(tmp_path / "other", tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_bytes() == packaged.read_bytes()


def test_entries_tell_nothing_but_name_and_content(packaged: Path):
    with zipfile.ZipFile(packaged) as archive:
        entries = archive.infolist()
    assert [entry.filename for entry in entries] == sorted(entry.filename for entry in entries)
    told = {(e.date_time, e.external_attr, e.create_system, e.compress_type, e.extra, e.comment) for e in entries}
    assert told == {((1980, 1, 1, 0, 0, 0), 0o100644 << 16, 3, zipfile.ZIP_STORED, b"", b"")}


def test_the_hash_beside_it_is_in_the_form_of_sha256sum(packaged: Path):
    line = packaged.with_name(f"{packaged.name}.sha256").read_bytes()
    assert line == f"{hashlib.sha256(packaged.read_bytes()).hexdigest()}  {packaged.name}\n".encode()


def test_the_whole_package_and_its_data_travel_and_nothing_that_was_compiled(packaged: Path):
    carried = {name.removeprefix(f"{FOLDER}/trispade/"): content for name, content in read_zip(packaged).items()}
    for root, prefix in ((ROOT / "pipeline" / "trispade", ""), (ROOT / "data_manifests", "data_manifests/")):
        kinds = SOURCE_KINDS if prefix == "" else MANIFEST_KINDS
        files = [file for file in root.rglob("*") if file.is_file() and file.suffix in kinds]
        assert {file.suffix for file in files} == set(kinds)
        for file in files:
            assert carried[prefix + file.relative_to(root).as_posix()] == file.read_bytes()
    assert not [name for name in carried if name.endswith((".pyc", ".yaml", ".nii.gz"))]


def test_the_digest_list_names_every_file(packaged: Path):
    files = {name.removeprefix(f"{FOLDER}/"): content for name, content in read_zip(packaged).items()}
    lines = files.pop("SHA256SUMS").decode().splitlines()
    assert lines == [f"{hashlib.sha256(files[name]).hexdigest()}  {name}" for name in sorted(files)]


@pytest.mark.parametrize("stage", STAGES)
def test_monai_reads_from_the_packaged_json_what_it_reads_from_the_yaml(packaged: Path, tmp_path: Path, stage: str):
    name = stage.replace(".yaml", ".json")
    (tmp_path / "config.json").write_bytes(read_zip(packaged)[f"{FOLDER}/configs/{name}"])
    assert ConfigParser.load_config_file(tmp_path / "config.json") == ConfigParser.load_config_file(CONFIGS / stage)


def test_licence_terms_card_and_weights_travel(bundle: Path, packaged: Path):
    files = read_zip(packaged)
    weights = ("models/model.pt", "models/fusion_realism.pt", "models/model.json")
    for name in ("LICENSE", "docs/data_license.txt", "configs/logging.conf", *weights):
        assert files[f"{FOLDER}/{name}"] == (bundle / name).read_bytes()
    card = files[f"{FOLDER}/docs/README.md"].decode()
    assert "inference.json" in card
    assert ".yaml" not in card


def test_its_readme_names_the_preset_of_the_weights_and_the_tested_versions(packaged: Path):
    readme = read_zip(packaged)[f"{FOLDER}/README.md"].decode()
    assert "--config_file \"['configs/inference.json','configs/presets/smoke.json']\" --input" in readme
    metadata = json.loads((CONFIGS / "metadata.json").read_text())
    assert f"torch=={metadata['pytorch_version']} monai=={metadata['monai_version']} " in readme


def test_the_stages_own_preset_needs_no_second_config(copy: Path, tmp_path: Path):
    edited(copy, "models/model.json", lambda text: text.replace('"smoke"', '"compact"'))
    package_bundle(copy, tmp_path / "a.zip")
    assert (
        "--config_file configs/inference.json --input" in read_zip(tmp_path / "a.zip")[f"{FOLDER}/README.md"].decode()
    )


def test_the_bill_of_materials_is_valid_and_names_every_package_with_version_and_licence(packaged: Path):
    text = read_zip(packaged)[f"{FOLDER}/sbom.cdx.json"].decode()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    bill = json.loads(text)
    parts = {part["name"]: part for part in bill["components"]}
    metadata = json.loads((CONFIGS / "metadata.json").read_text())
    needed = {**metadata["required_packages_version"], "torch": metadata["pytorch_version"]}
    assert {name: parts[name]["version"] for name in needed} == needed
    assert parts["torch"]["purl"] == f"pkg:pypi/torch@{metadata['pytorch_version']}"
    assert all(part["licenses"] for part in parts.values())
    for name in ("models/model.pt", "models/fusion_realism.pt"):
        weights = hashlib.sha256(read_zip(packaged)[f"{FOLDER}/{name}"]).hexdigest()
        assert parts[name]["hashes"] == [{"alg": "SHA-256", "content": weights}]
    assert (bill["metadata"]["component"]["version"], "timestamp" in bill["metadata"]) == (metadata["version"], False)


def test_the_number_of_a_bill_of_materials_is_that_of_its_content():
    def number(*arguments) -> str:
        return json.loads(bill_of_materials(*arguments))["serialNumber"]

    assert number("1", LICENSES, {}) == number("1", dict(reversed(LICENSES.items())), {})
    assert number("1", {}, {}) != number("2", {}, {})


def test_weights_may_be_left_out_when_that_is_said(copy: Path, tmp_path: Path):
    package_bundle(copy, tmp_path / "a.zip", without_weights=True)
    assert not [name for name in read_zip(tmp_path / "a.zip") if "/models/" in name]
    assert verify(tmp_path / "a.zip").findings == []


def dated(text: str) -> str:
    return text + "day: 2026-01-01\n"


FAULTS = {
    "no weights": (
        "models/model.pt",
        None,
        r"model\.pt: expected a file of the bundle, got none\. Train the networks, or",
    ),
    "no second fusion net": (
        "models/fusion_realism.pt",
        None,
        r"fusion_realism\.pt: expected a file of the bundle, got none\. Train the networks, or",
    ),
    "no record": (
        "models/model.json",
        None,
        r"model\.json: expected a file of the bundle, got none\. Train the networks",
    ),
    "no licence": ("LICENSE", None, r"LICENSE: expected a file of the bundle, got none\. Give the bundle its licence"),
    "no card": (
        "docs/README.md",
        None,
        r"README\.md: expected a file of the bundle, got none\. Give the bundle its model",
    ),
    "no metadata": (
        "configs/metadata.json",
        None,
        r"metadata\.json: expected a file .* Name the root folder of a bundle",
    ),
    "no JSON": (
        "configs/metadata.json",
        lambda text: "{",
        r"metadata\.json: expected JSON, a record, got 'Expecting property",
    ),
    "a torn record": (
        "models/model.json",
        lambda text: "[1]",
        r"model\.json: expected JSON, a record, got .*copy it again",
    ),
    "no version": (
        "configs/metadata.json",
        lambda text: text.replace(f'"version": "{VERSION}"', '"version": "../x"'),
        r"metadata\.json: expected a version such as 1\.0\.0, got '\.\./x'\. Correct it",
    ),
    "no YAML": (
        "configs/prepare.yaml",
        lambda text: "a: b: c",
        r"prepare\.yaml: expected a config that JSON can hold, got",
    ),
    "a date": ("configs/prepare.yaml", dated, r"prepare\.yaml: expected a config that JSON can hold, got .*date"),
    "a number as key": (
        "configs/prepare.yaml",
        lambda text: "1: 2",
        r"got keys that are no text\. Put them in quotes\.",
    ),
    "a target": (
        "configs/prepare.yaml",
        lambda text: text + "x:\n  _target_: os.system\n",
        r"holds what `trispade verify` refuses:\n  - configs/prepare\.json: target os\.system at x#_target_ is not on",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_be_packaged_is_said_and_leaves_no_file(copy: Path, tmp_path: Path, fault: str):
    name, change, expected = FAULTS[fault]
    if change is None:
        (copy / name).unlink()
    else:
        edited(copy, name, change)
    with pytest.raises(InputError, match=expected):
        package_bundle(copy, tmp_path / "out" / "a.zip")
    assert list((tmp_path / "out").glob("*")) == []


def test_a_config_that_is_there_as_json_too_is_an_error(copy: Path, tmp_path: Path):
    (copy / "configs" / "prepare.json").write_text("{}")
    with pytest.raises(InputError, match=r"prepare\.\w+: expected one config of a name, got JSON and YAML of the same"):
        package_bundle(copy, tmp_path / "a.zip")


def test_the_output_is_a_zip_by_its_name(bundle: Path, tmp_path: Path):
    with pytest.raises(InputError, match=r"a\.tar: expected a name that ends in \.zip, got a\.tar\. Change the name"):
        package_bundle(bundle, tmp_path / "a.tar")


def test_a_missing_extra_is_named(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delitem(sys.modules, "trispade.sharing.sbom")
    monkeypatch.setitem(sys.modules, "cyclonedx.model", None)
    with pytest.raises(
        InputError, match=r"trispade package: expected the extra 'sharing', got no module cyclonedx\.model"
    ):
        package_bundle(bundle, tmp_path / "a.zip")


def test_required_packages_are_named_as_the_package_index_does():
    metadata = {"monai_version": "1", "pytorch_version": "2", "required_packages_version": {"fire": "3"}}
    assert package.required_packages(metadata) == {"torch": "2", "monai": "1", "fire": "3"}


def test_the_documentation_names_the_folder_that_the_zip_unpacks_to():
    assert f"-e {FOLDER}.zip . && cd {FOLDER}" in (ROOT / "docs" / "sharing.md").read_text()
