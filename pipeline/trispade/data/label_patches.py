"""3D training pairs for the direct U-Net: patches of label map and scan around random places of the brain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from trispade.data.cache import PreparedCase
from trispade.data.quantised import dequantise
from trispade.data.sampler import is_flipped
from trispade.errors import InputError
from trispade.geometry import PLANES, slice_axis


class LabelPatchDataset(Dataset):
    """Patches of label map and scan, each around a labelled voxel that is drawn anew at every visit.

    A place depends on the seed, the item and the visit alone, so that a resumed run sees the patches of the
    uninterrupted one. Near the border of the volume a patch is moved inwards.

    Args:
        cases: prepared cases.
        patch_size: edge in voxels.
        patches_per_scan: items that each scan counts for.
        flip: mirror left and right at random; only for vocabularies that merge the sides.
        seed: of the places and flips.

    An item, asked for as ``dataset[index]`` (the first visit, not flipped) or ``dataset[index, visit]``, holds
    ``label_map`` (1, P, P, P) class indices, integer; ``t1w`` (1, P, P, P) float32 in [-1, 1]; ``case_id``.

    Raises:
        InputError: that lists the cases which are smaller than a patch or hold no label.
    """

    def __init__(
        self, cases: Sequence[PreparedCase], patch_size: int, patches_per_scan: int, flip: bool = False, seed: int = 0
    ) -> None:
        self.cases = cases
        self.patch_size = patch_size
        self.patches_per_scan = patches_per_scan
        self.flip = flip
        self.seed = seed
        problems = [problem for case in cases if (problem := self._problem_of(case))]
        if problems:
            raise InputError.of_many(f"{len(problems)} of {len(cases)} cases give no patches:", problems)

    def __len__(self) -> int:
        return len(self.cases) * self.patches_per_scan

    def __getitem__(self, index: int | tuple[int, int]) -> dict[str, Any]:
        item, visit = index if isinstance(index, tuple) else (index, None)
        case = self.cases[item // self.patches_per_scan]
        patch = self._place(case, item, visit or 0)
        label_map = torch.from_numpy(np.array(case.label_map()[patch]))[None]
        t1w = dequantise(case.stored_t1w()[patch])[None]
        if self.flip and visit is not None and is_flipped(self.seed, item, visit):
            label_map, t1w = label_map.flip(1), t1w.flip(1)
        return {"label_map": label_map, "t1w": t1w, "case_id": case.case_id}

    def _place(self, case: PreparedCase, item: int, visit: int) -> tuple[slice, ...]:
        label_map, slices = case.label_map(), _labelled_slices(case)
        generator = np.random.default_rng((self.seed, item, visit))
        # Drawn from the box around the labels until a voxel has one: about twice, and no list of voxels to keep.
        while True:
            centre = tuple(int(generator.choice(indices)) for indices in slices)
            if label_map[centre]:
                break
        half = self.patch_size // 2
        corner = [
            min(max(0, c - half), extent - self.patch_size) for c, extent in zip(centre, label_map.shape, strict=True)
        ]
        return tuple(slice(start, start + self.patch_size) for start in corner)

    def _problem_of(self, case: PreparedCase) -> str | None:
        shape = case.label_map().shape
        if min(shape) < self.patch_size:
            size = "x".join(map(str, shape))
            return str(
                InputError.of(
                    case.case_id,
                    f"at least {self.patch_size} voxels an axis",
                    size,
                    "Set a smaller patch size, or prepare with a larger box.",
                )
            )
        if not all(_labelled_slices(case)):
            return str(InputError.of(case.case_id, "labelled voxels", "none", "Leave it out."))
        return None


def _labelled_slices(case: PreparedCase) -> list[list[int]]:
    """Indices along X, Y and Z at which something is labelled."""
    return [case.labelled_slices(plane) for plane in sorted(PLANES, key=slice_axis)]
