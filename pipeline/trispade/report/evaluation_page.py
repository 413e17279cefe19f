"""The report page of an evaluation: which tables and figures it has, and what it says of where its numbers are from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trispade.data import EvaluationCase
from trispade.geometry import PLANES
from trispade.manifests import SPLITS, Manifest
from trispade.metrics import spectrum_curve
from trispade.report.figure import save_triplanar_figure
from trispade.report.memorisation import CopyCheck, memorisation_verdict
from trispade.report.page import Provenance, ReportContent, ReportFigure
from trispade.report.page_figures import (
    ShownCase,
    best_plane_of,
    differences_figure,
    extremes_figure,
    profiles_figure,
    slices_figure,
    spectrum_figure,
    structure_intensities,
    structures_figure,
)
from trispade.report.provenance import command_line, hashed, now, versions
from trispade.report.results_table import FUSED, Table, Value, comparison_table, name_of, number, results_table
from trispade.report.verdict import verdict_of

if TYPE_CHECKING:
    from trispade.report.evaluation import Results

SHOWN_METHODS = ("label_mean", "direct", *PLANES, "mean_of_planes", FUSED, "realism")
FITS = ("gain_offset", "none")


def evaluation_page(
    results: Results, manifest: Manifest, models: Mapping[str, str], downstream_file: Path
) -> ReportContent:
    """Put together the page of an evaluation.

    Args:
        results: what was measured.
        manifest: whose test scans these are.
        models: name to file of each model.
        downstream_file: tables of evaluate_downstream, if it was run.
    """
    copies = None if isinstance(results.copies, str) else results.copies
    found = {"volumes": len(copies), "copies": sum(each.is_copy for each in copies)} if copies is not None else None
    return ReportContent(
        title=f"trispade: synthetic T1w against real scans of {manifest.name}",
        date=now(),
        verdict=verdict_of(results.summary, results.comparisons, results.scanned_twice, found),
        provenance=_provenance(manifest, models),
        results=[results_table(results.summary, fit, "all test people") for fit in FITS],
        comparisons=comparison_table(results.comparisons),
        rescan=[results_table(results.scanned_twice, fit, "people scanned twice") for fit in FITS],
        by_age=[results_table(rows, FITS[0], f"age {group}") for group, rows in results.by_age.items()],
        figures=_figures(results),
        memorisation=None if copies is None else _copies_table(copies),
        memorisation_verdict=results.copies
        if isinstance(results.copies, str)
        else memorisation_verdict(results.copies),
        distribution=_distances_table(results.distances),
        downstream=_downstream_table(downstream_file),
        failures=results.failures,
        credits=_credits(manifest),
    )


def save_overview(results: Results, path: str | Path) -> None:
    """Save the typical scan, the median by the fused volume's brain PSNR, as a PNG: label map, planes, fused, real."""
    typical = _shown(_ranked(results)[len(results.cases) // 2], (*PLANES, FUSED))
    columns = {"label map": typical.label_map, **{f"{plane} GAN": typical.volumes[plane] for plane in PLANES}}
    columns |= {FUSED: typical.volumes[FUSED], "real": typical.real}
    save_triplanar_figure(columns, path, spacing_mm=typical.spacing_mm)


def _ranked(results: Results) -> list[EvaluationCase]:
    """Sort the cases by the fused volume's brain PSNR, worst first."""
    psnr = _psnr_of_fused(results.rows)
    return sorted(results.cases, key=lambda case: psnr[case.case_id])


def _figures(results: Results) -> list[ReportFigure]:
    psnr, ranked = _psnr_of_fused(results.rows), _ranked(results)
    typical = _shown(ranked[len(ranked) // 2], SHOWN_METHODS)
    return [
        slices_figure(typical),
        profiles_figure(typical, best_plane_of(results.summary)),
        differences_figure(typical),
        spectrum_figure(*_spectra(results.cases)),
        structures_figure(structure_intensities(results.summary)),
        extremes_figure(_shown(ranked[-1], (FUSED,)), _shown(ranked[0], (FUSED,)), psnr),
    ]


def _psnr_of_fused(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    wanted = (FUSED, "brain", FITS[0], "psnr")
    found = [row for row in rows if (row["method"], row["region"], row["fit"], row["metric"]) == wanted]
    return {str(row["case_id"]): float(row["value"]) for row in found}


def _shown(case: EvaluationCase, methods: Sequence[str]) -> ShownCase:
    volumes = {method: case.volume(method) for method in methods if method in case.methods}
    return ShownCase.from_own_grid(case.case_id, case.label_map(), case.real(), volumes, case.affine)


def _spectra(cases: Sequence[EvaluationCase]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Power by frequency relative to the real scan: each method's median over scans of the first scan's voxel size."""
    curves: dict[str, list[np.ndarray]] = {}
    frequencies = np.empty(0)
    for case in cases:
        shown = _shown(case, SHOWN_METHODS)
        for method, volume in shown.volumes.items():
            found, ratios = spectrum_curve(volume, shown.real, shown.mask, shown.spacing_mm)
            if not frequencies.size:
                frequencies = found
            if np.allclose(found, frequencies):
                curves.setdefault(method, []).append(ratios)
    return frequencies, {method: np.median(ratios, axis=0) for method, ratios in curves.items()}


def _copies_table(checks: Sequence[CopyCheck]) -> Table:
    """Lay out the memorisation check: a row a synthetic volume, the nearest to a training scan first."""
    header = [
        "volume",
        "nearest training scan",
        "correlation",
        "may be by chance",
        "nearest unseen scan",
        "correlation",
        "copy?",
    ]
    rows: list[list[Value]] = [
        [
            each.case_id,
            each.training_case,
            number(each.training_correlation, 2),
            f"up to {number(each.bound, 2)}",
            each.unseen_case,
            number(each.unseen_correlation, 2),
            "yes" if each.is_copy else "no",
        ]
        for each in sorted(checks, key=lambda each: -each.gap)
    ]
    return Table("Detail that labels do not explain, correlated with real scans", header, rows)


def _distances_table(distances: Mapping[str, Mapping[str, float]] | str) -> Table | None:
    if isinstance(distances, str):
        return Table("Distances between sets of volumes: not measured", ["method", "why"], [["all", distances]])
    rows: list[list[Value]] = [
        ["real scans of other people (floor)" if method == "real" else name_of(method), *values.values()]
        for method, values in sorted(distances.items(), key=lambda each: each[1]["frechet_distance"])
    ]
    return Table(
        "Distance of each method's volumes from real scans of other people, as sets of patches",
        ["method", "Fréchet distance", "kernel distance (MMD²)"],
        rows,
        notes=["Halves of the people against the other halves; the floor is real scans against real scans."],
        strong=name_of(FUSED),
    )


def _downstream_table(path: Path) -> Table | None:
    """Lay out the Dice of segmentation networks: a row a structure, a column an arm; None if none was trained."""
    if not path.is_file():
        return None
    content = json.loads(path.read_text())
    found = {(row["structure"], row["arm"]): row for row in content["summary"]}
    arms, structures = (list(dict.fromkeys(key[place] for key in found)) for place in (1, 0))
    cells = {key: f"{number(row['mean'], 3)} ± {number(row['sd'], 3)}" for key, row in found.items()}
    people = max((row["people"] for row in found.values()), default=0)
    return Table(
        f"Dice on real scans of people whom nothing was trained on (n = {people}), by what the network has learnt from",
        ["structure", *arms],
        [[structure.replace("_", " "), *(cells.get((structure, arm)) for arm in arms)] for structure in structures],
        notes=[f"Not trained yet: {', '.join(content['missing'])}."] if content.get("missing") else [],
    )


def _provenance(manifest: Manifest, models: Mapping[str, str]) -> Provenance:
    people = {split: len({case.person_id for case in manifest.select([split])}) for split in SPLITS}
    return Provenance(
        command=command_line(),
        configs=["evaluate.yaml"],
        data=hashed(manifest.name, manifest.path),
        weights=[hashed(f"{name}: {Path(file).name}", file) for name, file in models.items() if Path(file).is_file()],
        versions=versions(),
        seeds={"bootstrap": 0, "halves of people": 0},
        people={split: number for split, number in people.items() if number},
    )


def _credits(manifest: Manifest) -> list[str]:
    licences = sorted({case.licence for case in manifest.cases})
    lines = [f"Scans and labels: {manifest.name}, {', '.join(licences)}."]
    return [*lines, manifest.reference] if manifest.reference else lines
