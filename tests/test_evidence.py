"""Evidence containers: what they refuse, and that nothing is lost on disk."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unlearnbench.api import Intervention, Need
from unlearnbench.evidence import Evidence, Missing, Tokens

PLAIN = Need(what="tokens", split="forget", answer="perturbed_answer")
FULL = Need(what="tokens", split="forget", moments=True)
TEXTS = Need(what="generation", split="forget", question="paraphrased_question")
FEATURES = Need(what="features", split="forget", layer=3)
LOGITS = Need(what="logits", split="retain")


def tokens(seed: int, *, moments: bool) -> Tokens:
    generator = np.random.default_rng(seed)
    values = -generator.exponential(size=(3, 5)).astype(np.float32)
    return Tokens(
        logprob=values[0],
        hit=generator.random(5) < 0.5,
        offsets=np.array([0, 2, 5]),
        mean=values[1] if moments else None,
        variance=values[2] if moments else None,
    )


EVIDENCE = Evidence(
    ids={"forget": ("é", "b"), "retain": ("c", "d", "e")},
    clusters={"forget": ("x", "x"), "retain": ("y", "y", "z")},
    token_stats={PLAIN: (tokens(0, moments=False), tokens(1, moments=False)), FULL: (tokens(2, moments=True),)},
    texts={TEXTS: ("one\nline", "")},
    references={TEXTS: ("“two”", "three")},
    arrays={FEATURES: np.arange(6, dtype=np.float32).reshape(2, 3).T[:2], LOGITS: np.ones((3, 4), np.float32)},
    labels={"retain": np.array([3, 0, 1])},
)


def assert_same(left: Any, right: Any) -> None:
    assert type(left) is type(right)
    if isinstance(left, dict):
        assert set(left) == set(right)
        for key in left:
            assert_same(left[key], right[key])
    elif isinstance(left, tuple):
        assert len(left) == len(right)
        for one, other in zip(left, right, strict=True):
            assert_same(one, other)
    elif isinstance(left, np.ndarray):
        assert left.dtype == right.dtype
        np.testing.assert_array_equal(left, right)
    else:
        assert left == right


def test_a_saved_evidence_is_read_back_whole(tmp_path: Path) -> None:
    EVIDENCE.save(tmp_path)
    found = Evidence.load(tmp_path)
    for name in ("ids", "clusters", "token_stats", "texts", "references", "arrays", "labels"):
        assert_same(getattr(found, name), getattr(EVIDENCE, name))


def test_an_empty_evidence_is_read_back(tmp_path: Path) -> None:
    Evidence(ids={}, clusters={}).save(tmp_path)
    assert Evidence.load(tmp_path) == Evidence(ids={}, clusters={})


@dataclass(frozen=True, kw_only=True)
class Nothing(Intervention):
    def applied(self, model: Any) -> AbstractContextManager[None]:
        return nullcontext()


def test_evidence_under_an_intervention_is_not_kept(tmp_path: Path) -> None:
    need = replace(FEATURES, intervention=Nothing())
    with pytest.raises(ValueError, match="is not kept"):
        replace(EVIDENCE, arrays={need: EVIDENCE.arrays[FEATURES]}).save(tmp_path)


def test_rows_and_mean_loss_are_those_of_each_slice() -> None:
    stats = tokens(5, moments=False)
    assert stats.rows() == [slice(0, 2), slice(2, 5)]
    np.testing.assert_allclose(stats.nll(), [-(stats.logprob[0] + stats.logprob[1]) / 2, -stats.logprob[2:].sum() / 3], rtol=1e-6)


def test_moments_serve_a_need_without_them_but_not_the_reverse() -> None:
    assert EVIDENCE.tokens(replace(FULL, moments=False)) is EVIDENCE.token_stats[FULL]
    with pytest.raises(Missing):
        EVIDENCE.tokens(replace(PLAIN, moments=True))


def test_what_was_not_wanted_cannot_be_read() -> None:
    for read in (EVIDENCE.tokens, EVIDENCE.generations, EVIDENCE.array):
        with pytest.raises(Missing, match="elsewhere"):
            read(Need(what="tokens", split="elsewhere"))
    assert EVIDENCE.generations(TEXTS) == (("one\nline", ""), ("“two”", "three"))
    assert EVIDENCE.array(LOGITS).shape == (3, 4)


def test_values_are_joined_by_identity() -> None:
    assert EVIDENCE.by_row("retain", [1, 2, 3]) == {"c": 1.0, "d": 2.0, "e": 3.0}
    with pytest.raises(ValueError):
        EVIDENCE.by_row("retain", [1, 2])
