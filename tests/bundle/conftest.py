"""One small run of all stages on phantoms, which the tests of the bundle share."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from monai.bundle import ConfigWorkflow

from trispade.bundle_run import run_stage
from trispade.geometry import PLANES
from trispade.phantoms import write_phantom_dataset

ROOT = Path(__file__).parents[2]
SHORT_N4 = {"transform#transforms#3#iterations": [2]}


@dataclass(frozen=True)
class Study:
    """Phantoms, and what the stages make of them with the smoke preset.

    Attributes:
        bundle: a copy of the bundle, so that the checkout's models/ is left alone.
        dataset_dir: the BIDS tree of the phantoms.
        manifest_file: its manifest; person 05 is the one to test on.
        work_dir: cache, checkpoints and planes.
    """

    bundle: Path
    dataset_dir: Path
    manifest_file: Path
    work_dir: Path

    @property
    def model_file(self) -> Path:
        """The trained model."""
        return self.bundle / "models" / "model.pt"

    def label_map(self, person: str = "05") -> Path:
        """A phantom's label map."""
        return self.dataset_dir / f"sub-{person}" / "anat" / f"sub-{person}_dseg.nii.gz"

    def run(self, stage: str, overlay: str | None = None, **overrides: Any) -> None:
        """Run a stage with the smoke preset, and an overlay."""
        given: dict[str, Any] = {"dataset_dir": self.dataset_dir}
        if stage == "inference":
            given["progress"] = False
        else:
            given |= {"work_dir": self.work_dir, "manifest_file": self.manifest_file}
        if stage in ("train_fusion", "evaluate", "evaluate_downstream"):
            given["model_file"] = self.model_file  # where inference looks for it
        if stage == "prepare":
            given |= SHORT_N4
        with keeping_log_handlers():
            run_stage(self.bundle, stage, "smoke", overlay, **{**given, **overrides})

    def workflow(self, stage: str, kind: str | None, **overrides: Any) -> ConfigWorkflow:
        """Load a stage's config with the smoke preset as MONAI's tools do."""
        configs = self.bundle / "configs"
        values = {"dataset_dir": self.dataset_dir, "work_dir": self.work_dir, "manifest_file": self.manifest_file}
        values |= {"input": self.dataset_dir, "model_file": self.model_file}
        own = yaml.safe_load((configs / f"{stage}.yaml").read_text())
        return ConfigWorkflow(
            config_file=[str(configs / f"{stage}.yaml"), str(configs / "presets" / "smoke.yaml")],
            meta_file=str(configs / "metadata.json"),
            logging_file=False,
            workflow_type=kind,
            bundle_root=str(self.bundle),
            **{key: str(value) for key, value in {**values, **overrides}.items() if key in own},
        )


@contextmanager
def keeping_log_handlers() -> Iterator[None]:
    """The bundle's logging.conf replaces the root logger's handlers, which are pytest's."""
    handlers = list(logging.root.handlers)
    try:
        yield
    finally:
        logging.root.handlers[:] = handlers


@pytest.fixture
def log_handlers_kept() -> Iterator[None]:
    """For tests that run stages by themselves."""
    with keeping_log_handlers():
        yield


def copy_bundle(folder: Path) -> Path:
    """Copy the bundle without its weights, as a user would who trains his own."""
    ignore = shutil.ignore_patterns("model*")
    shutil.copytree(ROOT / "bundle" / "configs", folder / "bundle" / "configs")
    shutil.copytree(ROOT / "bundle" / "models", folder / "bundle" / "models", ignore=ignore)
    return folder / "bundle"


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """All stages up to the trained model, each run once."""
    folder = tmp_path_factory.mktemp("study")
    manifest_file = write_phantom_dataset(folder / "phantoms", num_people=5)
    study = Study(copy_bundle(folder), folder / "phantoms", manifest_file, folder / "work")
    study.run("prepare")
    for plane in PLANES:
        study.run("train_spade", plane=plane, max_epochs=1)
    study.run("synthesize_planes")
    study.run("train_fusion", max_epochs=1)
    return study


@pytest.fixture
def output_of(study: Study, tmp_path: Path) -> Callable[..., Path]:
    """Run inference with the study's model into a new folder, which is returned."""

    def run(source: Path, **overrides: Any) -> Path:
        study.run("inference", **{"input": source, "output_dir": tmp_path / "out", **overrides})
        return tmp_path / "out"

    return run
