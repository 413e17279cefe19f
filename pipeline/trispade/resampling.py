"""Separable resampling between grids with parallel axes: `input index = scale * output index + shift` on each axis."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

_SLAB = 32
_CORNERS = tuple((x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1))


def resample(
    volume: np.ndarray, shape: Sequence[int], scale: Sequence[float], shift: Sequence[float], fill: float
) -> np.ndarray:
    """Resample an image linearly, averaged over the output voxel where that is larger (see `resampling_matrix`).

    Args:
        volume: (X, Y, Z) float.
        shape: of the output.
        scale: input voxels an output voxel, per axis.
        shift: input index of output voxel 0, per axis.
        fill: value outside the input.

    Returns:
        float32 of the given shape.
    """
    above_fill = np.asarray(volume, np.float32) - np.float32(fill)
    return _apply(above_fill, _matrices(shape, volume.shape, scale, shift)) + np.float32(fill)


def resample_labels(
    labels: np.ndarray, shape: Sequence[int], scale: Sequence[float], shift: Sequence[float]
) -> np.ndarray:
    """Resample class indices by the largest linear share of each, then put back what is too thin to win anywhere.

    Args:
        labels: (X, Y, Z) integer class indices, 0 is background.
        shape: of the output.
        scale: input voxels an output voxel, per axis.
        shift: input index of output voxel 0, per axis.

    Returns:
        Same dtype and the given shape.
    """
    result = np.zeros(tuple(shape), labels.dtype)
    matrices = _matrices(shape, labels.shape, scale, shift)
    for start in range(0, result.shape[0], _SLAB):
        slab = slice(start, start + _SLAB)
        _vote(labels, (matrices[0][slab], matrices[1], matrices[2]), result[slab])
    placed = [_inside(*axis) for axis in zip(labels.shape, scale, shift, shape, strict=True)]
    padded = np.pad(result, 1)
    inside = labels[np.ix_(*(indices for indices, _ in placed))]
    _Rescue(inside, [position + 1 for _, position in placed], padded).run()
    return padded[1:-1, 1:-1, 1:-1].copy()


def resampling_matrix(num_out: int, num_in: int, scale: float, shift: float) -> np.ndarray:
    """Weights of the input voxels in each output voxel along one axis.

    The output voxel j stands at input index p = scale j + shift. Its weights are those of linear interpolation averaged
    over [p - w/2, p + w/2], w = max(scale - 1, 0): plain linear interpolation towards a finer grid, the mean of two
    voxels at scale 2. They are never negative, add to one, and reproduce a ramp for every scale and phase.

    Returns:
        (num_out, num_in) float32; what falls outside the input is missing from a row's sum.
    """
    offset = np.arange(num_in)[None, :] - (scale * np.arange(num_out) + shift)[:, None]
    width = max(scale - 1.0, 0.0)
    if width < 1e-9:
        weights = np.maximum(1 - np.abs(offset), 0)
    else:
        weights = (_hat_integral(offset + width / 2) - _hat_integral(offset - width / 2)) / width
    weights[weights < 1e-7] = 0
    return weights.astype(np.float32)


def _hat_integral(x: np.ndarray) -> np.ndarray:
    """Integral of max(1 - |t|, 0) over t from -inf to x."""
    x = np.clip(x, -1, 1)
    return 0.5 + x - 0.5 * x * np.abs(x)


def _apply(volume: np.ndarray, matrices: Sequence[np.ndarray]) -> np.ndarray:
    """Apply one matrix to each axis, those that shrink the volume most first."""
    order = sorted(range(3), key=lambda axis: matrices[axis].shape[0] / max(matrices[axis].shape[1], 1))
    for axis in order:
        if axis == 2:
            volume = volume @ matrices[2].T
        elif axis == 1:
            volume = matrices[1] @ volume
        else:
            flat = matrices[0] @ volume.reshape(volume.shape[0], -1)
            volume = flat.reshape(-1, *volume.shape[1:])
    return volume


def _matrices(
    shape: Sequence[int], input_shape: Sequence[int], scale: Sequence[float], shift: Sequence[float]
) -> list[np.ndarray]:
    return [resampling_matrix(*axis) for axis in zip(shape, input_shape, scale, shift, strict=True)]


def _vote(canonical: np.ndarray, matrices: tuple[np.ndarray, ...], result: np.ndarray) -> None:
    """Give each working voxel of a slab, in place, its class with the largest share, or 0 if mostly unlabelled."""
    reach = tuple(_support(matrix) for matrix in matrices)
    crop = canonical[reach]
    matrices = tuple(matrix[:, window] for matrix, window in zip(matrices, reach, strict=True))
    labelled = np.zeros(result.shape, np.float32)
    best = np.zeros(result.shape, np.float32)
    for index, window in _class_windows(crop):
        columns = [matrix[:, part] for matrix, part in zip(matrices, window, strict=True)]
        touched = tuple(_support(matrix.T) for matrix in columns)
        share = _apply(
            (crop[window] == index).astype(np.float32),
            [matrix[rows] for matrix, rows in zip(columns, touched, strict=True)],
        )
        labelled[touched] += share
        wins = share > best[touched]
        np.copyto(best[touched], share, where=wins)
        np.copyto(result[touched], index, where=wins)
    result[labelled < 0.5 - 1e-5] = 0


def _support(matrix: np.ndarray) -> slice:
    """Range of the columns that are not all zero."""
    used = np.flatnonzero(matrix.any(axis=0))
    return slice(int(used[0]), int(used[-1]) + 1) if used.size else slice(0, 0)


def _class_windows(crop: np.ndarray) -> Iterator[tuple[int, tuple[slice, ...]]]:
    """Each class in a volume and its bounding box."""
    if crop.size:
        for number, window in enumerate(ndimage.find_objects(crop.astype(np.int32)), start=1):
            if window is not None:
                yield number, window


@dataclass(frozen=True, eq=False)
class _Rescue:
    """Second pass of the label resampling: puts back the structures that no vote can keep.

    Attributes:
        labels: (X, Y, Z) class indices of the source voxels inside the box.
        positions: per axis, where those voxels lie in `result`.
        result: working grid with a margin of one background voxel, painted in place.
    """

    labels: np.ndarray
    positions: list[np.ndarray]
    result: np.ndarray

    def run(self) -> None:
        """Give each lost voxel the nearest surrounding working voxel that no other structure depends on.

        Small classes choose first, and take a voxel that a larger class depends on where they find no other.
        """
        lost = self.lost_voxels()
        sizes = np.bincount(self.labels.ravel())
        for voxel in lost[np.argsort(sizes[self.labels[tuple(lost.T)]], kind="stable")]:
            index = self.labels[tuple(voxel)]
            corners = self.corners_by_distance(voxel)
            holders = self.result[tuple(corners.T)]
            if (holders == index).any():
                continue
            spare = next((corner for corner in corners if self.is_spare(corner)), None)
            largest = int(np.argmax(sizes[holders]))
            if spare is not None:
                self.result[tuple(spare)] = index
            elif sizes[holders[largest]] > sizes[index]:
                self.result[tuple(corners[largest])] = index

    def lost_voxels(self) -> np.ndarray:
        """(N, 3) labelled voxels none of whose surrounding working voxels is of their class."""
        nearest = self.result[np.ix_(*(np.rint(position).astype(int) for position in self.positions))]
        voxels = np.argwhere((nearest != self.labels) & (self.labels > 0))
        floors = [
            np.floor(position).astype(int)[column] for position, column in zip(self.positions, voxels.T, strict=True)
        ]
        classes = self.labels[tuple(voxels.T)]
        found = np.zeros(len(voxels), bool)
        for corner in _CORNERS:
            found |= self.result[tuple(floor + step for floor, step in zip(floors, corner, strict=True))] == classes
        return voxels[~found]

    def corners_by_distance(self, voxel: np.ndarray) -> np.ndarray:
        """(8 or fewer, 3) working voxels around a source voxel, nearest first, without the margin."""
        position = np.array([axis[index] for axis, index in zip(self.positions, voxel, strict=True)])
        corners = np.floor(position).astype(int) + np.array(_CORNERS)
        corners = corners[((corners > 0) & (corners < np.array(self.result.shape) - 1)).all(axis=1)]
        return corners[np.argsort(((corners - position) ** 2).sum(axis=1), kind="stable")]

    def is_spare(self, corner: np.ndarray) -> bool:
        """Whether each source voxel of the class at a working voxel would still have another one near it."""
        holder = self.result[tuple(corner)]
        if holder == 0:
            return True
        around = self.result[tuple(slice(index - 1, index + 2) for index in corner)] == holder
        around[1, 1, 1] = False
        for axis in range(3):
            low, high = np.split(around.take([0, 1, 1, 2], axis=axis), 2, axis=axis)
            around = low | high
        block, cells = [], []
        for position, index in zip(self.positions, corner, strict=True):
            window = slice(*np.searchsorted(position, [index - 1, index + 1]))
            block.append(window)
            cells.append(np.floor(position[window]).astype(int) - (index - 1))
        return not ((self.labels[tuple(block)] == holder) & ~around[np.ix_(*cells)]).any()


def _inside(extent: int, scale: float, shift: float, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Canonical indices along one axis that lie in the working box, and their positions in working voxels."""
    position = (np.arange(extent) - shift) / scale
    inside = np.flatnonzero((position >= -0.5) & (position <= size - 0.5))
    return inside, position[inside]
