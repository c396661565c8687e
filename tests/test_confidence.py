"""Confidence, entropies and margins of classifiers against scipy, counting by hand, and limits that floats would lose."""

import numpy as np
import pytest
from scipy.special import log_softmax, logit, softmax
from scipy.stats import entropy as scipy_entropy

from unlearnbench.confidence import entropy, jensen_shannon, log_probabilities, margins, modified_entropy, probabilities


def made(n: int = 30, classes: int = 6, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    return draw.normal(size=(n, classes)) * 3, draw.integers(0, classes, n)


def test_probabilities_and_entropy_against_scipy() -> None:
    logits, _ = made()
    np.testing.assert_allclose(log_probabilities(logits), log_softmax(logits, axis=1), atol=1e-13)
    np.testing.assert_allclose(probabilities(logits), softmax(logits, axis=1), rtol=1e-12)
    np.testing.assert_allclose(entropy(logits), scipy_entropy(softmax(logits, axis=1), axis=1), rtol=1e-12)


def modified_entropy_by_definition(p: np.ndarray, label: int) -> float:
    others = sum(p[j] * np.log(1 - p[j]) for j in range(len(p)) if j != label)
    return float(-(1 - p[label]) * np.log(p[label]) - others)


def test_modified_entropy_row_by_row() -> None:
    logits, labels = made()
    p = softmax(logits, axis=1)
    expected = [modified_entropy_by_definition(row, label) for row, label in zip(p, labels, strict=True)]
    np.testing.assert_allclose(modified_entropy(logits, labels), expected, rtol=1e-9)


def test_modified_entropy_of_a_row_does_not_depend_on_the_labels_of_others() -> None:
    # Published code alters every class that the batch holds in every row.
    logits, labels = made()
    together = modified_entropy(logits, labels)
    alone = [modified_entropy(logits[i : i + 1], labels[i : i + 1])[0] for i in range(len(labels))]
    np.testing.assert_allclose(together, alone, rtol=1e-13)


def test_modified_entropy_has_the_logarithm_of_the_complement() -> None:
    # With log p where log(1 - p) belongs, a sure wrong answer (classes 0.98, 0.01, 0.01, label 1) would get 5.6 instead of 8.4.
    p = np.array([[0.98, 0.01, 0.01]])
    assert modified_entropy(np.log(p), np.array([1]))[0] == pytest.approx(0.99 * np.log(100) + 0.98 * np.log(50) + 0.01 * -np.log(0.99))
    assert modified_entropy(np.log(p), np.array([0]))[0] == pytest.approx(-0.02 * np.log(0.98) - 0.02 * np.log(0.99))


def test_certain_answers_neither_overflow_nor_vanish() -> None:
    logits = np.array([[60.0, 0.0, 0.0], [900.0, -900.0, 0.0]])
    right = modified_entropy(logits, np.array([0, 0]))
    assert 0 < right[0] < 1e-40  # (1 - p)^2 and its like
    wrong = modified_entropy(logits, np.array([1, 1]))
    assert wrong[0] == pytest.approx(60 + 60 - np.log(2), rel=1e-9)  # - log p_y - log(1 - p_0) of nearly 1 each
    assert wrong[1] == pytest.approx(1800 + 900, rel=1e-9)
    assert margins(logits, np.array([0, 0])).tolist() == pytest.approx([60 - np.log(2), 900.0])


def test_margins_are_log_odds() -> None:
    logits, labels = made(seed=1)
    p = softmax(logits, axis=1)[np.arange(len(labels)), labels]
    np.testing.assert_allclose(margins(logits, labels), logit(p), rtol=1e-9)
    np.testing.assert_allclose(margins(logits + 7, labels), margins(logits, labels), rtol=1e-9)
    assert margins(np.zeros((1, 5)), np.array([2]))[0] == pytest.approx(-np.log(4))


def test_jensen_shannon_by_definition() -> None:
    p, q = (softmax(made(seed=seed)[0], axis=1) for seed in (2, 3))
    middle = (p + q) / 2
    expected = [(scipy_entropy(a, m, base=2) + scipy_entropy(b, m, base=2)) / 2 for a, b, m in zip(p, q, middle, strict=True)]
    np.testing.assert_allclose(jensen_shannon(p, q), expected, rtol=1e-9)
    np.testing.assert_allclose(jensen_shannon(p, q), jensen_shannon(q, p), rtol=1e-12)
    # Arguments of the divergences reversed, and a mean over classes, as published: another number.
    reversed_order = [(scipy_entropy(m, a, base=2) + scipy_entropy(m, b, base=2)) / 2 for a, b, m in zip(p, q, middle, strict=True)]
    assert np.abs(np.array(reversed_order) - expected).max() > 0.05


@pytest.mark.parametrize("formula", [modified_entropy, margins])
def test_errors(formula: object) -> None:
    assert callable(formula)
    with pytest.raises(ValueError, match="labels run from 0 to 3; allowed: 0 to 2"):
        formula(np.zeros((2, 3)), np.array([0, 3]))
    with pytest.raises(ValueError, match="NaN or infinite"):
        formula(np.array([[0.0, np.inf]]), np.array([0]))
