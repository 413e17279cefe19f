from __future__ import annotations

import json

import pytest
import torch

from trispade.data import open_painted_cases, store_painted_case
from trispade.data.painted import painted_folder
from trispade.errors import InputError
from trispade.geometry import PLANES


def hashes(name: str = "g") -> dict[str, str]:
    return {plane: f"{name}-{plane}" for plane in PLANES}


def store(planes_dir, case, people=(), generators="g", prepared_key=None):
    planes = {plane: case.t1w() * (0.3 + 0.2 * i) for i, plane in enumerate(PLANES)}
    folder = painted_folder(planes_dir, case, hashes(generators))
    store_painted_case(folder, planes, {"prepared_key": prepared_key or case.key, "generator_people": list(people)})
    return folder, planes


def test_painted_volumes_come_back_in_the_order_of_the_planes(make_case, tmp_path):
    case = make_case()
    _, planes = store(tmp_path / "planes", case)
    (painted,) = open_painted_cases([case], tmp_path / "planes")
    expected = torch.stack([planes[plane] for plane in PLANES])
    torch.testing.assert_close(painted.planes(), expected, rtol=0, atol=1 / 65534 + 1e-7)
    assert painted.prepared is case


def test_a_fusion_net_never_learns_on_people_that_its_generators_have_seen(make_case, tmp_path):
    new, seen = make_case("new", "p1"), make_case("seen", "p2")
    for case in (new, seen):
        store(tmp_path / "planes", case, people=["p2", "p3"])
    with pytest.raises(
        InputError, match="1 cases cannot train the fusion net:\n  - seen: person p2 is among those that"
    ):
        open_painted_cases([new, seen], tmp_path / "planes")
    assert len(open_painted_cases([new], tmp_path / "planes")) == 1


def test_a_case_prepared_again_does_not_meet_its_old_planes(make_case, tmp_path):
    case = make_case()
    store(tmp_path / "planes", case, prepared_key="an older key")
    with pytest.raises(InputError, match=r"a: not painted, or prepared again since. Run the synthesize_planes stage."):
        open_painted_cases([case], tmp_path / "planes")


def test_all_cases_that_are_not_painted_are_named(make_case, tmp_path):
    cases = [make_case("a"), make_case("b")]
    with pytest.raises(InputError, match=r"2 cases cannot train(.|\n)*a: not painted(.|\n)*b: not painted"):
        open_painted_cases(cases, tmp_path / "planes")


def test_other_generators_paint_into_another_folder_and_the_old_one_goes(make_case, tmp_path):
    case = make_case()
    old, _ = store(tmp_path / "planes", case, generators="old")
    other, _ = store(tmp_path / "planes", make_case("a-b"), generators="old")
    new, _ = store(tmp_path / "planes", case, generators="new")
    assert old != new
    assert not old.exists()
    assert {folder.name for folder in (tmp_path / "planes").iterdir()} == {new.name, other.name}


def test_a_store_that_breaks_off_leaves_nothing_that_could_be_opened(make_case, tmp_path):
    case = make_case()
    folder = painted_folder(tmp_path / "planes", case, hashes())
    with pytest.raises(KeyError, match="sagittal"):
        store_painted_case(folder, {"axial": case.t1w(), "coronal": case.t1w()}, {"prepared_key": case.key})
    with pytest.raises(InputError, match="not painted"):
        open_painted_cases([case], tmp_path / "planes")
    store(tmp_path / "planes", case)
    assert json.loads((folder / "case.json").read_text())["prepared_key"] == case.key


def test_a_folder_that_cannot_be_written_is_one_clear_line(make_case, tmp_path):
    (tmp_path / "planes").write_text("a file in the way")
    with pytest.raises(
        InputError, match=r"planes: expected a writable folder with room in it, got .* set another --work_dir."
    ):
        store(tmp_path / "planes", make_case())
