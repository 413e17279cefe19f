"""Make the embedded anatomies out of SynthSeg's ten label maps (https://github.com/BBillot/SynthSeg, Apache-2.0).

    python -m trispade.anatomies.make SYNTHSEG_FOLDER OUTPUT

`SYNTHSEG_FOLDER` holds them as ``sub-01_dseg.nii.gz`` to ``sub-10_dseg.nii.gz``. The same maps give the same files; on
another machine a voxel may differ, where floating-point numbers are rounded otherwise. It takes some minutes.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np

from trispade.anatomies.blend import Blending, Source, blend, brain_of
from trispade.anatomies.embedded import LABEL_SCHEME, TABLE
from trispade.anatomies.likeness import STRUCTURES, highest, likeness
from trispade.errors import InputError
from trispade.labels import load_scheme
from trispade.nifti import replacing

SOURCE_SCHEME = "synthseg"
SOURCE_NAMES = tuple(f"sub-{number:02d}" for number in range(1, 11))
UPRIGHT = SOURCE_NAMES[2]  # its head lies straight
# SynthSeg's ids of the choroid plexus, to those that FreeSurfer and the scheme of the embedded maps have for it.
TO_FREESURFER = {136: 31, 163: 31, 137: 63, 164: 63}


class Recipe(NamedTuple):
    """What an anatomy is made of; the first source lends its grid."""

    name: str
    description: str
    sources: tuple[str, ...]
    blending: Blending


def _blending(number: int, seed: int) -> Blending:
    return Blending(
        shares=(1 / number,) * number,
        demons_iterations=(40, 40),
        demons_sd=1.0,
        patch_mm=45.0,
        patch_sharpness=6.0,
        sd_mm=3.0,
        asymmetry=0.3,
        knots_mm=40.0,
        seed=seed,
    )


RECIPES = (
    Recipe(
        "anatomy-1", "small ventricles, as in young adults", ("sub-03", "sub-07", "sub-04", "sub-09"), _blending(4, 1)
    ),
    Recipe("anatomy-2", "ventricles of middle size", ("sub-01", "sub-08", "sub-10"), _blending(3, 2)),
    Recipe("anatomy-3", "large ventricles, as in old age", ("sub-02", "sub-06", "sub-05"), _blending(3, 3)),
)


def make_anatomies(synthseg_folder: str | Path, output: str | Path, recipes: Sequence[Recipe] = RECIPES) -> Path:
    """Make the anatomies, measure how like they are to their sources, and write both.

    Args:
        synthseg_folder: with SynthSeg's label maps.
        output: folder for the label maps and their table.
        recipes: what to make.

    Returns:
        The table, ``anatomies.json``.

    Raises:
        InputError: if a label map is missing, or the output cannot be written.
    """
    people = {name: read_source(Path(synthseg_folder) / f"{name}_dseg.nii.gz") for name in SOURCE_NAMES}
    rows = [_make(recipe, people, Path(output)) for recipe in recipes]
    table = {
        "label_scheme": LABEL_SCHEME,
        "licence": "Apache-2.0",
        "derived_from": "the training label maps of SynthSeg (https://github.com/BBillot/SynthSeg), Apache-2.0",
        "made_by": "python -m trispade.anatomies.make",
        "anatomies": rows,
    }
    path = Path(output) / TABLE
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
    return path


def read_source(path: Path) -> Source:
    """Read a person's label map, turned to RAS+ and cut to its brain.

    Raises:
        InputError: if it is missing, or holds unknown ids.
    """
    if not path.is_file():
        raise InputError.of(path, "a label map of SynthSeg", "no file of this name", "Name the folder that holds them.")
    image = nib.as_closest_canonical(nib.load(path))
    label_ids = np.asarray(image.dataobj).astype(np.int32)
    return brain_of(label_ids, np.asarray(image.affine, np.float64), load_scheme(SOURCE_SCHEME), str(path))


def _make(recipe: Recipe, people: Mapping[str, Source], output: Path) -> dict[str, Any]:
    scheme = load_scheme(SOURCE_SCHEME)
    anatomy = blend([people[name] for name in recipe.sources], scheme, recipe.blending, people[UPRIGHT])
    of_people = [likeness(anatomy, person, scheme) for person in people.values()]
    content = nifti_bytes(anatomy)
    path = output / f"{recipe.name}_dseg.nii.gz"
    with replacing(path) as temporary:
        temporary.write_bytes(content)
    voxel_ml = abs(float(np.linalg.det(anatomy.affine[:3, :3]))) / 1000
    row = {
        "name": recipe.name,
        "description": recipe.description,
        "file": path.name,
        "sha256": hashlib.sha256(content).hexdigest(),
        "sources": list(recipe.sources),
        "volume_ml": {
            structure: round(float(np.isin(anatomy.label_ids, ids).sum()) * voxel_ml, 1)
            for structure, ids in STRUCTURES.items()
        },
        "highest_dice": highest(of_people),
    }
    print(
        f"{path}: {len(content) / 1000:.0f} kB, {row['volume_ml']} ml, highest Dice {row['highest_dice']}", flush=True
    )
    return row


def nifti_bytes(anatomy: Source) -> bytes:
    """Give the content of a ``.nii.gz`` of uint8 FreeSurfer ids, without the name and the time that gzip would add."""
    label_ids = anatomy.label_ids.copy()
    for label_id, other in TO_FREESURFER.items():
        label_ids[anatomy.label_ids == label_id] = other
    image = nib.Nifti1Image(label_ids.astype(np.uint8), anatomy.affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(anatomy.affine, code=1)
    image.set_qform(anatomy.affine, code=1)
    content = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", compresslevel=9, fileobj=content, mtime=0) as packed:
        packed.write(image.to_bytes())
    return content.getvalue()


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("synthseg_folder", type=Path, metavar="SYNTHSEG_FOLDER")
    parser.add_argument("output", type=Path, metavar="OUTPUT")
    arguments = parser.parse_args()
    print(make_anatomies(arguments.synthseg_folder, arguments.output))


if __name__ == "__main__":
    main()
