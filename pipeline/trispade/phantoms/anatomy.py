"""The anatomy of phantoms: where in a head which structure lies.

It is a set of implicit shapes in a template space (mm, RAS+, origin at the middle of the brain). Every position of a
head is taken to that space, where each shape says how deep inside it the position lies. One seed is therefore one
person, whatever the grid: two phantoms of one seed on two grids differ only by sampling.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]

BRAIN_HALF_EXTENT_MM = (77.0, 95.0, 74.0)
CSF_ID = 24
_FOLD_WAVE_NUMBER = 16.0  # radians a unit of direction from a point inside the hemisphere


@dataclass(frozen=True)
class _Ellipsoid:
    centre_mm: tuple[float, float, float]
    radii_mm: tuple[float, float, float]

    def depth_mm(self, points: FloatArray) -> FloatArray:
        """Approximate distance to the surface, positive inside; ``points`` (N, 3)."""
        offset = (points - _vector(self.centre_mm)) / _vector(self.radii_mm)
        radius = _norm(offset)
        gradient = _norm(offset / _vector(self.radii_mm))
        at_centre = np.float32(min(self.radii_mm))
        return np.where(radius > 1e-6, radius * (1 - radius) / np.maximum(gradient, 1e-9), at_centre)

    def bounds_mm(self) -> tuple[FloatArray, FloatArray]:
        """Lowest and highest corner of the box around the shape."""
        centre, radii = _vector(self.centre_mm), _vector(self.radii_mm)
        return centre - radii, centre + radii


@dataclass(frozen=True)
class _Tube:
    path_mm: tuple[tuple[float, float, float], ...]
    radius_mm: float

    def depth_mm(self, points: FloatArray) -> FloatArray:
        """Distance to the surface of the ball swept along the path, positive inside; ``points`` (N, 3)."""
        corners = _vector(self.path_mm)
        nearest = np.full(len(points), np.inf, np.float32)
        for start, way in zip(corners[:-1], np.diff(corners, axis=0), strict=True):
            along = np.clip((points - start) @ (way / (way @ way)), 0, 1)[:, None]
            nearest = np.minimum(nearest, _norm(points - start - along * way))
        return np.float32(self.radius_mm) - nearest

    def bounds_mm(self) -> tuple[FloatArray, FloatArray]:
        """Lowest and highest corner of the box around the shape."""
        corners, radius = _vector(self.path_mm), np.float32(self.radius_mm)
        return corners.min(0) - radius, corners.max(0) + radius


def _vector(values: Any) -> FloatArray:
    return np.asarray(values, np.float32)


def _norm(vectors: FloatArray) -> FloatArray:
    return np.sqrt(np.einsum("ij,ij->i", vectors, vectors))


@dataclass(frozen=True)
class _Structure:
    """A subcortical structure, given for the right side; a midline one has one id for both sides."""

    left_id: int
    right_id: int
    shape: _Ellipsoid | _Tube
    grows_with_age: bool = False


_UPPER_CEREBRUM = _Ellipsoid((0, -2, 13), (66, 85, 52))
_TEMPORAL_LOBE = _Ellipsoid((45, -2, -21), (20, 50, 21))
_CORE = _Ellipsoid((0, -6, -1), (24, 30, 21))
_CEREBELLUM = _Ellipsoid((20, -55, -41), (31, 30, 23))
_CEREBELLAR_PEDUNCLE = _Tube(((12, -32, -36), (18, -48, -40)), 7)
_BRAINSTEM = (
    _Tube(((0, -20, -12), (0, -27, -34)), 12),
    _Tube(((0, -27, -34), (0, -36, -64)), 8.5),
    _Ellipsoid((0, -19, -32), (15, 12, 13)),
)
_MOST_GROWTH_MM = 3.0

# Painted in this order, so that a later one wins where two meet.
_STRUCTURES = (
    _Structure(28, 60, _Ellipsoid((9, -14, -10), (8, 10, 6))),
    _Structure(26, 58, _Ellipsoid((11, 15, -8), (6, 7, 5))),
    _Structure(12, 51, _Ellipsoid((26, 4, 0), (6, 19, 12))),
    _Structure(13, 52, _Ellipsoid((19, 0, -1), (5, 10, 8))),
    _Structure(17, 53, _Tube(((26, -8, -22), (27, -24, -18), (25, -38, -6)), 6)),
    _Structure(18, 54, _Ellipsoid((23, 1, -20), (8, 8, 8))),
    _Structure(5, 44, _Tube(((33, -6, -22), (34, -26, -14), (27, -40, 2)), 2.6), grows_with_age=True),
    _Structure(11, 50, _Tube(((13, 22, 2), (14, 14, 9), (16, 2, 17)), 6)),
    _Structure(11, 50, _Tube(((16, 2, 17), (19, -14, 19), (23, -30, 14)), 3.5)),
    _Structure(10, 49, _Ellipsoid((11, -14, 4), (10, 16, 10))),
    _Structure(4, 43, _Tube(((7, 32, 6), (8, 14, 13), (9, -8, 18), (15, -30, 14)), 4.6), grows_with_age=True),
    _Structure(4, 43, _Tube(((15, -30, 14), (25, -42, 3), (24, -62, 3)), 4.0), grows_with_age=True),
    _Structure(14, 14, _Ellipsoid((0, -8, -3), (2.2, 11, 8)), grows_with_age=True),
    _Structure(15, 15, _Ellipsoid((0, -38, -36), (6, 5, 11))),
)


class _Waves(NamedTuple):
    """A sum of plane waves: ``vectors`` (W, D), ``phases`` (W,)."""

    vectors: FloatArray
    phases: FloatArray

    def values(self, points: FloatArray) -> FloatArray:
        """Sum of the cosines at ``points`` (N, D), scaled to unit variance."""
        return np.cos(points @ self.vectors.T + self.phases).sum(1) * np.float32(np.sqrt(2 / len(self.phases)))

    def gradients(self, points: FloatArray) -> FloatArray:
        """Gradient (N, D) of `values`."""
        sines = np.sin(points @ self.vectors.T + self.phases)
        return -(sines @ self.vectors) * np.float32(np.sqrt(2 / len(self.phases)))


@dataclass(frozen=True)
class Person:
    """What one seed decides: age, proportions and the smooth fields that deform and fold the template."""

    age_years: int
    proportions: FloatArray
    offset_mm: FloatArray
    warps: tuple[_Waves, _Waves, _Waves]
    folds: tuple[_Waves, _Waves]
    foliation_phase: float
    bias: _Waves
    gain: float
    cortex_thickness_mm: float
    ventricle_growth_mm: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Person:
        """Draw somebody."""
        age_years = int(rng.integers(18, 81))
        return cls(
            age_years=age_years,
            proportions=rng.uniform(0.94, 1.05, 3).astype(np.float32),
            offset_mm=rng.uniform(-2, 2, 3).astype(np.float32),
            warps=tuple(_draw_waves(rng, 3, 6, 2 * np.pi / 90) for _ in range(3)),  # type: ignore[arg-type]
            folds=tuple(_draw_waves(rng, 3, 10, _FOLD_WAVE_NUMBER) for _ in range(2)),  # type: ignore[arg-type]
            foliation_phase=float(rng.uniform(0, 2 * np.pi)),
            bias=_draw_waves(rng, 3, 4, 2 * np.pi / 260),
            gain=float(rng.uniform(0.6, 1.8)),
            cortex_thickness_mm=3.3 - 0.008 * (age_years - 18) + float(rng.uniform(-0.2, 0.2)),
            ventricle_growth_mm=0.045 * (age_years - 30) + float(rng.uniform(-0.4, 0.6)),
        )

    def to_template(self, points: FloatArray) -> FloatArray:
        """Deform positions of the head (N, 3) mm into the template space; left and right are deformed differently."""
        shift = np.stack([warp.values(points) for warp in self.warps], axis=1)
        return (points + self.offset_mm + np.float32(1.6) * shift) / self.proportions


def _draw_waves(rng: np.random.Generator, num_dims: int, num_waves: int, wave_number: float) -> _Waves:
    vectors = rng.normal(size=(num_waves, num_dims))
    lengths = wave_number * rng.uniform(0.75, 1.25, (num_waves, 1))
    vectors *= lengths / np.linalg.norm(vectors, axis=1, keepdims=True)
    return _Waves(vectors.astype(np.float32), rng.uniform(0, 2 * np.pi, num_waves).astype(np.float32))


def label_points(positions: FloatArray, person: Person) -> tuple[NDArray[np.int16], NDArray[np.bool_]]:
    """Label ids (N,) of head positions (N, 3), and whether each lies in the brain, its sulci and cisterns included."""
    labels = np.zeros(len(positions), np.int16)
    in_brain = np.zeros(len(positions), bool)
    near = np.flatnonzero(_norm(positions / _vector(BRAIN_HALF_EXTENT_MM)) < 1.2)
    points = person.to_template(positions[near])
    is_left = points[:, 0] < 0
    points[:, 0] = np.abs(points[:, 0])

    local = np.zeros(len(points), np.int16)
    envelope = _paint_cerebrum(local, points, is_left, person)
    _paint_callosum(local, points, is_left)
    envelope |= _paint_hindbrain(local, points, is_left, person)
    for structure in _STRUCTURES:
        _paint_structure(local, structure, points, is_left, person)
    local[envelope & (local == 0) & _is_cistern(points)] = CSF_ID
    labels[near] = local
    in_brain[near] = envelope | (local > 0)
    return labels, in_brain


def _paint(
    labels: NDArray[np.int16],
    where: NDArray[np.bool_] | NDArray[np.intp],
    is_left: NDArray[np.bool_],
    ids: tuple[int, int],
) -> None:
    labels[where] = np.where(is_left[where], ids[0], ids[1])


def _paint_cerebrum(
    labels: NDArray[np.int16], points: FloatArray, is_left: NDArray[np.bool_], person: Person
) -> NDArray[np.bool_]:
    """Paint white matter and folded cortex in place; returns where the unfolded cerebrum is."""
    upper = np.minimum(_UPPER_CEREBRUM.depth_mm(points), points[:, 2] + 22)
    tentorium = -_CEREBELLUM.depth_mm(points) - 1.2
    unfolded = np.minimum(np.maximum(upper, _TEMPORAL_LOBE.depth_mm(points)), tentorium)
    core = _CORE.depth_mm(points)
    hemisphere = np.minimum(unfolded, points[:, 0] - np.float32(0.8))

    inside = np.flatnonzero(np.maximum(hemisphere, core) > 0)
    from_sulcus = _distance_to_sulci(points[inside], hemisphere[inside], is_left[inside], person)
    from_pia = np.maximum(np.minimum(hemisphere[inside], from_sulcus), core[inside])
    _paint(labels, inside[from_pia > 0], is_left, (3, 42))
    _paint(labels, inside[from_pia > person.cortex_thickness_mm], is_left, (2, 41))
    return (unfolded > 0) | (core > 0)


def _distance_to_sulci(
    points: FloatArray, depth_mm: FloatArray, is_left: NDArray[np.bool_], person: Person
) -> FloatArray:
    """Distance (N,) mm to the fluid in the sulci: radial sheets, 13 mm deep, and the Sylvian fissure."""
    sheet = np.empty(len(points), np.float32)
    for side, waves in zip((is_left, ~is_left), person.folds, strict=True):
        sheet[side] = _distance_to_sheets(points[side], waves)
    sulci = np.hypot(np.maximum(sheet - 0.6, 0), np.maximum(depth_mm - 13, 0))
    off_sylvian = np.abs(points[:, 2] + 5 + 0.35 * (points[:, 1] - 10)) - 1.0
    outside = np.hypot(np.maximum(37 - points[:, 0], 0), np.maximum(np.abs(points[:, 1] - 2) - 30, 0))
    return np.minimum(sulci, np.hypot(np.maximum(off_sylvian, 0), outside))


def _distance_to_sheets(points: FloatArray, waves: _Waves) -> FloatArray:
    """Distance (N,) mm to the sheets, perpendicular to the pial surface, on which waves over directions vanish."""
    stretch = _vector((0.75, 1.35, 0.9))
    offset = (points - _vector((12, -4, 0))) / stretch
    radius = np.maximum(_norm(offset), 1)[:, None]
    direction = _vector(offset / radius)
    gradient = waves.gradients(direction)
    tangential = gradient - direction * np.einsum("ij,ij->i", gradient, direction)[:, None]
    slope = _norm(tangential / radius / stretch)
    # Exact for one plane wave, for which value and slope are sine and cosine; 0.82 is the tangential share of vectors.
    wave_number = np.float32(0.82 * _FOLD_WAVE_NUMBER) / radius[:, 0]
    return np.arctan2(np.abs(waves.values(direction)) * wave_number, slope) / wave_number


def _paint_callosum(labels: NDArray[np.int16], points: FloatArray, is_left: NDArray[np.bool_]) -> None:
    arch = np.hypot(points[:, 1] / 39, (points[:, 2] + 2) / 27)
    where = (np.abs(arch - 1) < 0.1) & (points[:, 2] > -2) & (points[:, 0] < 16)
    _paint(labels, where, is_left, (2, 41))


def _paint_hindbrain(
    labels: NDArray[np.int16], points: FloatArray, is_left: NDArray[np.bool_], person: Person
) -> NDArray[np.bool_]:
    """Paint cerebellum, its white matter branching like a tree, and brainstem in place; returns where they are."""
    cerebellum = _CEREBELLUM.depth_mm(points)
    inside = np.flatnonzero(cerebellum > 0)
    depth = cerebellum[inside]
    angle = np.arctan2(points[inside, 2] + 38, points[inside, 1] + 40)
    branches = np.cos(11 * angle + 0.06 * points[inside, 0] + person.foliation_phase)
    _paint(labels, inside, is_left, (8, 47))
    _paint(labels, inside[depth > 4.5 + 9 * np.clip(0.75 - branches, 0, 1)], is_left, (7, 46))
    labels[inside[(branches < -0.95) & (depth < 7)]] = 0
    _paint(labels, _CEREBELLAR_PEDUNCLE.depth_mm(points) > 0, is_left, (7, 46))
    stem = np.maximum.reduce([shape.depth_mm(points) for shape in _BRAINSTEM])
    labels[stem > 0] = 16
    return (cerebellum > 0) | (stem > 0)


def _paint_structure(
    labels: NDArray[np.int16],
    structure: _Structure,
    points: FloatArray,
    is_left: NDArray[np.bool_],
    person: Person,
) -> None:
    low, high = structure.shape.bounds_mm()
    candidates = np.flatnonzero(((points > low - _MOST_GROWTH_MM) & (points < high + _MOST_GROWTH_MM)).all(1))
    growth_mm = np.zeros(len(candidates), np.float32)
    if structure.grows_with_age:
        # Left ventricles are larger in most people; here they are in all.
        growth_mm += np.float32(person.ventricle_growth_mm) + 0.5 * is_left[candidates]
    inside = structure.shape.depth_mm(points[candidates]) > -np.minimum(growth_mm, _MOST_GROWTH_MM)
    _paint(labels, candidates[inside], is_left, (structure.left_id, structure.right_id))


def _is_cistern(points: FloatArray) -> NDArray[np.bool_]:
    """Whether positions (N, 3) lie in the interhemispheric fissure or about the brainstem."""
    return (points[:, 0] < 3) | (_Ellipsoid((0, -12, -22), (22, 26, 16)).depth_mm(points) > 0)
