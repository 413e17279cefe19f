"""Label map to T1w as one call, in memory: the bundle's own inference for those who write Python."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Compose
from monai.utils import convert_to_numpy
from nibabel.spatialimages import SpatialImage
from torch import Tensor

from trispade.bundle_run import build_components, find_bundle
from trispade.engines import hash_tensors, predict
from trispade.errors import InputError, unwrapping_input_errors
from trispade.inference import TriplanarInferer
from trispade.networks import TriplanarSynthesizer
from trispade.transforms import SaveSyntheticd, fingerprint
from trispade.transforms.label_map import array_of

LabelMap: TypeAlias = "str | Path | SpatialImage | np.ndarray | Tensor"

_COMPONENTS = ("network", "preprocessing", "inferer", "postprocessing", "save", "device")


class Synthesizer:
    """A bundle's trained networks and its steps before and after them, as one function of a label map.

    It gives the very numbers that the bundle's `inference` writes, for it is built from the same config. One made for
    the CPU can be pickled, and used in the workers of a `DataLoader`.

    Args:
        network: in eval mode, on ``device``.
        preprocessing: ``{"image": path, nibabel image or MetaTensor}`` -> ``image`` (1, X, Y, Z) class indices on the
            working grid.
        inferer: runs the network.
        postprocessing: brings ``pred`` back onto the label map's grid.
        save: whose scaling and type the volume gets; it writes nothing here.
        device: where to paint.
    """

    def __init__(
        self,
        network: TriplanarSynthesizer,
        preprocessing: Compose,
        inferer: TriplanarInferer,
        postprocessing: Callable[[dict[str, Any]], dict[str, Any]],
        save: SaveSyntheticd,
        device: torch.device,
    ) -> None:
        self.network = network
        self.preprocessing = preprocessing
        self.inferer = inferer
        self.postprocessing = postprocessing
        self.save = save
        self.device = device

    @classmethod
    def from_bundle(
        cls,
        path: str | Path | None = None,
        device: str | torch.device | None = None,
        *,
        scheme: str | Path = "freesurfer",
        preset: str | None = "compact",
        fusion: str | None = None,
        unknown_labels: str | None = None,
        model_file: str | Path | None = None,
        **settings: Any,
    ) -> Synthesizer:
        """Build it from a bundle's ``configs/inference.yaml``.

        Args:
            path: the bundle's root folder; by default ``$TRISPADE_BUNDLE``, then the checkout's.
            device: where to paint; by default a GPU if there is one.
            scheme: what the label ids mean: ``freesurfer``, ``synthseg``, ``neuromorphometrics``, ``malc_all``, or the
                path of a TSV.
            preset: name of a preset, with which ``model_file`` was trained; None for the config's own values.
            fusion: ``fidelity`` or ``realism``.
            unknown_labels: ``error`` or ``background``, for label ids that the scheme does not have.
            model_file: weights; by default the bundle's ``models/model.pt``.
            settings: other keys of the config, such as ``value_range``, ``output_dtype`` or ``slice_batch_size``.
                Whatever is None is left to the config.

        Raises:
            InputError: if there is no bundle, if the model is missing or does not fit, or if a setting is none.
        """
        bundle, _ = find_bundle(path)
        named: dict[str, Any] = {"label_scheme": scheme, "fusion": fusion, "unknown_labels": unknown_labels}
        named["model_file"] = None if model_file is None else Path(model_file)
        named["device"] = None if device is None else _device(device)
        network, preprocessing, inferer, postprocessing, save, used_device = build_components(
            bundle, "inference", _COMPONENTS, preset, **{"progress": False, **settings, **named}
        )
        steps = [step for step in postprocessing.transforms if step is not save]
        return cls(network, preprocessing, inferer, Compose(steps), save, used_device)

    def __call__(
        self, label_map: LabelMap, affine: np.ndarray | Tensor | None = None, style_seed: int | None = None
    ) -> MetaTensor:
        """Paint the T1w volume of a label map.

        Args:
            label_map: label ids of the scheme: path of a NIfTI file; nibabel image; MetaTensor (1, X, Y, Z) or
                (X, Y, Z); array or tensor of the same shapes with ``affine``. On any grid that inference takes.
            affine: (4, 4), voxel -> RAS+ mm, of an array or a plain tensor.
            style_seed: draws the style, for a model that was trained with style; by default the config's.

        Returns:
            (1, X, Y, Z) on the label map's own grid, with its affine and, from a MetaTensor, its other metadata; in the
            config's ``value_range`` ([0, 255]; 0 outside the brain), float32, or int16 if ``output_dtype`` says so.

        Raises:
            InputError: what is wrong with the label map, as inference tells it; an affine that is missing, or one
                beside an image that has its own.
        """
        inferer = self.inferer if style_seed is None else copy.copy(self.inferer)
        inferer.style_seed = self.inferer.style_seed if style_seed is None else style_seed
        with unwrapping_input_errors(), torch.no_grad():
            item = self.preprocessing({"image": _with_affine(label_map, affine)})
            item["pred"] = predict(item["image"], self.network, inferer, self.device)
            pred = self.postprocessing(item)["pred"]
        volume = self.save.to_value_range(array_of(pred)).astype(self.save.dtype)
        return MetaTensor(torch.from_numpy(volume[None]), meta=pred.meta)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the weights and of each setting that decides the volume: equal ones paint equal volumes."""
        sliding = self.inferer.fusion
        settings = {
            "weights": hash_tensors(self.network.state_dict()),
            "preprocessing": self.preprocessing,
            "amp": self.inferer.amp,
            "style_seed": self.inferer.style_seed,
            "fusion": [sliding.roi_size, sliding.overlap, str(sliding.mode)],
            "written": [self.save.value_range, self.save.dtype],
        }
        return fingerprint(settings)


def _with_affine(label_map: LabelMap, affine: np.ndarray | Tensor | None) -> str | Path | SpatialImage | MetaTensor:
    """Give a label map in a form that `LoadLabelMapd` takes, voxels and affine in one."""
    has_own = isinstance(label_map, str | Path | SpatialImage | MetaTensor)
    if has_own and affine is not None:
        kind = type(label_map).__name__
        raise InputError.of("affine", f"none beside a {kind}, which has its own", "one", "Leave it out.")
    if has_own:
        return label_map
    if not isinstance(label_map, np.ndarray | Tensor):
        expected = "a path, a nibabel image, an array, a tensor or a MetaTensor"
        raise InputError.of("label map", expected, type(label_map).__name__, "Convert it.")
    if affine is None:
        raise InputError.of("affine", "one for an array or a plain tensor", "none", "Give voxel -> RAS+ mm, 4 x 4.")
    voxels = label_map if isinstance(label_map, Tensor) else torch.from_numpy(_native(label_map))
    matrix = np.asarray(convert_to_numpy(affine), np.float64)
    if matrix.shape != (4, 4):
        raise InputError.of("affine", "a matrix of 4 x 4", f"one of shape {matrix.shape}", "Give voxel -> RAS+ mm.")
    return MetaTensor(voxels, affine=torch.from_numpy(matrix))


def _native(array: np.ndarray) -> np.ndarray:
    """Give an array in a form that torch takes: byte order of this machine, a type that torch has, no negative step."""
    kinds = {"u": np.int64, "i": np.int64, "b": np.int64, "f": np.float64}
    if array.dtype.kind not in kinds:
        raise InputError.of("label map", "integers", f"an array of {array.dtype}", "Convert it.")
    return np.ascontiguousarray(array, kinds[array.dtype.kind])


def _device(device: str | torch.device) -> torch.device:
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError.of(
            "device", "one that this torch can use", f"{str(device)!r} ({reason})", "Choose cpu."
        ) from error
