"""MONAI Label: its bundle app, as it comes, paints one label map with the packaged bundle; prints what it gave.

    python tests/clients/monai_label.py APP TRISPADE.zip LABELS.nii.gz WORK_FOLDER

`APP` is MONAI Label's sample app ``monaibundle`` (`monailabel apps --download --name monaibundle`). Runs in an
environment with MONAI Label and the bundle's other requirements, but not trispade: the zip brings it. `make clients`
sets one up. Takes a minute.
"""

from __future__ import annotations

import argparse
import importlib
import shutil
import sys
import types
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np

NAME = "trispade"
SETTINGS = {"models": NAME, "zoo_source": "ngc", "sam2": "false", "skip_trainers": "true"}


def main() -> None:
    """Put the bundle into the app, ask the app for a volume, compare it with the file that the bundle has written."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("app", "zip", "labels", "folder"):
        parser.add_argument(name, type=Path)
    options = parser.parse_args()
    folder = options.folder.resolve()
    bundle, studies = folder / "app" / "model" / NAME, folder / "studies"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(options.app, folder / "app")
    studies.mkdir()
    shutil.copy(options.labels, studies)
    with zipfile.ZipFile(options.zip) as archive:
        archive.extractall(folder / "unpacked")
    bundle.parent.mkdir(exist_ok=True)
    next((folder / "unpacked").iterdir()).rename(bundle)

    # torchvision's compiled part wants CUDA, without which its registration stops the import; only pictures are wanted.
    sys.modules["torchvision._meta_registrations"] = types.ModuleType("torchvision._meta_registrations")
    sys.path.insert(0, str(folder / "app"))
    app = importlib.import_module("main").MyApp(str(folder / "app"), str(studies), SETTINGS)
    case = options.labels.name.removesuffix(".nii.gz")
    request = {"model": NAME, "image": case, "device": "cpu", "result_extension": ".nii.gz", "result_dtype": "float32"}
    given = nib.load(app.infer(request)["file"])
    (file,) = (bundle / "eval").glob("*_T1w.nii.gz")
    written, labels = nib.load(file), nib.load(options.labels)
    difference = float(np.abs(given.get_fdata() - written.get_fdata()).max())
    print(f"grid {given.shape}, intensities {given.get_fdata().min():g} to {given.get_fdata().max():g}")
    print(f"largest difference to the bundle's own file {difference:g}")
    same_grid = given.shape == labels.shape and np.allclose(given.affine, labels.affine, atol=1e-4)
    if not same_grid or difference > 1e-3 or np.ptp(given.get_fdata()) < 100:
        sys.exit("MONAI Label gave another volume")


if __name__ == "__main__":
    main()
