"""The demonstration: the whole method on phantoms, in minutes, without a scan of anybody."""

from __future__ import annotations

import logging
from pathlib import Path

import nibabel as nib
import numpy as np

from trispade.bundle_run import run_stage
from trispade.geometry import PLANES
from trispade.labels import load_scheme
from trispade.manifests import read_manifest
from trispade.phantoms import write_phantom_dataset
from trispade.report.figure import save_triplanar_figure
from trispade.transforms import output_files

logger = logging.getLogger(__name__)

NUM_PEOPLE = 8
MAX_EPOCHS = 24
MINUTES_A_PLANE = 0.9
MINUTES_FUSION = 0.6


def run_demo(bundle: Path, folder: str | Path) -> tuple[Path, Path]:
    """Train the ``smoke`` preset on phantoms, synthesize a T1w volume for one whose scan no network has seen, show it.

    After a stop, the same call goes on.

    Args:
        bundle: the bundle's root.
        folder: where phantoms, checkpoints, the volume and the picture go.

    Returns:
        The synthetic volume's path and the picture's.
    """
    folder = Path(folder)
    logger.warning(
        "no trained weights are shipped yet: training the smoke preset (4 mm) on %d phantoms first, within 5 minutes",
        NUM_PEOPLE,
    )
    manifest_file = folder / "phantoms" / "phantoms.json"
    if not manifest_file.exists():
        write_phantom_dataset(folder / "phantoms", NUM_PEOPLE)
    data = {"dataset_dir": folder / "phantoms", "manifest_file": manifest_file, "work_dir": folder / "work"}
    model = folder / "model.pt"
    run_stage(bundle, "prepare", "smoke", **data)
    for plane in PLANES:
        run_stage(
            bundle,
            "train_spade",
            "smoke",
            plane=plane,
            max_epochs=MAX_EPOCHS,
            max_minutes=MINUTES_A_PLANE,
            val_interval=8,
            **data,
        )
    run_stage(bundle, "synthesize_planes", "smoke", **data)
    run_stage(
        bundle,
        "train_fusion",
        "smoke",
        model_file=model,
        max_epochs=MAX_EPOCHS,
        max_minutes=MINUTES_FUSION,
        val_interval=4,
        **data,
    )
    (case,) = read_manifest(manifest_file, folder / "phantoms").select(["test"])[:1]
    run_stage(
        bundle, "inference", "smoke", input=case.label, output_dir=folder, model_file=model, label_scheme="freesurfer"
    )
    volume, _ = output_files(folder, case.case_id)
    return volume, _show(case.label, volume, case.image, folder / "demo.png")


def _show(label: Path, synthetic: Path, real: Path | None, picture: Path) -> Path:
    columns = {
        "label map": load_scheme("freesurfer").to_indices(_voxels(label), str(label)),
        "synthetic T1w": _voxels(synthetic),
    }
    if real is not None:
        columns["the phantom's own T1w"] = _voxels(real)
    return save_triplanar_figure(columns, picture)


def _voxels(path: Path) -> np.ndarray:
    return np.asarray(nib.as_closest_canonical(nib.load(path)).dataobj)
