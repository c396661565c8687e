"""The loss attack's scores against cross-entropy as torch computes it, and their use."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from unlearnbench.api import Need
from unlearnbench.attacks.loss_attack import LossAttack
from unlearnbench.confidence import label_log_probability
from unlearnbench.evidence import Evidence, Tokens


def test_label_log_probability_is_minus_cross_entropy() -> None:
    draw = np.random.default_rng(0)
    logits, labels = draw.normal(size=(40, 6)).astype(np.float32) * 4, draw.integers(0, 6, 40)
    loss = torch.nn.functional.cross_entropy(torch.from_numpy(logits).double(), torch.from_numpy(labels), reduction="none")
    np.testing.assert_allclose(label_log_probability(logits, labels), -loss.numpy(), rtol=1e-12)


def test_a_certain_classifier_still_has_distinct_scores() -> None:
    # In float32, or through the probability, both would be 0.
    scores = label_log_probability(np.array([[40.0, 0.0], [50.0, 0.0], [9000.0, 0.0]]), np.array([0, 0, 1]))
    assert scores[2] == -9000.0
    wrong = label_log_probability(np.array([[20.0, 0.0], [30.0, 0.0]]), np.array([0, 0]))
    np.testing.assert_allclose(wrong, [-np.exp(-20.0), -np.exp(-30.0)], rtol=1e-2)


def test_language_scores_are_mean_log_probabilities_per_token_with_the_end_token() -> None:
    need = Need(what="tokens", split="holdout")
    logprob = np.log(np.array([0.5, 0.125, 0.9, 0.8, 0.3], np.float32))
    stats = (Tokens(logprob, np.zeros(5, bool), np.array([0, 2, 5])),)
    ids = {"holdout": ("a", "b")}
    scores = LossAttack().score(Evidence(ids=ids, clusters=ids, token_stats={need: stats}), "holdout", ())
    np.testing.assert_allclose(scores, [np.log(0.25), np.log(0.9 * 0.8 * 0.3) / 3], rtol=1e-6)
    assert LossAttack().wants("holdout", SimpleNamespace(modality="language", task="generate")) == (need,)


def vision(logits: np.ndarray) -> Evidence:
    ids = {"forget": tuple(map(str, range(len(logits))))}
    need = Need(what="logits", split="forget")
    return Evidence(ids=ids, clusters=ids, arrays={need: logits}, labels={"forget": np.zeros(len(logits), np.int64)})


def test_vision_scores_tell_members_from_others() -> None:
    draw = np.random.default_rng(1)
    attack = LossAttack()
    assert attack.wants("forget", SimpleNamespace(modality="vision", task="classify")) == (Need(what="logits", split="forget"),)
    noise = draw.normal(size=(400, 3))
    fitted = noise + np.array([4.0, 0.0, 0.0])
    members, others = attack.score(vision(fitted[:200]), "forget", ()), attack.score(vision(noise[200:]), "forget", ())
    marks = np.repeat([1, 0], 200)
    assert roc_auc_score(marks, np.concatenate([members, others])) > 0.95
    unseen = attack.score(vision(noise[:200]), "forget", ())
    assert abs(roc_auc_score(marks, np.concatenate([unseen, others])) - 0.5) < 2 * 0.029


def test_scores_of_a_denoising_model_are_minus_its_losses() -> None:
    need = Need(what="denoising_loss", split="forget")
    assert LossAttack().wants("forget", SimpleNamespace(modality="vision", task="diffuse")) == (need,)
    ids = {"forget": ("a", "b")}
    losses = np.array([[0.25], [0.5]], np.float32)
    evidence = Evidence(ids=ids, clusters=ids, arrays={need: losses}, labels={"forget": np.array([0, 1])})
    assert LossAttack().score(evidence, "forget", ()).tolist() == [-0.25, -0.5]


def test_nan_is_an_error() -> None:
    with pytest.raises(ValueError, match="1 of 2 rows of 'forget' is NaN"):
        LossAttack().score(vision(np.array([[0.0, 1.0], [np.nan, 0.0]])), "forget", ())


def test_serves_both_modalities() -> None:
    for modality, task in (("language", "generate"), ("vision", "classify")):
        assert LossAttack().supports(SimpleNamespace(modality=modality, task=task)) is None
