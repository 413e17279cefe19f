"""How much of a person is left in an anatomy: the overlap of its cortex and ventricles with that person's."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from trispade.anatomies.blend import Source, tissue_image
from trispade.labels import LabelScheme
from trispade.registration import register_affinely, register_rigidly

STRUCTURES = {"cortex": (3, 42), "lateral_ventricles": (4, 43)}
ALIGNMENTS = ("centred", "rigid", "affine")
RESOLUTIONS_MM = (8.0, 4.0)

Likeness = dict[str, dict[str, float]]


def likeness(anatomy: Source, person: Source, scheme: LabelScheme) -> Likeness:
    """Measure how like an anatomy is to a person's label map.

    Args:
        anatomy: label map of nobody.
        person: label map of somebody, brought upon it.
        scheme: what the ids mean.

    Returns:
        Structure to alignment to Dice, in [0, 1]: ``centred``, the middles of the grids upon each other; ``rigid``,
        turned and shifted by registration; ``affine``, scaled and sheared as well.
    """
    moving, fixed = (tissue_image(each.label_ids, scheme) for each in (person, anatomy))
    scans = moving, person.affine, fixed, anatomy.affine
    centred = np.eye(4)
    centred[:3, 3] = _middle_mm(anatomy) - _middle_mm(person)
    rigid = register_rigidly(*scans, RESOLUTIONS_MM)
    affine = register_affinely(*scans, rigid, RESOLUTIONS_MM[-1:])
    found: Likeness = {structure: {} for structure in STRUCTURES}
    for alignment, transform in zip(ALIGNMENTS, (centred, rigid, affine), strict=True):
        to_person = np.linalg.inv(transform @ person.affine) @ anatomy.affine
        moved = ndimage.affine_transform(
            person.label_ids, to_person[:3, :3], to_person[:3, 3], anatomy.label_ids.shape, order=0
        )
        for structure, ids in STRUCTURES.items():
            found[structure][alignment] = dice(np.isin(moved, ids), np.isin(anatomy.label_ids, ids))
    return found


def highest(of_people: list[Likeness]) -> Likeness:
    """Take for each structure and alignment the highest Dice over people, to three places."""
    return {
        structure: {way: round(max(each[structure][way] for each in of_people), 3) for way in ALIGNMENTS}
        for structure in STRUCTURES
    }


def dice(first: np.ndarray, second: np.ndarray) -> float:
    """Overlap of two masks: twice what they share, over the sum of both."""
    return float(2 * np.count_nonzero(first & second) / (np.count_nonzero(first) + np.count_nonzero(second)))


def _middle_mm(source: Source) -> np.ndarray:
    """World coordinates (3,) of the middle of the labelled box."""
    (box,) = ndimage.find_objects((source.label_ids > 0).astype(np.uint8))
    middle = [(each.start + each.stop - 1) / 2 for each in box]
    return source.affine[:3, :3] @ middle + source.affine[:3, 3]
