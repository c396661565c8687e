"""Forget quality against scipy, and the interval of its distance by simulation."""

from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import ks_2samp
from torch import nn

from unlearnbench.api import Audit, Estimate, Member, Metric, Need, NotMeasurable, Threat
from unlearnbench.evidence import Evidence, Tokens
from unlearnbench.metrics.forget_quality import ForgetDistance, ForgetDistanceNull, ForgetQuality, distance_error, ks_distance

RIGHT = Need(what="tokens", split="forget", answer="paraphrased_answer")
WRONG = Need(what="tokens", split="forget", answer="perturbed_answer")
ROWS = 30


def losses(values: np.ndarray) -> Tokens:
    """Answers of one token with these losses."""
    return Tokens(-values.astype(np.float32), np.zeros(len(values), bool), np.arange(len(values) + 1))


def evidence(seed: int, shift: float = 0.0, rows: Sequence[int] = range(ROWS), per_cluster: int = 5) -> Evidence:
    draw = np.random.default_rng(seed)
    right, wrong = draw.uniform(1, 2, ROWS) + shift, draw.uniform(1, 2, (3, ROWS))
    order = np.array(rows)
    return Evidence(
        ids={"forget": tuple(f"row{i}" for i in rows)},
        clusters={"forget": tuple(f"author{i // per_cluster}" for i in rows)},
        token_stats={RIGHT: (losses(right[order]),), WRONG: tuple(losses(one[order]) for one in wrong)},
    )


def ratio(seen: Evidence) -> np.ndarray:
    """R = geometric mean of wrong probabilities over the right one's."""
    wrong = np.prod([np.exp(-seen.nll(WRONG)[j]) for j in range(3)], axis=0) ** (1 / 3)
    return wrong / np.exp(-seen.nll(RIGHT)[0])


def audit(*oracles: Evidence) -> Audit:
    return Audit(originals=(), oracles=tuple(Member(role="oracle", seed=i, evidence=one, load=nn.Module) for i, one in enumerate(oracles)))


def test_p_and_distance_are_those_of_the_test_on_truth_ratios() -> None:
    model, oracle = evidence(0, shift=-0.3), evidence(1)
    expected = ks_2samp(ratio(model), ratio(oracle))
    assert ForgetQuality().measure(model, audit(oracle)) == pytest.approx(expected.pvalue, rel=1e-12)
    assert float(ForgetDistance().measure(model, audit(oracle))) == pytest.approx(expected.statistic, rel=1e-12)
    assert 0 < expected.pvalue < 0.1
    assert ForgetQuality().wants(SimpleNamespace(modality="language", task="generate")) == (RIGHT, WRONG)


def test_several_oracles() -> None:
    model, oracles = evidence(0, shift=-0.2), [evidence(i) for i in (1, 2, 3)]
    tests = [ks_2samp(ratio(model), ratio(oracle)) for oracle in oracles]
    assert ForgetQuality().measure(model, audit(*oracles)) == pytest.approx(sorted(test.pvalue for test in tests)[1], rel=1e-12)
    assert float(ForgetDistance().measure(model, audit(*oracles))) == pytest.approx(np.mean([test.statistic for test in tests]), rel=1e-12)
    between = [[ks_2samp(ratio(a), ratio(b)).statistic for b in oracles if b is not a] for a in oracles]
    null = ForgetDistanceNull().measure(model, audit(*oracles))
    assert isinstance(null, Estimate)
    means = np.mean(between, axis=1)
    assert float(null) == pytest.approx(means.mean(), rel=1e-12)
    assert (null.interval, null.covers) == ((pytest.approx(means.min()), pytest.approx(means.max())), "oracles")


@pytest.mark.parametrize("seed", range(6))
def test_distance_against_scipy_with_ties(seed: int) -> None:
    draw = np.random.default_rng(seed)
    first, second = draw.integers(0, 6, 17).astype(float), draw.integers(1, 8, 23).astype(float)
    assert ks_distance(first, second) == pytest.approx(ks_2samp(first, second).statistic, rel=1e-12)
    assert ks_distance(second, first) == ks_distance(first, second)


def test_rows_are_joined_by_identity() -> None:
    shuffled = evidence(0, shift=-0.3, rows=np.random.default_rng(9).permutation(ROWS).tolist())
    first, second = (ForgetDistance().measure(seen, audit(evidence(1))) for seen in (evidence(0, shift=-0.3), shuffled))
    assert isinstance(first, Estimate)
    assert isinstance(second, Estimate)
    assert first == second
    assert first.interval == pytest.approx(second.interval, rel=1e-12)
    # A part of the rows is compared with the same part of the oracle's.
    part = evidence(0, shift=-0.3, rows=range(0, ROWS, 2))
    expected = ks_2samp(ratio(part), ratio(evidence(1, rows=range(0, ROWS, 2))))
    assert ForgetQuality().measure(part, audit(evidence(1))) == pytest.approx(expected.pvalue, rel=1e-12)
    with pytest.raises(ValueError, match="lacks 15 rows of 'forget', the first is 'row1'"):
        ForgetQuality().measure(evidence(0), audit(evidence(1), part))


def distribution(values: list[float], weights: list[float], place: float) -> float:
    return sum(weight for value, weight in zip(values, weights, strict=True) if value <= place) / sum(weights)


def test_the_error_is_a_quantile_over_resampled_clusters() -> None:
    draw = np.random.default_rng(5)
    model, oracles = draw.normal(size=9).round(1), [draw.normal(1, 1, 9).round(1) for _ in range(2)]
    clusters = ["b", "a", "d", "b", "c", "a", "f", "e", "g"]
    times = np.random.default_rng(0).multinomial(7, [1 / 7] * 7, 1000).tolist()
    errors = []
    for counts in times:
        weights = [float(counts["abcdefg".index(cluster)]) for cluster in clusters]
        largest = []
        for oracle in oracles:
            gaps = []
            for place in [*model, *oracle]:
                now = distribution(list(model), weights, place) - distribution(list(oracle), weights, place)
                gaps.append(abs(now - distribution(list(model), [1.0] * 9, place) + distribution(list(oracle), [1.0] * 9, place)))
            largest.append(max(gaps))
        errors.append(sum(largest) / 2)
    assert distance_error(model, oracles, clusters) == pytest.approx(np.quantile(errors, 0.95), rel=1e-12)


def test_the_interval_holds_the_true_distance() -> None:
    # Truth ratios of 12 authors with 4 questions each; the author's level is common to both models, the oracle's is 1 lower.
    # D between the two marginal distributions, which are normal with variance 1 + 1: Phi(.5 / sqrt 2) - Phi(-.5 / sqrt 2).
    true, held = 0.2763, 0
    clusters = [str(i // 4) for i in range(48)]
    for seed in range(60):
        draw = np.random.default_rng(seed)
        level = np.repeat(draw.normal(size=12), 4)
        model, oracle = level + draw.normal(size=48), level - 1 + draw.normal(size=48)
        held += abs(ks_distance(model, oracle) - true) <= distance_error(model, [oracle], clusters)
    assert held >= 54
    assert distance_error(model, [oracle], clusters) < 0.35
    assert distance_error(model, [oracle, oracle], clusters) == distance_error(model, [oracle], clusters)


def test_the_interval_says_what_varies() -> None:
    model = evidence(0, shift=-0.3)
    for per_cluster, covers in ((5, "clusters"), (1, "items")):
        found = ForgetDistance().measure(evidence(0, shift=-0.3, per_cluster=per_cluster), audit(evidence(1)))
        assert isinstance(found, Estimate)
        assert found.covers == covers
        assert 0 <= found.interval[0] < found < found.interval[1] <= 1
    two = ForgetDistance().measure(evidence(0, per_cluster=ROWS // 2), audit(evidence(1)))
    assert isinstance(two, Estimate)
    near = ForgetDistance().measure(evidence(0, per_cluster=1), audit(evidence(2)))
    assert isinstance(near, Estimate)
    assert (near.interval[0], near > 0, near.interval[1] > near) == (0.0, True, True)
    far = ForgetDistance().measure(evidence(0, shift=-9.0), audit(evidence(1)))
    assert isinstance(far, Estimate)
    assert (float(far), far.interval[1]) == (1.0, 1.0)
    alone = ForgetDistance().measure(evidence(0, per_cluster=ROWS), audit(evidence(1)))
    assert not isinstance(alone, Estimate)
    with pytest.raises(ValueError, match="1 cluster; an interval needs at least 2"):
        distance_error(ratio(model), [ratio(model)], ["a"] * ROWS)


def test_two_oracles_have_one_distance() -> None:
    null = ForgetDistanceNull().measure(evidence(0), audit(evidence(1), evidence(2)))
    assert isinstance(null, Estimate)
    assert null.interval == (float(null), float(null))
    assert float(null) == pytest.approx(ks_2samp(ratio(evidence(1)), ratio(evidence(2))).statistic, rel=1e-12)


@pytest.mark.parametrize(("metric", "oracles"), [(ForgetQuality, 0), (ForgetDistance, 0), (ForgetDistanceNull, 1)])
def test_without_oracles_there_is_nothing_to_say(metric: type[Metric], oracles: int) -> None:
    with pytest.raises(NotMeasurable, match="oracle"):
        metric().measure(evidence(0), audit(*[evidence(1)] * oracles))


@pytest.mark.parametrize(("metric", "direction"), [(ForgetQuality, "lower"), (ForgetDistance, "higher"), (ForgetDistanceNull, "higher")])
def test_facts(metric: type[Metric], direction: str) -> None:
    made = metric()
    assert (made.direction, made.side, made.level, made.bounds, made.headline) == (direction, "forget", Threat.T0, (0.0, 1.0), False)
