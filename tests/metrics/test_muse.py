"""MUSE's memories and PrivLeak on texts and scores small enough to count."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer
from sklearn.metrics import roc_auc_score
from torch import nn

from unlearnbench.api import Audit, Member, Need, NotMeasurable, Threat
from unlearnbench.evidence import Evidence, Tokens
from unlearnbench.metrics.muse import KnowMem, PrivLeak, VerbMem, privleak

SCENARIO = SimpleNamespace(modality="language", task="generate", splits=("forget", "retain", "holdout"))


@pytest.mark.parametrize("metric", [VerbMem, KnowMem])
def test_memory_is_the_f1_of_generations(metric: type[VerbMem]) -> None:
    need = Need(what="generation", split="retain")
    texts, references = ("the sea and more words", "hills"), ("by the sea", "one hill there")
    ids = {"retain": ("b", "a")}
    seen = Evidence(ids=ids, clusters=ids, texts={need: texts}, references={need: references})
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    expected = [scorer.score(reference, text)["rougeL"].fmeasure for text, reference in zip(texts, references, strict=True)]
    made = metric(split="retain")
    assert made.wants(SCENARIO) == (need,)
    assert made.measure(seen, Audit(originals=(), oracles=())) == dict(zip(("b", "a"), expected, strict=True))
    assert expected == [pytest.approx(0.5), pytest.approx(0.5)]


@pytest.mark.parametrize(
    ("split", "side"),
    [
        ("forget", "forget"),
        ("verbmem", "forget"),
        ("forget_knowmem", "forget"),
        ("retain", "utility"),
        ("knowmem", "forget"),
        ("retain_knowmem", "utility"),
        ("general", "utility"),
        ("holdout", "diagnostic"),
    ],
)
def test_the_split_says_what_a_memory_speaks_of(split: str, side: str) -> None:
    made = KnowMem(split=split)
    assert (made.side, made.headline, made.direction, made.level, made.curve) == (side, side == "forget", "higher", Threat.T1, False)


# ------------------------------------------------------------------------------------------------------------------ privleak


@pytest.mark.parametrize("metric", [VerbMem, KnowMem])
def test_facts_of_the_memories(metric: type[VerbMem]) -> None:
    assert (metric.bounds, metric.tells_apart, metric.paper) == ((0.0, 1.0), True, "arXiv 2407.06460")


def test_privleak_by_hand() -> None:
    assert privleak(1.0, 0.5) == -100
    assert privleak(0.5, 0.5) == 0
    assert privleak(0.0, 0.5) == 100
    # MUSE's own form, on the AUC of unseen above forgotten.
    assert privleak(0.9, 0.6) == pytest.approx(100 * (0.1 - 0.4) / 0.4)
    with pytest.raises(NotMeasurable, match="oracles' AUC is 1"):
        privleak(0.5, 1.0)


def evidence(seed: int, seen: float) -> Evidence:
    """Rows of three tokens and an end token; forgotten ones are likelier by `seen`."""
    draw = np.random.default_rng(seed)
    splits = {"forget": seen, "holdout": 0.0}
    ids = {split: tuple(f"{split}/{i}" for i in range(15)) for split in splits}
    offsets = np.arange(0, 61, 4)
    stats = {
        Need(what="tokens", split=split): (Tokens((draw.normal(-4 + shift, 1, 60)).astype(np.float32), np.zeros(60, bool), offsets),)
        for split, shift in splits.items()
    }
    return Evidence(ids=ids, clusters=ids, token_stats=stats)


def reversed_auc(seen: Evidence, count: int) -> float:
    """As in MUSE: forget is 0, unseen 1, and the score falls with surprise."""
    scores = []
    for split in ("forget", "holdout"):
        rows = seen.token_stats[Need(what="tokens", split=split)][0].logprob.reshape(15, 4)[:, :3]
        scores += [np.mean(sorted(row)[:count]) for row in rows]
    return float(roc_auc_score([0] * 15 + [1] * 15, scores))


@pytest.mark.parametrize(("share", "count"), [(0.4, 1), (0.7, 2)])
def test_privleak_against_the_oracles(share: float, count: int) -> None:
    model, oracles = evidence(0, 1.5), [evidence(1, 0.0), evidence(2, 0.3)]
    audit = Audit(originals=(), oracles=tuple(Member(role="oracle", seed=i, evidence=one, load=nn.Module) for i, one in enumerate(oracles)))
    reference = np.mean([reversed_auc(oracle, count) for oracle in oracles])
    expected = 100 * (reversed_auc(model, count) - reference) / reference
    made = PrivLeak(share=share)
    assert made.measure(model, audit) == pytest.approx(expected, rel=1e-9)
    assert -100 <= expected < -20
    assert made.wants(SCENARIO) == tuple(Need(what="tokens", split=split) for split in ("forget", "holdout"))
    with pytest.raises(NotMeasurable, match="no oracle to compare with"):
        made.measure(model, Audit(originals=(), oracles=()))


def test_facts_of_privleak() -> None:
    made = PrivLeak()
    assert (made.level, made.side, made.direction, made.headline) == (Threat.T0, "forget", "lower", False)
    assert (made.bounds, made.share) == ((-100, sys.float_info.max), 0.4)
