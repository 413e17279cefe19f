"""Intensity of each labelled structure: is it as bright, and as varied, as in the real scan?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from trispade.metrics.regression import MaskedMetric


class StructureStatistics(NamedTuple):
    """Voxels, mean and population SD of the intensities of each class; each (num_classes,), nan for an absent one."""

    counts: np.ndarray
    means: np.ndarray
    sds: np.ndarray


def structure_statistics(volume: np.ndarray, label_map: np.ndarray, num_classes: int) -> StructureStatistics:
    """Measure the intensities of each class.

    Args:
        volume: (X, Y, Z) intensities.
        label_map: (X, Y, Z) class indices; 0, the background, counts as absent.
        num_classes: size of the vocabulary.

    Raises:
        ValueError: if shapes differ, or an index is not one of the classes.
    """
    if volume.shape != label_map.shape:
        raise ValueError(f"label_map: expected the volume's shape {volume.shape}, got {label_map.shape}")
    inside = label_map != 0
    indices, values = label_map[inside].astype(np.int64), volume[inside].astype(np.float64)
    if indices.size and not 0 < indices.min() <= indices.max() < num_classes:
        raise ValueError(f"label_map: expected class indices below {num_classes}, got {indices.min()}..{indices.max()}")
    counts = np.bincount(indices, minlength=num_classes)
    present = np.where(counts > 0, counts, np.nan)
    means = np.bincount(indices, values, num_classes) / present
    # From deviations, not from squares: a class of one intensity has an SD of exactly 0.
    deviations = (values - means[indices]) ** 2
    return StructureStatistics(counts, means, np.sqrt(np.bincount(indices, deviations, num_classes) / present))


def structure_rows(
    synthetic: StructureStatistics, real: StructureStatistics, class_names: Sequence[str]
) -> list[dict[str, Any]]:
    """Lay out the comparison of each class that occurs.

    Returns:
        ``{"region", "metric", "value"}``, the region a class name: ``mean_error`` and ``sd_error``, synthetic minus
        real; ``structure_mean`` and ``structure_sd`` of the synthetic, ``real_mean`` and ``real_sd`` of the real
        volume. The error of the SD is a difference, not a ratio: small structures can have an SD near 0.
    """
    rows: list[dict[str, Any]] = []
    for index in np.flatnonzero(real.counts).tolist():
        values = {
            "mean_error": synthetic.means[index] - real.means[index],
            "sd_error": synthetic.sds[index] - real.sds[index],
            "structure_mean": synthetic.means[index],
            "structure_sd": synthetic.sds[index],
            "real_mean": real.means[index],
            "real_sd": real.sds[index],
        }
        region = class_names[index]
        rows += [{"region": region, "metric": name, "value": float(value)} for name, value in values.items()]
    return rows


class StructureError(MaskedMetric):
    """Error of each structure's mean intensity, or of its SD: synthetic minus real.

    Called as `MaskedMetric`, with the label map (class indices) as mask, which it must have. Gives (B, num_classes),
    nan for classes that a volume lacks; ``aggregate()`` gives (num_classes,), means over the volumes that have the
    class (0, MONAI's choice, for a class that none has).

    Args:
        num_classes: size of the vocabulary.
        statistic: ``"mean"`` or ``"sd"``.
        reduction: see `monai.metrics.RegressionMetric`.

    Raises:
        ValueError: as `MaskedMetric`, and if the mask is bool or an index is not one of the classes.
    """

    def __init__(
        self, num_classes: int, statistic: Literal["mean", "sd"] = "mean", reduction: str = "mean_batch"
    ) -> None:
        super().__init__(reduction=reduction)
        if statistic not in ("mean", "sd"):
            raise ValueError(f"statistic: expected mean or sd, got {statistic!r}")
        self.num_classes = num_classes
        self.statistic = statistic

    def of_volume(self, y_pred: Tensor, y: Tensor, mask: Tensor) -> Tensor:
        """Measure one volume."""
        if mask.dtype == torch.bool:
            raise ValueError("mask: expected a label map of class indices, got a bool mask or none")
        label_map = mask.cpu().numpy()
        synthetic, real = (
            structure_statistics(volume.cpu().numpy(), label_map, self.num_classes) for volume in (y_pred, y)
        )
        errors = synthetic.means - real.means if self.statistic == "mean" else synthetic.sds - real.sds
        return torch.from_numpy(errors).to(y.device)
