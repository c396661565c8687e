"""Accuracy and true-class probability against scikit-learn, scipy and counting."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.special import softmax
from sklearn.metrics import accuracy_score
from torch import nn

from unlearnbench.api import Audit, Need
from unlearnbench.confidence import correct, true_class_probability
from unlearnbench.evidence import Evidence
from unlearnbench.metrics.accuracy import Accuracy, TrueProbability
from unlearnbench.scenarios.images import ImageData, image_evidence

AUDIT = Audit(originals=(), oracles=())


def test_against_references() -> None:
    draw = np.random.default_rng(0)
    logits = draw.normal(size=(60, 5)).astype(np.float32) * 3
    labels = draw.integers(0, 5, 60)
    assert correct(logits, labels).mean() == pytest.approx(accuracy_score(labels, logits.argmax(1)))
    expected = [softmax(row.astype(np.float64))[label] for row, label in zip(logits, labels, strict=True)]
    np.testing.assert_allclose(true_class_probability(logits, labels), expected, rtol=1e-12)
    # In float64: float32 would be off by 1e-8.
    assert abs(true_class_probability(logits, labels) - expected).max() < 1e-14


def test_large_logits_do_not_overflow() -> None:
    logits = np.array([[5000.0, 4999.0], [-5000.0, -4999.0]])
    expected = [1 / (1 + np.exp(-1.0)), 1 / (1 + np.exp(1.0))]
    np.testing.assert_allclose(true_class_probability(logits, np.array([0, 0])), expected, rtol=1e-12)
    assert true_class_probability(np.array([[5000.0, -5000.0]]), np.array([0])).tolist() == [1.0]


def test_no_rows_give_no_values() -> None:
    assert correct(np.zeros((0, 3)), np.zeros(0, np.int64)).shape == (0,)
    assert true_class_probability(np.zeros((0, 3)), np.zeros(0, np.int64)).shape == (0,)


@pytest.mark.parametrize("formula", [correct, true_class_probability])
def test_errors_name_what_is_allowed(formula: object) -> None:
    assert callable(formula)
    with pytest.raises(ValueError, match=r"shape \(2, 3\); allowed: \(3, classes\)"):
        formula(np.zeros((2, 3)), np.zeros(3, np.int64))
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        formula(np.zeros(3), np.zeros(3, np.int64))
    with pytest.raises(ValueError, match="labels run from 0 to 3; allowed: 0 to 2"):
        formula(np.zeros((2, 3)), np.array([0, 3]))
    with pytest.raises(ValueError, match="labels run from 0 to 2; allowed: 0 to 1"):
        formula(np.zeros((4, 2)), np.array([0, 1, 2, 0]))
    with pytest.raises(ValueError, match="labels run from -1 to 0; allowed: 0 to 2"):
        formula(np.zeros((2, 3)), np.array([-1, 0]))
    with pytest.raises(ValueError, match="NaN or infinite"):
        formula(np.array([[0.0, np.nan]]), np.array([0]))


def test_plugins_read_their_split() -> None:
    ids = {"forget": ("f0", "f1"), "test": ("t0", "t1", "t2")}
    seen = Evidence(
        ids=ids,
        clusters=ids,
        arrays={
            Need(what="logits", split="forget"): np.log([[0.7, 0.3], [0.4, 0.6]]),
            Need(what="logits", split="test"): np.log([[0.1, 0.9], [0.8, 0.2], [0.45, 0.55]]),
        },
        labels={"forget": np.array([0, 0]), "test": np.array([1, 0, 0])},
    )
    assert Accuracy().measure(seen, AUDIT) == {"f0": 1.0, "f1": 0.0}
    assert Accuracy(split="test").measure(seen, AUDIT) == {"t0": 1.0, "t1": 1.0, "t2": 0.0}
    expected = {"t0": pytest.approx(0.9), "t1": pytest.approx(0.8), "t2": pytest.approx(0.45)}
    assert TrueProbability(split="test").measure(seen, AUDIT) == expected
    scenario = SimpleNamespace(modality="vision", task="classify", splits=("forget", "test"))
    for metric in (Accuracy(split="test"), TrueProbability(split="test")):
        assert metric.wants(scenario) == (Need(what="logits", split="test"),)
        assert metric.supports(scenario) is None
        assert (metric.side, metric.headline) == ("utility", False)
        assert (
            metric.supports(SimpleNamespace(modality="language", task="generate", splits=("test",))) == "works on vision, not on language"
        )
    assert (Accuracy().side, Accuracy().headline) == ("forget", True)


def test_accuracy_is_no_mean_of_batch_means() -> None:
    """Seven rows in passes of three: the last pass has one row, and counts as one row."""
    images, labels = torch.eye(7)[:, None, None, :], torch.tensor([0, 1, 2, 3, 4, 5, 0])
    rows = ImageData(images, labels, [f"row {i}" for i in range(7)])
    net = nn.Sequential(nn.Flatten(), nn.Linear(7, 7, bias=False))
    with torch.no_grad():
        net[1].weight.copy_(torch.eye(7))
    seen = image_evidence(net, {"forget": rows}, frozenset({Need(what="logits", split="forget")}), batch_size=3)
    values = Accuracy().measure(seen, AUDIT)
    assert np.mean(list(values.values())) == pytest.approx(6 / 7)  # means of batches of 3, 3 and 1 would give 2 / 3
