from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from trispade.errors import InputError
from trispade.losses.perceptual import PerceptualLoss, Vgg19Features


@pytest.fixture(scope="module")
def weights_path(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("vgg19") / "vgg19.pth"
    extra = {"features.30.weight": torch.zeros(2), "classifier.0.bias": torch.zeros(3)}
    torch.save(Vgg19Features().state_dict() | extra, path)
    return path


@pytest.fixture(scope="module")
def loss(weights_path) -> PerceptualLoss:
    return PerceptualLoss(weights_path)


def random_slices() -> torch.Tensor:
    return torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_the_five_features_are_the_first_relu_of_each_stage():
    with torch.device("meta"):
        network = Vgg19Features()
    assert network.taps == [1, 6, 11, 20, 29]
    assert [name for name in network.state_dict() if name.endswith("weight")] == [
        f"features.{index}.weight" for index in (0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28)
    ]
    shapes = [tuple(feature.shape) for feature in network(torch.zeros(1, 3, 32, 48, device="meta"))]
    assert shapes == [(1, 64, 32, 48), (1, 128, 16, 24), (1, 256, 8, 12), (1, 512, 4, 6), (1, 512, 2, 3)]


def test_equal_slices_cost_nothing(loss):
    assert loss(random_slices(), random_slices()).item() == 0


def test_it_is_the_weighted_l1_distance_of_the_features_of_imagenet_scaled_slices(loss):
    fake, real = -random_slices(), random_slices()
    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
    pairs = zip(*(loss.network((x.repeat(1, 3, 1, 1) / 2 + 0.5 - mean) / std) for x in (fake, real)), strict=True)
    expected = sum(w * F.l1_loss(f, r) for w, (f, r) in zip((1 / 32, 1 / 16, 1 / 8, 1 / 4, 1), pairs, strict=True))
    torch.testing.assert_close(loss(fake, real), expected)


def test_gradients_reach_the_fake_slices_and_nothing_else(loss):
    fake, real = (-random_slices()).requires_grad_(), random_slices().requires_grad_()
    loss(fake, real).backward()
    assert fake.grad.abs().max() > 0
    assert real.grad is None
    assert all(parameter.grad is None for parameter in loss.parameters())


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(
        InputError, match=r"none.pth: expected a file with VGG19 weights, got no such file. Give the path"
    ):
        PerceptualLoss(tmp_path / "none.pth")


def test_an_unreadable_file_is_named(tmp_path):
    path = tmp_path / "torn.pth"
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(InputError, match=r"torn.pth: expected a file with VGG19 weights, got an unreadable file"):
        PerceptualLoss(path)


@pytest.mark.parametrize("content", [{"features.0.weight": torch.zeros(64, 3, 5, 5)}, [1, 2], {}])
def test_a_file_with_other_weights_is_named(tmp_path, content):
    path = tmp_path / "other.pth"
    torch.save(content, path)
    with pytest.raises(
        InputError, match=r"other.pth: expected a state dict of VGG19, got no fitting features.0.weight"
    ):
        PerceptualLoss(path)
