from __future__ import annotations

import zlib

import pytest
import torch

from trispade.data import open_painted_cases
from trispade.errors import InputError
from trispade.geometry import PLANES
from trispade.inference import PlaneSynthesis
from trispade.networks import StyleEncoder
from trispade.networks.style_encoder import style_from_seed

ARCHITECTURE = {"ngf": 2, "hidden": 4, "max_channels": 8}
SETTINGS = {"spacing_mm": 1.0, "box": [32, 32, 32], "closing_mm": 5.0}


@pytest.fixture
def synthesis(tmp_path, vocabulary):
    def build(*cases, **changes) -> PlaneSynthesis:
        options = {
            "checkpoints_dir": tmp_path,
            "checkpoint_name": "last.pt",
            "planes_dir": tmp_path / "planes",
            "vocabulary": vocabulary,
            "architecture": ARCHITECTURE,
            "settings": SETTINGS,
            "device": "cpu",
            "batch_size": 16,
            "amp": False,
        }
        return PlaneSynthesis(cases, **{**options, **changes})

    return build


@torch.no_grad()
def test_each_plane_of_a_case_is_painted_by_its_generator(make_case, write_generator, synthesis, tmp_path):
    generators = {plane: write_generator(plane) for plane in PLANES}
    case = make_case()

    assert synthesis(case).run() == f"1 cases in {tmp_path / 'planes'}, 1 of them painted now"

    (painted,) = open_painted_cases([case], tmp_path / "planes")
    known = torch.tensor([0, 1, 2, 2])[torch.from_numpy(case.label_map().astype("int64"))]
    for plane, volume, axis in zip(PLANES, painted.planes(), (2, 1, 0), strict=True):
        one_by_one = [generators[plane](labels[None, None])[0, 0] for labels in known.unbind(axis)]
        expected = torch.stack(one_by_one, axis).masked_fill(known == 0, -1)
        torch.testing.assert_close(volume, expected, atol=1e-4, rtol=1e-3)
    assert painted.record["generator_people"] == ["p1", "p2"]


@torch.no_grad()
def test_a_case_has_one_style_in_all_planes_which_depends_on_its_name_alone(
    make_case, write_generator, synthesis, tmp_path
):
    encoder = StyleEncoder(1, 1, 3)
    generators = {plane: write_generator(plane, style_dim=3, encoder=encoder) for plane in PLANES}
    cases = make_case("a"), make_case("b")
    synthesis(*cases).run()
    for case, painted in zip(cases, open_painted_cases(cases, tmp_path / "planes"), strict=True):
        assert painted.record["style_seed"] == zlib.crc32(case.case_id.encode())
        style = style_from_seed(3, painted.record["style_seed"])
        known = torch.tensor([0, 1, 2, 2])[torch.from_numpy(case.label_map().astype("int64"))]
        for plane, volume, axis in zip(PLANES, painted.planes(), (2, 1, 0), strict=True):
            one_by_one = [generators[plane](labels[None, None], style)[0, 0] for labels in known.unbind(axis)]
            expected = torch.stack(one_by_one, axis).masked_fill(known == 0, -1)
            torch.testing.assert_close(volume, expected, atol=1e-4, rtol=1e-3)


def test_cases_painted_without_style_tell_of_none(make_case, write_generator, synthesis, tmp_path):
    for plane in PLANES:
        write_generator(plane)
    case = make_case()
    synthesis(case).run()
    (painted,) = open_painted_cases([case], tmp_path / "planes")
    assert set(painted.record) == {"prepared_key", "generators", "generator_people"}


def test_what_is_painted_is_not_painted_again_until_a_generator_changes(
    make_case, write_generator, synthesis, tmp_path
):
    for plane in PLANES:
        write_generator(plane)
    cases = make_case("a"), make_case("b")
    synthesis(cases[0]).run()
    assert synthesis(*cases).run().endswith("1 of them painted now")
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "planes").rglob("*")}
    assert synthesis(*cases).run().endswith("2 cases in " + f"{tmp_path / 'planes'}, 0 of them painted now")
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "planes").rglob("*")} == before
    write_generator("coronal")
    assert synthesis(*cases).run().endswith("2 of them painted now")
    assert len(list((tmp_path / "planes").iterdir())) == 2


def test_a_person_whom_the_generators_have_seen_is_refused_before_anything_is_painted(
    make_case, write_generator, synthesis, tmp_path
):
    write_generator("axial")
    write_generator("coronal", people=("p1", "person-b"))
    write_generator("sagittal")
    with pytest.raises(
        InputError, match=r"b: expected a generator of the coronal plane .* person person-b, got 1 that"
    ):
        synthesis(make_case("a"), make_case("b")).run()
    assert not (tmp_path / "planes").exists()


def test_cross_fitting_takes_the_generator_that_is_new_to_the_person(make_case, write_generator, synthesis, tmp_path):
    for plane in PLANES:
        write_generator(plane, people=("person-b", "p1"), stage=f"spade_{plane}_fold0")
        write_generator(plane, people=("person-a", "p1"), stage=f"spade_{plane}_fold1")
    cases = make_case("a"), make_case("b")
    synthesis(*cases).run()
    people = [case.record["generator_people"] for case in open_painted_cases(cases, tmp_path / "planes")]
    assert people == [["p1", "person-b"], ["p1", "person-a"]]


def test_a_plane_without_a_generator_is_known_at_once(make_case, write_generator, synthesis):
    write_generator("axial")
    with pytest.raises(InputError, match=r"spade_coronal/last.pt: expected a trained generator, got none"):
        synthesis(make_case())


def test_generators_of_another_preset_are_refused(make_case, write_generator, synthesis):
    write_generator("axial")
    case = make_case()
    with pytest.raises(InputError, match="expected a checkpoint with architecture"):
        synthesis(case, architecture={**ARCHITECTURE, "hidden": 5})
    with pytest.raises(
        InputError, match=r"expected a checkpoint with settings {.*'spacing_mm': 2.0}, got .*'spacing_mm': 1.0"
    ):
        synthesis(case, settings={**SETTINGS, "spacing_mm": 2.0})
