"""Regressions against scikit-learn, and datamodels of a convex model against its exact leave-one-out effects."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Lasso, Ridge
from torch import Tensor

from unlearnbench.attribution import datamodels
from unlearnbench.attribution.calibration import calibrated
from unlearnbench.attribution.leave_one_out import ridge_effects


@pytest.fixture(scope="module")
def case() -> tuple[Tensor, Tensor]:
    """Masks of 120 subsets of 30 rows, and three outputs that depend on a few rows."""
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(120, 30, generator=generator) < 0.5
    weights = torch.zeros(30, 3, dtype=torch.float64)
    weights[:4] = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    return masks, masks.double() @ weights + 2 + 0.2 * torch.randn(120, 3, generator=generator, dtype=torch.float64)


def test_the_lasso_is_scikit_learns(case: tuple[Tensor, Tensor]) -> None:
    masks, outputs = case
    penalties = torch.tensor([0.01, 0.05, 0.2], dtype=torch.float64)
    found = datamodels.lasso(masks, outputs, penalties, tolerance=1e-9)
    for j, penalty in enumerate(penalties.tolist()):
        expected = Lasso(alpha=penalty, tol=1e-12, max_iter=100_000).fit(masks.numpy(), outputs[:, j].numpy())
        np.testing.assert_allclose(found.weights[:, j], expected.coef_, atol=1e-7)
        assert found.bias[j].item() == pytest.approx(expected.intercept_, abs=1e-7)
    assert (found.weights == 0).any()


def test_ridge_is_scikit_learns(case: tuple[Tensor, Tensor]) -> None:
    masks, outputs = case
    found = datamodels.ridge(masks, outputs, torch.tensor([0.5, 5.0, 50.0], dtype=torch.float64))
    for j, penalty in enumerate((0.5, 5.0, 50.0)):
        expected = Ridge(alpha=penalty).fit(masks.numpy(), outputs[:, j].numpy())
        np.testing.assert_allclose(found.weights[:, j], expected.coef_, atol=1e-9)
        assert found.bias[j].item() == pytest.approx(expected.intercept_, abs=1e-9)


def test_at_the_largest_penalty_all_weights_are_zero_and_just_below_not(case: tuple[Tensor, Tensor]) -> None:
    masks, outputs = case
    top = datamodels.largest_penalty(masks, outputs)
    assert not datamodels.lasso(masks, outputs, top).weights.any()
    assert datamodels.lasso(masks, outputs, 0.99 * top).weights.any(0).all()


@pytest.mark.parametrize("regression", ["lasso", "ridge"])
def test_the_chosen_penalty_predicts_held_out_models_best(case: tuple[Tensor, Tensor], regression: datamodels.Regression) -> None:
    masks, outputs = case
    found = datamodels.fit(masks, outputs, regression=regression, steps=8, smallest=0.01)
    solve = getattr(datamodels, regression)
    top = datamodels.largest_penalty(masks[:96], outputs[:96]) if regression == "lasso" else (120 * masks.double().var(0).sum()).expand(3)
    tried = top * torch.logspace(0, 1, 8, base=0.01 if regression == "lasso" else 1e-4, dtype=torch.float64)[:, None]
    errors = [(datamodels.predict(solve(masks[:96], outputs[:96], each), masks[96:]) - outputs[96:]).square().mean(0) for each in tried]
    best = torch.stack(errors).argmin(0)
    torch.testing.assert_close(found.penalty, tried[best, torch.arange(3)], rtol=1e-6, atol=0)
    assert (best > 0).all()


def test_too_few_models_are_refused(case: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(ValueError, match="9 subset models; allowed: 10"):
        datamodels.fit(case[0][:9], case[1][:9], regression="ridge")
    with pytest.raises(ValueError, match=r"penalty is 0\.0; allowed: above 0"):
        datamodels.ridge(*case, 0.0)


@pytest.fixture(scope="module")
def convex() -> tuple[Tensor, Tensor]:
    """Ridge regression on 80 rows: features and outputs."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(80, 6, generator=generator, dtype=torch.float64)
    return x, x[:, :1] + torch.randn(80, 1, generator=generator, dtype=torch.float64)


def fitted(x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
    """Predictions on all rows of the ridge regression on some."""
    own = x[mask]
    return x @ torch.linalg.solve(own.T @ own + torch.eye(6, dtype=x.dtype), own.T @ y[mask])


@pytest.mark.parametrize(("alpha", "low", "high"), [(0.5, 1.75, 2.3), (0.75, 1.2, 1.5)])
def test_datamodels_of_a_convex_model_are_its_leave_one_out_effects_over_alpha(
    convex: tuple[Tensor, Tensor], alpha: float, low: float, high: float
) -> None:
    x, y = convex
    full = torch.ones(80, dtype=torch.bool)
    exact = ridge_effects(x, y - fitted(x, y, full), x, 1.0)[..., 0]
    generator = torch.Generator().manual_seed(2)
    masks = torch.rand(4000, 80, generator=generator) < alpha
    outputs = torch.stack([fitted(x, y, mask)[:, 0] for mask in masks])
    weights = datamodels.ridge(masks, outputs, 1.0).weights
    assert np.corrcoef(weights.flatten(), exact.flatten())[0, 1] > 0.9
    slope = float((weights * exact).sum() / exact.square().sum())
    assert low < slope < high  # 2 and 1.33, and somewhat more: few rows a subset

    removals = torch.ones(6, 80, dtype=torch.bool)
    for mask in removals:
        mask[torch.randperm(80, generator=generator)[:4]] = False
    predicted = (~removals).double() @ weights
    m = calibrated(predicted, torch.stack([fitted(x, y, mask)[:, 0] for mask in removals]))
    assert m == pytest.approx(1 / slope, rel=0.15)


def test_the_factor_is_that_of_a_regression_with_a_constant_for_each_output() -> None:
    generator = torch.Generator().manual_seed(3)
    predicted, noise = torch.randn(2, 5, 4, 3, generator=generator, dtype=torch.float64)
    outputs = torch.randn(4, 3, generator=generator, dtype=torch.float64) - 0.7 * predicted + 0.1 * noise
    columns = [np.repeat(np.eye(12), 5, axis=0), -predicted.flatten(1).T.flatten().numpy()[:, None]]
    expected = np.linalg.lstsq(np.hstack(columns), outputs.flatten(1).T.flatten().numpy(), rcond=None)[0][-1]
    assert calibrated(predicted, outputs) == pytest.approx(expected, rel=1e-9)
    with pytest.raises(ValueError, match="2 removals or more"):
        calibrated(predicted[:1], outputs[:1])
    with pytest.raises(ValueError, match="tell no scale"):
        calibrated(torch.ones(3, 2), outputs[:3, :2, 0])
