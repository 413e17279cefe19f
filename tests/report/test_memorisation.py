from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage, stats

from trispade.errors import InputError
from trispade.labels import fill_brain, load_scheme
from trispade.metrics import class_means, label_mean_image
from trispade.phantoms import make_phantom
from trispade.phantoms.phantom import phantom_affine
from trispade.report.memorisation import (
    BrainDetail,
    check_memorisation,
    copy_bound,
    local_correlation,
    memorisation_verdict,
)

SCHEME = load_scheme("freesurfer")
SPACING_MM = 3.0
SHAPE = (32, 36, 30)  # too small for a head, so that the phantom is a small head
NUM_TRAINING = 4


def anatomy(seed: int, orientation: str = "RAS", oblique_degrees: float = 0.0):
    """Filled label map, T1w in [-1, 1] and affine of a phantom person, with a fine texture of its own."""
    affine = phantom_affine(SHAPE, SPACING_MM, orientation, oblique_degrees)
    phantom = make_phantom(seed, SHAPE, affine=affine)
    label_map = fill_brain(
        SCHEME.to_indices(phantom.label_map, "phantom"), (SPACING_MM,) * 3, SCHEME.vocabulary.index("csf")
    )
    t1w = np.where(label_map > 0, np.clip(phantom.t1w / np.percentile(phantom.t1w, 99.5), 0, 1.2) * 1.6 - 1, -1)
    return label_map, t1w.astype(np.float32), affine


def detail(seed: int, case_id: str | None = None, change=lambda t1w: t1w, move=np.eye(4)) -> BrainDetail:  # noqa: B008
    label_map, t1w, affine = anatomy(seed)
    return BrainDetail.of(case_id or f"scan-{seed}", f"person-{seed}", label_map, change(t1w), move @ affine)


@pytest.fixture(scope="module")
def training():
    return [detail(seed) for seed in range(NUM_TRAINING)]


@pytest.fixture(scope="module")
def unseen():
    return [detail(seed) for seed in range(10, 14)]


def painted(seed: int) -> BrainDetail:
    """What a generator that has memorised nothing makes: class means, and a texture of nobody."""
    label_map, t1w, affine = anatomy(seed)
    means = class_means([(label_map, t1w)], int(label_map.max()) + 1)
    texture = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=SHAPE), 0.8)
    volume = label_mean_image(label_map, means) + np.where(label_map > 0, 0.1 * texture, 0)
    return BrainDetail.of(f"painted-{seed}", f"person-{seed}", label_map, volume, affine)


def noisy(t1w):
    return t1w + 0.03 * np.random.default_rng(5).normal(size=t1w.shape)


TURNED = np.array([[0.995, -0.0998, 0, 6.0], [0.0998, 0.995, 0, -9.0], [0, 0, 1, 4.0], [0, 0, 0, 1]])
COPIES = {
    "exact": lambda t1w: t1w,
    "blurred": lambda t1w: ndimage.gaussian_filter(t1w, 0.6),
    "gain and offset": lambda t1w: 0.6 * t1w + 0.2,
    "noisy": noisy,
    "blurred, gain, noisy": lambda t1w: noisy(0.7 * ndimage.gaussian_filter(t1w, 0.5)),
    "half of it": lambda t1w: 0.5 * t1w + 0.5 * ndimage.gaussian_filter(t1w, 3),
}


def test_planted_copies_are_caught_and_painted_volumes_are_not(training, unseen):
    copies = [detail(number % NUM_TRAINING, name, change) for number, (name, change) in enumerate(COPIES.items())]
    moved = detail(2, "moved", move=TURNED)
    checks = check_memorisation([*copies, moved, painted(20), painted(21)], training, unseen)
    assert {check.case_id: check.is_copy for check in checks} == {
        **dict.fromkeys([*COPIES, "moved"], True),
        "painted-20": False,
        "painted-21": False,
    }
    nearest = [check.training_case for check in checks[:-2]]
    assert nearest == [f"scan-{number % NUM_TRAINING}" for number in range(len(COPIES))] + ["scan-2"]
    said = memorisation_verdict(checks)
    assert said.startswith("7 of 9 synthetic volumes may copy a training scan (4 training scans, at least 4 unseen")
    assert "moved (scan-2, 0." in said


def test_scans_of_strangers_are_no_copies(training, unseen):
    checks = check_memorisation([detail(20), detail(21)], training, unseen)
    assert not any(check.is_copy for check in checks)
    said = memorisation_verdict(checks)
    assert said.startswith("None of 2 synthetic volumes copies a training scan (4 training scans, at least 4 unseen")
    nearest = sorted(check.unseen_correlation for check in checks)
    assert said.endswith(f"with the nearest unseen one {nearest[0]:.2f} to {nearest[1]:.2f}.")


def test_the_nearest_scans_their_gap_and_the_bound_are_those_of_the_local_correlations(training, unseen):
    volume = painted(20)
    (check,) = check_memorisation([volume], training, unseen)
    aligned = volume.aligned_to(training[0])
    known = {scan.case_id: local_correlation(aligned, scan.aligned_to(training[0])) for scan in training}
    strangers = {scan.case_id: local_correlation(aligned, scan.aligned_to(training[0])) for scan in unseen}
    assert (check.training_case, check.training_correlation) == max(known.items(), key=lambda item: item[1])
    assert (check.unseen_case, check.unseen_correlation) == max(strangers.items(), key=lambda item: item[1])
    assert check.gap == pytest.approx(max(known.values()) - max(strangers.values()))
    assert check.bound == copy_bound(list(strangers.values()), NUM_TRAINING)
    assert (check.training_scans, check.unseen_people) == (4, 4)


def test_the_person_a_volume_was_made_from_is_no_stranger_and_two_scans_of_one_person_count_once(training, unseen):
    twice = BrainDetail.of("again", "person-11", *anatomy(11, "LPI", 8.0))
    (check,) = check_memorisation([painted(10)], training, [*unseen, twice])
    assert check.unseen_people == 3
    assert check.unseen_case != "scan-10"


def test_with_too_few_unseen_people_the_check_is_refused(training, unseen):
    expected = "expected real scans of at least 3 unseen people beside the one of copy, got {}. Add people to the val"
    for scans, number in ((unseen[:2], 2), ([], 0)):
        with pytest.raises(InputError, match=expected.format(number)):
            check_memorisation([detail(0, "copy")], training, scans)
    with pytest.raises(InputError, match="beside the one of painted-10, got 2"):
        check_memorisation([painted(10)], training, unseen[:3])


def test_where_nothing_was_checked_the_verdict_says_so(training, unseen):
    assert check_memorisation([], training, unseen) == []
    assert memorisation_verdict([]) == "No synthetic volume was checked."


def test_without_training_scans_the_check_is_refused(unseen):
    with pytest.raises(InputError, match="memorisation check: expected at least one training scan, got none"):
        check_memorisation([painted(20)], [], unseen)


def test_the_bound_is_bonferronis_prediction_limit():
    values = [0.12, 0.15, 0.16, 0.2, 0.13, 0.14, 0.18, 0.17]
    quantile = stats.t(7).ppf(1 - 0.01 / 17)
    expected = np.mean(values) + quantile * np.std(values, ddof=1) * np.sqrt(1 + 1 / 8)
    assert expected > max(values) + 0.1
    assert copy_bound(values, 17) == pytest.approx(expected)


def test_strangers_exceed_the_bound_as_rarely_as_it_promises():
    draws = np.random.default_rng(0).normal(0.15, 0.06, (2000, 8 + 17))
    alarms = [max(draw[8:]) > copy_bound(draw[:8], 17) for draw in draws]
    assert np.mean(alarms) < 0.015


def test_a_bound_is_neither_unreachable_nor_within_reach_of_chance():
    assert copy_bound([0.1, 0.2, 0.3], 17) == 0.6  # of three, the limit itself would be beyond 1
    assert copy_bound([0.15, 0.15, 0.15], 17) == pytest.approx(0.25)
    assert copy_bound([0.5, 0.6, 0.7], 17) == pytest.approx(0.8)


def test_a_residual_correlates_with_itself_whatever_its_gain_and_with_its_negative(training):
    one = training[0]
    scaled = BrainDetail("b", "b", one.t1w, -3 * one.residual, one.brain, one.affine)
    assert local_correlation(one, one) == pytest.approx(1, abs=0.02)
    assert local_correlation(one, scaled) == pytest.approx(-local_correlation(one, one), abs=1e-6)
    nowhere = BrainDetail("c", "c", one.t1w, one.residual, 0 * one.brain, one.affine)
    assert local_correlation(one, nowhere) == 0


def test_the_class_means_are_not_in_the_residual():
    label_map, _, affine = anatomy(0)
    found = BrainDetail.of("a", "a", label_map, label_mean_image(label_map, np.linspace(-1, 1, 25), sigma=0.0), affine)
    inside = found.brain > 0.99
    assert np.abs(found.residual[inside]).mean() < 0.25 * found.t1w[inside].std()
    assert not found.residual[found.brain == 0].any()


def test_a_volume_without_brain_or_contrast_is_named():
    label_map, t1w, affine = anatomy(0)
    with pytest.raises(InputError, match="x: expected at least one labelled voxel, got none"):
        BrainDetail.of("x", "p", 0 * label_map, t1w, affine)
    for flat in (0 * t1w, t1w + np.nan):
        with pytest.raises(InputError, match="x: expected finite, differing intensities in the brain, got none such"):
            BrainDetail.of("x", "p", label_map, flat, affine)
