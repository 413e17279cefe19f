from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from trispade.metrics import StructureError, structure_rows, structure_statistics

NAMES = ("background", "grey", "white", "lesion")


@pytest.fixture
def label_map() -> np.ndarray:
    label_map = np.zeros((6, 5, 4), np.uint8)
    label_map[1:3, 1:4, 1:3] = 1
    label_map[3:5, 1:4, 1:3] = 2
    return label_map


@pytest.fixture
def real(label_map) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, 0.05, label_map.shape)
    return np.array([0.0, 0.6, 0.9, 0.4])[label_map] + noise


def as_batch(*volumes) -> list[torch.Tensor]:
    return [torch.from_numpy(np.ascontiguousarray(each))[None, None] for each in volumes]


def test_they_are_count_mean_and_sd_of_each_class(label_map, real):
    found = structure_statistics(real, label_map, 4)
    assert found.counts.tolist() == [0, 12, 12, 0]
    for index in (1, 2):
        values = real[label_map == index]
        assert (found.means[index], found.sds[index]) == pytest.approx((values.mean(), values.std()))
    assert np.isnan(found.means[[0, 3]]).all()
    assert np.isnan(found.sds[[0, 3]]).all()


def test_a_class_of_one_intensity_has_no_spread_at_all(label_map):
    found = structure_statistics(np.full(label_map.shape, 0.1, np.float32), label_map, 4)
    assert found.sds[1:3].tolist() == [0.0, 0.0]


def test_a_gain_and_an_offset_change_the_errors_by_their_closed_form(label_map, real):
    statistics = [structure_statistics(each, label_map, 4) for each in (1.5 * real - 0.2, real)]
    rows = {(row["region"], row["metric"]): row["value"] for row in structure_rows(*statistics, NAMES)}
    assert len(rows) == 12
    for name in ("grey", "white"):
        mean, sd = rows[name, "real_mean"], rows[name, "real_sd"]
        assert rows[name, "mean_error"] == pytest.approx(0.5 * mean - 0.2)
        assert rows[name, "sd_error"] == pytest.approx(0.5 * sd)
        assert rows[name, "structure_mean"] == pytest.approx(1.5 * mean - 0.2)
        assert rows[name, "structure_sd"] == pytest.approx(1.5 * sd)


def test_classes_that_do_not_occur_have_no_rows(label_map, real):
    statistics = structure_statistics(real, label_map, 4)
    assert {row["region"] for row in structure_rows(statistics, statistics, NAMES)} == {"grey", "white"}


@pytest.mark.parametrize(("statistic", "expected"), [("mean", 0.1), ("sd", 0.0)])
def test_the_metric_gives_a_column_a_class_and_averages_over_the_volumes_that_have_it(
    label_map, real, statistic, expected
):
    metric = StructureError(4, statistic)
    brighter, y, labels = as_batch(real + 0.1, real, label_map)
    found = metric(brighter, y, mask=labels)
    assert found.shape == (1, 4)
    assert found[0, 1:3].tolist() == pytest.approx([expected, expected])
    assert found[0, [0, 3]].isnan().all()
    metric(*as_batch(real + 0.3, real), mask=as_batch(np.where(label_map == 2, 3, label_map))[0])
    of_both = 0.2 if statistic == "mean" else 0.0
    of_second = 0.3 if statistic == "mean" else 0.0
    assert metric.aggregate().tolist()[1:] == pytest.approx([of_both, expected, of_second], abs=1e-6)


def test_the_label_map_may_be_the_second_channel_of_y(label_map, real):
    brighter, y, labels = as_batch(real + 0.1, real, label_map)
    together = torch.cat([y, labels.double()], dim=1)
    expected = StructureError(4)(brighter, y, mask=labels)
    torch.testing.assert_close(StructureError(4)(brighter, together), expected, equal_nan=True)


def test_a_bool_mask_is_refused(label_map, real):
    y_pred, y, labels = as_batch(real, real, label_map)
    with pytest.raises(ValueError, match="mask: expected a label map of class indices, got a bool mask or none"):
        StructureError(4)(y_pred, y, mask=labels.bool())


def test_an_index_beyond_the_classes_is_refused(label_map, real):
    with pytest.raises(ValueError, match=r"label_map: expected class indices below 2, got 1\.\.2"):
        structure_statistics(real, label_map, 2)


def test_a_label_map_of_another_shape_is_refused(label_map, real):
    with pytest.raises(ValueError, match=r"label_map: expected the volume's shape \(6, 5, 4\), got \(6, 5, 3\)"):
        structure_statistics(real, label_map[..., 1:], 4)


def test_a_statistic_that_is_none_is_refused():
    with pytest.raises(ValueError, match="statistic: expected mean or sd, got 'median'"):
        StructureError(4, "median")  # type: ignore[arg-type]


def test_an_empty_label_map_gives_nothing_but_nan(label_map, real):
    found = structure_statistics(real, 0 * label_map, 4)
    assert found.counts.sum() == 0
    assert all(math.isnan(each) for each in found.means)
