"""Measures each stored case once: rows of metrics and patch features, kept beside the volumes that they describe."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import trispade.metrics
from trispade.data import EvaluationCase
from trispade.data.entries import KEY_LENGTH, store_entry
from trispade.metrics import EvaluationSpace, cross_half_distances, patch_features

REAL = "real"


@dataclass(frozen=True)
class Measurement:
    """What was measured of one case.

    Attributes:
        case: that was measured.
        rows: ``{"case_id", "method", "region", "fit", "metric", "value"}``, for every method.
        features: method, and ``real`` for the scan, to its patches' features (`trispade.metrics.patch_features`).
    """

    case: EvaluationCase
    rows: Sequence[Mapping[str, Any]]
    features: Mapping[str, np.ndarray]


def measure_cases(
    cases: Sequence[EvaluationCase], class_names: Sequence[str], folder: str | Path, progress: bool = True
) -> list[Measurement]:
    """Measure cases that have not been measured yet, and open what is known of the others.

    Args:
        cases: from an `EvaluationStore`.
        class_names: name of each class index.
        folder: where measurements are kept; one is valid only for the volumes and the metrics' code that made it.
        progress: show a progress bar.

    Returns:
        In the order of the cases.

    Raises:
        InputError: if a volume is not finite inside the brain, a scan constant, or the folder cannot be written.
    """
    measured = []
    with tqdm(cases, desc="measure", unit="scan", disable=not progress) as bar:
        for case in bar:
            bar.set_postfix_str(case.case_id)
            entry = Path(folder) / f"{case.case_id}-{_key(case, class_names)}"
            if not (entry / "case.json").exists():
                store_entry(entry, *_measure(case, class_names))
            features = {name: np.load(entry / f"{name}.npy") for name in (*case.methods, REAL)}
            rows = json.loads((entry / "case.json").read_text())["rows"]
            measured.append(Measurement(case, rows, features))
    return measured


def _measure(case: EvaluationCase, class_names: Sequence[str]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    label_map = case.label_map()
    space = EvaluationSpace(case.real(), label_map > 0, label_map, class_names, case.affine)
    features = {REAL: patch_features(space.real(), space.mask, case.affine)}
    rows: list[dict[str, Any]] = []
    for method in case.methods:
        volume = case.volume(method)
        rows += [{"case_id": case.case_id, "method": method, **row} for row in space.compare(volume)]
        features[method] = patch_features(space.bring(volume), space.mask, case.affine)
    return features, {"rows": rows}


def distances(measured: Sequence[Measurement]) -> dict[str, dict[str, float]] | str:
    """Compare each method's volumes with the real scans as two sets, halves of the people against the other halves.

    Returns:
        Method to ``frechet_distance`` and ``kernel_distance`` (`trispade.metrics.cross_half_distances`), with ``real``
        as the floor; or, where that cannot be measured, the reason.
    """
    people = [each.case.person_id for each in measured]
    sizes = np.array([np.sort(np.linalg.norm(each.case.affine[:3, :3], axis=0)) for each in measured])
    if len(set(people)) < 2:
        return "fewer than two people"
    if np.ptp(sizes, axis=0).max() > 0.01:
        return "the scans differ in voxel size, and with it in the texture of their patches"
    real = [each.features[REAL] for each in measured]
    methods = [name for name in measured[0].features if all(name in each.features for each in measured)]
    try:
        return {
            name: cross_half_distances([each.features[name] for each in measured], real, people) for name in methods
        }
    except ValueError as error:
        return str(error)


def _key(case: EvaluationCase, class_names: Sequence[str]) -> str:
    content = json.dumps([case.key, list(class_names), _hash_of_metrics()])
    return hashlib.sha256(content.encode()).hexdigest()[:KEY_LENGTH]


def _hash_of_metrics() -> str:
    """Hash the metrics' code, so that a changed definition never meets old numbers."""
    files = sorted(Path(trispade.metrics.__path__[0]).glob("*.py"))
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()
