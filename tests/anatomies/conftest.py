"""Phantoms as the sources of anatomies."""

from __future__ import annotations

import numpy as np
import pytest

from trispade.anatomies.blend import Blending, Source, brain_of
from trispade.labels import load_scheme
from trispade.phantoms import make_phantom


@pytest.fixture(scope="session")
def people() -> tuple[Source, ...]:
    """Three phantoms at 6 mm."""
    scheme = load_scheme("synthseg")
    phantoms = [make_phantom(seed, (28, 34, 28), 6.0) for seed in range(3)]
    return tuple(brain_of(each.label_map, each.affine, scheme, "phantom") for each in phantoms)


@pytest.fixture(scope="session")
def blending() -> Blending:
    """Quick, for grids of 6 mm."""
    return Blending(
        shares=(1 / 3, 1 / 3, 1 / 3),
        demons_iterations=(4, 4),
        demons_sd=1.0,
        patch_mm=60.0,
        patch_sharpness=4.0,
        sd_mm=6.0,
        asymmetry=0.3,
        knots_mm=40.0,
        seed=1,
    )


@pytest.fixture(scope="session")
def shifted() -> Source:
    """One of the phantoms, turned to nothing but lying elsewhere in the world."""
    phantom = make_phantom(1, (28, 34, 28), 6.0)
    affine = phantom.affine.copy()
    affine[:3, 3] += (40, -25, 60)
    return Source(phantom.label_map.astype(np.uint8), affine)
