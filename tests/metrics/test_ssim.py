from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage
from skimage.metrics import structural_similarity

from trispade.metrics import SimilarityTo, ssim_map


def pair(shape=(17, 14, 12), seed=0):
    generator = np.random.default_rng(seed)
    y = ndimage.gaussian_filter(generator.random(shape), 1.0)
    y = (y - y.min()) / np.ptp(y)
    return np.clip(0.8 * y + generator.normal(0, 0.1, shape), 0, 1), y


def as_batch(*volumes):
    return [torch.from_numpy(np.stack([each])[None]) for each in volumes]


@pytest.mark.parametrize("data_range", [1.0, 2.0])
def test_the_map_is_that_of_scikit_image_everywhere(data_range):
    y_pred, y = pair()
    mean, expected = structural_similarity(
        y_pred,
        y,
        data_range=data_range,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        full=True,
    )
    found = ssim_map(*as_batch(y_pred, y), data_range).numpy()[0, 0]
    assert found.shape == y.shape
    assert np.abs(found - expected).max() < 1e-6
    assert found[5:-5, 5:-5, 5:-5].mean() == pytest.approx(mean, abs=1e-6)
    assert expected.min() < 0.75 < 0.84 < expected.max()


def test_float32_volumes_give_the_same_map():
    volumes = as_batch(*pair())
    assert (ssim_map(*(each.float() for each in volumes)) - ssim_map(*volumes)).abs().max() < 1e-5


def test_identical_volumes_have_a_similarity_of_1_even_where_they_are_flat():
    y = torch.zeros(1, 1, 12, 12, 12)
    y[..., 6:] = torch.rand(1, 1, 12, 12, 6)
    torch.testing.assert_close(ssim_map(y, y), torch.ones_like(y, dtype=torch.float64), atol=1e-9, rtol=0)


def test_volumes_of_a_batch_do_not_meet():
    (first, real), (second, other) = pair(seed=1), pair(seed=2)
    together = ssim_map(torch.cat(as_batch(first, second)), torch.cat(as_batch(real, other)))
    assert torch.equal(together, torch.cat([ssim_map(*as_batch(first, real)), ssim_map(*as_batch(second, other))]))


def test_similarity_is_symmetric():
    y_pred, y = as_batch(*pair())
    torch.testing.assert_close(ssim_map(y_pred, y), ssim_map(y, y_pred))


def test_one_real_volume_serves_several_synthetic_ones():
    (first, real), (second, _) = pair(seed=1), pair(seed=2)
    similarity = SimilarityTo(real)
    for y_pred in (first, second):
        assert np.array_equal(similarity.map(y_pred), ssim_map(*as_batch(y_pred, real)).numpy()[0, 0])


def test_beyond_a_constant_border_volumes_are_zero():
    y_pred, y = pair()
    padded = SimilarityTo(np.pad(y, 5), border="reflect").map(np.pad(y_pred, 5))
    np.testing.assert_allclose(SimilarityTo(y, border="constant").map(y_pred), padded[5:-5, 5:-5, 5:-5], atol=1e-12)
