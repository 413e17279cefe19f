"""What the cost comparison counts agrees with closed forms, with real tensors and with the trainer's own step."""

from __future__ import annotations

import copy
import importlib
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.data.utils import dense_patch_slices
from torch import nn

from trispade.engines import SpadeTrainer
from trispade.errors import InputError
from trispade.losses import DiscriminatorHingeLoss, FeatureMatchingLoss, GeneratorHingeLoss
from trispade.networks import DirectUNet, SpadeDiscriminator, SpadeGenerator
from trispade.networks.triplanar import Spade

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
NUM_CLASSES = 5
SHAPE = (32, 64, 32)
COLUMNS = {
    "name", "step", "parameters", "discriminator_parameters", "kept_bytes", "state_bytes", "step_bytes", "largest_edge",
}  # fmt: skip
WHOLE_VOLUME = {"tera_operations", "synthesis_bytes_at_least"}


@pytest.fixture(scope="module")
def cost_3d() -> Iterator[Any]:
    sys.path.insert(0, str(BENCHMARKS))
    yield importlib.import_module("cost_3d")
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def networks_3d(cost_3d: Any) -> Any:
    return importlib.import_module("networks_3d")


@pytest.fixture(scope="module")
def smoke(cost_3d: Any) -> dict[str, Any]:
    return cost_3d.read_settings("smoke") | {"patch_batch_size": 2, "direct_batch_size": 2}


@pytest.fixture(scope="module")
def candidates(cost_3d: Any, smoke: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Every network of the smoke preset, on either device."""
    real = cost_3d.candidates(smoke, NUM_CLASSES, SHAPE, "cpu")
    # Moved there, since the start of spectral norm takes long on the meta device.
    return {"cpu": real, "meta": {key: on_meta(candidate) for key, candidate in real.items()}}


def on_meta(candidate: Any) -> Any:
    judge = candidate.discriminator
    return replace(
        candidate,
        network=copy.deepcopy(candidate.network).to("meta"),
        discriminator=None if judge is None else copy.deepcopy(judge).to("meta"),
    )


def parameters_of_3d_twin(network: nn.Module) -> int:
    """Count parameters as if each k x k kernel were k x k x k."""
    return sum(
        parameter.numel() * (parameter.shape[-1] if parameter.ndim == 4 else 1) for parameter in network.parameters()
    )


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_convolution_keeps_its_input_and_a_relu_its_output_once(cost_3d: Any, device: str) -> None:
    chain = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 1, 3, padding=1)).to(device)
    image = torch.zeros(4, 2, 8, 6, device=device)
    assert cost_3d.kept_bytes(lambda: chain(image).sum(), [chain]) == 4 * (4 * 8 * 6) * (2 + 3)


@pytest.mark.parametrize(
    "key", ["plane", "plane_of_one_slice", "fusion", "spade_3d", "conditional_3d", "direct_3d", "direct_3d_patches"]
)
def test_the_meta_device_counts_what_real_tensors_keep(
    cost_3d: Any, candidates: dict[str, dict[str, Any]], key: str
) -> None:
    counted = []
    for candidate in (candidates["cpu"][key], candidates["meta"][key]):
        networks = [network for network in (candidate.network, candidate.discriminator) if network is not None]
        step = (candidate, candidate.shape, 10.0)
        counted.append(cost_3d.kept_bytes(lambda step=step: cost_3d.step_loss(*step), networks))
    assert counted[0] == counted[1] > 0


def test_a_step_of_a_plane_keeps_what_the_trainers_own_generator_step_keeps(
    cost_3d: Any, candidates: dict[str, dict[str, Any]]
) -> None:
    # The trainer changes its networks' layout.
    candidate = copy.deepcopy(candidates["cpu"]["plane"])
    networks = (candidate.network, candidate.discriminator)
    labels = torch.zeros(candidate.batch, 1, *candidate.shape, dtype=torch.uint8)
    trainer = SpadeTrainer(
        device="cpu",
        max_epochs=1,
        train_data_loader=[],
        network=networks[0],
        optimizer=torch.optim.Adam(networks[0].parameters()),
        discriminator=networks[1],
        discriminator_optimizer=torch.optim.Adam(networks[1].parameters()),
        generator_loss=GeneratorHingeLoss(),
        discriminator_loss=DiscriminatorHingeLoss(),
        feature_matching=FeatureMatchingLoss(),
        feature_matching_weight=10.0,
    )
    output: dict[str, Any] = {}

    def step() -> torch.Tensor:
        trainer._generator_step(labels, labels.float(), output)
        return output["loss"]

    expected = cost_3d.kept_bytes(step, networks)
    step_of_ours = (candidate, candidate.shape, 10.0)
    assert cost_3d.kept_bytes(lambda: cost_3d.step_loss(*step_of_ours), networks) == expected


def test_the_3d_twins_have_the_2d_nets_parameters_with_kernels_made_cubes(cost_3d: Any, networks_3d: Any) -> None:
    plane, judge = SpadeGenerator(NUM_CLASSES, 1, 4, 8, 32), SpadeDiscriminator(NUM_CLASSES, 8, 2, 4)
    twin = networks_3d.Spade3dGenerator(NUM_CLASSES, 4, 8, 32)
    judging_twin = networks_3d.Discriminator3d(NUM_CLASSES, 8, 2, 4)
    assert cost_3d.num_parameters(twin) == parameters_of_3d_twin(plane)
    assert cost_3d.num_parameters(judging_twin) == parameters_of_3d_twin(judge)


def test_the_2d_net_of_the_paper_preset_has_the_published_number_of_parameters(cost_3d: Any) -> None:
    paper = cost_3d.read_settings("paper")
    with torch.device("meta"):
        # 36 classes and 3 channels, as on Cityscapes: 93.0 million.
        plane = SpadeGenerator(36, 3, paper["ngf"], paper["hidden"], spectral=False)
    assert round(cost_3d.num_parameters(plane) / 1e6, 1) == 93.0


def test_a_3d_twin_whose_kernels_are_flat_paints_each_slice_as_the_2d_net_does(networks_3d: Any) -> None:
    torch.manual_seed(0)
    flat, plane = networks_3d.Spade3d(6, NUM_CLASSES, 8).eval(), Spade(6, NUM_CLASSES, 8).eval()
    with torch.no_grad():
        for name in ("shared", "gamma", "beta"):
            cube, square = getattr(flat, name), getattr(plane, name)
            nn.init.normal_(square.weight)
            cube.weight.zero_()[..., 1] = square.weight
            cube.bias.copy_(square.bias)
        x, one_hot = torch.randn(2, 6, 8, 8, 3), torch.rand(2, NUM_CLASSES, 8, 8, 3)
        expected = torch.stack([plane(x[..., i], one_hot[..., i]) for i in range(3)], dim=-1)
        torch.testing.assert_close(flat(x, one_hot), expected)


def test_the_conditional_net_paints_volumes_and_starts_without_attention(networks_3d: Any) -> None:
    torch.manual_seed(0)
    network = networks_3d.ConditionalGenerator3d(NUM_CLASSES, 4)
    painted = network(torch.zeros(1, 1, 64, 32, 32, dtype=torch.uint8))
    assert painted.shape == (1, 1, 64, 32, 32)
    assert painted.abs().max() <= 1
    attention, x = networks_3d.SelfAttention3d(16, spectral=False), torch.randn(1, 16, 2, 3, 4)
    assert torch.equal(attention(x), x)
    nn.init.ones_(attention.scale)
    nn.init.zeros_(attention.query.weight)
    # All voxels weigh the same: what is added is the mean of the values.
    added = attention.out(attention.value(x).mean(dim=(2, 3, 4), keepdim=True))
    torch.testing.assert_close(attention(x), x + added)


def test_synthesis_counts_two_operations_a_multiply_add_and_the_bytes_of_the_largest_layer(cost_3d: Any) -> None:
    chain = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv3d(4, 1, 1)).to("meta")
    tera, least = cost_3d.synthesis_cost(chain, torch.zeros(1, 1, 8, 6, 4, device="meta"))
    voxels = 8 * 6 * 4
    assert tera * 1e12 == pytest.approx(2 * voxels * (27 * 4 + 4))
    assert least == 4 * 2 * (voxels * 4)  # the ReLU: four channels in, four out


def test_the_largest_edge_is_the_last_multiple_of_32_that_fits(cost_3d: Any) -> None:
    for edge in (32, 64, 96, 320, 416, 1024):
        assert cost_3d.largest_edge(lambda n: n**3, edge**3) == edge
        assert cost_3d.largest_edge(lambda n: n**3, (edge + 32) ** 3 - 1) == edge
    assert cost_3d.largest_edge(lambda n: n**3, 32**3 - 1) is None


@pytest.mark.parametrize("shape", [(32, 32, 32), (192, 224, 192), (64, 32, 96)])
def test_windows_are_as_many_as_the_sliding_window_inferer_takes(cost_3d: Any, shape: tuple[int, ...]) -> None:
    assert cost_3d.num_windows(shape) == len(dense_patch_slices(shape, (32, 32, 32), (16, 16, 16)))


def test_shares_are_said_as_fractions_or_multiples(cost_3d: Any) -> None:
    assert [cost_3d.share(ratio) for ratio in (21.04, 1.25, 1.0, 0.5)] == ["1/21 of", "0.80 of", "1 times", "2 times"]


def test_all_slices_of_three_planes_and_all_windows_make_our_operations(cost_3d: Any, smoke: dict[str, Any]) -> None:
    inference = importlib.import_module("inference")
    rows = {"largest_edge": {}, "step_bytes": 0, "kept_bytes": 0, "state_bytes": 0, "discriminator_parameters": 0}
    counted = cost_3d.ours(smoke, SHAPE, {"plane": rows, "fusion": rows})["tera_operations"]
    labels = torch.zeros(SHAPE, dtype=torch.uint8)
    labels[8:24, 8:56, 8:24] = 1
    network = inference.synthesizer(smoke).eval()
    with torch.inference_mode():
        expected = inference.count_operations(network, labels, smoke)["naive"]
    assert counted == pytest.approx(expected, rel=1e-9)


def test_the_compact_presets_json_holds_every_network_and_what_follows_from_the_numbers(
    cost_3d: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "cost.json"
    monkeypatch.setattr(cost_3d, "BUDGETS_GB", (1,))
    # It turns values, of which the meta device has none, keeps nothing, and takes most of the time.
    monkeypatch.setattr("torch.nn.utils.parametrizations._SpectralNorm._power_method", lambda *_: None)
    arguments = ["--preset", "compact", "--shape", "64", "96", "64", "--json", str(file)]
    monkeypatch.setattr(sys, "argv", ["cost_3d.py", *arguments])
    cost_3d.main()
    report = json.loads(file.read_text())
    rows = report["rows"]
    assert (report["preset"], report["shape"], report["precision"]) == ("compact", [64, 96, 64], "float32")
    assert set(rows) == {
        "plane", "plane_of_one_slice", "fusion", "ours", "spade_3d", "conditional_3d", "direct_3d", "direct_3d_patches",
    }  # fmt: skip
    for key, row in rows.items():
        volume = WHOLE_VOLUME if key in {"ours", *report["ratios"]} else set()
        assert row.keys() - {"tera_operations_by_stage"} == COLUMNS | volume
        assert row["step_bytes"] == row["kept_bytes"] + row["state_bytes"]
        assert row["state_bytes"] == 16 * (row["parameters"] + row["discriminator_parameters"]) or key == "ours"
    assert rows["ours"]["parameters"] == 3 * rows["plane"]["parameters"] + rows["fusion"]["parameters"]
    assert rows["plane"]["step"] == "12 x 96x64"
    assert rows["plane_of_one_slice"]["kept_bytes"] < rows["plane"]["kept_bytes"]
    assert rows["plane_of_one_slice"]["largest_edge"]["1"] > rows["plane"]["largest_edge"]["1"] > 0
    with torch.device("meta"):
        plain = DirectUNet(report["num_classes"], cost_3d.read_settings("compact")["direct_channels"])
    assert rows["direct_3d"]["parameters"] == cost_3d.num_parameters(plain)
    ratio = rows["spade_3d"]["kept_bytes"] / rows["ours"]["kept_bytes"]
    assert report["ratios"]["spade_3d"]["kept_bytes"] == ratio
    assert f"keeps {cost_3d.share(ratio)} the like-for-like 3D net's" in report["findings"][0]
    printed = capsys.readouterr().out
    assert all(row["name"] in printed for row in rows.values())
    assert all(f"- {sentence}" in printed for sentence in report["findings"])


def test_what_holds_is_decided_by_the_numbers(cost_3d: Any) -> None:
    row = {"step": "1 x 1", "step_bytes": 1, "largest_edge": {str(budget): None for budget in cost_3d.BUDGETS_GB}}
    row |= {"tera_operations_by_stage": {"axial": 1.0, "fusion": 1.0}}
    rows = dict.fromkeys(("plane", "plane_of_one_slice", "ours", "direct_3d_patches"), row)
    rows |= dict.fromkeys(("spade_3d", "conditional_3d", "direct_3d"), row)
    columns = "kept_bytes", "kept_bytes_to_one_slice", "step_bytes", "tera_operations", "synthesis_bytes_at_least"

    def said(ratio: float) -> tuple[str, str]:
        ratios = dict.fromkeys(("spade_3d", "conditional_3d", "direct_3d"), dict.fromkeys(columns, ratio))
        sentences = cost_3d.findings(rows, ratios)
        return sentences[2], sentences[4]

    assert [s.count("does not hold") for s in said(120.0)] == [0, 1]
    assert [s.count("does not hold") for s in said(0.5)] == [2, 0]


def test_a_shape_that_is_no_multiple_of_32_is_refused(cost_3d: Any, smoke: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="--shape: expected multiples of 32, got 64x60x64"):
        cost_3d.compare(smoke, (64, 60, 64))
