"""The one evidence pass over a denoising model: samples shown to a judge, losses and unconditional predictions of the rows' images.

Each row of a split stands for one sample of its class, drawn from noise that the row's identity decides, so that all models start from the
same noise and rows keep their identity. Knows models by `Denoiser`; no data set, no request and no metric.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from unlearnbench.api import Need, UserError
from unlearnbench.diffusion import denoising_errors, noised, samples, unlabelled
from unlearnbench.evidence import Evidence
from unlearnbench.layers import evaluating
from unlearnbench.scenarios.images import ImageData, coarse_pixels, image_evidence

LOSS_TIMES = 10
"""Timesteps, evenly spread, over which the loss of a row is averaged."""
DRIFT_TIMES = 4
"""Timesteps, evenly spread, at which the unconditional prediction is read."""
JUDGED = ("logits", "features")
GIVEN = (*JUDGED, "pixels", "image_features", "denoising_loss", "unconditional")


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """How samples are drawn for scoring: DDIM steps, guidance, and images that go through the model at once."""

    steps: int
    guidance: float
    batch_size: int = 512


def row_noise(ids: Sequence[str], purpose: str, shape: Sequence[int]) -> Tensor:
    """Standard normal noise, float32 [rows, *shape], each row's from a seed made of its identity and the purpose."""
    drawn = []
    for identity in ids:
        seed = int.from_bytes(hashlib.sha256(f"{purpose}/{identity}".encode()).digest()[:7])
        drawn.append(torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed)))
    return torch.stack(drawn)


def even_times(n: int, steps: int) -> list[int]:
    """The middles of n equal parts of 0 to steps - 1.

    >>> even_times(4, 200)
    [25, 75, 125, 175]
    """
    return [(2 * part + 1) * steps // (2 * n) for part in range(n)]


def sampled(model: nn.Module, data: ImageData, sampler: Sampler) -> ImageData:
    """One sample for each row, of the row's class, under the row's identity; on the CPU."""
    like = next(model.parameters())
    parts = []
    with torch.no_grad(), evaluating(model):
        for start in range(0, len(data), sampler.batch_size):
            chosen = slice(start, start + sampler.batch_size)
            noise = row_noise(data.ids[chosen], "sample", data.images.shape[1:]).to(like.device, like.dtype)
            labels = data.labels[chosen].to(like.device)
            parts.append(samples(model, noise, labels, steps=sampler.steps, guidance=sampler.guidance).float().cpu())
    return ImageData(torch.cat(parts), data.labels, data.ids, data.clusters)


def diffusion_evidence(
    model: nn.Module, judge: nn.Module, splits: Mapping[str, ImageData], needs: frozenset[Need], sampler: Sampler
) -> Evidence:
    """Everything that `needs` name; no image is sampled twice.

    Args:
        model: a `Denoiser`, where it is and as it is; unchanged afterwards.
        judge: a classifier of clean images.
        splits: the rows of every split that a need names.
        needs: what `Evidence.array` says of denoising models.
        sampler: how samples are drawn.

    Raises:
        UserError: a split that is not given or has no rows, a need that only others have, or an intervention.
    """
    for need in sorted(needs, key=repr):
        if need.split not in splits or not len(splits[need.split]):
            filled = sorted(name for name, data in splits.items() if len(data))
            raise UserError(f"split {need.split!r} has no rows to score; with rows: {', '.join(filled)}")
        if need.what not in GIVEN:
            raise UserError(f"a denoising model has no {need.what}; it gives: {', '.join(GIVEN)}")
        if need.intervention is not None:
            raise UserError(
                f"interventions are for causal language models; {type(need.intervention).__name__} was asked of a denoising model"
            )
    judged = frozenset(need for need in needs if need.what in JUDGED)
    drawn = {name: sampled(model, splits[name], sampler) for name in sorted({need.split for need in judged})}
    arrays: dict[Need, NDArray[np.floating[Any]]] = dict(image_evidence(judge, drawn, judged).arrays)
    real = {need: replace(need, what="features") for need in needs if need.what == "image_features"}
    seen = image_evidence(judge, splits, frozenset(real.values()))
    arrays |= {need: seen.array(of) for need, of in real.items()}
    for need in needs:
        if need.what == "denoising_loss":
            arrays[need] = _losses(model, splits[need.split], sampler.batch_size)
        elif need.what == "pixels":
            arrays[need] = coarse_pixels(splits[need.split])
        elif need.what == "unconditional":
            arrays[need] = _unconditional(model, splits[need.split], sampler.batch_size)
    return Evidence(
        ids={name: data.ids for name, data in splits.items()},
        clusters={name: data.clusters for name, data in splits.items()},
        arrays=arrays,
        labels={name: data.labels.numpy().astype(np.int64) for name, data in splits.items()},
    )


def _losses(model: nn.Module, data: ImageData, batch_size: int) -> NDArray[np.float32]:
    """Mean over timesteps of the squared error per pixel, with the row's label, float32 [rows, 1]."""

    def one(images: Tensor, labels: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        return denoising_errors(model, images, labels, t, noise)[:, None]

    return np.asarray(_at_times(model, data, "loss", LOSS_TIMES, batch_size, one).mean(axis=1, dtype=np.float32, keepdims=True))


def _unconditional(model: nn.Module, data: ImageData, batch_size: int) -> NDArray[np.float32]:
    """The noise predicted without a label at each of the timesteps, float32 [rows, times * pixels]."""

    def one(images: Tensor, labels: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        alpha_bar: Tensor = model.alpha_bar  # type: ignore[assignment]
        out: Tensor = model(noised(images, noise, alpha_bar[t]), t, unlabelled(model, labels))
        return out.flatten(1)

    return _at_times(model, data, "unconditional", DRIFT_TIMES, batch_size, one)


def _at_times(model: nn.Module, data: ImageData, purpose: str, n: int, batch_size: int, one: Any) -> NDArray[np.float32]:
    """What `one` makes of every row at each of n timesteps, side by side, float32 [rows, n * width]."""
    like = next(model.parameters())
    found = []
    with torch.no_grad(), evaluating(model):
        for start in range(0, len(data), batch_size):
            chosen = slice(start, start + batch_size)
            images, labels = data.images[chosen].to(like.device, like.dtype), data.labels[chosen].to(like.device)
            parts = []
            for time in even_times(n, len(model.alpha_bar)):  # type: ignore[arg-type]
                noise = row_noise(data.ids[chosen], f"{purpose}/{time}", images.shape[1:]).to(like.device, like.dtype)
                parts.append(one(images, labels, torch.full_like(labels, time), noise))
            found.append(torch.cat(parts, dim=1).float().cpu().numpy())
    return np.concatenate(found)
