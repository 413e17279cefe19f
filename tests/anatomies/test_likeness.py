from __future__ import annotations

import numpy as np
import pytest

from trispade.anatomies.likeness import ALIGNMENTS, STRUCTURES, dice, highest, likeness
from trispade.labels import load_scheme

SCHEME = load_scheme("synthseg")


def test_dice_is_twice_what_is_shared_over_the_sum():
    first, second = np.zeros((2, 4, 4, 4), bool)
    first[:2], second[1:] = True, True
    assert dice(first, first) == 1
    assert dice(first, second) == pytest.approx(2 * 16 / (32 + 48))


def test_somebody_who_lies_elsewhere_is_recognised_by_any_alignment(people, shifted):
    found = likeness(people[1], shifted, SCHEME)
    for structure in STRUCTURES:
        for alignment in ALIGNMENTS:
            assert found[structure][alignment] > 0.95, (structure, alignment)


def test_people_are_less_like_each_other_than_themselves(people):
    found = likeness(people[0], people[1], SCHEME)
    assert all(value < 0.9 for ways in found.values() for value in ways.values())


def test_the_highest_is_taken_for_each_structure_and_alignment():
    low = {structure: dict.fromkeys(ALIGNMENTS, 0.25) for structure in STRUCTURES}
    high = {structure: {**ways, "rigid": 0.75} for structure, ways in low.items()}
    assert highest([low, high, low]) == high
