"""Every method's volume of every test scan: what the evaluation then measures."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trispade.data import EvaluationStore, PreparedCase
from trispade.geometry import PLANES, WorkingGrid
from trispade.inference.fusion_choice import fusion_file
from trispade.inference.second_fusion import REALISM
from trispade.intensity import evaluation_intensity
from trispade.labels import Vocabulary
from trispade.metrics import class_means, label_mean_image
from trispade.transforms import FromWorkingGridd
from trispade.transforms.label_map import affine_of

BACKGROUND = -1.0
METHODS = ("label_mean", "direct", *PLANES, "mean_of_planes", "fused", "realism", "real_resampled")


class StoreMethods:
    """Last transform of the evaluating engine: gives a case's volumes by all methods to the store.

    Methods, from the bound below to that above: ``label_mean`` (each class painted with its mean over the training
    people, smoothed), ``direct`` (a 3D U-Net straight from labels, if one was trained), each plane's volume,
    ``mean_of_planes``, ``fused``, ``realism`` (the second fusion net, if the model has one), and ``real_resampled``:
    the real scan taken to the working grid and back, which bounds what any method can reach on that grid. All of them
    take the same way back to the scan's own grid.

    Args:
        store: where they go.
        training_cases: people whose class means the label-mean image uses.
        vocabulary: of the label maps.
        direct: (1, 1, X, Y, Z) class indices -> (1, 1, X, Y, Z) intensities, or None.
        realism: painted planes (1, 3, X, Y, Z) and class indices -> (1, 1, X, Y, Z) intensities, or None.

    Raises:
        InputError: if a scan is dark or the store cannot be written.
    """

    def __init__(
        self,
        store: EvaluationStore,
        training_cases: Sequence[PreparedCase],
        vocabulary: Vocabulary,
        direct: Callable[[torch.Tensor], torch.Tensor] | None = None,
        realism: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        self.store = store
        self.training_cases = training_cases
        self.vocabulary = vocabulary
        self.direct = direct
        self.realism = realism

    @cached_property
    def means(self) -> np.ndarray:
        """Intensity of each class, (num_classes,) float64 in [-1, 1], over the training people."""
        pairs = ((case.label_map(), case.t1w().numpy()) for case in self.training_cases)
        known = {index for case in self.training_cases for index in case.record["classes"]}
        known |= {index for index, each in enumerate(self.vocabulary.classes) if each.parent is None}
        # A class without training data takes its parent's mean, as it takes its parent's weights in the networks.
        return class_means(pairs, self.vocabulary.num_classes)[self.vocabulary.fallback_table(known)]

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        """Store an item of the evaluator, with its ``pred``: (4, X, Y, Z), the three planes and the fused volume."""
        label_map = np.asarray(item["own_label_map"])[0]
        real = np.asarray(item["t1w"], dtype=np.float32)[0]
        volumes = self._on_working_grid(item, evaluation_intensity(real, label_map > 0) * 2.0 - 1.0)
        own = self._on_own_grid(volumes, item)
        self.store.add(item, label_map, real, own, affine_of(item["own_label_map"]))
        return item

    def _on_working_grid(self, item: dict[str, Any], real: np.ndarray) -> dict[str, np.ndarray]:
        """Collect every method's volume, (X, Y, Z) in [-1, 1]."""
        painted = dict(zip((*PLANES, "fused"), item["pred"].numpy(), strict=True))
        volumes = {"label_mean": label_mean_image(np.asarray(item["image"])[0], self.means)}
        if self.direct is not None:
            volumes["direct"] = self.direct(item["image"][None].as_tensor())[0, 0].float().cpu().numpy()
        second: dict[str, np.ndarray] = {}
        if self.realism is not None:
            planes_only = torch.as_tensor(item["pred"]).as_subclass(torch.Tensor)[None, : len(PLANES)]
            second["realism"] = self.realism(planes_only, item["image"][None].as_tensor())[0, 0].numpy()
        planes: dict[str, np.ndarray] = {plane: painted[plane] for plane in PLANES}
        return {
            **volumes,
            **planes,
            "mean_of_planes": np.mean(list(planes.values()), axis=0),
            "fused": painted["fused"],
            **second,
            "real_resampled": WorkingGrid.from_dict(item["working_grid"]).image_to_working(real, BACKGROUND),
        }

    def _on_own_grid(self, volumes: Mapping[str, np.ndarray], item: dict[str, Any]) -> dict[str, np.ndarray]:
        there: dict[Any, Any] = {name: torch.from_numpy(volume)[None] for name, volume in volumes.items()}
        there |= {key: item[key] for key in ("image", "working_grid")}
        back = FromWorkingGridd(keys=tuple(volumes))(there)
        return {name: np.asarray(back[name])[0] for name in volumes}


def what_made_them(
    model_file: str | Path,
    direct_model_file: str | Path | None,
    training_cases: Sequence[PreparedCase],
    **settings: Any,
) -> dict[str, Any]:
    """Say what decides the methods' volumes, for the store: hashes of the models and of the label-mean people.

    Args:
        model_file: the triplanar model.
        direct_model_file: the direct model; its hash is None if there is no such file.
        training_cases: people whose class means the label-mean image uses.
        settings: other plain values.
    """
    keys = "\n".join(sorted(case.key for case in training_cases))
    return {
        "model": _sha256(model_file),
        "direct": _sha256(direct_model_file),
        "realism": _sha256(fusion_file(model_file, REALISM)),
        "label_mean": hashlib.sha256(keys.encode()).hexdigest(),
        **settings,
    }


def _sha256(path: str | Path | None) -> str | None:
    if path is None or not Path(path).is_file():
        return None
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
