"""What is compared: each test scan beside every method's volume, on disk, so that measuring needs no network.

    folder/<case_id>-<key>/label_map.npy    class indices, brain filled, uint8 or int16
                           real.npy         bias-corrected scan, float32, 0 outside the brain
                           <method>.npy     intensities in [-1, 1] as int16
                           case.json        grid, sources, what made the volumes

All arrays lie on the scan's own grid and are stored cut to the brain. The key is a hash of both source files' content,
of the chain of transforms, and of every model and setting that the volumes were made with.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from trispade.data.entries import KEY_LENGTH, store_entry
from trispade.data.quantised import dequantise, quantise
from trispade.digests import sha256_of
from trispade.errors import InputError
from trispade.transforms import fingerprint

EVALUATION_FORMAT = 1
BACKGROUND = -1.0


@dataclass(frozen=True)
class EvaluationCase:
    """A test scan and what every method made of its label map.

    Attributes:
        case_id: scan, unique in its manifest.
        person_id: whose scan it is.
        folder: where the arrays lie.
        record: the content of ``case.json``.
    """

    case_id: str
    person_id: str
    folder: Path
    record: Mapping[str, Any]

    @property
    def key(self) -> str:
        """Hash of sources, models and settings."""
        return str(self.record["key"])

    @property
    def affine(self) -> np.ndarray:
        """(4, 4) float64, voxel -> RAS+ mm."""
        return np.array(self.record["affine"], dtype=np.float64)

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of the methods, from the bound below to the bound above."""
        return tuple(self.record["methods"])

    def label_map(self) -> np.ndarray:
        """Class indices, (X, Y, Z) uint8 or int16, brain filled: the mask is ``> 0``."""
        return self._uncut(np.load(self.folder / "label_map.npy"), 0)

    def real(self) -> np.ndarray:
        """Bias-corrected scan, (X, Y, Z) float32 in the scan's own unit, 0 outside the brain."""
        return self._uncut(np.load(self.folder / "real.npy"), 0.0)

    def volume(self, method: str) -> np.ndarray:
        """A method's volume, (X, Y, Z) float32 in [-1, 1], -1 outside the brain."""
        return self._uncut(dequantise(np.load(self.folder / f"{method}.npy")).numpy(), BACKGROUND)

    def _uncut(self, array: np.ndarray, background: float) -> np.ndarray:
        whole = np.full(self.record["shape"], background, array.dtype)
        whole[tuple(slice(start, stop) for start, stop in self.record["box"])] = array
        return whole


class EvaluationStore:
    """The folder that keeps evaluated cases, each valid only for the sources, models and settings that made it.

    Args:
        folder: of the store, made when the first case is added.
        transform: chain of transforms that brings a case to the network.
        made_with: plain values that decide the volumes: hashes of models, of training cases, settings.
    """

    def __init__(self, folder: str | Path, transform: Any, made_with: Mapping[str, Any]) -> None:
        self.folder = Path(folder)
        self.made_with = dict(made_with)
        self._chain = fingerprint(transform)

    def add(
        self,
        item: Mapping[str, Any],
        label_map: np.ndarray,
        real: np.ndarray,
        volumes: Mapping[str, np.ndarray],
        affine: np.ndarray,
    ) -> None:
        """Store a case, whole or not at all; an older state of it is removed.

        Args:
            item: of the data list: ``case_id``, ``person_id``, and the paths ``label_path`` and ``t1w_path``.
            label_map: (X, Y, Z) class indices, brain filled.
            real: (X, Y, Z) bias-corrected scan.
            volumes: method to (X, Y, Z) volume in [-1, 1].
            affine: (4, 4), voxel -> RAS+ mm.

        Raises:
            InputError: if the folder cannot be written.
        """
        key = self._key(item)
        (box,) = ndimage.find_objects((label_map > 0).astype(np.uint8))
        record = {
            "key": key,
            "case_id": item["case_id"],
            "person_id": item["person_id"],
            "shape": list(label_map.shape),
            "box": [[each.start, each.stop] for each in box],
            "affine": np.asarray(affine).tolist(),
            "methods": list(volumes),
            "made_with": self.made_with,
        }
        arrays = {"label_map": label_map[box], "real": np.where(label_map > 0, real, 0)[box].astype(np.float32)}
        arrays |= {method: quantise(volume[box]) for method, volume in volumes.items()}
        store_entry(self._entry(item, key), arrays, record)

    def unfinished(self, items: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return the items of a data list that are not in the store yet, or not in this state."""
        return [dict(item) for item in items if self._find(item) is None]

    def open(self, items: Sequence[Mapping[str, Any]]) -> tuple[EvaluationCase, ...]:
        """Open those of a data list's cases that are in the store, in the list's order."""
        found = [(item, self._find(item)) for item in items]
        return tuple(
            EvaluationCase(str(item["case_id"]), str(item["person_id"]), folder, _read_record(folder))
            for item, folder in found
            if folder is not None
        )

    def _find(self, item: Mapping[str, Any]) -> Path | None:
        try:
            folder = self._entry(item, self._key(item))
        except OSError:
            return None  # a source cannot be read: its turn will tell
        return folder if (folder / "case.json").exists() else None

    def _entry(self, item: Mapping[str, Any], key: str) -> Path:
        return self.folder / f"{item['case_id']}-{key[:KEY_LENGTH]}"

    def _key(self, item: Mapping[str, Any]) -> str:
        sources = [sha256_of(item[name]) for name in ("label_path", "t1w_path")]
        content = [EVALUATION_FORMAT, self._chain, sources, self.made_with, item["person_id"]]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _read_record(folder: Path) -> dict[str, Any]:
    path = folder / "case.json"
    try:
        return dict(json.loads(path.read_text()))
    except ValueError as error:
        raise InputError.of(path, "the record of a case", "text that is not JSON", f"Remove {folder}.") from error
