"""Gated redirection as formulas: against numpy, by hand, and by its defining properties."""

from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from unlearnbench.mechanisms.steering import (
    Scaling,
    Selection,
    VectorMethod,
    cluster_weights,
    gate_scores,
    mean_over_tokens,
    quantile_threshold,
    rates,
    redirect,
    steering_vectors,
    youden_threshold,
)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


FORGET, RETAIN = draw(3, 8) + 1, draw(8, seed=1) + 1
NORMS, RETAIN_NORM = torch.tensor([4.0, 5.0, 9.0], dtype=torch.float64), 3.0


# ----------------------------------------------------------------------------------------------------------------------- vectors


def test_the_mean_is_over_the_tokens_of_each_document_alone() -> None:
    states, mask = draw(2, 4, 3), torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    expected = np.stack([states[0, :2].numpy().mean(0), states[1].numpy().mean(0)])
    np.testing.assert_allclose(mean_over_tokens(states, mask), expected, rtol=1e-12)
    assert mean_over_tokens(states.half(), mask).dtype == torch.float32


@pytest.mark.parametrize("method", get_args(VectorMethod))
@pytest.mark.parametrize("scaling", get_args(Scaling))
def test_vectors_are_those_of_numpy(method: VectorMethod, scaling: Scaling) -> None:
    found = steering_vectors(FORGET, NORMS, RETAIN, RETAIN_NORM, method=method, scaling=scaling)
    f, r = FORGET.numpy(), RETAIN.numpy()
    for row, (mean, norm) in enumerate(zip(f, NORMS.numpy(), strict=True)):
        raw = {
            "diff_means": mean - r,
            "orthogonal": mean - np.dot(mean, r) / np.dot(r, r) * r,
            "orth_diff_means": (mean - r) - np.dot(mean - r, r) / np.dot(r, r) * r,
        }[method]
        length = {"none": np.linalg.norm(raw), "unit": 1.0, "activation_norm": (norm + RETAIN_NORM) / 2}[scaling]
        np.testing.assert_allclose(found[row], raw / np.linalg.norm(raw) * length, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["orthogonal", "orth_diff_means"])
def test_orthogonal_vectors_are_orthogonal_to_what_is_retained_and_of_the_activations_norm(method: VectorMethod) -> None:
    found = steering_vectors(FORGET, NORMS, RETAIN, RETAIN_NORM, method=method)
    cosines = (found @ RETAIN) / (found.norm(dim=1) * RETAIN.norm())
    assert cosines.abs().max() < 1e-4
    np.testing.assert_allclose(found.norm(dim=1), (NORMS + RETAIN_NORM) / 2, rtol=1e-3)
    assert ((found @ FORGET.T).diagonal() > 0).all()


# ------------------------------------------------------------------------------------------------------------------- redirection


@pytest.mark.parametrize("alpha", [-0.5, 0.1, 1.0, 30.0])
def test_norms_stay_and_the_cosine_falls_for_positive_strength(alpha: float) -> None:
    hidden, vector = draw(4, 5, 8), draw(8, seed=2)
    turned = redirect(hidden, alpha * vector)
    torch.testing.assert_close(turned.norm(dim=-1), hidden.norm(dim=-1), rtol=1e-12, atol=0)
    before, after = (torch.cosine_similarity(states, vector.expand_as(states), dim=-1) for states in (hidden, turned))
    assert ((after < before) if alpha > 0 else (after > before)).all()


def test_redirection_by_hand() -> None:
    # (3, 4) - (0, 8) = (3, -4), which has the length already; (3, 4) - (3, 3) = (0, 1), five times too short.
    hidden = torch.tensor([[3.0, 4.0], [3.0, 4.0]])
    assert redirect(hidden, torch.tensor([[0.0, 8.0], [3.0, 3.0]])).tolist() == [[3.0, -4.0], [0.0, 5.0]]
    torch.testing.assert_close(redirect(hidden, torch.zeros(2)), hidden)


def test_a_state_of_zeros_stays_and_one_that_is_the_shift_vanishes_finitely() -> None:
    assert redirect(torch.zeros(1, 2), torch.ones(2)).tolist() == [[0.0, 0.0]]
    hidden = torch.ones(1, 2, requires_grad=True)
    turned = redirect(hidden, torch.ones(2))
    turned.sum().backward()  # type: ignore[no-untyped-call]
    assert turned.tolist() == [[0.0, 0.0]]
    assert hidden.grad is not None
    assert hidden.grad.isfinite().all()


def test_half_precision_is_redirected_in_single() -> None:
    hidden, shift = draw(3, 8).bfloat16(), draw(8, seed=2).bfloat16()
    turned = redirect(hidden, shift)
    assert turned.dtype == torch.bfloat16
    assert torch.equal(turned, redirect(hidden.float(), shift.float()).bfloat16())


# -------------------------------------------------------------------------------------------------------------------------- gate


SIMILAR = torch.tensor([0.7, 0.6, 0.3, -0.1], dtype=torch.float64)


@pytest.mark.parametrize(
    ("mode", "threshold", "expected"),
    [
        ("threshold", 0.5, [1 / 2, 1 / 2, 0, 0]),
        ("threshold", 0.6, [1, 0, 0, 0]),  # an equal similarity is not more
        ("threshold", 0.7, [0, 0, 0, 0]),
        ("weighted_threshold", 0.5, [7 / 13, 6 / 13, 0, 0]),
        ("weighted_threshold", 0.6, [1, 0, 0, 0]),
        ("weighted_threshold", 0.9, [0, 0, 0, 0]),
        ("best", 0.9, [1, 0, 0, 0]),
        ("soft", 0.9, [7 / 16, 6 / 16, 3 / 16, 0]),
        ("ratio", 1.3, [1, 0, 0, 0]),  # 0.7 / 0.5 = 1.4
        ("ratio", 1.5, [0, 0, 0, 0]),
        ("dissimilar_threshold", 0.6, [0, 0, 1 / 2, 1 / 2]),
        ("dissimilar_threshold", -0.1, [0, 0, 0, 1]),
        ("dissimilar_threshold", -0.5, [0, 1 / 3, 1 / 3, 1 / 3]),  # none is below: the fallback
    ],
)
def test_selection_modes_by_hand(mode: Selection, threshold: float, expected: list[float]) -> None:
    found = cluster_weights(SIMILAR, threshold, mode, retain_similarity=0.5, most=2)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_soft_is_shut_only_where_nothing_is_similar() -> None:
    assert cluster_weights(-SIMILAR.abs(), 0.0, "soft").tolist() == [0, 0, 0, 0]


def test_each_cluster_may_have_a_threshold_of_its_own() -> None:
    limits = torch.tensor([0.8, 0.5, 0.2, 0.0], dtype=torch.float64)
    assert cluster_weights(SIMILAR, limits).tolist() == [0, 0.5, 0.5, 0]
    assert cluster_weights(SIMILAR, torch.tensor([1.5, 0, 0, 0]), "ratio", retain_similarity=0.5).sum() == 0


# ------------------------------------------------------------------------------------------------------------------- calibration


def test_separable_scores_give_a_threshold_between_them() -> None:
    forget, retain = np.array([0.6, 0.8, 0.9]), np.array([0.1, 0.2, 0.4])
    threshold = youden_threshold(forget, retain)
    assert 0.4 < threshold <= 0.6
    assert rates(forget, retain, threshold) == (1.0, 0.0)


def test_the_threshold_is_the_first_of_the_best_by_brute_force() -> None:
    generator = np.random.default_rng(0)
    forget, retain = generator.normal(0.6, 0.2, 30), generator.normal(0.4, 0.2, 50)
    for weight in (0.5, 1.0, 3.0):
        tried = np.linspace(min(forget.min(), retain.min()), max(forget.max(), retain.max()), 200)
        gains = [sum(forget >= t) / 30 - weight * sum(retain >= t) / 50 for t in tried]
        assert youden_threshold(forget, retain, weight=weight) == tried[gains.index(max(gains))]


def test_the_quantile_lets_its_share_through() -> None:
    retain = np.linspace(0, 1, 101)
    threshold = quantile_threshold(retain, 0.05)
    assert threshold == pytest.approx(0.95)
    assert (retain > threshold).mean() == pytest.approx(0.05, abs=0.01)


def test_the_gate_compares_the_best_similarity_or_its_ratio() -> None:
    similarities, retained = np.array([[0.2, 0.6], [-0.4, -0.5]]), np.array([0.5, 0.0])
    assert gate_scores(similarities, retained, "threshold").tolist() == [0.6, -0.4]
    np.testing.assert_allclose(gate_scores(similarities, retained, "ratio"), [1.2, -0.4e6])
