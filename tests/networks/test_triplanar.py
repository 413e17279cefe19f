from __future__ import annotations

import pytest
import torch

from trispade.errors import InputError
from trispade.geometry import PLANES, slice_volume, stack_slices, with_neighbours
from trispade.networks import (
    FusionNet,
    SpadeGenerator,
    TriplanarSynthesizer,
    assemble,
    fold_spectral_norm,
    fusion_input,
)

GENERATOR = {"num_classes": 5, "ngf": 4, "hidden": 8, "max_channels": 16}
FUSION = {"fusion_channels": (4, 6, 8), "residual": True}


def random_labels(batch: int = 1, size: tuple[int, int, int] = (32, 64, 96)) -> torch.Tensor:
    return torch.randint(0, 5, (batch, 1, *size))


@pytest.fixture
def synthesizer(enliven) -> TriplanarSynthesizer:
    return enliven(TriplanarSynthesizer(**GENERATOR, **FUSION)).eval()


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def test_a_batch_of_label_maps_becomes_a_batch_of_t1w_volumes(synthesizer):
    label_map = random_labels(batch=2)
    t1w = synthesizer(label_map)
    assert t1w.shape == label_map.shape
    assert t1w.abs().max() <= 1
    assert t1w[label_map > 0].std() > 1e-2


def test_the_background_is_exactly_minus_one(synthesizer):
    label_map = random_labels()
    volumes = torch.cat([synthesizer(label_map), synthesizer.paint_planes(label_map)], dim=1)
    outside = (label_map == 0).expand_as(volumes)
    assert (volumes[outside] == -1).all()
    assert (volumes[~outside] > -1).all()


@pytest.mark.parametrize("plane", PLANES)
def test_each_plane_is_painted_slice_by_slice_by_its_own_generator(synthesizer, plane):
    label_map = random_labels(batch=2)
    painted = synthesizer.paint(label_map, plane)
    for case, labels in zip(painted, label_map, strict=True):
        one_by_one = [synthesizer.generators[plane](one) for one in slice_volume(labels, plane).split(1)]
        expected = stack_slices(torch.cat(one_by_one), plane).masked_fill(labels == 0, -1)
        torch.testing.assert_close(case, expected, atol=1e-5, rtol=1e-4)


def test_the_fusion_net_sees_the_planes_in_their_order(synthesizer):
    label_map = random_labels(size=(32, 32, 32))
    planes = torch.cat([synthesizer.paint(label_map, plane) for plane in PLANES], dim=1)
    torch.testing.assert_close(synthesizer.paint_planes(label_map), planes)
    fused = synthesizer.fusion(planes).clamp(-1, 1)
    torch.testing.assert_close(synthesizer(label_map)[label_map > 0], fused[label_map > 0])


def test_the_number_of_slices_a_step_does_not_change_the_result(synthesizer):
    label_map = random_labels(size=(32, 32, 64))
    before = synthesizer(label_map)
    synthesizer.slices_per_step = 5
    torch.testing.assert_close(synthesizer(label_map), before, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.float32])
def test_the_type_of_the_label_map_does_not_matter(synthesizer, dtype):
    label_map = random_labels(size=(32, 32, 32))
    assert torch.equal(synthesizer(label_map.to(dtype)), synthesizer(label_map))


def test_a_class_without_training_data_is_painted_as_the_one_that_stands_in_for_it(synthesizer):
    table = [0, 1, 2, 1, 0]
    redirected = TriplanarSynthesizer(**GENERATOR, **FUSION, class_table=table).eval()
    state = {name: value for name, value in synthesizer.state_dict().items() if name != "class_table"}
    redirected.load_state_dict({**state, "class_table": redirected.class_table})
    label_map = random_labels(size=(32, 32, 32))
    assert torch.equal(redirected(label_map), synthesizer(torch.tensor(table)[label_map]))
    assert table == [0, 1, 2, 1, 0]


def test_the_class_table_travels_in_the_state_dict(synthesizer):
    other = TriplanarSynthesizer(**GENERATOR, **FUSION, class_table=[0, 1, 1, 1, 1])
    synthesizer.load_state_dict(other.state_dict())
    assert synthesizer.class_table.tolist() == [0, 1, 1, 1, 1]


def test_one_style_is_shared_by_all_slices_of_a_volume(enliven):
    synthesizer = enliven(TriplanarSynthesizer(**GENERATOR, **FUSION, style_dim=3)).eval()
    label_map = random_labels(size=(32, 32, 32)).expand(2, -1, -1, -1, -1)
    styles = torch.randn(2, 3)
    together = synthesizer(label_map, styles)
    alone = torch.cat([synthesizer(label_map[:1], style[None]) for style in styles])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
    assert (together[0] - together[1]).abs().max() > 1e-3


def test_a_size_that_is_no_multiple_of_32_is_refused(synthesizer):
    with pytest.raises(InputError, match=r"multiples of 32, got 32x40\. Pad it"):
        synthesizer(random_labels(size=(32, 40, 32)))


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.usefixtures("_without_itk")
def test_the_whole_can_be_scripted(synthesizer):
    label_map = random_labels(size=(32, 32, 64))
    scripted = torch.jit.script(synthesizer)
    torch.testing.assert_close(scripted(label_map.float()), synthesizer(label_map), atol=1e-5, rtol=1e-4)


def test_a_fusion_net_that_sees_labels_sees_those_that_the_generators_see(enliven):
    table = [0, 1, 2, 3, 2]
    synthesizer = enliven(
        TriplanarSynthesizer(**GENERATOR, **FUSION, fusion_label_channels=2, class_table=table)
    ).eval()
    label_map = random_labels()
    redirected = torch.where(label_map == 4, 2, label_map)
    assert torch.equal(synthesizer(label_map), synthesizer(redirected))
    planes = synthesizer.paint_planes(label_map)
    expected = synthesizer.finish(synthesizer.fusion(fusion_input(planes, redirected)), label_map)
    assert torch.equal(synthesizer(label_map), expected)
    other = fusion_input(planes, redirected.clamp(max=1))
    assert (synthesizer.fusion(other) - synthesizer.fusion(fusion_input(planes, redirected))).abs().max() > 1e-3


@pytest.mark.usefixtures("_without_itk")
def test_a_whole_whose_fusion_net_sees_labels_can_be_scripted(enliven):
    synthesizer = enliven(TriplanarSynthesizer(**GENERATOR, **FUSION, fusion_label_channels=2)).eval()
    label_map = random_labels(size=(32, 32, 32))
    scripted = torch.jit.script(synthesizer)
    torch.testing.assert_close(scripted(label_map.float()), synthesizer(label_map), atol=1e-5, rtol=1e-4)


@pytest.fixture
def trained(enliven) -> dict[str, SpadeGenerator]:
    return {plane: enliven(SpadeGenerator(out_channels=1, **GENERATOR)).eval() for plane in PLANES}


def states(generators: dict[str, SpadeGenerator]) -> dict[str, dict[str, torch.Tensor]]:
    return {plane: generator.state_dict() for plane, generator in generators.items()}


def small_fusion_state(enliven) -> dict[str, torch.Tensor]:
    return enliven(FusionNet(3, 1, (4, 6, 8))).state_dict()


def test_assembly_folds_the_spectral_norm_and_keeps_what_each_generator_paints(enliven, trained):
    synthesizer = assemble(states(trained), small_fusion_state(enliven), range(5), **GENERATOR, **FUSION)
    labels = random_labels(size=(32, 32, 64))[:, :, 0]
    for plane, generator in trained.items():
        torch.testing.assert_close(synthesizer.generators[plane](labels), generator(labels), atol=1e-5, rtol=1e-4)
    assert set(synthesizer.state_dict()) == set(TriplanarSynthesizer(**GENERATOR, **FUSION).state_dict())


def test_assembly_takes_folded_generators_too(enliven, trained):
    fusion = small_fusion_state(enliven)
    from_spectral = assemble(states(trained), fusion, range(5), **GENERATOR, **FUSION)
    folded = {plane: fold_spectral_norm(generator) for plane, generator in trained.items()}
    from_folded = assemble(states(folded), fusion, range(5), **GENERATOR, **FUSION)
    label_map = random_labels(size=(32, 32, 32))
    torch.testing.assert_close(from_folded(label_map), from_spectral(label_map))


def test_assembly_names_a_missing_plane(enliven, trained):
    del trained["coronal"]
    with pytest.raises(InputError, match="expected a generator for each plane, got none for coronal"):
        assemble(states(trained), small_fusion_state(enliven), range(5), **GENERATOR, **FUSION)


def test_assembly_names_weights_of_another_preset(enliven, trained):
    with pytest.raises(InputError, match=r"generator of the axial plane: expected blocks.* Use the preset"):
        assemble(states(trained), small_fusion_state(enliven), range(5), **GENERATOR | {"hidden": 16}, **FUSION)
    with pytest.raises(InputError, match=r"fusion net: expected .* of shape .* Use the preset"):
        assemble(states(trained), FusionNet().state_dict(), range(5), **GENERATOR, **FUSION)


@pytest.mark.parametrize("plane", PLANES)
def test_generators_that_see_neighbours_get_those_of_their_own_direction(enliven, plane):
    synthesizer = enliven(TriplanarSynthesizer(**GENERATOR, **FUSION, label_slices=3)).eval()
    label_map = random_labels(batch=2)
    painted = synthesizer.paint(label_map, plane)
    for case, labels in zip(painted, label_map, strict=True):
        slices = with_neighbours(slice_volume(labels, plane), 3)
        expected = stack_slices(torch.cat([synthesizer.generators[plane](one) for one in slices.split(1)]), plane)
        torch.testing.assert_close(case, expected.masked_fill(labels == 0, -1), atol=1e-5, rtol=1e-4)


@pytest.mark.usefixtures("_without_itk")
def test_a_whole_whose_generators_see_neighbours_can_be_scripted(enliven):
    synthesizer = enliven(TriplanarSynthesizer(**GENERATOR, **FUSION, label_slices=3)).eval()
    label_map = random_labels(size=(32, 32, 32))
    scripted = torch.jit.script(synthesizer)
    torch.testing.assert_close(scripted(label_map.float()), synthesizer(label_map), atol=1e-5, rtol=1e-4)
