"""The average gap by hand from four numbers, and what it sees of an oracle, an original and an over-forgotten model."""

from types import SimpleNamespace

import numpy as np
import pytest
from classified import audit, reordered, with_margins

from unlearnbench.api import Need, NotMeasurable
from unlearnbench.evidence import Evidence
from unlearnbench.membership_classifiers import known_rows, svc_says_member
from unlearnbench.metrics.average_gap import AverageGap


def seen(forget: float, test: float = 2.0, seed: int = 0) -> Evidence:
    draw = np.random.default_rng(seed)
    return with_margins({"forget": draw.normal(forget, 2, 50), "retain": draw.normal(6, 2, 90), "test": draw.normal(test, 2, 80)})


def parts(evidence: Evidence) -> np.ndarray:
    def accuracy(split: str) -> float:
        return float(np.mean(evidence.array(Need(what="logits", split=split)).argmax(axis=1) == evidence.labels[split]))

    member = svc_says_member(*known_rows(evidence, limit=2000, seed=0).features("confidence"))
    return np.array([1 - accuracy("forget"), accuracy("retain"), accuracy("test"), 1 - member.mean()])


def test_against_its_definition() -> None:
    model, oracles = seen(4.0, 1.0), [seen(0.0, seed=1), seen(1.0, seed=2), seen(-1.0, seed=3)]
    expected = np.abs(parts(model) - np.mean([parts(oracle) for oracle in oracles], axis=0)).mean()
    assert 0.1 < expected < 0.9
    assert AverageGap().measure(model, audit(oracles=oracles)) == pytest.approx(expected, abs=1e-12)
    assert AverageGap().measure(reordered(model), audit(oracles=oracles)) == pytest.approx(expected, abs=1e-12)


def test_zero_at_the_oracle_and_large_on_either_side() -> None:
    oracle = seen(0.0)
    gaps = [AverageGap().measure(seen(forget), audit(oracles=[oracle])) for forget in (0.0, 6.0, -6.0)]
    assert gaps[0] == 0
    assert min(gaps[1:]) > 0.15


def test_facts() -> None:
    metric = AverageGap()
    assert (metric.side, metric.direction, metric.headline, metric.level) == ("forget", "higher", True, "T0")
    scenario = SimpleNamespace(modality="vision", task="classify", splits=("forget", "retain", "holdout", "test"))
    assert metric.wants(scenario) == tuple(Need(what="logits", split=split) for split in ("forget", "retain", "test"))
    assert metric.supports(scenario) is None
    with pytest.raises(NotMeasurable, match="no oracle"):
        metric.measure(seen(0.0), audit())
