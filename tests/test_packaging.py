from __future__ import annotations

import configparser
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from trispade import __version__

DIST_INFO = f"trispade-{__version__}.dist-info"
CHECKOUT = Path(__file__).parents[1]
BUILD_INPUTS = (
    *("setup.py", "setup.cfg", "pyproject.toml", "MANIFEST.in", "LICENSE", "README.md"),
    *("data_manifests", "pipeline"),
)


def run_python(*arguments: str | Path, cwd: Path) -> None:
    done = subprocess.run([sys.executable, "-m", *map(str, arguments)], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def copy_build_inputs(folder: Path) -> Path:
    """Building leaves build/ and *.egg-info behind, which have no place in the checkout."""
    folder.mkdir()
    for path in (CHECKOUT / name for name in BUILD_INPUTS if (CHECKOUT / name).exists()):
        if path.is_dir():
            shutil.copytree(path, folder / path.name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", ".*"))
        else:
            shutil.copy(path, folder)
    return folder


def build_wheel(source: Path, output: Path) -> Path:
    run_python(
        *("pip", "wheel", source, "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", output), cwd=source
    )
    return next(output.glob("trispade-*.whl"))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_build_inputs(tmp_path_factory.mktemp("packaging") / "checkout")


@pytest.fixture(scope="module")
def wheel(source: Path) -> Path:
    return build_wheel(source, source.parent / "wheel")


def contents(wheel: Path, folder: str) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name.removeprefix(folder): archive.read(name) for name in archive.namelist() if name.startswith(folder)}


def files_below(folder: Path, pattern: str) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob(pattern)
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    }


def test_the_wheel_carries_every_data_manifest_as_it_is_in_the_checkout(wheel: Path):
    expected = files_below(CHECKOUT / "data_manifests", "*")
    assert {"malc2012.json", "label_schemes/freesurfer.tsv", "label_schemes/vocabularies/structures.tsv"} <= set(
        expected
    )
    assert contents(wheel, "trispade/data_manifests/") == expected


def test_the_wheel_carries_every_module_and_nothing_else(wheel: Path):
    carried = contents(wheel, "trispade/")
    modules = files_below(CHECKOUT / "pipeline" / "trispade", "*.py")
    templates = files_below(CHECKOUT / "pipeline" / "trispade", "report/templates/*")
    assert templates
    anatomies = {
        f"anatomies/{name}": content
        for pattern in ("*.nii.gz", "*.json", "*.md")
        for name, content in files_below(CHECKOUT / "pipeline" / "trispade" / "anatomies", pattern).items()
    }
    assert len(anatomies) == 5
    expected = {*modules, *templates, *anatomies, "py.typed"}
    assert {name for name in carried if not name.startswith("data_manifests/")} == expected
    assert all(carried[name] == content for name, content in anatomies.items())
    with zipfile.ZipFile(wheel) as archive:
        assert {name.split("/")[0] for name in archive.namelist()} == {"trispade", DIST_INFO}


def test_the_wheel_has_the_licence_and_the_command(wheel: Path):
    metadata = contents(wheel, f"{DIST_INFO}/")
    assert metadata["licenses/LICENSE"] == (CHECKOUT / "LICENSE").read_bytes()
    entry_points = configparser.ConfigParser()
    entry_points.read_string(metadata["entry_points.txt"].decode())
    assert dict(entry_points["console_scripts"]) == {"trispade": "trispade.cli:main"}


def test_a_manifest_deleted_since_the_last_build_is_not_in_the_next(source: Path, wheel: Path, tmp_path: Path):
    assert "malc2012.json" in contents(wheel, "trispade/data_manifests/")
    with_build_folder = shutil.copytree(source, tmp_path / "again")
    (with_build_folder / "data_manifests" / "malc2012.json").unlink()
    rebuilt = build_wheel(with_build_folder, tmp_path / "wheel")
    assert "malc2012.json" not in contents(rebuilt, "trispade/data_manifests/")


def test_a_wheel_built_from_the_source_distribution_is_the_same(source: Path, wheel: Path, tmp_path: Path):
    run_python("build", "--sdist", "--no-isolation", "--outdir", tmp_path, source, cwd=tmp_path)
    with tarfile.open(next(tmp_path.glob("trispade-*.tar.gz"))) as archive:
        archive.extractall(tmp_path, filter="data")
    unpacked = next(path for path in tmp_path.glob("trispade-*") if path.is_dir())
    assert contents(build_wheel(unpacked, tmp_path / "wheel"), "trispade") == contents(wheel, "trispade")
