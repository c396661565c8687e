"""Membership rates: which way each counts, which rows it is fitted to, and that no row's order matters."""

from types import SimpleNamespace

import numpy as np
import pytest
from classified import audit, reordered, with_margins

from unlearnbench.api import Need, NotMeasurable
from unlearnbench.evidence import Evidence
from unlearnbench.metrics.membership_rates import EntropyMembership, SVCEfficacy, ThresholdMembership

METRICS = (
    *(SVCEfficacy(feature=feature) for feature in ("confidence", "correctness", "entropy", "modified_entropy", "probability")),
    EntropyMembership(),
    *(ThresholdMembership(feature=feature) for feature in ("confidence", "entropy", "modified_entropy")),
)


def seen(forget: float, n: int = 60) -> Evidence:
    """Members have margins around 6, rows never seen around -2, forget rows around what is given."""
    draw = np.random.default_rng(0)
    return with_margins({"forget": draw.normal(forget, 1, n), "retain": draw.normal(6, 1, 200), "test": draw.normal(-2, 1, 120)})


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: f"{type(metric).__name__}-{getattr(metric, 'feature', 'entropy')}")
def test_efficacy_is_the_share_that_is_no_member_and_the_others_the_share_that_is(metric: object) -> None:
    assert isinstance(metric, (SVCEfficacy, EntropyMembership, ThresholdMembership))
    known, forgotten = (np.mean(list(metric.measure(seen(forget), audit()).values())) for forget in (6.0, -2.0))
    if isinstance(metric, SVCEfficacy):
        known, forgotten = 1 - known, 1 - forgotten
    assert known > 0.9
    assert forgotten < 0.25
    assert metric.direction == ("lower" if isinstance(metric, SVCEfficacy) else "higher")


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: f"{type(metric).__name__}-{getattr(metric, 'feature', 'entropy')}")
def test_order_does_not_matter(metric: SVCEfficacy) -> None:
    evidence = seen(0.2)
    assert metric.measure(reordered(evidence), audit()) == metric.measure(evidence, audit())


def test_limit_and_seed_choose_the_rows() -> None:
    evidence = seen(0.2)
    few = [SVCEfficacy(limit=10, seed=seed).measure(evidence, audit()) for seed in range(6)]
    assert any(one != few[0] for one in few)
    assert SVCEfficacy(limit=120).measure(evidence, audit()) == SVCEfficacy().measure(evidence, audit())


def test_a_class_that_test_lacks_has_the_threshold_of_all() -> None:
    draw = np.random.default_rng(1)
    labels = {"forget": np.full(40, 3), "retain": draw.integers(0, 3, 90), "test": draw.integers(0, 3, 90)}
    margins = {"forget": draw.normal(0, 1, 40), "retain": draw.normal(6, 1, 90), "test": draw.normal(0, 1, 90)}
    rate = np.mean(list(ThresholdMembership(feature="confidence").measure(with_margins(margins, labels), audit()).values()))
    assert rate < 0.15


def test_facts_and_refusals() -> None:
    scenario = SimpleNamespace(modality="vision", task="classify", splits=("forget", "retain", "holdout", "test"))
    metric = SVCEfficacy()
    assert metric.wants(scenario) == tuple(Need(what="logits", split=split) for split in ("forget", "retain", "test"))
    assert (metric.supports(scenario), metric.side, metric.headline, metric.two_sided) == (None, "forget", True, True)
    assert not EntropyMembership().headline
    assert "needs a split 'test'" in str(metric.supports(SimpleNamespace(modality="vision", task="classify", splits=("forget", "retain"))))
    with pytest.raises(NotMeasurable, match="fitted to 2 or more"):
        metric.measure(with_margins({"forget": [1.0], "retain": [1.0], "test": [0.0]}), audit())
