"""Synthetic T1w volumes on the working grid, kept on disk as prepared cases that a segmentation network learns from.

    output_dir/copy_<k>/<case_id>-<key>/label_map.npy class indices, (X, Y, Z)
                                        t1w.npy       intensities in [-1, 1] as int16, (X, Y, Z)
                                        case.json     the prepared case, the model, the deformation

The key is a hash of the prepared case's key, of the model's weights and of the deformation.
"""

from __future__ import annotations

import hashlib
import json
import logging
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.inferers import Inferer
from tqdm import tqdm

from trispade.data import PreparedCase
from trispade.data.deformation import deform_label_map
from trispade.data.entries import KEY_LENGTH, store_entry
from trispade.data.quantised import quantise
from trispade.engines import hash_tensors
from trispade.inference.model_files import describe_model
from trispade.networks import TriplanarSynthesizer

logger = logging.getLogger(__name__)

SYNTHESIS_FORMAT = 1


class VolumeSynthesis:
    """Paints the label maps of prepared cases with the whole model, as they are and deformed.

    Args:
        network: the trained model.
        inferer: `trispade.inference.TriplanarInferer`.
        model_file: where the model's weights are from; only for the record.
        output_dir: where the volumes go.
        num_deformed: deformed copies of each label map, painted as well.
        deformation_sd_mm: standard deviation of the displacement along each axis.
        deformation_knots_mm: distance between the knots of the displacement.
        spacing_mm: edge of a working voxel.
        device: where to paint.
        seed: of the deformations.
    """

    def __init__(
        self,
        network: TriplanarSynthesizer,
        inferer: Inferer,
        model_file: str | Path,
        output_dir: str | Path,
        num_deformed: int,
        deformation_sd_mm: float,
        deformation_knots_mm: float,
        spacing_mm: float,
        device: torch.device | str,
        seed: int,
    ) -> None:
        self.network = network
        self.inferer = inferer
        self.model_file = Path(model_file)
        self.output_dir = Path(output_dir)
        self.num_deformed = num_deformed
        self.deformation = {"sd_mm": deformation_sd_mm, "knots_mm": deformation_knots_mm}
        self.spacing_mm = spacing_mm
        self.device = torch.device(device)
        self.seed = seed
        self.hash = hash_tensors(network.state_dict())

    def paint(self, cases: Sequence[PreparedCase]) -> tuple[PreparedCase, ...]:
        """Give the synthetic cases of some prepared ones; those that are on disk already are not painted again.

        Returns:
            A case for each label map and each deformed copy, with the person, split and fold of the label map. Their
            keys differ from those of the real scans.

        Raises:
            InputError: if the folder cannot be written.
        """
        wanted = [(case, copy) for copy in range(1 + self.num_deformed) for case in cases]
        painted = 0
        synthetic = []
        with tqdm(wanted, desc="synthesize volumes", unit="volume") as progress:
            for case, copy in progress:
                progress.set_postfix_str(case.case_id)
                key = self._key(case, copy)
                folder = self.output_dir / f"copy_{copy}" / f"{case.case_id}-{key[:KEY_LENGTH]}"
                if not (folder / "case.json").exists():
                    self._paint(case, copy, folder, key)
                    painted += 1
                record = json.loads((folder / "case.json").read_text())
                synthetic.append(replace(case, folder=folder, key=key, record=record))
        logger.info("%d synthetic volumes in %s, %d of them painted now", len(wanted), self.output_dir, painted)
        return tuple(synthetic)

    def _key(self, case: PreparedCase, copy: int) -> str:
        content = [SYNTHESIS_FORMAT, case.key, self.hash, *(self._describe(copy).values() if copy else ())]
        return hashlib.sha256("\n".join(map(str, content)).encode()).hexdigest()

    def _describe(self, copy: int) -> dict[str, Any]:
        return {**self.deformation, "seed": self.seed, "copy": copy}

    @torch.inference_mode()
    def _paint(self, case: PreparedCase, copy: int, folder: Path, key: str) -> None:
        label_map = np.array(case.label_map())
        if copy:
            # A number of each case's own, so that two people are never deformed alike.
            seed = [self.seed, copy, zlib.crc32(case.case_id.encode())]
            label_map = deform_label_map(label_map, **self.deformation, spacing_mm=self.spacing_mm, seed=seed)
        inputs = torch.from_numpy(label_map.astype(np.int64)).to(self.device)[None, None]
        t1w = self.inferer(inputs, self.network)[0, 0].float().cpu().numpy()
        record = {
            "key": key,
            "prepared_key": case.key,
            "model": {**describe_model(self.model_file), "state_sha256": self.hash},
            "deformation": self._describe(copy) if copy else None,
            "classes": np.unique(label_map).tolist(),
        }
        store_entry(folder, {"label_map": label_map, "t1w": quantise(t1w)}, record)
