"""Tables of the report page as plain data: methods between their bounds, and the fused volume against each of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]

NOT_AVAILABLE = "n/a"
NO_INTERVAL = "no interval"
FUSED = "fused"
# From the bound below to the bound above; every table of results has a row for each of them.
METHOD_NAMES = {
    "label_mean": "label mean (bound below)",
    "direct": "direct 3D U-Net (competitor)",
    "axial": "axial plane alone",
    "coronal": "coronal plane alone",
    "sagittal": "sagittal plane alone",
    "mean_of_planes": "mean of the planes",
    FUSED: "fused (this model)",
    "realism": "fused for realism",
    "real_resampled": "real scan through the working grid",
    "scan_rescan": "scan–rescan (reference)",
}
FIT_NAMES = {"gain_offset": "with the gain and offset fit", "none": "without a fit"}
# Region, metric, title, decimals.
COLUMNS = (
    ("brain", "psnr", "brain PSNR (dB)", 2),
    ("brain", "ssim", "brain SSIM", 3),
    ("brain", "ms_ssim", "brain MS-SSIM", 3),
    ("brain", "sharpness", "sharpness (real = 1)", 2),
    ("brain", "spectrum_ratio", "spectrum ratio (real = 1)", 2),
    ("brain", "incoherence_axial", "incoherence, axial (real = 1)", 2),
    ("brain", "incoherence_coronal", "incoherence, coronal (real = 1)", 2),
    ("brain", "incoherence_sagittal", "incoherence, sagittal (real = 1)", 2),
    ("full", "psnr", "full-grid PSNR (dB): flatters", 2),
)


@dataclass(frozen=True)
class Cell:
    """A cell that is more than one value: its text and a smaller line below it."""

    text: str
    detail: str = ""


Value = Cell | str | int | float | None


@dataclass(frozen=True)
class Table:
    """A table as plain data.

    Attributes:
        caption: says what was measured, on whom.
        header: a title a column; the first is that of the row heads.
        rows: the first cell of each is its head. Numbers that are None or not finite are shown as n/a, and it is said.
        notes: shown below.
        strong: head of the row that is set off, if any.
        flattering: indices of columns that are set back, since their numbers flatter.
    """

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[Value]]
    notes: Sequence[str] = ()
    strong: str | None = None
    flattering: Sequence[int] = ()

    def __post_init__(self) -> None:
        wrong = [list(row) for row in self.rows if len(row) != len(self.header)]
        if wrong:
            raise ValueError(f"table {self.caption!r}: expected {len(self.header)} cells a row, got {wrong[0]}")


def results_table(summary: Sequence[Row], fit: str, people: str) -> Table:
    """Lay out every method between its bounds: mean ± SD and 95% interval over people.

    A method that was not measured has its row all the same, with n/a in it.

    Args:
        summary: rows of `trispade.metrics.summarise`.
        fit: ``"gain_offset"`` or ``"none"``.
        people: who they are, such as ``"all test people"``; stands in the caption.

    Returns:
        The table, with n in its header; the head of a method measured on other people says its own n.
    """
    found = {(row["method"], row["region"], row["metric"]): row for row in summary if row["fit"] == fit}
    measured = list(dict.fromkeys(method for method, _, _ in found))
    counts = {method: _counts(found, method) for method in measured}
    most = counts.get(FUSED) or max(counts.values(), default=(0, 0))
    rows: list[list[Value]] = []
    for method in [*METHOD_NAMES, *(each for each in measured if each not in METHOD_NAMES)]:
        head = name_of(method)
        if counts.get(method, most) != most:
            head += f" (n = {_people_and_scans(*counts[method])})"
        cells = [_cell(found.get((method, region, metric)), digits) for region, metric, _, digits in COLUMNS]
        rows.append([head, *cells])
    header = [f"method (n = {_people_and_scans(*most)})", *(title for _, _, title, _ in COLUMNS)]
    return Table(
        caption=f"{people[:1].upper()}{people[1:]}, {FIT_NAMES.get(fit, fit)}",
        header=header,
        rows=rows,
        notes=[
            "Mean ± SD over people; below it, the 95% bootstrap interval of the mean; neither for a single person.",
            *_notes_on_left_out(found),
        ],
        strong=name_of(FUSED),
        flattering=[number for number, (region, *_) in enumerate(COLUMNS, start=1) if region == "full"],
    )


def comparison_table(comparisons: Sequence[Row]) -> Table:
    """Lay out paired comparisons: mean difference and its 95% interval over people, Wilcoxon's p, and n.

    Args:
        comparisons: rows of `trispade.metrics.compare_with_bounds`.
    """
    digits = {metric: each for _, metric, _, each in COLUMNS}
    rows: list[list[Value]] = []
    for row in comparisons:
        places = digits.get(row["metric"], 3)
        metric = str(row["metric"]).upper().replace("_", "-")
        rows.append(
            [
                f"{name_of(row['a'])} − {name_of(row['b'])}",
                f"{row['region']} {metric}, {FIT_NAMES.get(row['fit'], row['fit'])}",
                Cell(signed(row["difference"], places), interval(row["low"], row["high"], places, show=signed)),
                Cell(f"{row['positive']} of {row['people']}"),
                Cell(probability(row["p"])),
            ]
        )
    return Table(
        caption="Paired differences, person by person",
        header=["difference", "of", "mean, 95% interval", "people above 0", "Wilcoxon p"],
        rows=rows,
        notes=[
            "Two-sided signed-rank test; neither p nor intervals are corrected for the number of comparisons.",
            "Of few people a bootstrap interval is too narrow: of six, it holds the truth in about 87 of 100 studies.",
            *(f"{name_of(row['a'])} − {name_of(row['b'])}: {row['note']}." for row in comparisons if row["note"]),
        ],
    )


def name_of(method: str) -> str:
    """Return what a method is called on the page."""
    return METHOD_NAMES.get(method, method.replace("_", " "))


def number(value: float | None, digits: int) -> str:
    """Write a number, or n/a for what is None or not finite."""
    return NOT_AVAILABLE if value is None or not math.isfinite(value) else f"{value:.{digits}f}".replace("-", "−")


def signed(value: float | None, digits: int) -> str:
    """Write a number with its sign, or n/a for what is None or not finite."""
    return NOT_AVAILABLE if value is None or not math.isfinite(value) else f"{value:+.{digits}f}".replace("-", "−")


def probability(p: float | None) -> str:
    """Write a p value."""
    if p is None or not math.isfinite(p):
        return NOT_AVAILABLE
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def interval(low: float | None, high: float | None, digits: int, show: Any = number) -> str:
    """Write an interval, or say that there is none."""
    texts = show(low, digits), show(high, digits)
    return NO_INTERVAL if NOT_AVAILABLE in texts else " to ".join(texts)


def plural(count: int, one: str, many: str) -> str:
    """Write a count with its noun."""
    return f"{count} {one if count == 1 else many}"


def _cell(row: Row | None, digits: int) -> Value:
    if row is None or row["mean"] is None or not math.isfinite(row["mean"]):
        return Cell(NOT_AVAILABLE, "identical volumes") if row is not None and row["infinite"] else None
    spread = number(row["sd"], digits)
    text = number(row["mean"], digits) + ("" if spread == NOT_AVAILABLE else f" ± {spread}")
    within = interval(row["low"], row["high"], digits)
    return Cell(text, "" if within == NO_INTERVAL else within)


def _counts(found: Mapping[tuple[str, str, str], Row], method: str) -> tuple[int, int]:
    """People and scans of a method: the most that any of its columns has."""
    shown = {(region, metric) for region, metric, _, _ in COLUMNS}
    of_method = [row for (name, *where), row in found.items() if name == method and tuple(where) in shown]
    return max(((row["people"], row["scans"]) for row in of_method), default=(0, 0))


def _people_and_scans(people: int, scans: int) -> str:
    return f"{plural(people, 'person', 'people')}, {plural(scans, 'scan', 'scans')}"


def _notes_on_left_out(found: Mapping[tuple[str, str, str], Row]) -> list[str]:
    """Say which values are in no mean: infinite PSNR of identical volumes, and nan."""
    titles = {(region, metric): title for region, metric, title, _ in COLUMNS}
    return [
        f"{name_of(method)}, {titles[region, metric]}: {row['note']}."
        for (method, region, metric), row in found.items()
        if (region, metric) in titles and (row["infinite"] or row["missing"])
    ]
