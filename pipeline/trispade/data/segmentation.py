"""Training pairs for a segmentation network: patches and volumes of T1w with their label maps.

Real and synthetic cases are both `PreparedCase`s, so nothing here knows which is which.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from monai.transforms import Compose
from torch.utils.data import Dataset

from trispade.data.cache import PreparedCase
from trispade.data.quantised import dequantise
from trispade.errors import InputError

LARGEST_SEED = 2**32 - 1


class SegmentationPatchDataset(Dataset):
    """Random patches around voxels of the brain; as many an epoch as asked for, however many cases there are.

    Args:
        sources: groups of cases. The patches of an epoch take turns through the groups, so that each group gives the
            same share of them; within a group, case and place are drawn at random.
        patch_size: voxels along X, Y and Z.
        num_patches: length of an epoch.
        flip: mirror left and right at random; only for vocabularies that merge the sides.
        transform: dictionary transforms for augmentation, from MONAI; they get their random state from the item.
        seed: of all random choices.

    An item, asked for as ``dataset[index]`` or ``dataset[index, visit]``, depends on the seed, the index and the visit
    alone. It holds ``image`` (1, P, P, P) float32, intensities in [0, 1] before augmentation, background 0; ``label``
    (1, P, P, P) int64 class indices; ``case_id``.

    Raises:
        InputError: if a group is empty or a case is smaller than a patch.
    """

    def __init__(
        self,
        sources: Sequence[Sequence[PreparedCase]],
        patch_size: Sequence[int],
        num_patches: int,
        flip: bool = False,
        transform: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
        seed: int = 0,
    ) -> None:
        self.sources = [list(group) for group in sources]
        self.patch_size = tuple(patch_size)
        self.num_patches = num_patches
        self.flip = flip
        self.transform = None if transform is None else Compose([transform])
        self.seed = seed
        self._check()

    def _check(self) -> None:
        if not self.sources or not all(self.sources):
            raise InputError.of("segmentation", "cases in each group", "none", "Choose other splits.")
        for case in (case for group in self.sources for case in group):
            shape = case.label_map().shape
            if any(extent < size for extent, size in zip(shape, self.patch_size, strict=True)):
                raise InputError.of(
                    case.case_id, f"a volume of at least {self.patch_size} voxels", str(shape), "Use smaller patches."
                )

    def __len__(self) -> int:
        return self.num_patches

    def __getitem__(self, index: int | tuple[int, int]) -> dict[str, Any]:
        item, visit = index if isinstance(index, tuple) else (index, 0)
        generator = np.random.default_rng([self.seed, item, visit])
        group = self.sources[item % len(self.sources)]
        case = group[generator.integers(len(group))]
        patch = self._choose_patch(case.label_map(), generator)
        image = dequantise(case.stored_t1w()[patch]).add_(1.0).div_(2.0)[None]
        label = torch.from_numpy(case.label_map()[patch].astype(np.int64))[None]
        if self.flip and generator.random() < 0.5:
            image, label = image.flip(1), label.flip(1)
        if self.transform is not None:
            self.transform.set_random_state(seed=int(generator.integers(LARGEST_SEED)))
            image = torch.as_tensor(np.asarray(self.transform({"image": image})["image"], dtype=np.float32))
        return {"image": image, "label": label, "case_id": case.case_id}

    def _choose_patch(self, label_map: np.ndarray, generator: np.random.Generator) -> tuple[slice, ...]:
        """Cut around a voxel drawn evenly from the brain; a patch that would leave the volume is moved inwards."""
        while not label_map[centre := tuple(generator.integers(label_map.shape))]:
            pass  # the brain fills a sixth of the box or more: a few draws are cheaper than a list of its voxels
        corner = [
            min(max(0, c - size // 2), extent - size)
            for c, size, extent in zip(centre, self.patch_size, label_map.shape, strict=True)
        ]
        return tuple(slice(i, i + size) for i, size in zip(corner, self.patch_size, strict=True))


class SegmentationVolumeDataset(Dataset):
    """Whole prepared volumes: ``image`` (1, X, Y, Z) float32 in [0, 1], ``label`` (1, X, Y, Z) int64, ``case_id``."""

    def __init__(self, cases: Sequence[PreparedCase]) -> None:
        self.cases = cases

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int) -> dict[str, Any]:
        case = self.cases[index]
        return {
            "image": case.t1w().add_(1.0).div_(2.0)[None],
            "label": torch.from_numpy(case.label_map().astype(np.int64))[None],
            "case_id": case.case_id,
        }
