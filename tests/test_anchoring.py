"""Standing between the anchors: both ends, the middle, and what lies beyond."""

import numpy as np
import pytest
from torch import nn

from unlearnbench.anchoring import agreement, kept, pooled, way_to_oracle
from unlearnbench.api import Member, NotMeasurable
from unlearnbench.evidence import Evidence


def member(value: float) -> Member:
    evidence = Evidence(ids={"forget": (str(value),)}, clusters={"forget": ("a",)})
    return Member(role="oracle", seed=0, evidence=evidence, load=nn.Module)


def test_a_pool_is_the_mean_of_each_number() -> None:
    found = pooled([member(1.0), member(4.0)], lambda seen: {"x": float(seen.ids["forget"][0]), "y": 2.0}, "oracle")
    assert found == {"x": 2.5, "y": 2.0}
    with pytest.raises(NotMeasurable, match="there is no original to compare with"):
        pooled([], lambda seen: {}, "original")


@pytest.mark.parametrize("value", np.linspace(-0.5, 1.5, 9))
def test_the_scale_is_linear_and_agreement_two_sided(value: float) -> None:
    original, oracle = 0.9, 0.3
    expected = float(np.interp(value, [oracle, original], [1.0, 0.0])) if oracle <= value <= original else None
    way = way_to_oracle("x", value, original, oracle)
    assert way == pytest.approx(1.5 - value / 0.6)
    if expected is not None:
        assert way == pytest.approx(expected)
    assert agreement("x", value, original, oracle) == pytest.approx(max(0.0, way if way <= 1 else 2 - way), abs=1e-12)


def test_anchors_that_agree_measure_nothing() -> None:
    for function in (way_to_oracle, agreement):
        for original in (0.4, 0.3):
            with pytest.raises(NotMeasurable, match=rf"AUC does not tell the original \({original}\) from the oracle \(0.4\)"):
                function("AUC", 0.5, original, 0.4)


def test_what_is_kept_of_the_oracle() -> None:
    assert [kept("x", value, 0.8) for value in (0.0, 0.2, 0.8, 1.0)] == [0.0, 0.25, 1.0, 1.0]
    with pytest.raises(NotMeasurable, match="ROUGE of the oracle is 0"):
        kept("ROUGE", 0.3, 0.0)
