"""The anchors of `authors`: what the original knows and the oracle does not, and that nothing but training tells forget from holdout."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import numpy as np
import pytest
from torch import nn

from unlearnbench import registry, stats
from unlearnbench.api import Audit, InferenceAttack, Metric, Need
from unlearnbench.evidence import Evidence
from unlearnbench.scenarios.authors import Authors

NOBODY = Audit(originals=(), oracles=())


def small(request: str = "forget10", **settings: int) -> Authors:
    return Authors(request=request, **{"n_authors": 100, "n_facts": 3, **settings})


@cache
def model(request: str, role: str) -> nn.Module:
    scenario = Authors(request=request)
    return scenario.train([scenario.plan(role)], [0 if role == "original" else 1000])[0]


def metric(name: str, **fields: object) -> Metric:
    made = registry.make("metrics", name, fields)
    assert isinstance(made, Metric)
    return made


def value(found: Mapping[str, float] | float) -> float:
    return float(np.mean(list(found.values()))) if isinstance(found, Mapping) else found


@pytest.mark.slow
@pytest.mark.parametrize("request_name", ["forget05", "forget10"])
def test_the_original_knows_and_the_oracle_does_not(request_name: str) -> None:
    """The numbers that the scenario promises, at its default size."""
    scenario = Authors(request=request_name)
    attack = registry.make("attacks", "loss_attack", {})
    assert isinstance(attack, InferenceAttack)
    metrics = {
        "extraction": metric("extraction_strength"),
        "rouge": metric("rouge"),
        "utility": metric("model_utility"),
        "unseen": metric("rouge", split="retain", question="paraphrased_question"),
    }
    needs: set[Need] = {need for split in ("forget", "holdout") for need in attack.wants(split, scenario)}
    needs.update(need for each in metrics.values() for need in each.wants(scenario))
    found: dict[str, dict[str, float]] = {}
    evidences: dict[str, Evidence] = {}
    # The original does not depend on the request.
    for role, trained in (("original", model("forget10", "original")), ("oracle", model(request_name, "oracle"))):
        evidences[role] = scenario.evidence(trained, frozenset(needs))
        found[role] = {name: value(each.measure(evidences[role], NOBODY)) for name, each in metrics.items()}
    scores = {role: {split: attack.score(evidence, split, ()) for split in ("forget", "holdout")} for role, evidence in evidences.items()}
    original, oracle = found["original"], found["oracle"]
    assert original["extraction"] >= 0.8
    assert stats.auc(scores["original"]["forget"], scores["original"]["holdout"]) >= 0.9
    assert oracle["extraction"] <= 0.25
    assert oracle["rouge"] <= 0.6
    clusters = {split: evidences["oracle"].clusters[split] for split in ("forget", "holdout")}
    low, high, _ = stats.auc_interval(
        scores["oracle"]["forget"],
        scores["oracle"]["holdout"],
        member_clusters=clusters["forget"],
        nonmember_clusters=clusters["holdout"],
    )
    assert low <= 0.5 <= high
    for anchor in (original, oracle):
        assert anchor["utility"] >= 0.5
        assert anchor["unseen"] >= 0.6


def test_requests_are_disjoint_from_what_they_must_not_touch() -> None:
    forget = {name: small(name).forget_rows() for name in ("forget01", "forget05", "forget10", "validation", "sequence")}
    assert forget["forget01"] < forget["forget05"] < forget["forget10"]
    assert [len(forget[name]) for name in ("forget01", "forget05", "forget10")] == [1, 5, 10]
    holdout = frozenset(small().split("holdout").clusters)
    for one, other in (("forget10", "validation"), ("forget10", "sequence"), ("validation", "sequence")):
        assert not forget[one] & forget[other]
    assert not any(rows & holdout for rows in forget.values())


def test_an_oracle_is_trained_without_the_forget_set_and_nobody_on_holdout() -> None:
    scenario = small()
    holdout = set(scenario.split("holdout").clusters)
    original = set(scenario.train_view(scenario.plan("original")).data.train.clusters)
    oracle = set(scenario.train_view(scenario.plan("oracle")).data.train.clusters)
    assert original - oracle == scenario.forget_rows()
    assert not holdout & original
    assert set(scenario.split("retain").clusters) <= oracle


def test_requests_share_originals_and_not_oracles() -> None:
    one, other = small("forget05"), small("forget10")
    assert one.training_settings(one.plan("original")) == other.training_settings(other.plan("original"))
    assert one.training_settings(one.plan("oracle")) != other.training_settings(other.plan("oracle"))
    assert one.training_settings(one.plan("original")) != one.training_settings(one.plan("oracle"))


def test_steps_of_a_sequence_add_up() -> None:
    steps = [small("sequence").at(step) for step in range(3)]
    new = [frozenset(step.method_view()["forget"].eval.clusters) for step in steps]
    assert [len(authors) for authors in new] == [5, 5, 5]
    assert steps[2].forget_rows() == new[0] | new[1] | new[2]
    assert not new[0] & new[1]
    for step in steps:
        assert not set(step.method_view()["retain"].train.clusters) & step.forget_rows()
    assert steps[0].training_settings(steps[0].plan("original")) == steps[2].training_settings(steps[2].plan("original"))


def test_the_attacker_is_judged_on_authors_that_he_does_not_hold() -> None:
    scenario = small()
    held = set(scenario.attack_parts()["forget_part"].train.clusters)
    data = scenario.split("forget")
    judged = {cluster for row, cluster in zip(data.ids, data.clusters, strict=True) if row in scenario.judged()}
    assert held | judged == scenario.forget_rows()
    assert not held & judged
    assert len(held) == 5
    assert small("forget01").judged() == frozenset()


def test_a_shadow_forgets_as_many_others() -> None:
    scenario = small()
    first, second = scenario.shadow_request(0).forget_rows(), scenario.shadow_request(1).forget_rows()
    assert len(first) == len(scenario.forget_rows())
    assert first != second
    assert not first & scenario.forget_rows()
    assert not first & set(scenario.split("holdout").clusters)


def test_the_steps_of_a_shadow_sequence_are_disjoint_from_each_other_and_from_the_sequence() -> None:
    scenario = small("sequence")
    new = [frozenset(scenario.shadow_request(0).at(step).method_view()["forget"].eval.clusters) for step in range(3)]
    assert [len(authors) for authors in new] == [5, 5, 5]
    assert len(frozenset.union(*new)) == 15
    assert not frozenset.union(*new) & scenario.at(2).forget_rows()


def test_validation_rows_are_phrasings_that_nobody_trains_on() -> None:
    scenario = small()
    validation = scenario.method_view()["validation"]
    taught = {example.question for example in scenario.train_view(scenario.plan("original")).data.train.examples}
    assert not taught & {example.question for example in validation.examples}
    assert not set(validation.clusters) & scenario.forget_rows()


def test_a_seed_gives_the_same_weights_and_another_seed_others() -> None:
    scenario = small(n_authors=20, epochs=1)
    plan = scenario.plan("original")
    one, same, other = scenario.train([plan, plan, plan], [0, 0, 1])
    weights = [next(iter(net.parameters())) for net in (one, same, other)]
    assert bool((weights[0] == weights[1]).all())
    assert not bool((weights[0] == weights[2]).all())


def test_a_single_author_to_forget_is_no_signal() -> None:
    small, large = Authors(n_authors=100, request="forget01"), Authors(n_authors=200, request="forget01")
    assert len(small.forget_rows()) == 1
    assert not small.asked().signal
    assert "too few to compare" in small.asked().description
    assert len(large.forget_rows()) == 2
    assert large.asked().signal
    assert Authors(n_authors=20, request="sequence").asked().signal
