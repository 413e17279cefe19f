"""How good synthetic volumes are at other voxel sizes than the model's, on the people of an evaluation that has run.

    .venv/bin/python benchmarks/voxel_sizes.py runs/reference/evaluation --json result.json

Label map and bias-corrected scan of one session a person are brought from the scan's own grid to each voxel size
(labels by the largest share, the scan by linear interpolation, averaged over larger voxels). The label maps are
synthesized as a user would, and the volumes compared with the scan on that grid. A scan of 1 mm has no finer detail to
compare with: below its own voxel size this tells what the way to the working grid and back costs, and no more.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from trispade.bundle_run import find_bundle, run_stage
from trispade.data.evaluation import EvaluationCase
from trispade.labels import load_scheme
from trispade.metrics import compare_in_evaluation_space
from trispade.nifti import write_nifti
from trispade.resampling import resample, resample_labels

SIZES_MM = (0.7, 0.85, 1.0, 1.2)
METRICS = ("psnr", "ssim", "sharpness", "incoherence_axial", "incoherence_coronal", "incoherence_sagittal")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("evaluation", type=Path, help="output folder of an evaluation, which keeps scans and labels")
    parser.add_argument("--scheme", default="neuromorphometrics", help="of the evaluated label maps")
    parser.add_argument("--sizes", type=float, nargs="+", default=SIZES_MM, metavar="MM")
    parser.add_argument("--fusion", choices=("fidelity", "realism"), default="fidelity")
    parser.add_argument("--json", type=Path, help="where to write the results")
    options = parser.parse_args()
    cases = first_scans(options.evaluation / "volumes")
    rows: list[dict[str, Any]] = []
    for size in options.sizes:
        with tempfile.TemporaryDirectory() as folder:
            rows += measure(cases, size, options.scheme, options.fusion, Path(folder))
    print(f"\n`{options.fusion}`, mean ± SD, n = {len(cases)}\n")
    print("| voxel size (mm) | brain PSNR (dB) | brain SSIM | sharpness | incoherence axial | coronal | sagittal |")
    print("|---|---|---|---|---|---|---|")
    for size in options.sizes:
        cells = [spread([row[metric] for row in rows if row["size_mm"] == size]) for metric in METRICS]
        print(f"| {size:g} | {' | '.join(cells)} |")
    if options.json:
        options.json.write_text(json.dumps({"fusion": options.fusion, "rows": rows}, indent=1) + "\n")


def first_scans(store: Path) -> list[EvaluationCase]:
    """The first scan of each evaluated person."""
    first: dict[str, EvaluationCase] = {}
    for folder in sorted(store.iterdir()):
        record = json.loads((folder / "case.json").read_text())
        first.setdefault(record["person_id"], EvaluationCase(record["case_id"], record["person_id"], folder, record))
    return list(first.values())


def measure(
    cases: Sequence[EvaluationCase], size_mm: float, scheme: str, fusion: str, folder: Path
) -> list[dict[str, Any]]:
    """Synthesize all cases at one voxel size and compare them with the scans; a row a case."""
    ids = {index: label_id for label_id, index in reversed(load_scheme(scheme).ids.items())}
    to_ids = np.array([ids.get(index, 0) for index in range(max(ids) + 1)], np.int16)
    for name in ("labels", "volumes"):
        (folder / name).mkdir()
    scans = {}
    for case in cases:
        labels, scan, affine = at_size(case, size_mm)
        scans[case.case_id] = scan, labels > 0, affine
        file = folder / "labels" / f"{case.case_id}_dseg.nii.gz"
        write_nifti(file, to_ids[labels], affine, dtype=np.int16)
    run_stage(
        find_bundle()[0],
        "inference",
        "compact",
        None,
        input=str(folder / "labels"),
        output_dir=str(folder / "volumes"),
        label_scheme=scheme,
        fusion=fusion,
    )
    rows = []
    for case in cases:
        (file,) = (folder / "volumes").rglob(f"{case.case_id}*_T1w.nii.gz")
        scan, mask, affine = scans[case.case_id]
        volume = np.asarray(nib.load(file).dataobj, np.float32) / 127.5 - 1.0
        values = compare_in_evaluation_space(np.where(mask, volume, -1.0), np.where(mask, scan, 0), mask, affine=affine)
        found = {
            row["metric"]: row["value"] for row in values if (row["region"], row["fit"]) == ("brain", "gain_offset")
        }
        rows.append({"case_id": case.case_id, "size_mm": size_mm, **{metric: found[metric] for metric in METRICS}})
    return rows


def at_size(case: EvaluationCase, size_mm: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Class indices, scan and affine of a case on a grid of other voxels with the same directions and outer faces."""
    affine = case.affine
    scale = size_mm / np.linalg.norm(affine[:3, :3], axis=0)
    shift = (scale - 1) / 2
    shape = np.ceil(np.array(case.record["shape"]) / scale - 1e-6).astype(int).tolist()
    step = np.eye(4)
    step[:3, :3], step[:3, 3] = np.diag(scale), shift
    grid = (shape, scale.tolist(), shift.tolist())
    return resample_labels(case.label_map(), *grid), resample(case.real(), *grid, 0.0), affine @ step


def spread(values: Sequence[float]) -> str:
    return f"{np.mean(values):.3g} ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else f"{values[0]:.3g}"


if __name__ == "__main__":
    main()
