"""The population attack: chance where rows are alike, more where they differ in either direction; rows drawn by identity."""

import numpy as np
import pytest
from classified import audit, reordered, with_margins

from unlearnbench.api import Need, NotMeasurable
from unlearnbench.evidence import Evidence
from unlearnbench.metrics.population_attack import PopulationAttack


def seen(forget: float, n: int = 100, held_out: int = 300) -> Evidence:
    draw = np.random.default_rng(0)
    return with_margins({"forget": draw.normal(forget, 1, n), "holdout": draw.normal(0, 1, held_out)})


def test_accuracy_tells_whether_rows_differ() -> None:
    values = [PopulationAttack().measure(seen(forget), audit()) for forget in (0.0, 3.0, -3.0)]
    assert abs(values[0] - 0.5) < 0.12
    assert min(values[1:]) > 0.85


def test_sets_are_as_large_and_order_does_not_matter() -> None:
    evidence = seen(1.0)
    value = PopulationAttack().measure(evidence, audit())
    assert PopulationAttack().measure(reordered(evidence), audit()) == pytest.approx(value, abs=1e-9)
    assert PopulationAttack(seed=1).measure(evidence, audit()) != value
    # Unmatched, calling everything unseen would be right in 3 of 4 cases.
    assert abs(PopulationAttack().measure(seen(0.0), audit()) - 0.75) > 0.12


def test_too_few_rows() -> None:
    with pytest.raises(NotMeasurable, match="has 5 rows; the population attack takes 6"):
        PopulationAttack().measure(seen(0.0, 5), audit())
    assert PopulationAttack().wants(None) == (Need(what="logits", split="forget"), Need(what="logits", split="holdout"))  # type: ignore[arg-type]
