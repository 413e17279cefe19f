"""Whole prepared volumes, for validation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from trispade.data.cache import PreparedCase
from trispade.data.painted import PaintedCase


class VolumeDataset(Dataset):
    """Prepared or painted cases as whole volumes.

    An item holds ``label_map`` (1, X, Y, Z) class indices, integer; ``t1w`` (1, X, Y, Z) float32 in [-1, 1]; ``mask``
    (1, X, Y, Z) bool, the brain; ``case_id``; and for painted cases ``planes`` (3, X, Y, Z) float32 in [-1, 1].
    """

    def __init__(self, cases: Sequence[PreparedCase | PaintedCase]) -> None:
        self.cases = cases

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int) -> dict[str, Any]:
        case = self.cases[index]
        prepared = case.prepared if isinstance(case, PaintedCase) else case
        label_map = torch.from_numpy(np.array(prepared.label_map()))[None]
        item = {"label_map": label_map, "t1w": prepared.t1w()[None], "mask": label_map > 0, "case_id": prepared.case_id}
        if isinstance(case, PaintedCase):
            item["planes"] = case.planes()
        return item
