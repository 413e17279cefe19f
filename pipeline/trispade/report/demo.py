"""The demonstration: the trained weights paint the embedded anatomies, and a page shows what came out."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np

from trispade.anatomies import LABEL_SCHEME, EmbeddedAnatomy, embedded_anatomies
from trispade.bundle_run import run_stage
from trispade.errors import InputError
from trispade.inference.fusion_choice import FIDELITY, fusion_file
from trispade.labels import load_scheme
from trispade.nifti import replacing
from trispade.report.demo_page import DemoPage, PaintedAnatomy, save_overview, write_demo_page
from trispade.report.provenance import command_line, hashed, now, versions
from trispade.transforms import output_files

PRESET = "compact"


class DemoFiles(NamedTuple):
    """What a demonstration leaves: label maps, the T1w volumes painted from them, a picture and a page of both."""

    label_maps: tuple[Path, ...]
    volumes: tuple[Path, ...]
    picture: Path
    page: Path


def run_demo(
    bundle: Path,
    folder: str | Path,
    fusion: str = FIDELITY,
    preset: str = PRESET,
    spacing_mm: float | None = None,
    model_file: str | Path | None = None,
) -> DemoFiles:
    """Synthesize a T1w volume for each embedded anatomy, and show them.

    After a stop, the same call goes on: finished volumes are left alone.

    Args:
        bundle: the bundle's root.
        folder: where label maps, volumes, picture and page go.
        fusion: which of the model's fusion nets; ``realism`` is grainier, with a faint weave in the white matter.
        preset: that the weights are of.
        spacing_mm: edge of a working voxel that they are for; the preset's if None.
        model_file: the weights; the bundle's ``models/model.pt`` if None.

    Raises:
        InputError: if there are no weights, they are of another preset or lack the fusion net, or the folder cannot be
            written.
    """
    folder = Path(folder)
    model_file = bundle / "models" / "model.pt" if model_file is None else Path(model_file)
    if not model_file.is_file():
        raise InputError.of(
            model_file,
            "trained weights",
            "no file of this name",
            "Copy model.pt and model.json of a trained bundle there, or train your own (trispade train); "
            "`trispade demo --from-scratch` shows the method on phantoms, without any.",
        )
    anatomies = embedded_anatomies()
    label_maps, volumes = [], []
    for number, anatomy in enumerate(anatomies, start=1):
        print(f"volume {number} of {len(anatomies)}: {anatomy.name}, {anatomy.description}", flush=True)
        label_maps.append(_copy(anatomy, folder))
        run_stage(
            bundle,
            "inference",
            preset,
            input=label_maps[-1],
            output_dir=folder,
            label_scheme=LABEL_SCHEME,
            model_file=model_file,
            fusion=fusion,
            spacing_mm=spacing_mm,
        )
        volumes.append(output_files(folder, anatomy.name)[0])
    painted = [_painted(*each) for each in zip(anatomies, label_maps, volumes, strict=True)]
    weights = [model_file] if fusion == FIDELITY else [model_file, fusion_file(model_file, fusion)]
    page = DemoPage(
        date=now(),
        command=command_line(),
        painted=painted,
        fusion=fusion,
        weights=[hashed(each.name, each) for each in weights],
        label_maps=[hashed(each.name, each) for each in label_maps],
        versions=versions(),
    )
    return DemoFiles(
        tuple(label_maps),
        tuple(volumes),
        save_overview(painted, folder / "demo.png"),
        write_demo_page(page, folder / "demo.html"),
    )


def _copy(anatomy: EmbeddedAnatomy, folder: Path) -> Path:
    """Bring an anatomy's label map to where its volume will be, unless it is there."""
    target, content = folder / anatomy.file, anatomy.path.read_bytes()
    if not target.is_file() or target.read_bytes() != content:
        with replacing(target) as temporary:
            temporary.write_bytes(content)
    return target


def _painted(anatomy: EmbeddedAnatomy, label_file: Path, volume: Path) -> PaintedAnatomy:
    label_ids, t1w = (np.asarray(nib.as_closest_canonical(nib.load(file)).dataobj) for file in (label_file, volume))
    label_map = load_scheme(LABEL_SCHEME).to_indices(label_ids, str(label_file))
    return PaintedAnatomy(anatomy, label_map, t1w.astype(np.float32))
