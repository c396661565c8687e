"""What each training row adds to the outputs of a convex linear model, exactly for least squares, by one Newton step otherwise.

Knows features, derivatives of losses in the outputs, and a penalty; nothing of networks.
"""

from __future__ import annotations

import torch
from torch import Tensor


def ridge_effects(features: Tensor, residuals: Tensor, targets: Tensor, penalty: float) -> Tensor:
    """Exact leave-one-out effects of ridge regression: output with row i minus output without it.

    The model minimises sum_i |W'x_i - y_i|^2 + penalty |W|^2. With A = X'X + penalty I and leverage h_i = x_i' A^-1 x_i,
    tau[i, x, k] = x' A^-1 x_i r_ik / (1 - h_i) (Cook and Weisberg 1982; also 'PRESS').

    Args:
        features: ``[n, d]``; a bias is a column of ones, and is penalised as any other.
        residuals: y - prediction of the model on all rows, ``[n, K]``.
        targets: Features of the points asked about, ``[m, d]``.
        penalty: 0 or more.

    Returns:
        Float64 ``[n, m, K]``.

    Raises:
        ValueError: A row that the others do not determine (leverage 1).

    >>> x, y = torch.tensor([[1.0], [1.0]]), torch.tensor([[2.0], [4.0]])
    >>> ridge_effects(x, y - 3, x[:1], 0.0).flatten().tolist()  # the mean is 3; without the first row 4, without the second 2
    [-1.0, 1.0]
    """
    x, r, t = features.double(), residuals.double(), targets.double()
    solved = torch.linalg.solve(_gram(x, penalty), x.T)
    free = 1 - (x * solved.T).sum(1)
    _determined(free)
    return torch.einsum("mi,ik->imk", t @ solved, r / free[:, None])


def newton_effects(features: Tensor, gradients: Tensor, hessians: Tensor, targets: Tensor, penalty: float) -> Tensor:
    """Leave-one-out effects of a linear model z = W'x under any convex loss, by one Newton step from the model on all rows.

    The model minimises sum_i l_i(z_i) + penalty/2 |W|^2. With g_i and R_i the derivatives of l_i in its outputs, H the Hessian of the
    whole in W and S_i = (x_i (x) I)' H^-1 (x_i (x) I): tau[i, x] = -(x (x) I)' H^-1 (x_i (x) I) (I - R_i S_i)^-1 g_i. For quadratic
    losses it is exact. (Pregibon 1981; Giordano et al. 2019, arXiv:1806.00550.)

    Args:
        features: ``[n, d]``, a bias as a column of ones.
        gradients: Of each row's loss in its outputs, ``[n, K]``.
        hessians: The second derivatives, ``[n, K, K]``.
        targets: Features of the points asked about, ``[m, d]``.
        penalty: 0 or more; directions that neither data nor penalty determine do not move.

    Returns:
        Float64 ``[n, m, K]``.
    """
    x, g, r, t = features.double(), gradients.double(), hessians.double(), targets.double()
    d, k = x.shape[1], g.shape[1]
    hessian = torch.einsum("ni,nkl,nj->ikjl", x, r, x).reshape(d * k, d * k)
    inverse = torch.linalg.pinv(hessian + penalty * torch.eye(d * k, dtype=x.dtype), hermitian=True).view(d, k, d, k)
    moved = torch.einsum("ikjl,nj->nikl", inverse, x)  # H^-1 (x_i (x) I)
    own = torch.einsum("ni,nikl->nkl", x, moved)
    pulled = torch.linalg.solve(torch.eye(k, dtype=x.dtype) - r @ own, g[..., None])[..., 0]
    return -torch.einsum("mi,nik->nmk", t, torch.einsum("nikl,nl->nik", moved, pulled))


def _gram(x: Tensor, penalty: float) -> Tensor:
    if penalty < 0:
        raise ValueError(f"penalty is {penalty}; allowed: 0 or more")
    return x.T @ x + penalty * torch.eye(x.shape[1], dtype=x.dtype)


def _determined(free: Tensor) -> None:
    if bool((free <= 1e-12).any()):
        raise ValueError(f"row {int(free.argmin())} has leverage 1: without it the model is not determined; use a penalty above 0")
