"""Same seed, same machine, float32 (the smoke preset has no autocast): the same files, to the last bit."""

from __future__ import annotations

import pytest

from trispade.engines import load_checkpoint

pytestmark = pytest.mark.slow


def test_generators_trained_twice_with_one_seed_are_equal_to_the_last_bit(study, tmp_path):
    first = study.work_dir / "spade_axial"
    study.run("train_spade", plane="axial", max_epochs=1, stage_dir=tmp_path / "again")
    for name in ("last.pt", "best.pt"):
        assert (tmp_path / "again" / name).read_bytes() == (first / name).read_bytes()
    study.run("train_spade", plane="axial", max_epochs=1, seed=1, stage_dir=tmp_path / "other")
    weights = [load_checkpoint(each / "last.pt")["objects"]["generator"] for each in (first, tmp_path / "other")]
    assert any((value != weights[1][name]).any() for name, value in weights[0].items())


def test_fusion_nets_and_models_trained_twice_with_one_seed_are_equal_to_the_last_bit(study, tmp_path):
    study.run("train_fusion", max_epochs=1, stage_dir=tmp_path, model_file=tmp_path / "model.pt")
    for name in ("last.pt", "best.pt"):
        assert (tmp_path / name).read_bytes() == (study.work_dir / "fusion" / name).read_bytes()
    assert (tmp_path / "model.pt").read_bytes() == study.model_file.read_bytes()
