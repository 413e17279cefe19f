"""Scan-rescan, the reference to reach: a person's other scan, compared like any method's volume."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from trispade.intensity import EVALUATION_PERCENTILE
from trispade.metrics import compare_in_evaluation_space
from trispade.metrics.statistics import Person, Row, person_of
from trispade.registration import register_rigidly, resample_to

SCAN_RESCAN = "scan_rescan"


class RealScan(Protocol):
    """What is asked of a case; `trispade.data.EvaluationCase` has it."""

    @property
    def case_id(self) -> str:
        """Scan."""

    @property
    def person_id(self) -> str:
        """Whose scan it is."""

    @property
    def affine(self) -> np.ndarray:
        """(4, 4), voxel -> RAS+ mm."""

    def label_map(self) -> np.ndarray:
        """(X, Y, Z) class indices, brain filled: the mask is ``> 0``."""

    def real(self) -> np.ndarray:
        """(X, Y, Z) float32, bias-corrected scan, background 0."""


def compare_scan_with_rescan(
    cases: Sequence[RealScan], class_names: Sequence[str] | None = None
) -> list[dict[str, Any]]:
    """Compare each scan of the people scanned twice or more with the same person's next scan.

    The next scan (for the last one, the first) is registered rigidly, brought onto the scan's grid by cubic B-splines,
    and compared in that scan's evaluation space. Of two scans each is compared with the other; the mean over a person's
    scans, which every summary takes, is then the mean of both directions.

    Args:
        cases: real scans; people scanned once are passed over.
        class_names: names of the class indices, for the rows of single structures; no such rows if None.

    Returns:
        Rows of `compare_in_evaluation_space` with ``case_id`` and ``method``, `SCAN_RESCAN`; none if nobody was scanned
        twice. For ``fit: none``, a scan's range of [-1, 1] ends at its 99.5th percentile, unclipped.

    Raises:
        InputError: if a scan cannot be registered.
    """
    people: dict[str, list[RealScan]] = {}
    for case in cases:
        people.setdefault(case.person_id, []).append(case)
    rows: list[dict[str, Any]] = []
    for scans in people.values():
        for fixed, moving in zip(scans, [*scans[1:], scans[0]], strict=True):
            if fixed is not moving:
                rows += _compare(fixed, moving, class_names)
    return rows


def rescan_volume(fixed: RealScan, moving: RealScan) -> np.ndarray:
    """Bring one scan onto the grid of another of the same person.

    Returns:
        (X, Y, Z) float32 on the fixed scan's grid; -1 is zero, 1 the moving scan's 99.5th percentile in its brain.
    """
    scan = moving.real()
    transform = register_rigidly(scan, moving.affine, fixed.real(), fixed.affine, names=(moving.case_id, fixed.case_id))
    resampled = resample_to(scan, moving.affine, fixed.label_map().shape, fixed.affine, transform)
    brightest = float(np.percentile(scan[moving.label_map() > 0], EVALUATION_PERCENTILE))
    return np.asarray(2.0 * resampled / brightest - 1.0, dtype=np.float32)


def rows_of_people_scanned_twice(rows: Sequence[Row], people: Mapping[str, Person]) -> list[Row]:
    """Keep the rows of the people who have a rescan, so that every method can be told for those people alone.

    Args:
        rows: measurements of all methods, scan-rescan among them.
        people: case to person.

    Returns:
        The rows of all cases of the people with a scan-rescan row, in their order.
    """
    twice = {person_of(str(row["case_id"]), people).person_id for row in rows if row["method"] == SCAN_RESCAN}
    return [row for row in rows if person_of(str(row["case_id"]), people).person_id in twice]


def _compare(fixed: RealScan, moving: RealScan, class_names: Sequence[str] | None) -> list[dict[str, Any]]:
    label_map = fixed.label_map()
    volume = rescan_volume(fixed, moving)
    structures: dict[str, Any] = {} if class_names is None else {"label_map": label_map, "class_names": class_names}
    compared = compare_in_evaluation_space(volume, fixed.real(), label_map > 0, affine=fixed.affine, **structures)
    return [{"case_id": fixed.case_id, "method": SCAN_RESCAN, **row} for row in compared]
