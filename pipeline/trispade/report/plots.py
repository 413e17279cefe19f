"""The pictures of the report page: PNGs narrow enough for a phone; the page lays them out and puts names beside them.

Volumes are (X, Y, Z) in RAS+ on one grid, intensities in evaluation space: [0, 1], zero outside the brain.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from PIL import Image

from trispade.geometry import PLANES, Plane, slice_axis
from trispade.report.figure import as_png, bounding_box, is_label_map, label_colours, upright_slice

# Colours of Okabe and Ito (https://jfly.uni-koeln.de/color), told apart by colour-blind people; black is the real scan.
REAL_COLOUR = "black"
METHOD_STYLES = (
    *(("#0072B2", "-"), ("#D55E00", "--"), ("#009E73", "-."), ("#CC79A7", ":")),
    *(("#E69F00", "-"), ("#56B4E9", "--"), ("#D55E00", "-."), ("#0072B2", ":")),
)
_DIFFERENCE_COLOURS = colormaps["RdBu_r"].with_extremes(bad="0.75")
_INCHES_A_MM = 1 / 60
_GAP_MM = 4.0
_DPI = 120
_WIDTH_INCHES = 4.2

# A profile's title, the axis that it runs along, the plane whose slice shows its line, and what lies at its two ends.
_PROFILES: tuple[tuple[str, int, Plane, str, str], ...] = (
    ("right to left", 0, "axial", "right", "left"),
    ("front to back", 1, "sagittal", "front", "back"),
    ("bottom to top", 2, "coronal", "bottom", "top"),
)


class DifferencePanels(NamedTuple):
    """Difference maps: a PNG a method, the PNG of their one colour bar, and the difference at its ends."""

    panels: dict[str, bytes]
    colourbar: bytes
    limit: float


class StructureIntensity(NamedTuple):
    """Intensity of one structure in evaluation space: mean and SD of its voxels, real and synthetic, over people."""

    name: str
    real_mean: float
    real_sd: float
    mean: float
    sd: float


def middle_of_brain(mask: np.ndarray) -> tuple[int, int, int]:
    """Middle voxel of the box around a mask (X, Y, Z); of the whole grid where the mask is empty."""
    x, y, z = ((each.start + each.stop) // 2 for each in bounding_box(np.asarray(mask, dtype=bool), margin=0))
    return x, y, z


def slice_panels(
    volumes: Mapping[str, np.ndarray], mask: np.ndarray, spacing_mm: Sequence[float] = (1.0, 1.0, 1.0)
) -> dict[str, bytes]:
    """Draw the middle axial, coronal and sagittal slice of each volume, one below the other.

    Args:
        volumes: title to volume (X, Y, Z): integers are class indices, floats are shown from 0 (black) to 1.
        mask: (X, Y, Z) bool, the brain; the slices are cut to it and through its middle.
        spacing_mm: voxel size along X, Y and Z.

    Returns:
        Title to PNG, all of one size.

    Raises:
        ValueError: if the volumes and the mask differ in shape.
    """
    _check_shapes(volumes, mask)
    cut = _Cut.through(mask, spacing_mm)
    grey = colormaps["gray"].with_extremes(bad="black")
    return {name: cut.draw(volume, grey, (0.0, 1.0), "black") for name, volume in volumes.items()}


def difference_panels(
    volumes: Mapping[str, np.ndarray],
    real: np.ndarray,
    mask: np.ndarray,
    spacing_mm: Sequence[float] = (1.0, 1.0, 1.0),
    limit: float | None = None,
) -> DifferencePanels:
    """Draw synthetic minus real in the middle slices, all methods on one diverging colour scale.

    Args:
        volumes: title to volume (X, Y, Z) in evaluation space.
        real: (X, Y, Z) in evaluation space.
        mask: (X, Y, Z) bool, the brain; the outside is grey.
        spacing_mm: voxel size along X, Y and Z.
        limit: difference at the ends of the scale; None for the largest `difference_limit` of the methods.

    Raises:
        ValueError: if the shapes differ, or there is no volume.
    """
    _check_shapes({"real": real, **volumes}, mask)
    if not volumes:
        raise ValueError("volumes: expected at least one method, got none")
    differences = {name: np.where(mask, volume - real, np.nan) for name, volume in volumes.items()}
    limit = max(difference_limit(volume, real, mask) for volume in volumes.values()) if limit is None else limit
    cut = _Cut.through(mask, spacing_mm)
    panels = {
        name: cut.draw(difference, _DIFFERENCE_COLOURS, (-limit, limit), "0.75")
        for name, difference in differences.items()
    }
    return DifferencePanels(panels, _colourbar(limit), limit)


def difference_limit(volume: np.ndarray, real: np.ndarray, mask: np.ndarray) -> float:
    """Return the 99th percentile of the absolute difference in the brain, rounded up to a twentieth; at least 0.05."""
    sizes = np.abs(volume[mask] - real[mask])
    sizes = sizes[np.isfinite(sizes)]
    return max(0.05, math.ceil(float(np.percentile(sizes, 99)) * 20 - 1e-6) / 20) if sizes.size else 1.0


def profile_panels(
    real: np.ndarray,
    volumes: Mapping[str, np.ndarray],
    mask: np.ndarray,
    spacing_mm: Sequence[float] = (1.0, 1.0, 1.0),
) -> dict[str, bytes]:
    """Draw the intensities along the three lines through the brain's middle, below the slice that shows the line.

    Args:
        real: (X, Y, Z) in evaluation space.
        volumes: at most eight methods, title to volume (X, Y, Z) in evaluation space.
        mask: (X, Y, Z) bool, the brain; the lines run through the middle of the box around it.
        spacing_mm: voxel size along X, Y and Z.

    Returns:
        ``"right to left"``, ``"front to back"`` and ``"bottom to top"``, each to its PNG.

    Raises:
        ValueError: if the shapes differ, or there are more than eight methods.

    Source: Figure 4b of Ayaz et al.
    """
    _check_shapes({"real": real, **volumes}, mask)
    if len(volumes) > len(METHOD_STYLES):
        raise ValueError(f"volumes: expected at most {len(METHOD_STYLES)} methods, got {len(volumes)}")
    middle, box = middle_of_brain(mask), bounding_box(np.asarray(mask, dtype=bool))
    panels = {}
    for title, axis, plane, first, last in _PROFILES:
        figure = _figure(_WIDTH_INCHES, 5.0)
        image, curves = figure.subplots(2, 1, height_ratios=(1.15, 1.0))
        _draw_line_on_slice(image, real, plane, axis, middle, box, spacing_mm)
        along = tuple(box[axis] if other == axis else middle[other] for other in range(3))
        position_mm = (np.arange(box[axis].start, box[axis].stop) - middle[axis]) * spacing_mm[axis]
        curves.plot(position_mm, real[along], color=REAL_COLOUR, linewidth=2.2, label="real")
        for (name, volume), (colour, line) in zip(volumes.items(), METHOD_STYLES, strict=False):
            curves.plot(position_mm, volume[along], color=colour, linestyle=line, linewidth=1.3, label=name)
        if axis != 2:
            curves.invert_xaxis()  # as the slice is shown: the right of the brain, or its front, is on the left
        curves.set_xlabel(f"{first}   ←   mm from the middle   →   {last}")
        curves.set_ylabel("intensity")
        curves.set_ylim(-0.02, 1.02)
        curves.margins(x=0)
        _legend_below(figure, curves)
        panels[title] = as_png(figure, _DPI)
    return panels


def structure_plot(structures: Sequence[StructureIntensity], method: str) -> bytes:
    """Draw each structure's intensity, real and synthetic, one below the other, the brightest real one on top.

    Args:
        structures: at least one; a mean that is not finite is not drawn, its name says so.
        method: what the synthetic volumes are called.

    Returns:
        A PNG.

    Raises:
        ValueError: if there is no structure.
    """
    if not structures:
        raise ValueError("structures: expected at least one, got none")
    known = [each for each in structures if math.isfinite(each.real_mean) and math.isfinite(each.mean)]
    unknown = [each for each in structures if each not in known]
    ordered = [*unknown, *sorted(known, key=lambda each: each.real_mean)]
    figure = _figure(_WIDTH_INCHES + 0.6, 1.3 + 0.3 * len(ordered))
    axes = figure.subplots()
    heights = np.arange(len(ordered), dtype=float)
    real = np.array([(each.real_mean, each.real_sd) for each in ordered])
    synthetic = np.array([(each.mean, each.sd) for each in ordered])
    for values, shift, colour, marker, label in (
        (real, 0.14, REAL_COLOUR, "o", "real"),
        (synthetic, -0.14, METHOD_STYLES[0][0], "D", method),
    ):
        bars = np.where(np.isfinite(values[:, 1]), values[:, 1], 0.0)
        axes.errorbar(
            values[:, 0], heights + shift, xerr=bars, color=colour, marker=marker, markersize=4.5, linestyle="none",
            elinewidth=1.2, capsize=2, label=label,
        )  # fmt: skip
    names = [each.name.replace("_", " ") + ("" if each in known else " (n/a)") for each in ordered]
    axes.set_yticks(heights, names)
    axes.set_ylim(-0.7, len(ordered) - 0.3)
    axes.set_xlabel("intensity, mean ± SD")
    axes.grid(axis="both", color="0.9")
    axes.set_axisbelow(True)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False)
    return as_png(figure, _DPI)


def spectrum_plot(cycles_per_mm: np.ndarray, ratios: Mapping[str, np.ndarray]) -> bytes:
    """Draw power spectrum ratios, synthetic over real, on a logarithmic scale.

    Args:
        cycles_per_mm: (F,) middle of each band.
        ratios: at most eight methods, title to (F,) ratios; what is not positive or not finite is left out.

    Returns:
        A PNG.

    Raises:
        ValueError: if a curve has another length than the bands, or there are no or too many methods.
    """
    if not 0 < len(ratios) <= len(METHOD_STYLES):
        raise ValueError(f"ratios: expected 1 to {len(METHOD_STYLES)} methods, got {len(ratios)}")
    figure = _figure(_WIDTH_INCHES + 0.6, 3.6)
    axes = figure.subplots()
    axes.axhline(1.0, color=REAL_COLOUR, linewidth=1.2, label="real (1)")
    for (name, curve), (colour, line) in zip(ratios.items(), METHOD_STYLES, strict=False):
        if np.shape(curve) != np.shape(cycles_per_mm):
            raise ValueError(f"{name}: expected {len(cycles_per_mm)} bands, got {np.shape(curve)}")
        values = np.asarray(curve, dtype=float)
        shown = np.where(np.isfinite(values) & (values > 0), values, np.nan)
        axes.plot(cycles_per_mm, shown, color=colour, linestyle=line, linewidth=1.5, label=name)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("cycles per mm   (fine detail is on the right)")
    axes.set_ylabel("power, synthetic / real")
    axes.grid(which="major", color="0.9")
    _legend_below(figure, axes)
    return as_png(figure, _DPI)


def _figure(width: float, height: float, colour: str = "white") -> Figure:
    figure = Figure(figsize=(width, height), facecolor=colour, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _legend_below(figure: Figure, axes: Axes) -> None:
    entries = axes.get_legend_handles_labels()
    figure.legend(*entries, loc="outside lower center", ncols=2, frameon=False, fontsize=9, columnspacing=1.0)


def _check_shapes(volumes: Mapping[str, np.ndarray], mask: np.ndarray) -> None:
    wrong = {name: volume.shape for name, volume in volumes.items() if volume.shape != mask.shape}
    if wrong:
        raise ValueError(f"volumes: expected the shape of the mask {mask.shape}, got {wrong}")


class _Cut(NamedTuple):
    """Three slices through the brain's middle, cut to it: where they lie, and how large they are."""

    middle: tuple[int, int, int]
    box: tuple[slice, ...]
    size_mm: tuple[float, ...]

    @classmethod
    def through(cls, mask: np.ndarray, spacing_mm: Sequence[float]) -> _Cut:
        box = bounding_box(np.asarray(mask, dtype=bool))
        size_mm = tuple((each.stop - each.start) * spacing for each, spacing in zip(box, spacing_mm, strict=True))
        return cls(middle_of_brain(mask), box, size_mm)

    def draw(self, volume: np.ndarray, colours: Colormap, limits: tuple[float, float], background: str) -> bytes:
        """Draw the slices below each other on one scale of mm, each with the side that lies on its left."""
        across = {plane: [self.size_mm[axis] for axis in range(3) if axis != slice_axis(plane)] for plane in PLANES}
        width = max(wide for wide, _ in across.values())
        height = sum(high for _, high in across.values()) + _GAP_MM * (len(PLANES) - 1)
        figure = Figure(figsize=(width * _INCHES_A_MM, height * _INCHES_A_MM), facecolor=background)
        top = height
        for plane in PLANES:
            wide, high = across[plane]
            axes = figure.add_axes(((width - wide) / 2 / width, (top - high) / height, wide / width, high / height))
            shown = upright_slice(volume, plane, self.middle, self.box)
            image = label_colours(shown) if is_label_map(volume) else np.ma.masked_invalid(shown)
            axes.imshow(image, cmap=colours, vmin=limits[0], vmax=limits[1], aspect="auto")
            axes.set_axis_off()
            side = "A" if plane == "sagittal" else "R"
            ink = "white" if background == "black" else "black"
            axes.text(0.0, 1.0, side, transform=axes.transAxes, color=ink, fontsize=14, va="top")
            top -= high + _GAP_MM
        return _as_small_png(figure)


def _as_small_png(figure: Figure) -> bytes:
    """Draw a figure in 256 colours, a third of the size: greys and a colour scale need no more."""
    canvas = FigureCanvasAgg(figure)
    figure.set_dpi(_DPI)
    canvas.draw()
    colours = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())
    content = io.BytesIO()
    colours.quantize(256, dither=Image.Dither.NONE).save(content, format="PNG", optimize=True)
    return content.getvalue()


def _colourbar(limit: float) -> bytes:
    figure = _figure(_WIDTH_INCHES, 0.75)
    axes = figure.subplots()
    figure.colorbar(
        ScalarMappable(Normalize(-limit, limit), _DIFFERENCE_COLOURS),
        cax=axes,
        orientation="horizontal",
        ticks=[-limit, -limit / 2, 0, limit / 2, limit],
        label="darker than real   ←   synthetic − real   →   brighter",
    )
    return as_png(figure, _DPI)


def _draw_line_on_slice(
    axes: Axes,
    real: np.ndarray,
    plane: Plane,
    axis: int,
    middle: Sequence[int],
    box: Sequence[slice],
    spacing_mm: Sequence[float],
) -> None:
    across, up = (other for other in range(3) if other != slice_axis(plane))
    shown = upright_slice(real, plane, middle, box)
    axes.imshow(shown, cmap="gray", vmin=0.0, vmax=1.0, aspect=spacing_mm[up] / spacing_mm[across])
    draw = axes.axhline if axis == across else axes.axvline
    fixed = up if axis == across else across
    draw(box[fixed].stop - 1 - middle[fixed], color="#F0E442", linewidth=1.4)
    axes.set_title(f"{plane} slice", fontsize=9)
    axes.set_axis_off()
