from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage
from skimage.measure import block_reduce
from skimage.metrics import structural_similarity

from trispade.metrics import MaskedMSSSIM, MaskedSSIM, MultiscaleSimilarityTo
from trispade.metrics.multiscale import SCALE_WEIGHTS

SHAPE = (48, 41, 45)
TWO, THREE = (0.4, 0.6), (0.2, 0.3, 0.5)


@pytest.fixture
def mask() -> np.ndarray:
    position = (np.indices(SHAPE).T - (np.array(SHAPE) - 1) / 2).T
    return (position[0] / 20) ** 2 + (position[1] / 17) ** 2 + (position[2] / 19) ** 2 < 1


def pair(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    y = ndimage.gaussian_filter(generator.random(SHAPE), 1.0)
    y = (y - y.min()) / np.ptp(y)
    return np.clip(0.8 * y + generator.normal(0, 0.1, SHAPE), 0, 1), y


def reference(y_pred, y, mask, weights) -> float:
    """Multi-scale similarity by scikit-image's map, whose luminance is 1 for a huge K1, and its block means."""
    box = ndimage.find_objects(mask.astype(int))[0]
    volumes, shares = [np.where(mask, each, 0)[box] for each in (y_pred, y)], mask[box].astype(float)
    product = 1.0
    for scale, weight in enumerate(weights):
        if scale:
            volumes = [block_reduce(each, 2, np.mean) for each in volumes]
            shares = block_reduce(shares, 2, np.mean)
        padded = [np.pad(each, 5) for each in volumes]
        _, similarity = structural_similarity(
            *padded,
            data_range=1.0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            full=True,
            K1=0.01 if scale == len(weights) - 1 else 1e6,
        )
        product *= np.average(similarity[5:-5, 5:-5, 5:-5], weights=shares) ** weight
    return float(product)


@pytest.mark.parametrize("weights", [(1.0,), TWO, THREE])
def test_it_is_what_scikit_image_gives_scale_by_scale(mask, weights):
    y_pred, y = pair()
    expected = reference(y_pred, y, mask, weights)
    assert 0.2 < expected < 0.97
    assert MultiscaleSimilarityTo(y, mask, weights=weights).value(y_pred) == pytest.approx(expected, abs=1e-6)


def test_one_scale_is_the_masked_similarity_of_volumes_that_are_zero_outside(mask):
    volumes = [torch.from_numpy(np.where(mask, each, 0))[None, None] for each in pair()]
    inside = torch.from_numpy(mask)[None, None]
    one = MaskedMSSSIM(weights=(1.0,))(*volumes, mask=inside)
    torch.testing.assert_close(one, MaskedSSIM()(*volumes, mask=inside))


def test_identical_volumes_have_1_and_inverted_contrast_has_0(mask):
    y = pair()[1]
    similarity = MultiscaleSimilarityTo(y, mask, weights=TWO)
    assert similarity.value(y) == pytest.approx(1.0, abs=1e-12)
    # Texture about one mean, so that its sign can be turned without touching the luminance.
    texture = 0.5 + 0.3 * np.sign(np.random.default_rng(0).normal(size=SHAPE))
    wide = np.ones(SHAPE, bool)
    assert MultiscaleSimilarityTo(texture, wide, weights=(0.9, 0.1)).value(1 - texture) == 0.0


def test_neither_the_field_of_view_nor_what_lies_outside_the_mask_matters(mask):
    y_pred, y = pair()
    expected = MultiscaleSimilarityTo(y, mask, weights=THREE).value(y_pred)
    elsewhere = [np.where(mask, each, 7.0) for each in (y_pred, y)]
    shifted = [np.pad(each, ((3, 1), (0, 6), (5, 2)))[1:] for each in (*elsewhere, mask)]
    assert MultiscaleSimilarityTo(shifted[1], shifted[2], weights=THREE).value(shifted[0]) == pytest.approx(expected)


def test_coarse_scales_forgive_noise_that_fine_ones_see(mask):
    y = pair()[1]
    noisy = y + np.random.default_rng(3).normal(0, 0.1, SHAPE)
    values = [MultiscaleSimilarityTo(y, mask, weights=weights).value(noisy) for weights in ((1.0,), TWO, (0.1, 0.9))]
    assert values[0] < values[1] < values[2]


def test_the_standard_has_five_scales_whose_weights_add_to_1():
    assert sum(SCALE_WEIGHTS) == pytest.approx(1.0, abs=1e-3)
    y_pred, y = (np.resize(each, (96, 97, 98)) for each in pair())
    mask = np.ones(y.shape, bool)
    found = MaskedMSSSIM()(torch.from_numpy(y_pred)[None, None], torch.from_numpy(y)[None, None])
    assert found.item() == pytest.approx(reference(y_pred, y, mask, SCALE_WEIGHTS), abs=1e-6)


def test_a_mask_too_small_for_its_scales_is_refused(mask):
    y_pred, y = (torch.from_numpy(each)[None, None] for each in pair())
    message = r"at least 96 voxels along each axis for 5 scales, got \(40, 33, 37\)\. Give fewer scale weights"
    with pytest.raises(ValueError, match=message):
        MaskedMSSSIM()(y_pred, y, mask=torch.from_numpy(mask)[None, None])


def test_an_empty_mask_is_refused():
    with pytest.raises(ValueError, match="mask: expected at least one voxel a volume, got none"):
        MultiscaleSimilarityTo(np.ones(SHAPE), np.zeros(SHAPE, bool))
