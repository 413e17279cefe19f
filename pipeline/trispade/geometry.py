"""Voxel grids: the working grid that the networks see, the exact way there and back, and slices of a volume.

Three index spaces occur. *Source*: the voxels of the file. *Canonical*: the same voxels, axes permuted and flipped so
that they run nearest to right, anterior, superior; oblique grids keep their obliquity. *Working*: the isotropic box.
Since the axes of the last two are parallel, `canonical = scale * working + shift` holds for each axis by itself, and
every resampling here is three small matrices, one an axis.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import nibabel as nib
import numpy as np
import torch
import torch.nn.functional as F

from trispade.errors import InputError
from trispade.resampling import resample, resample_labels

Plane = Literal["axial", "coronal", "sagittal"]
PLANES: tuple[Plane, ...] = ("axial", "coronal", "sagittal")
Shape = tuple[int, int, int]
Triple = tuple[float, float, float]

SAME_SPACING_MM = 1e-3
SAME_GRID_MM = 1e-3


def slice_axis(plane: Plane) -> int:
    """Axis of a RAS+ (X, Y, Z) volume along which the slices of a plane are stacked.

    Raises:
        ValueError: if the plane is not one of `PLANES`.
    """
    if plane not in PLANES:
        raise ValueError(f"plane: expected one of {', '.join(PLANES)}, got {plane!r}.")
    return {"axial": 2, "coronal": 1, "sagittal": 0}[plane]


def slice_volume(volume: torch.Tensor, plane: Plane) -> torch.Tensor:
    """Cut a RAS+ volume into the slices of one plane.

    Args:
        volume: (C, X, Y, Z), any dtype.
        plane: plane of the slices.

    Returns:
        (N, C, H, W) view by increasing world coordinate, the other axes in RAS order: axial (Z, C, X, Y), coronal
        (Y, C, X, Z), sagittal (X, C, Y, Z).

    Raises:
        ValueError: if the volume does not have four dimensions or the plane is unknown.
    """
    if volume.ndim != 4:
        raise ValueError(f"volume: expected (C, X, Y, Z), got {tuple(volume.shape)}.")
    return volume.movedim(slice_axis(plane) + 1, 0)


def stack_slices(slices: torch.Tensor, plane: Plane) -> torch.Tensor:
    """Stack the slices of one plane into a RAS+ volume, the inverse of `slice_volume`.

    Args:
        slices: (N, C, H, W), any dtype, by increasing world coordinate.
        plane: plane the slices were cut in.

    Returns:
        (C, X, Y, Z) view.

    Raises:
        ValueError: if the slices do not have four dimensions or the plane is unknown.
    """
    if slices.ndim != 4:
        raise ValueError(f"slices: expected (N, C, H, W), got {tuple(slices.shape)}.")
    return slices.movedim(0, slice_axis(plane) + 1)


def check_label_slices(label_slices: int) -> int:
    """Return a number of label slices that a generator sees at once, if it can be one.

    Raises:
        InputError: if it is not odd, or below 1.
    """
    if not isinstance(label_slices, int) or label_slices < 1 or label_slices % 2 == 0:
        remedy = "1 is the slice alone, 3 adds one on each side."
        raise InputError.of("label_slices", "an odd number, 1 or more", repr(label_slices), remedy)
    return label_slices


def with_neighbours(slices: torch.Tensor, label_slices: int) -> torch.Tensor:
    """Give each label slice those around it as channels, by increasing world coordinate.

    Args:
        slices: (..., N, 1, H, W) class indices, what `slice_volume` cuts of a label map.
        label_slices: slices that each becomes, odd; 1 changes nothing.

    Returns:
        (..., N, label_slices, H, W), a view of the slices with background beyond the volume's ends; `middle_slice`
        gives back what came in.
    """
    if label_slices == 1:
        return slices
    reach = label_slices // 2
    padded = F.pad(slices, [0, 0, 0, 0, 0, 0, reach, reach])
    return padded.unfold(-4, label_slices, 1).squeeze(-4).movedim(-1, -3)


def middle_slice(label_map: torch.Tensor) -> torch.Tensor:
    """Give of label slices with their neighbours, (..., S, H, W), the one to paint: (..., 1, H, W)."""
    return label_map.narrow(-3, label_map.shape[-3] // 2, 1)


@dataclass(frozen=True, eq=False)
class Grid:
    """A voxel grid: its shape (X, Y, Z) and affine (4, 4), voxel -> RAS+ mm."""

    shape: Shape
    affine: np.ndarray

    @property
    def spacing_mm(self) -> Triple:
        """Voxel size along each axis."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)


@dataclass(frozen=True, eq=False)
class Window:
    """Where the voxels of a grid are among those of another one, whose axes may have another order or direction.

    Attributes:
        turn: nibabel's orientation that brings the other grid's axes into this one's order.
        start: index of this grid's first voxel after that turn.
        shape: of this grid.
    """

    turn: np.ndarray
    start: Shape
    shape: Shape

    @classmethod
    def find(cls, target: Grid, source: Grid) -> Window | None:
        """Find a grid's voxels in another one; None if one of them lies between or outside its voxels."""
        axes = [nib.io_orientation(grid.affine) for grid in (source, target)]
        turn = nib.orientations.ornt_transform(*axes)
        turned = source.affine @ nib.orientations.inv_ornt_aff(turn, source.shape)
        extents = np.empty(3, int)
        extents[turn[:, 0].astype(int)] = source.shape
        start = np.rint(np.linalg.solve(turned, target.affine)[:3, 3]).astype(int)
        turned[:3, 3] += turned[:3, :3] @ start
        aligned = np.abs(turned - target.affine).max() <= SAME_GRID_MM
        if not aligned or (start < 0).any() or (start + target.shape > extents).any():
            return None
        x, y, z = (int(each) for each in start)
        return cls(turn, (x, y, z), target.shape)

    def cut(self, volume: np.ndarray) -> np.ndarray:
        """Give the voxels of this grid of a volume (X, Y, Z) on the other one; a view."""
        ends = zip(self.start, self.shape, strict=True)
        return nib.orientations.apply_orientation(volume, self.turn)[tuple(slice(at, at + n) for at, n in ends)]


@dataclass(frozen=True, eq=False)
class WorkingGrid:
    """Isotropic RAS box around a head, tied to the grid the head came on.

    Attributes:
        source: grid of the file.
        shape: (X, Y, Z), multiples of 32 unless the caller chose otherwise.
        spacing_mm: edge of a voxel.
        affine: (4, 4), working voxel -> RAS+ mm.
        scale: canonical voxels a working voxel, per axis; exactly 1 where the spacings agree within 0.001 mm.
        shift: canonical index of working voxel 0, per axis; an integer where the scale is 1.
    """

    source: Grid
    shape: Shape
    spacing_mm: float
    affine: np.ndarray
    scale: Triple
    shift: Triple

    @classmethod
    def around(
        cls,
        source: Grid,
        head: np.ndarray,
        spacing_mm: float,
        box: tuple[int, ...] | None = None,
        multiple: int = 32,
        name: str = "label map",
    ) -> WorkingGrid:
        """Place the box.

        Args:
            source: grid of the file.
            head: (X, Y, Z) bool on the source grid: what must be inside.
            spacing_mm: edge of a working voxel.
            box: its shape; None takes the smallest multiples of `multiple` that hold the head.
            multiple: what the extents are multiples of.
            name: what an error calls the volume.

        Raises:
            InputError: if the head is empty or does not fit the box.
        """
        orientation = nib.io_orientation(source.affine)
        canonical_head = nib.apply_orientation(head, orientation)
        canonical = _canonical_grid(source, orientation)
        first, last = _bounds(canonical_head, name)
        scale = tuple(
            1.0 if abs(spacing_mm - size_mm) < SAME_SPACING_MM else spacing_mm / size_mm
            for size_mm in canonical.spacing_mm
        )
        needed = tuple(int(np.ceil((hi - lo + 1) / s - 1e-6)) for lo, hi, s in zip(first, last, scale, strict=True))
        shape = _box_shape(needed, box, multiple, spacing_mm, name)
        shift = tuple(_placement(lo, hi, s, n) for lo, hi, s, n in zip(first, last, scale, shape, strict=True))
        to_canonical = np.diag([*scale, 1.0])
        to_canonical[:3, 3] = shift
        return cls(source, shape, spacing_mm, canonical.affine @ to_canonical, scale, shift)  # type: ignore[arg-type]

    def to_dict(self) -> dict[str, Any]:
        """Give the grid as tensors, which every collate function and cache understands."""
        return {
            "source_shape": torch.tensor(self.source.shape),
            "source_affine": torch.from_numpy(np.array(self.source.affine, np.float64)),
            "shape": torch.tensor(self.shape),
            "spacing_mm": torch.tensor(self.spacing_mm, dtype=torch.float64),
            "affine": torch.from_numpy(np.array(self.affine, np.float64)),
            "scale": torch.tensor(self.scale, dtype=torch.float64),
            "shift": torch.tensor(self.shift, dtype=torch.float64),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> WorkingGrid:
        """Rebuild a grid from `to_dict`, exactly."""
        return cls(
            Grid(
                _ints(values["source_shape"]),
                torch.as_tensor(values["source_affine"], dtype=torch.float64).cpu().numpy(),
            ),
            _ints(values["shape"]),
            float(values["spacing_mm"]),
            torch.as_tensor(values["affine"], dtype=torch.float64).cpu().numpy(),
            tuple(float(value) for value in values["scale"]),  # type: ignore[arg-type]
            tuple(float(value) for value in values["shift"]),  # type: ignore[arg-type]
        )

    def labels_to_working(self, indices: np.ndarray) -> np.ndarray:
        """Resample class indices, without losing a thin structure.

        Each class is interpolated linearly by itself (averaged over the working voxel where that is larger). A voxel is
        background where less than half of it is labelled, else the class with the largest share, so that the outline of
        the head does not depend on how finely it is divided. What is too thin to win anywhere is put back afterwards:
        each labelled source voxel has a voxel of its class within one working voxel along every axis; where two
        structures claim one voxel the smaller wins. At equal spacing it is a copy.

        Args:
            indices: (X, Y, Z) integer class indices on the source grid, 0 is background.

        Returns:
            Same dtype on the working grid. Beyond it, memory stays below that of a slab of it, whatever the classes.
        """
        canonical = self._to_canonical(indices)
        if self._is_aligned:
            return self._copy_to_working(canonical, 0)
        return resample_labels(canonical, self.shape, self.scale, self.shift)

    def image_to_working(self, t1w: np.ndarray, fill: float = 0.0) -> np.ndarray:
        """Resample an image linearly, averaged over the working voxel where that is larger; a copy at equal spacing.

        A linear ramp stays exact, and no value leaves the range of its neighbours.

        Args:
            t1w: (X, Y, Z) float on the source grid.
            fill: value outside the source grid.

        Returns:
            float32 on the working grid.
        """
        canonical = np.asarray(self._to_canonical(t1w), np.float32)
        if self._is_aligned:
            return self._copy_to_working(canonical, fill)
        return resample(canonical, self.shape, self.scale, self.shift, fill)

    def image_to_source(self, volume: np.ndarray, fill: float = 0.0) -> np.ndarray:
        """Bring a volume back onto the file's own voxels, in its own axis order; exact at equal spacing.

        Args:
            volume: (X, Y, Z) float on the working grid.
            fill: value outside the working grid.

        Returns:
            float32 on the source grid.
        """
        volume = np.asarray(volume, np.float32)
        orientation = self._orientation
        canonical_shape = _canonical_grid(self.source, orientation).shape
        if self._is_aligned:
            canonical = np.full(canonical_shape, fill, np.float32)
            here, there = self._overlap(canonical_shape)
            canonical[there] = volume[here]
        else:
            scale = [1 / each for each in self.scale]
            shift = [-first / each for first, each in zip(self.shift, self.scale, strict=True)]
            canonical = resample(volume, canonical_shape, scale, shift, fill)
        back = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), orientation)
        return np.ascontiguousarray(nib.apply_orientation(canonical, back))

    @property
    def _orientation(self) -> np.ndarray:
        return nib.io_orientation(self.source.affine)

    @property
    def _is_aligned(self) -> bool:
        return self.scale == (1.0, 1.0, 1.0)

    def _to_canonical(self, array: np.ndarray) -> np.ndarray:
        if array.shape != self.source.shape:
            raise ValueError(f"array: expected the source grid's shape {self.source.shape}, got {array.shape}.")
        return nib.apply_orientation(array, self._orientation)

    def _overlap(self, canonical_shape: tuple[int, ...]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        """Slices of the working and of the canonical array that are the same voxels, at equal spacing."""
        offsets = [round(shift) for shift in self.shift]
        here, there = [], []
        for offset, size, extent in zip(offsets, self.shape, canonical_shape, strict=True):
            start, stop = max(0, -offset), max(min(size, extent - offset), max(0, -offset))
            here.append(slice(start, stop))
            there.append(slice(start + offset, stop + offset))
        return tuple(here), tuple(there)

    def _copy_to_working(self, canonical: np.ndarray, fill: float) -> np.ndarray:
        working = np.full(self.shape, fill, canonical.dtype)
        here, there = self._overlap(canonical.shape)
        working[here] = canonical[there]
        return working


def _ints(values: Any) -> Shape:
    x, y, z = (int(value) for value in values)
    return x, y, z


def _canonical_grid(source: Grid, orientation: np.ndarray) -> Grid:
    shape = [0, 0, 0]
    for axis, (target, _) in enumerate(orientation):
        shape[int(target)] = source.shape[axis]
    return Grid(_ints(shape), source.affine @ nib.orientations.inv_ornt_aff(orientation, source.shape))


def _bounds(head: np.ndarray, name: str) -> tuple[list[int], list[int]]:
    first, last = [], []
    for axis in range(3):
        filled = np.flatnonzero(head.any(axis=tuple(other for other in range(3) if other != axis)))
        if not filled.size:
            raise InputError.of(name, "at least one labelled voxel", "none", "Check the label map and its scheme.")
        first.append(int(filled[0]))
        last.append(int(filled[-1]))
    return first, last


def _box_shape(
    needed: tuple[int, ...], box: tuple[int, ...] | None, multiple: int, spacing_mm: float, name: str
) -> Shape:
    if box is None:
        return _ints(-(-extent // multiple) * multiple for extent in needed)
    if any(extent > size for extent, size in zip(needed, box, strict=True)):
        raise InputError.of(
            name,
            f"a head that fits the box of {_times(box)} voxels of {spacing_mm:g} mm",
            f"one of {_times(needed)}",
            "Choose a larger box, or none.",
        )
    return _ints(box)


def _placement(first: int, last: int, scale: float, size: int) -> float:
    """Canonical index of working voxel 0, its edge on a source voxel's edge: every scan meets the same phase."""
    lowest = int(np.ceil(last + 1 - size * scale - 1e-6))
    centred = int(np.floor((first + last + 1 - size * scale) / 2 + 0.5))
    edge = min(max(centred, lowest), first)
    return edge if scale == 1.0 else edge - 0.5 + 0.5 * scale


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(str(int(extent)) for extent in shape)
