"""The label-mean image, the bound below: each class painted with its training mean, slightly smoothed."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from scipy import ndimage

BACKGROUND = -1.0


def class_means(cases: Iterable[tuple[np.ndarray, np.ndarray]], num_classes: int) -> np.ndarray:
    """Average the intensity of each class over training scans.

    Args:
        cases: pairs of label map (X, Y, Z) class indices and T1w (X, Y, Z) in [-1, 1]; every voxel counts the same.
        num_classes: size of the vocabulary.

    Returns:
        (num_classes,) float64; -1 for the background; the mean over all labelled voxels for an absent class.
    """
    counts, totals = np.zeros(num_classes), np.zeros(num_classes)
    for label_map, t1w in cases:
        flat = np.asarray(label_map).ravel()
        counts += np.bincount(flat, minlength=num_classes)
        totals += np.bincount(flat, weights=np.asarray(t1w, dtype=np.float64).ravel(), minlength=num_classes)
    overall = totals[1:].sum() / max(1.0, counts[1:].sum())
    means = np.where(counts > 0, totals / np.maximum(counts, 1.0), overall)
    means[0] = BACKGROUND
    return means


def label_mean_image(label_map: np.ndarray, means: np.ndarray, sigma: float = 0.6) -> np.ndarray:
    """Paint a label map with class means and smooth it inside the brain.

    Args:
        label_map: (X, Y, Z) class indices, the brain filled.
        means: (num_classes,) from `class_means`.
        sigma: of the Gaussian, voxels.

    Returns:
        (X, Y, Z) float32 in [-1, 1], -1 outside the brain.
    """
    brain = np.asarray(label_map) > 0
    painted = np.where(brain, means[label_map] - BACKGROUND, 0.0).astype(np.float32)
    # Normalised by the smoothed mask, so that the brain's edge is not darkened by the background.
    share = ndimage.gaussian_filter(brain.astype(np.float32), sigma)
    smooth = ndimage.gaussian_filter(painted, sigma) / np.maximum(share, 1e-6)
    return np.where(brain, smooth + BACKGROUND, BACKGROUND).astype(np.float32)
