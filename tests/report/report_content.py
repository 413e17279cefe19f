"""Builds a report page of phantoms and made-up numbers, for the tests of the page and for looking at it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import ndimage

from trispade.labels import load_scheme
from trispade.metrics import class_means, label_mean_image
from trispade.phantoms import make_phantom
from trispade.report.page import HashedFile, Provenance, ReportContent
from trispade.report.page_figures import (
    ShownCase,
    differences_figure,
    extremes_figure,
    profiles_figure,
    slices_figure,
    spectrum_figure,
    structure_intensities,
    structures_figure,
)
from trispade.report.results_table import Cell, Table, comparison_table, results_table
from trispade.report.verdict import verdict_of

SCHEME = load_scheme("freesurfer")
# Brain PSNR and SSIM as in docs/first_run.md; the rest is made up.
MEASURED = {
    "label_mean": (19.85, 0.714, 0.80, 0.60, 0.10, 0.52, 0.50, 0.51, 25.55),
    "direct": (20.90, 0.760, 0.86, 0.62, 0.14, 0.58, 0.57, 0.60, 26.60),
    "axial": (20.41, 0.736, 0.83, 0.75, 0.61, 1.42, 0.95, 0.97, 26.12),
    "coronal": (20.48, 0.738, 0.84, 0.74, 0.60, 0.96, 1.39, 0.96, 26.19),
    "sagittal": (20.38, 0.739, 0.83, 0.76, 0.63, 0.97, 0.98, 1.44, 26.09),
    "mean_of_planes": (21.25, 0.779, 0.88, 0.72, 0.38, 0.99, 0.98, 1.01, 26.96),
    "fused": (21.22, 0.777, 0.88, 0.70, 0.35, 0.93, 0.92, 0.95, 26.93),
    "real_resampled": (24.58, 0.914, 0.97, 0.79, 0.22, 0.74, 0.73, 0.75, 30.28),
}
METRICS = (
    *("psnr", "ssim", "ms_ssim", "sharpness", "spectrum_ratio"),
    *("incoherence_axial", "incoherence_coronal", "incoherence_sagittal"),
)


def summary_row(
    method: str, metric: str, mean: float, region: str = "brain", fit: str = "gain_offset", **changes: Any
) -> dict[str, Any]:
    """One row as `trispade.metrics.summarise` gives it."""
    row = {"method": method, "region": region, "fit": fit, "metric": metric, "mean": mean, "sd": 0.02 * mean}
    row |= {"low": 0.98 * mean, "high": 1.02 * mean, "people": 6, "scans": 9}
    row |= {"infinite": 0, "missing": 0, "note": ""} | changes
    return row | ({"sd": np.nan, "low": np.nan, "high": np.nan} if row["people"] < 2 else {})


def summary_rows(measured: Mapping[str, Sequence[float]], **changes: Any) -> list[dict[str, Any]]:
    """Every column of the table of results, with and without fit; the latter a little worse."""
    rows = []
    for method, (*brain, full) in measured.items():
        for fit, factor in (("gain_offset", 1.0), ("none", 0.95)):
            rows += [
                summary_row(method, metric, factor * value, fit=fit, **changes)
                for metric, value in zip(METRICS, brain, strict=True)
            ]
            rows.append(summary_row(method, "psnr", factor * full, region="full", fit=fit, **changes))
    return rows


def comparison_row(b: str, difference: float, low: float, high: float, **changes: Any) -> dict[str, Any]:
    """One row as `trispade.metrics.compare_pairs` gives it."""
    row = {"a": "fused", "b": b, "region": "brain", "fit": "gain_offset", "metric": "psnr"}
    row |= {"difference": difference, "low": low, "high": high, "p": 0.03125, "people": 6, "positive": 6, "note": ""}
    return row | changes


def shown_case(seed: int, shape: tuple[int, int, int], spacing_mm: float, blur: float = 1.0) -> ShownCase:
    """A phantom with stand-ins for the methods: label means, streaks across the slices of each plane, blur."""
    phantom = make_phantom(seed, shape, spacing_mm)
    label_map = SCHEME.to_indices(phantom.label_map, "phantom")
    means = class_means([(label_map, phantom.t1w)], SCHEME.vocabulary.num_classes)
    means[0] = 0.0
    generator = np.random.default_rng(seed)
    volumes = {"label_mean": label_mean_image(label_map, means)}
    for axis, plane in ((2, "axial"), (1, "coronal"), (0, "sagittal")):
        streaks = generator.normal(0, 0.08, [shape[other] if other == axis else 1 for other in range(3)])
        volumes[plane] = ndimage.gaussian_filter(phantom.t1w, 0.4 * blur) * (1 + streaks)
    volumes["fused"] = ndimage.gaussian_filter(phantom.t1w, 0.6 * blur)
    return ShownCase.from_own_grid(f"sub-{seed:02d}", label_map, phantom.t1w, volumes, phantom.affine)


PROVENANCE = Provenance(
    "trispade evaluate --dataset-dir malc2012 --model-file models/model.pt --output-dir evaluation",
    ["evaluate.yaml", "presets/compact.yaml", "spacing_mm=2.0"],
    HashedFile("malc2012.json", "0f" * 32),
    [HashedFile("model.pt", "1e" * 32), HashedFile("direct_model.pt", "2d" * 32)],
    {"python": "3.11.4", "torch": "2.13.0", "monai": "1.6.1", "trispade": "0.1.0"},
    {"bootstrap": 0, "networks": 0},
    {"gan_train": 12, "fusion_train": 5, "val": 2, "test": 6},
)


def make_full_content(cases: Sequence[ShownCase]) -> ReportContent:
    """A page with every part, of a best and a worst case."""
    best, worst = cases
    summary = summary_rows(MEASURED)
    summary += [
        summary_row("fused", metric, value, region=name)
        for name, real in (
            ("cerebral_white_matter", 0.86),
            ("cerebral_cortex", 0.61),
            ("hippocampus", 0.63),
            ("csf", 0.2),
        )
        for metric, value in (
            *(("real_mean", real), ("real_sd", 0.06)),
            *(("structure_mean", 0.95 * real + 0.02), ("structure_sd", 0.045)),
        )
    ]
    rescan = summary_rows(MEASURED, people=3, scans=6)
    rescan += summary_rows({"scan_rescan": (27.2, 0.957, 0.99, 0.98, 0.95, 0.97, 0.98, 0.97, 32.9)}, people=3, scans=6)
    comparisons = [
        comparison_row("label_mean", 1.37, 1.21, 1.55),
        comparison_row("direct", 0.32, -0.05, 0.71, p=0.156, positive=5),
        comparison_row("coronal", 0.74, 0.66, 0.83, role="best plane"),
        comparison_row("mean_of_planes", -0.03, -0.08, 0.02, p=0.4375, positive=2),
    ]
    nearest = [["sub-07", "sub-01", 0.12, "sub-05", 0.11, 0.01], ["sub-08", "sub-02", 0.10, "sub-06", 0.12, -0.02]]
    return ReportContent(
        title="Evaluation of trispade on MALC 2012",
        date="22 November 2026",
        verdict=verdict_of(summary, comparisons, rescan, {"volumes": 9, "copies": 0}),
        provenance=PROVENANCE,
        results=[results_table(summary, fit, "all test people") for fit in ("gain_offset", "none")],
        comparisons=comparison_table(comparisons),
        rescan=[results_table(rescan, fit, "people scanned twice") for fit in ("gain_offset", "none")],
        by_age=[
            results_table(summary_rows(MEASURED, people=people, scans=scans), "gain_offset", f"age {group}")
            for group, people, scans in (("under 40", 3, 6), ("40 to 64", 2, 2), ("65 and over", 1, 1))
        ],
        figures=_figures(best, worst, summary),
        memorisation=Table(
            "Nearest training scan and nearest scan of an unseen person, by local correlation",
            ["synthetic volume", "nearest training", "correlation", "nearest unseen", "correlation", "gap"],
            nearest,
        ),
        memorisation_verdict="No volume is nearer to a training scan than unseen scans explain.",
        distribution=Table(
            "Distance between sets of volumes (0 is equal)",
            ["set against the real test scans", "Fréchet distance", "MMD"],
            [["real (floor)", 0.8, 0.01], ["fused", 3.4, 0.09], ["label mean (bound below)", 11.2, 0.31]],
        ),
        downstream=Table(
            "Dice on real test scans, mean ± SD over 6 people",
            ["trained on", "hippocampus", "thalamus", "caudate"],
            [
                ["5 real scans", Cell("0.79 ± 0.03"), Cell("0.86 ± 0.02"), Cell("0.83 ± 0.04")],
                ["synthetic only", Cell("0.74 ± 0.04"), Cell("0.84 ± 0.03"), None],
            ],
        ),
        failures={
            "sub-09_ses-1": "sub-09_ses-1_T1w.nii.gz: expected a NIfTI file, got a truncated one. Copy it again."
        },
        credits=["T1w scans from the OASIS project; labels provided by Neuromorphometrics, Inc.; CC BY-NC 3.0"],
    )


def _figures(best: ShownCase, worst: ShownCase, summary: Sequence[dict[str, Any]]) -> list[Any]:
    cycles_per_mm = (np.arange(32) + 0.5) / 64
    return [
        slices_figure(best),
        profiles_figure(best, "coronal"),
        differences_figure(best),
        extremes_figure(best, worst, {best.case_id: 21.9, worst.case_id: 19.7}),
        structures_figure(structure_intensities(summary)),
        spectrum_figure(
            cycles_per_mm,
            {method: np.exp(-rate * cycles_per_mm) for method, rate in (("fused", 5.0), ("label_mean", 9.0))},
        ),
    ]
