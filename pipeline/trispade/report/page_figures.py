"""The figures of the report page: which volumes each shows, and the words that go with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from nibabel.orientations import apply_orientation, io_orientation

from trispade.geometry import PLANES
from trispade.intensity import evaluation_intensity, fit_gain_offset
from trispade.report.page import Panel, ReportFigure
from trispade.report.plots import (
    StructureIntensity,
    difference_limit,
    difference_panels,
    profile_panels,
    slice_panels,
    spectrum_plot,
    structure_plot,
)
from trispade.report.results_table import FUSED, name_of, number

LABEL_MEAN = "label_mean"
_DIRECTIONS = "axial, coronal and sagittal slice through the middle of the brain"
_SIDES = "R: the right of the brain is on the left of the image; A: its front is."
_GREY = "All on one grey scale, from 0 (black) to the 99.5th percentile of the real brain (white), with the fit."


@dataclass(frozen=True)
class ShownCase:
    """A scan as figures show it: volumes in RAS+ and in evaluation space.

    Attributes:
        case_id: of the scan.
        label_map: (X, Y, Z) class indices; above 0 is the brain.
        real: (X, Y, Z) float32 in [0, 1], zero outside the brain.
        volumes: method to (X, Y, Z) float32, as ``real``, mapped onto it by gain and offset.
        spacing_mm: voxel size along X, Y and Z.
    """

    case_id: str
    label_map: np.ndarray
    real: np.ndarray
    volumes: Mapping[str, np.ndarray]
    spacing_mm: tuple[float, ...]

    @classmethod
    def from_own_grid(
        cls,
        case_id: str,
        label_map: np.ndarray,
        real: np.ndarray,
        volumes: Mapping[str, np.ndarray],
        affine: np.ndarray,
    ) -> ShownCase:
        """Turn a scan's own grid to RAS+ and bring the intensities to evaluation space.

        Args:
            case_id: of the scan.
            label_map: (X, Y, Z) class indices, brain filled.
            real: (X, Y, Z) bias-corrected scan.
            volumes: method to (X, Y, Z) volume, in any unit.
            affine: (4, 4), voxel -> RAS+ mm; an oblique grid is turned to the nearest axes, not resampled.

        Raises:
            InputError: if the mask is empty or the scan dark.
        """
        mask = label_map > 0
        scan = evaluation_intensity(real, mask)
        mapped = {}
        for method, volume in volumes.items():
            gain, offset = fit_gain_offset(volume, scan, mask)
            mapped[method] = np.where(mask, np.clip(gain * volume + offset, 0.0, 1.0), 0.0).astype(np.float32)
        turn = io_orientation(affine)
        sizes = np.linalg.norm(affine[:3, :3], axis=0)
        return cls(
            case_id,
            apply_orientation(label_map, turn),
            apply_orientation(scan, turn),
            {method: apply_orientation(volume, turn) for method, volume in mapped.items()},
            tuple(float(sizes[turn[:, 0] == axis][0]) for axis in range(3)),
        )

    @property
    def mask(self) -> np.ndarray:
        """(X, Y, Z) bool, the brain."""
        return np.asarray(self.label_map > 0)


def slices_figure(case: ShownCase) -> ReportFigure:
    """Show the label map, every method's volume and the real scan in three directions (the paper's Figure 3)."""
    titles = {"label_map": "label map", **{method: name_of(method) for method in case.volumes}, "real": "real scan"}
    volumes = {"label_map": case.label_map, **case.volumes, "real": case.real}
    panels = slice_panels({titles[name]: volume for name, volume in volumes.items()}, case.mask, case.spacing_mm)
    return ReportFigure(
        f"From label map to volume: {case.case_id}",
        f"Each column: {_DIRECTIONS}. {_SIDES} {_GREY}",
        [Panel(png, f"{case.case_id}, {title}: {_DIRECTIONS}", title) for title, png in panels.items()],
        "small",
    )


def differences_figure(case: ShownCase) -> ReportFigure:
    """Show where each method is brighter or darker than the real scan, on one colour scale."""
    named = {name_of(method): volume for method, volume in case.volumes.items()}
    found = difference_panels(named, case.real, case.mask, case.spacing_mm)
    scale = f"from {number(-found.limit, 2)} (blue, darker) to {number(found.limit, 2)} (red, brighter)"
    return ReportFigure(
        f"Where they differ from the real scan: {case.case_id}",
        f"Synthetic − real in evaluation space, {scale}, the same scale for all; white is equal, grey is outside the "
        f"brain. {_SIDES}",
        [Panel(png, f"{case.case_id}, {title} minus real: {scale}", title) for title, png in found.panels.items()],
        "small",
        Panel(found.colourbar, f"Colour scale {scale}"),
    )


def profiles_figure(case: ShownCase, best_plane: str | None = None) -> ReportFigure:
    """Show intensities along the three axes through the brain's middle (the paper's Figure 4b).

    Args:
        case: with the methods that it has of: fused, the best plane, the label-mean image.
        best_plane: one of the planes, or None to leave it out.
    """
    shown = [method for method in (FUSED, best_plane, LABEL_MEAN) if method in case.volumes]
    volumes = {name_of(method): case.volumes[method] for method in shown if method is not None}
    panels = profile_panels(case.real, volumes, case.mask, case.spacing_mm)
    names = ", ".join(["real", *volumes])
    return ReportFigure(
        f"Intensity along three lines: {case.case_id}",
        "The curves follow the yellow line on the real scan above them, through the middle of the brain. Smooth curves "
        "where the real one is rough mean lost detail.",
        [Panel(png, f"{case.case_id}, intensity {way}: {names}", way) for way, png in panels.items()],
    )


def extremes_figure(best: ShownCase, worst: ShownCase, psnr: Mapping[str, float], method: str = FUSED) -> ReportFigure:
    """Show the best and the worst scan beside each other: real, synthetic, difference.

    Args:
        best: scan with the highest brain PSNR of the method.
        worst: scan with the lowest.
        psnr: case to brain PSNR in dB.
        method: which synthetic volume.
    """
    limit = max(difference_limit(case.volumes[method], case.real, case.mask) for case in (best, worst))
    columns, colourbar = [], b""
    for kind, case in (("best", best), ("worst", worst)):
        value = f"{number(psnr.get(case.case_id), 2)} dB"
        pictures = slice_panels({"real": case.real, method: case.volumes[method]}, case.mask, case.spacing_mm)
        found = difference_panels({method: case.volumes[method]}, case.real, case.mask, case.spacing_mm, limit)
        pictures[f"{method} − real"], colourbar = found.panels[method], found.colourbar
        columns.append(
            [
                Panel(png, f"{kind} scan {case.case_id} ({value}), {what}: {_DIRECTIONS}", f"{kind}: {what}")
                for what, png in pictures.items()
            ]
        )
    panels = [panel for pair in zip(*columns, strict=True) for panel in pair]  # beside each other on a phone too
    scale = Panel(colourbar, f"Colour scale from {number(-limit, 2)} to {number(limit, 2)}")
    numbers = [f"{each.case_id} ({number(psnr.get(each.case_id), 2)} dB)" for each in (best, worst)]
    caption = f"By brain PSNR of the {method} volume; best: {numbers[0]}, worst: {numbers[1]}. {_SIDES}"
    if best.case_id == worst.case_id:
        caption = f"Only one scan was measured, so it is both. {caption}"
    return ReportFigure("The best and the worst scan", caption, panels, "small", scale)


def structures_figure(structures: Sequence[StructureIntensity], method: str = FUSED) -> ReportFigure:
    """Show the intensity of every structure, real and synthetic."""
    differences = sorted(structures, key=lambda each: -abs(each.mean - each.real_mean))
    furthest = ", ".join(
        f"{each.name.replace('_', ' ')} ({number(each.real_mean, 2)} real, {number(each.mean, 2)} {method})"
        for each in differences[:3]
    )
    return ReportFigure(
        "Every structure's intensity",
        f"Mean and SD of a structure's voxels, averaged over people, with the fit. Furthest apart: {furthest}.",
        [Panel(structure_plot(structures, method), f"Intensity of each structure, real and {method}: {furthest}")],
        "large",
    )


def structure_intensities(
    summary: Sequence[Mapping[str, Any]], method: str = FUSED, fit: str = "gain_offset"
) -> list[StructureIntensity]:
    """Collect each structure's intensities from the rows of `trispade.metrics.summarise`."""
    metrics = ("real_mean", "real_sd", "structure_mean", "structure_sd")
    found: dict[str, dict[str, float]] = {}
    for row in summary:
        if row["method"] == method and row["fit"] == fit and row["metric"] in metrics:
            found.setdefault(row["region"], {})[row["metric"]] = row["mean"]
    return [
        StructureIntensity(region, *(values[metric] for metric in metrics))
        for region, values in found.items()
        if len(values) == len(metrics)
    ]


def spectrum_figure(cycles_per_mm: np.ndarray, ratios: Mapping[str, np.ndarray]) -> ReportFigure:
    """Show how much detail of each size the methods have, relative to the real scans.

    Args:
        cycles_per_mm: (F,) middle of each band.
        ratios: method to (F,) power, synthetic over real.
    """
    named = {name_of(method): curve for method, curve in ratios.items()}
    return ReportFigure(
        "Detail of each size",
        "Power spectrum, synthetic over real: below 1 detail is missing (blur), above 1 there is more than in the real "
        "scan (noise, streaks).",
        [Panel(spectrum_plot(cycles_per_mm, named), f"Power spectrum ratio by spatial frequency: {', '.join(named)}")],
        "large",
    )


def best_plane_of(summary: Sequence[Mapping[str, Any]]) -> str | None:
    """Return the plane with the highest mean brain PSNR with fit, or None if no plane was measured."""
    means = {
        row["method"]: row["mean"]
        for row in summary
        if (row["region"], row["fit"], row["metric"]) == ("brain", "gain_offset", "psnr") and row["method"] in PLANES
    }
    return max(means, key=lambda plane: means[plane]) if means else None
