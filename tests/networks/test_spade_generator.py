from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrize import is_parametrized
from torch.utils.flop_counter import FlopCounterMode

from trispade.errors import InputError
from trispade.networks import fold_spectral_norm
from trispade.networks.triplanar import (
    Spade,
    SpadeGenerator,
    SpadeResBlock,
    encode_labels,
)

NUM_CLASSES = 5
REACH = 223  # pixels from a border that its zero padding touches, summed over the layers of all scales


def random_labels(height: int = 64, width: int = 96, batch: int = 2) -> torch.Tensor:
    return torch.randint(0, NUM_CLASSES, (batch, 1, height, width))


def small_generator(**changes: int | None) -> SpadeGenerator:
    settings = {"num_classes": NUM_CLASSES, "out_channels": 1, "ngf": 4, "hidden": 8, "max_channels": 32}
    return SpadeGenerator(**(settings | changes))


@pytest.fixture(scope="module")
def published() -> SpadeGenerator:
    with torch.device("meta"):
        return SpadeGenerator(num_classes=32, out_channels=3, ngf=64, hidden=128).eval()


def test_published_widths_have_92_9_million_parameters(published):
    assert sum(parameter.numel() for parameter in published.parameters()) / 1e6 == pytest.approx(92.9, abs=0.05)


def test_published_widths_take_181_gmac_for_a_slice_of_256x320(published):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        published(torch.zeros(1, 1, 256, 320, device="meta"))
    assert counter.get_total_flops() / 2e9 == pytest.approx(181, abs=1)


def test_published_blocks_have_the_widths_of_the_paper(published):
    widths = [(block.conv_0.in_channels, block.conv_1.out_channels) for block in published.blocks]
    assert widths == [(1024, 1024)] * 3 + [(1024, 512), (512, 256), (256, 128), (128, 64)]


def test_only_blocks_that_change_width_learn_their_shortcut(published):
    learnt = [block.conv_shortcut is not None for block in published.blocks]
    assert learnt == [False] * 3 + [True] * 4
    assert published.blocks[3].conv_shortcut.kernel_size == (1, 1)


def test_max_channels_caps_every_width():
    widths = {
        size for part in small_generator().modules() if isinstance(part, nn.Conv2d) for size in part.weight.shape[:2]
    }
    assert max(widths) == 32


def test_gamma_and_beta_are_plain_convolutions(enliven):
    spade = enliven(Spade(6, NUM_CLASSES, 8)).eval()
    x, one_hot = torch.randn(2, 6, 8, 8), torch.rand(2, NUM_CLASSES, 8, 8)
    anatomy = F.conv2d(one_hot, spade.shared.weight, spade.shared.bias, padding=1).clamp(min=0)
    gamma = F.conv2d(anatomy, spade.gamma.weight, spade.gamma.bias, padding=1)
    beta = F.conv2d(anatomy, spade.beta.weight, spade.beta.bias, padding=1)
    normalised = (x - spade.norm.running_mean[:, None, None]) / (spade.norm.running_var[:, None, None] + 1e-5).sqrt()
    torch.testing.assert_close(spade(x, one_hot), normalised * (1 + gamma) + beta)
    assert {name for name, _ in spade.named_children()} == {"norm", "shared", "gamma", "beta"}
    assert not list(spade.norm.parameters())


def test_spade_normalises_by_the_batch_in_train_mode():
    spade = Spade(6, NUM_CLASSES, 8)
    nn.init.zeros_(spade.gamma.weight)
    nn.init.zeros_(spade.beta.weight)
    y = spade(5 + 3 * torch.randn(4, 6, 8, 8), torch.zeros(4, NUM_CLASSES, 8, 8))
    torch.testing.assert_close(y.mean(dim=(0, 2, 3)), torch.zeros(6), atol=1e-5, rtol=0)
    torch.testing.assert_close(y.var(dim=(0, 2, 3), unbiased=False), torch.ones(6), atol=1e-4, rtol=0)


def test_block_applies_each_convolution_behind_spade_and_leaky_relu(enliven):
    block = enliven(SpadeResBlock(6, 4, NUM_CLASSES, 8)).eval()
    x, one_hot = torch.randn(2, 6, 8, 8), torch.rand(2, NUM_CLASSES, 8, 8)
    y = block.conv_0(F.leaky_relu(block.spade_0(x, one_hot), 0.2))
    y = block.conv_1(F.leaky_relu(block.spade_1(y, one_hot), 0.2))
    shortcut = block.conv_shortcut(F.leaky_relu(block.spade_shortcut(x, one_hot), 0.2))
    torch.testing.assert_close(block(x, one_hot), shortcut + y)


def test_spectral_norm_stands_on_the_convolutions_of_the_blocks_and_nowhere_else():
    normalised = {name for name, part in small_generator().named_modules() if is_parametrized(part)}
    everywhere = {f"blocks.{index}.conv_{name}" for index in range(7) for name in "01"}
    # The cap of 32 leaves widths of 32, 32, 32, 32, 16, 8, 4: the fourth block does not change its width either.
    assert normalised == everywhere | {f"blocks.{index}.conv_shortcut" for index in (4, 5, 6)}


def test_spectrally_normalised_weights_have_a_largest_singular_value_of_one():
    generator = small_generator().train()
    for _ in range(30):
        generator(random_labels())
    weight = generator.eval().blocks[4].conv_0.weight
    assert torch.linalg.matrix_norm(weight.flatten(1), 2).item() == pytest.approx(1, abs=0.05)


def test_weights_start_as_xavier_normal_of_gain_0_02():
    head = SpadeGenerator(NUM_CLASSES, 1, 32, 8).head
    expected = 0.02 * (2 / (9 * (NUM_CLASSES + 512))) ** 0.5
    assert head.weight.std().item() == pytest.approx(expected, rel=0.05)
    assert head.bias.abs().max() == 0


@pytest.mark.parametrize("stride", [1, 2, 8, 32])
def test_labels_are_downsampled_to_the_nearest_neighbour(stride):
    label_map = random_labels()
    one_hot = F.one_hot(label_map[:, 0], NUM_CLASSES).movedim(-1, 1).float()
    expected = F.interpolate(one_hot, scale_factor=1 / stride, mode="nearest")
    torch.testing.assert_close(encode_labels(label_map, NUM_CLASSES, stride).float(), expected)


@pytest.mark.parametrize(("row", "column"), [(0, 0), (17, 42), (16, 43), (17, 43)])
def test_changing_one_label_pixel_at_full_resolution_changes_the_output(enliven, row, column):
    generator = enliven(small_generator()).eval()
    before = random_labels(batch=1)
    after = before.clone()
    after[..., row, column] = (before[..., row, column] + 1) % NUM_CLASSES
    changed = (generator(after) - generator(before)).abs()
    assert changed[..., max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2].max() > 1e-3


def test_every_class_matters(enliven):
    generator = enliven(small_generator()).eval()
    uniform = torch.arange(NUM_CLASSES).view(-1, 1, 1, 1).expand(-1, 1, 32, 32)
    painted = generator(uniform).flatten(1)
    distance = torch.cdist(painted, painted) + torch.eye(NUM_CLASSES)
    assert distance.min() > 1e-2


@pytest.mark.parametrize("size", [(32, 32), (32, 96), (96, 64), (160, 32)])
@pytest.mark.parametrize("training", [True, False])
def test_any_slice_size_that_is_a_multiple_of_32_works(size, training):
    generator = small_generator().train(training)
    image = generator(random_labels(*size, batch=1))
    image.sum().backward()
    assert image.shape == (1, 1, *size)
    assert image.abs().max() <= 1
    assert all(torch.isfinite(parameter.grad).all() for parameter in generator.parameters())


@pytest.mark.parametrize("size", [(48, 32), (32, 100), (1, 1)])
def test_other_slice_sizes_are_refused(size):
    with pytest.raises(InputError, match=f"multiples of 32, got {size[0]}x{size[1]}. Pad it"):
        small_generator()(random_labels(*size))


def test_the_output_far_from_an_added_margin_of_background_does_not_change(enliven):
    generator = enliven(small_generator()).eval()
    label_map = random_labels(32, 320, batch=1)
    with_margin = F.pad(label_map, (64, 0))
    alone, embedded = generator(label_map), generator(with_margin)[..., 64:]
    torch.testing.assert_close(alone[..., REACH:], embedded[..., REACH:], atol=1e-5, rtol=1e-5)
    assert (alone - embedded)[..., :REACH].abs().max() > 1e-4


def test_in_train_mode_a_margin_does_change_the_whole_output(enliven):
    generator = enliven(small_generator()).train()
    label_map = random_labels(32, 320, batch=1)
    alone, embedded = generator(label_map), generator(F.pad(label_map, (64, 0)))[..., 64:]
    assert (alone - embedded)[..., REACH:].abs().max() > 1e-3


def test_a_slice_does_not_depend_on_the_rest_of_its_batch_in_eval_mode(enliven):
    generator = enliven(small_generator()).eval()
    label_map = random_labels(batch=3)
    one_by_one = torch.cat([generator(one) for one in label_map.split(1)])
    torch.testing.assert_close(generator(label_map), one_by_one, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.float32, torch.bfloat16])
def test_the_type_of_the_label_map_does_not_matter(enliven, dtype):
    generator = enliven(small_generator()).eval()
    label_map = random_labels()
    assert torch.equal(generator(label_map.to(dtype)), generator(label_map))


def test_bfloat16_autocast_paints_about_the_same(enliven):
    generator = enliven(small_generator()).eval()
    label_map = random_labels()
    with torch.autocast("cpu", torch.bfloat16):
        rough = generator(label_map)
    assert (rough.float() - generator(label_map)).abs().mean() < 0.02


def test_training_under_autocast_leaves_the_spectral_norm_in_single_precision():
    generator = small_generator().train()
    with torch.autocast("cpu", torch.bfloat16):
        generator(random_labels()).float().mean().backward()
    vectors = [buffer for name, buffer in generator.named_buffers() if name.endswith(("_u", "_v"))]
    assert {vector.dtype for vector in vectors} == {torch.float32}
    assert all(torch.isfinite(vector).all() for vector in vectors)


def test_folding_the_spectral_norm_keeps_the_output_and_names_plain_weights(enliven):
    generator = enliven(small_generator()).eval()
    label_map = random_labels()
    before = generator(label_map)
    folded = fold_spectral_norm(generator)
    torch.testing.assert_close(folded(label_map), before)
    assert set(folded.state_dict()) == set(small_generator(spectral=False).state_dict())


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.usefixtures("_without_itk")
def test_a_folded_generator_can_be_scripted(enliven):
    generator = fold_spectral_norm(enliven(small_generator()))
    label_map = random_labels()
    torch.testing.assert_close(torch.jit.script(generator)(label_map), generator(label_map))


def test_no_style_is_the_style_of_zeros(enliven):
    generator = enliven(small_generator(style_dim=3)).eval()
    label_map = random_labels()
    torch.testing.assert_close(generator(label_map), generator(label_map, torch.zeros(2, 3)))


def test_each_element_of_the_style_changes_the_output(enliven):
    generator = enliven(small_generator(style_dim=3)).eval()
    label_map = random_labels(batch=1).expand(4, -1, -1, -1)
    painted = generator(label_map, torch.cat([torch.zeros(1, 3), torch.eye(3)]))
    assert ((painted[1:] - painted[:1]).flatten(1).abs().max(dim=1).values > 1e-3).all()


def test_several_label_slices_are_encoded_one_after_the_other():
    label_map = torch.randint(0, NUM_CLASSES, (2, 3, 64, 96))
    together = encode_labels(label_map, NUM_CLASSES, 4)
    assert torch.equal(together, torch.cat([encode_labels(one, NUM_CLASSES, 4) for one in label_map.split(1, 1)], 1))
    assert together.is_contiguous(memory_format=torch.channels_last)


def test_each_of_the_label_slices_that_a_generator_sees_changes_what_it_paints(enliven):
    generator = enliven(small_generator(label_slices=3)).eval()
    label_map = torch.randint(0, NUM_CLASSES, (1, 3, 64, 64))
    painted = generator(label_map)
    assert painted.shape == (1, 1, 64, 64)
    for position in range(3):
        other = label_map.clone()
        other[:, position] = other[:, position].flip(-1)
        assert (generator(other) - painted).abs().max() > 1e-3


def test_another_number_of_label_slices_than_trained_with_is_refused():
    with pytest.raises(InputError, match=r"expected 3 slices at once, got 1\. Set label_slices"):
        small_generator(label_slices=3)(random_labels())
    with pytest.raises(InputError, match="label_slices: expected an odd number"):
        small_generator(label_slices=2)
