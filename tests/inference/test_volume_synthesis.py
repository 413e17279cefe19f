from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.inferers import SlidingWindowInferer

from trispade.data.deformation import deform_label_map
from trispade.inference import TriplanarInferer
from trispade.inference.volume_synthesis import VolumeSynthesis
from trispade.networks import TriplanarSynthesizer


@pytest.fixture
def network(enliven):
    return enliven(TriplanarSynthesizer(4, ngf=2, hidden=4, max_channels=8, fusion_channels=[2, 3, 4])).eval()


@pytest.fixture
def inferer():
    return TriplanarInferer(16, SlidingWindowInferer((32, 32, 32), overlap=0.5, mode="gaussian"))


@pytest.fixture
def synthesis(tmp_path, network, inferer):
    def build(**changes) -> VolumeSynthesis:
        options = {
            "network": network,
            "inferer": inferer,
            "model_file": tmp_path / "model.pt",
            "output_dir": tmp_path / "synthetic",
            "num_deformed": 1,
            "deformation_sd_mm": 1.0,
            "deformation_knots_mm": 8.0,
            "spacing_mm": 1.0,
            "device": "cpu",
            "seed": 0,
        }
        return VolumeSynthesis(**{**options, **changes})

    return build


def times(folder):
    return {file: file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file()}


@torch.no_grad()
def test_a_label_map_is_painted_as_it_is_and_deformed(make_case, synthesis, network, inferer):
    case = make_case()
    plain, deformed = synthesis().paint([case])
    assert np.array_equal(plain.label_map(), case.label_map())
    assert not np.array_equal(deformed.label_map(), case.label_map())
    for each in (plain, deformed):
        label_map = torch.from_numpy(each.label_map().astype(np.int64))
        expected = inferer(label_map[None, None], network)[0, 0]
        torch.testing.assert_close(each.t1w(), expected, atol=1e-4, rtol=0)
        assert (each.t1w()[label_map == 0] == -1).all()
        assert set(each.record["classes"]) == set(np.unique(each.label_map()))
        assert (each.case_id, each.person_id, each.split) == (case.case_id, case.person_id, case.split)
    assert len({case.key, plain.key, deformed.key}) == 3
    assert plain.record["deformation"] is None
    assert deformed.record["deformation"] == {"sd_mm": 1.0, "knots_mm": 8.0, "seed": 0, "copy": 1}


def test_two_people_and_two_copies_are_deformed_differently(make_case, synthesis):
    one, other = make_case("a"), make_case("b")  # of one label map
    painted = synthesis(num_deformed=2).paint([one, other])
    maps = [case.label_map() for case in painted[2:]]
    assert len(maps) == 4
    assert not any(np.array_equal(maps[i], maps[j]) for i in range(4) for j in range(i))


def test_the_deformation_is_that_of_deform_label_map(make_case, synthesis):
    (_, deformed) = synthesis().paint([make_case("a")])
    seed = [0, 1, 0xE8B7BE43]  # the last is the CRC-32 of "a"
    expected = deform_label_map(np.array(make_case("other").label_map()), 1.0, 8.0, 1.0, seed)
    assert np.array_equal(deformed.label_map(), expected)


def test_what_is_painted_is_not_painted_again(make_case, synthesis, tmp_path):
    cases = [make_case("a"), make_case("b")]
    synthesis().paint(cases[:1])
    before = times(tmp_path / "synthetic")
    painted = synthesis().paint(cases)
    assert len(painted) == 4
    after = times(tmp_path / "synthetic")
    assert {file: after[file] for file in before} == before
    assert len(after) == 2 * len(before)


def test_another_model_or_another_state_of_the_case_is_painted_anew_in_place_of_the_old(
    make_case, synthesis, network, enliven, tmp_path
):
    case = make_case()
    (before, _) = synthesis().paint([case])
    enliven(network)
    (after, _) = synthesis().paint([case])
    assert before.key != after.key
    assert not before.folder.exists()
    assert not torch.equal(after.t1w(), torch.full_like(after.t1w(), -1))
    assert len(list((tmp_path / "synthetic").iterdir())) == 2
    assert len(list((tmp_path / "synthetic" / "copy_0").iterdir())) == 1


def test_another_deformation_leaves_the_plain_copy_alone(make_case, synthesis):
    case = make_case()
    plain, deformed = synthesis().paint([case])
    plain_again, stronger = synthesis(deformation_sd_mm=2.0).paint([case])
    assert plain_again.key == plain.key
    assert stronger.key != deformed.key
