"""Anatomies of nobody: several people's label maps, brought to a shape between theirs, blended and deformed.

Each place of the new anatomy follows one of its sources, or a few of them where one gives way to the next, so that the
folds of the cortex stay those of a brain while the whole is nobody's.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy import ndimage

from trispade.itk_threads import one_itk_thread
from trispade.labels import LabelScheme, fill_brain
from trispade.registration import register_affinely, register_rigidly

CSF_CLASS = "csf"
CSF_ID = 24
TISSUE_INTENSITY = {"background": 0.0, "csf": 0.25, "gm": 0.6, "wm": 1.0, "other": 0.25}
MARGIN_VOXELS = 24  # room for a head that is set upright
AFFINE_RESOLUTIONS_MM = (8.0,)
FIELD_STEP_MM = 4.0  # fields are smooth, so that their values at some voxels will do
NUM_INVERSIONS = 12
VOTE_SD_VOXELS = 0.8
VOTE_REACH = 4  # voxels beyond which that kernel is as good as zero
OUTPUT_MARGIN_VOXELS = 6
MIN_PIECE_VOXELS = 10
TOUCHING = np.ones((3, 3, 3), bool)  # by a corner as well


class Source(NamedTuple):
    """One person's label map, brain alone: ids (X, Y, Z) in RAS+, and the (4, 4) affine, voxel -> RAS+ mm."""

    label_ids: np.ndarray
    affine: np.ndarray


@dataclass(frozen=True)
class Blending:
    """How sources become an anatomy.

    Attributes:
        shares: of each source in the shape; the first source's grid is worked on.
        demons_iterations: of the nonlinear registration, at twice `FIELD_STEP_MM` and at it.
        demons_sd: standard deviation of the kernel that keeps its displacement smooth, in such steps.
        patch_mm: distance between the knots of the random fields that say which source a place follows.
        patch_sharpness: how quickly one source gives way to the next.
        sd_mm: standard deviation of the random displacement, along each axis.
        asymmetry: part of that displacement, from 0 to 1, in which left and right differ.
        knots_mm: distance between its knots.
        seed: of patches and displacement.
    """

    shares: Sequence[float]
    demons_iterations: tuple[int, int]
    demons_sd: float
    patch_mm: float
    patch_sharpness: float
    sd_mm: float
    asymmetry: float
    knots_mm: float
    seed: int


def brain_of(label_ids: np.ndarray, affine: np.ndarray, scheme: LabelScheme, name: str) -> Source:
    """Cut a label map to its brain: other classes dropped, CSF kept and filled in as `fill_brain` does, with a margin.

    Args:
        label_ids: (X, Y, Z) in RAS+ order.
        affine: (4, 4), voxel -> RAS+ mm.
        scheme: what the ids mean.
        name: for messages.

    Raises:
        InputError: on an unknown id, or an empty label map.
    """
    csf = scheme.vocabulary.index(CSF_CLASS)
    spacing_mm = np.linalg.norm(affine[:3, :3], axis=0)
    indices = scheme.to_indices(label_ids, name)
    filled = fill_brain(indices, spacing_mm.tolist(), csf, source=name, trim_csf=scheme.trim_csf)
    brain = np.where(filled == csf, CSF_ID, np.where(filled > 0, label_ids, 0)).astype(np.uint8)
    return cut_to_brain(brain, affine, MARGIN_VOXELS)


def cut_to_brain(label_ids: np.ndarray, affine: np.ndarray, margin: int) -> Source:
    """Cut a label map to its labelled box with so many voxels of background around."""
    (box,) = ndimage.find_objects((label_ids > 0).astype(np.uint8))
    shifted = affine.copy()
    shifted[:3, 3] += affine[:3, :3] @ [each.start - margin for each in box]
    return Source(np.pad(label_ids[box], margin), shifted)


def tissue_image(label_ids: np.ndarray, scheme: LabelScheme) -> np.ndarray:
    """Paint each tissue in one grey, as much as a registration needs of a T1w: float32, background 0."""
    greys = np.zeros(max(scheme.ids) + 1, np.float32)
    for label_id, index in scheme.ids.items():
        greys[label_id] = TISSUE_INTENSITY[scheme.vocabulary.classes[index].tissue]
    return greys[label_ids]


def blend(sources: Sequence[Source], scheme: LabelScheme, blending: Blending, upright: Source | None = None) -> Source:
    """Blend people's label maps into one that is nobody's.

    The first source is the reference. The others are registered to it, affinely, then by demons. The mean of the
    displacements takes the reference to a shape between all sources; a smooth random displacement takes that further.
    There, smooth random fields say which source a place follows: each voxel gets the label that the sources, weighted
    so, vote for.

    Args:
        sources: label maps of one spacing, see `brain_of`.
        scheme: what their ids mean.
        blending: how.
        upright: whose head the anatomy's is turned like; None leaves it like the first source's.

    Returns:
        The anatomy, cut to its brain, its world's origin in the middle of the grid.
    """
    reference = sources[0]
    spacing_mm = float(np.linalg.norm(reference.affine[:3, 0]))
    grid = _CoarseGrid(reference.label_ids.shape, max(1, round(FIELD_STEP_MM / spacing_mm)))
    found = [_Correspondence(np.zeros_like(grid.places()), np.eye(4), np.eye(4))]
    found += [_correspond(source, reference, grid, scheme, blending) for source in sources[1:]]
    mean = np.sum([share * each.shift(grid) for share, each in zip(blending.shares, found, strict=True)], axis=0)
    generator = np.random.default_rng(blending.seed)
    knots, patch = blending.knots_mm / spacing_mm, blending.patch_mm / spacing_mm
    moved = blending.sd_mm / spacing_mm * grid.displacement(knots, blending.asymmetry, generator)
    turned = grid.places() if upright is None else _moved(_turn(reference, upright, scheme), grid.places())
    origins = grid.inverse(mean, turned + moved)
    weights = np.exp(blending.patch_sharpness * np.stack([grid.noise(patch, generator) for _ in sources]))
    weights /= weights.sum(axis=0)
    warped = [_sample(source, each, origins, grid) for source, each in zip(sources, found, strict=True)]
    label_ids = without_small_pieces(_vote(warped, [grid.to_voxels(weight) for weight in weights]))
    cut = cut_to_brain(label_ids, reference.affine, OUTPUT_MARGIN_VOXELS)
    centred = cut.affine.copy()
    centred[:3, 3] = -cut.affine[:3, :3] @ ((np.array(cut.label_ids.shape) - 1) / 2)
    return Source(cut.label_ids, centred)


def without_small_pieces(label_ids: np.ndarray) -> np.ndarray:
    """Give the small pieces of each label, but for its largest, to what lies next to them, and fill the brain's holes.

    Args:
        label_ids: (X, Y, Z), 0 outside the brain.

    Returns:
        The brain in one piece, without those of fewer than `MIN_PIECE_VOXELS` voxels.
    """
    brain = ndimage.binary_fill_holes(_pieces(label_ids > 0, label_ids.size))
    unclear = brain & (label_ids == 0)
    for label_id, box in enumerate(ndimage.find_objects(label_ids), start=1):
        if box is not None:
            there = label_ids[box] == label_id
            unclear[box] |= there & ~_pieces(there, MIN_PIECE_VOXELS)
    nearest = ndimage.distance_transform_edt(unclear | (label_ids == 0), return_distances=False, return_indices=True)
    return np.where(brain, np.where(unclear, label_ids[tuple(nearest)], label_ids), 0).astype(label_ids.dtype)


def _pieces(mask: np.ndarray, min_voxels: int) -> np.ndarray:
    """Keep the pieces of a mask that have so many voxels, and the largest in any case."""
    pieces, _ = ndimage.label(mask, TOUCHING)
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    kept = sizes >= min_voxels
    kept[sizes.argmax()] = True
    return kept[pieces] & mask


@dataclass(frozen=True)
class _CoarseGrid:
    """Every ``step``-th voxel along each axis of a grid of voxels; fields on it have values in voxels.

    Attributes:
        shape: (X, Y, Z) of the grid of voxels.
        step: voxels.
    """

    shape: tuple[int, ...]
    step: int

    @property
    def steps(self) -> list[int]:
        """Its own shape (x, y, z)."""
        return [-(-extent // self.step) for extent in self.shape]

    def places(self) -> np.ndarray:
        """Voxel coordinates, (3, x, y, z) float32."""
        return self.step * np.indices(self.steps, dtype=np.float32)

    def noise(self, knots: float, generator: np.random.Generator) -> np.ndarray:
        """Draw standard normal values at knots, so many voxels apart, with cubic splines between: (x, y, z)."""
        drawn = generator.normal(size=[max(4, round(extent / knots) + 1) for extent in self.shape])
        zoom = [extent / number for extent, number in zip(self.steps, drawn.shape, strict=True)]
        return ndimage.zoom(drawn.astype(np.float32), zoom, order=3, grid_mode=True, mode="nearest")

    def displacement(self, knots: float, asymmetry: float, generator: np.random.Generator) -> np.ndarray:
        """Draw a random displacement (3, x, y, z) along each axis, see `noise`, much of it the same left and right.

        Without that the midline would bend more than anybody's.
        """
        drawn = np.stack([self.noise(knots, generator) for _ in range(3)])
        mirrored = drawn[:, ::-1] * np.array([-1, 1, 1], np.float32).reshape(3, 1, 1, 1)
        symmetric, other = (drawn + mirrored) / np.sqrt(2), (drawn - mirrored) / np.sqrt(2)
        return np.sqrt(1 - asymmetry**2) * symmetric + asymmetry * other

    def inverse(self, shift: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """Find places x with x + shift(x) = wanted, by iteration; the shift's gradient must be below 1."""
        places = wanted
        for _ in range(NUM_INVERSIONS):
            places = wanted - _interpolated(shift, places / self.step)
        return places

    def to_voxels(self, field: np.ndarray) -> np.ndarray:
        """Bring a field (x, y, z) to all voxels (X, Y, Z)."""
        return ndimage.affine_transform(
            field, np.full(3, 1 / self.step), output_shape=self.shape, order=1, mode="nearest"
        )


@dataclass(frozen=True, eq=False)
class _Correspondence:
    """Which place of a source belongs to which of the reference: a displacement, then an affine map.

    Attributes:
        displacement: (3, x, y, z) voxels of the reference, on its coarse grid.
        to_source: (4, 4), voxel of the reference -> voxel of the source.
        without_motion: (4, 4), the same but for rotation and shift, which are no part of a shape: voxel of the
            reference -> voxel of the reference.
    """

    displacement: np.ndarray
    to_source: np.ndarray
    without_motion: np.ndarray

    def shift(self, grid: _CoarseGrid) -> np.ndarray:
        """How far (3, x, y, z) the source's places lie from the reference's, rotation and shift apart."""
        places = grid.places()
        return _moved(self.without_motion, places + self.displacement) - places


def _correspond(
    source: Source, reference: Source, grid: _CoarseGrid, scheme: LabelScheme, blending: Blending
) -> _Correspondence:
    moving, fixed = (tissue_image(each.label_ids, scheme) for each in (source, reference))
    scans = moving, source.affine, fixed, reference.affine
    rigid = register_rigidly(*scans, AFFINE_RESOLUTIONS_MM)
    affine = register_affinely(*scans, rigid, AFFINE_RESOLUTIONS_MM)
    to_source = np.linalg.inv(affine @ source.affine) @ reference.affine
    aligned = ndimage.affine_transform(moving, to_source[:3, :3], to_source[:3, 3], fixed.shape, order=1)
    without_motion = np.linalg.inv(reference.affine) @ rigid @ np.linalg.inv(affine) @ reference.affine
    return _Correspondence(_register_smoothly(aligned, fixed, grid.step, blending), to_source, without_motion)


def _turn(reference: Source, upright: Source, scheme: LabelScheme) -> np.ndarray:
    """(4, 4), voxel of a grid turned about its middle, for a head that lies as `upright`, to voxel of the reference."""
    moving, fixed = (tissue_image(each.label_ids, scheme) for each in (reference, upright))
    rigid = register_rigidly(moving, reference.affine, fixed, upright.affine, AFFINE_RESOLUTIONS_MM)
    turn = np.eye(4)
    turn[:3, :3] = np.linalg.inv(rigid[:3, :3] @ reference.affine[:3, :3]) @ reference.affine[:3, :3]
    middle = (np.array(reference.label_ids.shape) - 1) / 2
    turn[:3, 3] = middle - turn[:3, :3] @ middle
    return turn


def _register_smoothly(moving: np.ndarray, fixed: np.ndarray, step: int, blending: Blending) -> np.ndarray:
    """Displacement (3, x, y, z) in voxels, at every ``step``-th voxel, that takes fixed places to moving ones."""
    field = np.zeros((3, 1, 1, 1), np.float32)
    with warnings.catch_warnings():
        # itk's modules, loaded on first use, warn of SWIG's types; as errors these warnings crash the interpreter.
        warnings.simplefilter("ignore")
        import itk  # here, since it takes seconds

        with one_itk_thread(itk):
            for stride, iterations in zip((2 * step, step), blending.demons_iterations, strict=True):
                coarse = [ndimage.gaussian_filter(each, stride / 2) for each in (moving, fixed)]
                on_moving, on_fixed = (each[::stride, ::stride, ::stride] for each in coarse)
                start = 2 * _interpolated(field, np.indices(on_fixed.shape, dtype=np.float32) / 2)
                field = _demons(itk, on_moving, on_fixed, iterations, blending.demons_sd, start)
    return field * step


def _demons(
    itk: Any, moving: np.ndarray, fixed: np.ndarray, iterations: int, sd: float, start: np.ndarray
) -> np.ndarray:
    """Displacement (3, X, Y, Z) in voxels of two scans (X, Y, Z), from fixed places to moving ones."""
    images = [itk.image_from_array(np.ascontiguousarray(each.transpose(2, 1, 0))) for each in (moving, fixed)]
    field_type = itk.Image[itk.Vector[itk.F, 3], 3]
    demons = itk.DiffeomorphicDemonsRegistrationFilter[type(images[0]), type(images[0]), field_type].New()
    demons.SetMovingImage(images[0])
    demons.SetFixedImage(images[1])
    demons.SetNumberOfIterations(iterations)
    demons.SetStandardDeviations(sd)
    vectors = np.ascontiguousarray(start.transpose(3, 2, 1, 0), np.float32)
    demons.SetInitialDisplacementField(itk.image_from_array(vectors, ttype=(field_type,)))
    demons.Update()
    return itk.array_from_image(demons.GetOutput()).transpose(3, 2, 1, 0)


def _interpolated(field: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Values (C, ...) of a field (C, x, y, z) at places (3, ...) in its own steps; constant beyond its border."""
    return np.stack([ndimage.map_coordinates(each, steps, order=1, mode="nearest") for each in field])


def _moved(matrix: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Apply (4, 4) to places (3, x, y, z)."""
    return np.einsum("ij,j...->i...", matrix[:3, :3], places) + matrix[:3, 3].reshape(3, 1, 1, 1)


def _sample(source: Source, found: _Correspondence, origins: np.ndarray, grid: _CoarseGrid) -> np.ndarray:
    """Take a source's label ids to the new anatomy, whose places come from `origins` in the reference."""
    displaced = origins + _interpolated(found.displacement, origins / grid.step)
    places = np.stack([grid.to_voxels(each) for each in _moved(found.to_source, displaced).astype(np.float32)])
    return ndimage.map_coordinates(source.label_ids, places, order=0)


def _vote(label_maps: Sequence[np.ndarray], weights: Sequence[np.ndarray]) -> np.ndarray:
    """Label of most weight at each voxel, after the sharp borders of each label map were smoothed."""
    best = np.zeros(label_maps[0].shape, np.float32)
    winner = np.zeros(label_maps[0].shape, np.uint8)
    for label_id in np.unique(np.concatenate([np.unique(each) for each in label_maps])):
        present = np.logical_or.reduce([each == label_id for each in label_maps])
        box = tuple(
            slice(max(0, each.start - VOTE_REACH), each.stop + VOTE_REACH)
            for each in ndimage.find_objects(present.view(np.uint8))[0]
        )
        votes = sum(
            weight[box] * ndimage.gaussian_filter((each[box] == label_id).astype(np.float32), VOTE_SD_VOXELS)
            for each, weight in zip(label_maps, weights, strict=True)
        )
        ahead = votes > best[box]
        winner[box][ahead] = label_id
        best[box][ahead] = votes[ahead]
    return winner
