"""Activation distance and ZRF by hand, joined by identity."""

import numpy as np
import pytest
from classified import audit, member, reordered, with_margins

from unlearnbench.api import Bank, NotMeasurable
from unlearnbench.metrics.softmax_distances import ZRF, ActivationDistance


def odds(p: list[float]) -> np.ndarray:
    return np.log(np.array(p) / (1 - np.array(p)))


def test_activation_distance_to_two_oracles() -> None:
    # Two classes, all rows labelled 0: probabilities (p, 1 - p) lie |p - q| sqrt(2) apart.
    labels = {"forget": np.zeros(2, np.int64)}
    model, one, other = (with_margins({"forget": odds(p)}, labels, classes=2) for p in ([0.9, 0.2], [0.5, 0.2], [0.7, 0.6]))
    found = ActivationDistance().measure(model, audit(oracles=[reordered(one), other]))
    assert found == {"forget/000": pytest.approx(0.3 * np.sqrt(2)), "forget/001": pytest.approx(0.2 * np.sqrt(2))}
    with pytest.raises(NotMeasurable, match="no oracle"):
        ActivationDistance().measure(model, audit())
    assert (ActivationDistance().direction, ActivationDistance().side) == ("higher", "forget")


def test_zrf_is_one_minus_the_divergence_in_bits() -> None:
    labels = {"forget": np.zeros(2, np.int64)}
    model, untrained = (with_margins({"forget": odds(p)}, labels, classes=2) for p in ([0.5, 0.9], [0.5, 0.1]))
    found = ZRF(n=1).measure(model, audit(members=[member(untrained, "untrained"), member(model, "oracle")]))
    # Of (0.9, 0.1) and (0.1, 0.9) the middle is even: 1 - JS = the entropy of 0.9 in bits.
    assert found == {"forget/000": pytest.approx(1.0), "forget/001": pytest.approx(-0.9 * np.log2(0.9) - 0.1 * np.log2(0.1))}
    # Without 1 -, or with the arguments of the divergence reversed (0.26), it would be another number.
    assert found["forget/001"] == pytest.approx(0.469, abs=1e-3)
    both = [member(untrained, "untrained"), member(model, "untrained", 1)]
    assert ZRF().measure(model, audit(members=both))["forget/001"] == pytest.approx((1 + 0.469) / 2, abs=1e-3)
    with pytest.raises(NotMeasurable, match="no untrained model"):
        ZRF().measure(model, audit())
    assert ZRF(n=3).banks == (Bank(role="untrained", n=3),)
