"""Datamodels: a linear regression of models' outputs on which rows they were trained on.

Andrew Ilyas, Sung Min Park, Logan Engstrom, Guillaume Leclerc, Aleksander Madry. "Datamodels: Predicting Predictions from Training
Data". ICML 2022, arXiv:2202.00622. Models are trained on random subsets; for each output a sparse (lasso) or a dense (ridge) linear
model with a bias maps the subset's mask to the output; the penalty is chosen for each output on models that were held out.

Fitted on subsets of share alpha, weights overstate what a row adds to the full set (by about 1/alpha for a convex model), and a penalty
shrinks them: see `calibration`. Knows masks and outputs, nothing of models. Different from the published code: all outputs are solved
together by accelerated proximal gradient steps on the Gram matrix, not one by one with SAGA; outputs are never in float16.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

Regression = Literal["lasso", "ridge"]


CLOSE = 5e-3
"""Violation of the lasso's optimality conditions in `fit`, relative to its largest penalty: a sixth of the smallest one tried."""


class Datamodel(NamedTuple):
    """Fitted weights.

    weights: what a row's presence adds to each output, ``[n, T]``; bias: ``[T]``; penalty: of each output, ``[T]``.
    """

    weights: Tensor
    bias: Tensor
    penalty: Tensor


def lasso(masks: Tensor, outputs: Tensor, penalty: Tensor | float, *, start: Tensor | None = None, tolerance: float = 1e-6) -> Datamodel:
    """Minimise |y - M w - b|^2 / (2N) + penalty |w|_1 for every output at once (FISTA with restarts, Beck and Teboulle 2009).

    Args:
        masks: Rows of each training, bool or float ``[N, n]``.
        outputs: Of each model, ``[N, T]``, in the precision of the computation.
        penalty: One for all outputs, or ``[T]``.
        start: Weights to start from, ``[n, T]``.
        tolerance: Largest violation of the optimality conditions, relative to the largest correlation.

    Raises:
        ArithmeticError: no convergence in 20,000 steps.
    """
    m, y = _centred(masks.to(outputs.dtype)), _centred(outputs)
    lam = torch.as_tensor(penalty, dtype=y.dtype, device=y.device).expand(y.shape[1])
    gram, cross = m.T @ m / len(m), m.T @ y / len(m)
    step = (1 / torch.linalg.eigvalsh(gram.double())[-1].clamp(min=1e-30)).to(y.dtype)
    found = torch.zeros_like(cross) if start is None else start.clone()
    bound = tolerance * cross.abs().amax(0).clamp(min=torch.finfo(y.dtype).tiny)
    left = torch.arange(y.shape[1], device=y.device)
    w, ahead, momentum = found.clone(), found, y.new_ones(y.shape[1])
    for count in range(20_000):
        if count % 10 == 0:
            # Outputs that are done take no further part.
            open_ = _violation(gram @ w - cross[:, left], w, lam[left]) > bound[left]
            found[:, left] = w
            if not bool(open_.any()):
                return _with_bias(found, masks, outputs, lam)
            left, w, ahead, momentum = left[open_], w[:, open_], ahead[:, open_], momentum[open_]
            target, threshold = cross[:, left], step * lam[left]
        moved = ahead - step * (gram @ ahead - target)
        new = moved - moved.clamp(-threshold, threshold)
        change = new - w
        momentum = torch.where(((ahead - new) * change).sum(0) > 0, torch.ones_like(momentum), momentum)  # uphill: start afresh
        following = (1 + (1 + 4 * momentum**2).sqrt()) / 2
        ahead = new + (momentum - 1) / following * change
        w, momentum = new, following
    raise ArithmeticError("the lasso did not converge in 20000 steps; allowed: a larger tolerance, or float64 outputs")


def ridge(masks: Tensor, outputs: Tensor, penalty: Tensor | float) -> Datamodel:
    """Minimise |y - M w - b|^2 + penalty |w|^2 for every output; arguments as for `lasso`, each penalty above 0."""
    m, y = _centred(masks.to(outputs.dtype)), _centred(outputs)
    lam = torch.as_tensor(penalty, dtype=y.dtype, device=y.device).expand(y.shape[1])
    if not bool((lam > 0).all()):
        raise ValueError(f"penalty is {float(lam.min())}; allowed: above 0")
    few = len(m) <= m.shape[1]  # the smaller of the two Gram matrices
    values, vectors = torch.linalg.eigh(m @ m.T if few else m.T @ m)
    solved = vectors @ ((vectors.T @ (y if few else m.T @ y)) / (values.clamp(min=0)[:, None] + lam))
    return _with_bias(m.T @ solved if few else solved, masks, outputs, lam)


def largest_penalty(masks: Tensor, outputs: Tensor) -> Tensor:
    """The lasso's penalty of each output at and above which all weights are 0: max |M_c' y_c| / N, ``[T]``."""
    return (_centred(masks.to(outputs.dtype)).T @ _centred(outputs)).abs().amax(0) / len(masks)


def fit(
    masks: Tensor, outputs: Tensor, *, regression: Regression, held_out: float = 0.2, steps: int = 6, smallest: float = 0.03
) -> Datamodel:
    """Fit with a penalty chosen for each output: the one that predicts held-out models best; then on all models.

    Args:
        masks: ``[N, n]``.
        outputs: ``[N, T]``.
        regression: The penalties tried are `steps` values in equal ratios; for the lasso from `largest_penalty` down to `smallest`
            times it; for ridge from N n alpha(1 - alpha) (a weight's penalty as heavy as all its data n times over) down to `smallest`
            squared times it.
        held_out: Share of the models, the last ones, on which the penalty is chosen.
        steps: See `regression`.
        smallest: See `regression`.

    Raises:
        ValueError: fewer than ten models.
    """
    if len(masks) < 10:
        raise ValueError(f"{len(masks)} subset models; allowed: 10 or more")
    kept = len(masks) - max(2, round(held_out * len(masks)))
    part, own, rest = masks[:kept], outputs[:kept], slice(kept, None)
    if regression == "lasso":
        penalties = largest_penalty(part, own) * torch.logspace(0, 1, steps, base=smallest, dtype=outputs.dtype)[:, None]
        errors, start = [], None
        for penalty in penalties:
            found = lasso(part, own, penalty, start=start, tolerance=CLOSE)
            start = found.weights
            errors.append((predict(found, masks[rest]) - outputs[rest]).square().mean(0))
        return lasso(masks, outputs, _chosen(penalties, errors), start=start, tolerance=CLOSE)
    top = len(masks) * masks.to(outputs.dtype).var(0).sum()
    penalties = (top * torch.logspace(0, 1, steps, base=smallest**2, dtype=outputs.dtype))[:, None].expand(steps, outputs.shape[1])
    # Predictions for held-out models without ever forming weights: K(held out, kept) (K(kept) + penalty)^-1 y.
    m, other, y = _centred(part.to(outputs.dtype)), masks[rest].to(outputs.dtype) - part.to(outputs.dtype).mean(0), _centred(own)
    values, vectors = torch.linalg.eigh(m @ m.T)
    across, along, mean = other @ m.T @ vectors, vectors.T @ y, own.mean(0)
    errors = [(across @ (along / (values.clamp(min=0)[:, None] + p)) + mean - outputs[rest]).square().mean(0) for p in penalties]
    return ridge(masks, outputs, _chosen(penalties, errors))


def predict(datamodel: Datamodel, masks: Tensor) -> Tensor:
    """The outputs of models trained on these rows, as the datamodel has it, ``[N, T]``."""
    return masks.to(datamodel.weights.dtype) @ datamodel.weights + datamodel.bias


def _chosen(penalties: Tensor, errors: list[Tensor]) -> Tensor:
    """Of each output's penalties ``[steps, T]`` the one with the smallest error; the larger one where two are equal."""
    return penalties.gather(0, torch.stack(errors).argmin(0)[None])[0]


def _centred(x: Tensor) -> Tensor:
    return x - x.mean(0)


def _violation(gradient: Tensor, w: Tensor, lam: Tensor) -> Tensor:
    """How far each output is from the lasso's optimality conditions, ``[T]``."""
    active = (gradient + lam * w.sign()).abs()
    return torch.where(w == 0, (gradient.abs() - lam).clamp(min=0), active).amax(0)


def _with_bias(w: Tensor, masks: Tensor, outputs: Tensor, lam: Tensor) -> Datamodel:
    return Datamodel(w, outputs.mean(0) - masks.to(w.dtype).mean(0) @ w, lam)
