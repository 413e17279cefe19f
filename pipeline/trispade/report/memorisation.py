"""Memorisation check: is a synthetic volume nearer to a training scan than to scans that no network has seen?

Two brains resemble each other in what their labels say. A copy gives itself away by the rest: texture, vessels, sulci
within a class. So each volume is reduced to its *residual*, intensities minus the means of its own classes, and two
residuals are compared by their local correlation after rigid alignment of the brains. Gain, offset and slow drift of
intensities drop out of it.

The unseen people tell how alike strangers are. A synthetic volume counts as a copy where its nearest training scan
stands out from them more than chance allows (`copy_bound`). On MALC 2012, strangers correlate by 0.09 to 0.23 and two
scans of one person by 0.85 to 0.87. The check finds what has kept its place in the brain; texture that was bent onto
another anatomy escapes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage, stats

from trispade.errors import InputError
from trispade.geometry import Grid, WorkingGrid
from trispade.metrics import class_means, label_mean_image
from trispade.registration import register_rigidly, resample_to

SPACING_MM = 2.0
WINDOW_SIGMA_MM = 4.0
RESOLUTIONS_MM = (8.0, 4.0)
FEWEST_UNSEEN = 3
FALSE_ALARM_RATE = 0.01
SMALLEST_GAP = 0.1
CERTAIN_COPY = 0.6
BACKGROUND = -1.0


@dataclass(frozen=True, eq=False)
class BrainDetail:
    """What is compared of a volume, at 2 mm.

    Attributes:
        case_id: scan, or the scan whose label map a synthetic volume was made from.
        person_id: whose.
        t1w: (X, Y, Z) float32, above the background, for alignment.
        residual: (X, Y, Z) float32, intensities that the labels do not explain; 0 outside the brain.
        brain: (X, Y, Z) float32, share of each voxel inside the brain.
        affine: (4, 4), voxel -> RAS+ mm.
    """

    case_id: str
    person_id: str
    t1w: np.ndarray
    residual: np.ndarray
    brain: np.ndarray
    affine: np.ndarray

    @classmethod
    def of(
        cls, case_id: str, person_id: str, label_map: np.ndarray, t1w: np.ndarray, affine: np.ndarray
    ) -> BrainDetail:
        """Take the detail out of a volume.

        Args:
            case_id: scan.
            person_id: whose.
            label_map: (X, Y, Z) class indices, brain filled.
            t1w: (X, Y, Z) intensities, real or synthetic, in [-1, 1].
            affine: (4, 4) of both.

        Raises:
            InputError: if nothing is labelled, or the intensities are constant or not finite.
        """
        brain = np.asarray(label_map) > 0
        remedy = "Leave the case out of the memorisation check, or synthesize it again."
        if not brain.any():
            raise InputError.of(case_id, "at least one labelled voxel", "none", remedy)
        inside = np.asarray(t1w)[brain]
        if not np.isfinite(inside).all() or inside.min() == inside.max():
            raise InputError.of(case_id, "finite, differing intensities in the brain", "none such", remedy)
        indices = np.asarray(label_map)
        means = class_means([(indices, t1w)], int(indices.max()) + 1)
        residual = np.where(brain, t1w - label_mean_image(indices, means), 0.0)
        grid = WorkingGrid.around(Grid(brain.shape, np.asarray(affine)), brain, SPACING_MM, name=case_id)
        volumes = (np.where(brain, t1w - BACKGROUND, 0.0), residual, brain.astype(np.float32))
        above, detail, share = (grid.image_to_working(volume, 0.0) for volume in volumes)
        return cls(case_id, person_id, above, detail, share, grid.affine)

    def aligned_to(self, other: BrainDetail) -> BrainDetail:
        """Bring it onto another brain's grid, rigidly."""
        transform = register_rigidly(
            self.t1w, self.affine, other.t1w, other.affine, RESOLUTIONS_MM, names=(self.case_id, other.case_id)
        )
        t1w, residual, brain = (
            resample_to(volume, self.affine, other.t1w.shape, other.affine, transform, order)
            for volume, order in ((self.t1w, 1), (self.residual, 3), (self.brain, 1))
        )
        return BrainDetail(self.case_id, self.person_id, t1w, residual, brain, other.affine)


@dataclass(frozen=True)
class CopyCheck:
    """A synthetic volume beside its nearest scans.

    Attributes:
        case_id: scan whose label map the volume was made from.
        training_case: the training scan nearest to it.
        training_correlation: `local_correlation` with that.
        unseen_case: the scan of an unseen person nearest to it.
        unseen_correlation: `local_correlation` with that.
        bound: how high the correlation with a training scan may be by chance (`copy_bound`).
        training_scans: how many there were to choose from.
        unseen_people: how many there were to choose from.
    """

    case_id: str
    training_case: str
    training_correlation: float
    unseen_case: str
    unseen_correlation: float
    bound: float
    training_scans: int
    unseen_people: int

    @property
    def gap(self) -> float:
        """How much nearer the nearest training scan is than the nearest unseen one."""
        return self.training_correlation - self.unseen_correlation

    @property
    def is_copy(self) -> bool:
        """Whether the volume counts as a copy of a training scan."""
        return self.training_correlation > self.bound


def check_memorisation(
    synthetic: Sequence[BrainDetail], training: Sequence[BrainDetail], unseen: Sequence[BrainDetail]
) -> list[CopyCheck]:
    """Look for each synthetic volume's nearest training scan and its nearest scan of an unseen person.

    All brains are brought onto the first training scan's grid, so that each is registered once only.

    Args:
        synthetic: synthetic volumes; ``person_id`` is whose label map it was.
        training: all scans that the networks were trained on.
        unseen: real scans that no network was trained on; of one person the nearest counts. The person whose label map
            a volume was made from is no stranger, and left out for this volume.

    Returns:
        One check a volume, in their order.

    Raises:
        InputError: if there is no training scan, there are not enough unseen people, or a brain cannot be registered.
    """
    subject = "memorisation check"
    if not synthetic:
        return []
    if not training:
        raise InputError.of(subject, "at least one training scan", "none", "Name the training splits.")
    for volume in synthetic:
        people = {scan.person_id for scan in unseen} - {volume.person_id}
        if len(people) < FEWEST_UNSEEN:
            wanted = f"real scans of at least {FEWEST_UNSEEN} unseen people beside the one of {volume.case_id}"
            raise InputError.of(subject, wanted, str(len(people)), "Add people to the val or test split.")
    reference = training[0]
    known, strangers = ([scan.aligned_to(reference) for scan in scans] for scans in (training, unseen))
    return [_check_one(each.aligned_to(reference), known, strangers) for each in synthetic]


def memorisation_verdict(checks: Sequence[CopyCheck]) -> str:
    """Say in a sentence what the checks found."""
    if not checks:
        return "No synthetic volume was checked."
    people = min(check.unseen_people for check in checks)
    compared = f"{checks[0].training_scans} training scans, at least {people} unseen people a volume"
    copies = [check for check in checks if check.is_copy]
    if copies:
        named = ", ".join(f"{c.case_id} ({c.training_case}, {c.training_correlation:.2f})" for c in copies)
        return f"{len(copies)} of {len(checks)} synthetic volumes may copy a training scan ({compared}): {named}."
    known, strangers = (
        f"{min(values):.2f} to {max(values):.2f}"
        for values in ([c.training_correlation for c in checks], [c.unseen_correlation for c in checks])
    )
    return (
        f"None of {len(checks)} synthetic volumes copies a training scan ({compared}): correlation with the nearest "
        f"training scan {known}, with the nearest unseen one {strangers}."
    )


def copy_bound(unseen_correlations: Sequence[float], num_training: int) -> float:
    """Tell how high a correlation with the nearest training scan may be by chance alone.

    It is the upper prediction limit for the largest of as many draws as there are training scans, from the normal
    distribution that the unseen people come from: mean + t sd sqrt(1 + 1/n), with Student's t at 1 - 0.01 / N (for N
    training scans) and n - 1 degrees of freedom. So one volume in a hundred that copies nothing may be called a copy.
    Two corrections: a limit above 0.6, which few unseen people bring about, becomes 0.6, where strangers do not come;
    and the bound is at least 0.1 above the nearest unseen person, so that unseen people who happen to be much alike do
    not raise alarms.

    Args:
        unseen_correlations: (n,) one an unseen person, n at least 2.
        num_training: number of training scans.

    Source: Hahn and Meeker, Statistical intervals, 1991, section 4.8 (Bonferroni's prediction limit).
    """
    values = np.asarray(unseen_correlations, dtype=np.float64)
    n = len(values)
    quantile = float(stats.t.ppf(1 - FALSE_ALARM_RATE / num_training, n - 1))
    limit = float(values.mean() + quantile * values.std(ddof=1) * np.sqrt(1 + 1 / n))
    return max(min(limit, CERTAIN_COPY), float(values.max()) + SMALLEST_GAP)


def local_correlation(a: BrainDetail, b: BrainDetail) -> float:
    """Correlate two residuals in Gaussian windows and average over the brain that both share.

    Args:
        a: one, aligned.
        b: the other, on the same grid.

    Returns:
        Between -1 and 1; 0 where they share no brain.
    """
    weight = np.where((a.brain > 0.5) & (b.brain > 0.5), np.float32(1), np.float32(0))
    if not weight.any():
        return 0.0
    (box,) = ndimage.find_objects(weight.astype(np.uint8))
    weight, x, y = weight[box], a.residual[box] * weight[box], b.residual[box] * weight[box]
    share = np.maximum(_window(weight), 1e-6)
    mean_x, mean_y = _window(x) / share, _window(y) / share
    variances = [np.maximum(_window(v * v) / share - m * m, 0) for v, m in ((x, mean_x), (y, mean_y))]
    covariance = _window(x * y) / share - mean_x * mean_y
    inside = weight > 0
    # Where a residual hardly varies its correlation is noise; a hundredth of the typical variance damps it.
    spread = [v[inside] + 0.01 * v[inside].mean() for v in variances]
    return float(np.mean(covariance[inside] / np.sqrt(np.maximum(spread[0] * spread[1], 1e-12))))


def _check_one(volume: BrainDetail, training: Sequence[BrainDetail], unseen: Sequence[BrainDetail]) -> CopyCheck:
    known = {scan.case_id: local_correlation(volume, scan) for scan in training}
    others = [scan for scan in unseen if scan.person_id != volume.person_id]
    strangers = {scan.case_id: local_correlation(volume, scan) for scan in others}
    people: dict[str, float] = {}
    for scan in others:
        people[scan.person_id] = max(people.get(scan.person_id, -1.0), strangers[scan.case_id])
    nearest_known, nearest_stranger = max(known, key=known.__getitem__), max(strangers, key=strangers.__getitem__)
    return CopyCheck(
        case_id=volume.case_id,
        training_case=nearest_known,
        training_correlation=known[nearest_known],
        unseen_case=nearest_stranger,
        unseen_correlation=strangers[nearest_stranger],
        bound=copy_bound(list(people.values()), len(known)),
        training_scans=len(known),
        unseen_people=len(people),
    )


def _window(volume: np.ndarray) -> np.ndarray:
    return ndimage.gaussian_filter(volume, WINDOW_SIGMA_MM / SPACING_MM, mode="constant", truncate=3.0)
