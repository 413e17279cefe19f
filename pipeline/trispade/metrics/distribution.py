"""Distances between two sets of volumes: Fréchet distance and MMD of texture features that need no trained network.

A volume becomes a table of patches. Features of a patch, cube of 16 voxels in the brain: its mean intensity, the log of
its standard deviation, and for each of three scales (voxels, and their means over 2 and 4) and each of the three world
directions the log of the mean absolute first and second difference: the energies of a small bank of directional
derivative filters. Twenty features in all, and some 350 patches a brain at 1 mm, so that their covariance has full rank
even for a single volume, and a handful of volumes is enough to compare. What a patch shows is known: blur lowers all
energies, noise raises those of the fine scales, streaks from slice to slice those of one direction.

Such features see texture, not anatomy: a brain with a wrong but well-painted gyrus is close. Distances from other
feature sets (Inception, MedicalNet) are on other scales and do not compare.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any, Literal

import numpy as np
import torch
from monai.metrics.metric import CumulativeIterationMetric
from scipy import ndimage
from torch import Tensor

from trispade.metrics.coherence import world_axes
from trispade.metrics.regression import volumes_and_mask

PATCH = 16
SCALES = (1, 2, 4)
NUM_FEATURES = 2 + 6 * len(SCALES)
SMALLEST_SHARE = 0.5  # of a patch that lies in the brain
FLOOR = 1e-3  # added to each energy before the log: a tenth of a percent of the intensity range
MOST_SPLITS = 20


def patch_features(volume: np.ndarray, mask: np.ndarray, affine: np.ndarray | None = None) -> np.ndarray:
    """Describe the patches of a volume.

    Only voxels of the mask count, and only differences between such, so that the brain's outline is no texture. Patches
    are laid out from the first corner of the mask's bounding box. All volumes that are compared must have one voxel
    size.

    Args:
        volume: (X, Y, Z) intensities in evaluation space, [0, 1].
        mask: (X, Y, Z) bool.
        affine: (4, 4) voxel -> RAS+ mm; None where the axes are right, anterior, superior.

    Returns:
        (P, 20) float64: a row a patch that lies in the mask by half or more.

    Raises:
        ValueError: if the shapes differ, the mask holds no patch, or an intensity inside is not finite.
    """
    if volume.shape != mask.shape:
        raise ValueError(f"mask: expected the volume's shape {volume.shape}, got {mask.shape}")
    order = world_axes(affine)[::-1]
    (box,) = ndimage.find_objects(mask.astype(np.uint8)) or [None]
    if box is None:
        raise ValueError("mask: expected at least one voxel, got none")
    inside = _padded(mask[box].transpose(order))
    values = _padded(np.where(mask[box], volume[box], 0.0).astype(np.float64).transpose(order))
    if not np.isfinite(values).all():
        raise ValueError("volume: expected finite intensities inside the mask, got NaN or infinite ones")
    counts = _patch_sums(inside, PATCH)
    usable = counts >= SMALLEST_SHARE * PATCH**3
    with np.errstate(invalid="ignore", divide="ignore"):
        means = _patch_sums(values, PATCH) / counts
        variances = _patch_sums(values**2, PATCH) / counts - means**2
    columns = [means, np.log(np.sqrt(np.maximum(variances, 0.0)) + FLOOR)]
    for scale in SCALES:
        shares = _patch_sums(inside, scale)
        whole = shares == scale**3  # blocks that reach out of the mask are no measure of its inside
        blocks = np.where(whole, _patch_sums(values, scale) / scale**3, 0.0)
        for energies, numbers in _energies(blocks, whole, PATCH // scale):
            usable &= numbers > 0
            columns.append(np.log(energies / np.maximum(numbers, 1) + FLOOR))
    if not usable.any():
        raise ValueError(f"mask: expected room for a patch of {PATCH} voxels, got none")
    return np.stack([column[usable] for column in columns], axis=1)


def frechet_distance(y_pred: np.ndarray, y: np.ndarray) -> float:
    """Fréchet distance between the normal distributions fitted to two sets of patches.

    Features are first divided by their standard deviation over the real patches, so that none weighs more for its unit.

    Args:
        y_pred: (P, D) features of synthetic volumes' patches.
        y: (Q, D) features of real volumes' patches.

    Returns:
        Squared distance, without unit; 0 for the same patches, and above 0 for two samples of one distribution.

    Raises:
        ValueError: if either has fewer than D + 1 patches, whose covariance would not have full rank.

    Source: Dowson and Landau, The Fréchet distance between multivariate normal distributions, J. Multivariate Analysis
        12(3), 1982; as FID (Heusel et al., 2017), with other features.
    """
    y_pred, y = _standardised(y_pred, y)
    difference = y_pred.mean(axis=0) - y.mean(axis=0)
    cov_pred, cov_real = np.cov(y_pred, rowvar=False), np.cov(y, rowvar=False)
    # tr (A B)^(1/2) = tr (A^(1/2) B A^(1/2))^(1/2), which is symmetric and so needs no general matrix root.
    values, vectors = np.linalg.eigh(cov_real)
    root = vectors * np.sqrt(np.maximum(values, 0.0)) @ vectors.T
    crossed = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ cov_pred @ root), 0.0)).sum()
    return float(max(0.0, difference @ difference + np.trace(cov_pred) + np.trace(cov_real) - 2 * crossed))


def kernel_distance(y_pred: np.ndarray, y: np.ndarray) -> float:
    """Squared maximum mean discrepancy between two sets of patches, unbiased, with the kernel (x·y / D + 1)^3.

    Features are centred and divided by their standard deviation over the real patches.

    Args:
        y_pred: (P, D) features of synthetic volumes' patches.
        y: (Q, D) features of real volumes' patches.

    Returns:
        0 on average for independent patches of one distribution, so at times below 0. Patches of one person resemble
        one another, so that two groups of people are some way apart: see `cross_half_distances`.

    Raises:
        ValueError: as `frechet_distance`.

    Source: Gretton et al., A kernel two-sample test, JMLR 13, 2012, lemma 6; the kernel of KID (Bińkowski et al.,
    2018).
    """
    y_pred, y = _standardised(y_pred, y)
    return float(_mean_within(y_pred) + _mean_within(y) - 2 * _kernel(y_pred, y).mean())


def cross_half_distances(
    y_pred: Sequence[np.ndarray], y: Sequence[np.ndarray], people: Sequence[str], seed: int = 0
) -> dict[str, float]:
    """Compare synthetic volumes of one half of the people with real scans of the other half, over many such halves.

    Given the real scans in place of the synthetic ones this is their floor: how far apart two groups of people are. A
    method is as good as that floor, not as zero. (Comparing a method with the real scans of the same people, whose
    anatomy it was given, has no such floor.) Scans of one person stay on one side.

    Args:
        y_pred: `patch_features` of each synthetic volume, or of each real one for the floor.
        y: `patch_features` of each real scan, in the same order.
        people: whose scan each is.
        seed: decides which halves are taken when there are more than 20.

    Returns:
        ``frechet_distance`` and ``kernel_distance``, means over the halves.

    Raises:
        ValueError: if lengths differ or there are fewer than two people.
    """
    if not len(y_pred) == len(y) == len(people):
        raise ValueError(f"y_pred, y, people: expected one length, got {len(y_pred)}, {len(y)}, {len(people)}")
    everybody = sorted(set(people))
    if len(everybody) < 2:
        raise ValueError(f"people: expected at least two, got {len(everybody)}")
    distances: dict[str, list[float]] = {"frechet_distance": [], "kernel_distance": []}
    for half in _halves(everybody, seed):
        one = np.concatenate([each for each, person in zip(y_pred, people, strict=True) if person in half])
        other = np.concatenate([each for each, person in zip(y, people, strict=True) if person not in half])
        distances["frechet_distance"].append(frechet_distance(one, other))
        distances["kernel_distance"].append(kernel_distance(one, other))
    return {name: float(np.mean(values)) for name, values in distances.items()}


class PatchDistance(CumulativeIterationMetric):
    """Distance between the patches of all synthetic and of all real volumes that it was called with.

    Called as `MaskedMetric` (the mask may be the second channel of ``y``); each call adds the volumes' patches to the
    buffers, and ``aggregate()`` compares the two sets over all calls and processes. The volumes share one grid.

    Args:
        kind: ``"frechet"`` (`frechet_distance`) or ``"kernel"`` (`kernel_distance`).
        affine: (4, 4) voxel -> RAS+ mm of the volumes; None where their axes are right, anterior, superior.

    Raises:
        ValueError: see `patch_features` and the distance.
    """

    def __init__(self, kind: Literal["frechet", "kernel"] = "frechet", affine: np.ndarray | None = None) -> None:
        super().__init__()
        self._distance = {"frechet": frechet_distance, "kernel": kernel_distance}[kind]
        self.affine = affine

    def aggregate(self) -> Tensor:
        """Compare the patches of all calls; a scalar, float64."""
        buffers = self.get_buffer()
        if buffers is None:
            raise ValueError("patch distance: expected volumes before its value is asked for, got none")
        return torch.tensor(self._distance(*(buffer.cpu().numpy() for buffer in buffers)), dtype=torch.float64)

    def _compute_tensor(
        self, y_pred: Tensor, y: Tensor | None = None, mask: Tensor | None = None, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        y_pred, y, mask = volumes_and_mask(y_pred, y, mask)
        inside = mask[:, 0].bool().cpu().numpy()
        tables = (
            [patch_features(*each, self.affine) for each in zip(volumes[:, 0].cpu().numpy(), inside, strict=True)]
            for volumes in (y_pred, y)
        )
        of_pred, of_real = (torch.from_numpy(np.concatenate(each)).to(y.device) for each in tables)
        return of_pred, of_real


def _energies(blocks: np.ndarray, inside: np.ndarray, edge: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Sums over patches of absolute first and second differences along each axis, and how many there are."""
    found = []
    for axis in range(3):
        step = np.diff(blocks, axis=axis, append=0)
        both = inside & np.roll(inside, -1, axis)
        np.moveaxis(both, axis, 0)[-1] = False
        bend = step - np.roll(step, 1, axis)
        three = both & np.roll(both, 1, axis)
        for difference, where in ((step, both), (bend, three)):
            found.append((_patch_sums(np.abs(difference) * where, edge), _patch_sums(where, edge)))
    return found


def _patch_sums(volume: np.ndarray, edge: int) -> np.ndarray:
    x, y, z = (extent // edge for extent in volume.shape)
    return volume.reshape(x, edge, y, edge, z, edge).sum(axis=(1, 3, 5), dtype=np.float64)


def _padded(volume: np.ndarray) -> np.ndarray:
    return np.pad(volume, [(0, -extent % PATCH) for extent in volume.shape])


def _standardised(y_pred: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    smallest = min(len(y_pred), len(y))
    if smallest <= y.shape[1]:
        raise ValueError(f"features: expected more than {y.shape[1]} patches in both sets, got {smallest}")
    mean, sd = y.mean(axis=0), y.std(axis=0)
    if not (sd > 0).all():
        raise ValueError("features: expected real patches that differ in each feature, got a constant one")
    return (y_pred - mean) / sd, (y - mean) / sd


def _kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    inner = a @ b.T / a.shape[1] + 1.0
    return np.asarray(inner * inner * inner)  # far faster than the power


def _mean_within(features: np.ndarray) -> float:
    """Mean of the kernel over pairs of two different patches of one set."""
    kernel = _kernel(features, features)
    return float((kernel.sum() - np.trace(kernel)) / (len(features) * (len(features) - 1)))


def _halves(people: Sequence[str], seed: int) -> list[set[str]]:
    """Ways to take half of the people: all of them, or so many drawn at random; each with its complement's turn."""
    size = len(people) // 2
    if len(people) <= 6:
        return [set(half) for half in combinations(people, size)]
    generator = np.random.default_rng(seed)
    return [set(generator.permutation(people)[:size]) for _ in range(MOST_SPLITS)]
