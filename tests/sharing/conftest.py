"""A bundle with weights, its package, and packages that an attacker has made of it."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from zips import FOLDER, ROOT, Files, read_zip

from trispade.engines import hash_tensors, save_checkpoint
from trispade.inference.model_files import save_model, stored_state
from trispade.labels import load_vocabulary
from trispade.networks import TriplanarSynthesizer
from trispade.sharing import package_bundle
from trispade.sharing.verify_bundle import main


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the bundle, with weights of the smoke preset, two fusion nets, as they are before training."""
    folder = tmp_path_factory.mktemp("sharing") / "bundle"
    shutil.copytree(ROOT / "bundle", folder, ignore=shutil.ignore_patterns("model.*", "*.pt"))
    preset = yaml.safe_load((folder / "configs" / "presets" / "smoke.yaml").read_text())
    vocabulary = load_vocabulary("structures")
    torch.manual_seed(0)
    widths = {
        key: preset[key]
        for key in (
            *("ngf", "hidden", "max_channels"),
            *("fusion_channels", "fusion_norm", "residual", "fusion_label_channels"),
        )
    }
    model = TriplanarSynthesizer(vocabulary.num_classes, **widths).eval()
    state, realism = stored_state(model, "float16"), stored_state(model.fusion, "float16")
    record = {
        "vocabulary": vocabulary.to_dict(),
        "fusion_architecture": {"residual": preset["residual"]},
        "spacing_mm": preset["spacing_mm"],
        "closing_mm": 5.0,
        "training": {"fusion": {"preset": "smoke"}},
        "fusions": {"realism": {"training": {}, "sha256": hash_tensors(realism)}},
        "sha256": hash_tensors(state),
    }
    save_model(state, record, folder / "models" / "model.pt", "float16")
    save_checkpoint(realism, folder / "models" / "fusion_realism.pt")
    return folder


@pytest.fixture(scope="session")
def packaged(bundle: Path) -> Path:
    """The bundle's package, with its hash beside it."""
    package_bundle(bundle, bundle.parent / f"{FOLDER}.zip")
    return bundle.parent / f"{FOLDER}.zip"


@pytest.fixture
def files(packaged: Path) -> Files:
    """Contents of the package by their full names, to be changed; of its source, to save time, one file."""
    source = f"{FOLDER}/trispade/"
    contents = read_zip(packaged).items()
    return {name: content for name, content in contents if not name.startswith(source) or name == f"{source}cli.py"}


@pytest.fixture
def check(capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    """Run the verifier on a zip, with its true hash unless another is given; gives the findings, or [] and exit 0."""

    def run(path: Path, *arguments: str) -> list[str]:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        exit_code = main([str(path), *(arguments or ("--sha256", digest))])
        lines = capsys.readouterr().out.splitlines()
        findings = [line.removeprefix("REFUSED ") for line in lines if line.startswith("REFUSED ")]
        assert exit_code == (1 if findings else 0)
        assert lines[-1].startswith(f"{len(findings)} findings" if findings else "nothing that should not be there")
        return findings

    return run
