"""A fixed feature space of pictures that needs no training, and what it says of them: neighbours, directions, memorisation.

Requests are drawn by it, so that they depend on the data and the split seed alone, not on a model. Knows pictures and classes; no data
set and no request.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, conv2d, normalize, one_hot

from unlearnbench.attribution.kernels import classification_errors

N_FILTERS, SIDE, STRIDE = 64, 6, 2
FILTER_SEED = 0
RIDGE = 1e-2
"""Weight of the penalty, as a share of the mean squared length of a picture's features."""
CHUNK = 2_000
N_COMPONENTS = 10
"""Components that requests are drawn from."""


def random_features(images: Tensor) -> Tensor:
    """Features of pictures from one layer of random filters, float64 ``[n, 512]``, centred.

    64 filters of 6x6 pixels with weights of a fixed seed, without mean; what is above 0 and what is below, averaged over a 2x2 grid
    of places. Such features with a linear classifier know most of what small trained nets know (Coates, Lee and Ng 2011).

    Args:
        images: Standardised, ``[n, channels, height, width]``.
    """
    generator = torch.Generator().manual_seed(FILTER_SEED)
    side = min(SIDE, *images.shape[2:])
    filters = torch.randn(N_FILTERS, images.shape[1], side, side, generator=generator)
    filters = normalize((filters - filters.mean(dim=(1, 2, 3), keepdim=True)).flatten(1)).view_as(filters)
    parts = []
    for start in range(0, len(images), CHUNK):
        maps = conv2d(images[start : start + CHUNK], filters, stride=STRIDE)
        parts.append(torch.cat([adaptive_avg_pool2d(half.relu(), 2).flatten(1) for half in (maps, -maps)], dim=1))
    found = torch.cat(parts).to(torch.float64)
    return found - found.mean(0)


def nearest(features: Tensor, anchor: int, rows: list[int], n: int) -> list[int]:
    """The `n` of these rows whose features have the largest cosine with the anchor's, nearest first."""
    alike = (normalize(features[rows]) @ normalize(features[anchor], dim=0)).round(decimals=9)
    return [rows[int(place)] for place in alike.argsort(descending=True, stable=True)[:n]]


def component_scores(features: Tensor, labels: Tensor, fitted: list[int], classes: int) -> Tensor:
    """Each picture's scores on the first principal components of a last-layer kernel, float64 ``[N_COMPONENTS, n]`` at most.

    The kernel (`attribution.kernels.last_layer_kernel`) is that of a linear classifier of the features before its first step, which
    gives all classes equal probabilities. It is never formed: the directions are found in the space of gradients. Of each component
    the largest score of a fitted picture is positive.

    Args:
        features: ``[n, f]``.
        labels: Classes, int64 ``[n]``.
        fitted: Pictures whose kernel the components are of; the others are projected.
        classes: Number of classes.
    """
    errors = classification_errors(torch.zeros(len(features), classes, dtype=torch.float64), labels)
    wide = torch.cat([features, torch.ones(len(features), 1, dtype=torch.float64)], dim=1)
    directions = _components(wide[fitted], errors[fitted])
    scores = torch.stack([((wide @ direction) * errors).sum(1) for direction in directions])
    scores = scores - scores[:, fitted].mean(1, keepdim=True)
    top = scores[:, fitted]
    return scores * top.gather(1, top.abs().argmax(1, keepdim=True)).sign()


def _components(phi: Tensor, e: Tensor) -> Tensor:
    """Principal directions of the gradients (features outer errors), by falling variance, ``[N_COMPONENTS, f, classes]`` at most."""
    from scipy.sparse.linalg import LinearOperator, eigsh

    shape = (phi.shape[1], e.shape[1])
    mean = phi.T @ e / len(phi)

    def times(vector: NDArray[np.float64]) -> NDArray[np.float64]:
        direction = torch.from_numpy(np.ascontiguousarray(vector)).view(shape)
        along = ((phi @ direction) * e).sum(1) - (mean * direction).sum()
        product: NDArray[np.float64] = (phi.T @ (along[:, None] * e) - mean * along.sum()).flatten().numpy()
        return product

    size = shape[0] * shape[1]
    start = np.random.default_rng(0).standard_normal(size)
    values, vectors = eigsh(LinearOperator((size, size), matvec=times, dtype=np.float64), k=min(N_COMPONENTS, size - 1), v0=start, tol=1e-8)
    return torch.from_numpy(np.ascontiguousarray(vectors.T[np.argsort(-values)])).view(-1, *shape)


def memorisation(features: Tensor, labels: Tensor, classes: int) -> Tensor:
    """How far the score of a picture's own class falls when the picture is left out of training, float64 ``[n]``.

    Feldman's memorisation (2020, arXiv:1906.05271) with ridge regression on fixed features as the learner in place of a net's
    training, for which it is exact in closed form: with leverage h and residual r of the full fit it is r h / (1 - h).

    Args:
        features: ``[n, f]``.
        labels: Classes, int64 ``[n]``.
        classes: Number of classes.
    """
    wide = torch.cat([features, torch.ones(len(features), 1, dtype=torch.float64)], dim=1)
    targets = one_hot(labels, classes).to(torch.float64)
    gram = wide.T @ wide
    penalty = RIDGE * float(wide.square().sum(1).mean())
    solved = torch.linalg.solve(gram + penalty * torch.eye(len(gram), dtype=torch.float64), wide.T)
    leverage = (wide.T * solved).sum(0)
    residual = (targets - wide @ (solved @ targets))[torch.arange(len(labels)), labels]
    fall: Tensor = residual * leverage / (1 - leverage)
    return fall
