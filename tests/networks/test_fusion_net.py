from __future__ import annotations

import pytest
import torch
from torch import nn

from trispade.errors import InputError
from trispade.networks.triplanar import FusionNet, fusion_input


def small_fusion(norm: str = "none", residual: bool = False) -> FusionNet:
    return FusionNet(3, 1, (4, 6, 8), norm=norm, residual=residual)


def test_three_levels_of_16_32_64_channels_to_start_with():
    fusion = FusionNet()
    convolutions = [part for part in fusion.modules() if isinstance(part, nn.Conv3d)]
    assert [part.out_channels for part in convolutions] == [16, 16, 32, 32, 64, 64, 32, 32, 16, 16, 1]


@pytest.mark.parametrize("size", [(32, 32, 32), (4, 12, 20)])
@pytest.mark.parametrize("norm", ["none", "batch"])
def test_sizes_that_are_multiples_of_4_work(size, norm):
    assert small_fusion(norm)(torch.randn(2, 3, *size)).shape == (2, 1, *size)


def test_every_plane_matters(enliven):
    fusion = enliven(small_fusion()).eval()
    planes = torch.randn(1, 3, 8, 8, 8)
    for plane in range(3):
        changed = planes.clone()
        changed[:, plane] += 0.5
        assert (fusion(changed) - fusion(planes)).abs().max() > 1e-3


def test_every_level_matters(enliven):
    fusion = enliven(small_fusion())
    fusion(torch.randn(1, 3, 8, 8, 8)).square().mean().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in fusion.parameters())


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_in_eval_mode_a_voxel_does_not_depend_on_the_rest_of_a_larger_patch(enliven, norm):
    fusion = enliven(small_fusion(norm)).eval()
    volume = torch.randn(1, 3, 8, 8, 64)
    whole, part = fusion(volume), fusion(volume[..., :48])
    torch.testing.assert_close(part[..., :24], whole[..., :24], atol=1e-5, rtol=1e-4)


def test_an_untrained_residual_net_is_the_mean_of_the_planes():
    planes = torch.randn(2, 3, 8, 8, 8)
    torch.testing.assert_close(small_fusion(residual=True)(planes), planes.mean(dim=1, keepdim=True))


def test_a_residual_net_learns_something_else_than_the_mean():
    fusion = small_fusion(residual=True)
    planes = torch.randn(2, 3, 8, 8, 8)
    optimizer = torch.optim.Adam(fusion.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        loss = (fusion(planes) - planes[:, :1]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_a_net_that_sees_labels_gives_another_volume_for_other_labels():
    fusion = FusionNet(3, 1, (4, 6, 8), label_channels=2, num_classes=5)
    planes = torch.rand(1, 3, 8, 8, 8)
    zeros, ones = (fusion_input(planes, torch.full((1, 1, 8, 8, 8), index)) for index in (0, 1))
    assert (fusion(zeros) - fusion(ones)).abs().max() > 1e-3


def test_a_net_that_does_not_see_labels_ignores_their_channel():
    fusion = small_fusion(residual=True)
    planes = torch.rand(1, 3, 8, 8, 8)
    labels = torch.randint(0, 5, (1, 1, 8, 8, 8))
    assert torch.equal(fusion(fusion_input(planes, labels)), fusion(planes))


def test_an_untrained_residual_net_that_sees_labels_is_the_mean_of_the_planes():
    fusion = FusionNet(3, 1, (4, 6, 8), residual=True, label_channels=2, num_classes=5)
    planes = torch.rand(1, 3, 8, 8, 8)
    seen = fusion_input(planes, torch.randint(0, 5, (1, 1, 8, 8, 8)))
    torch.testing.assert_close(fusion(seen), planes.mean(dim=1, keepdim=True))


def test_a_net_that_sees_labels_learns_what_the_planes_do_not_show():
    fusion = FusionNet(3, 1, (4, 6, 8), label_channels=2, num_classes=5)
    labels = torch.randint(0, 5, (2, 1, 8, 8, 8))
    planes, target = torch.zeros(2, 3, 8, 8, 8), labels / 5 - 0.5
    optimizer = torch.optim.Adam(fusion.parameters(), lr=2e-2)
    losses = []
    for _ in range(60):
        loss = (fusion(fusion_input(planes, labels)) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * target.var()  # without the labels it would stay at the variance


def test_the_constructor_leaves_its_arguments_as_they_are():
    channels = [4, 6, 8]
    FusionNet(3, 1, channels)
    assert channels == [4, 6, 8]


def test_an_unknown_norm_is_refused():
    with pytest.raises(InputError, match="fusion net: expected norm none or batch, got instance"):
        small_fusion("instance")
