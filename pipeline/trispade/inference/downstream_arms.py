"""What the arms of the downstream comparison learn from: real scans, synthetic ones, or both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trispade.data import PreparedCase
from trispade.engines import read_model_record
from trispade.errors import InputError
from trispade.inference.volume_synthesis import VolumeSynthesis

ARMS = ("real", "synthetic", "both", "real_all")


@dataclass(frozen=True)
class Arm:
    """One arm of the comparison.

    Attributes:
        name: one of `ARMS`.
        sources: groups of training cases; each group gives the same share of the patches.
        test: real scans of people whom neither the arm's training nor the model's has seen.
        model: hash of the weights that painted the synthetic cases; None where there are none.
    """

    name: str
    sources: tuple[tuple[PreparedCase, ...], ...]
    test: tuple[PreparedCase, ...]
    model: str | None

    @property
    def cases(self) -> list[PreparedCase]:
        """All training cases, real and synthetic."""
        return [case for group in self.sources for case in group]

    @property
    def num_cases(self) -> list[int]:
        """Training cases in each group."""
        return [len(group) for group in self.sources]

    @property
    def test_keys(self) -> list[str]:
        """Hashes of the test cases' content."""
        return sorted(case.key for case in self.test)


def open_arm(
    name: str,
    real: Sequence[PreparedCase],
    annotated: Sequence[PreparedCase],
    test: Sequence[PreparedCase],
    synthesis: VolumeSynthesis,
    dataset: str,
    num_real: int | None = None,
) -> Arm:
    """Collect what an arm is trained and tested on; synthetic volumes that it needs are painted now.

    Args:
        name: ``real``: the scans of ``real``; ``synthetic``: painted volumes of the label maps of ``annotated``;
            ``both``: these two in equal shares; ``real_all``: the scans of ``annotated``, the upper bound.
        real: cases of the few people with annotated scans.
        annotated: cases of all people with label maps.
        test: cases to test on.
        synthesis: paints the label maps.
        dataset: name of the cases' data set.
        num_real: take so many people of ``real``, in their order; None for all.

    Raises:
        InputError: if there is no such arm, too few people, or a test person whom the model or an arm has seen.
    """
    if name not in ARMS:
        raise InputError.of("arm", f"one of {', '.join(ARMS)}", repr(name), "Correct --arm.")
    few = _first_people(real, num_real)
    check_unseen(test, [*real, *annotated], synthesis.model_file, dataset)
    painted = synthesis.paint(annotated) if name in ("synthetic", "both") else ()
    sources = {"real": (few,), "synthetic": (painted,), "both": (few, painted), "real_all": (tuple(annotated),)}
    return Arm(name, sources[name], tuple(test), synthesis.hash if painted else None)


def check_unseen(
    test: Sequence[PreparedCase], training: Sequence[PreparedCase], model_file: str | Path, dataset: str
) -> None:
    """Refuse test people whom an arm or the model was trained on, whichever arm it is: all are tested alike.

    Person 01 of another data set is another person; where a model does not tell its data set, it counts as this one.

    Raises:
        InputError: that names them.
    """
    people = {case.person_id for case in test}
    parts = read_model_record(model_file).get("training", {}).values()
    parts = [part for part in parts if part.get("dataset") in (None, dataset)]
    seen_by = {
        "the segmentation networks are trained": people & {case.person_id for case in training},
        f"{model_file} was trained": people & {person for part in parts for person in part.get("people", ())},
    }
    problems = [f"{', '.join(sorted(seen))}, on whom {who}" for who, seen in seen_by.items() if seen]
    if problems:
        raise InputError.of(
            "test_splits",
            "people whom neither the model nor an arm's training has seen",
            "; and ".join(problems),
            "Choose other --test_splits, or a model that was trained on other people.",
        )


def _first_people(cases: Sequence[PreparedCase], number: int | None) -> tuple[PreparedCase, ...]:
    people = list(dict.fromkeys(case.person_id for case in cases))
    if number is not None and not 1 <= number <= len(people):
        raise InputError.of(
            "num_real", f"1 to {len(people)} people, as many as real_splits hold", str(number), "Set it."
        )
    return tuple(case for case in cases if case.person_id in people[:number])
