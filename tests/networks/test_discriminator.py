from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from trispade.networks.discriminator import PatchDiscriminator, SpadeDiscriminator

NUM_CLASSES = 5


def small_discriminator() -> SpadeDiscriminator:
    return SpadeDiscriminator(NUM_CLASSES, ndf=4, num_scales=2, num_layers=4)


def random_batch(height: int = 64, width: int = 96, batch: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randint(0, NUM_CLASSES, (batch, 1, height, width)), torch.rand(batch, 1, height, width) * 2 - 1


def test_33_channels_in_have_5_6_million_parameters():
    with torch.device("meta"):
        discriminator = SpadeDiscriminator(num_classes=32, ndf=64, num_scales=2, num_layers=4)
    assert discriminator.scales[0].layers[0][0].in_channels == 33
    assert sum(parameter.numel() for parameter in discriminator.parameters()) / 1e6 == pytest.approx(5.6, abs=0.05)


def test_convolutions_are_4x4_and_64_128_256_512_1_wide():
    with torch.device("meta"):
        scale = PatchDiscriminator(33, ndf=64, num_layers=4)
    convolutions = [part for part in scale.modules() if isinstance(part, nn.Conv2d)]
    assert [part.out_channels for part in convolutions] == [64, 128, 256, 512, 1]
    assert {part.kernel_size for part in convolutions} == {(4, 4)}
    assert [part.stride[0] for part in convolutions] == [2, 2, 2, 1, 1]


def test_spectral_norm_stands_on_every_convolution():
    convolutions = [part for part in small_discriminator().modules() if isinstance(part, nn.Conv2d)]
    assert len(convolutions) == 10
    assert all(is_parametrized(part, "weight") for part in convolutions)


def test_parameter_free_instance_norm_stands_between_the_first_and_the_last_layer():
    for scale in small_discriminator().scales:
        norms = [[p for p in layer.modules() if isinstance(p, nn.InstanceNorm2d)] for layer in scale.layers]
        assert [len(found) for found in norms] == [0, 1, 1, 1, 0]
        assert not any(list(norm.parameters()) for found in norms for norm in found)


def test_each_scale_returns_four_features_and_the_logits():
    features = small_discriminator()(*random_batch())
    assert [[tuple(f.shape[1:]) for f in scale] for scale in features] == [
        [(4, 33, 49), (8, 17, 25), (16, 9, 13), (32, 10, 14), (1, 11, 15)],
        [(4, 17, 25), (8, 9, 13), (16, 5, 7), (32, 6, 8), (1, 7, 9)],
    ]


def test_several_images_of_each_label_map_are_judged_as_if_shown_one_after_the_other():
    discriminator = small_discriminator().eval()
    label_map, fake = random_batch()
    real = torch.rand_like(fake)
    together = discriminator(label_map, torch.cat([fake, real]))
    alone = [discriminator(label_map, image) for image in (fake, real)]
    for i, scale in enumerate(together):
        for j, features in enumerate(scale):
            torch.testing.assert_close(features, torch.cat([each[i][j] for each in alone]), atol=1e-5, rtol=1e-4)


def test_the_second_scale_sees_the_average_pooled_input():
    discriminator = small_discriminator().eval()
    label_map, image = random_batch()
    one_hot = F.one_hot(label_map[:, 0], NUM_CLASSES).movedim(-1, 1).float()
    halved = F.avg_pool2d(torch.cat([one_hot, image], 1), 3, 2, padding=1, count_include_pad=False)
    torch.testing.assert_close(discriminator(label_map, image)[1][-1], discriminator.scales[1](halved)[-1])


def test_the_smallest_slice_works_in_train_mode():
    features = small_discriminator().train()(*random_batch(32, 32, batch=1))
    assert all(torch.isfinite(feature).all() for scale in features for feature in scale)


def test_fake_and_real_in_one_batch_do_not_see_each_other():
    discriminator = small_discriminator().eval()
    label_map, image = random_batch(batch=4)
    together = discriminator(label_map, image)
    alone = discriminator(label_map[2:], image[2:])
    for scale_together, scale_alone in zip(together, alone, strict=True):
        for feature_together, feature_alone in zip(scale_together, scale_alone, strict=True):
            torch.testing.assert_close(feature_together[2:], feature_alone, atol=1e-5, rtol=1e-4)


def test_logits_depend_on_the_image_and_on_every_class(enliven):
    discriminator = enliven(small_discriminator()).eval()
    label_map, image = random_batch(batch=1)

    def judge(labels: torch.Tensor, slices: torch.Tensor) -> torch.Tensor:
        return torch.cat([scale[-1].flatten() for scale in discriminator(labels, slices)])

    reference = judge(label_map, image)
    assert (judge(label_map, -image) - reference).abs().max() > 1e-3
    for index in range(NUM_CLASSES):
        without = label_map.masked_fill(label_map == index, NUM_CLASSES)
        assert (judge(without, image) - reference).abs().max() > 1e-3


def test_judging_in_eval_mode_changes_no_buffer():
    discriminator = small_discriminator().eval()
    before = {name: value.clone() for name, value in discriminator.state_dict().items()}
    discriminator(*random_batch())
    assert all(torch.equal(value, before[name]) for name, value in discriminator.state_dict().items())
