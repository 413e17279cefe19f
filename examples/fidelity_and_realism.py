"""The two fusion nets on one label map: nearest to the real scan, or as sharp as one.

    python examples/fidelity_and_realism.py --labels aparc+aseg.nii.gz --scheme freesurfer --output fidelity_and_realism

`fidelity` has the higher PSNR; it smooths what the labels do not tell. `realism` paints such detail, which is real in
its amount and not in its place. The script prints how sharp both are and shows where they differ.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import nibabel as nib
import numpy as np

from trispade import Synthesizer
from trispade.errors import show_input_errors_as_one_line
from trispade.nifti import read_label_map
from trispade.phantoms import make_phantom
from trispade.report.figure import save_triplanar_figure


def mean_gradient(volume: np.ndarray, brain: np.ndarray) -> float:
    """Mean gradient magnitude (central differences) over the brain, in intensities a voxel: how sharp a volume is."""
    return float(np.sqrt(sum(each**2 for each in np.gradient(volume)))[brain].mean())


def main() -> None:
    """Paint twice, measure, show."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--labels", type=Path, help="a label map, NIfTI, MGZ or NRRD; a phantom if not given")
    parser.add_argument("--scheme", default="freesurfer", help="what its ids mean")
    parser.add_argument("--size", type=int, default=96, help="voxels along each axis of the phantom, of 1 mm")
    parser.add_argument("--output", type=Path, default=Path("fidelity_and_realism"), help="folder")
    options = parser.parse_args()
    show_input_errors_as_one_line()

    if options.labels is None:
        phantom = make_phantom(seed=2, shape=(options.size,) * 3, spacing_mm=1.0)
        label_map = nib.Nifti1Image(phantom.label_map, phantom.affine)
    else:
        label_map = nib.as_closest_canonical(nib.Nifti1Image(*read_label_map(options.labels)))

    volumes = {}
    for fusion in ("fidelity", "realism"):
        synthesizer = Synthesizer.from_bundle(scheme=options.scheme, fusion=fusion)
        volumes[fusion] = synthesizer(label_map).numpy()[0]

    brain = volumes["fidelity"] > 0
    for fusion, volume in volumes.items():
        print(f"{fusion}: mean gradient {mean_gradient(volume, brain):.2f} a voxel")
    columns = {**volumes, "difference": np.abs(volumes["realism"] - volumes["fidelity"])}
    spacing_mm = label_map.header.get_zooms()[:3]
    print(save_triplanar_figure(columns, options.output / "both.png", spacing_mm=spacing_mm))


if __name__ == "__main__":
    main()
