"""RULI's likelihood ratios from kernel densities, its ROC and its scaled confidence, against the released code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit
from sklearn.metrics import roc_curve
from vision_conformance import Vision

from unlearnbench.confidence import probabilities, true_class_probability
from unlearnbench.distributions import kernel_log_density
from unlearnbench.stats import auc


@pytest.fixture(scope="module")
def vision(conformance: Path) -> Vision:
    return Vision(conformance / "methods-vision")


def test_likelihood_ratios(vision: Vision) -> None:
    entry = vision.entry("ruli")
    for kind, inside, outside in (("original", "in_trained", "out_trained"), ("unlearned", "unlearned", "out_unlearned")):
        value = entry[f"target_{kind}"]
        ratio = kernel_log_density(value, entry[f"shadow/{inside}"].T) - kernel_log_density(value, entry[f"shadow/{outside}"].T)
        np.testing.assert_allclose(expit(ratio), entry[f"likelihood_ratio_{kind}"], atol=1e-9, err_msg=kind)


def test_rates(vision: Vision) -> None:
    scores, expected = vision.entry("ruli")["likelihood_ratio_unlearned"], vision.numbers("ruli")["roc"]
    middle = len(scores) // 2
    assert auc(scores[:middle], scores[middle:]) == pytest.approx(expected["auc"], abs=1e-12)
    # As released: the rate at the nearest false-positive rate, which may be on either side of the one asked for.
    fpr, tpr, _ = roc_curve(np.repeat([1, 0], [middle, len(scores) - middle]), scores)
    for target, name in ((0.01, "tpr_at_0_01"), (0.001, "tpr_at_0_001")):
        assert tpr[np.argmin(np.abs(fpr - target))] == pytest.approx(expected[name], abs=1e-12)


def test_scaled_confidence(vision: Vision) -> None:
    logits, labels = vision.arrays["logits/original/forget"], vision.arrays["forget_y"]
    right = np.maximum(true_class_probability(logits, labels), 1e-6)
    others = probabilities(logits)
    others[np.arange(len(labels)), labels] = 0
    ours = np.log(right) - np.log(np.maximum(others.sum(axis=1), 1e-6))
    np.testing.assert_allclose(ours, vision.entry("ruli")["logit_scaled_confidence_original_forget"], atol=2e-3)
