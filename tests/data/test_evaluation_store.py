from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from monai.transforms import Compose, CopyItemsd

from trispade.data import EvaluationStore
from trispade.errors import InputError

SHAPE = (12, 14, 10)
CHAIN = Compose([CopyItemsd(keys="image", names="other")])
MADE_WITH = {"model": "abc", "amp": True}


@pytest.fixture
def item(tmp_path):
    paths = {"label_path": tmp_path / "labels.nii.gz", "t1w_path": tmp_path / "t1w.nii.gz"}
    for name, path in paths.items():
        path.write_text(name)
    return {"case_id": "one", "person_id": "p1", **{name: str(path) for name, path in paths.items()}}


@pytest.fixture
def arrays():
    generator = np.random.default_rng(0)
    label_map = np.zeros(SHAPE, np.uint8)
    label_map[3:8, 4:11, 2:9] = generator.integers(0, 4, (5, 7, 7))
    brain = label_map > 0
    volumes = {
        name: np.where(brain, generator.uniform(-1, 1, SHAPE), -1.0).astype(np.float32) for name in ("axial", "fused")
    }
    return {"label_map": label_map, "real": generator.uniform(1, 900, SHAPE).astype(np.float32), "volumes": volumes}


def store_of(tmp_path, chain=CHAIN, **changes):
    return EvaluationStore(tmp_path / "volumes", chain, {**MADE_WITH, **changes})


def test_a_stored_case_comes_back_on_its_own_grid(tmp_path, item, arrays):
    affine = np.array([[-1.0, 0, 0, 3], [0, 0, 2, 4], [0, 1.5, 0, 5], [0, 0, 0, 1]])
    store = store_of(tmp_path)
    store.add(item, **arrays, affine=affine)
    (case,) = store.open([item])
    brain = arrays["label_map"] > 0
    np.testing.assert_array_equal(case.label_map(), arrays["label_map"])
    np.testing.assert_array_equal(case.real(), np.where(brain, arrays["real"], 0))
    assert case.methods == ("axial", "fused")
    for method, volume in arrays["volumes"].items():
        np.testing.assert_allclose(case.volume(method), volume, atol=1 / 65534 + 1e-7)
        assert (case.volume(method)[~brain] == -1).all()
    np.testing.assert_array_equal(case.affine, affine)
    assert (case.case_id, case.person_id) == ("one", "p1")


def test_what_is_stored_is_not_done_again(tmp_path, item, arrays):
    store = store_of(tmp_path)
    assert store.unfinished([item]) == [item]
    store.add(item, **arrays, affine=np.eye(4))
    assert store_of(tmp_path).unfinished([item]) == []


@pytest.mark.parametrize(
    "change",
    ["label_path", "t1w_path", "model", "chain", "person"],
)
def test_a_case_of_other_sources_models_or_settings_is_done_again(tmp_path, item, arrays, change):
    store_of(tmp_path).add(item, **arrays, affine=np.eye(4))
    store = store_of(tmp_path)
    if change == "model":
        store = store_of(tmp_path, model="abd")
    elif change == "chain":
        store = store_of(tmp_path, Compose([CopyItemsd(keys="image", names="another")]))
    elif change == "person":
        item = {**item, "person_id": "p2"}
    else:
        Path(item[change]).write_text("changed")
    assert store.unfinished([item]) == [item]
    assert store.open([item]) == ()
    store.add(item, **arrays, affine=np.eye(4))
    assert [each.name for each in (tmp_path / "volumes").iterdir()] == [store.open([item])[0].folder.name]


def test_a_source_that_is_gone_is_left_for_its_turn_to_tell(tmp_path, item):
    missing = {**item, "t1w_path": str(tmp_path / "none.nii.gz")}
    assert store_of(tmp_path).unfinished([missing]) == [missing]
    assert store_of(tmp_path).open([missing]) == ()


def test_a_torn_record_is_told(tmp_path, item, arrays):
    store = store_of(tmp_path)
    store.add(item, **arrays, affine=np.eye(4))
    (store.open([item])[0].folder / "case.json").write_text("{")
    with pytest.raises(InputError, match=r"case.json: expected the record of a case, got text that is not JSON. R"):
        store.open([item])
