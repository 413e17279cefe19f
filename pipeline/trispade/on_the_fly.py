"""T1w on the fly: a MONAI transform that gives label maps their T1w within a training, seeded and cached."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Randomizable
from monai.utils import ensure_tuple_rep
from torch import Tensor

from trispade.data.deformation import deform_label_map
from trispade.data.volume_cache import VolumeCache
from trispade.errors import InputError
from trispade.geometry import Grid
from trispade.synthesizer import Synthesizer
from trispade.transforms import LoadLabelMapd, fingerprint
from trispade.transforms.label_map import affine_of, array_of


class SynthesizeT1wd(Randomizable, MapTransform):
    """Paint the T1w of label maps, and, if asked for, of deformed copies of them.

    A label map has a fixed number of copies: copy 0 is itself, the others are deformed, each by a seed of its own, and
    with a model that was trained with style each copy has its own style. Each call draws one of them. What a copy looks
    like depends on ``seed`` and the label map alone; which one is drawn, on the random state, which ``seed`` starts and
    `set_random_state` sets, as with MONAI's other random transforms. Painted volumes are cached by a hash of label map,
    weights, settings and copy. There is no inverse: the T1w lies on the label map's grid.

    Args:
        keys: label maps of label ids: paths, nibabel images, or MetaTensors (1, X, Y, Z) with at least one labelled
            voxel. Paths and images become int32 MetaTensors; a deformed copy takes the place of its label map.
        image_key: where the T1w goes, one key for each of ``keys``: float32 MetaTensor (1, X, Y, Z).
        synthesizer: what paints; with `DataLoader` workers one on the CPU.
        cache_dir: folder of the cache, which workers and runs share; None keeps volumes in the memory of each worker.
        seed: of copies and draws.
        num_deformed: deformed copies of each label map.
        deformation_sd_mm: standard deviation of the displacement along each axis.
        deformation_knots_mm: distance between the knots of the displacement.
        num_in_memory: without ``cache_dir``, volumes that are kept.
        allow_missing_keys: leave out keys that an item does not have.

    Raises:
        InputError: if a label map or setting is one that inference does not take, or the cache cannot be written.
    """

    def __init__(
        self,
        keys: KeysCollection,
        image_key: KeysCollection = "image",
        *,
        synthesizer: Synthesizer,
        cache_dir: str | Path | None = None,
        seed: int = 0,
        num_deformed: int = 0,
        deformation_sd_mm: float = 3.0,
        deformation_knots_mm: float = 32.0,
        num_in_memory: int = 16,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        self.image_keys = ensure_tuple_rep(image_key, len(self.keys))
        self.synthesizer = synthesizer
        self.seed = seed
        self.num_deformed = num_deformed
        self.deformation = {"sd_mm": deformation_sd_mm, "knots_mm": deformation_knots_mm}
        self.cache = VolumeCache(cache_dir, num_in_memory)
        self.copy = 0
        if num_deformed < 0:
            raise InputError.of("num_deformed", "0 or more", str(num_deformed), "Correct it.")
        if len(set(self.image_keys)) < len(self.image_keys):
            raise InputError.of("image_key", "a key for each label map", f"{self.image_keys}", "Name as many.")
        self.set_random_state(seed)

    def randomize(self, data: Any = None) -> None:
        """Draw the copy."""
        self.copy = int(self.R.randint(self.num_deformed + 1))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Add the T1w of each label map."""
        result = dict(data)
        for key, image_key in self.key_iterator(result, self.image_keys):
            label_map = LoadLabelMapd(key)(result)[key]
            content = fingerprint([array_of(label_map), affine_of(label_map)])
            self.randomize()
            copy_seed = [self.seed, self.copy, int(content[:8], 16)]  # so that no two people are deformed alike
            if self.copy:
                label_map = self._deform(label_map, copy_seed)
            if self.copy or not isinstance(result[key], Tensor):
                result[key] = _in_place_of(result[key], label_map)
            result[image_key] = self._paint(label_map, content, copy_seed)
        return result

    def _deform(self, label_map: MetaTensor, copy_seed: list[int]) -> MetaTensor:
        ids = array_of(label_map)
        spacing_mm = Grid(ids.shape, affine_of(label_map)).spacing_mm
        deformed = deform_label_map(ids, **self.deformation, spacing_mm=spacing_mm, seed=copy_seed)
        return MetaTensor(torch.from_numpy(deformed[None]), meta=dict(label_map.meta))

    def _paint(self, label_map: MetaTensor, content: str, copy_seed: list[int]) -> MetaTensor:
        style_seed = int(np.random.default_rng(copy_seed).integers(2**31)) if self._has_style else None
        made_from = [content, self.synthesizer.fingerprint, style_seed, self._describe_copy(copy_seed)]
        volume = self.cache.get(
            fingerprint(made_from), lambda: self.synthesizer(label_map, style_seed=style_seed).numpy()
        )
        return MetaTensor(torch.from_numpy(volume.copy()), meta=dict(label_map.meta))

    @property
    def _has_style(self) -> bool:
        return bool(self.synthesizer.network.style_dim)

    def _describe_copy(self, copy_seed: list[int]) -> list[Any]:
        return [copy_seed, self.deformation] if self.copy else []


def _in_place_of(given: Any, label_map: MetaTensor) -> MetaTensor:
    """Give a label map the type and the history of the tensor whose place it takes."""
    if not isinstance(given, MetaTensor):
        return label_map
    ids = label_map.as_tensor().to(given.dtype)
    return MetaTensor(ids, meta=given.meta, applied_operations=given.applied_operations)
