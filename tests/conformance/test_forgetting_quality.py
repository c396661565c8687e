"""The population form of forgetting quality against the released code: rounded values, fixed thresholds, the smaller bound."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from vision_conformance import Vision

from unlearnbench.confidence import entropy, margins
from unlearnbench.distributions import epsilon, one_sided_epsilon, threshold_rates

DELTA, TINY = 1e-5, 1e-10


@pytest.fixture(scope="module")
def vision(conformance: Path) -> Vision:
    return Vision(conformance / "methods-vision")


def values(vision: Vision, model: str, kind: str) -> np.ndarray:
    logits = vision.arrays[f"logits/{model}/forget"].astype(np.float64)
    if kind == "entropy":
        return entropy(logits / 2)
    return margins(logits, logits.argmax(axis=1))


def attack_scores(fpr: np.ndarray, fnr: np.ndarray) -> np.ndarray:
    """As released: the smaller of the two conditions instead of the larger, of clipped rates."""
    a, b = (np.clip(rates, TINY, 1 - DELTA - TINY) for rates in (fpr, fnr))
    smaller = np.minimum(one_sided_epsilon(a, b, DELTA), one_sided_epsilon(b, a, DELTA))
    assert (np.maximum(smaller, 0) <= epsilon(a, b, DELTA)).all()
    scores = 1 - 2 ** -np.maximum(smaller, 0)
    scores[np.maximum(fpr, fnr) >= 1 - DELTA] = 0
    scores[(fpr == 0) & (fnr == 0)] = 1
    return scores


def test_every_threshold_and_the_final_score(vision: Vision) -> None:
    entry = vision.entry("forgetting_quality")
    for comparison, expected in vision.numbers("forgetting_quality").items():
        largest = {}
        for kind in ("entropy", "confidence"):
            folder = f"{comparison}/{kind}"
            unlearned, retrained = (entry[f"{folder}/{side}_values"] for side in ("unlearned", "retrained"))
            for model, stored in zip(comparison.split("_vs_"), (unlearned, retrained), strict=True):
                # Rounded to two digits, of probabilities in float32: 1 - p has lost what e^value tells.
                lost = 0.0052 + (np.finfo(np.float32).eps * np.exp(stored) if kind == "confidence" else 0)
                assert (np.abs(values(vision, model, kind) - stored) <= lost).all(), f"{folder} of {model}"
            for side, above, below in (("unlearn", unlearned, retrained), ("retrain", retrained, unlearned)):
                table = {name: entry[f"{folder}/{side}/{name}"] for name in ("threshold", "fpr", "fnr", "attack_score")}
                # A value that equals the threshold counts as above there, and as below here; the stored thresholds are rounded.
                grid = np.linspace(table["threshold"][0], table["threshold"][-1], len(table["threshold"]))
                fpr, fnr = threshold_rates(above, below, np.nextafter(grid, -np.inf))
                np.testing.assert_allclose(fpr, table["fpr"], atol=6e-4, err_msg=folder)
                np.testing.assert_allclose(fnr, table["fnr"], atol=6e-4, err_msg=folder)
                scores = attack_scores(fpr, fnr)
                np.testing.assert_allclose(scores, table["attack_score"], atol=6e-4, err_msg=folder)
                largest[f"{kind}_{side}"] = scores.max()
        for name, score in largest.items():
            assert score == pytest.approx(expected[name], abs=6e-4), name
        assert 1 - max(largest.values()) == pytest.approx(expected["final"], abs=6e-4)
