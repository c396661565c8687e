"""KLOM as a metric: which bank stands where, joins by identity, N, the headline, its interval and its floor."""

from types import SimpleNamespace

import numpy as np
import pytest
from classified import audit, bank, with_margins

from unlearnbench.api import Bank, Estimate, Need, NotMeasurable, UserError
from unlearnbench.distributions import klom
from unlearnbench.fields import construct
from unlearnbench.metrics.klom import Klom, KlomFloor, summary

N, POINTS = 60, 30


def made(seed: int = 0, shift: float = 0.0, scale: float = 1.0, n: int = N) -> np.ndarray:
    return np.random.default_rng(seed).normal(shift, scale, (n, POINTS))


SEEN = with_margins({"forget": np.zeros(POINTS)})


def test_unlearned_models_against_oracles_joined_by_identity() -> None:
    narrow, wide = made(1, 0.0, 0.3), made(2, 0.0, 1.2)
    members = [*bank("oracle", wide), *bank("unlearned", narrow)]
    for statistic in ("p95", "mean"):
        found = Klom(n=N, statistic=statistic).measure(SEEN, audit(members=members))
        assert float(found) == pytest.approx(summary(klom(narrow, wide), statistic), rel=1e-9)
        # The other direction, as one release has it, is another number.
        assert abs(float(found) - summary(klom(wide, narrow), statistic)) > 1
    assert Klom(n=N).banks == (Bank(role="unlearned", n=N), Bank(role="oracle", n=N))


def test_settings_reach_the_formula() -> None:
    unlearned, oracles = made(3, 2.0, 5.0), made(4, 0.0, 5.0)
    members = [*bank("oracle", oracles), *bank("unlearned", unlearned)]
    found = Klom(n=N, bins=7, eps=1e-2, clip=3.0, statistic="mean").measure(SEEN, audit(members=members))
    assert float(found) == pytest.approx(klom(unlearned, oracles, bins=7, eps=1e-2, clip=3.0).mean(), rel=1e-9)


def test_equal_models_are_at_zero_and_others_at_most_at_the_bound() -> None:
    same = made(5)
    members = [*bank("oracle", same), *bank("unlearned", same[::-1])]
    assert float(Klom(n=N).measure(SEEN, audit(members=members))) == 0
    far = [*bank("oracle", same), *bank("unlearned", same + 50)]
    assert 8 < float(Klom(n=N).measure(SEEN, audit(members=far))) <= np.log(1e5)


def test_interval_of_the_headline() -> None:
    values = klom(made(6), made(7))
    found = Klom(n=N).measure(SEEN, audit(members=[*bank("oracle", made(7)), *bank("unlearned", made(6))]))
    assert isinstance(found, Estimate)
    assert found.covers == "items"
    assert found.interval[0] <= float(found) <= found.interval[1]
    assert found.interval[0] > np.median(values)
    assert found.interval[1] <= values.max()


def test_too_few_models_are_refused_with_the_reason() -> None:
    for name, cls in (("klom", Klom), ("klom_floor", KlomFloor)):
        with pytest.raises(UserError, match=r"field 'n' is 49, must be 50 or more: with fewer models a side, KLOM of equal distributions"):
            construct(cls, name, {"n": 49})
        assert construct(cls, name, {"n": 50}).n == 50
    members = [*bank("oracle", made(1)), *bank("unlearned", made(2, n=N - 1))]
    with pytest.raises(NotMeasurable, match="the bank has 59 models of role 'unlearned', not 60"):
        Klom(n=N).measure(SEEN, audit(members=members))
    with pytest.raises(NotMeasurable, match="forget has no rows"):
        Klom(n=N).measure(with_margins({"forget": []}), audit(members=[]))


def test_floor_is_what_equal_models_give() -> None:
    oracles = made(8, n=2 * N)
    floor = KlomFloor(n=N, halves=40).measure(SEEN, audit(members=bank("oracle", oracles)))
    assert floor.covers == "oracles"
    low, high = floor.interval
    assert low < float(floor) < high
    fresh = [summary(klom(made(20 + i), made(60 + i)), "p95") for i in range(20)]
    assert float(floor) == pytest.approx(np.mean(fresh), rel=0.15)
    assert np.mean([low <= value <= high for value in fresh]) > 0.7
    # What differs is above it.
    other = Klom(n=N).measure(SEEN, audit(members=[*bank("oracle", oracles[:N]), *bank("unlearned", made(9, 2.0))]))
    assert float(other) > high
    assert KlomFloor(n=N).banks == (Bank(role="oracle", n=2 * N),)


def test_facts() -> None:
    assert (Klom().side, Klom().headline, Klom().direction, Klom().n) == ("forget", True, "higher", 100)
    assert (Klom(split="test").side, Klom(split="test").headline) == ("diagnostic", False)
    assert not Klom(statistic="mean").headline
    assert (KlomFloor().side, KlomFloor().headline) == ("diagnostic", False)
    scenario = SimpleNamespace(modality="vision", task="classify", splits=("forget",))
    assert Klom().wants(scenario) == (Need(what="logits", split="forget"),)
    assert Klom().supports(scenario) is None
    assert "needs a split 'test'" in str(Klom(split="test").supports(scenario))
    assert "not on language" in str(Klom().supports(SimpleNamespace(modality="language", task="generate", splits=("forget",))))
