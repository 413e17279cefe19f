"""``kill -9`` at random moments; the long form goes through all stages."""

from __future__ import annotations

import random

import pytest
from kill_script import Run, differences, kill_often, run_through, run_with_kills

from trispade.phantoms import write_phantom_dataset


@pytest.mark.slow
def test_stages_that_are_killed_at_random_moments_end_with_the_files_of_an_uninterrupted_run(tmp_path):
    stages = ("prepare", "train_spade axial")
    write_phantom_dataset(tmp_path / "phantoms", num_people=5)
    reference, killed = (Run(tmp_path / name, tmp_path / "phantoms") for name in ("uninterrupted", "killed"))
    seconds = run_through(reference, stages)
    assert {"work/spade_axial/last.pt", "work/cache/settings.json"} < reference.results().keys()
    assert run_with_kills(killed, stages, seconds, 3, random.Random(1)).total() >= 2
    assert differences(killed, reference) == []


@pytest.mark.long
def test_all_stages_killed_twenty_times_end_with_the_files_of_an_uninterrupted_run(tmp_path):
    report = kill_often(tmp_path, kills=20, seed=0)
    assert sum(report["killed"].values()) >= 20
    assert report["different"] == []
