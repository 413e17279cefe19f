"""What the CI of MONAI's model zoo asks of a bundle, without its network: the shipped bundle as it is, `compact`."""

from __future__ import annotations

import json
import re
import signal
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import pytest
import torch
import yaml
from metadata_schema import METADATA
from monai.bundle import ConfigParser, ConfigWorkflow, ckpt_export, verify_metadata, verify_net_in_out
from monai.utils import set_determinism

from trispade.engines import load_checkpoint
from trispade.networks import TriplanarSynthesizer, load_weights
from trispade.phantoms import make_phantom

BUNDLE = Path(__file__).parents[2] / "bundle"
CONFIGS = BUNDLE / "configs"
INFERENCE = {
    "meta_file": str(CONFIGS / "metadata.json"),
    "config_file": str(CONFIGS / "inference.yaml"),
    "bundle_root": str(BUNDLE),
}
STAGES = sorted(file.stem for file in CONFIGS.glob("*.yaml"))
PRESETS = [None, *sorted(file.stem for file in (CONFIGS / "presets").glob("*.yaml"))]
TRAIN, INFER = ("train_spade", "train_fusion", "train_direct"), ("inference", "evaluate")
OVERLAYS = {**dict.fromkeys(TRAIN, ("federated",)), "train_fusion": ("realism", "federated")}
LARGEST_MIB = 25


def metadata() -> dict[str, Any]:
    return json.loads((CONFIGS / "metadata.json").read_text())


def open_workflow(names: list[str], kind: str | None, **overrides: Any) -> ConfigWorkflow:
    """Initialise a stage's config with a preset and an overlay, as MONAI's tools do."""
    workflow = ConfigWorkflow(
        config_file=[str(CONFIGS / f"{name}.yaml") for name in names],
        meta_file=INFERENCE["meta_file"],
        logging_file=False,
        workflow_type=kind,
        bundle_root=str(BUNDLE),
        **overrides,
    )
    workflow.initialize()
    return workflow


def some_labels() -> torch.Tensor:
    labels = torch.zeros(1, 1, 32, 32, 32)
    labels[:, :, 6:26, 8:24, 9:21] = torch.randint(0, 25, (20, 16, 12), generator=torch.Generator().manual_seed(0))
    return labels


@pytest.fixture(scope="module")
def network() -> TriplanarSynthesizer:
    """The shipped ``network_def`` with the shipped weights."""
    parser = ConfigParser()
    parser.read_config(str(CONFIGS / "inference.yaml"))
    network = parser.get_parsed_content("network_def")
    load_weights(network, load_checkpoint(BUNDLE / "models" / "model.pt"), "model.pt")
    return network.eval()


@pytest.fixture(scope="module")
def painted(network: TriplanarSynthesizer) -> torch.Tensor:
    with torch.no_grad():
        return network(some_labels())


@pytest.fixture
def _as_before() -> Iterator[None]:
    """A config's ``initialize`` sets seeds, the hook for errors and the handler for SIGTERM."""
    hook, handler = sys.excepthook, signal.getsignal(signal.SIGTERM)
    yield
    sys.excepthook = hook
    signal.signal(signal.SIGTERM, handler)
    set_determinism(seed=None)


def test_the_folder_has_what_the_specification_asks_for():
    required = ("LICENSE", "configs/metadata.json", "models/model.pt", "docs/README.md", "docs/data_license.txt")
    assert [name for name in required if not (BUNDLE / name).stat().st_size] == []


def test_no_file_is_so_large_that_the_zoo_wants_a_link_to_it():
    files = [file for file in BUNDLE.rglob("*") if file.is_file()]
    assert len(files) > 15
    assert [file for file in files if file.stat().st_size > LARGEST_MIB * 2**20] == []


def test_monais_own_check_of_the_metadata_passes_against_what_its_schema_says(tmp_path, monkeypatch):
    def serve(url, filepath, **kwargs):
        assert re.search(r"/meta_schema_20240725\.json$", url)
        Path(filepath).write_text(json.dumps(METADATA))

    monkeypatch.setattr("monai.bundle.scripts.download_url", serve)
    verify_metadata(meta_file=INFERENCE["meta_file"], filepath=tmp_path / "schema.json")
    broken = {key: value for key, value in metadata().items() if key != "task"}
    (tmp_path / "metadata.json").write_text(json.dumps(broken))
    with pytest.raises(ValueError, match="'task' is a required property"):
        verify_metadata(meta_file=str(tmp_path / "metadata.json"), filepath=tmp_path / "schema.json")


def test_the_changelog_has_the_version():
    assert metadata()["version"] in metadata()["changelog"]
    assert all(isinstance(text, str) and text for text in metadata()["changelog"].values())


def test_the_shipped_network_takes_and_gives_what_the_metadata_say():
    verify_net_in_out(net_id="network_def", device="cpu", **INFERENCE)


@pytest.mark.filterwarnings("ignore:`torch.jit.(save|load)` is deprecated:DeprecationWarning")  # the zoo asks for it
def test_the_shipped_weights_become_torchscript_with_metadata_and_config_in_it_and_paint_the_same(tmp_path, painted):
    file = tmp_path / "model.ts"
    ckpt_export(net_id="network_def", filepath=file, ckpt_file=str(BUNDLE / "models" / "model.pt"), **INFERENCE)
    extra = {"metadata.json": "", "inference.json": ""}
    scripted = torch.jit.load(file, _extra_files=extra)
    assert json.loads(extra["metadata.json"])["network_data_format"] == metadata()["network_data_format"]
    assert (
        json.loads(extra["inference.json"])["network_def"]
        == yaml.safe_load((CONFIGS / "inference.yaml").read_text())["network_def"]
    )
    with torch.no_grad():
        assert torch.equal(scripted(some_labels()), painted)


def test_the_whole_network_exports_with_torch_export_for_one_shape(network, painted, monkeypatch):
    monkeypatch.setattr(network, "slices_per_step", 32)  # the loop over slices is unrolled
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about its pytrees
        program = torch.export.export(network, (some_labels(),))
    with torch.no_grad():
        torch.testing.assert_close(program.module()(some_labels()), painted, atol=1e-4, rtol=0)


@pytest.mark.usefixtures("_as_before")
@pytest.mark.parametrize("stage", STAGES)
def test_every_config_is_initialised_and_has_its_properties_with_every_preset(stage):
    kind = "train" if stage in TRAIN else "infer" if stage in INFER else None
    overlays = [[], *([f"overlays/{name}"] for name in OVERLAYS.get(stage, ()))]
    for preset in PRESETS:
        for overlay in overlays:
            names = [stage, *([f"presets/{preset}"] if preset else []), *overlay]
            workflow = open_workflow(names, kind)
            required = [each["id"] for each in workflow.properties.values() if each["required"]]
            assert [each for each in required if each not in workflow.parser] == [], names
            assert workflow.version == metadata()["version"]


@pytest.mark.usefixtures("_as_before")
def test_the_properties_of_the_shipped_inference_can_be_built(tmp_path):
    label_map = make_phantom(0, (24, 24, 24), 1.0)
    nib.save(nib.Nifti1Image(label_map.label_map, label_map.affine), tmp_path / "a_dseg.nii.gz")
    workflow = open_workflow(["inference"], "infer", input=str(tmp_path), output_dir=str(tmp_path / "out"))
    assert workflow.check_properties() == []
    assert len(workflow.dataset) == 1
