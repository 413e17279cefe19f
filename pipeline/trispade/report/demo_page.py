"""The demonstration's page and picture: each anatomy's T1w volume and label map in three directions."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from trispade.anatomies import LABEL_SCHEME, EmbeddedAnatomy
from trispade.geometry import PLANES, Plane
from trispade.labels import load_scheme
from trispade.nifti import replacing
from trispade.report.figure import bounding_box, label_colours, save_triplanar_figure, upright_slice
from trispade.report.page import HashedFile, Panel, ReportFigure, render_page

WARNING = "Synthetic volumes of nobody, made from label maps of nobody. Not for diagnosis."
CENTRE_CLASS = "thalamus"  # planes through it show cortex, deep structures and ventricles
BESIDE_MIDLINE_VOXELS = 4  # the midline itself cuts little but CSF
BRIGHTEST_PERCENTILE = 99.8
_PIXELS_A_VOXEL = 2
_SIDES = "The left of the image is the right of the brain; in the sagittal one it is the front."


@dataclass(frozen=True, eq=False)
class PaintedAnatomy:
    """An embedded anatomy with its T1w volume, both in RAS+.

    Attributes:
        anatomy: what is known of it.
        label_map: (X, Y, Z) class indices.
        t1w: (X, Y, Z) float32 intensities, lowest outside the brain.
    """

    anatomy: EmbeddedAnatomy
    label_map: np.ndarray
    t1w: np.ndarray

    def centre(self) -> tuple[int, int, int]:
        """Voxel in the middle of the thalami, a little to the left of the midline."""
        thalamus = load_scheme(LABEL_SCHEME).vocabulary.index(CENTRE_CLASS)
        x, y, z = (round(each) for each in ndimage.center_of_mass(self.label_map == thalamus))
        return x - BESIDE_MIDLINE_VOXELS, y, z


@dataclass(frozen=True)
class DemoPage:
    """All that the page shows.

    Attributes:
        date: when it was made, as it is to be read.
        command: that made it.
        painted: the anatomies with their volumes.
        fusion: name of the fusion net.
        weights: the model's files.
        label_maps: the files of the anatomies.
        versions: of Python and of packages, by name.
    """

    date: str
    command: str
    painted: Sequence[PaintedAnatomy]
    fusion: str
    weights: Sequence[HashedFile]
    label_maps: Sequence[HashedFile]
    versions: Mapping[str, str]


def save_overview(painted: Sequence[PaintedAnatomy], path: str | Path) -> Path:
    """Save all label maps and volumes in three directions as one PNG, their thalami on one voxel."""
    centres = np.array([each.centre() for each in painted])
    beyond = np.array([each.label_map.shape for each in painted]) - centres
    columns = {}
    for each, before, after in zip(painted, centres.max(axis=0) - centres, beyond.max(axis=0) - beyond, strict=True):
        margins = list(zip(before.tolist(), after.tolist(), strict=True))
        columns[f"{each.anatomy.name}: label map"] = np.pad(each.label_map, margins)
        columns[f"{each.anatomy.name}: T1w"] = np.pad(each.t1w, margins, constant_values=each.t1w.min())
    box = bounding_box(np.maximum.reduce([volume > volume.min() for volume in columns.values()]))
    return save_triplanar_figure(columns, path, centres.max(axis=0).tolist(), WARNING, box=box)


def write_demo_page(page: DemoPage, path: str | Path) -> Path:
    """Write the page, one HTML file that needs nothing else, whole or not at all.

    Raises:
        InputError: if the folder cannot be written.
    """
    html = render_page("demo.html", page=page, warning=WARNING, figures=[_figure(each) for each in page.painted])
    path = Path(path)
    with replacing(path) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return path


def _figure(painted: PaintedAnatomy) -> ReportFigure:
    anatomy = painted.anatomy
    volumes = ", ".join(f"{name.replace('_', ' ')} {value:.0f} ml" for name, value in anatomy.volume_ml.items())
    likeness = " and ".join(
        f"{ways['affine']:.2f} in the {name.replace('_', ' ')}" for name, ways in anatomy.highest_dice.items()
    )
    caption = (
        f"Above the synthetic T1w, below the label map that it was painted from, through the thalami. {_SIDES} "
        f"Volumes: {volumes}. The label map is nobody's: aligned affinely with each of those that the anatomies "
        f"derive from, its highest Dice is {likeness}."
    )
    panels = [
        Panel(_panel(painted, plane), f"{anatomy.name}, {plane}: synthetic T1w above its label map", plane)
        for plane in PLANES
    ]
    return ReportFigure(f"{anatomy.name}: {anatomy.description}", caption, panels, "medium")


def _panel(painted: PaintedAnatomy, plane: Plane) -> bytes:
    """PNG of the T1w slice above that of the label map, on a square as wide as the brain is long."""
    box, centre = bounding_box(painted.label_map), painted.centre()
    side = max(each.stop - each.start for each in box)
    dark = painted.t1w.min()
    bright = np.percentile(painted.t1w[painted.label_map > 0], BRIGHTEST_PERCENTILE)
    grey = np.clip((upright_slice(painted.t1w, plane, centre, box) - dark) / (bright - dark), 0.0, 1.0)
    colours = label_colours(upright_slice(painted.label_map, plane, centre, box))
    picture = Image.new("RGB", (side * _PIXELS_A_VOXEL, 2 * side * _PIXELS_A_VOXEL))
    for row, (values, filtering) in enumerate(
        ((np.repeat(grey[..., None], 3, axis=2), Image.Resampling.BICUBIC), (colours, Image.Resampling.NEAREST))
    ):
        height, width, _ = values.shape
        drawn = Image.fromarray(np.rint(values * 255).astype(np.uint8))
        drawn = drawn.resize((width * _PIXELS_A_VOXEL, height * _PIXELS_A_VOXEL), filtering)
        left, top = ((side - extent) * _PIXELS_A_VOXEL // 2 for extent in (width, height))
        picture.paste(drawn, (left, row * side * _PIXELS_A_VOXEL + top))
    content = io.BytesIO()
    picture.save(content, format="png")
    return content.getvalue()
