"""2D training pairs: the labelled slices of one plane of the prepared cases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from trispade.data.cache import PreparedCase
from trispade.data.quantised import dequantise
from trispade.data.sampler import is_flipped
from trispade.geometry import Plane, slice_axis


class SliceDataset(Dataset):
    """Slices with at least one labelled pixel, of one plane.

    Args:
        cases: prepared cases.
        plane: plane to cut in.
        flip: mirror left and right at random; only for vocabularies that merge the sides.
        seed: of the flips.

    An item, asked for as ``dataset[index]`` or ``dataset[index, visit]``, holds ``label_map`` (1, H, W) class indices,
    integer; ``t1w`` (1, H, W) float32 in [-1, 1]; ``case_id``; ``slice_index``. H and W are the volume's remaining axes
    in RAS order.
    """

    def __init__(self, cases: Sequence[PreparedCase], plane: Plane, flip: bool = False, seed: int = 0) -> None:
        self.axis = slice_axis(plane)
        self.flip = flip and self.axis != 0  # a mirrored sagittal slice is another sagittal slice, not a flipped one
        self.seed = seed
        self.items = [(case, index) for case in cases for index in case.labelled_slices(plane)]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int | tuple[int, int]) -> dict[str, Any]:
        item, visit = index if isinstance(index, tuple) else (index, None)
        case, position = self.items[item]
        label_map = torch.from_numpy(np.array(case.label_map().take(position, axis=self.axis)))
        t1w = dequantise(case.stored_t1w().take(position, axis=self.axis))
        if self.flip and visit is not None and is_flipped(self.seed, item, visit):
            label_map, t1w = label_map.flip(0), t1w.flip(0)
        return {"label_map": label_map[None], "t1w": t1w[None], "case_id": case.case_id, "slice_index": position}
