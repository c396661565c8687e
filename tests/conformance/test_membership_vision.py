"""Membership learners, thresholds and distances of softmax against the official implementations; their faults are composed here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from vision_conformance import Vision

from unlearnbench.confidence import (
    activation_distance,
    correct,
    entropy,
    label_log_probability,
    log_probabilities,
    modified_entropy,
    probabilities,
    true_class_probability,
)
from unlearnbench.membership_classifiers import logistic_accuracy, logistic_says_member, svc_says_member, threshold_says_member

FEATURES = ("confidence", "correctness", "entropy", "m_entropy", "prob")


@pytest.fixture(scope="module")
def vision(conformance: Path) -> Vision:
    return Vision(conformance / "methods-vision")


def seen(vision: Vision, model: str, split: str) -> tuple[np.ndarray, np.ndarray]:
    return vision.arrays[f"logits/{model}/{split}"], vision.arrays[f"{split}_y"]


def models_of(vision: Vision, kind: str) -> Iterator[str]:
    """The models an entry of the numbers speaks of, "kind/model[/variant]"."""
    found = sorted({key.split("/")[1] for key in vision.numbers("mia") if key.startswith(f"{kind}/")})
    assert found
    yield from found


def released_modified_entropy(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """As released: altered in every class that the batch holds, and log p where log(1 - p) belongs."""
    p = probabilities(logits)
    weights = p.copy()
    weights[:, labels] = 1 - p[:, labels]
    return -(weights * log_probabilities(logits)).sum(axis=1)


def feature(name: str, variant: str, logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    values = {
        "confidence": lambda: true_class_probability(logits, labels),
        "correctness": lambda: correct(logits, labels),
        "entropy": lambda: entropy(logits),
        "m_entropy": lambda: (released_modified_entropy if variant == "released" else modified_entropy)(logits, labels),
        "prob": lambda: probabilities(logits),
    }[name]()
    return values.reshape(len(labels), -1)


def test_entropies(vision: Vision) -> None:
    entry = vision.entry("mia")
    names = [name for name in entry if "entropy" in name]
    assert names
    for name in names:
        kind, model = name.split("/")
        logits, labels = seen(vision, model, "forget")
        ours, tolerance = {
            "entropy_forget": (entropy(logits), 2e-5),
            "m_entropy_correct_forget": (modified_entropy(logits, labels), 2e-5),
            "m_entropy_released_forget": (released_modified_entropy(logits, labels), 1e-4),
        }[kind]
        np.testing.assert_allclose(ours, entry[name], atol=tolerance)
    for model in {name.split("/")[1] for name in names}:
        # The two faults are no rounding: a score with either is another one.
        wrong, right = (entry[f"m_entropy_{kind}_forget/{model}"] for kind in ("released", "correct"))
        assert np.abs(wrong - right).max() > 0.1


def test_support_vector_membership_is_exact(vision: Vision) -> None:
    numbers = vision.numbers("mia")
    compared = 0
    for key, expected in numbers.items():
        if not key.startswith(("svc_forget_efficacy/", "svc_train_test/")):
            continue
        kind, model, variant = key.split("/")
        assert set(expected) == set(FEATURES)
        for name, rate in expected.items():
            members, others, asked = (feature(name, variant, *seen(vision, model, split)) for split in ("retain", "test", "forget"))
            if kind == "svc_forget_efficacy":
                ours = 1 - svc_says_member(members, others, asked).mean()
            else:
                a, b = len(members) // 2, len(others) // 2
                inside, outside = (svc_says_member(members[:a], others[:b], rows) for rows in (members[a:], others[b:]))
                ours = (inside.mean() + (1 - outside.mean())) / 2
            assert ours == pytest.approx(rate, abs=1e-12), (key, name)
            compared += 1
    assert compared


def test_thresholds_by_class_are_exact(vision: Vision) -> None:
    for model in models_of(vision, "threshold_benchmarks"):
        (retain, retain_y), (test, test_y), (forget, forget_y) = (seen(vision, model, split) for split in ("retain", "test", "forget"))
        middle = len(retain) // 2
        for name, expected in vision.numbers("mia")[f"threshold_benchmarks/{model}"].items():
            sign = -1.0 if "entropy" in name else 1.0  # as low as a member's
            known, out, asked = (
                sign * feature(name, "corrected", logits, labels)[:, 0]
                for logits, labels in ((retain, retain_y), (test, test_y), (forget, forget_y))
            )
            if name == "correctness":  # without a threshold
                rates = known[middle:].mean(), 1 - asked.mean()
            else:
                shadows = (known[:middle], retain_y[:middle]), (out, test_y)
                inside = threshold_says_member(*shadows, (known[middle:], retain_y[middle:]))
                rates = inside.mean(), 1 - threshold_says_member(*shadows, (asked, forget_y)).mean()
            assert list(rates) == pytest.approx(expected, abs=1e-12), (model, name)


def test_logistic_regression_on_entropy(vision: Vision) -> None:
    numbers = vision.numbers("mia")
    for model in models_of(vision, "entropy_logreg_member_rate"):
        members, others, asked = (entropy(seen(vision, model, split)[0])[:, None] for split in ("retain", "test", "forget"))
        assert logistic_says_member(members, others, asked).mean() == numbers[f"entropy_logreg_member_rate/{model}"]
        rows, marks = np.concatenate([members, others]), np.repeat([1, 0], [len(members), len(others)])
        fitted = LogisticRegression(class_weight="balanced").fit(rows, marks)
        assert [fitted.coef_[0, 0], fitted.intercept_[0]] == pytest.approx(numbers[f"entropy_logreg_coef_intercept/{model}"], rel=1e-3)
        # The softmax over two outputs of an older scikit-learn: half the coefficient of a fit with half the penalty.
        older = LogisticRegression(class_weight="balanced", C=2).fit(rows, marks)
        expected = numbers[f"entropy_logreg_member_rate_sklearn1.4_multinomial/{model}"]
        assert [older.coef_[0, 0] / 2, older.intercept_[0] / 2] == pytest.approx([expected["coef"], expected["intercept"]], rel=5e-3)
        assert older.predict(asked).mean() == expected["rate"]


def test_population_attack_is_exact(vision: Vision) -> None:
    entry, numbers = vision.entry("mia"), vision.numbers("mia")
    models = [name.split("/")[1] for name in entry if name.startswith("umia_kaggle_scores/")]
    assert models
    for model in models:
        forget, test = (-label_log_probability(*seen(vision, model, split)) for split in ("forget", "test"))
        np.testing.assert_allclose(forget, entry[f"loss_forget/{model}"], atol=2e-5)
        np.testing.assert_allclose(test, entry[f"loss_test/{model}"], atol=2e-5)
        first = test[: len(forget)]
        np.random.seed(numbers["umia_numpy_seed"])
        shuffled_test, shuffled_forget = test.copy(), forget.copy()
        np.random.shuffle(shuffled_test)
        np.random.shuffle(shuffled_forget)
        for name, called_1, called_0, seed in (
            ("kaggle_scores", forget, first, 0),
            ("deepunlearn_scores_noshuffle", forget, first, 123),
            # Shuffled, that code calls the rows that were never trained on 1, which of 64 against 64 changes the splits alone.
            ("deepunlearn_scores_shuffled", shuffled_test[: len(forget)], shuffled_forget, 123),
        ):
            expected = entry[f"umia_{name}/{model}"]
            ours = logistic_accuracy(called_1[:, None], called_0[:, None], seed=seed, repeats=len(expected))
            np.testing.assert_allclose(ours, expected, atol=1e-12, err_msg=f"{name}/{model}")
        accuracies = [entry[f"umia_deepunlearn_scores_{order}/{model}"].mean() for order in ("noshuffle", "shuffled")]
        assert min(abs(1 - abs(a - 0.5) / 0.5 - numbers[f"indiscernibility/{model}"]) for a in accuracies) < 1e-9


def test_published_zrf_and_activation_distance(vision: Vision) -> None:
    numbers = vision.numbers("mia")
    for model in models_of(vision, "zrf"):
        p, q = (probabilities(seen(vision, name, "forget")[0]) for name in (model, "random"))
        middle = (p + q) / 2
        # Arguments of the divergence reversed, and the mean also over classes.
        published = 1 - ((middle * np.log(middle / p)).mean() + (middle * np.log(middle / q)).mean()) / 2
        assert published == pytest.approx(numbers[f"zrf/{model}"], abs=2e-6)
    for model in models_of(vision, "activation_distance_to_retrained"):
        p, q = (probabilities(seen(vision, name, "forget")[0]) for name in (model, "retrained"))
        assert activation_distance(p, q).mean() == pytest.approx(numbers[f"activation_distance_to_retrained/{model}"], abs=2e-6)
