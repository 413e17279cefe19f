"""Volumes that the three generators have painted, on disk: what the fusion net learns from.

    planes_dir/<case_id>-<key>/{axial,coronal,sagittal}.npy  intensities in [-1, 1] as int16, (X, Y, Z)
                               case.json                     whose generators, and the people these were trained on

The key is a hash of the prepared case's key and of the generators' weights.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trispade.data.cache import PreparedCase
from trispade.data.entries import KEY_LENGTH, entries_of, load_array, store_entry
from trispade.data.quantised import dequantise, quantise
from trispade.errors import InputError
from trispade.geometry import PLANES, Plane


@dataclass(frozen=True)
class PaintedCase:
    """A prepared case with its three painted volumes.

    Attributes:
        prepared: label map and real T1w.
        folder: where the painted volumes lie.
        record: the content of ``case.json``; ``generator_people`` are those that the generators were trained on.
    """

    prepared: PreparedCase
    folder: Path
    record: Mapping[str, Any]

    def stored_planes(self) -> list[np.ndarray]:
        """Quantised axial, coronal and sagittal volumes, each (X, Y, Z) int16, memory-mapped."""
        return [load_array(self.folder, plane) for plane in PLANES]

    def planes(self) -> torch.Tensor:
        """Axial, coronal and sagittal volumes, (3, X, Y, Z) float32 in [-1, 1]."""
        return torch.stack([dequantise(stored) for stored in self.stored_planes()])


def painted_folder(planes_dir: Path, case: PreparedCase, generator_hashes: Mapping[Plane, str]) -> Path:
    """Name the folder that holds a case as painted by these generators."""
    content = "\n".join([case.key, *(generator_hashes[plane] for plane in PLANES)])
    return planes_dir / f"{case.case_id}-{hashlib.sha256(content.encode()).hexdigest()[:KEY_LENGTH]}"


def store_painted_case(folder: Path, planes: Mapping[Plane, torch.Tensor], record: Mapping[str, Any]) -> None:
    """Store a case's three painted volumes, whole or not at all; older ones of the same case are removed.

    Args:
        folder: from `painted_folder`.
        planes: plane to (X, Y, Z) float tensor in [-1, 1].
        record: JSON-able; must hold ``prepared_key`` and ``generator_people``.

    Raises:
        InputError: if the folder cannot be written.
    """
    stored: dict[str, np.ndarray] = {plane: quantise(planes[plane].float().cpu().numpy()) for plane in PLANES}
    store_entry(folder, stored, record)


def generators_of(cases: Sequence[PaintedCase]) -> dict[str, list[str]]:
    """List, for each plane, the hashes of the generators that painted these cases."""
    return {plane: sorted({case.record["generators"][plane] for case in cases}) for plane in PLANES}


def open_painted_cases(cases: Sequence[PreparedCase], planes_dir: str | Path) -> tuple[PaintedCase, ...]:
    """Find the painted volumes of prepared cases, none of whose people their generators have seen.

    Raises:
        InputError: if volumes are missing or belong to another state of the case, or if a generator was trained on one
            of these people: the fusion net must learn on people that are new to the generators, as at inference.
    """
    planes_dir = Path(planes_dir)
    painted, problems = [], []
    for case in cases:
        found = [(f, json.loads((f / "case.json").read_text())) for f in entries_of(planes_dir, case.case_id)]
        current = [PaintedCase(case, folder, record) for folder, record in found if record["prepared_key"] == case.key]
        if not current:
            problems.append(f"{case.case_id}: not painted, or prepared again since. Run the synthesize_planes stage.")
        elif case.person_id in current[0].record["generator_people"]:
            problems.append(
                f"{case.case_id}: person {case.person_id} is among those that its generators were trained on. Move one"
                " of them to another split, or train the generators without this person's fold."
            )
        else:
            painted.append(current[0])
    if problems:
        raise InputError.of_many(f"{planes_dir}: {len(problems)} cases cannot train the fusion net:", problems)
    return tuple(painted)
