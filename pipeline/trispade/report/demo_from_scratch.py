"""The demonstration from scratch: the whole method on phantoms, in minutes, without scans and without weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

from trispade.bundle_run import run_stage
from trispade.geometry import PLANES
from trispade.labels import load_scheme
from trispade.manifests import read_manifest
from trispade.phantoms import write_phantom_dataset
from trispade.report.figure import save_triplanar_figure
from trispade.transforms import output_files

NUM_PEOPLE = 8
SPADE_EPOCHS = 10
FUSION_EPOCHS = 8


def run_demo_from_scratch(bundle: Path, folder: str | Path) -> tuple[Path, Path]:
    """Train the ``smoke`` preset on phantoms, synthesize a T1w volume for one whose scan no network has seen, show it.

    After a stop, the same call goes on.

    Args:
        bundle: the bundle's root.
        folder: where phantoms, checkpoints, the volume and the picture go.

    Returns:
        The synthetic volume's path and the picture's.
    """
    folder = Path(folder)
    manifest_file = folder / "phantoms" / "phantoms.json"
    if not manifest_file.exists():
        write_phantom_dataset(folder / "phantoms", NUM_PEOPLE)
    model = folder / "model.pt"
    if not model.with_suffix(".json").exists():
        _train(bundle, folder, manifest_file, model)
    (case,) = read_manifest(manifest_file, folder / "phantoms").select(["test"])[:1]
    run_stage(
        bundle, "inference", "smoke", input=case.label, output_dir=folder, model_file=model, label_scheme="freesurfer"
    )
    volume, _ = output_files(folder, case.case_id)
    return volume, _show(case.label, volume, case.image, folder / "demo.png")


def _train(bundle: Path, folder: Path, manifest_file: Path, model: Path) -> None:
    print(f"training the smoke preset (4 mm) on {NUM_PEOPLE} phantoms")
    data: dict[str, Any] = {
        "dataset_dir": manifest_file.parent,
        "manifest_file": manifest_file,
        "work_dir": folder / "work",
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # networks as small as these lose time to more
    try:
        run_stage(bundle, "prepare", "smoke", **data)
        for plane in PLANES:
            epochs: dict[str, Any] = {"max_epochs": SPADE_EPOCHS, "val_interval": SPADE_EPOCHS}
            run_stage(bundle, "train_spade", "smoke", plane=plane, **epochs, **data)
        run_stage(bundle, "synthesize_planes", "smoke", **data)
        epochs = {"max_epochs": FUSION_EPOCHS, "val_interval": 4}
        run_stage(bundle, "train_fusion", "smoke", model_file=model, **epochs, **data)
    finally:
        torch.set_num_threads(threads)


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
