"""One label map to one T1w volume and its picture.

    python examples/one_label_map.py --labels aparc+aseg.nii.gz --scheme freesurfer --output one_label_map

Without --labels, a phantom is painted: a small brain-like shape that comes from no person.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import nibabel as nib
import numpy as np

from trispade import Synthesizer
from trispade.errors import show_input_errors_as_one_line
from trispade.labels import load_scheme
from trispade.nifti import read_label_map, write_nifti
from trispade.phantoms import make_phantom
from trispade.report.figure import save_triplanar_figure


def main() -> None:
    """Paint, write, show."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--labels", type=Path, help="a label map, NIfTI, MGZ or NRRD")
    parser.add_argument("--scheme", default="freesurfer", help="what its ids mean")
    parser.add_argument("--fusion", default="fidelity", help="fidelity or realism")
    parser.add_argument("--size", type=int, default=96, help="voxels along each axis of the phantom, of 1 mm")
    parser.add_argument("--output", type=Path, default=Path("one_label_map"), help="folder")
    options = parser.parse_args()
    show_input_errors_as_one_line()

    if options.labels is None:
        phantom = make_phantom(seed=1, shape=(options.size,) * 3, spacing_mm=1.0)
        label_map = nib.Nifti1Image(phantom.label_map, phantom.affine)
    else:
        # RAS+, which the picture needs, not the call.
        label_map = nib.as_closest_canonical(nib.Nifti1Image(*read_label_map(options.labels)))

    synthesizer = Synthesizer.from_bundle(scheme=options.scheme, fusion=options.fusion)
    t1w = synthesizer(label_map)  # MetaTensor (1, X, Y, Z) in [0, 255] on the label map's grid

    volume = t1w.numpy()[0]
    write_nifti(options.output / "T1w.nii.gz", volume, label_map.affine, label_map.header, sidecar={"synthetic": True})
    indices = load_scheme(options.scheme).to_indices(np.asarray(label_map.dataobj), "label map")
    columns = {"label map": indices, "synthetic T1w": volume}
    spacing_mm = label_map.header.get_zooms()[:3]
    picture = save_triplanar_figure(columns, options.output / "T1w.png", spacing_mm=spacing_mm)
    print(f"{options.output / 'T1w.nii.gz'}\n{picture}")


if __name__ == "__main__":
    main()
