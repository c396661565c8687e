"""Diffusion in plain tensors: the process against its closed form, losses and guidance by hand, sampling of a known distribution."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from unlearnbench.diffusion import (
    LABEL_DROP,
    Denoiser,
    denoising_errors,
    denoising_loss,
    guided,
    linear_schedule,
    noised,
    samples,
    sampling,
)

MEANS = torch.tensor([-1.0, 2.0, 0.5])
"""Of the classes of `Gaussians`, the last of what has no label."""
SPREAD = 0.3


class Gaussians(Denoiser):
    """The exact noise prediction for pixels that are normal with a mean by class: E[noise | noised]."""

    def __init__(self, steps: int = 200, bounds: tuple[float, float] = (-9.0, 9.0)) -> None:
        super().__init__(2, steps, bounds)
        self.seen: list[tuple[Tensor, Tensor]] = []

    def forward(self, images: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        self.seen.append((t, labels))
        share = self.alpha_bar[t][:, None, None, None]
        centre = share.sqrt() * MEANS[labels][:, None, None, None]
        return (1 - share).sqrt() * (images - centre) / (share * SPREAD**2 + 1 - share)


@pytest.mark.parametrize("steps", [200, 1000])
def test_the_schedule_is_the_product_of_linear_betas_and_ends_in_noise(steps: int) -> None:
    betas = (1e-4 + (0.02 - 1e-4) * np.arange(steps) / (steps - 1)) * 1000 / steps
    np.testing.assert_allclose(linear_schedule(steps).numpy(), np.exp(np.log1p(-betas).cumsum()), rtol=1e-5)
    assert linear_schedule(steps)[-1] < 1e-4
    with pytest.raises(ValueError, match="steps is 20"):
        linear_schedule(20)


def test_noised_images_keep_the_variance_of_standardised_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    images, noise = torch.randn(2, 500, 1, 10, 10, generator=generator)
    for share in (0.1, 0.9):
        mixed = noised(images, noise, torch.full((500,), share))
        assert mixed.var().item() == pytest.approx(1.0, abs=0.02)
        assert (mixed * images).mean().item() == pytest.approx(share**0.5, abs=0.02)


def test_the_error_is_a_mean_over_pixels_of_the_squared_difference_to_the_noise() -> None:
    model = Gaussians()
    images, noise = torch.randn(2, 4, 1, 3, 3, generator=torch.Generator().manual_seed(1))
    t, labels = torch.tensor([0, 5, 100, 199]), torch.tensor([0, 1, 0, 1])
    share = linear_schedule(200)[t].numpy()[:, None, None, None]
    mixed = np.sqrt(share) * images.numpy() + np.sqrt(1 - share) * noise.numpy()
    centre = np.sqrt(share) * MEANS[labels].numpy()[:, None, None, None]
    predicted = np.sqrt(1 - share) * (mixed - centre) / (share * SPREAD**2 + 1 - share)
    expected = ((predicted - noise.numpy()) ** 2).reshape(4, -1).mean(axis=1)
    np.testing.assert_allclose(denoising_errors(model, images, labels, t, noise).numpy(), expected, rtol=1e-4)


def test_the_loss_draws_times_uniformly_and_drops_one_label_in_ten() -> None:
    model, batch = Gaussians(), {"images": torch.zeros(20_000, 1, 1, 1), "labels": torch.ones(20_000, dtype=torch.int64)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        loss = denoising_loss(model, batch)
        torch.manual_seed(0)
        assert torch.equal(loss, denoising_loss(model, batch))
        assert not torch.equal(loss, denoising_loss(model, batch))
    t, labels = model.seen[0]
    assert loss.shape == (20_000,)
    counts = torch.bincount(t, minlength=200)
    assert 50 < counts.min() <= counts.max() < 150  # 100 expected, standard deviation 10
    assert set(labels.tolist()) == {1, 2}
    assert (labels == 2).float().mean().item() == pytest.approx(LABEL_DROP, abs=0.01)


def test_guidance_moves_away_from_the_unconditional_prediction() -> None:
    model = Gaussians()
    images, t, labels = torch.zeros(2, 1, 2, 2), torch.tensor([50, 150]), torch.tensor([0, 1])
    given, none = model(images, t, labels), model(images, t, torch.tensor([2, 2]))
    torch.testing.assert_close(guided(model, images, t, labels, 2.0), 3 * given - 2 * none)
    torch.testing.assert_close(guided(model, images, t, labels, 0.0), given)


def test_samples_have_the_mean_and_spread_of_their_class() -> None:
    noise, labels = torch.randn(400, 1, 4, 4, generator=torch.Generator().manual_seed(2)), torch.arange(400) % 2
    drawn = samples(Gaussians(), noise, labels, steps=100, guidance=0.0)
    for number in (0, 1):
        pixels = drawn[labels == number]
        assert pixels.mean().item() == pytest.approx(MEANS[number].item(), abs=0.03)
        assert pixels.std().item() == pytest.approx(SPREAD, abs=0.03)


def test_samples_stay_within_the_bounds_of_pixels() -> None:
    noise = torch.randn(50, 1, 4, 4, generator=torch.Generator().manual_seed(3))
    drawn = samples(Gaussians(bounds=(-1.0, 1.5)), noise, torch.ones(50, dtype=torch.int64), steps=10, guidance=0.0)
    assert drawn.max() <= 1.5 + 1e-6
    assert drawn.max() > 1.4


def test_sampling_visits_the_timesteps_from_the_last_to_the_first() -> None:
    noise = torch.randn(3, 1, 2, 2, generator=torch.Generator().manual_seed(4))
    path = list(sampling(Gaussians(), noise, torch.zeros(3, dtype=torch.int64), steps=5, guidance=1.0))
    assert [int(t[0]) for _, t in path] == [199, 149, 100, 50, 0, -1]
    assert torch.equal(path[0][0], noise)
    for steps in (1, 201):
        with pytest.raises(ValueError, match=f"steps is {steps}"):
            next(sampling(Gaussians(), noise, torch.zeros(3, dtype=torch.int64), steps=steps, guidance=1.0))
