"""The label path, the same in training and inference: file -> class indices on the working grid, and the way back.

The way back ends in a file, or a series of files, on the label map's own grid, with a sidecar that says what it is.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import convert_to_dst_type
from nibabel.spatialimages import SpatialImage

import trispade
from trispade.digests import sha256_of
from trispade.errors import InputError
from trispade.geometry import Grid, WorkingGrid
from trispade.labels import LabelScheme, fill_brain, load_scheme
from trispade.nifti import check_label_map, name_without_suffix, read_label_map
from trispade.segment_names import segment_labels_of, segments_to_ids
from trispade.transforms.fingerprint import fingerprint
from trispade.transforms.output_format import (
    MAKER,
    check_format,
    output_files,
    remove_volume,
    write_dataset_files,
    write_volume,
)

BACKGROUND_VALUE = -1.0
CSF_CLASS = "csf"
MADE_WITH = ("SourceSha256", "LabelScheme", "LabelSchemeSha256", "ValueRange", "DataType", "Settings")
"""Entries of a sidecar that, with the hash of the model, decide what the volume is."""
SEGMENT_LABELS = "segment_labels"
"""Key of the metadata of a label map whose voxels are segment numbers: segment number -> segment label."""
_LABEL_SUFFIXES = ("_dseg", "_labels", "_label", "_seg")

Data = Mapping[Hashable, Any]


class LoadLabelMapd(MapTransform):
    """Read label maps: path -> (1, X, Y, Z) int32 label ids on the file's own grid.

    The tensor's affine is the file's; its metadata holds `filename`, `source_shape` and `source_affine`, and of a DICOM
    SEG, whose voxels are segment numbers, `segment_labels`, by which `MapLabelsd` knows them. An image that
    other software has loaded already, a nibabel image or a MetaTensor of (1, X, Y, Z) or (X, Y, Z), is checked and
    taken as a file is; the MetaTensor keeps its metadata.

    Raises:
        InputError: whatever `trispade.nifti.read_label_map` finds wrong with the file or the image.
    """

    def __init__(self, keys: KeysCollection) -> None:
        super().__init__(keys)

    def __call__(self, data: Data) -> dict[Hashable, Any]:
        """Replace each path by its label map."""
        result = dict(data)
        for key in self.key_iterator(result):
            image = result[key]
            result[key] = _read(image) if _is_path(image) else _loaded(image, key)
        return result


class MapLabelsd(MapTransform):
    """Map label ids to the class indices of a scheme's vocabulary, uint8 (or int16 beyond 256 classes).

    Args:
        keys: label maps, (1, X, Y, Z) integer label ids.
        scheme: name of a bundled label scheme, path of a TSV, or a `LabelScheme`.
        unknown_labels: "error" or "background", for ids that the scheme does not list.

    Raises:
        InputError: on unknown ids, all of them listed.
    """

    def __init__(self, keys: KeysCollection, scheme: str | Path | LabelScheme, unknown_labels: str = "error") -> None:
        super().__init__(keys)
        self.scheme = load_scheme(scheme)
        self.unknown_labels = unknown_labels

    def __call__(self, data: Data) -> dict[Hashable, Any]:
        """Replace ids by indices."""
        result = dict(data)
        for key in self.key_iterator(result):
            label_map, name = result[key], name_of(result[key], key)
            ids, meta = array_of(label_map), dict(label_map.meta)
            labels = meta.pop(SEGMENT_LABELS, None)
            if labels is not None:
                ids = segments_to_ids(ids, labels, self.scheme, name, self.unknown_labels)
            indices = self.scheme.to_indices(ids, name, self.unknown_labels)
            result[key] = MetaTensor(torch.from_numpy(indices[None]), meta=meta)
        return result


class ToWorkingGridd(MapTransform):
    """Bring label map and images onto one isotropic RAS box around the head.

    The label map is resampled by `WorkingGrid.labels_to_working`, everything else by `WorkingGrid.image_to_working`,
    with its own minimum outside the scan. `data["working_grid"]` holds the grid (`WorkingGrid.to_dict`: tensors, so
    that it can be collated) for the way back.

    Args:
        keys: what to resample, (1, X, Y, Z) on the label map's grid.
        label_key: the label map, (1, X, Y, Z) class indices; resampled if it is one of `keys`.
        spacing_mm: edge of a working voxel.
        box: shape of the working grid; None takes the smallest multiples of 32 that hold the head.

    Raises:
        InputError: if the head does not fit the box.
    """

    def __init__(
        self, keys: KeysCollection, label_key: str, spacing_mm: float, box: Sequence[int] | None = None
    ) -> None:
        super().__init__(keys)
        self.label_key = label_key
        self.spacing_mm = float(spacing_mm)
        self.box = None if box is None else tuple(int(extent) for extent in box)

    def __call__(self, data: Data) -> dict[Hashable, Any]:
        """Resample each key and record the grid."""
        result = dict(data)
        label_map = result[self.label_key]
        indices = array_of(label_map)
        source = Grid(indices.shape, affine_of(label_map))
        name = name_of(label_map, self.label_key)
        grid = WorkingGrid.around(source, indices > 0, self.spacing_mm, self.box, name=name)
        for key in self.key_iterator(result):
            volume = array_of(result[key])
            is_labels = key == self.label_key
            moved = grid.labels_to_working(volume) if is_labels else grid.image_to_working(volume, float(volume.min()))
            meta = {**result[key].meta, "affine": torch.from_numpy(grid.affine)}
            result[key] = MetaTensor(torch.from_numpy(moved[None]), meta=meta)
        result["working_grid"] = grid.to_dict()
        return result


class FillBraind(MapTransform):
    """Give the unlabelled voxels inside the brain (sulci, meninges) the class CSF; the brain mask is then `> 0`.

    Where the scheme says `trim_csf`, CSF does not extend the brain (`trispade.labels.fill_brain`).

    Args:
        keys: label maps, (1, X, Y, Z) class indices on any grid.
        scheme: the scheme they were mapped with.
        closing_mm: radius of the ball that closes the labelled region.

    Raises:
        InputError: if nothing is labelled or the vocabulary has no class "csf".
    """

    def __init__(self, keys: KeysCollection, scheme: str | Path | LabelScheme, closing_mm: float = 5.0) -> None:
        super().__init__(keys)
        self.scheme = load_scheme(scheme)
        self.closing_mm = float(closing_mm)
        if self.scheme.trim_csf:
            self.trim_csf = True  # tells the cache's key, which stays what it was for all other schemes

    def __call__(self, data: Data) -> dict[Hashable, Any]:
        """Fill each label map."""
        result = dict(data)
        for key in self.key_iterator(result):
            filled = filled_indices(result[key], self.scheme, self.closing_mm, key)
            result[key] = MetaTensor(torch.from_numpy(filled[None]), meta=dict(result[key].meta))
        return result


class FromWorkingGridd(MapTransform):
    """Bring volumes from the working grid back onto the voxels of the file that the label map came from.

    Outside the brain they are exactly -1. At the brain's edge only voxels inside it are interpolated, so that no rim
    darkens. At equal spacing voxels are copied.

    Args:
        keys: volumes, (1, X, Y, Z) in [-1, 1] on the working grid.
        label_key: the filled label map on the working grid, whose labelled voxels are the brain.
        grid_key: where `ToWorkingGridd` has left the grid.
    """

    def __init__(self, keys: KeysCollection, label_key: str = "image", grid_key: str = "working_grid") -> None:
        super().__init__(keys)
        self.label_key = label_key
        self.grid_key = grid_key

    def __call__(self, data: Data) -> dict[Hashable, Any]:
        """Replace each volume by the one on the source grid, with the source's affine."""
        result = dict(data)
        grid = WorkingGrid.from_dict(result[self.grid_key])
        label_map = result[self.label_key]
        mask = array_of(label_map) > 0
        share = grid.image_to_source(mask.astype(np.float32))
        brain = share >= 0.5 - 1e-5
        meta = {**getattr(label_map, "meta", {}), "affine": torch.from_numpy(np.array(grid.source.affine, np.float64))}
        for key in self.key_iterator(result):
            inside = grid.image_to_source(np.where(mask, array_of(result[key]), 0))
            volume = np.full(inside.shape, BACKGROUND_VALUE, np.float32)
            volume[brain] = inside[brain] / share[brain]
            result[key] = MetaTensor(torch.from_numpy(volume[None]), meta=dict(meta))
        return result


class SaveSyntheticd(MapTransform):
    """Write `<case>_desc-synthetic_T1w.nii.gz`, or another format, and its JSON sidecar on the grid of the label map.

    The case is `data["case_id"]`, or else the input's file name. The voxels outside the brain (at -1) are exactly the
    lower end of the value range. Afterwards `data["saved_to"]` holds the path and `data[key]` the voxels as written, in
    float32. At any moment a volume with a sidecar is the volume that the sidecar tells of, so that a run that was
    stopped can go on (`is_finished`).

    Args:
        keys: volumes, (1, X, Y, Z) in [-1, 1] on the source grid (after `FromWorkingGridd`).
        output_dir: folder, made if missing.
        label_key: the input label map; its file gives the space codes and the name.
        value_range: what -1 and 1 become.
        dtype: "float32", or "int16", which rounds.
        record: what the sidecar says of the model (JSON-able); ``sha256`` is the hash of its weights.
        scheme: the label scheme, for the sidecar.
        settings: other settings that change the volume (JSON-able), for the sidecar.
        output_format: "nifti", "mgz", "dicom" or "bids" (`trispade.transforms.output_format`).

    Raises:
        InputError: if the folder cannot be written to, or the dtype, range or format is none of those.
    """

    def __init__(
        self,
        keys: KeysCollection,
        output_dir: str | Path,
        label_key: str = "image",
        value_range: Sequence[float] = (0, 255),
        dtype: str = "float32",
        record: Mapping[str, Any] | None = None,
        scheme: str | Path | LabelScheme | None = None,
        settings: Mapping[str, Any] | None = None,
        output_format: str = "nifti",
    ) -> None:
        super().__init__(keys)
        check_format(output_format)
        if dtype not in ("float32", "int16"):
            raise InputError.of("dtype", "float32 or int16", repr(dtype), "Correct the setting.")
        low, high = (float(value) for value in value_range)
        if not low < high or (dtype == "int16" and not -32768 <= low < high <= 32767):
            raise InputError.of("value_range", f"two rising values that {dtype} holds", f"{value_range}", "Correct it.")
        self.output_dir = str(output_dir)
        self.label_key = label_key
        self.value_range = (low, high)
        self.dtype = dtype
        self.record = None if record is None else dict(record)
        self.scheme = None if scheme is None else load_scheme(scheme)
        self.settings = dict(settings or {})
        self.output_format = output_format

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Write each volume."""
        result = dict(data)
        source = name_of(result[self.label_key], "")
        for key in self.key_iterator(result):
            path, _ = self.files_of(case_name(result, source))
            volume = self.to_value_range(array_of(result[key])).astype(self.dtype)
            like = source if source and Path(source).is_file() else None
            with contextlib.suppress(OSError):  # what cannot be removed cannot be written either, and that is reported
                remove_volume(path)  # the new sidecar, which is there first, must not tell of the old volume
            if self.output_format == "bids":
                write_dataset_files(self.output_dir)
            write_volume(path, volume, affine_of(result[key]), like, self.value_range, self._sidecar(source))
            result[key] = convert_to_dst_type(volume[None], result[key])[0]
            result["saved_to"] = str(path)
        return result

    def files_of(self, case_id: str) -> tuple[Path, Path]:
        """Name the volume, a file or a folder, and the sidecar of a case."""
        return output_files(self.output_dir, case_id, self.output_format)

    def is_finished(self, case_id: str, source: str | Path) -> bool:
        """Tell whether a case's volume is there, made from this very file by this model with these settings."""
        path, sidecar_file = self.files_of(case_id)
        if not path.exists() or not Path(source).is_file():
            return False
        found, wanted = _read_sidecar(sidecar_file), json.loads(json.dumps(self._sidecar(str(source))))
        model, wanted_model = found.get("Model") or {}, wanted["Model"] or {}
        same_model = wanted_model.get("sha256") is not None and wanted_model["sha256"] == model.get("sha256")
        return same_model and all(key in found and found[key] == wanted[key] for key in MADE_WITH)

    def is_in_the_way(self, case_id: str) -> bool:
        """Tell whether there is a file of the case's name that trispade did not make."""
        files = self.files_of(case_id)
        sidecar = _read_sidecar(files[1])
        ours = sidecar.get("synthetic") is True and MAKER in json.dumps(sidecar.get("GeneratedBy"))
        return any(file.exists() for file in files) and not ours

    def to_value_range(self, volume: np.ndarray) -> np.ndarray:
        """Scale a volume (X, Y, Z) in [-1, 1] as it is written: float32, of whole numbers if ``dtype`` is int16."""
        low, high = self.value_range
        scaled = low + (np.clip(volume, -1, 1).astype(np.float32) + 1) * np.float32((high - low) / 2)
        return np.rint(scaled) if self.dtype == "int16" else scaled

    def _sidecar(self, source: str) -> dict[str, Any]:
        scheme, file = self.scheme, Path(source)
        return {
            "synthetic": True,
            "Description": "T1w volume synthesized from a label map; no scan of a person",
            "Sources": [source],
            "SourceSha256": sha256_of(file) if source and file.is_file() else None,
            "SkullStripped": True,
            "GeneratedBy": [{"Name": MAKER, "Version": trispade.__version__}],
            "LabelScheme": None if scheme is None else scheme.name,
            "LabelSchemeSha256": None if scheme is None else fingerprint([scheme, scheme.trim_csf]),
            "ValueRange": list(self.value_range),
            "DataType": self.dtype,
            "Scaling": "linear: network output -1 (background) and 1 are the ends of ValueRange",
            "Settings": self.settings,
            "Model": self.record,
        }


def _read_sidecar(path: Path) -> dict[str, Any]:
    """Read a JSON sidecar; empty if there is none that can be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def case_name(data: Mapping[Hashable, Any], source: str) -> str:
    """Case of an output: `case_id` where the data has it, else the input's file name without its label suffix."""
    if data.get("case_id"):
        return str(data["case_id"])
    name = name_without_suffix(source) or "case"
    for suffix in _LABEL_SUFFIXES:
        name = name.removesuffix(suffix)
    return name


def tensor_of_file(volume: np.ndarray, affine: np.ndarray, path: str | Path) -> MetaTensor:
    """Wrap a volume (X, Y, Z) as (1, X, Y, Z) that knows its file and grid."""
    meta = {
        **({"filename": str(path)} if str(path) else {}),
        "source_shape": torch.tensor(volume.shape),
        "source_affine": torch.from_numpy(np.array(affine, np.float64)),
    }
    return MetaTensor(torch.from_numpy(volume[None]), affine=torch.from_numpy(np.array(affine, np.float64)), meta=meta)


def _read(path: str | Path) -> MetaTensor:
    label_map = tensor_of_file(*read_label_map(path), path)
    labels = segment_labels_of(path)
    if labels is not None:
        label_map.meta[SEGMENT_LABELS] = labels
    return label_map


def _is_path(image: Any) -> bool:
    return isinstance(image, str | Path)


def _loaded(image: Any, key: Hashable) -> MetaTensor:
    """Wrap an image that is in memory as `tensor_of_file` does, under the name that it has brought along."""
    if isinstance(image, SpatialImage):
        name = image.get_filename() or ""
        label_map, affine = check_label_map(np.asanyarray(image.dataobj), image.affine, name or str(key))
        return tensor_of_file(label_map, affine, name)
    if not isinstance(image, MetaTensor):
        raise InputError.of(
            key,
            "a path, a nibabel image or a MetaTensor, which have an affine",
            type(image).__name__,
            "Give voxels and affine as a MetaTensor.",
        )
    name = str(image.meta.get("filename") or image.meta.get("filename_or_obj") or "")
    if image.ndim == 3:  # loaded without a channel
        image = image[None]
    if image.ndim != 4 or len(image) != 1:
        expected, found = "one channel, (X, Y, Z) or (1, X, Y, Z)", f"shape {tuple(image.shape)}"
        raise InputError.of(name or key, expected, found, "Choose the channel.")
    label_map, affine = check_label_map(array_of(image), affine_of(image), name or str(key))
    loaded = tensor_of_file(label_map, affine, name)
    loaded.meta = {**image.meta, **loaded.meta}
    return loaded


def filled_indices(label_map: torch.Tensor, scheme: LabelScheme, closing_mm: float, key: Hashable) -> np.ndarray:
    """Fill the brain of a (1, X, Y, Z) label map of class indices as its scheme asks for; gives (X, Y, Z)."""
    indices = array_of(label_map)
    spacing_mm = Grid(indices.shape, affine_of(label_map)).spacing_mm
    csf_index = scheme.vocabulary.index(CSF_CLASS)
    source = name_of(label_map, key)
    return fill_brain(indices, spacing_mm, csf_index, closing_mm, source=source, trim_csf=scheme.trim_csf)


def affine_of(volume: torch.Tensor) -> np.ndarray:
    """(4, 4) float64 affine of a MetaTensor, voxel -> RAS+ mm."""
    return torch.as_tensor(volume.affine, dtype=torch.float64).cpu().numpy()  # type: ignore[attr-defined]


def name_of(volume: torch.Tensor, key: Hashable) -> str:
    """File that a tensor was read from, or its key, for error messages."""
    return str(getattr(volume, "meta", {}).get("filename", key))


def array_of(volume: torch.Tensor) -> np.ndarray:
    """(1, X, Y, Z) tensor as an (X, Y, Z) array."""
    assert volume.shape[:-3] == (1,), tuple(volume.shape)
    plain = volume.as_tensor() if isinstance(volume, MetaTensor) else volume
    return plain.detach().cpu().numpy()[0]
