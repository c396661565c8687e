"""Dominant components of representations: losses and gradients that keep off them, and how much of a change lies in them.

Pure functions of vectors, one a row: activations or gradients at tokens. Knows no model and no data. Unlearning mostly moves
representations along the few directions that hold most of their variance, and relearning reverses those first (Xiao et al. 2026,
arXiv:2605.11685). So a loss is taken of what is left without them (`subspace.project_off`) and has no gradient along them; likewise a
weight's gradient is put together without the components common to all tokens (Sondej and Yang 2025, arXiv:2509.11816).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.linalg import vector_norm

from unlearnbench.mechanisms.subspace import Moments, principal_directions, project_off

# ----------------------------------------------------------------------------------------------------------------- components


def components(vectors: Tensor, n: int) -> Tensor:
    """The mean of the vectors and their n - 1 principal directions about it, by falling variance.

    Args:
        vectors: [N, d], at least one.
        n: number of components, 0 to min(N, d).

    Returns:
        [n, d] in the vectors' type, computed in float64: first the mean as it is, then directions of length 1, each up to its sign;
        fewer where the vectors' variance lies in fewer directions.

    Raises:
        ValueError: n is out of range.

    >>> components(torch.tensor([[3.0, 1.0], [-1.0, 1.0], [1.0, 1.0]]), 2)
    tensor([[1., 1.],
            [1., 0.]])
    """
    most = min(vectors.shape)
    if not 0 <= n <= most:
        raise ValueError(f"{n} components of {len(vectors)} vectors of width {vectors.shape[1]} are asked; allowed: 0 to {most}")
    moments = Moments()
    moments.add(vectors)
    found = [moments.mean()[None]] if n > 0 else [moments.mean().new_empty(0, vectors.shape[1])]
    if n > 1:
        found.append(principal_directions(moments.covariance(), n - 1))
    return torch.cat(found).to(vectors.dtype)


# --------------------------------------------------------------------------------------------------------------------- losses


def mlp_breaking(current: Tensor, original: Tensor) -> Tensor:
    """How much of an MLP's original output is still there: mean over tokens of max(0, <o, o0>) / (mean of |o0|)^2.

    1 or more at the original; 0 as soon as each output is orthogonal or opposed to what it was. Source: the loss `mlp_confuse` of
    arXiv:2605.11685's code, with a floor of 0.

    Args:
        current: the outputs o [N, d].
        original: those before unlearning o0 [N, d], constant.

    >>> mlp_breaking(torch.tensor([[2.0, 0.0], [0.0, -1.0]]), torch.tensor([[2.0, 0.0], [0.0, 2.0]]))
    tensor(0.5000)
    """
    kept = (current * original).sum(-1).clamp(min=0)
    scale: Tensor = vector_norm(original, dim=-1).mean()
    return kept.mean() / scale.square()


def rmu(current: Tensor, target: Tensor) -> Tensor:
    """Mean over tokens, all of them alike, and units of (h - target)^2.

    The forget loss with a control vector as target, the retain loss with the original's representations (Li et al. 2024,
    arXiv:2403.03218).

    Args:
        current: representations h [N, d].
        target: [d] or [N, d].

    >>> rmu(torch.tensor([[1.0, 2.0]]), torch.tensor([1.0, 0.0]))
    tensor(2.)
    """
    return (current - target).square().mean()


def cb_retain(current: Tensor, original: Tensor) -> Tensor:
    """How far representations have moved: mean over tokens of |h - h0|, over the mean of |h0|.

    Source: the retain loss of that name of arXiv:2605.11685's code, after circuit breakers (Zou et al. 2024, arXiv:2406.04313).

    Args:
        current: h [N, d].
        original: h0 [N, d], constant.

    >>> cb_retain(torch.tensor([[3.0, 4.0], [0.0, 2.0]]), torch.tensor([[0.0, 0.0], [0.0, 2.0]]))
    tensor(2.5000)
    """
    moved: Tensor = vector_norm(current - original, dim=-1).mean() / vector_norm(original, dim=-1).mean()
    return moved


# ------------------------------------------------------------------------------------------------------------------ gradients


def collapsed_gradient(inputs: Tensor, gradients: Tensor, input_basis: Tensor, gradient_basis: Tensor) -> Tensor:
    """A linear layer's weight gradient without the components common to its tokens (arXiv:2509.11816): G'A, both cleaned first.

    Args:
        inputs: what came in at each token, A [N, in].
        gradients: the loss's gradient by what went out, G [N, out].
        input_basis: orthonormal, what is removed from the inputs [r, in].
        gradient_basis: orthonormal, what is removed from the gradients [s, out].

    Returns:
        [out, in]. It maps each removed input direction to 0 and never writes along a removed gradient direction; without anything
        removed it is the plain gradient of these tokens.
    """
    return project_off(gradients, gradient_basis).mT @ project_off(inputs, input_basis)


def scaled(gradients: Sequence[Tensor], length: float) -> list[Tensor]:
    """Gradients of several weights, scaled together to this length; all zeros stay zeros.

    >>> scaled([torch.tensor([3.0]), torch.tensor([4.0])], 1.0)
    [tensor([0.6000]), tensor([0.8000])]
    """
    norm = global_norm(gradients)
    return [gradient * (length / norm) for gradient in gradients] if norm > 0 else list(gradients)


def global_norm(gradients: Sequence[Tensor]) -> float:
    """Euclidean length of several gradients taken as one vector; summed in float64.

    >>> global_norm([torch.tensor([3.0]), torch.tensor([4.0])])
    5.0
    """
    return float(torch.stack([gradient.double().square().sum() for gradient in gradients]).sum().sqrt())


# ---------------------------------------------------------------------------------------------------------------- diagnostics


def change_ratio(original: Tensor, unlearned: Tensor, directions: Tensor) -> Tensor:
    """Share of the change by unlearning that lies along each direction: mean of |<hu - ho, v_k>|, over its sum over all k.

    Source: eq. 5 of arXiv:2605.11685 as a reproduction of it states it.

    Args:
        original: representations before unlearning [N, d].
        unlearned: the same tokens' after it [N, d].
        directions: [k, d], of length 1.

    Returns:
        [k], sums to 1; NaN where nothing changed along any of them.

    >>> change_ratio(torch.zeros(1, 2), torch.tensor([[3.0, -1.0]]), torch.eye(2))
    tensor([0.7500, 0.2500])
    """
    moved = ((unlearned - original) @ directions.mT).abs().mean(0)
    return moved / moved.sum()


def recovery_ratio(original: Tensor, unlearned: Tensor, relearned: Tensor, directions: Tensor) -> Tensor:
    """How far relearning takes the mean change by unlearning back: <mean(hu - hr), v_k> / <mean(hu - ho), v_k>.

    Source: eq. 6 of arXiv:2605.11685 as a reproduction of it states it.

    Args:
        original: representations before unlearning [N, d].
        unlearned: after it [N, d].
        relearned: after the attack [N, d].
        directions: [k, d].

    Returns:
        [k]: 0 where nothing is taken back, 1 where all is; not finite along a direction whose mean did not change.

    >>> recovery_ratio(torch.zeros(1, 2), torch.tensor([[4.0, 2.0]]), torch.tensor([[1.0, 2.0]]), torch.eye(2))
    tensor([0.7500, 0.0000])
    """
    back, there = (unlearned - relearned).mean(0), (unlearned - original).mean(0)
    return (directions @ back) / (directions @ there)
