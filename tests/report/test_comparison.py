from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor
from scipy import ndimage

from trispade.engines.case_evaluator import FAILURE
from trispade.geometry import PLANES, Grid, WorkingGrid
from trispade.intensity import evaluation_intensity
from trispade.labels import load_scheme
from trispade.metrics import class_means, compare_in_evaluation_space, label_mean_image
from trispade.report import Comparison
from trispade.report.comparison import METHODS

SHAPE = (26, 30, 24)
VOCABULARY = load_scheme("freesurfer").vocabulary
PLANE_ERRORS = {"axial": 0.3, "coronal": -0.1, "sagittal": -0.2}


def make_item(case_id: str, person_id: str, seed: int = 0, spacing_mm: float = 1.0) -> dict:
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
        "person_id": person_id,
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
def compare(training_cases, tmp_path):
    """Run the handler over items as an evaluating engine would; gives its folder and the rows of the table."""

    def compare(*items: dict):
        engine = Engine(lambda engine, item: item)
        Comparison(training_cases, VOCABULARY, tmp_path / "evaluation").attach(engine)
        engine.run(items)
        folder = tmp_path / "evaluation"
        if not folder.exists():
            return folder, []
        with (folder / "metrics.csv").open(newline="") as file:
            return folder, list(csv.DictReader(file))

    return compare


def values_of(rows, metric="psnr", region="brain", fit="gain_offset"):
    wanted = (metric, region, fit)
    return {r["method"]: float(r["value"]) for r in rows if (r["metric"], r["region"], r["fit"]) == wanted}


def test_every_method_has_its_rows_tables_and_a_figure(compare):
    folder, rows = compare(make_item("one", "p1"), make_item("two", "p2", 1))
    assert len(rows) == 2 * len(METHODS) * 14
    assert list(dict.fromkeys(row["method"] for row in rows)) == list(METHODS)
    assert {(row["case_id"], row["person_id"]) for row in rows} == {("one", "p1"), ("two", "p2")}
    assert sorted(each.name for each in folder.iterdir()) == [
        "metrics.csv",
        "one.png",
        "summary.json",
        "summary.md",
        "two.png",
    ]
    lines = (folder / "summary.md").read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("| method (n = 2) | brain PSNR (dB) |")
    assert [line.split(" | ")[0] for line in lines[2:]] == [f"| {name.replace('_', ' ')}" for name in METHODS]


def test_two_scans_of_one_person_count_once(compare):
    folder, rows = compare(make_item("p1-a", "p1"), make_item("p1-b", "p1", 1), make_item("p2", "p2", 2))
    summary = json.loads((folder / "summary.json").read_text())
    assert {(each["people"], each["scans"]) for each in summary} == {(2, 3)}
    fused = [each["value"] for each in rows if (each["method"], each["metric"]) == ("fused", "mse")][::4]
    a, b, other = (float(value) for value in fused)
    found = next(each for each in summary if (each["method"], each["metric"]) == ("fused", "mse"))
    assert found["mean"] == pytest.approx(((a + b) / 2 + other) / 2)


def test_errors_of_the_planes_that_cancel_are_gone_in_their_mean(compare):
    psnr = values_of(compare(make_item("one", "p1"))[1])
    assert psnr["mean_of_planes"] > max(psnr[plane] for plane in PLANES) + 5
    assert psnr["coronal"] > psnr["sagittal"] > psnr["axial"]


@pytest.mark.parametrize("spacing_mm", [1.0, 1.7])
def test_the_bound_is_the_real_scan_on_the_working_grid_and_back(compare, spacing_mm):
    rows = compare(make_item("one", "p1", spacing_mm=spacing_mm))[1]
    for fit in ("gain_offset", "none"):
        psnr = values_of(rows, fit=fit)
        if spacing_mm == 1.0:
            assert psnr["real_resampled"] > 100  # copied: nothing but rounding
        else:
            assert max(psnr["label_mean"], *(psnr[plane] for plane in PLANES)) < psnr["real_resampled"] < 45


def test_the_label_mean_image_is_painted_with_the_means_of_the_training_people(compare, training_cases):
    item = make_item("one", "p1")
    rows = compare(item)[1]
    means = class_means([(case.label_map(), case.t1w().numpy()) for case in training_cases], VOCABULARY.num_classes)
    label_map, t1w = item["own_label_map"].numpy()[0], item["t1w"].numpy()[0]
    expected = compare_in_evaluation_space(label_mean_image(label_map, means), t1w, label_map > 0)
    found = [float(row["value"]) for row in rows if row["method"] == "label_mean"]
    assert found == pytest.approx([each["value"] for each in expected], rel=1e-4)


def test_a_failed_case_is_left_out(compare):
    folder, rows = compare({FAILURE: "unreadable"}, make_item("two", "p2"))
    assert {row["case_id"] for row in rows} == {"two"}
    assert {each["people"] for each in json.loads((folder / "summary.json").read_text())} == {1}


def test_where_every_case_fails_no_table_is_written(compare):
    folder, rows = compare({FAILURE: "unreadable"}, {FAILURE: "another"})
    assert rows == []
    assert not folder.exists()


def test_a_second_run_starts_afresh(make_case, tmp_path):
    engine = Engine(lambda engine, item: item)
    comparison = Comparison([make_case()], VOCABULARY, tmp_path / "evaluation")
    comparison.attach(engine)
    for _ in range(2):
        engine.run([make_item("one", "p1")])
        assert len(comparison.rows) == len(METHODS) * 14
