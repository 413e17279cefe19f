"""The triplanar figure: label map, painted, fused and real volumes, side by side in three directions."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from trispade.geometry import PLANES, Plane, slice_axis
from trispade.nifti import replacing

NOTE = "axial, coronal: left of the image is the right of the brain\nsagittal: left of the image is the front"
_INCHES_A_COLUMN = 2.2
_DPI = 120


def save_triplanar_figure(
    columns: Mapping[str, np.ndarray],
    path: str | Path,
    middle: Sequence[int] | None = None,
    title: str | None = None,
    spacing_mm: Sequence[float] = (1.0, 1.0, 1.0),
    box: Sequence[slice] | None = None,
) -> Path:
    """Save the same three slices of several volumes as a PNG.

    Args:
        columns: title to volume (X, Y, Z), RAS+, all on one grid; integers are label maps (class
            indices), floats are intensities, shown from their minimum to their 99.8th percentile.
        path: of the PNG, written whole or not at all.
        middle: voxel that the slices cut; the middle of the first volume's labelled or bright voxels if None.
        title: above the figure.
        spacing_mm: voxel size along X, Y and Z; only its proportions count.
        box: what is shown; the box around the first volume's labelled or bright voxels if None.

    Returns:
        The path.

    Raises:
        ValueError: if there is no volume, the volumes differ in shape, or the middle lies outside.
    """
    volumes = list(columns.values())
    if not volumes or any(volume.shape != volumes[0].shape for volume in volumes):
        raise ValueError(f"columns: expected volumes of one shape, got {[volume.shape for volume in volumes]}")
    box = bounding_box(volumes[0]) if box is None else tuple(box)
    centre = [(s.start + s.stop) // 2 for s in box] if middle is None else list(middle)
    if not all(0 <= c < extent for c, extent in zip(centre, volumes[0].shape, strict=True)):
        raise ValueError(f"middle: expected a voxel of a volume {volumes[0].shape}, got {tuple(centre)}")
    figure = Figure(
        figsize=(_INCHES_A_COLUMN * len(columns), 2.25 * len(PLANES) + 0.5), facecolor="black", layout="constrained"
    )
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(PLANES), len(columns), squeeze=False)
    for column, (name, volume) in enumerate(columns.items()):
        low, high = (
            (0.0, 1.0) if is_label_map(volume) else (float(volume.min()), float(np.percentile(volume[box], 99.8)))
        )
        for row, plane in enumerate(PLANES):
            shown = upright_slice(volume, plane, centre, box)
            image = label_colours(shown) if is_label_map(volume) else shown
            panel = axes[row, column]
            panel.imshow(
                image, cmap="gray", vmin=low, vmax=high, interpolation="nearest", aspect=pixel_aspect(plane, spacing_mm)
            )
            panel.set_axis_off()
            if row == 0:
                panel.set_title(name, color="white", fontsize=10)
    if title:
        figure.suptitle(title, color="white", fontsize=11)
    figure.supxlabel(NOTE, color="0.7", fontsize=7)
    path = Path(path)
    with replacing(path) as temporary:
        temporary.write_bytes(as_png(figure))
    return path


def as_png(figure: Figure, dpi: int = _DPI) -> bytes:
    """Draw a figure and return the bytes of a PNG file; the same figure gives the same bytes."""
    content = io.BytesIO()
    figure.savefig(content, dpi=dpi, format="png")
    return content.getvalue()


def label_colours(label_map: np.ndarray) -> np.ndarray:
    """Colour class indices (H, W) as (H, W, 3): black for the background, one colour a class, in every figure."""
    palette = np.concatenate([colormaps[name](np.arange(20))[:, :3] for name in ("tab20", "tab20b", "tab20c")])
    # A stride through the palette keeps neighbouring indices, often neighbouring structures, apart in colour.
    colours = palette[(np.asarray(label_map, dtype=np.int64) * 7) % len(palette)]
    return np.where((np.asarray(label_map) > 0)[..., None], colours, 0.0)


def is_label_map(volume: np.ndarray) -> bool:
    """Tell integers, class indices, from intensities."""
    return np.issubdtype(volume.dtype, np.integer)


def bounding_box(volume: np.ndarray, margin: int = 3) -> tuple[slice, ...]:
    """Box around what is above the volume's minimum, with a margin."""
    inside = volume > volume.min()
    if not inside.any():
        return tuple(slice(0, extent) for extent in volume.shape)
    occupied = [np.flatnonzero(inside.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    return tuple(
        slice(max(0, int(places[0]) - margin), min(int(places[-1]) + 1 + margin, extent))
        for places, extent in zip(occupied, volume.shape, strict=True)
    )


def upright_slice(volume: np.ndarray, plane: Plane, centre: Sequence[int], box: Sequence[slice]) -> np.ndarray:
    """Cut a slice as radiologists look at it: up is superior or anterior, left is right or anterior."""
    axis = slice_axis(plane)
    cut = volume[tuple(centre[axis] if other == axis else box[other] for other in range(3))]
    return np.flip(cut.T, axis=(0, 1))


def pixel_aspect(plane: Plane, spacing_mm: Sequence[float]) -> float:
    """Height of a shown pixel over its width."""
    across, up = (spacing_mm[axis] for axis in range(3) if axis != slice_axis(plane))
    return up / across
