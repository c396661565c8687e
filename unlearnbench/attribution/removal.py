"""How the logits of some rows change when the forget rows are removed, as an attribution predicts it and true retrains scale it.

Runs an estimator on what a method may see: the training rows, and models trained without some of them. Knows `MethodView`; the formulas
are in the files beside. What it makes depends on the request alone, so that it is shared by all models of a request (`MethodView.shared`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from unlearnbench.api import MethodView, UserError
from unlearnbench.attribution import datamodels, trak
from unlearnbench.attribution.calibration import calibrated
from unlearnbench.attribution.leave_one_out import newton_effects
from unlearnbench.layers import evaluating, last_linear, penultimate
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
    subsets: Literal["independent", "neighbourhoods"],
    regression: datamodels.Regression,
    memory: int = 2**28,
) -> Summed:
    """Effects by regression on models trained on random subsets; see `datamodels`.

    Args:
        view: Gives the models.
        rows: The training rows.
        points: Images whose logits are asked about, ``[m, ...]``.
        n_subsets: Number of models.
        alpha: Share of the rows in a subset.
        subsets: Whether rows are left out independently of one another, or whole neighbourhoods of 1 to 2 |F| rows at a time, in the
            penultimate features of a model trained on all rows.
        regression: Sparse or dense.
        memory: Bytes that the weights of a chunk of outputs may take.
    """
    generator = torch.Generator().manual_seed(0)
    if subsets == "independent":
        masks = torch.rand(n_subsets, len(rows.ids), generator=generator) < alpha
    else:
        features = features_of(view.subset_models([frozenset()])[0], rows.images)
        masks = without_neighbourhoods(features, n_subsets, alpha, largest=2 * int(rows.forget.sum()), generator=generator)
    outputs = _outputs(view, rows, ~masks, points, "subset models")

    def summed(groups: Tensor) -> Tensor:
        flat = outputs.flatten(1)
        found = [
            groups.to(flat) @ datamodels.fit(masks, part, regression=regression).weights
            for part in torch.split(flat, max(1, memory // (4 * masks.shape[1])), dim=1)
        ]
        return torch.cat(found, dim=1).view(len(groups), *outputs.shape[1:])

    return summed


def without_neighbourhoods(features: Tensor, count: int, alpha: float, *, largest: int, generator: torch.Generator) -> Tensor:
    """Masks bool ``[count, n]`` of subsets that lack neighbourhoods: a random row and its nearest ones, until a share alpha is left.

    Args:
        features: ``[n, d]``; nearness is the cosine.
        count: Number of masks.
        alpha: Share of the rows in each.
        largest: Most rows of a neighbourhood; their number is drawn from 1 on.
        generator: Draws rows and sizes.
    """
    unit = normalize(features.float(), dim=1)
    near = (unit @ unit.T).argsort(dim=1, descending=True)
    n = len(features)
    masks = torch.ones(count, n, dtype=torch.bool)
    for mask in masks:
        while (missing := int(mask.sum()) - round(alpha * n)) > 0:
            centre, size = (int(torch.randint(high, (1,), generator=generator)) for high in (n, min(largest, n)))
            still = near[centre, : size + 1]
            mask[still[mask[still]][:missing]] = False
    return masks


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
    size = sum(p.numel() for p in model.parameters() if p.requires_grad)
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


def by_leave_one_out(view: MethodView, model: nn.Module, rows: Training, points: Tensor) -> Summed:
    """Effects on a linear model, by a Newton step without each row: exact where its loss is quadratic; see `leave_one_out`.

    The penalty is the recipe's weight decay times the number of rows: that of a loss which is a mean over rows, with half the decay
    times the squared norm, and it stays when rows are left out.

    Args:
        view: Gives the loss and the recipe.
        model: What the effects are of, at its optimum.
        rows: The training rows.
        points: Images whose logits are asked about, ``[m, ...]``.

    Raises:
        UserError: the model is not linear.
    """
    if not is_linear(model):
        raise UserError(f"attribution is leave_one_out, but {type(model).__name__} is no linear model; allowed: datamodels, trak")
    bias = last_linear(model).bias is not None
    x, t = (_with_ones(features_of(model, images)) if bias else features_of(model, images) for images in (rows.images, points))
    logits = logits_of(model, rows.images).double().requires_grad_()
    losses = view.loss(_Given(logits), {"images": rows.images, "labels": rows.labels})
    (gradients,) = torch.autograd.grad(losses.sum(), logits, create_graph=True)
    columns = [torch.autograd.grad(column.sum(), logits, retain_graph=True)[0] for column in gradients.unbind(1)]
    hessians, found = torch.stack(columns, dim=1), gradients.detach()

    def summed(groups: Tensor) -> Tensor:
        effects = newton_effects(x, found, hessians, t, view.recipe.weight_decay * len(rows.ids))
        return torch.einsum("gn,nmk->gmk", groups.to(effects), effects)

    return summed


def is_linear(model: nn.Module) -> bool:
    """Whether all parameters are one linear layer's, on fixed features."""
    with_parameters = [module for module in model.modules() if list(module.parameters(recurse=False))]
    return [type(module) for module in with_parameters] == [nn.Linear] and not list(model.buffers())


@torch.no_grad()
def features_of(model: nn.Module, images: Tensor, *, batch_size: int = 512) -> Tensor:
    """What enters the last layer, in eval mode ``[n, d]``, on the CPU."""
    like = next(model.parameters())
    found = []
    with evaluating(model), penultimate(model) as seen:
        for part in torch.split(images, batch_size):
            model(part.to(like.device, like.dtype))
            found.append(seen[0].cpu())
    return torch.cat(found)


def _with_ones(features: Tensor) -> Tensor:
    return torch.cat([features, features.new_ones(len(features), 1)], dim=1)


class _Given(nn.Module):
    """A model whose logits are known."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, images: Tensor) -> Tensor:
        return self.logits


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
        return summed(groups.float())[0].float(), torch.ones(())
    places = {identity: place for place, identity in enumerate(rows.ids)}
    pool = torch.tensor([places[identity] for identity in candidates])
    size = min(int(rows.forget.sum()), len(pool) // 2)
    generator = torch.Generator().manual_seed(1)
    others = torch.zeros(removals, len(rows.ids), dtype=torch.bool)
    for group in others:
        group[pool[torch.randperm(len(pool), generator=generator)[:size]]] = True
    outputs = _outputs(view, rows, others, points, "models without other rows")
    predicted = summed(torch.cat([groups, others]).float())
    return predicted[0].float(), torch.tensor(calibrated(predicted[1:], outputs))


def _outputs(view: MethodView, rows: Training, left_out: Tensor, points: Tensor, label: str) -> Tensor:
    """Logits ``[models, m, K]`` of models trained without rows, bool ``[models, n]``."""

    def parts() -> Iterator[Tensor]:
        for start in range(0, len(left_out), TOGETHER):
            part = left_out[start : start + TOGETHER]
            sets = [frozenset(rows.ids[i] for i in own.nonzero().flatten().tolist()) for own in part]
            yield torch.stack([logits_of(model, points) for model in view.subset_models(sets)])
            view.progress(label, start + len(part), len(left_out))

    return torch.cat(list(parts()))
