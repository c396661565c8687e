"""Leave-one-out effects against models that were really fitted without the row."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from torch import Tensor

from unlearnbench.attribution.leave_one_out import newton_effects, ridge_effects


@pytest.fixture
def case() -> tuple[Tensor, Tensor, Tensor]:
    """Features of 30 rows, their two outputs, and features of 4 points."""
    generator = torch.Generator().manual_seed(0)
    x, t = (torch.randn(n, 5, generator=generator, dtype=torch.float64) for n in (30, 4))
    y = x[:, :2] + 0.3 * torch.randn(30, 2, generator=generator, dtype=torch.float64)
    return x, y, t


def refitted(x: Tensor, y: Tensor, t: Tensor, penalty: float) -> Tensor:
    """Predictions with all rows minus predictions without row i."""

    def predicted(keep: np.ndarray) -> np.ndarray:
        return Ridge(alpha=penalty, fit_intercept=False).fit(x.numpy()[keep], y.numpy()[keep]).predict(t.numpy())

    full = predicted(np.ones(len(x), dtype=bool))
    return torch.from_numpy(np.stack([full - predicted(np.arange(len(x)) != i) for i in range(len(x))]))


@pytest.mark.parametrize("penalty", [0.5, 8.0])
def test_ridge_effects_are_those_of_refits(case: tuple[Tensor, Tensor, Tensor], penalty: float) -> None:
    x, y, t = case
    weights = torch.from_numpy(Ridge(alpha=penalty, fit_intercept=False).fit(x.numpy(), y.numpy()).coef_.T)
    expected = refitted(x, y, t, penalty)
    torch.testing.assert_close(ridge_effects(x, y - x @ weights, t, penalty), expected, atol=1e-9, rtol=1e-7)
    # |y - z|^2 has the gradient 2 (z - y) and the Hessian 2 I, and the penalty counts with a half.
    gradients = 2 * (x @ weights - y)
    hessians = (2 * torch.eye(2, dtype=torch.float64)).expand(30, 2, 2)
    torch.testing.assert_close(newton_effects(x, gradients, hessians, t, 2 * penalty), expected, atol=1e-9, rtol=1e-7)


def test_a_newton_step_is_close_for_logistic_regression(case: tuple[Tensor, Tensor, Tensor]) -> None:
    x, y, t = case
    labels = (y[:, 0] > 0).numpy()

    def fitted(keep: np.ndarray) -> Tensor:
        found = LogisticRegression(C=0.5, fit_intercept=False, tol=1e-10).fit(x.numpy()[keep], labels[keep])
        return torch.from_numpy(found.coef_.T)

    weights = fitted(np.ones(30, dtype=bool))
    expected = torch.stack([t @ (weights - fitted(np.arange(30) != i)) for i in range(30)])
    p = torch.sigmoid(x @ weights)
    found = newton_effects(x, p - torch.from_numpy(labels).double()[:, None], (p * (1 - p))[..., None], t, 2.0)
    assert float((found - expected).norm() / expected.norm()) < 0.1
    first_order = torch.einsum("nk,nm->nmk", -(p - torch.from_numpy(labels).double()[:, None]), x @ t.T)
    assert float((first_order - expected).norm() / expected.norm()) > 1


def test_what_cannot_be_is_refused(case: tuple[Tensor, Tensor, Tensor]) -> None:
    x, y, t = case
    with pytest.raises(ValueError, match="penalty is -1"):
        ridge_effects(x, y, t, -1.0)
    alone = torch.cat([x, torch.zeros(30, 1, dtype=torch.float64)], dim=1)
    alone[7, 5] = 1.0  # only row 7 has this feature
    with pytest.raises(ValueError, match="row 7 has leverage 1"):
        ridge_effects(alone, y, alone[:2], 0.0)
