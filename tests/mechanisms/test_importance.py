"""Gradients, Fisher information and what is made of them, against closed forms of a linear classifier, numpy and exact retraining."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from trained_vision import VIEW, knowing, mean_loss

from unlearnbench.api import Batch
from unlearnbench.layers import model_hash
from unlearnbench.mechanisms.importance import (
    dampened,
    fisher_diagonal,
    fisher_variance,
    gradients,
    influence_direction,
    inverse_fisher_product,
    mean_gradient,
    squared_gradient,
    summed,
)

ROWS, WIDTH, CLASSES = 12, 5, 3


@pytest.fixture
def linear() -> tuple[nn.Linear, Tensor, Tensor]:
    """A softmax regression with its rows [n, WIDTH] and labels."""
    generator = torch.Generator().manual_seed(0)
    net = nn.Linear(WIDTH, CLASSES).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return net, torch.randn(ROWS, WIDTH, generator=generator, dtype=torch.float64), torch.arange(ROWS) % CLASSES


def batched(images: Tensor, labels: Tensor, size: int) -> list[Batch]:
    return [{"images": images[rows], "labels": labels[rows]} for rows in torch.arange(len(images)).split(size)]


def by_hand(net: nn.Linear, images: Tensor, labels: Tensor) -> np.ndarray:
    """Gradients of the loss of each row to weights and bias [n, CLASSES, WIDTH + 1]: (p - onehot) x'."""
    inputs = np.concatenate([images.numpy(), np.ones((len(images), 1))], 1)
    error = net(images).softmax(1).detach().numpy() - np.eye(CLASSES)[labels.numpy()]
    return error[:, :, None] * inputs[:, None, :]


def joined(found: dict[str, Tensor]) -> np.ndarray:
    return np.concatenate([found["weight"].numpy(), found["bias"].numpy()[:, None]], 1)


def test_gradients_of_single_rows_and_their_mean_over_uneven_batches(linear: tuple[nn.Linear, Tensor, Tensor]) -> None:
    net, images, labels = linear
    rows = by_hand(net, images, labels)
    singles = list(gradients(net, mean_loss, batched(images, labels, 1)))
    np.testing.assert_allclose(np.stack([joined(found) for found in singles]), rows, atol=1e-12)
    np.testing.assert_allclose(joined(summed(singles)), rows.sum(0), atol=1e-12)
    mean = mean_gradient(net, VIEW.loss, batched(images, labels, 5))
    np.testing.assert_allclose(joined(mean), rows.mean(0), atol=1e-12)


@pytest.mark.parametrize("size", [1, 4])
def test_squared_gradients_are_of_batch_means(linear: tuple[nn.Linear, Tensor, Tensor], size: int) -> None:
    net, images, labels = linear
    means = by_hand(net, images, labels).reshape(ROWS // size, size, CLASSES, WIDTH + 1).mean(1)
    ours = squared_gradient(net, mean_loss, batched(images, labels, size))
    np.testing.assert_allclose(joined(ours), (means**2).mean(0), atol=1e-12)


def test_the_fisher_diagonal_of_a_linear_classifier(linear: tuple[nn.Linear, Tensor, Tensor]) -> None:
    """By hand: the mean over rows of p_k (1 - p_k) x_j^2; the true labels play no part."""
    net, images, labels = linear
    probability = net(images).softmax(1).detach().numpy()
    inputs = np.concatenate([images.numpy(), np.ones((ROWS, 1))], 1)
    expected = np.einsum("nk,nj->kj", probability * (1 - probability), inputs**2) / ROWS
    np.testing.assert_allclose(joined(fisher_diagonal(net, batched(images, labels, 1))), expected, atol=1e-12)
    # Batches average p and log p first.
    coarse = joined(fisher_diagonal(net, batched(images, labels, 4)))
    error = np.eye(CLASSES)[None] - probability[:, None, :]  # d log p_c / d z_k
    slopes = np.einsum("nck,nj->nckj", error, inputs).reshape(ROWS // 4, 4, CLASSES, CLASSES, WIDTH + 1).mean(1)
    weights = probability.reshape(ROWS // 4, 4, CLASSES).mean(1)
    np.testing.assert_allclose(coarse, np.einsum("bc,bckj->kj", weights, slopes**2) / (ROWS // 4), atol=1e-12)


def test_the_model_is_looked_at_in_eval_mode_and_left_as_it_was() -> None:
    model = knowing()
    rows = [VIEW.retain.train.batch(range(20))]
    expected = mean_gradient(model, VIEW.loss, rows)
    model.train()
    next(model.parameters()).grad = marked = torch.ones_like(next(model.parameters()))
    before = model_hash(model)
    with torch.no_grad():
        found = mean_gradient(model, VIEW.loss, rows)
        squared_gradient(model, mean_loss, rows)
        fisher_diagonal(model, rows)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert model_hash(model) == before
    assert all(module.training for module in model.modules())
    assert next(model.parameters()).grad is marked
    assert all(parameter.grad is None for parameter in list(model.parameters())[1:])


def test_held_weights_are_left_out_and_unused_ones_are_0() -> None:
    model = nn.ModuleDict({"used": nn.Linear(2, 2), "held": nn.Linear(2, 2), "unused": nn.Linear(2, 2)})
    model["held"].requires_grad_(False)

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        return model["held"](model["used"](batch)).square().sum()  # type: ignore[index, no-any-return]

    (found,) = gradients(model, loss, [torch.ones(3, 2)])
    assert set(found) == {"used.weight", "used.bias", "unused.weight", "unused.bias"}
    assert found["used.weight"].any()
    assert not found["unused.weight"].any()


def test_weights_that_play_no_part_hold_no_information() -> None:
    net = nn.Sequential(nn.Linear(2, 3))
    net[0].register_parameter("unused", nn.Parameter(torch.ones(2)))
    information = fisher_diagonal(net, [{"images": torch.ones(3, 2)}])
    assert information["0.weight"].all()
    assert not information["0.unused"].any()


def test_no_batch_has_no_gradient() -> None:
    with pytest.raises(ValueError, match="no batch to take gradients of"):
        squared_gradient(knowing(), mean_loss, [])


# ---------------------------------------------------------------------------------------------------------------- dampening

SIZES = st.floats(0, 10, allow_subnormal=False)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.floats(-5, 5), SIZES, SIZES), min_size=1, max_size=8), st.floats(0, 20), st.floats(0, 5))
def test_dampening_never_grows_a_weight_and_leaves_the_unselected_to_the_bit(
    values: list[tuple[float, float, float]], alpha: float, strength: float
) -> None:
    weight, forget, overall = torch.tensor(values, dtype=torch.float64).T
    found = dampened(weight, forget, overall, alpha=alpha, strength=strength)
    selected = forget > alpha * overall
    assert torch.equal(found[~selected], weight[~selected])
    assert (found.abs() <= weight.abs()).all()
    assert (found * weight >= 0).all()
    expected = weight[selected] * torch.minimum(strength * overall[selected] / forget[selected], torch.ones(1, dtype=torch.float64))
    torch.testing.assert_close(found[selected], expected)


# -------------------------------------------------------------------------------------------------------------------- noise


def test_the_variance_of_fisher_noise() -> None:
    information = np.random.default_rng(0).gamma(0.3, size=(4, 3, 2, 2)) * 1e-2
    bounded = np.minimum(1 / (information + 1e-8), 50.0)
    found = fisher_variance(torch.from_numpy(information), alpha=0.3, largest=50.0)
    np.testing.assert_allclose(found, np.broadcast_to(0.3 * bounded.mean(1, keepdims=True), information.shape))
    assert fisher_variance(torch.zeros(1, dtype=torch.float64), alpha=0.3, largest=1e12).item() == pytest.approx(0.3e8)
    flat = fisher_variance(torch.from_numpy(information[:, 0, 0, 0]), alpha=0.3, largest=50.0)
    np.testing.assert_allclose(flat, 0.3 * bounded[:, 0, 0, 0])


# ---------------------------------------------------------------------------------------------------------------- influence


@pytest.fixture
def regression() -> tuple[np.ndarray, np.ndarray]:
    """Inputs [n, 4] and targets of a least-squares problem."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(400, 4))
    return inputs, inputs @ rng.normal(size=4) + rng.normal(size=400)


@pytest.mark.parametrize("count", [2, 20])
def test_with_the_exact_hessian_influence_retrains_least_squares(regression: tuple[np.ndarray, np.ndarray], count: int) -> None:
    inputs, targets = regression
    forget, retain = np.arange(count), np.arange(count, len(inputs))

    def minimum(rows: np.ndarray) -> np.ndarray:
        return np.linalg.lstsq(inputs[rows], targets[rows], rcond=None)[0]

    theta = minimum(np.arange(len(inputs)))
    slopes = (inputs @ theta - targets)[:, None] * inputs
    means = [torch.from_numpy(slopes[rows].mean(0)) for rows in (forget, retain)]
    direction = influence_direction(*means, len(forget), len(retain)).numpy()
    hessian = {name: inputs[rows].T @ inputs[rows] / len(rows) for name, rows in (("retain", retain), ("all", np.arange(len(inputs))))}
    retrained = minimum(retain)
    # Newton's step with the retain rows' Hessian is exact, with that of all rows it is right to first order.
    np.testing.assert_allclose(theta + np.linalg.solve(hessian["retain"], direction), retrained, atol=1e-12)
    moved = np.linalg.norm(retrained - theta)
    wrong = np.linalg.norm(theta + np.linalg.solve(hessian["all"], direction) - retrained)
    assert wrong < 3 * count / len(inputs) * moved
    assert moved > 1e-4


@pytest.mark.parametrize("count", [1, 7, 30])
def test_the_inverse_is_that_of_the_damped_matrix_and_of_woodfishers_recursion(count: int) -> None:
    rng = np.random.default_rng(count)
    rows, vector, damping = rng.normal(size=(count, 10)), rng.normal(size=10), 0.05
    found = inverse_fisher_product(torch.from_numpy(vector), torch.from_numpy(rows), damping)
    matrix = damping * np.eye(10) + rows.T @ rows / count
    np.testing.assert_allclose(found, np.linalg.solve(matrix, vector), rtol=1e-9)
    inverse = np.eye(10) / damping
    for row in rows:
        turned = inverse @ row
        inverse -= np.outer(turned, turned) / (count + row @ turned)
    np.testing.assert_allclose(found, inverse @ vector, rtol=1e-8)
    with pytest.raises(ValueError, match="damping is 0"):
        inverse_fisher_product(torch.from_numpy(vector), torch.from_numpy(rows), 0.0)
