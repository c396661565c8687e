"""Membership scores of a split: which tokens and texts count, and the area over forget and holdout."""

import zlib

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from unlearnbench.api import Need, NotMeasurable
from unlearnbench.evidence import Evidence, Missing, Tokens
from unlearnbench.membership import (
    forget_auc,
    loss_scores,
    min_k_plus_plus_scores,
    min_k_scores,
    text_of,
    tokens_of,
    zlib_scores,
)

LENGTHS = (3, 6, 2)
TEXTS = ("one two", "a much longer answer that is longer", "x")


def tokens(seed: int = 0, lengths: tuple[int, ...] = LENGTHS, *, moments: bool = True) -> Tokens:
    draw = np.random.default_rng(seed)
    total = sum(lengths)
    logprob = -draw.exponential(2.0, total).astype(np.float32)
    mean, variance = -draw.exponential(2.0, total).astype(np.float32), draw.uniform(0.5, 2.0, total).astype(np.float32)
    offsets = np.cumsum([0, *lengths]).astype(np.int64)
    return Tokens(logprob, np.zeros(total, bool), offsets, *((mean, variance) if moments else ()))


def evidence(split: str, stats: Tokens) -> Evidence:
    ids = {split: tuple(f"{split}/{i}" for i in range(len(stats.offsets) - 1))}
    need = tokens_of(split, moments=stats.mean is not None)
    return Evidence(ids=ids, clusters=ids, token_stats={need: (stats,)}, references={text_of(split): TEXTS})


def test_the_loss_counts_the_end_token_and_zlib_the_answer_alone() -> None:
    stats = tokens()
    seen = evidence("forget", stats)
    losses = [-np.mean(stats.logprob[row].astype(float)) for row in stats.rows()]
    np.testing.assert_allclose(loss_scores(seen, "forget"), np.negative(losses), rtol=1e-12)
    sizes = [len(zlib.compress(text.encode())) for text in TEXTS]
    np.testing.assert_allclose(zlib_scores(seen, "forget"), -np.array(losses) / sizes, rtol=1e-12)


@pytest.mark.parametrize("share", [0.4, 1.0])
def test_the_lowest_tokens_do_not_count_the_end_token(share: float) -> None:
    stats = tokens()
    assert stats.mean is not None
    assert stats.variance is not None
    seen = evidence("forget", stats)
    standard = (stats.logprob.astype(float) - stats.mean) / np.sqrt(stats.variance.astype(float))
    for found, values in ((min_k_scores, stats.logprob), (min_k_plus_plus_scores, standard)):
        expected = []
        for start, end in zip(stats.offsets[:-1], stats.offsets[1:], strict=True):
            text = sorted(values[start : end - 1])
            expected.append(np.mean(text[: max(1, int(share * len(text)))]))
        np.testing.assert_allclose(found(seen, "forget", share), expected, rtol=1e-5)


def test_where_the_model_is_certain_the_variance_has_a_floor() -> None:
    flat = tokens()._replace(
        logprob=np.full(11, -2.0, np.float32), mean=np.full(11, -1.0, np.float32), variance=np.full(11, -1e-9, np.float32)
    )
    np.testing.assert_allclose(min_k_plus_plus_scores(evidence("forget", flat), "forget", 0.4), -1000.0)


def test_moments_must_be_there() -> None:
    with pytest.raises(Missing):
        min_k_plus_plus_scores(evidence("forget", tokens(moments=False)), "forget", 0.4)
    whole = evidence("forget", tokens())
    for hollow in (tokens(moments=False), tokens()._replace(mean=None), tokens()._replace(variance=None)):
        seen = Evidence(ids=whole.ids, clusters=whole.clusters, token_stats={tokens_of("forget", moments=True): (hollow,)})
        with pytest.raises(ValueError, match="'forget' have no moments"):
            min_k_plus_plus_scores(seen, "forget", 0.4)


def test_an_answer_without_text_is_an_error() -> None:
    with pytest.raises(ValueError, match="no token besides the end token"):
        min_k_scores(evidence("forget", tokens(lengths=(3, 1, 2))), "forget", 0.4)
    with pytest.raises(ValueError, match="zip"):
        zlib_scores(evidence("forget", tokens(lengths=(3, 2))), "forget")


def test_area_of_forget_against_holdout() -> None:
    lengths = tuple(np.random.default_rng(3).integers(2, 9, 12))
    forget, holdout = tokens(1, lengths), tokens(2, lengths)
    both = evidence("forget", forget).joined(evidence("holdout", holdout))
    expected = roc_auc_score([1] * 12 + [0] * 12, [*loss_scores(both, "forget"), *loss_scores(both, "holdout")])
    assert forget_auc(both, loss_scores) == pytest.approx(expected, rel=1e-12)
    assert expected != 0.5
    with pytest.raises(NotMeasurable, match="split 'holdout' has no rows"):
        forget_auc(evidence("forget", forget), loss_scores)


def test_needs() -> None:
    assert tokens_of("retain") == Need(what="tokens", split="retain")
    assert tokens_of("retain", moments=True) == Need(what="tokens", split="retain", moments=True)
    assert text_of("retain") == Need(what="text", split="retain")
