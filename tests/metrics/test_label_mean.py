from __future__ import annotations

import numpy as np
import pytest

from trispade.metrics import class_means, label_mean_image


def box_map(shape=(14, 12, 10)):
    label_map = np.zeros(shape, np.uint8)
    label_map[2:12, 2:10, 2:8] = 1
    label_map[2:7, 2:10, 2:8] = 2
    return label_map


def test_every_voxel_counts_the_same_in_all_scans():
    first = (np.array([[[0, 1, 1, 2]]], np.uint8), np.array([[[-1, 0.0, 0.3, 0.5]]]))
    second = (np.array([[[1, 2, 2, 2]]], np.uint8), np.array([[[0.6, 0.1, 0.2, 0.0]]], np.float32))
    assert class_means(iter([first, second]), 3) == pytest.approx([-1, 0.3, 0.2])


def test_a_class_that_occurs_nowhere_gets_the_mean_of_all_labelled_voxels():
    means = class_means([(np.array([0, 1, 1, 3]), np.array([7.0, 0.0, 0.3, 0.9]))], 5)
    assert means == pytest.approx([-1, 0.15, 0.4, 0.9, 0.4])


def test_the_background_is_minus_1_whatever_the_scan_holds_there():
    assert class_means([(np.zeros(3, np.uint8), np.ones(3))], 2).tolist() == [-1, 0]


@pytest.mark.parametrize("sigma", [0.6, 2.0])
def test_the_edge_of_the_brain_is_not_darkened(sigma):
    label_map = (box_map() > 0).astype(np.uint8)
    image = label_mean_image(label_map, np.array([-1.0, 0.4]), sigma)
    assert image.dtype == np.float32
    np.testing.assert_allclose(image[label_map > 0], 0.4, atol=1e-5)
    assert (image[label_map == 0] == -1).all()


def test_a_border_between_classes_is_smoothed_and_their_inside_keeps_its_mean():
    label_map = box_map()
    image = label_mean_image(label_map, np.array([-1.0, 0.5, -0.5]))
    np.testing.assert_allclose(image[[3, 10], 5, 5], [-0.5, 0.5], atol=1e-4)
    assert -0.5 < image[6, 5, 5] < image[7, 5, 5] < 0.5
    assert image[6, 5, 5] == pytest.approx(-image[7, 5, 5], abs=1e-5)


def test_without_smoothing_it_is_the_table_of_means():
    means = np.array([-1.0, 0.5, -0.25])
    np.testing.assert_allclose(label_mean_image(box_map(), means, sigma=0.0), means[box_map()], atol=1e-6)


def test_a_single_voxel_keeps_its_mean():
    label_map = np.zeros((9, 9, 9), np.uint8)
    label_map[4, 4, 4] = 1
    assert label_mean_image(label_map, np.array([-1.0, 0.7]))[4, 4, 4] == pytest.approx(0.7, abs=1e-5)
