"""Influence unlearning: the step is the damped inverse Fisher matrix's, worked out densely in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from trained_vision import VIEW, knowing

from unlearnbench.api import Data
from unlearnbench.layers import model_hash
from unlearnbench.methods.influence_unlearning import InfluenceUnlearning


def row_gradients(model: nn.Module, rows: Data) -> np.ndarray:
    found = []
    for row in range(len(rows)):
        model.zero_grad()
        VIEW.loss(model, rows.batch([row])).sum().backward()
        found.append(torch.cat([weight.grad.flatten() for weight in model.parameters()]).numpy())  # type: ignore[union-attr]
    return np.stack(found)


def flat(model: nn.Module) -> np.ndarray:
    return torch.cat([weight.detach().flatten() for weight in model.parameters()]).numpy()


@pytest.mark.parametrize(("alpha", "damping"), [(5.0, 1.0), (1.0, 1e-3)])
def test_the_step_by_dense_algebra(alpha: float, damping: float) -> None:
    model = knowing()
    forget, retain = row_gradients(model, VIEW.forget.train), row_gradients(model, VIEW.retain.train)
    direction = 10 / 30 * (forget.mean(0) - retain.mean(0))
    matrix = damping * np.eye(forget.shape[1]) + retain.T @ retain / 20
    found = InfluenceUnlearning(alpha=alpha, damping=damping).unlearn(knowing(), VIEW, seed=0)
    step = flat(found) - flat(model)
    np.testing.assert_allclose(step, alpha * np.linalg.solve(matrix, direction), rtol=1e-6, atol=1e-6 * np.abs(step).max())
    assert np.abs(step).max() > 1e-5


def test_fewer_rows_make_the_matrix_and_the_seed_draws_them() -> None:
    def step(rows: int, seed: int) -> np.ndarray:
        return flat(InfluenceUnlearning(rows=rows, damping=1e-9).unlearn(knowing(), VIEW, seed=seed)) - flat(knowing())

    few, others, every = step(5, 0), step(5, 1), step(1000, 0)
    assert np.abs(few - others).max() > 0.01 * np.abs(few).max()
    assert np.abs(few - every).max() > 0.01 * np.abs(few).max()
    np.testing.assert_allclose(every, step(20, 1), atol=1e-6 * np.abs(every).max())


def test_the_forget_loss_rises_and_no_step_is_no_change() -> None:
    rows = VIEW.forget.eval.batch(range(10))
    model = InfluenceUnlearning(alpha=1.0, damping=1e-2).unlearn(knowing(), VIEW, seed=0)
    with torch.no_grad():
        assert VIEW.loss(model, rows).mean() > VIEW.loss(knowing(), rows).mean()
    assert model_hash(InfluenceUnlearning(alpha=0.0).unlearn(knowing(), VIEW, seed=0)) == model_hash(knowing())
