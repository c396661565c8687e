"""Forgetting quality: by its formula, over banks joined by identity, and between two models."""

import numpy as np
import pytest
from classified import audit, bank, reordered, with_margins

from unlearnbench.api import Bank, NotMeasurable
from unlearnbench.confidence import entropy
from unlearnbench.distributions import forgetting_score, largest_epsilon
from unlearnbench.metrics.forgetting_quality import LOGITS, ForgettingQuality, PopulationForgettingQuality

N, POINTS = 40, 12
SEEN = with_margins({"forget": np.zeros(POINTS)})


def made(seed: int, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(shift, 1, (N, POINTS))


def test_score_of_each_row() -> None:
    unlearned, oracles = made(0, 1.0), made(1)
    members = [*bank("oracle", oracles), *bank("unlearned", unlearned)]
    found = ForgettingQuality(n=N).measure(reordered(SEEN), audit(members=members))
    for i, row in enumerate(SEEN.ids["forget"]):
        # Logits give margins back but for the last digits, which change no order.
        assert found[row] == forgetting_score(np.array([largest_epsilon(unlearned[:, i], oracles[:, i], 1e-5)]))[0]
    assert ForgettingQuality(n=N).banks == (Bank(role="unlearned", n=N), Bank(role="oracle", n=N))


def test_equal_models_have_more_quality_than_others() -> None:
    qualities = []
    for shift in (0.0, 1.0, 20.0):
        members = [*bank("oracle", made(1)), *bank("unlearned", made(2, shift))]
        qualities.append(np.mean(list(ForgettingQuality(n=N).measure(SEEN, audit(members=members)).values())))
    assert qualities[0] > qualities[1] > qualities[2]
    assert qualities[2] == 2.0**-12  # never wrong
    same = [*bank("oracle", made(1)), *bank("unlearned", made(1)[::-1])]
    assert np.mean(list(ForgettingQuality(n=N).measure(SEEN, audit(members=same)).values())) >= qualities[0]
    with pytest.raises(NotMeasurable, match="not 41"):
        ForgettingQuality(n=N + 1).measure(SEEN, audit(members=same))


def test_population_form_takes_the_better_of_two_attacks() -> None:
    draw = np.random.default_rng(3)
    model, oracles = with_margins({"forget": draw.normal(1, 1, 50)}), [with_margins({"forget": draw.normal(0, 1, 50)}) for _ in range(2)]
    expected = []
    for oracle in oracles:
        margins = largest_epsilon(*(one.array(LOGITS)[np.arange(50), np.arange(50) % 4] for one in (model, oracle)), 1e-5)
        entropies = largest_epsilon(entropy(model.array(LOGITS)), entropy(oracle.array(LOGITS)), 1e-5)
        expected.append(2.0 ** -max(margins, entropies))
    found = PopulationForgettingQuality().measure(model, audit(oracles=[reordered(one) for one in oracles]))
    assert found == pytest.approx(np.mean(expected), rel=1e-9)
    assert 0 < found < 1
    far = with_margins({"forget": draw.normal(40, 1, 50)})
    assert PopulationForgettingQuality().measure(far, audit(oracles=oracles)) == 0
    with pytest.raises(NotMeasurable, match="no oracle"):
        PopulationForgettingQuality().measure(model, audit())
