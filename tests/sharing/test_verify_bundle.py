"""Attacks on a packaged bundle: each is one clear finding and exit code 1; a good one passes."""

from __future__ import annotations

import ast
import hashlib
import json
import re
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from zips import FOLDER, ROOT, write_twice, write_zip

from trispade.sharing import verify_bundle
from trispade.sharing.verify_bundle import KNOWN_TARGETS, main

VERIFIER = Path(verify_bundle.__file__)
CONFIG = f"{FOLDER}/configs/inference.json"
"""File that most attacks on configs are made in."""


def with_config(files: dict[str, bytes], **changes: Any) -> dict[str, bytes]:
    return {**files, CONFIG: json.dumps({**json.loads(files[CONFIG]), **changes}).encode()}


@pytest.fixture(scope="module")
def items() -> list[tuple[str, str, Any]]:
    """Place, key and value of everything in the bundle's configs."""
    configs = [yaml.safe_load(file.read_text()) for file in (ROOT / "bundle" / "configs").rglob("*.yaml")]
    return [item for config in configs for item in verify_bundle._items(config)]


def test_a_good_package_passes_and_shows_what_it_holds(packaged, capsys):
    assert main([str(packaged)]) == 0
    shown = capsys.readouterr().out
    source = (ROOT / "pipeline" / "trispade" / "cli.py").read_bytes()
    assert f"  {hashlib.sha256(source).hexdigest()} {len(source):7d}  trispade/cli.py" in shown
    assert "Code that will run, Python and page templates: " in shown
    assert "  trispade.networks.TriplanarSynthesizer\n" in shown
    assert "  $@evaluator.run()\n" in shown
    assert "models/model.pt: " in shown
    assert "  torch._utils _rebuild_tensor_v2\n" in shown


def test_an_unchanged_package_that_was_written_again_passes(files, tmp_path, check):
    assert check(write_zip(tmp_path / "a.zip", files)) == []


def test_the_targets_are_those_of_the_bundles_configs_and_no_more(items):
    assert {value for _, key, value in items if key == "_target_"} == KNOWN_TARGETS


def test_every_expression_of_the_bundles_configs_has_one_of_the_forms_and_every_form_is_needed(items):
    expressions = {value for _, _, value in items if isinstance(value, str) and value.startswith("$")}
    assert {each for each in expressions if not verify_bundle.KNOWN_EXPRESSION.fullmatch(each)} == set()
    for form in verify_bundle.EXPRESSIONS:
        assert any(re.fullmatch(rf"\${form}", each, re.ASCII) for each in expressions), form
    of_attributes = [each for each in expressions if re.fullmatch(r"\$@[\w#.]+", each)]
    read = {name for each in of_attributes for name in re.findall(r"\.(\w+)", each)}
    assert read == set(verify_bundle.READ.split())


def test_the_verifier_needs_nothing_but_the_standard_library(packaged):
    tree = ast.parse(VERIFIER.read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in imported} <= sys.stdlib_module_names
    alone = [sys.executable, "-I", "-S", "-W", "error", VERIFIER]
    good = subprocess.run([*alone, packaged], capture_output=True, text=True)
    assert (good.returncode, good.stderr) == (0, "")
    bad = subprocess.run([*alone, packaged, "--sha256", "0" * 64], capture_output=True, text=True)
    assert (bad.returncode, bad.stderr) == (1, "")
    assert "REFUSED" in bad.stdout


def test_a_package_of_another_hash_is_refused(packaged, check):
    (finding,) = check(packaged, "--sha256", "ab" * 32)
    assert finding.startswith(f"{FOLDER}.zip: is not the file that was sent: --sha256 says {'ab' * 32}, it has ")


def test_the_hash_is_read_from_the_file_beside_it(packaged, tmp_path, capsys):
    copy, beside = tmp_path / packaged.name, tmp_path / f"{packaged.name}.sha256"
    copy.write_bytes(packaged.read_bytes())
    assert main([str(copy)]) == 1
    assert f"REFUSED {FOLDER}.zip: no SHA-256 to compare with: give --sha256, or put " in capsys.readouterr().out
    digest = hashlib.sha256(copy.read_bytes()).hexdigest()
    beside.write_text(f"{digest}  {copy.name}\n")
    assert main([str(copy)]) == 0
    beside.write_text(f"{digest}  other.zip\n")
    assert main([str(copy)]) == 1
    assert f"REFUSED {FOLDER}.zip.sha256: holds the hash of another file, other.zip" in capsys.readouterr().out


def test_a_tampered_byte_shows_twice(packaged, tmp_path, check):
    data = packaged.read_bytes()
    at = data.index(b"def main()")
    (tmp_path / "a.zip").write_bytes(data[:at] + b"dEf" + data[at + 3 :])
    true_hash = hashlib.sha256(data).hexdigest()
    hashed, layout = check(tmp_path / "a.zip", "--sha256", true_hash)
    assert "is not the file that was sent" in hashed
    assert "does not have the size and checksum that the directory says" in layout


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("/etc/cron.d/x", "/etc/cron.d/x: an absolute path, which would be written outside the folder"),
        ("C:/Windows/x", "C:/Windows/x: an absolute path"),
        ("../x.py", "../x.py: a path with '..', which could be written outside the folder"),
        (f"{FOLDER}/docs/../../x.md", "x.md: a path with '..'"),
        (f"{FOLDER}\\..\\x.md", "x.md: a path with '..'"),
        (f"{FOLDER}\\x.md", "x.md: a path with a backslash, which means another path on Windows"),
        (f"{FOLDER}/./x.md", "x.md: a name that is no plain path of a file"),
        (f"{FOLDER}/docs/", "docs/: a name that is no plain path of a file"),
        (f"{FOLDER}/docs/\x1b[2Jx.md", r"docs/\x1b[2Jx.md: a name that is no plain path of a file"),
        ("other/README.md", f"other, {FOLDER}: expected one folder, named trispade-<version>"),
    ],
)
def test_paths_out_of_the_folder_are_refused(files, tmp_path, check, name, expected):
    findings = check(write_zip(tmp_path / "a.zip", {**files, name: b"x"}))
    assert any(expected in finding for finding in findings)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [(stat.S_IFLNK, "a symbolic link"), (stat.S_IFIFO, "a special file"), (stat.S_IFDIR, "a special")],
)
def test_links_and_special_files_are_refused(files, tmp_path, check, kind, expected):
    attack = {**files, f"{FOLDER}/docs/link.md": b"/etc/passwd"}
    (finding,) = check(write_zip(tmp_path / "a.zip", attack, external_attr=(kind | 0o777) << 16))
    assert finding.startswith(f"{FOLDER}/docs/link.md: {expected}")


@pytest.mark.parametrize("name", [f"{FOLDER}/LICENSE", f"{FOLDER}/licENSE"])
def test_a_name_that_occurs_twice_is_refused(files, tmp_path, check, name):
    (finding,) = check(write_twice(tmp_path / "a.zip", files, name, b"other terms"))
    assert finding == f"{name}: occurs twice (capitals do not count)"


def test_a_zip_bomb_is_refused_and_not_unpacked(files, tmp_path, check):
    attack = {**files, f"{FOLDER}/docs/x.txt": bytes(10_000_000)}
    (finding,) = check(write_zip(tmp_path / "a.zip", attack, compress_type=8))
    assert finding.startswith(f"{FOLDER}/docs/x.txt: is compressed, where a bundle's files are stored as they are")
    assert int(finding.split("would swell to ")[1].split()[0]) > 500


def test_many_entries_are_refused(files, tmp_path, check):
    attack = {**files, **{f"{FOLDER}/docs/{i}.md": b"" for i in range(2001)}}
    (finding,) = check(write_zip(tmp_path / "a.zip", attack))
    assert finding.endswith("entries, more than 2000")


def test_a_huge_file_is_not_read(packaged, check, monkeypatch):
    monkeypatch.setattr(verify_bundle, "LARGEST_FILE", 1000)
    (finding,) = check(packaged)
    assert finding == f"{FOLDER}.zip: is larger than the 1000 bytes that are read"


def test_encrypted_entries_are_refused(files, tmp_path, check):
    data = bytearray(write_zip(tmp_path / "a.zip", files).read_bytes())
    for header, flags_at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.rindex(header) + flags_at] |= 1
    (tmp_path / "a.zip").write_bytes(data)
    (finding,) = check(tmp_path / "a.zip")
    assert finding.endswith(": is encrypted")


def test_what_is_no_zip_or_not_there_is_a_finding(tmp_path, check, capsys):
    (tmp_path / "a.zip").write_bytes(b"PK\x05\x06")
    (finding,) = check(tmp_path / "a.zip")
    assert finding == "a.zip: cannot be read as a zip (BadZipFile)"
    assert main([str(tmp_path / "absent.zip")]) == 1
    assert "absent.zip: cannot be read (No such file or directory)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda data: b"#!/bin/sh\n" + data, "is not laid out as one plain zip: "),
        (lambda data: data + b"more", "is not laid out as one plain zip: something follows its end record"),
        (
            lambda data: data.replace(b"/docs/README.md", b"/docs/OTHERS.md", 1),
            f"the header of {FOLDER}/docs/README.md is not what the directory says",
        ),
    ],
    ids=["program before it", "bytes behind it", "two names for one entry"],
)
def test_a_zip_that_programs_could_read_differently_is_refused(packaged, tmp_path, check, change, expected):
    (tmp_path / "a.zip").write_bytes(change(packaged.read_bytes()))
    (finding,) = check(tmp_path / "a.zip")
    assert expected in finding


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("configs/inference.yaml", b"a: 1\n", "YAML, which MONAI would read"),
        ("configs/x.YML", b"a: 1\n", "YAML, which MONAI would read"),
        ("data.zip", b"x", "a file of a kind, or in a place, that a packaged bundle does not have"),
        ("docs/data.txt", b"PK\x03\x04more", "an archive inside the archive"),
        ("docs/data.md", b"\x1f\x8bmore", "an archive inside the archive"),
        ("docs/data.txt", b"\x7fELF\x02\x01\x00", "expected text, got binary content"),
        ("sitecustomize.py", b"", "a file of a kind, or in a place"),
        ("torch/__init__.py", b"", "a file of a kind, or in a place"),
        ("trispade/__pycache__/cli.pyc", b"x", "a file of a kind, or in a place"),
        ("trispade/fast.so", b"x", "a file of a kind, or in a place"),
        ("configs/other.conf", b"x", "a file of a kind, or in a place"),
        ("models/model.ts", b"x", "a file of a kind, or in a place"),
    ],
)
def test_files_that_a_bundle_does_not_have_are_refused(files, tmp_path, check, name, content, expected):
    (finding,) = check(write_zip(tmp_path / "a.zip", {**files, f"{FOLDER}/{name}": content}))
    assert finding.startswith(f"{name}: {expected}")


def test_a_changed_an_added_and_a_removed_file_show_against_the_list_in_the_package(files, tmp_path, check):
    sums, code = f"{FOLDER}/SHA256SUMS", f"{FOLDER}/trispade/cli.py"
    attack = {**files, code: files[code] + b"import os\n", f"{FOLDER}/trispade/x.py": b"", f"{FOLDER}/LICENSE": None}
    findings = check(write_zip(tmp_path / "a.zip", attack, sums=files[sums]))
    changed = [finding.split(": ")[0] for finding in findings if ".py" in finding or "LICENSE" in finding]
    assert {"LICENSE", "trispade/cli.py", "trispade/x.py"} <= set(changed)
    assert all("was changed, added or taken away: SHA256SUMS has " in finding for finding in findings)
    assert "trispade/x.py: was changed, added or taken away: SHA256SUMS has no line" in findings


def test_a_package_without_its_list_of_digests_is_refused(files, tmp_path, check):
    findings = check(write_zip(tmp_path / "a.zip", files, sums=b""))
    assert len(findings) == len(files) - 1


TARGETS: dict[str, dict[str, Any]] = {
    "os.system": {"x": {"_target_": "os.system", "command": "id"}},
    "trispade.bundle_run.os.system": {"x": {"_target_": "trispade.bundle_run.os.system"}},
    "subprocess.run": {"network::_target_": "subprocess.run"},
    "builtins.eval": {"network#_target_": "builtins.eval"},
    "builtins.exec": {"+network:::_target_": "builtins.exec"},
    "@name": {"name": "os.system", "x": {"_target_": "@name"}},
    "$@name": {"name": "os.system", "x": {"_target_": "$@name"}},
    "Compose ": {"x": [{"deep": {"_target_": "Compose "}}]},
    "{'a': 'b'}": {"x": {"_target_": {"a": "b"}}},
}


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_that_is_not_on_the_list_is_refused(files, tmp_path, check, target):
    findings = check(write_zip(tmp_path / "a.zip", with_config(files, **TARGETS[target])))
    assert any(
        finding.startswith(f"configs/inference.json: target {target} at ") and finding.endswith(" is not on the list")
        for finding in findings
    )


def test_a_target_in_escapes_is_the_target_that_monai_reads(files, tmp_path, check):
    attack = b'{"x": {"\\u005ftarget_": "\\u006fs.system"}}'
    (finding,) = check(write_zip(tmp_path / "a.zip", {**files, CONFIG: attack}))
    assert finding == "configs/inference.json: target os.system at x#_target_ is not on the list"


@pytest.mark.parametrize(
    "expression",
    [
        "$__import__('os').system('id')",
        "$import os",
        "$import torch; import os",
        "$from trispade.bundle_run import os",
        "$(lambda: 1)()",
        "$[x for x in ()]",
        "$torch.load('model.pt')",
        "$torch.hub.load('x', 'y')",
        "$@network.forward.__globals__",
        "$@scheme.path.unlink()",
        "$@bundle_root + '/x' + str(@scheme)",
        "$'a' + '%s' % @x",
        "$@a + '\\x27'",
        "$ @evaluator.run()",
        "$@evaluator.run()\n",
        "$@evaluator.run(1)",
        "$@evaluator.run().state",
        "$@evaluator.eject()",
        "$@network.__class__",
        "$@generator.to('meta')",
        "$@train#handlers + [__import__('os')]",
        "$[@a, @b][0] + @c",
        "$[@a]",
        "$len(@a, @b)",
        "$@other.unfinished(@datalist)",
        "$torch.device('cpu')",
        "$",
    ],
)
def test_an_expression_that_is_not_on_the_list_is_refused(files, tmp_path, check, expression):
    findings = check(write_zip(tmp_path / "a.zip", with_config(files, x={"deep": [expression]})))
    shown = expression.replace("\\", "\\\\").replace("\n", "\\n")
    assert findings == [f"configs/inference.json: expression {shown} at x#deep#0 is not on the list"]


@pytest.mark.parametrize("name", ["configs/metadata.json", "models/model.json", "trispade/data_manifests/x.json"])
def test_expressions_are_looked_for_in_all_json(files, tmp_path, check, name):
    attack = {**files, f"{FOLDER}/{name}": b'{"a": "$import os"}'}
    (finding,) = check(write_zip(tmp_path / "a.zip", attack))
    assert finding == f"{name}: expression $import os at a is not on the list"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            b'{"a": {"_target_": "Compose", "_target_": "os.system"}}',
            "expected JSON in ASCII, each key once, got ValueError",
        ),
        ('{"a": "é"}'.encode(), "expected JSON in ASCII, each key once, got UnicodeDecodeError"),
        (b'{"a": ', "expected JSON in ASCII, each key once, got JSONDecodeError"),
        (b"[" * 100_000, "expected JSON in ASCII, each key once, got RecursionError"),
        (b'{"a": "%/etc/x.yaml#a"}', "macro %/etc/x.yaml#a at a would read in another file"),
        (b'{"a": {"_target_": "Compose", "_mode_": "debug"}}', "_mode_: debug at a#_mode_ is not on the list"),
        (b'{"a": {"_target_": "Compose", "_debug_": true}}', "_debug_: True at a#_debug_ is not on the list"),
    ],
)
def test_json_that_could_be_read_otherwise_is_refused(files, tmp_path, check, content, expected):
    (finding,) = check(write_zip(tmp_path / "a.zip", {**files, CONFIG: content}))
    assert finding.startswith(f"configs/inference.json: {expected}")


@pytest.mark.parametrize("line", ["args=(__import__('os').system('id'),)", "# a comment"])
def test_other_logging_settings_than_trispades_own_are_refused(files, tmp_path, check, line):
    name = f"{FOLDER}/configs/logging.conf"
    (finding,) = check(write_zip(tmp_path / "a.zip", {**files, name: files[name] + line.encode()}))
    assert finding.startswith("configs/logging.conf: other settings than trispade's own, and Python evaluates what")
