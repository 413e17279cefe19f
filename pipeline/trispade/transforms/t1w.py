"""The T1w path of a training case: scan -> bias corrected, scaled to [-1, 1], exactly -1 outside the brain."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from trispade.geometry import Grid, Window
from trispade.intensity import correct_bias, fit_scaling
from trispade.labels import LabelScheme, load_scheme
from trispade.nifti import check_same_grid, read_t1w
from trispade.transforms.label_map import BACKGROUND_VALUE, affine_of, array_of, filled_indices, name_of, tensor_of_file

Data = Mapping[Hashable, Any]


class LoadT1wd(MapTransform):
    """Read T1w scans: path -> (1, X, Y, Z) float32 in the file's own units, on the grid of its label map.

    A DICOM series has no axis order of its own, and a DICOM SEG leaves out slices: of a series those voxels are taken,
    in that order, which the label map has.

    Args:
        keys: paths of scans, files or folders with a DICOM series.
        label_key: label map, already loaded, that must lie on the same grid.

    Raises:
        InputError: whatever `trispade.nifti.read_t1w` finds wrong with the file, or if the grids differ.
    """

    def __init__(self, keys: KeysCollection, label_key: str) -> None:
        super().__init__(keys)
        self.label_key = label_key

    def __call__(self, data: Data) -> dict[Hashable, Any]:
        """Replace each path by its scan."""
        result = dict(data)
        label_map = result[self.label_key]
        for key in self.key_iterator(result):
            t1w, affine = read_t1w(result[key])
            label_name = name_of(label_map, self.label_key)
            if Path(result[key]).is_dir():
                label_grid = Grid(array_of(label_map).shape, affine_of(label_map))
                window = Window.find(label_grid, Grid(t1w.shape, affine))
                if window is not None:
                    t1w, affine = np.ascontiguousarray(window.cut(t1w)), label_grid.affine
            check_same_grid(label_name, label_map.shape[1:], affine_of(label_map), result[key], t1w.shape, affine)
            result[key] = tensor_of_file(t1w, affine, result[key])
        return result


class CorrectBiasd(MapTransform):
    """Correct the bias field by N4 inside the brain mask of the label map.

    Args:
        keys: scans, (1, X, Y, Z) on the label map's grid.
        label_key: label map, (1, X, Y, Z) class indices, filled or not.
        scheme: the scheme it was mapped with.
        closing_mm: radius of the ball that closes the labelled region.
        shrink_factor: edge in voxels of the blocks that N4 works on.
        iterations: at most so many for each fitting level, coarse to fine.

    Raises:
        InputError: if nothing is labelled or the scan is zero all over the brain.
    """

    def __init__(
        self,
        keys: KeysCollection,
        label_key: str,
        scheme: str | Path | LabelScheme,
        closing_mm: float = 5.0,
        shrink_factor: int = 4,
        iterations: Sequence[int] = (50, 50, 50),
    ) -> None:
        super().__init__(keys)
        self.label_key = label_key
        self.scheme = load_scheme(scheme)
        self.closing_mm = float(closing_mm)
        self.shrink_factor = int(shrink_factor)
        self.iterations = tuple(int(number) for number in iterations)

    def __call__(self, data: Data) -> dict[Hashable, Any]:
        """Correct each scan."""
        result = dict(data)
        label_map = result[self.label_key]
        mask = filled_indices(label_map, self.scheme, self.closing_mm, self.label_key) > 0
        spacing_mm = Grid(mask.shape, affine_of(label_map)).spacing_mm
        for key in self.key_iterator(result):
            t1w = array_of(result[key])
            name = name_of(result[key], key)
            corrected = correct_bias(t1w, mask, spacing_mm, self.shrink_factor, self.iterations, name)
            result[key] = MetaTensor(torch.from_numpy(corrected[None]), meta=dict(result[key].meta))
        return result


class ScaleIntensityd(MapTransform):
    """Scale T1w to [-1, 1] by one robust gain a scan (`trispade.intensity.fit_scaling`).

    `data["intensity_scaling"]` holds `{"gain", "offset"}` of the last key, for the way back to the scan's own units.

    Args:
        keys: bias-corrected scans, (1, X, Y, Z) on the label map's grid.
        label_key: label map, (1, X, Y, Z) class indices.
        scheme: the scheme it was mapped with.

    Raises:
        InputError: if nothing is labelled or white matter is not brighter than zero.
    """

    def __init__(self, keys: KeysCollection, label_key: str, scheme: str | Path | LabelScheme) -> None:
        super().__init__(keys)
        self.label_key = label_key
        self.scheme = load_scheme(scheme)

    def __call__(self, data: Data) -> dict[Hashable, Any]:
        """Scale each scan."""
        result = dict(data)
        indices = array_of(result[self.label_key])
        vocabulary = self.scheme.vocabulary
        wm_indices, gm_indices = vocabulary.indices_of_tissue("wm"), vocabulary.indices_of_tissue("gm")
        for key in self.key_iterator(result):
            t1w = array_of(result[key])
            scaling = fit_scaling(t1w, indices, wm_indices, gm_indices, name_of(result[key], key))
            scaled = torch.from_numpy(scaling.apply(t1w)[None])
            result[key] = MetaTensor(scaled, meta=dict(result[key].meta))
            result["intensity_scaling"] = {"gain": scaling.gain, "offset": scaling.offset}
        return result


class MaskBackgroundd(MapTransform):
    """Set everything outside the brain to one value.

    Args:
        keys: volumes, (1, X, Y, Z) on the label map's grid.
        label_key: filled label map, (1, X, Y, Z) class indices; the brain is where it is not 0.
        value: value outside.
    """

    def __init__(self, keys: KeysCollection, label_key: str, value: float = BACKGROUND_VALUE) -> None:
        super().__init__(keys)
        self.label_key = label_key
        self.value = float(value)

    def __call__(self, data: Data) -> dict[Hashable, Any]:
        """Mask each volume."""
        result = dict(data)
        outside = torch.from_numpy(array_of(result[self.label_key]) == 0)[None]
        for key in self.key_iterator(result):
            volume = torch.from_numpy(array_of(result[key])[None]).masked_fill(outside, self.value)
            result[key] = MetaTensor(volume, meta=dict(result[key].meta))
        return result
