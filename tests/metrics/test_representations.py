"""Comparisons of features with the anchors': the formulas are tested with `geometry` and `similarity`, here what is compared with what."""

from types import SimpleNamespace

import numpy as np
import pytest
from numpy.typing import NDArray

from unlearnbench.api import Audit, Member, Need, NotMeasurable, Threat
from unlearnbench.evidence import Evidence
from unlearnbench.geometry import principal_cosine, principal_shift, procrustes_distance, rsa
from unlearnbench.metrics.representations import RSA, MutualKNN, PCACosine, PCAShift, Procrustes
from unlearnbench.similarity import mutual_neighbours

Floats = NDArray[np.float64]
IDS = tuple("abcdefghijkl")
COMPARED = [
    (MutualKNN(k=3, layer=2), lambda X, Y: mutual_neighbours(X, Y, 3)),
    (Procrustes(layer=2), procrustes_distance),
    (RSA(layer=2), rsa),
]


def made(seed: int) -> Floats:
    """Features as evidence keeps them, in float32."""
    return np.random.default_rng(seed).normal(size=(12, 4)).astype(np.float32).astype(np.float64)


def evidence(features: Floats, ids: tuple[str, ...] = IDS, layer: int = 2) -> Evidence:
    need = Need(what="features", split="forget", layer=layer)
    return Evidence(ids={"forget": ids}, clusters={"forget": ids}, arrays={need: features.astype(np.float32)})


def member(role: str, features: Floats, ids: tuple[str, ...] = IDS) -> Member:
    def load() -> object:
        raise AssertionError("a metric never touches a model")

    return Member(role=role, seed=0, evidence=evidence(features, ids), load=load)  # type: ignore[arg-type]


@pytest.mark.parametrize(("metric", "formula"), COMPARED)
def test_a_mean_over_oracles_or_originals_joined_by_identity(metric: object, formula: object) -> None:
    assert isinstance(metric, (MutualKNN, Procrustes, RSA))
    assert callable(formula)
    X, Y, Z, W = (made(seed) for seed in range(4))
    order = np.random.default_rng(0).permutation(12)
    shuffled = member("oracle", Y[order], tuple(IDS[i] for i in order))
    audit = Audit(originals=(member("original", W),), oracles=(shuffled, member("oracle", Z)))
    assert metric.measure(evidence(X), audit) == pytest.approx((formula(X, Y) + formula(X, Z)) / 2, abs=1e-6)
    # An attack is judged on a part of the rows: only they are compared.
    part = slice(2, 9)
    expected = (formula(X[part], Y[part]) + formula(X[part], Z[part])) / 2
    assert metric.measure(evidence(X[part], IDS[part]), audit) == pytest.approx(expected, abs=1e-6)
    to_original = type(metric)(**{**metric.hyperparameters(), "reference": "original"})
    assert to_original.measure(evidence(X), audit) == pytest.approx(formula(X, W), abs=1e-6)
    with pytest.raises(NotMeasurable, match="no other original"):
        to_original.measure(evidence(X), Audit(originals=(), oracles=audit.oracles))
    with pytest.raises(ValueError, match="no oracle"):
        metric.measure(evidence(X), Audit(originals=audit.originals, oracles=()))
    lacking = Audit(originals=(), oracles=(member("oracle", Y, (*IDS[:-1], "x")),))
    with pytest.raises(ValueError, match="lacks 1 rows of 'forget', the first is 'l'"):
        metric.measure(evidence(X), lacking)


def test_neighbours_are_at_most_half_of_the_other_rows() -> None:
    X, Y = made(1), made(2)
    audit = Audit(originals=(), oracles=(member("oracle", Y),))
    assert MutualKNN(layer=2).measure(evidence(X), audit) == pytest.approx(mutual_neighbours(X, Y, 5))  # of 11
    assert MutualKNN(layer=2, k=4).measure(evidence(X), audit) == pytest.approx(mutual_neighbours(X, Y, 4))
    part = mutual_neighbours(X[:7], Y[:7], 3)
    assert MutualKNN(layer=2).measure(evidence(X[:7], IDS[:7]), audit) == pytest.approx(part)


@pytest.mark.parametrize(("metric", "nearer"), [(MutualKNN, "higher"), (RSA, "higher"), (Procrustes, "lower")])
def test_directions(metric: type[MutualKNN | RSA | Procrustes], nearer: str) -> None:
    away = {"higher": "lower", "lower": "higher"}[nearer]
    assert (metric().direction, metric(reference="original").direction) == (away, nearer)
    assert (metric(split="retain").direction, metric(split="retain", reference="original").direction) == (nearer, nearer)
    assert (PCAShift().direction, PCACosine().direction) == ("lower", "higher")


def test_directions_of_the_nearest_original() -> None:
    X, far = made(5) * np.array([3.0, 2.0, 1.0, 0.5]), made(6) + 10
    near = X + 0.1 * made(7)
    audit = Audit(originals=(member("original", far), member("original", near)), oracles=())
    for metric, expected in (
        (PCAShift(layer=2), principal_shift(near, X, 2)),
        (PCAShift(layer=2, components=3), principal_shift(near, X, 3)),
        (PCACosine(layer=2), principal_cosine(near, X)),
    ):
        assert metric.measure(evidence(X), audit) == pytest.approx(expected, abs=1e-5)
    # The directions are the original's, not the model's.
    assert principal_shift(near, X, 2) != pytest.approx(principal_shift(X, near, 2), rel=1e-3)
    alone = Audit(originals=audit.originals[1:], oracles=(member("oracle", far),))
    assert PCAShift(layer=2).measure(evidence(near), alone) == pytest.approx(0.0, abs=1e-12)
    assert PCACosine(layer=2).measure(evidence(-near), alone) == pytest.approx(1.0, abs=1e-6)
    with pytest.raises(NotMeasurable, match="no other original"):
        PCAShift(layer=2).measure(evidence(X), Audit(originals=(), oracles=alone.oracles))
    with pytest.raises(ValueError, match=r"shape \(12, 4\), the model's \(12, 3\)"):
        PCACosine(layer=2).measure(evidence(X[:, :3]), alone)
    with pytest.raises(ValueError, match="k is 5; allowed: 1 to 4"):
        PCAShift(layer=2, components=5).measure(evidence(X), alone)


@pytest.mark.parametrize(
    ("metric", "least"),
    [(MutualKNN(layer=2), 3), (Procrustes(layer=2), 3), (RSA(layer=2), 3), (PCAShift(layer=2), 3), (PCACosine(layer=2), 3)],
)
def test_too_few_rows(metric: Procrustes, least: int) -> None:
    audit = Audit(originals=(member("original", made(1)),), oracles=(member("oracle", made(2)),))
    X = made(3)
    assert np.isfinite(metric.measure(evidence(X[:least], IDS[:least]), audit))
    with pytest.raises(NotMeasurable, match=f"forget has {least - 1} rows; this takes {least} or more"):
        metric.measure(evidence(X[: least - 1], IDS[: least - 1]), audit)


@pytest.mark.parametrize(
    ("metric", "bounds", "fields"),
    [
        (MutualKNN(), (0, 1), {"reference": "oracle", "k": 10}),
        (Procrustes(), (0, np.sqrt(2)), {"reference": "oracle"}),
        (RSA(), (-1, 1), {"reference": "oracle"}),
        (PCAShift(), (0, np.finfo(np.float64).max), {"components": 2}),
        (PCACosine(), (0, 1), {}),
    ],
)
def test_facts(metric: Procrustes, bounds: tuple[float, float], fields: dict[str, object]) -> None:
    assert (metric.level, metric.side, metric.headline, metric.banks) == (Threat.T0, "diagnostic", False, ())
    assert metric.bounds == pytest.approx(bounds)
    assert metric.hyperparameters() == {"split": "forget", "layer": -1, **fields}
    scenario = SimpleNamespace(modality="language", task="generate", splits=("forget",))
    assert metric.supports(scenario) is None  # type: ignore[arg-type]
    assert metric.wants(scenario) == (Need(what="features", split="forget"),)  # type: ignore[arg-type]
    assert type(metric)(split="test").supports(scenario) == "needs a split 'test', not one of ('forget',)"  # type: ignore[arg-type]
