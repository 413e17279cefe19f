from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy import ndimage

from trispade.data import EvaluationStore
from trispade.geometry import PLANES, Grid, WorkingGrid
from trispade.intensity import evaluation_intensity
from trispade.labels import load_scheme
from trispade.metrics import class_means, compare_in_evaluation_space, label_mean_image
from trispade.report import StoreMethods, what_made_them
from trispade.report.comparison import METHODS

SHAPE = (26, 30, 24)
VOCABULARY = load_scheme("freesurfer").vocabulary
PLANE_ERRORS = {"axial": 0.3, "coronal": -0.1, "sagittal": -0.2}


def _file(path):
    path.write_text(path.name)
    return path


def make_item(tmp_path, case_id: str = "one", seed: int = 0, spacing_mm: float = 1.0) -> dict:
    """One evaluated case, an ellipsoid of two classes, scanned in LAS at 1 mm; the planes err by opposite noises."""
    generator = np.random.default_rng(seed)
    x, y, z = np.indices(SHAPE)
    radius = np.sqrt(((x - 12) / 10) ** 2 + ((y - 15) / 12) ** 2 + ((z - 11) / 9) ** 2)
    label_map = np.where(radius < 0.6, 2, radius < 1).astype(np.uint8)
    texture = ndimage.gaussian_filter(generator.normal(size=SHAPE), 0.7)
    t1w = np.where(label_map > 0, 300.0 * label_map + 150 * texture, 0).clip(0).astype(np.float32)
    affine = np.diag([-1.0, 1.0, 1.0, 1.0])
    grid = WorkingGrid.around(Grid(SHAPE, affine), label_map > 0, spacing_mm)
    image = grid.labels_to_working(label_map)
    real = grid.image_to_working(evaluation_intensity(t1w, label_map > 0) * 2 - 1, -1.0)
    noise = generator.normal(size=grid.shape).astype(np.float32)
    painted = [np.clip(0.8 * real, -0.7, 0.7) + PLANE_ERRORS[plane] * noise for plane in PLANES] + [0.8 * real]
    return {
        "case_id": case_id,
        "person_id": "p1",
        **{name: str(_file(tmp_path / f"{case_id}_{name}")) for name in ("label_path", "t1w_path")},
        "own_label_map": MetaTensor(torch.from_numpy(label_map[None]), affine=torch.from_numpy(affine)),
        "t1w": MetaTensor(torch.from_numpy(t1w[None]), affine=torch.from_numpy(affine)),
        "image": MetaTensor(torch.from_numpy(image[None]), affine=torch.from_numpy(grid.affine)),
        "working_grid": grid.to_dict(),
        "pred": torch.from_numpy(np.where(image > 0, np.stack(painted), -1).astype(np.float32)),
    }


@pytest.fixture
def training_cases(make_case):
    return [make_case("a"), make_case("b", seed=1)]


@pytest.fixture
def stored(training_cases, tmp_path):
    """Store an item's volumes by all methods; gives the case."""

    def store_item(item: dict, direct=None, realism=None):
        store = EvaluationStore(tmp_path / "volumes", None, {})
        assert StoreMethods(store, training_cases, VOCABULARY, direct, realism)(item) is item
        (case,) = store.open([item])
        return case

    return store_item


def psnr_of(case, fit="gain_offset"):
    def psnr(volume):
        rows = compare_in_evaluation_space(volume, case.real(), case.label_map() > 0)
        wanted = ("brain", fit, "psnr")
        return next(row["value"] for row in rows if (row["region"], row["fit"], row["metric"]) == wanted)

    return {method: psnr(case.volume(method)) for method in case.methods}


def test_every_method_is_stored_on_the_scans_own_grid(stored, tmp_path):
    item = make_item(tmp_path)
    case = stored(item)
    assert case.methods == tuple(method for method in METHODS if method not in ("direct", "realism"))
    np.testing.assert_array_equal(case.label_map(), item["own_label_map"][0])
    np.testing.assert_allclose(case.real(), item["t1w"][0])
    np.testing.assert_array_equal(case.affine, item["own_label_map"].affine)
    for method in case.methods:
        assert case.volume(method).shape == SHAPE


def test_a_direct_network_is_one_more_method_after_the_label_mean(stored, tmp_path):
    case = stored(make_item(tmp_path), direct=lambda label_map: torch.where(label_map > 0, label_map / 4, -1.0))
    assert case.methods == tuple(method for method in METHODS if method != "realism")
    label_map = case.label_map()
    np.testing.assert_allclose(case.volume("direct"), np.where(label_map > 0, label_map / 4, -1), atol=1e-4)


def test_a_second_fusion_net_gets_planes_and_labels_and_is_one_more_method_after_the_fused_one(stored, tmp_path):
    def first_plane_and_labels(planes, label_map):
        assert planes.shape == (1, 3, *label_map.shape[2:])
        return torch.where(label_map > 0, planes[:, :1].clamp(-1.0, 1.0) / 2 + label_map / 8, -1.0)

    case = stored(make_item(tmp_path), realism=first_plane_and_labels)
    assert case.methods == tuple(method for method in METHODS if method != "direct")
    label_map = case.label_map()
    expected = np.where(label_map > 0, case.volume("axial") / 2 + label_map / 8, -1)
    np.testing.assert_allclose(case.volume("realism"), expected, atol=1e-3)


def test_errors_of_the_planes_that_cancel_are_gone_in_their_mean(stored, tmp_path):
    psnr = psnr_of(stored(make_item(tmp_path)))
    assert psnr["mean_of_planes"] > max(psnr[plane] for plane in PLANES) + 5
    assert psnr["coronal"] > psnr["sagittal"] > psnr["axial"]


@pytest.mark.parametrize("spacing_mm", [1.0, 1.7])
def test_the_bound_is_the_real_scan_on_the_working_grid_and_back(stored, tmp_path, spacing_mm):
    case = stored(make_item(tmp_path, spacing_mm=spacing_mm))
    for fit in ("gain_offset", "none"):
        psnr = psnr_of(case, fit)
        if spacing_mm == 1.0:
            assert psnr["real_resampled"] > 90  # copied: nothing but the rounding of what is stored
        else:
            assert max(psnr["label_mean"], *(psnr[plane] for plane in PLANES)) < psnr["real_resampled"] < 45


def test_the_label_mean_image_is_painted_with_the_means_of_the_training_people(stored, training_cases, tmp_path):
    item = make_item(tmp_path)
    means = class_means([(case.label_map(), case.t1w().numpy()) for case in training_cases], VOCABULARY.num_classes)
    expected = label_mean_image(item["own_label_map"].numpy()[0], means)
    np.testing.assert_allclose(stored(item).volume("label_mean"), expected, atol=1e-4)


def test_what_made_the_volumes_changes_with_each_model_and_with_the_training_people(training_cases, tmp_path):
    model, direct = _file(tmp_path / "model.pt"), tmp_path / "direct.pt"
    made = [what_made_them(model, direct, training_cases, amp=True)]
    made.append(what_made_them(model, _file(direct), training_cases, amp=True))
    model.write_text("another")
    made.append(what_made_them(model, direct, training_cases, amp=True))
    made.append(what_made_them(model, direct, training_cases[:1], amp=True))
    made.append(what_made_them(model, direct, training_cases[:1], amp=False))
    assert all(one != other for one, other in pairwise(made))
    assert made[0]["direct"] is None
