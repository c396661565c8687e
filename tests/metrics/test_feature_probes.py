"""Probes read features and never logits, judge a half they were not fitted to, and find what a new last layer hides."""

from types import SimpleNamespace

import numpy as np
import pytest
from classified import audit, reordered, with_features
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from unlearnbench.api import Need, NotMeasurable
from unlearnbench.drawing import halves
from unlearnbench.evidence import Evidence
from unlearnbench.metrics.feature_probes import KNNTransfer, LinearProbe
from unlearnbench.similarity import knn_classes

CENTRES = np.random.default_rng(0).normal(size=(5, 8)) * 3
PROBES = (KNNTransfer(), LinearProbe())


def seen(told_by: str, seed: int = 1) -> Evidence:
    """Class 4 is to be forgotten, test has the others; only features, or only logits, tell the classes apart."""
    draw = np.random.default_rng(seed)
    labels = {"forget": np.full(60, 4), "test": draw.integers(0, 4, 200)}
    clear = {split: CENTRES[y] + draw.normal(size=(len(y), 8)) for split, y in labels.items()}
    noise = {split: draw.normal(size=(len(y), 8)) for split, y in labels.items()}
    told, blank = (clear, noise) if told_by == "features" else (noise, clear)
    return with_features(told, labels, {split: values[:, :5] for split, values in blank.items()})


@pytest.mark.parametrize("probe", PROBES, ids=["knn", "linear"])
def test_features_tell_and_logits_do_not(probe: KNNTransfer | LinearProbe) -> None:
    values = {told_by: np.mean(list(probe.measure(seen(told_by), audit()).values())) for told_by in ("features", "logits")}
    assert values["features"] > 0.95
    # Logits alone, in which the class is as clear, give chance: they are not looked at.
    assert values["logits"] < 0.5
    wanted = probe.wants(SimpleNamespace(modality="vision", splits=("forget", "test")))  # type: ignore[arg-type]
    assert wanted == (Need(what="features", split="forget", layer=-1), Need(what="features", split="test", layer=-1))


@pytest.mark.parametrize("probe", PROBES, ids=["knn", "linear"])
def test_a_half_is_judged_by_the_other_halves(probe: KNNTransfer | LinearProbe) -> None:
    evidence = seen("features")
    found = probe.measure(evidence, audit())
    parts = {split: halves(evidence.ids[split], evidence.labels[split], 0) for split in ("forget", "test")}
    assert set(found) == {evidence.ids["forget"][i] for i in parts["forget"][1]}
    fitted = np.concatenate([evidence.array(Need(what="features", split=split))[parts[split][0]] for split in parts])
    labels = np.concatenate([evidence.labels[split][parts[split][0]] for split in parts])
    queries = evidence.array(Need(what="features", split="forget"))[parts["forget"][1]]
    if isinstance(probe, KNNTransfer):
        expected = knn_classes(queries, fitted, labels, 5)
    else:
        scale = StandardScaler().fit(fitted)
        expected = LogisticRegression(max_iter=1000).fit(scale.transform(fitted), labels).predict(scale.transform(queries))
    assert [found[evidence.ids["forget"][i]] for i in parts["forget"][1]] == (expected == 4).astype(float).tolist()
    assert probe.measure(reordered(evidence), audit()) == found


def test_rows_judged_are_never_fitted_to_through_another_split() -> None:
    # Features without any sense: only a row that is its own neighbour would be told.
    draw = np.random.default_rng(2)
    features, labels = draw.normal(size=(120, 6)), draw.integers(0, 6, 120)
    evidence = with_features({"forget": features}, {"forget": labels}, {})
    both = Evidence(
        ids={"forget": evidence.ids["forget"], "retain": evidence.ids["forget"]},
        clusters=evidence.clusters,
        arrays={Need(what="features", split=split): features for split in ("forget", "retain")},
        labels={"forget": labels, "retain": labels},
    )
    assert np.mean(list(KNNTransfer(k=1, beside=("retain",)).measure(both, audit()).values())) < 0.4


def test_facts_and_refusals() -> None:
    scenario = SimpleNamespace(modality="vision", task="classify", splits=("forget", "retain", "test"))
    assert (KNNTransfer().side, KNNTransfer(split="test").side, KNNTransfer().headline) == ("forget", "utility", False)
    assert KNNTransfer(split="test").wants(scenario) == (Need(what="features", split="test", layer=-1),)
    assert "needs a split 'near'" in str(KNNTransfer(beside=("near",)).supports(scenario))
    lonely = with_features({"forget": np.ones((4, 2))}, {"forget": np.zeros(4, np.int64)}, {})
    with pytest.raises(NotMeasurable, match="1 classes to fit to"):
        KNNTransfer(beside=()).measure(lonely, audit())
