"""Denoising diffusion in plain tensors: the noising process, its loss, guidance without a classifier, and sampling.

Jonathan Ho, Ajay Jain, Pieter Abbeel, "Denoising diffusion probabilistic models", arXiv:2006.11239 (process and loss); Jonathan Ho, Tim
Salimans, "Classifier-free diffusion guidance", arXiv:2207.12598; Jiaming Song, Chenlin Meng, Stefano Ermon, "Denoising diffusion implicit
models", arXiv:2010.02502 (sampling). Timesteps count from 0 to T - 1; `alpha_bar[t]` is the share of the image's variance that is left at
t. Losses are means over pixels, so that no weight depends on an image's size. Knows models by `Denoiser` alone, and no data set.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from unlearnbench.views import Batch

LABEL_DROP = 0.1
"""Share of training rows whose label is left out, so that one model learns both noise predictions that guidance needs."""


class Denoiser(nn.Module):
    """Base of models that predict the noise in an image: ``model(noised [B, C, H, W], t int64 [B], labels int64 [B])`` -> [B, C, H, W].

    Args:
        classes: Number of classes; the label `classes` stands for none and gives the unconditional prediction.
        steps: Timesteps T of the noising process.
        bounds: The smallest and the largest value of a pixel: sampling keeps its guesses of the clean image within them.
    """

    alpha_bar: Tensor
    bounds: Tensor
    classes: int

    def __init__(self, classes: int, steps: int, bounds: tuple[float, float]) -> None:
        super().__init__()
        self.classes = classes
        self.register_buffer("alpha_bar", linear_schedule(steps))
        self.register_buffer("bounds", torch.tensor(bounds))


def linear_schedule(steps: int) -> Tensor:
    """Cumulative products of 1 - beta, float32 [steps], of betas that rise linearly.

    From 1e-4 to 0.02 at 1,000 steps as in the paper; at other numbers scaled by 1000 / steps, so that as little is left of the image in the
    end.

    Raises:
        ValueError: so few steps that a beta would be 1 or more.

    >>> [f"{share:.4g}" for share in linear_schedule(1000)[[0, 999]].tolist()]  # 1 - 1e-4, and what the paper's process leaves
    ['0.9999', '4.036e-05']
    """
    if steps <= 20:
        raise ValueError(f"steps is {steps}; allowed: above 20, since betas of 0.02 * 1000 / steps must stay below 1")
    betas = torch.linspace(1e-4, 0.02, steps, dtype=torch.float64) * (1000 / steps)
    return (1 - betas).cumprod(0).float()


def noised(images: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """sqrt(alpha_bar) * images + sqrt(1 - alpha_bar) * noise.

    Args:
        images: [B, C, H, W].
        noise: standard normal, of the same shape.
        alpha_bar: of each row's timestep [B].

    >>> noised(torch.ones(1, 1, 1, 1), torch.full((1, 1, 1, 1), 2.0), torch.tensor([0.64])).item()  # 0.8 * 1 + 0.6 * 2
    2.0
    """
    share = alpha_bar[:, None, None, None]
    return share.sqrt() * images + (1 - share).sqrt() * noise


def unlabelled(model: nn.Module, labels: Tensor) -> Tensor:
    """The label that stands for none, as often as there are labels, int64 [B]."""
    return torch.full_like(labels, int(model.classes))  # type: ignore[arg-type]


def guided(model: nn.Module, images: Tensor, t: Tensor, labels: Tensor, guidance: float) -> Tensor:
    """(1 + w) * eps(x, t, c) - w * eps(x, t, none), the noise predicted with guidance w, shaped like `images`."""
    if guidance == 0:
        plain: Tensor = model(images, t, labels)
        return plain
    both: Tensor = model(torch.cat([images, images]), torch.cat([t, t]), torch.cat([labels, unlabelled(model, labels)]))
    given, none = both.chunk(2)
    return (1 + guidance) * given - guidance * none


def denoising_errors(model: nn.Module, images: Tensor, labels: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """Mean squared error of each row's predicted noise over its pixels [B], at given timesteps and noise, in float32 at least."""
    error: Tensor = model(noised(images, noise, model.alpha_bar[t]), t, labels) - noise  # type: ignore[index]
    return error.to(torch.promote_types(error.dtype, torch.float32)).square().mean(dim=(1, 2, 3))


def denoising_loss(model: nn.Module, batch: Batch) -> Tensor:
    """The training loss of each row [B]: `denoising_errors` at a uniform timestep, one row in ten without its label.

    Timesteps, noise and left-out labels come from torch's global generator of the rows' device, which `training.fit` seeds: outside of it,
    seed the generator before each call that is to give the same again.
    """
    images, labels = batch["images"], batch["labels"]
    t = drawn_steps(model, labels)
    drop = torch.rand(len(labels), device=labels.device) < LABEL_DROP
    return denoising_errors(model, images, torch.where(drop, unlabelled(model, labels), labels), t, torch.randn_like(images))


def drawn_steps(model: nn.Module, labels: Tensor) -> Tensor:
    """A uniform timestep for each label, int64 [B], from torch's global generator."""
    return torch.randint(len(model.alpha_bar), labels.shape, device=labels.device)  # type: ignore[arg-type]


def sampling(model: nn.Module, noise: Tensor, labels: Tensor, *, steps: int, guidance: float) -> Iterator[tuple[Tensor, Tensor]]:
    """Images on their way from noise to samples, by DDIM without noise of its own (eta = 0), the guess of the clean image clipped.

    Args:
        model: where `noise` is; run as it is, in its own mode.
        noise: what the samples are made from, standard normal [B, C, H, W].
        labels: int64 [B].
        steps: timesteps visited, evenly spread from the last to the first.
        guidance: w of `guided`; 0 samples from the conditional prediction.

    Yields:
        Pairs of images [B, C, H, W] and the timestep int64 [B] at which they stand, first the noise itself; last the samples, with -1.

    Raises:
        ValueError: fewer than 2 steps, or more than the process has.
    """
    alpha_bar: Tensor = model.alpha_bar  # type: ignore[assignment]
    if not 2 <= steps <= len(alpha_bar):
        raise ValueError(f"steps is {steps}; allowed: 2 to {len(alpha_bar)}, the timesteps of the model's process")
    low, high = model.bounds.tolist()  # type: ignore[operator]
    visited = torch.linspace(len(alpha_bar) - 1, 0, steps).round().long().tolist()
    images = noise
    for now, after in zip(visited, [*visited[1:], -1], strict=True):
        t = torch.full_like(labels, now)
        yield images, t
        there, left = alpha_bar[now], alpha_bar[after] if after >= 0 else torch.ones_like(alpha_bar[0])
        clean = (images - (1 - there).sqrt() * guided(model, images, t, labels, guidance)) / there.sqrt()
        clean = clean.clamp(low, high)
        images = left.sqrt() * clean + (1 - left).sqrt() * (images - there.sqrt() * clean) / (1 - there).sqrt()
    yield images, torch.full_like(labels, -1)


def samples(model: nn.Module, noise: Tensor, labels: Tensor, *, steps: int, guidance: float) -> Tensor:
    """What `sampling` ends with [B, C, H, W]."""
    for images, _ in sampling(model, noise, labels, steps=steps, guidance=guidance):
        last = images
    return last
