"""What the numbers say, in sentences: each derived by a stated rule, so that nobody's wish decides."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from trispade.geometry import PLANES
from trispade.report.results_table import FUSED, interval, name_of, number, plural, probability, signed

Row = Mapping[str, Any]
Status = Literal["good", "mixed", "bad", "not measured"]

FIT = "gain_offset"
SHARPNESS_GOOD, SHARPNESS_MIXED = (0.85, 1.1), (0.7, 1.25)
INCOHERENCE_GOOD, INCOHERENCE_MIXED = 0.10, 0.25
RESCAN_GOOD_DB, RESCAN_MIXED_DB = 1.0, 3.0
# With fewer people no two-sided signed-rank test can fall below 0.05: its smallest p is 2 / 2^n.
FEWEST_PEOPLE, ENOUGH_PEOPLE = 6, 20
SIGNIFICANT = 0.05
_WORST_FIRST: tuple[Status, ...] = ("bad", "mixed", "good")
_RIVALS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("the label-mean image", ("label_mean",)),
    ("the direct 3D U-Net", ("direct",)),
    ("each single plane", PLANES),
    ("the mean of the planes", ("mean_of_planes",)),
)


@dataclass(frozen=True)
class Finding:
    """One sentence of the verdict.

    Attributes:
        status: how good the news is.
        text: the sentence, with its numbers.
        rule: how the status follows from the numbers.
    """

    status: Status
    text: str
    rule: str


def verdict_of(
    summary: Sequence[Row],
    comparisons: Sequence[Row] = (),
    rescan: Sequence[Row] = (),
    memorisation: Row | None = None,
) -> list[Finding]:
    """Derive the verdict from the numbers; what was not measured says so.

    Args:
        summary: rows of `trispade.metrics.summarise` on all test people.
        comparisons: rows of `trispade.metrics.compare_with_bounds`, fused against the others.
        rescan: rows of `summarise` on the people scanned twice, with the method ``scan_rescan``.
        memorisation: ``{"volumes", "copies"}`` of `trispade.report.memorisation.check_memorisation`: how many synthetic
            volumes could be judged, and how many of them count as copies; None if it was not checked.

    Returns:
        Findings in a fixed order: how many people; the fused volume against each rival; its distance from scan-rescan;
        sharpness; coherence across slices; memorisation; identical volumes, if there are any.
    """
    fused = {(row["region"], row["metric"]): row for row in summary if row["method"] == FUSED and row["fit"] == FIT}
    return [
        _people(fused),
        *(_against(title, rivals, comparisons) for title, rivals in _RIVALS),
        _distance_from_rescan(rescan),
        _sharpness(fused),
        _coherence(fused),
        _memorisation(memorisation),
        *_identical(fused),
    ]


def _people(fused: Mapping[tuple[str, str], Row]) -> Finding:
    rule = (
        f"good from {ENOUGH_PEOPLE} people on; bad below {FEWEST_PEOPLE}, where no two-sided signed-rank test can "
        f"reach p < {SIGNIFICANT:g}"
    )
    row = fused.get(("brain", "psnr"))
    if row is None:
        return Finding("not measured", "The fused volume was not measured on anybody.", rule)
    people = row["people"]
    measured = f"Measured on {plural(people, 'person', 'people')} ({plural(row['scans'], 'scan', 'scans')})"
    if people >= ENOUGH_PEOPLE:
        return Finding("good", f"{measured}.", rule)
    if people >= FEWEST_PEOPLE:
        return Finding("mixed", f"{measured}: few, so the intervals are wide and rare failures may not show.", rule)
    return Finding("bad", f"{measured}: too few to conclude from.", rule)


def _against(title: str, rivals: Sequence[str], comparisons: Sequence[Row]) -> Finding:
    rule = (
        "each comparison is of brain PSNR with fit, fused minus the other, person by person: good if the 95% interval "
        f"of the mean difference lies above 0 and p < {SIGNIFICANT:g}, bad if the interval lies below 0, mixed "
        "otherwise; of several planes the worst counts"
    )
    wanted = [
        row
        for row in comparisons
        if (row["a"], row["region"], row["fit"], row["metric"]) == (FUSED, "brain", FIT, "psnr") and row["b"] in rivals
    ]
    if not wanted:
        return Finding("not measured", f"Fused against {title}: not measured.", rule)
    found = sorted(((_status_of(row), row) for row in wanted), key=lambda pair: _WORST_FIRST.index(pair[0]))
    status = found[0][0]
    says = {
        "good": "The fused volume beats",
        "mixed": "The fused volume is not clearly better than",
        "bad": "The fused volume is worse than",
    }[status]
    if len(rivals) > 1 and (status != "good" or len(wanted) < len(rivals)):
        title = " and ".join(_plane_name(row) for each, row in found if each == status)
    details = "; ".join(_difference(row, with_name=len(wanted) > 1) for _, row in found)
    return Finding(status, f"{says} {title}: {details}.", rule)


def _status_of(row: Row) -> Status:
    if row["high"] < 0:
        return "bad"
    return "good" if row["low"] > 0 and row["p"] < SIGNIFICANT else "mixed"  # nan is never above or below


def _plane_name(row: Row) -> str:
    return f"the best single plane ({row['b']})" if row.get("role") == "best plane" else f"the {name_of(row['b'])}"


def _difference(row: Row, with_name: bool) -> str:
    before = f"{row['b']} " if with_name else ""
    within = interval(row["low"], row["high"], 2, show=signed)
    p_value = f"p = {probability(row['p'])}".replace("= <", "<")
    people = plural(row["people"], "person", "people")
    return f"{before}{signed(row['difference'], 2)} dB ({within}; {p_value}; {people})"


def _distance_from_rescan(rescan: Sequence[Row]) -> Finding:
    rule = (
        f"brain PSNR with fit on the people scanned twice: good if at most {RESCAN_GOOD_DB:g} dB below their second "
        f"scan, mixed if at most {RESCAN_MIXED_DB:g} dB, bad if more"
    )
    psnr = {r["method"]: r for r in rescan if (r["region"], r["fit"], r["metric"]) == ("brain", FIT, "psnr")}
    reference, fused = psnr.get("scan_rescan"), psnr.get(FUSED)
    if reference is None or fused is None or not math.isfinite(reference["mean"] - fused["mean"]):
        return Finding("not measured", "Distance from scan–rescan: not measured (nobody was scanned twice).", rule)
    gap = reference["mean"] - fused["mean"]
    status: Status = "good" if gap <= RESCAN_GOOD_DB else "mixed" if gap <= RESCAN_MIXED_DB else "bad"
    side = f"{number(gap, 1)} dB below" if gap > 0 else f"{number(-gap, 1)} dB above"
    text = (
        f"The fused volume is {side} a second real scan of the same person ({number(fused['mean'], 1)} against "
        f"{number(reference['mean'], 1)} dB; {plural(reference['people'], 'person', 'people')} scanned twice)"
    )
    bound = psnr.get("label_mean")
    if bound is not None and math.isfinite(bound["mean"]) and reference["mean"] > bound["mean"]:
        share = (fused["mean"] - bound["mean"]) / (reference["mean"] - bound["mean"])
        text += f"; it has gone {number(100 * share, 0)}% of the way there from the label-mean image"
    return Finding(status, f"{text}.", rule)


def _sharpness(fused: Mapping[tuple[str, str], Row]) -> Finding:
    rule = "good in {:g} to {:g} (real = 1), mixed in {:g} to {:g}, bad beyond".format(
        *SHARPNESS_GOOD, *SHARPNESS_MIXED
    )
    row = fused.get(("brain", "sharpness"))
    if row is None or not math.isfinite(row["mean"]):
        return Finding("not measured", "Sharpness: not measured.", rule)
    value = row["mean"]
    status: Status = (
        "good"
        if SHARPNESS_GOOD[0] <= value <= SHARPNESS_GOOD[1]
        else "mixed"
        if SHARPNESS_MIXED[0] <= value <= SHARPNESS_MIXED[1]
        else "bad"
    )
    says = "as sharp as the real scans" if status == "good" else "blurrier than the real scans"
    if value > SHARPNESS_GOOD[1]:
        says = "sharper or noisier than the real scans"
    return Finding(status, f"The fused volume is {says}: sharpness {number(value, 2)} (real = 1).", rule)


def _coherence(fused: Mapping[tuple[str, str], Row]) -> Finding:
    rule = (
        "mean absolute second difference across slices over that of the real scan: good if within "
        f"{INCOHERENCE_GOOD:.0%} of 1 in all three directions, mixed if within {INCOHERENCE_MIXED:.0%}, bad beyond; "
        "below 1 is smoother, above 1 is streaky"
    )
    rows = {plane: fused.get(("brain", f"incoherence_{plane}")) for plane in PLANES}
    values = {plane: row["mean"] for plane, row in rows.items() if row is not None and math.isfinite(row["mean"])}
    if len(values) < len(PLANES):
        return Finding("not measured", "Coherence across slices: not measured in all directions.", rule)
    furthest = max(values, key=lambda plane: abs(values[plane] - 1))
    off = round(abs(values[furthest] - 1), 9)  # 1.1 lies within 10% of 1
    status: Status = "good" if off <= INCOHERENCE_GOOD else "mixed" if off <= INCOHERENCE_MIXED else "bad"
    says = "is as coherent across slices as the real scans"
    if status != "good":
        says = f"is {'streakier' if values[furthest] > 1 else 'smoother'} across {furthest} slices than the real scans"
    each = ", ".join(f"{plane} {number(value, 2)}" for plane, value in values.items())
    return Finding(status, f"The fused volume {says}: {each} (real = 1).", rule)


def _memorisation(memorisation: Row | None) -> Finding:
    rule = "good if no synthetic volume is nearer to a training scan than scans of unseen people explain, bad if any is"
    if memorisation is None:
        return Finding("not measured", "Memorisation: not checked.", rule)
    if not memorisation["volumes"]:
        return Finding("not measured", "Memorisation: no volume could be judged for want of unseen people.", rule)
    volumes, copies = memorisation["volumes"], memorisation["copies"]
    checked = f"{plural(volumes, 'synthetic volume', 'synthetic volumes')} checked"
    if copies:
        return Finding("bad", f"{copies} of {checked} may copy a training scan: see the table.", rule)
    return Finding("good", f"No sign that training scans were memorised ({checked}).", rule)


def _identical(fused: Mapping[tuple[str, str], Row]) -> list[Finding]:
    row = fused.get(("brain", "psnr"))
    if row is None or not row["infinite"]:
        return []
    many = plural(row["infinite"], "fused volume is", "fused volumes are")
    return [
        Finding(
            "bad",
            f"{many} identical to the real scan: check that the real scan was not given as the synthetic one.",
            "bad if any PSNR is infinite; such volumes are left out of the means",
        )
    ]
