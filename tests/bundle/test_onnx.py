"""The shipped networks as ONNX, run by another program than torch: a generator and the fusion nets, any size."""

from __future__ import annotations

import logging
from pathlib import Path

import onnxruntime
import pytest
import torch
from monai.bundle import ConfigParser
from torch import nn

from trispade.networks import TriplanarSynthesizer, fusion_input

BUNDLE = Path(__file__).parents[2] / "bundle"
pytestmark = pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.. is deprecated:FutureWarning")


@pytest.fixture(scope="module")
def shipped() -> TriplanarSynthesizer:
    parser = ConfigParser()
    parser.read_config(str(BUNDLE / "configs" / "inference.yaml"))
    parser.update({"bundle_root": str(BUNDLE), "device": "$torch.device('cpu')"})
    return parser.get_parsed_content("network")


def exported(
    network: nn.Module, example: torch.Tensor, axes: dict[int, str], folder: Path
) -> onnxruntime.InferenceSession:
    """Export a network whose input has axes of any size, and open it in ONNX Runtime."""
    logging.disable(logging.WARNING)  # the exporter tells of each of torchvision's operators that it does not find
    try:
        shapes = (dict.fromkeys(axes, torch.export.Dim.DYNAMIC),)
        torch.onnx.export(
            network, (example,), str(folder / "a.onnx"), dynamo=True, dynamic_shapes=shapes, verbose=False
        )
    finally:
        logging.disable(logging.NOTSET)
    return onnxruntime.InferenceSession(folder / "a.onnx", providers=["CPUExecutionProvider"])


def run(session: onnxruntime.InferenceSession, given: torch.Tensor) -> torch.Tensor:
    (result,) = session.run(None, {session.get_inputs()[0].name: given.numpy()})
    return torch.from_numpy(result)


@torch.no_grad()
def test_a_shipped_generator_as_onnx_paints_any_number_of_slices_of_any_size(shipped, tmp_path):
    generator = shipped.generators["coronal"]
    session = exported(
        generator, torch.randint(0, 25, (2, 1, 64, 96)), {0: "slices", 2: "height", 3: "width"}, tmp_path
    )
    for shape in ((2, 1, 64, 96), (3, 1, 96, 64)):
        slices = torch.randint(0, 25, shape)
        torch.testing.assert_close(run(session, slices), generator(slices), atol=1e-4, rtol=1e-3)


@torch.no_grad()
def test_the_shipped_fusion_net_as_onnx_fuses_patches_of_any_size(shipped, tmp_path):
    def some(*shape: int) -> torch.Tensor:
        return fusion_input(
            torch.rand(shape[0], 3, *shape[1:]) * 2 - 1, torch.randint(0, 25, (shape[0], 1, *shape[1:]))
        )

    session = exported(shipped.fusion, some(2, 32, 32, 32), {0: "patches", 2: "x", 3: "y", 4: "z"}, tmp_path)
    for shape in ((2, 32, 32, 32), (1, 48, 32, 64)):
        given = some(*shape)
        torch.testing.assert_close(run(session, given), shipped.fusion(given), atol=1e-4, rtol=1e-3)
