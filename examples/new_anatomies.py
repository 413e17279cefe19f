"""New anatomies out of one label map: the same head, deformed by more and more, each with its own T1w.

    python examples/new_anatomies.py --labels aparc+aseg.nii.gz --scheme freesurfer --output new_anatomies

The label map is deformed by a smooth random displacement, and the deformed one is painted: labels and T1w belong
together to the voxel, and no image is stretched. `augment_segmentation.py` trains on such pairs.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor

from trispade import Synthesizer, SynthesizeT1wd
from trispade.errors import show_input_errors_as_one_line
from trispade.nifti import read_label_map
from trispade.phantoms import make_phantom
from trispade.report.figure import save_triplanar_figure


def main() -> None:
    """Deform, paint, show."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--labels", type=Path, help="a label map, NIfTI, MGZ or NRRD; a phantom if not given")
    parser.add_argument("--scheme", default="freesurfer", help="what its ids mean")
    parser.add_argument("--size", type=int, default=96, help="voxels along each axis of the phantom, of 1 mm")
    parser.add_argument(
        "--displacements", type=float, nargs="+", default=[2.0, 4.0, 6.0], help="SD along each axis, mm"
    )
    parser.add_argument("--output", type=Path, default=Path("new_anatomies"), help="folder")
    options = parser.parse_args()
    show_input_errors_as_one_line()

    if options.labels is None:
        phantom = make_phantom(seed=3, shape=(options.size,) * 3, spacing_mm=1.0)
        voxels, affine = phantom.label_map, phantom.affine
    else:
        image = nib.as_closest_canonical(nib.Nifti1Image(*read_label_map(options.labels)))
        voxels, affine = np.asarray(image.dataobj), image.affine
    label_map = MetaTensor(torch.as_tensor(voxels)[None], affine=torch.as_tensor(affine))

    synthesizer = Synthesizer.from_bundle(scheme=options.scheme)
    columns = {"as it is": synthesizer(label_map).numpy()[0]}
    for sd_mm in options.displacements:
        transform = SynthesizeT1wd(
            keys="label",
            image_key="image",
            synthesizer=synthesizer,
            num_deformed=1,
            deformation_sd_mm=sd_mm,
            cache_dir=options.output / "cache",
        )
        pair = transform({"label": label_map})
        while not transform.copy:  # copy 0 is the label map itself
            pair = transform({"label": label_map})
        columns[f"SD {sd_mm:g} mm"] = pair["image"].numpy()[0]
    print(save_triplanar_figure(columns, options.output / "anatomies.png", spacing_mm=label_map.pixdim.tolist()))


if __name__ == "__main__":
    main()
