"""MONAI Deploy: its MonaiBundleInferenceOperator paints a label map with the bundle's folder, or its TorchScript file.

    python tests/clients/monai_deploy.py BUNDLE LABELS.nii.gz WORK_FOLDER

`BUNDLE` is `trispade.zip`, whose folder is used as it comes out of the zip, or a `model.ts` of `ckpt_export`. Runs in
an environment with MONAI Deploy App SDK; for the zip without trispade, for the TorchScript file, which holds the
network and the config alone, with it. `make clients` sets one up, with the library of CUDA's runtime that Holoscan asks
for on machines without a GPU as well. Fails unless the image that comes out is that of the bundle itself, in 8 bits.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
from monai.deploy.conditions import CountCondition
from monai.deploy.core import AppContext, Application, Image, IOType, Operator, OperatorSpec
from monai.deploy.operators import MonaiBundleInferenceOperator
from monai.deploy.operators.monai_bundle_inference_operator import BundleConfigNames, IOMapping


class LabelMapReader(Operator):
    """Emits a label map: voxels (X, Y, Z) and an affine, voxel -> RAS+ mm."""

    def __init__(self, fragment: Application, *args: object, file: Path, **kwargs: object) -> None:
        self.file = file
        super().__init__(fragment, *args, **kwargs)

    def setup(self, spec: OperatorSpec) -> None:
        """Declare what comes out."""
        spec.output("image")

    def compute(self, op_input: object, op_output: object, context: object) -> None:
        """Read the file."""
        image = nib.load(self.file)
        metadata = {"affine": image.affine, "original_affine": image.affine, "filename_or_obj": str(self.file)}
        op_output.emit(Image(np.asarray(image.dataobj), metadata), "image")


class Keeper(Operator):
    """Keeps the image that it receives."""

    image: Image

    def setup(self, spec: OperatorSpec) -> None:
        """Declare what comes in."""
        spec.input("pred")

    def compute(self, op_input: object, op_output: object, context: object) -> None:
        """Keep it."""
        self.image = op_input.receive("pred")


class Synthesis(Application):
    """A label map in, an image out."""

    def __init__(self, bundle: Path, labels: Path) -> None:
        self.bundle, self.labels = bundle, labels
        super().__init__()

    def compose(self) -> None:
        """Read, paint, keep."""
        reader = LabelMapReader(self, CountCondition(self, 1), file=self.labels, name="reader")
        # A TorchScript network has no planes to go through one by one: it is called as a whole. The operator loads a
        # folder's network itself, where no model is found.
        names = BundleConfigNames(inferer_name="inferer" if self.bundle.is_dir() else "none")
        model = "none" if self.bundle.is_dir() else str(self.bundle)
        painter = MonaiBundleInferenceOperator(
            self,
            app_context=AppContext({"model": model}),
            input_mapping=[IOMapping("image", Image, IOType.IN_MEMORY)],
            output_mapping=[IOMapping("pred", Image, IOType.IN_MEMORY)],
            bundle_path=self.bundle,
            bundle_config_names=names,
            name="painter",
        )
        self.keeper = Keeper(self, name="keeper")
        self.add_flow(reader, painter, {("image", "image")})
        self.add_flow(painter, self.keeper, {("pred", "pred")})


def main() -> None:
    """Run the application, and compare what it gives with the file that the bundle has written."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("bundle", "labels", "folder"):
        parser.add_argument(name, type=Path)
    options = parser.parse_args()
    labels, bundle, folder = options.labels.resolve(), options.bundle.resolve(), options.folder.resolve()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if bundle.suffix == ".zip":
        with zipfile.ZipFile(bundle) as archive:
            archive.extractall(folder)
        (bundle,) = folder.iterdir()
        os.chdir(bundle)  # what the config calls bundle_root
    else:
        os.chdir(folder)
    application = Synthesis(bundle, labels)
    application.run()
    given = np.swapaxes(application.keeper.image.asnumpy(), 0, 2)  # it comes as (Z, Y, X)
    (file,) = Path("eval").glob("*_T1w.nii.gz")
    written, source = nib.load(file), nib.load(labels)
    difference = float(np.abs(given - written.get_fdata()).max())
    print(f"{bundle.name}: grid {given.shape}, {given.dtype}, {len(np.unique(given))} grey values up to {given.max()}")
    print(f"largest difference to the bundle's own file {difference:.3g}")
    if given.shape != source.shape or difference > 1.001 or np.ptp(given) < 100:
        sys.exit("MONAI Deploy gave another image")


if __name__ == "__main__":
    main()
