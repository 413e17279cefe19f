from __future__ import annotations

import pytest

from trispade.bundle_run import find_bundle, run_stage
from trispade.distributed import by_first_rank, gather, is_first, join_ranks, largest, refuse_lone_ranks
from trispade.errors import InputError, find_input_error


def test_a_process_that_joined_no_others_is_the_first_and_only_one():
    assert is_first()
    assert gather("a") == ["a"]
    assert largest(3) == 3
    assert by_first_rank(lambda x: x + 1)(1) == 2


def test_processes_that_torchrun_did_not_start_have_no_one_to_meet():
    with pytest.raises(InputError, match="multi_gpu: expected torchrun to start the processes, got none"):
        join_ranks(1.0)


def test_processes_that_have_not_joined_are_refused_before_they_write_the_same_files(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
    monkeypatch.setenv("WORLD_SIZE", "1")
    refuse_lone_ranks()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match=r"torchrun: expected overlays/multi_gpu.yaml among the configs, got several"):
        refuse_lone_ranks()


@pytest.mark.parametrize("stage", ["prepare", "evaluate", "evaluate_downstream"])
def test_a_stage_of_one_process_is_refused_under_torchrun(stage, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
    with pytest.raises(InputError, match=f"{stage}: expected one process, got those of torchrun. Run it without"):
        run_stage(find_bundle()[0], stage)


def test_a_lost_process_is_one_clear_line():
    error = RuntimeError("[/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1")
    message = str(find_input_error(error))
    assert message.startswith(
        "processes: expected all of them to take part in each step, got one that ended or did not"
    )
    assert "Connection closed by peer" in message
    assert message.endswith("the same command goes on from the last checkpoint, with any number of processes.")
