from __future__ import annotations

from collections import Counter
from itertools import chain

import pytest

from trispade.data import StreamBatchSampler
from trispade.data.sampler import is_flipped


def epochs(sampler: StreamBatchSampler, count: int) -> list[list[tuple[int, int]]]:
    """Draw whole epochs the way a trainer does, which counts the batches that it has used."""
    batches = []
    for _ in range(count):
        for batch in sampler:
            batches.append(batch)
            sampler.iteration += 1
    return batches


@pytest.mark.parametrize("used", range(9))
def test_a_stream_taken_up_anywhere_goes_on_as_if_never_left(used):
    uninterrupted = epochs(StreamBatchSampler(10, 3, seed=7), 3)
    resumed = StreamBatchSampler(10, 3, seed=7)
    resumed.iteration = used
    assert epochs(resumed, 1) == uninterrupted[used : (used // 3 + 1) * 3]


def test_batches_are_full_and_every_pass_takes_each_item_once():
    batches = epochs(StreamBatchSampler(10, 3), 10)
    assert {len(batch) for batch in batches} == {3}
    drawn = Counter(pair for batch in batches for pair in batch)
    assert drawn == Counter((item, visit) for visit in range(9) for item in range(10))


def test_passes_are_shuffled_differently_and_by_seed():
    def order(seed, visit):
        return [item for batch in epochs(StreamBatchSampler(20, 5, seed), 2) for item, v in batch if v == visit]

    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)
    assert order(0, 0) == order(0, 0)


def test_a_batch_larger_than_the_data_repeats_items():
    (batch,) = epochs(StreamBatchSampler(2, 5), 1)
    assert sorted(batch[:4]) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert batch[4][1] == 2


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_processes_share_the_global_batch_whatever_their_number(world_size):
    whole = epochs(StreamBatchSampler(12, 4, seed=3), 2)
    samplers = [StreamBatchSampler(12, 4, seed=3, rank=rank, world_size=world_size) for rank in range(world_size)]
    batches = list(zip(*(epochs(sampler, 2) for sampler in samplers), strict=True))
    assert [sorted(chain(*parts)) for parts in batches] == [sorted(batch) for batch in whole]
    assert all([len(part) / 4 for part in parts] == [sampler.share for sampler in samplers] for parts in batches)


def test_processes_for_whom_nothing_is_left_get_a_stand_in_without_a_share():
    samplers = [StreamBatchSampler(12, 2, seed=3, rank=rank, world_size=5) for rank in range(5)]
    assert [sampler.share for sampler in samplers] == [0.5, 0.5, 0.0, 0.0, 0.0]
    first, second, *others = (next(iter(sampler)) for sampler in samplers)
    assert others == [first, second, first]


@pytest.mark.parametrize("arguments", [(0, 1), (1, 0), (8, 3, 0, 2, 2)])
def test_a_batch_that_cannot_be_made_is_refused(arguments):
    with pytest.raises(ValueError, match="must be positive and rank below world_size"):
        StreamBatchSampler(*arguments)


def test_flips_are_a_fair_coin_that_depends_on_its_arguments_alone():
    flips = [is_flipped(5, item, visit) for item in range(40) for visit in range(40)]
    assert flips == [is_flipped(5, item, visit) for item in range(40) for visit in range(40)]
    assert 0.45 < sum(flips) / len(flips) < 0.55
    assert flips != [is_flipped(6, item, visit) for item in range(40) for visit in range(40)]
