from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from torch import nn

from trispade.errors import InputError
from trispade.geometry import middle_slice, with_neighbours
from trispade.inference.fast import FastGenerator, fast_generator, labelled_box, needed_regions
from trispade.inference.fast_spade import Region, SpadeTables, find_columns, find_neighbourhoods
from trispade.networks import fold_spectral_norm
from trispade.networks.triplanar import STAGES, Spade, SpadeGenerator, encode_labels

STRIDES = [stride for _, _, stride in STAGES]


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


@pytest.fixture
def trained(enliven):
    """Build a generator like a trained one: gains, running statistics and output of all sizes."""

    def build(num_classes: int = 5, **changes: int | None) -> SpadeGenerator:
        settings = {"out_channels": 1, "ngf": 4, "hidden": 8, "max_channels": 32, "spectral": False}
        generator = enliven(SpadeGenerator(num_classes, **(settings | changes))).eval()
        for name, buffer in generator.named_buffers():
            if name.endswith("running_var"):
                nn.init.uniform_(buffer, 0.2, 2.0)
        some = torch.randint(0, num_classes, (2, generator.label_slices, 64, 64))
        painted = torch.atanh(generator(some).clamp(-0.999, 0.999))
        generator.tail.weight.mul_(0.5 / painted.std())
        generator.tail.bias.sub_(painted.mean()).mul_(0.5 / painted.std())
        return generator

    return build


def brain_like(height: int = 96, width: int = 64, batch: int = 3, num_classes: int = 5) -> torch.Tensor:
    """Blocks of labels of 1 to 8 pixels off the middle, (batch, 1, height, width), neighbours nearly alike."""
    labels = torch.zeros(batch, 1, height, width, dtype=torch.long)
    top, left = height // 8, width // 3
    blocks = torch.randint(0, num_classes, (1, 1, height // 16, width // 16)).repeat_interleave(8, 2)
    inner = blocks.repeat_interleave(8, 3).repeat(batch, 1, 1, 1)
    labels[:, :, top : top + inner.shape[2], left : left + inner.shape[3]] = inner
    speckles = torch.rand(labels.shape) < 0.02
    labels[:, :, top : top + 20][speckles[:, :, top : top + 20]] = num_classes - 1
    return labels


def assert_same(fast: torch.Tensor, plain: torch.Tensor) -> None:
    assert plain.std() > 0.05
    torch.testing.assert_close(fast, plain, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [(32, 32), (32, 96), (96, 64), (160, 32)])
@pytest.mark.parametrize("batch", [1, 3])
def test_it_paints_what_the_plain_network_paints(trained, size, batch):
    generator = trained()
    for label_map in (brain_like(*size, batch), torch.randint(0, 5, (batch, 1, *size))):
        assert_same(FastGenerator(generator, torch.float32)(label_map), generator(label_map))


@pytest.mark.parametrize("max_channels", [8, None])
def test_learnt_and_identity_shortcuts_are_the_same(trained, max_channels):
    generator = trained(max_channels=max_channels)
    learnt = [block.conv_shortcut is not None for block in generator.blocks]
    assert sum(learnt) == (1 if max_channels else 4)
    label_map = brain_like()
    assert_same(FastGenerator(generator, torch.float32)(label_map), generator(label_map))


def test_labels_at_the_border_of_the_slice_are_painted_alike(trained):
    generator = trained()
    for rows, columns in [(slice(0, 3), slice(None)), (slice(-2, None), slice(0, 5)), (slice(40, 50), slice(-1, None))]:
        label_map = torch.zeros(2, 1, 64, 96, dtype=torch.long)
        label_map[:, :, rows, columns] = torch.randint(1, 5, label_map[:, :, rows, columns].shape)
        plain = generator(label_map)
        for outside in (None, -1.0):
            fast = FastGenerator(generator, torch.float32, outside)(label_map)
            torch.testing.assert_close(fast[label_map > 0], plain[label_map > 0], atol=1e-5, rtol=0)
            assert plain[label_map > 0].std() > 1e-3


@pytest.mark.parametrize("index", [0, 4])
def test_a_map_of_one_class_is_painted_alike(trained, index):
    generator = trained()
    label_map = torch.full((2, 1, 64, 64), index)
    assert_same(FastGenerator(generator, torch.float32)(label_map), generator(label_map))


@pytest.mark.parametrize("num_classes", [138, 300])
def test_many_classes_are_painted_alike(trained, num_classes):
    generator = trained(num_classes)
    label_map = torch.randint(0, num_classes, (2, 1, 64, 32))
    label_map[:, :, 20:40] = num_classes - 1
    assert_same(FastGenerator(generator, torch.float32)(label_map), generator(label_map))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.float32, torch.bfloat16])
def test_the_type_of_the_label_map_does_not_matter(trained, dtype):
    generator = trained()
    label_map = brain_like()
    fast = FastGenerator(generator, torch.float32)
    assert torch.equal(fast(label_map.to(dtype)), fast(label_map))


def test_a_metatensor_is_painted_as_the_tensor_that_it_is(trained):
    fast, label_map = FastGenerator(trained(), torch.float32), brain_like()
    painted = fast(MetaTensor(label_map))
    assert type(painted) is torch.Tensor
    assert torch.equal(painted, fast(label_map))


def test_what_is_no_class_has_no_channel_as_in_the_plain_network(trained):
    generator = trained()
    label_map = brain_like().float()
    label_map[:, :, 10:14, 3:9] = torch.tensor([-1.0, 5.0, 1.5, 255.0]).view(4, 1)
    label_map[0, 0, 50, 40] = torch.nan
    assert_same(FastGenerator(generator, torch.float32)(label_map), generator(label_map))


def test_a_style_code_is_applied_slice_by_slice_and_none_is_the_mean_style(trained):
    generator = trained(style_dim=3)
    fast, label_map, style = FastGenerator(generator, torch.float32), brain_like(), 3 * torch.randn(3, 3)
    assert_same(fast(label_map, style), generator(label_map, style))
    assert_same(fast(label_map), generator(label_map))
    assert (fast(label_map, style) - fast(label_map)).abs().max() > 1e-2


def test_cropped_to_the_labels_every_labelled_pixel_is_as_if_the_whole_slice_were_painted(trained):
    generator = trained()
    for _ in range(10):
        top, left = (int(torch.randint(0, size - 8, ())) for size in (192, 160))
        label_map = torch.zeros(2, 1, 192, 160, dtype=torch.long)
        label_map[0, :, top : top + 40, left : left + 7] = torch.randint(1, 5, (1, min(40, 192 - top), 7))
        label_map[1, :, top + 3 : top + 5, left : left + 30] = 2
        fast, plain = FastGenerator(generator, torch.float32, -1.0)(label_map), generator(label_map)
        assert_same(fast[label_map > 0], plain[label_map > 0])
        assert (fast == -1).float().mean() > 0.3


def test_a_crop_leaves_most_of_a_large_slice_out():
    regions = needed_regions(Region(80, 112, 80, 112), STRIDES, 256, 256)
    areas = {stride: (r.bottom - r.top) * (r.right - r.left) for stride, r in regions.items()}
    assert areas[1] <= 40**2
    assert areas[2] < 26**2
    assert areas[32] == 8**2


def test_slices_without_any_label_are_background_where_only_labels_are_wanted(trained):
    generator = trained()
    empty = torch.zeros(2, 1, 32, 64, dtype=torch.uint8)
    assert (FastGenerator(generator, torch.float32, -1.0)(empty) == -1).all()
    torch.testing.assert_close(FastGenerator(generator, torch.float32)(empty), generator(empty), atol=1e-5, rtol=0)


def test_the_box_of_the_labels_holds_them_all_and_no_more():
    label_map = torch.zeros(2, 1, 32, 64, dtype=torch.int16)
    assert labelled_box(label_map) is None
    label_map[0, 0, 5, 9] = label_map[1, 0, 20, 7] = 1
    assert labelled_box(label_map) == Region(5, 21, 7, 10)


def test_bfloat16_is_no_further_off_than_autocasting_the_plain_network(trained):
    generator = trained()
    label_map = brain_like(192, 160)
    exact, fast = generator(label_map), FastGenerator(generator, torch.bfloat16)(label_map)
    with torch.autocast("cpu", torch.bfloat16):
        plain = generator(label_map).float()
    assert fast.dtype == torch.float32
    assert 0 < (fast - exact).abs().mean() < 1.2 * (plain - exact).abs().mean()
    assert (fast - exact).abs().max() < 1.5 * (plain - exact).abs().max()


def test_autocast_around_the_fast_path_does_not_change_it(trained):
    fast, label_map = FastGenerator(trained(), torch.float32), brain_like()
    with torch.autocast("cpu", torch.bfloat16):
        inside = fast(label_map)
    assert torch.equal(inside, fast(label_map))


def test_a_slice_does_not_depend_on_the_rest_of_its_batch(trained):
    fast = FastGenerator(trained(), torch.float32)
    label_map = torch.cat([brain_like(batch=1) for _ in range(3)])
    torch.testing.assert_close(fast(label_map), torch.cat([fast(one) for one in label_map.split(1)]), atol=1e-5, rtol=0)


def test_slice_sizes_that_the_plain_network_refuses_are_refused(trained):
    with pytest.raises(InputError, match=r"multiples of 32, got 48x32\. Pad it"):
        FastGenerator(trained(), torch.float32)(torch.zeros(1, 1, 48, 32))


def test_a_generator_without_a_fast_path_is_given_back_as_it_is(trained):
    generator, untrained = trained(), trained().train()
    other = nn.Identity()
    parametrised = trained(spectral=True)
    on_another_device = SpadeGenerator(5, 1, 2, 4, spectral=False).eval().to("meta")
    for plain in (other, untrained, parametrised, on_another_device):
        assert fast_generator(plain, amp=False) is plain
    for folded in (generator, fold_spectral_norm(parametrised)):
        assert isinstance(fast_generator(folded, amp=False), FastGenerator)


def test_a_generator_that_is_to_be_differentiated_keeps_its_gradients(trained):
    generator = trained()
    with torch.enable_grad():
        assert fast_generator(generator, amp=False) is generator
        assert isinstance(fast_generator(generator.requires_grad_(False), amp=False), FastGenerator)


def test_the_fast_path_uses_the_precision_that_is_asked_for(trained):
    generator = trained()
    assert fast_generator(generator, amp=False).dtype == torch.float32
    assert fast_generator(generator, amp=True).dtype == torch.bfloat16


@pytest.mark.parametrize("num_classes", [3, 200])
def test_every_position_finds_its_own_neighbourhood(num_classes):
    label_map = torch.randint(0, num_classes, (2, 1, 9, 12))
    label_map[1, :, 2:8, 3:11] = 1
    region = Region(2, 9, 0, 12)
    found = find_neighbourhoods(*find_columns(label_map, num_classes), region)
    assert len(found.members.unique(dim=0)) == len(found.members)
    assert len(found.cells.unique(dim=0)) == len(found.cells)
    beyond = len(found.cells)
    cells = F.pad(found.cells, (0, 0, 0, 1), value=-7)
    padded = F.pad(label_map[:, 0], (2, 2, 2, 2), value=num_classes + 1)
    for number, row, column in [(0, 2, 0), (0, 8, 11), (1, 4, 5), (1, 5, 6), (1, 8, 0)]:
        members = found.members[found.kind[number, row - region.top, column - region.left]]
        for tap, (down, right) in enumerate((i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)):
            y, x = row + down, column + right
            if 0 <= y < 9 and 0 <= x < 12:
                assert torch.equal(cells[members[tap]], padded[number, y + 1 : y + 4, x + 1 : x + 4].flatten())
            else:
                assert members[tap] == beyond


def test_equal_surroundings_share_one_table_row():
    found = find_neighbourhoods(*find_columns(torch.zeros(3, 1, 32, 32), 2), Region(0, 32, 0, 32))
    # Along each axis a position is in the inside, or 0 or 1 pixel from one of two borders.
    assert len(found.members) == 25
    assert (found.members[found.kind[0, 16, 16]] == found.members[found.kind[2, 4, 20], 0]).all()


def test_a_table_holds_the_affine_map_of_the_layer_that_it_stands_for(enliven):
    spade = enliven(Spade(6, 4, 8)).eval()
    label_map, x = torch.randint(0, 4, (1, 1, 8, 8)), torch.randn(1, 6, 8, 8)
    found = find_neighbourhoods(*find_columns(label_map, 4), Region(0, 8, 0, 8))
    table = SpadeTables([spade], 4, torch.float32).make(found)[0]
    scale, shift = table[found.kind].movedim(-1, 1).chunk(2, dim=1)
    expected = spade(x, encode_labels(label_map, 4).float())
    torch.testing.assert_close(x * scale + shift, expected, atol=1e-5, rtol=1e-5)


def test_layers_of_many_channels_are_worked_on_in_parts(enliven):
    spade = enliven(Spade(300, 4, 8)).eval()
    label_map, x = torch.randint(0, 4, (1, 1, 8, 8)), torch.randn(1, 300, 8, 8)
    found = find_neighbourhoods(*find_columns(label_map, 4), Region(0, 8, 0, 8))
    tables = SpadeTables([spade], 4, torch.float32)
    assert len(tables.layers[0]) == 3
    scale, shift = tables.make(found)[0][found.kind].movedim(-1, 1).chunk(2, dim=1)
    torch.testing.assert_close(x * scale + shift, spade(x, encode_labels(label_map, 4).float()), atol=1e-5, rtol=1e-5)


def test_a_batch_of_many_slices_is_worked_on_in_parts(trained, monkeypatch):
    monkeypatch.setattr("trispade.inference.fast.NUMBERED_AT_ONCE", 2 * 64 * 96)
    monkeypatch.setattr("trispade.inference.fast.PIXELS_AT_ONCE", 64)
    generator = trained(style_dim=2)
    label_map, style = torch.randint(0, 5, (5, 1, 64, 96)), torch.randn(5, 2)
    fast = FastGenerator(generator, torch.float32)
    assert_same(fast(label_map, style), generator(label_map, style))
    assert_same(fast(label_map), generator(label_map))


@pytest.mark.parametrize("label_slices", [3, 5])
@pytest.mark.parametrize("outside", [None, -1.0])
def test_neighbouring_label_slices_are_painted_alike(trained, label_slices, outside):
    generator = trained(label_slices=label_slices)
    volume = brain_like(96, 64, batch=7).movedim(0, 1)  # seven slices one above the other, (1, 7, H, W)
    stack = with_neighbours(volume[0][:, None], label_slices)
    anything = torch.randint(-1, 6, (2, label_slices, 64, 96))
    for label_map in (stack, anything):
        plain = generator(label_map)
        if outside is not None:
            plain = plain.masked_fill(middle_slice(label_map) <= 0, outside)
        painted = FastGenerator(generator, torch.float32, outside)(label_map)
        if outside is not None:
            painted = painted.masked_fill(middle_slice(label_map) <= 0, outside)
        assert_same(painted, plain)


def test_columns_are_numbered_by_what_lies_in_all_slices():
    label_map = torch.randint(-1, 4, (3, 5, 8, 9)).float()
    label_map[0, :, 0, 0] = label_map[2, :, 7, 8]
    numbers, columns = find_columns(label_map, 3)
    assert torch.equal(
        columns[numbers].movedim(-1, 1), torch.where((label_map < 0) | (label_map > 2), 3, label_map).long()
    )
    assert len(columns.unique(dim=0)) == len(columns)
    assert numbers[0, 0, 0] == numbers[2, 7, 8]


def test_another_number_of_label_slices_is_refused_as_by_the_plain_network(trained):
    with pytest.raises(InputError, match="expected 3 slices at once, got 1"):
        FastGenerator(trained(label_slices=3), torch.float32)(brain_like())
