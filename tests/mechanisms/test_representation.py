"""Targets, distances and hinges on hidden states against numpy, and what no padding may change."""

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from torch import Tensor

from unlearnbench.mechanisms.representation import at_depth, control_vector, cosine_hinge, drift, erasing_target, guided, squared_distance

DRAW = np.random.default_rng(0)
HIDDEN, TARGET = (DRAW.normal(size=(3, 5, 4)) for _ in range(2))
MASK = np.array([[0, 1, 1, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 1]], dtype=bool)
LOGITS, EXPERT, NOVICE = (3 * DRAW.normal(size=(6, 9)) for _ in range(3))


def tensors(*arrays: np.ndarray) -> list[Tensor]:
    return [torch.from_numpy(array) for array in arrays]


def by_rows(values: np.ndarray) -> list[float]:
    return [float(np.mean([value for value, kept in zip(row, mask, strict=True) if kept])) for row, mask in zip(values, MASK, strict=True)]


def test_distances_are_means_over_each_rows_masked_positions() -> None:
    hidden, target, mask = tensors(HIDDEN, TARGET, MASK)
    squares = np.array([[((h - t) ** 2).sum() / 4 for h, t in zip(*rows, strict=True)] for rows in zip(HIDDEN, TARGET, strict=True)])
    norms = np.sqrt(4 * squares)
    cosines = (HIDDEN * TARGET).sum(-1) / np.linalg.norm(HIDDEN, axis=-1) / np.linalg.norm(TARGET, axis=-1)
    assert (cosines[MASK] < 0).any()
    assert (cosines[MASK] > 0).any()
    np.testing.assert_allclose(squared_distance(hidden, target, mask), by_rows(squares), rtol=1e-12)
    np.testing.assert_allclose(drift(hidden, target, mask), by_rows(norms), rtol=1e-12)
    np.testing.assert_allclose(cosine_hinge(hidden, target, mask), by_rows(np.where(cosines > 0, cosines, 0)), rtol=1e-12)
    np.testing.assert_allclose(squared_distance(hidden, target[0, 0], mask), by_rows(((HIDDEN - TARGET[0, 0]) ** 2).mean(-1)), rtol=1e-12)


@pytest.mark.parametrize("function", [squared_distance, drift, cosine_hinge])
def test_padding_changes_nothing_and_an_empty_row_is_an_error(function: type) -> None:
    hidden, target, mask = tensors(HIDDEN, TARGET, MASK)
    pad = torch.full((3, 2, 4), 1e30, dtype=torch.float64)
    padded = function(torch.cat([hidden, pad], 1), torch.cat([target, -pad], 1), torch.cat([mask, torch.zeros(3, 2, dtype=torch.bool)], 1))
    assert torch.equal(padded, function(hidden, target, mask))
    mask = mask.clone()
    mask[2] = False
    with pytest.raises(ValueError, match=r"rows \[2\]"):
        function(hidden, target, mask)


def test_half_precision_is_raised_before_it_is_subtracted() -> None:
    hidden, target, mask = tensors(HIDDEN, TARGET, MASK)
    low = hidden.bfloat16(), target.bfloat16()
    for function in (squared_distance, drift, cosine_hinge):
        assert function(*low, mask).dtype == torch.float32
        torch.testing.assert_close(function(*low, mask), function(*(part.double() for part in low), mask).float(), rtol=1e-5, atol=1e-6)


def test_at_the_reference_drift_and_its_gradient_are_0_and_the_hinge_is_1_without_gradient() -> None:
    hidden, mask = torch.from_numpy(HIDDEN).requires_grad_(), torch.from_numpy(MASK)
    away, turned = drift(hidden, hidden.detach(), mask), cosine_hinge(hidden, hidden.detach(), mask)
    assert torch.equal(away, torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(turned, torch.ones(3, dtype=torch.float64), rtol=1e-12, atol=0)
    assert torch.equal(torch.autograd.grad(away.sum(), hidden)[0], torch.zeros_like(hidden))
    assert float(torch.autograd.grad(turned.sum(), hidden)[0].abs().max()) < 1e-14


def test_the_hinge_is_0_and_flat_beyond_the_right_angle() -> None:
    reference, mask = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[True]])
    for direction, value in (([0.0, 3.0], 0.0), ([-1.0, 1.0], 0.0), ([1.0, 1.0], 0.5**0.5)):
        hidden = torch.tensor([[direction]], requires_grad=True)
        found = cosine_hinge(hidden, reference, mask)
        assert float(found.detach()) == pytest.approx(value)
        gradient = torch.autograd.grad(found.sum(), hidden)[0]
        assert (float(gradient.abs().max()) > 0.1) == (value > 0 or direction[0] == 0)


def test_the_control_vector_is_a_seeded_positive_direction_of_the_asked_length() -> None:
    vector = control_vector(64, 6.5, seed=3)
    assert float(vector.norm()) == pytest.approx(6.5, rel=1e-12)
    assert (vector >= 0).all()
    assert torch.equal(vector, control_vector(64, 6.5, seed=3))
    assert not torch.equal(vector, control_vector(64, 6.5, seed=4))
    torch.testing.assert_close(vector, 6.5 * control_vector(64, 1.0, seed=3))
    assert float(squared_distance(vector.expand(2, 3, 64), vector, torch.ones(2, 3, dtype=torch.bool)).abs().max()) == 0.0


def test_depths() -> None:
    assert [at_depth(7 / 32, n) for n in (1, 4, 16, 32, 80)] == [0, 0, 3, 7, 17]
    assert [at_depth(1.0, n) for n in (1, 4)] == [0, 3]


def test_guided_scores_and_the_target_equal_numpy() -> None:
    eta = np.linspace(1, 20, 6)
    logits, expert, novice, strength = tensors(LOGITS, EXPERT, NOVICE, eta)
    score = log_softmax(LOGITS, -1) - eta[:, None] * (log_softmax(EXPERT, -1) - log_softmax(NOVICE, -1))
    np.testing.assert_allclose(guided(logits, expert, novice, strength), score, rtol=1e-12)
    cooled = log_softmax(LOGITS / 1.2, -1) - eta[:, None] * (log_softmax(EXPERT / 1.2, -1) - log_softmax(NOVICE / 1.2, -1))
    expected = np.zeros_like(cooled)
    for row, values in zip(expected, cooled, strict=True):
        best = np.argsort(values)[-4:]
        row[best] = softmax(values[best])
    np.testing.assert_allclose(erasing_target(logits, expert, novice, strength, top_k=4, temperature=1.2), expected, atol=1e-14)


def test_without_strength_the_target_is_the_frozen_distribution_truncated() -> None:
    logits, expert, novice = tensors(LOGITS, EXPERT, NOVICE)
    whole = erasing_target(logits, expert, novice, 0.0, top_k=50, temperature=1.0)
    torch.testing.assert_close(whole, logits.softmax(-1), rtol=1e-12, atol=0)
    few = erasing_target(logits, expert, novice, 0.0, top_k=3, temperature=1.0)
    kept = whole * (whole >= whole.topk(3).values[:, -1:])
    torch.testing.assert_close(few, kept / kept.sum(-1, keepdim=True), rtol=1e-12, atol=0)


def test_what_the_expert_favours_gets_less() -> None:
    logits, expert, novice = tensors(LOGITS, EXPERT, NOVICE)
    favoured = (expert.log_softmax(-1) - novice.log_softmax(-1)).argmax(-1, keepdim=True)
    spurned = (expert.log_softmax(-1) - novice.log_softmax(-1)).argmin(-1, keepdim=True)
    frozen, erased = logits.softmax(-1), erasing_target(logits, expert, novice, 0.7, top_k=9, temperature=1.0)
    assert (erased.gather(-1, favoured) < frozen.gather(-1, favoured)).all()
    assert (erased.gather(-1, spurned) > frozen.gather(-1, spurned)).all()
