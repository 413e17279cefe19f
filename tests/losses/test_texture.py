from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from trispade.losses import TextureLoss


@pytest.fixture
def real():
    return torch.rand(2, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_without_weight_it_is_the_mean_squared_error(real):
    fake = 0.5 * real
    assert torch.equal(TextureLoss(0.0)(fake, real), F.mse_loss(fake, real))


def test_identical_volumes_cost_nothing(real):
    assert TextureLoss(1.0)(real, real) == 0


def test_detail_of_the_same_amount_elsewhere_costs_its_error_alone(real):
    mirrored = real.flip((2, 3, 4))  # windows of the whole patch: the same amount in each
    loss = TextureLoss(1.0, window=14)(mirrored, real)
    # 15 first differences give one window, which leaves out the last: its mean is not quite that of all.
    torch.testing.assert_close(loss, F.mse_loss(mirrored, real), rtol=0.02, atol=0)


def test_a_ramp_has_the_energy_of_its_slope_and_no_curvature():
    ramp = torch.linspace(-1, 1, 17).view(1, 1, 17, 1, 1).expand(1, 1, 17, 16, 16)
    flat = torch.zeros_like(ramp)
    loss = TextureLoss(1.0)(flat, ramp) - F.mse_loss(flat, ramp)
    torch.testing.assert_close(loss, torch.tensor(0.125**2 / 6))  # one of six energies differs, by 2 / 16


def test_blur_costs_more_than_noise_of_the_same_squared_error(real):
    blurred = F.avg_pool3d(F.pad(real, (1,) * 6, mode="replicate"), 3, 1)
    noise = torch.randn(real.shape, generator=torch.Generator().manual_seed(1))
    noise *= ((blurred - real).square().mean() / noise.square().mean()).sqrt()
    loss = TextureLoss(0.5)
    smooth = F.avg_pool3d(F.pad(real, (1,) * 6, mode="replicate"), 3, 1)
    # About a smooth truth, noise adds the detail that a real scan has and blur takes it away.
    assert loss(blurred, real) > loss(smooth + noise, real) - F.mse_loss(smooth + noise, real) + F.mse_loss(
        blurred, real
    )


def test_where_the_amount_varies_beyond_what_labels_tell_the_mean_amount_costs_least():
    places = torch.stack(torch.meshgrid(*[torch.arange(16)] * 3, indexing="ij"))
    checkerboard = (places.sum(0) % 2 - 0.5).expand(3, 1, -1, -1, -1)
    real = torch.tensor([0.0, 0.0, 0.9]).view(3, 1, 1, 1, 1) * checkerboard  # patches that labels do not tell apart
    amounts = torch.linspace(0, 1, 11)
    loss = TextureLoss(1.0)
    costs = [loss(amount * checkerboard, real) - F.mse_loss(amount * checkerboard, real) for amount in amounts]
    assert amounts[int(torch.stack(costs).argmin())] == pytest.approx(0.3)  # the median is 0


def test_gradients_reach_every_voxel(real):
    fake = (0.5 * real).requires_grad_()
    TextureLoss(0.5)(fake, real).backward()
    assert (fake.grad != 0).all()
