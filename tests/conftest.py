"""What the tests of several packages share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from trispade.data import PreparedCase
from trispade.data.quantised import quantise
from trispade.geometry import PLANES, slice_axis


@pytest.fixture
def make_case(tmp_path: Path) -> Callable[..., PreparedCase]:
    """Write a small prepared case: an asymmetric box of three classes around (X, Y, Z) = (14, 17, 15)."""

    def make(
        case_id: str = "a",
        person_id: str | None = None,
        split: str = "gan_train",
        fold: int | None = None,
        shape: tuple[int, int, int] = (32, 32, 32),
        seed: int = 0,
    ) -> PreparedCase:
        generator = np.random.default_rng(seed)
        label_map = np.zeros(shape, np.uint8)
        label_map[10:17, 14:22, 12:18] = generator.integers(1, 4, (7, 8, 6))
        t1w = np.where(label_map > 0, label_map / 4 + generator.normal(0, 0.05, shape), -1.0)
        folder = tmp_path / "cache" / f"{case_id}-{'0' * 12}"
        folder.mkdir(parents=True)
        np.save(folder / "label_map.npy", label_map)
        np.save(folder / "t1w.npy", quantise(t1w))
        record = {
            "classes": [0, 1, 2, 3],
            "labelled_slices": {
                plane: np.flatnonzero(np.moveaxis(label_map > 0, slice_axis(plane), 0).any(axis=(1, 2))).tolist()
                for plane in PLANES
            },
        }
        return PreparedCase(case_id, person_id or f"person-{case_id}", split, fold, folder, f"key-{case_id}", record)

    return make
