from __future__ import annotations

import pytest
import torch
from torch import nn

from trispade.errors import InputError
from trispade.networks import DirectUNet

CHANNELS = (4, 4, 6, 6, 8)


def small_net(class_table: tuple[int, ...] | None = None) -> DirectUNet:
    return DirectUNet(4, CHANNELS, class_table)


def lively_net(class_table: tuple[int, ...] | None = None) -> DirectUNet:
    """With weights large enough for every path to show in the output."""
    net = small_net(class_table)
    for parameter in net.parameters():
        if parameter.ndim > 1:
            nn.init.kaiming_normal_(parameter)
    return net


def labels(*size: int) -> torch.Tensor:
    return torch.randint(0, 4, (2, 1, *size), dtype=torch.uint8)


@pytest.mark.parametrize("size", [(32, 32, 32), (16, 48, 32)])
def test_sizes_that_are_multiples_of_16_work(size):
    assert small_net()(labels(*size)).shape == (2, 1, *size)


@torch.no_grad()
def test_the_background_is_exactly_minus_one_and_the_brain_within_one():
    net, label_map = lively_net(), labels(16, 16, 16)
    painted = net(label_map)
    assert (painted[label_map == 0] == -1).all()
    assert painted[label_map > 0].min() > -1
    assert painted.max() < 1
    assert painted[label_map > 0].std() > 1e-2


@torch.no_grad()
def test_labels_of_any_type_are_taken():
    net, label_map = lively_net(), labels(16, 16, 16)
    expected = net(label_map)
    for dtype in (torch.int16, torch.int64, torch.float32):
        assert torch.equal(net(label_map.to(dtype)), expected)


def test_each_class_has_a_channel_of_its_own():
    label_map = torch.arange(4).view(1, 1, 4, 1, 1)
    assert torch.equal(small_net().encode(label_map)[0, :, :, 0, 0], torch.eye(4))


@torch.no_grad()
def test_every_class_matters():
    net = lively_net()
    painted = [net(torch.full((1, 1, 16, 16, 16), index))[0, 0, 8, 8, 8].item() for index in (1, 2, 3)]
    assert min(abs(a - b) for a, b in zip(painted, [*painted[1:], painted[0]], strict=True)) > 1e-3


@torch.no_grad()
def test_a_class_without_training_data_is_painted_as_the_one_that_stands_in_for_it():
    net, label_map = lively_net((0, 1, 2, 2)), labels(16, 16, 16)
    assert torch.equal(net(label_map), net(label_map.clamp(max=2)))
    assert net.state_dict()["class_table"].tolist() == [0, 1, 2, 2]


def test_every_level_matters():
    net = lively_net()
    net(labels(32, 32, 32)).square().mean().backward()
    assert [name for name, parameter in net.named_parameters() if not parameter.grad.abs().max() > 1e-7] == []


@torch.no_grad()
def test_a_voxel_does_not_depend_on_the_rest_of_a_larger_patch():
    net = lively_net()
    volume = labels(16, 16, 160)
    whole, part = net(volume), net(volume[..., :144])
    torch.testing.assert_close(part[..., :16], whole[..., :16], atol=1e-6, rtol=1e-5)
    other = volume.clone()
    other[..., 16:32] = 3 - other[..., 16:32]
    assert (net(other)[..., :16] - whole[..., :16]).abs().max() > 1e-3


def test_the_background_teaches_nothing():
    net, label_map = lively_net(), labels(16, 16, 16)
    target = torch.where(label_map > 0, 0.3, -1.0)
    loss = nn.functional.mse_loss(net(label_map), target)
    brain = (net(label_map) - target)[label_map > 0].square().sum()
    torch.testing.assert_close(loss, brain / label_map.numel())


def test_steps_down_the_gradient_lower_the_error():
    net, label_map = lively_net(), labels(16, 16, 16)
    target = torch.tensor([-1.0, -0.8, 0.0, 0.8])[label_map.long()]
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    losses = []
    for _ in range(5):
        loss = nn.functional.mse_loss(net(label_map), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.99 * losses[0]


def test_sizes_that_do_not_fit_are_one_clear_line():
    with pytest.raises(InputError, match=r"label map: expected sizes that are multiples of 16, got 16x24x16. Pad it"):
        small_net()(labels(16, 24, 16))


def test_another_number_of_levels_is_refused():
    with pytest.raises(InputError, match=r"direct U-Net: expected a width for each of 5 levels, got 3. Correct dir"):
        DirectUNet(4, (16, 32, 64))
