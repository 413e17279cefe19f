"""2D training pairs: the labelled slices of one plane of the prepared cases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from monai.transforms import RandomizableTransform
from torch import Tensor
from torch.utils.data import Dataset

from trispade.data.cache import PreparedCase
from trispade.data.quantised import dequantise
from trispade.data.sampler import is_flipped
from trispade.geometry import Plane, check_label_slices, middle_slice, slice_axis, slice_volume, with_neighbours

BACKGROUND = -1.0


class SliceDataset(Dataset):
    """Slices with at least one labelled pixel, of one plane.

    Args:
        cases: prepared cases.
        plane: plane to cut in.
        flip: mirror left and right at random; only for vocabularies that merge the sides.
        seed: of the flips and of the augmentation.
        augmentation: MONAI transform of ``label_map`` and ``t1w``, see `slice_augmentation`; None for none.
        label_slices: label slices that the generator sees at once, odd; all are mirrored and deformed alike.

    An item, asked for as ``dataset[index]`` or ``dataset[index, visit]``, holds ``label_map`` (label_slices, H, W)
    integer class indices, background beyond the volume's ends; ``t1w`` (1, H, W) float32 in [-1, 1], of the middle
    one; ``case_id``; ``slice_index``. H and W are the volume's remaining axes in RAS order.

    Raises:
        InputError: if ``label_slices`` is not odd.
    """

    def __init__(
        self,
        cases: Sequence[PreparedCase],
        plane: Plane,
        flip: bool = False,
        seed: int = 0,
        augmentation: RandomizableTransform | None = None,
        label_slices: int = 1,
    ) -> None:
        self.augmentation = augmentation
        self.label_slices = check_label_slices(label_slices)
        self.plane = plane
        self.axis = slice_axis(plane)
        self.flip = flip and self.axis != 0  # a mirrored sagittal slice is another sagittal slice, not a flipped one
        self.seed = seed
        self.items = [(case, index) for case in cases for index in case.labelled_slices(plane)]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int | tuple[int, int]) -> dict[str, Any]:
        item, visit = index if isinstance(index, tuple) else (index, None)
        case, position = self.items[item]
        label_map = self._label_slices(case.label_map(), position)
        t1w = dequantise(case.stored_t1w().take(position, axis=self.axis))[None]
        if self.flip and visit is not None and is_flipped(self.seed, item, visit):
            label_map, t1w = label_map.flip(1), t1w.flip(1)
        images = {"label_map": label_map, "t1w": t1w}
        if self.augmentation is not None and visit is not None:
            images = self._augment(images, item, visit)
        return {**images, "case_id": case.case_id, "slice_index": position}

    def _label_slices(self, volume: np.ndarray, position: int) -> Tensor:
        """Read a slice of (X, Y, Z) class indices with its neighbours, and no more: (label_slices, H, W)."""
        reach = self.label_slices // 2
        first, last = max(0, position - reach), min(volume.shape[self.axis] - 1, position + reach)
        slab = torch.from_numpy(np.array(volume.take(range(first, last + 1), axis=self.axis)))
        return with_neighbours(slice_volume(slab[None], self.plane), self.label_slices)[position - first]

    def _augment(self, images: dict[str, Tensor], item: int, visit: int) -> dict[str, Tensor]:
        """Draw an augmentation that depends on the seed, the item and the visit alone."""
        assert self.augmentation is not None
        self.augmentation.set_random_state(state=np.random.RandomState([self.seed, item, visit]))
        deformed = {name: image.as_subclass(Tensor) for name, image in self.augmentation(images).items()}
        label_map = deformed["label_map"].round().to(images["label_map"].dtype)
        outside = middle_slice(label_map) == 0
        return {"label_map": label_map, "t1w": deformed["t1w"].masked_fill(outside, BACKGROUND)}
