from __future__ import annotations

import functools

import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer
from torch import nn

from trispade.errors import InputError
from trispade.geometry import PLANES, slice_axis
from trispade.inference import PlaneInferer, TriplanarInferer
from trispade.networks import TriplanarSynthesizer
from trispade.networks.style_encoder import style_from_seed

SHAPE = (32, 64, 96)


class Painted(nn.Module):
    """Stands in for a generator: the same intensity everywhere."""

    def __init__(self, intensity: float) -> None:
        super().__init__()
        self.intensity = intensity

    def forward(self, slices: torch.Tensor) -> torch.Tensor:
        return torch.full(slices.shape, self.intensity)


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


@pytest.fixture
def network(enliven) -> TriplanarSynthesizer:
    return enliven(
        TriplanarSynthesizer(4, ngf=2, hidden=4, max_channels=8, fusion_channels=(2, 3, 4), class_table=(0, 1, 2, 1))
    ).eval()


@pytest.fixture
def label_map() -> torch.Tensor:
    """A box of labels off the middle, so that most slices at the borders are empty; (2, 1, X, Y, Z) uint8."""
    labels = torch.zeros((2, 1, *SHAPE), dtype=torch.uint8)
    labels[0, 0, 5:20, 10:40, 20:75] = torch.randint(0, 4, (15, 30, 55), dtype=torch.uint8)
    labels[1, 0, 8:30, 30:60, 5:90] = torch.randint(0, 4, (22, 30, 85), dtype=torch.uint8)
    return labels


def inferer(batch_size: int = 8, roi_size: tuple[int, ...] = (32, 32, 32), **options) -> TriplanarInferer:
    fusion = SlidingWindowInferer(roi_size, sw_batch_size=4, overlap=0.5, mode="gaussian")
    return TriplanarInferer(batch_size, fusion, **options)


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_the_number_of_slices_at_a_time_does_not_change_the_result(network, label_map, batch_size):
    expected = inferer(return_planes=True)(label_map, network)
    painted = inferer(batch_size, return_planes=True)(label_map, network)
    torch.testing.assert_close(painted, expected, atol=1e-5, rtol=1e-4)
    assert expected[:, :3][(label_map > 0).expand(-1, 3, -1, -1, -1)].std() > 1e-2


def test_the_planes_are_those_that_the_network_itself_paints(network, label_map):
    planes = inferer(return_planes=True)(label_map, network)[:, :3]
    torch.testing.assert_close(planes, network.paint_planes(label_map), atol=1e-5, rtol=1e-4)


def test_a_window_as_large_as_the_volume_gives_the_networks_own_result(network, label_map):
    fused = inferer(roi_size=SHAPE)(label_map, network)
    torch.testing.assert_close(fused, network(label_map), atol=1e-5, rtol=1e-4)


def test_a_volume_does_not_depend_on_the_others_of_its_batch(network, label_map):
    together = inferer()(label_map, network)
    alone = torch.cat([inferer()(one, network) for one in label_map.split(1)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


def test_outside_the_labels_every_volume_is_exactly_minus_one_and_inside_none_is_beyond_one(network, label_map):
    volumes = inferer(return_planes=True)(label_map, network)
    outside = (label_map == 0).expand_as(volumes)
    assert (volumes[outside] == -1).all()
    assert volumes.abs().max() <= 1
    assert volumes[~outside].min() > -1


def test_the_fused_volume_comes_after_the_planes(network, label_map):
    volumes = inferer(return_planes=True)(label_map, network)
    assert volumes.shape == (2, 4, *SHAPE)
    torch.testing.assert_close(inferer()(label_map, network), volumes[:, 3:])


def test_an_empty_label_map_is_background_everywhere(network):
    volumes = inferer(return_planes=True)(torch.zeros(1, 1, 32, 32, 32), network)
    assert (volumes == -1).all()


def test_a_metatensor_of_floats_is_taken_as_it_is(network, label_map):
    expected = inferer()(label_map, network)
    assert torch.equal(torch.as_tensor(inferer()(MetaTensor(label_map.float()), network)), expected)


@pytest.mark.parametrize("plane", PLANES)
def test_a_generator_gets_labelled_slices_of_its_own_plane_and_no_others(label_map, plane):
    seen = []

    def record(slices):
        seen.append(slices)
        return torch.zeros(slices.shape)

    counted = []
    painted = PlaneInferer(plane, batch_size=4, on_progress=counted.append)(label_map, record)

    axis = slice_axis(plane)
    volume = label_map[:, 0].movedim(axis + 1, 1).flatten(0, 1)
    torch.testing.assert_close(torch.cat(seen)[:, 0], volume[(volume > 0).flatten(1).any(dim=1)])
    assert max(len(batch) for batch in seen) == 4
    assert sum(counted) == 2 * SHAPE[axis]
    assert torch.equal(painted, torch.where(label_map > 0, 0.0, -1.0))


def test_each_plane_is_painted_by_its_own_generator(network, label_map):
    for plane in PLANES[1:]:
        network.generators[plane] = Painted(0.25)
    planes = inferer(return_planes=True)(label_map, network)
    brain = network.known_labels(label_map) > 0
    assert planes[:, :1][brain].std() > 1e-2
    assert (planes[:, 1:3][brain.expand(-1, 2, -1, -1, -1)] == 0.25).all()


def test_bfloat16_changes_the_result_by_little(network, label_map):
    exact, rounded = inferer()(label_map, network), inferer(amp=True)(label_map, network)
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).abs().mean() < 0.02


@pytest.fixture
def styled(enliven) -> TriplanarSynthesizer:
    sizes = {"ngf": 2, "hidden": 4, "max_channels": 8, "fusion_channels": (2, 3, 4), "style_dim": 3}
    return enliven(TriplanarSynthesizer(4, **sizes)).eval()


def test_a_style_seed_gives_all_slices_and_planes_of_every_volume_one_code(styled, label_map):
    volumes = inferer(style_seed=7, roi_size=SHAPE, return_planes=True)(label_map, styled)
    code = style_from_seed(3, 7)
    expected = styled.paint_planes(label_map, code.expand(2, -1))
    torch.testing.assert_close(volumes[:, :3], expected, atol=1e-5, rtol=1e-4)
    assert torch.equal(inferer(style_seed=7, roi_size=SHAPE, return_planes=True)(label_map, styled), volumes)
    other = inferer(style_seed=8, roi_size=SHAPE, return_planes=True)(label_map, styled)
    assert ((other - volumes).abs().amax(dim=(0, 2, 3, 4)) > 1e-3).all()


def test_without_a_seed_the_style_is_the_mean_one(styled, label_map):
    volumes = inferer(return_planes=True)(label_map, styled)
    expected = styled.paint_planes(label_map, torch.zeros(2, 3))
    torch.testing.assert_close(volumes[:, :3], expected, atol=1e-5, rtol=1e-4)


def test_a_style_seed_for_a_model_without_style_is_an_input_error(network, label_map):
    with pytest.raises(InputError, match=r"style_seed: expected a model that was trained with style, got one without"):
        inferer(style_seed=0)(label_map, network)


class Cramped(nn.Module):
    """Stands in for a network on a device that has room for batches of one size."""

    def __init__(self, network: nn.Module, room: int) -> None:
        super().__init__()
        self.network, self.room, self.sizes = network, room, []

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(batch))
        if len(batch) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return self.network(batch)


def test_slices_that_find_no_room_are_painted_in_smaller_batches_which_is_said(network, label_map, caplog):
    expected = PlaneInferer("axial", 8)(label_map, network.generators["axial"])
    cramped = Cramped(network.generators["axial"], room=3)
    inferer = PlaneInferer("axial", 8)
    torch.testing.assert_close(inferer(label_map, cramped), expected, atol=1e-5, rtol=1e-4)
    assert inferer.batch_size == 2
    assert cramped.sizes[:4] == [8, 4, 2, 2]
    assert [record.message for record in caplog.records] == [
        "out of memory: slice_batch_size is 4 from here on, no longer 8",
        "out of memory: slice_batch_size is 2 from here on, no longer 4",
    ]


def test_a_device_without_room_for_one_slice_is_one_clear_line(network, label_map):
    with pytest.raises(
        InputError, match=r"slice_batch_size: expected a device with room for a batch of 1, got CUDA out"
    ):
        PlaneInferer("axial", 5)(label_map, Cramped(network.generators["axial"], room=0))


def test_a_whole_volume_finds_its_batches_and_keeps_them_for_the_next(network, label_map, caplog):
    expected = inferer()(label_map, network)
    network.generators["coronal"] = Cramped(network.generators["coronal"], room=4)
    network.fusion = Cramped(network.fusion, room=1)
    paint = inferer()
    for _ in range(2):
        torch.testing.assert_close(paint(label_map, network), expected, atol=1e-5, rtol=1e-4)
    assert (paint.slice_batch_size, paint.fusion.sw_batch_size) == (4, 1)
    assert [record.message[:33] for record in caplog.records] == [
        "out of memory: slice_batch_size i",
        "out of memory: sw_batch_size is 2",
        "out of memory: sw_batch_size is 1",
    ]


@pytest.mark.parametrize("amp", [False, True])
def test_generators_that_see_neighbours_paint_as_the_network_itself_does(enliven, label_map, amp):
    network = enliven(TriplanarSynthesizer(4, ngf=2, hidden=4, max_channels=8, label_slices=3)).eval()
    with torch.no_grad():
        expected = network.paint(label_map, "coronal")
    painted = PlaneInferer("coronal", 5, amp=amp)(label_map, network.generators["coronal"])
    torch.testing.assert_close(
        painted.masked_fill(label_map == 0, -1.0), expected, atol=0.05 if amp else 1e-5, rtol=1e-4
    )


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.long)])
def test_compiled_networks_without_a_fast_path_paint_the_same(network, label_map, monkeypatch, backend):
    monkeypatch.setattr("trispade.inference.inferer.fast_generator", lambda generator, *_: generator)
    monkeypatch.setattr("trispade.inference.inferer.fast_fusion", lambda fusion, *_: fusion)
    monkeypatch.setattr("torch.compile", functools.partial(torch.compile, backend=backend))
    label_map = label_map[:1]
    expected = inferer(1000, return_planes=True)(label_map, network)
    compiled = inferer(1000, return_planes=True, compile=True)
    parts = [*network.generators.values(), network.fusion]
    for _ in range(2):
        torch.testing.assert_close(compiled(label_map, network), expected, atol=1e-5, rtol=1e-4)
        calls = [part._compiled_call_impl for part in parts]
        assert all(calls)
    compiled(label_map, network)
    assert calls == [part._compiled_call_impl for part in parts]


def test_networks_that_take_the_fast_path_are_not_compiled(network, label_map):
    expected = inferer()(label_map, network)
    assert torch.equal(inferer(compile=True)(label_map, network), expected)
    assert not any(part._compiled_call_impl for part in (*network.generators.values(), network.fusion))
