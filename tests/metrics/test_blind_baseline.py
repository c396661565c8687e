"""Blind baseline: finds what differs in kind, nothing where nothing does, and looks at whole clusters."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from classified import audit, names
from pydantic import TypeAdapter, ValidationError
from scipy.stats import t
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from unlearnbench.api import Estimate, Need, NotMeasurable, Threat
from unlearnbench.contracts.scoring import shuffled
from unlearnbench.evidence import Evidence
from unlearnbench.metrics.blind_baseline import BlindBaseline, estimated, fold_aucs, folds_of, image_features, text_features

WORDS = [f"w{i:03d}" for i in range(200)]


def pictures(seed: int, n: int, *, shift: float = 0.0, labels: tuple[int, int] = (0, 0)) -> Evidence:
    """Noise; the first pixel of forget may be shifted, and its labels drawn from others on."""
    draw = np.random.default_rng(seed)
    ids = {split: names(split, n) for split in ("forget", "holdout")}
    pixels = {split: draw.normal(0, 1, (n, 16)).astype(np.float32) for split in ids}
    pixels["forget"][:, 0] += shift
    return Evidence(
        ids=ids,
        clusters=ids,
        arrays={Need(what="pixels", split=split): array for split, array in pixels.items()},
        labels={split: draw.integers(first, 5, n) for split, first in zip(ids, labels, strict=True)},
    )


def texts(seed: int, authors: int, rows: int = 10, *, special: float = 0.0, long: int = 8) -> Evidence:
    """Rows of authors, each with a name of his own and favourite words; of forget some may hold one word more, or more words."""
    draw = np.random.default_rng(seed)
    ids, clusters, answers = {}, {}, {}
    for split in ("forget", "holdout"):
        found, whose = [], []
        for author in range(authors):
            favourite = draw.choice(WORDS, 3)
            for _ in range(rows):
                words = [f"{split[0]}name{author:02d}", *draw.choice(favourite, 2), *draw.choice(WORDS, long if split == "forget" else 8)]
                found.append(" ".join([*words, "special"] if split == "forget" and draw.random() < special else [*words, "usually"]))
                whose.append(f"{split}/author{author}")
        ids[split], clusters[split] = names(split, len(found)), tuple(whose)
        answers[Need(what="text", split=split)] = tuple(found)
    return Evidence(ids=ids, clusters=clusters, references=answers)


def measured(evidence: Evidence, seed: int = 0) -> Estimate:
    return BlindBaseline(seed=seed).measure(evidence, audit())


@pytest.mark.parametrize(
    "evidence",
    [
        pictures(0, 100, shift=1.5),
        pictures(1, 100, labels=(2, 0)),
        pictures(1, 100, labels=(0, 3)),
        texts(2, 10, special=0.6),
        texts(3, 10, long=12),
    ],
    ids=["pixels", "labels", "fewer labels", "words", "lengths"],
)
def test_finds_what_differs_in_kind(evidence: Evidence) -> None:
    found = measured(evidence)
    assert found > 0.65
    assert found.interval[0] > 0.5


def test_says_nothing_where_nothing_differs() -> None:
    """Names that forget and holdout have apart are no difference in kind, since folds are of whole authors."""
    for kind in (lambda seed: pictures(seed, 30), lambda seed: texts(seed, 4)):
        found = [measured(kind(seed)) for seed in range(60)]
        alarms = np.mean([one.interval[0] > 0.5 for one in found]), np.mean([one.interval[1] < 0.5 for one in found])
        assert max(alarms) <= 0.1
        assert abs(np.mean(found) - 0.5) < 3 * np.std(found) / np.sqrt(len(found))


def test_rows_of_an_author_are_judged_by_other_authors() -> None:
    evidence = texts(4, 8)
    by_name = measured(Evidence(ids=evidence.ids, clusters=evidence.ids, references=evidence.references))
    assert by_name > 0.8
    assert by_name.covers == "items"
    assert abs(measured(evidence) - 0.5) < 0.2
    assert measured(evidence).covers == "clusters"


def test_folds_hold_whole_clusters_evenly() -> None:
    clusters = [f"author{number % 7}" for number in range(35)]
    folds = folds_of(clusters, 3, seed=0)
    found = {cluster: set(folds[[name == cluster for name in clusters]]) for cluster in clusters}
    assert all(len(several) == 1 for several in found.values())
    assert sorted(np.bincount([several.pop() for several in found.values()])) == [2, 2, 3]
    assert folds_of(clusters[::-1], 3, seed=0).tolist() == folds[::-1].tolist()
    assert folds_of(clusters, 3, seed=1).tolist() != folds.tolist()


def test_folds_are_judged_by_a_regression_on_the_others() -> None:
    draw = np.random.default_rng(5)
    features, members, folds = draw.normal(0, 1, (60, 4)), np.arange(60) % 3 == 0, np.arange(60) // 3 % 4
    features[members] += 0.5
    found = fold_aucs(features, members, folds)
    for fold in range(4):
        # Weights of classes as copies of rows: one member counts as two others.
        train = np.concatenate([np.flatnonzero(folds != fold), *[np.flatnonzero((folds != fold) & members)]])
        learner = LogisticRegression(C=0.75, max_iter=1000).fit(features[train], members[train])
        scores = learner.decision_function(features[folds == fold])
        assert found[fold] == pytest.approx(roc_auc_score(members[folds == fold], scores), abs=1e-9)


def test_interval_of_the_mean_over_folds() -> None:
    areas = np.array([0.55, 0.65, 0.5, 0.7, 0.6])
    found = estimated(areas, 9, "items")
    half = t.ppf(0.975, 4) * areas.std(ddof=1) * np.sqrt(2 * 4 / (5 * 3))
    assert found == pytest.approx(0.6)
    assert found.interval == pytest.approx((0.6 - half, 0.6 + half))
    assert found.covers == "items"
    # All told apart, n times over: that chance has at least this much.
    assert estimated(np.ones(3), 5, "clusters").interval == pytest.approx((0.025 ** (1 / 5), 1))
    assert estimated(np.zeros(3), 5, "clusters").interval == pytest.approx((0, 1 - 0.025 ** (1 / 5)))
    assert estimated(np.full(3, 0.5), 5, "clusters").interval == (0.5, 0.5)


def test_mean_over_folds_varies_as_much_as_its_interval_says() -> None:
    """Folds that are linear learners of noise: d_k times the sum of the others."""
    draw = np.random.default_rng(6)
    for count in (3, 10):
        d = draw.normal(0, 0.02, (4000, count, 50))
        areas = 0.5 + (d * (d.sum(axis=1, keepdims=True) - d)).sum(axis=2)
        intervals = [estimated(one, 99, "items").interval for one in areas]
        outside = np.mean([not low <= 0.5 <= high for low, high in intervals])
        assert 0.02 < outside < 0.07


def test_order_of_rows_changes_nothing_and_the_seed_does() -> None:
    for evidence in (pictures(7, 40, shift=0.5), texts(8, 6)):
        value = measured(evidence)
        again = measured(shuffled(evidence))
        assert (again, *again.interval) == (value, *value.interval)
        assert measured(evidence, seed=1) != value


def test_features() -> None:
    pixels, labels = np.array([[0.0, 5.0], [2.0, 5.0]], np.float32), np.array([3, 7])
    np.testing.assert_allclose(image_features(pixels, labels), np.array([[-1, 0, -1, 1], [1, 0, 1, -1]])[:, [0, 1, 3, 2]] / 2)
    found = text_features(["A cat, a CAT", "cat a a a dog", "dog"]).toarray()
    assert found[:, :-1].shape[1] == 2**14
    np.testing.assert_allclose(np.linalg.norm(found[:, :-1], axis=1), 1)
    # Letters alone are no words; how often a word stands there does not matter.
    assert abs(found[0, :-1] @ found[2, :-1]) == pytest.approx(0)
    assert found[0, :-1] @ found[1, :-1] == pytest.approx(np.sqrt(1 / 2))
    assert (found[0, -1] > 0) & (found[2, -1] < 0)


def test_too_few_clusters_and_facts() -> None:
    with pytest.raises(NotMeasurable, match=r"rows of 'forget' lie in 2 cluster\(s\); a blind baseline needs 3"):
        measured(texts(9, 2))
    assert measured(texts(9, 3)).covers == "clusters"
    blind = BlindBaseline()
    assert (blind.level, blind.side, blind.headline, blind.curve) == (Threat.T0, "diagnostic", False, False)
    language, vision = SimpleNamespace(modality="language", task="generate"), SimpleNamespace(modality="vision", task="diffuse")
    assert blind.wants(language) == (Need(what="text", split="forget"), Need(what="text", split="holdout"))
    assert blind.wants(vision) == (Need(what="pixels", split="forget"), Need(what="pixels", split="holdout"))
    assert blind.supports(vision) is None
    with pytest.raises(ValidationError):
        TypeAdapter(BlindBaseline).validate_python({"folds": 2})
