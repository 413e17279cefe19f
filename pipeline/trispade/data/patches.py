"""3D training pairs for the fusion net: overlapping patches of painted and real volumes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from trispade.data.painted import PaintedCase
from trispade.data.quantised import dequantise
from trispade.data.sampler import is_flipped


class PatchDataset(Dataset):
    """Patches on a regular, overlapping grid that hold at least one voxel of the brain.

    Args:
        cases: painted cases.
        patch_size: edge in voxels.
        overlap: of neighbouring patches, as a fraction of the edge.
        flip: mirror left and right at random; only for vocabularies that merge the sides.
        seed: of the flips.

    An item holds ``planes`` (3, P, P, P) float32 in [-1, 1] (axial, coronal, sagittal), ``label_map`` (1, P, P, P)
    integer class indices, ``t1w`` (1, P, P, P) float32 in [-1, 1] and ``case_id``.

    Source: Ayaz et al., Methods: patches of 32x32x32 voxels with an overlap of 50% in all directions.
    """

    def __init__(
        self, cases: Sequence[PaintedCase], patch_size: int, overlap: float, flip: bool = False, seed: int = 0
    ) -> None:
        self.patch_size = patch_size
        self.flip = flip
        self.seed = seed
        step = max(1, round(patch_size * (1.0 - overlap)))
        self.items = [(case, corner) for case in cases for corner in self._corners(case, step)]

    def _corners(self, case: PaintedCase, step: int) -> list[tuple[int, ...]]:
        label_map = case.prepared.label_map()
        size = self.patch_size
        starts = [sorted({*range(0, extent - size, step), max(0, extent - size)}) for extent in label_map.shape]
        return [c for c in product(*starts) if label_map[tuple(slice(i, i + size) for i in c)].any()]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int | tuple[int, int]) -> dict[str, Any]:
        item, visit = index if isinstance(index, tuple) else (index, None)
        case, corner = self.items[item]
        patch = tuple(slice(i, i + self.patch_size) for i in corner)
        planes = dequantise(np.stack([stored[patch] for stored in case.stored_planes()]))
        label_map = torch.from_numpy(np.array(case.prepared.label_map()[patch]))[None]
        t1w = dequantise(case.prepared.stored_t1w()[patch])[None]
        if self.flip and visit is not None and is_flipped(self.seed, item, visit):
            planes, label_map, t1w = planes.flip(1), label_map.flip(1), t1w.flip(1)
        return {"planes": planes, "label_map": label_map, "t1w": t1w, "case_id": case.prepared.case_id}
