"""How the logits of some rows change when the forget rows are removed, as an attribution predicts it and true retrains scale it.

Runs an estimator on what a method may see: the training rows, and models trained without some of them. Knows `MethodView`; the formulas
are in the files beside. What it makes depends on the request alone, so that it is shared by all models of a request (`MethodView.shared`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from unlearnbench.api import MethodView
from unlearnbench.attribution import datamodels, trak
from unlearnbench.attribution.calibration import calibrated
from unlearnbench.mechanisms.matching import logits_of

TOGETHER = 50
"""Subset models that are held in memory at a time."""

Summed = Callable[[Tensor], Tensor]
"""Groups of training rows, float ``[g, n]`` -> effects summed over each group ``[g, m, K]``."""


class Training(NamedTuple):
    """The training rows, forget and retain rows together, in an order that does not depend on the request.

    ids: ``n`` of them; images: ``[n, ...]``; labels: int64 ``[n]``; forget: which are to be forgotten, bool ``[n]``.
    """

    ids: tuple[str, ...]
    images: Tensor
    labels: Tensor
    forget: Tensor


def training_rows(view: MethodView) -> Training:
    """All training rows, sorted by id, seen as in evaluation."""
    forget, retain = view.forget.eval, view.retain.eval
    ids = (*forget.ids, *retain.ids)
    order = torch.tensor(sorted(range(len(ids)), key=ids.__getitem__))
    parts = [part.batch(range(len(part))) for part in (forget, retain)]
    images, labels = (torch.cat([part[name] for part in parts])[order] for name in ("images", "labels"))
    return Training(tuple(ids[i] for i in order.tolist()), images, labels, order < len(forget))


def by_datamodels(
    view: MethodView,
    rows: Training,
    points: Tensor,
    *,
    n_subsets: int,
    alpha: float,
    regression: datamodels.Regression,
    memory: int = 2**28,
) -> Summed:
    """Effects by regression on models trained on random subsets; see `datamodels`.

    Args:
        view: Gives the models.
        rows: The training rows.
        points: Images whose logits are asked about, ``[m, ...]``.
        n_subsets: Number of models.
        alpha: Chance of each row to be in a subset.
        regression: Sparse or dense.
        memory: Bytes that the weights of a chunk of outputs may take.
    """
    masks = torch.rand(n_subsets, len(rows.ids), generator=torch.Generator().manual_seed(0)) < alpha
    outputs = _outputs(view, rows, ~masks, points, "subset models")

    def summed(groups: Tensor) -> Tensor:
        flat = outputs.flatten(1)
        found = [
            groups @ datamodels.fit(masks, part, regression=regression).weights
            for part in torch.split(flat, max(1, memory // (4 * masks.shape[1])), dim=1)
        ]
        return torch.cat(found, dim=1).view(len(groups), *outputs.shape[1:])

    return summed


def by_trak(
    view: MethodView, rows: Training, points: Tensor, *, checkpoints: int, dimension: int, ridge: float, memory: int = 2**28
) -> Summed:
    """Effects on logits by TRAK, averaged over models trained on all rows; see `trak`.

    Args:
        view: Gives the models.
        rows: The training rows.
        points: Images whose logits are asked about, ``[m, ...]``.
        checkpoints: Number of models.
        dimension: Of the projection.
        ridge: See `trak.features`.
        memory: Bytes that gradients may take at a time.
    """
    models = view.subset_models([frozenset()] * checkpoints)

    def summed(groups: Tensor) -> Tensor:
        total: Tensor | float = 0.0
        for number, model in enumerate(models):
            view.progress("TRAK", number, len(models))
            total = total + _trak_summed(model, groups, rows, points, dimension, ridge, number, memory) / len(models)
        return torch.as_tensor(total)

    return summed


def _trak_summed(
    model: nn.Module, groups: Tensor, rows: Training, points: Tensor, dimension: int, ridge: float, seed: int, memory: int
) -> Tensor:
    like = next(model.parameters())
    size = sum(p.numel() for p in model.parameters())
    project = trak.gaussian(size, dimension, seed=seed, device=like.device, memory=memory)
    images, labels = rows.images.to(like.device, like.dtype), rows.labels.to(like.device)
    gradients = trak.projected_gradients(model, _margin, images, labels, project, memory=memory)[:, 0]
    errors = trak.errors(logits_of(model, rows.images), rows.labels).to(gradients)
    weighed = groups.to(gradients) @ (trak.features(gradients, ridge=ridge) * errors[:, None])
    found = []
    for part in torch.split(points.to(like.device, like.dtype), 256):
        none = torch.zeros(len(part), dtype=torch.int64, device=part.device)
        found.append(torch.einsum("gd,mkd->gmk", weighed, trak.projected_gradients(model, _logits, part, none, project, memory=memory)))
    return torch.cat(found, dim=1).cpu().float()


def _margin(logits: Tensor, label: Tensor) -> Tensor:
    return trak.margin(logits, label)[None]


def _logits(logits: Tensor, label: Tensor) -> Tensor:
    return logits


def change(
    view: MethodView, rows: Training, points: Tensor, summed: Summed, *, candidates: Sequence[str], removals: int
) -> tuple[Tensor, Tensor]:
    """The summed effects of the forget rows, and the factor that true retrains give them.

    Args:
        view: Gives the models.
        rows: The training rows.
        points: Images, ``[m, ...]``.
        summed: The estimator.
        candidates: Ids of the rows that the retrains are without: each is without as many as there are to be forgotten, drawn at random,
            but at most half of the candidates.
        removals: Number of retrains; 0 for a factor of 1.

    Returns:
        Effects float32 ``[m, K]``, to be subtracted, and the factor ``[]``.
    """
    groups = rows.forget[None]
    if removals == 0:
        return summed(groups.float())[0], torch.ones(())
    places = {identity: place for place, identity in enumerate(rows.ids)}
    pool = torch.tensor([places[identity] for identity in candidates])
    size = min(int(rows.forget.sum()), len(pool) // 2)
    generator = torch.Generator().manual_seed(1)
    others = torch.zeros(removals, len(rows.ids), dtype=torch.bool)
    for group in others:
        group[pool[torch.randperm(len(pool), generator=generator)[:size]]] = True
    outputs = _outputs(view, rows, others, points, "models without other rows")
    predicted = summed(torch.cat([groups, others]).float())
    return predicted[0], torch.tensor(calibrated(predicted[1:], outputs))


def _outputs(view: MethodView, rows: Training, left_out: Tensor, points: Tensor, label: str) -> Tensor:
    """Logits ``[models, m, K]`` of models trained without rows, bool ``[models, n]``."""

    def parts() -> Iterator[Tensor]:
        for start in range(0, len(left_out), TOGETHER):
            part = left_out[start : start + TOGETHER]
            sets = [frozenset(rows.ids[i] for i in own.nonzero().flatten().tolist()) for own in part]
            yield torch.stack([logits_of(model, points) for model in view.subset_models(sets)])
            view.progress(label, start + len(part), len(left_out))

    return torch.cat(list(parts()))
