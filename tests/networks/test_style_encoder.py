from __future__ import annotations

import pytest
import torch
from torch import nn

from trispade.networks.style_encoder import StyleEncoder, draw_style


@pytest.fixture
def encoder(enliven) -> StyleEncoder:
    return enliven(StyleEncoder(in_channels=1, ndf=2, style_dim=3)).eval()


def test_six_convolutions_of_stride_2_stand_before_two_linear_layers():
    with torch.device("meta"):
        encoder = StyleEncoder(in_channels=3, ndf=64, style_dim=256)
    convolutions = [part for part in encoder.modules() if isinstance(part, nn.Conv2d)]
    assert [part.out_channels for part in convolutions] == [64, 128, 256, 512, 512, 512]
    assert {(part.kernel_size, part.stride) for part in convolutions} == {((3, 3), (2, 2))}
    assert encoder.mean.weight.shape == encoder.log_variance.weight.shape == (256, 8192)


@pytest.mark.parametrize("size", [(32, 32), (96, 128)])
def test_slices_of_any_size_are_encoded(encoder, size):
    mean, log_variance = encoder(torch.rand(2, 1, *size))
    assert mean.shape == log_variance.shape == (2, 3)


def test_different_images_have_different_codes(encoder):
    first, second = encoder(torch.rand(2, 1, 32, 32))[0]
    assert (first - second).abs().max() > 1e-3


def test_a_volume_has_one_code_whatever_the_order_of_its_slices(encoder):
    slices = torch.rand(5, 1, 32, 64)
    code = encoder.encode_volume(slices)
    assert code.shape == (1, 3)
    torch.testing.assert_close(encoder.encode_volume(slices.flip(0)), code, atol=1e-5, rtol=1e-4)


def test_drawn_styles_have_the_given_mean_and_variance():
    styles = draw_style(torch.full((20000, 1), 2.0), torch.full((20000, 1), 9.0).log())
    assert styles.mean().item() == pytest.approx(2, abs=0.1)
    assert styles.std().item() == pytest.approx(3, abs=0.1)


def test_drawing_passes_gradients_to_mean_and_variance():
    mean, log_variance = torch.zeros(4, 3, requires_grad=True), torch.zeros(4, 3, requires_grad=True)
    draw_style(mean, log_variance).sum().backward()
    assert (mean.grad == 1).all()
    assert (log_variance.grad != 0).any()
