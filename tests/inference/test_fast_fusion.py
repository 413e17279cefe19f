from __future__ import annotations

import pytest
import torch
from monai.inferers import SlidingWindowInferer
from torch import nn

from trispade.inference.fast_fusion import FastFusion, fast_fusion, needed_regions
from trispade.networks import FusionNet, fusion_input

BACKGROUND = -1.0


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


@pytest.fixture
def trained(enliven):
    def build(channels: tuple[int, ...] = (4, 6, 8), norm: str = "none", residual: bool = False) -> FusionNet:
        fusion = enliven(FusionNet(3, 1, channels, norm, residual)).eval()
        for name, buffer in fusion.named_buffers():
            if name.endswith("running_var"):
                nn.init.uniform_(buffer, 0.2, 2.0)
        for convolution in (part for part in fusion.modules() if isinstance(part, nn.Conv3d)):
            convolution.weight.mul_(2)  # from the gain of 0.7 to that which keeps the variance behind a ReLU
        fusion.exit.weight.div_(fusion(2 * torch.rand(1, 3, 32, 32, 32) - 1).std())
        return fusion

    return build


@pytest.fixture
def volume() -> torch.Tensor:
    """Three painted planes of one head in the corner of a box, (1, 3, X, Y, Z)."""
    planes = torch.full((1, 3, 64, 48, 80), BACKGROUND)
    planes[:, :, 3:30, 8:31, 4:40] = 2 * torch.rand(1, 3, 27, 23, 36) - 1
    return planes


def assert_same(fast: torch.Tensor, plain: torch.Tensor) -> None:
    assert plain.std() > 0.05
    torch.testing.assert_close(fast, plain, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("channels", [(5,), (4, 6), (4, 6, 8), (2, 3, 5, 7)])
def test_it_merges_as_the_plain_net_does(trained, norm, residual, channels):
    fusion = trained(channels, norm, residual)
    windows = 2 * torch.rand(2, 3, 16, 24, 32) - 1
    assert_same(FastFusion(fusion, torch.float32, BACKGROUND)(windows), fusion(windows))


def test_one_window_alone_is_merged_as_among_others(trained):
    fast = FastFusion(trained(), torch.float32, BACKGROUND)
    windows = 2 * torch.rand(3, 3, 32, 32, 32) - 1
    assert_same(torch.cat([fast(one) for one in windows.split(1)]), fast(windows))


def test_windows_of_background_alone_are_merged_once_and_alike(trained):
    fusion = trained()
    fast = FastFusion(fusion, torch.float32, BACKGROUND)
    merged = []
    merge = fast._merge
    fast._merge = lambda planes: (merged.append(len(planes)), merge(planes))[1]
    windows = torch.full((4, 3, 16, 16, 16), BACKGROUND)
    windows[2, 1, 5, 6, 7] = 0.5
    assert_same(fast(windows), fusion(windows))
    assert_same(fast(windows[:2]), fusion(windows[:2]))
    assert merged.count(1) + merged.count(2) == len(merged)
    merged.clear()
    fast(windows[:2])
    assert not merged


def test_moved_over_a_volume_it_gives_what_the_plain_net_gives(trained, volume):
    fusion = trained(residual=True)
    slide = SlidingWindowInferer((32, 32, 32), sw_batch_size=4, overlap=0.5, mode="gaussian")
    assert_same(slide(volume, FastFusion(fusion, torch.float32, BACKGROUND)), slide(volume, fusion))


@pytest.mark.parametrize("channels", [(5,), (4, 6), (4, 6, 8), (2, 3, 5, 7)])
@pytest.mark.parametrize("box", [((0, 3), (8, 31), (4, 32)), ((13, 14), (0, 32), (29, 32)), ((0, 32),) * 3])
def test_cropped_to_what_is_painted_every_voxel_of_it_is_as_if_the_whole_window_were_merged(trained, channels, box):
    fusion = trained(channels, residual=True)
    painted = (slice(None), slice(None), *(slice(*extent) for extent in box))
    windows = torch.full((2, 3, 32, 32, 32), BACKGROUND)
    windows[painted] = 2 * torch.rand(windows[painted].shape) - 1
    merged = FastFusion(fusion, torch.float32, BACKGROUND, crop=True)(windows)
    assert_same(merged[painted], fusion(windows)[painted])
    merged[painted] = BACKGROUND
    assert (merged == BACKGROUND).all()


def test_the_regions_of_a_box_grow_by_two_voxels_a_level_to_quarters_of_the_window():
    regions = needed_regions([(0, 9), (13, 20), (31, 32)], [[32] * 3, [16] * 3, [8] * 3])
    assert regions == [[(0, 16), (8, 24), (24, 32)], [(0, 12), (0, 16), (8, 16)], [(0, 8)] * 3]


def test_regions_of_windows_without_even_quarters_begin_and_end_at_even_numbers():
    regions = needed_regions([(7, 9), (5, 6), (0, 1)], [[20, 12, 4], [10, 6, 2]])
    assert regions == [[(4, 12), (2, 8), (0, 4)], [(0, 10), (0, 6), (0, 2)]]


def test_a_crop_is_made_in_bfloat16_by_default(trained):
    windows = torch.full((1, 3, 32, 32, 32), BACKGROUND)
    windows[:, :, 3:7, 4:9, 5:6] = 0.5
    for dtype, number in ((torch.bfloat16, 4 * 5 * 1), (torch.float32, 32**3)):
        assert (FastFusion(trained(), dtype, BACKGROUND)(windows) != BACKGROUND).sum() == number


def test_an_empty_volume_is_merged_alike(trained):
    fusion = trained()
    slide = SlidingWindowInferer((32, 32, 32), sw_batch_size=4, overlap=0.5, mode="gaussian")
    empty = torch.full((2, 3, 32, 64, 32), BACKGROUND)
    assert_same(slide(empty, FastFusion(fusion, torch.float32, BACKGROUND)), slide(empty, fusion))


def test_bfloat16_is_no_further_off_than_autocasting_the_plain_net(trained):
    fusion = trained()
    windows = 2 * torch.rand(4, 3, 32, 32, 32) - 1
    exact, fast = fusion(windows), FastFusion(fusion, torch.bfloat16, BACKGROUND)(windows)
    with torch.autocast("cpu", torch.bfloat16):
        plain = fusion(windows).float()
    assert fast.dtype == torch.float32
    assert 0 < (fast - exact).abs().mean() < 1.2 * (plain - exact).abs().mean()
    assert (fast - exact).abs().max() < 1.5 * (plain - exact).abs().max()


def test_autocast_around_the_fast_path_does_not_change_it(trained):
    fast = FastFusion(trained(), torch.float32, BACKGROUND)
    windows = 2 * torch.rand(2, 3, 16, 16, 16) - 1
    with torch.autocast("cpu", torch.bfloat16):
        inside = fast(windows)
    assert torch.equal(inside, fast(windows))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_of_any_type_are_taken(trained, dtype):
    fusion = trained().to(dtype)
    windows = 2 * torch.rand(2, 3, 16, 16, 16) - 1
    assert_same(FastFusion(fusion, torch.float32, BACKGROUND)(windows), fusion.float()(windows))


def test_a_net_of_several_channels_is_cropped_too(enliven):
    fusion = enliven(FusionNet(3, 2, (4, 6))).eval()
    windows = 2 * torch.rand(2, 3, 16, 16, 16) - 1
    assert_same(FastFusion(fusion, torch.float32, BACKGROUND, crop=True)(windows), fusion(windows))


def test_a_net_that_is_to_be_differentiated_keeps_its_gradients(trained):
    fusion = trained()
    with torch.enable_grad():
        assert fast_fusion(fusion, amp=False, outside=BACKGROUND) is fusion
        assert isinstance(fast_fusion(fusion.requires_grad_(False), amp=False, outside=BACKGROUND), FastFusion)


@pytest.mark.parametrize(("has_it", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_bfloat16_is_taken_where_the_processor_has_it(trained, monkeypatch, has_it, dtype):
    monkeypatch.setattr("trispade.inference.fast._has_bfloat16", lambda: has_it)
    assert fast_fusion(trained(), amp=True, outside=BACKGROUND).dtype == dtype
    assert fast_fusion(trained(), amp=False, outside=BACKGROUND).dtype == torch.float32


def test_a_net_without_a_fast_path_is_given_back_as_it_is(trained):
    for plain in (nn.Identity(), trained().train(), trained().to("meta")):
        assert fast_fusion(plain, amp=False, outside=BACKGROUND) is plain


@pytest.mark.parametrize("crop", [True, False])
def test_a_net_that_sees_labels_is_merged_as_the_plain_one_inside_the_brain(enliven, crop):
    fusion = enliven(FusionNet(3, 1, (4, 6, 8), residual=True, label_channels=3, num_classes=5)).eval()
    labels = torch.zeros(3, 1, 32, 32, 32)
    labels[:2, :, 4:20, 8:31, 12:32] = torch.randint(1, 5, (2, 1, 16, 23, 20)).float()
    planes = (2 * torch.rand(3, 3, 32, 32, 32) - 1).masked_fill(labels == 0, BACKGROUND)
    planes[1] = BACKGROUND  # painted as black as the background: the labels tell them apart
    windows = fusion_input(planes, labels)
    inside = labels > 0
    fast, plain = FastFusion(fusion, torch.float32, BACKGROUND, crop=crop)(windows), fusion(windows)
    assert_same(fast[inside], plain[inside])
    if not crop:
        assert_same(fast, plain)


def test_moved_over_a_volume_with_labels_it_gives_what_the_plain_net_gives(enliven, volume):
    fusion = enliven(FusionNet(3, 1, (4, 6, 8), residual=True, label_channels=3, num_classes=5)).eval()
    labels = torch.randint(1, 5, (1, 1, *volume.shape[2:])).masked_fill(volume[:, :1] == BACKGROUND, 0)
    slide = SlidingWindowInferer((32, 32, 32), sw_batch_size=4, overlap=0.5, mode="gaussian")
    seen = fusion_input(volume, labels)
    assert_same(slide(seen, FastFusion(fusion, torch.float32, BACKGROUND)), slide(seen, fusion))
