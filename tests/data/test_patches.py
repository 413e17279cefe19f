from __future__ import annotations

import pytest
import torch

from trispade.data import PatchDataset, VolumeDataset, open_painted_cases, store_painted_case
from trispade.data.painted import painted_folder
from trispade.data.sampler import is_flipped
from trispade.geometry import PLANES

HASHES = dict.fromkeys(PLANES, "g")


@pytest.fixture
def painted(make_case, tmp_path):
    case = make_case(shape=(32, 40, 36))
    planes = {plane: case.t1w() * factor for plane, factor in zip(PLANES, (1.0, 0.5, 0.25), strict=True)}
    record = {"prepared_key": case.key, "generator_people": []}
    store_painted_case(painted_folder(tmp_path / "planes", case, HASHES), planes, record)
    (painted,) = open_painted_cases([case], tmp_path / "planes")
    return painted


def test_patches_lie_on_an_overlapping_grid_and_hold_brain(painted):
    dataset = PatchDataset([painted], patch_size=16, overlap=0.5)
    corners = {corner for _, corner in dataset.items}
    label_map = painted.prepared.label_map()
    grid = [(x, y, z) for x in (0, 8, 16) for y in (0, 8, 16, 24) for z in (0, 8, 16, 20)]
    with_brain = {(x, y, z) for x, y, z in grid if label_map[x : x + 16, y : y + 16, z : z + 16].any()}
    assert corners == with_brain
    assert 0 < len(with_brain) < len(grid)


def test_every_labelled_voxel_is_in_a_patch(painted):
    dataset = PatchDataset([painted], patch_size=10, overlap=0.5)
    covered = torch.zeros(painted.prepared.label_map().shape, dtype=torch.bool)
    for _, (x, y, z) in dataset.items:
        covered[x : x + 10, y : y + 10, z : z + 10] = True
    assert covered[torch.from_numpy(painted.prepared.label_map() > 0)].all()


def test_a_patch_is_cut_from_planes_and_scan_alike(painted):
    dataset = PatchDataset([painted], patch_size=16, overlap=0.5)
    (_, (x, y, z)), item = dataset.items[3], dataset[3]
    patch = (slice(None), slice(x, x + 16), slice(y, y + 16), slice(z, z + 16))
    assert torch.equal(item["planes"], painted.planes()[patch])
    assert torch.equal(item["label_map"], torch.tensor(painted.prepared.label_map())[None][patch])
    assert torch.equal(item["t1w"], painted.prepared.t1w()[None][patch])
    assert item["planes"].shape == (3, 16, 16, 16)
    assert item["case_id"] == "a"


def test_a_flip_mirrors_the_first_spatial_axis_of_planes_and_scan(painted):
    plain, flipping = PatchDataset([painted], 16, 0.5), PatchDataset([painted], 16, 0.5, flip=True)
    visit = next(visit for visit in range(50) if is_flipped(0, 3, visit))
    assert torch.equal(flipping[3, visit]["planes"], plain[3]["planes"].flip(1))
    assert torch.equal(flipping[3, visit]["t1w"], plain[3]["t1w"].flip(1))
    assert torch.equal(flipping[3, visit]["label_map"], plain[3]["label_map"].flip(1))
    assert not torch.equal(flipping[3, visit]["t1w"], plain[3]["t1w"])
    assert all(torch.equal(plain[3, each]["t1w"], plain[3]["t1w"]) for each in range(8))


def test_whole_volumes_carry_their_planes_and_brain_mask(painted):
    item = VolumeDataset([painted])[0]
    assert torch.equal(item["planes"], painted.planes())
    assert torch.equal(item["mask"], item["label_map"] > 0)
    assert item["t1w"].shape == (1, 32, 40, 36)
    assert "planes" not in VolumeDataset([painted.prepared])[0]
