"""One pass for language against one row at a time in float64, and against the fewest tokens that have to be forwarded."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from letters import (
    END,
    FEATURES,
    FORGET,
    GENERATIONS,
    QUESTIONS,
    RETAIN,
    SPLITS,
    TOKENS,
    Counting,
    Letters,
    _one_thread_and_cache_rows,
    assert_equals_naive,
    build,
    evidence,
    naive,
)
from torch import nn
from transformers import LlamaForCausalLM

from unlearnbench import layers
from unlearnbench.api import Intervention, Need, UserError
from unlearnbench.scenarios.text_evidence import Rows, text_evidence
from unlearnbench.scenarios.text_forward import token_statistics
from unlearnbench.scenarios.text_jobs import batches

__all__ = ["_one_thread_and_cache_rows"]


@pytest.mark.parametrize("pad", [0, END, None])
@pytest.mark.parametrize("batch_tokens", [1, 60, 4000])
def test_equals_one_row_at_a_time_in_double(pad: int | None, batch_tokens: int) -> None:
    model = build()
    found = evidence(model, TOKENS + FEATURES, pad=pad, batch_tokens=batch_tokens)
    assert_equals_naive(found, copy.deepcopy(model).double(), TOKENS + FEATURES, tolerance=2e-5)
    hits = np.concatenate([tokens.hit for need in TOKENS for tokens in found.tokens(need)])
    assert 0 < hits.mean() < 1


def test_single_answers_take_the_whole_pass_and_agree() -> None:
    # With the answer alone, no prompt is shared; elsewhere every prompt is.
    model = build().double()
    alone = [need for need in TOKENS if need.split == "forget" and need.answer == "answer" and need.moments]
    assert_equals_naive(evidence(model, alone), model, alone, tolerance=2e-7)
    assert_equals_naive(evidence(model, TOKENS), model, TOKENS, tolerance=2e-7)


def test_half_precision_logits_are_upcast() -> None:
    model = build().to(torch.bfloat16)
    need = TOKENS[1]
    found = evidence(model, [need], batch_tokens=1).tokens(need)[0]
    np.testing.assert_allclose(found.logprob[found.rows()[0]], naive(model, QUESTIONS[0], "a man")[0][0], rtol=1e-5)


@pytest.mark.parametrize("pad", [0, END])
def test_generation_equals_generate_row_by_row(pad: int) -> None:
    model = build()
    with torch.no_grad():
        model.lm_head.weight[END] *= 3  # Some generations end before the others of their batch.
    found = evidence(model, GENERATIONS, pad=pad, max_new_tokens=12)
    lengths = set()
    for need in GENERATIONS:
        texts, references = found.generations(need)
        rows = SPLITS[need.split].pairs(need)
        assert references == tuple(row[0][1] for row in rows)
        for text, ((prompt, _),) in zip(texts, rows, strict=True):
            ids = torch.tensor([Letters().encode(prompt)])
            new = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)[0, ids.shape[1] :]
            assert text == Letters().decode([i for i in new.tolist() if i != END]).strip()
            lengths.add(len(new))
    assert len(lengths) > 1, "no generation ends early: the test would not see what follows the end token"


def fewest(needs: frozenset[Need]) -> tuple[int, set[tuple[int, ...]]]:
    """Tokens that have to be forwarded (each prompt once, each answer but its end token once), and the sequences."""
    asked: dict[str, set[str]] = {}
    for need in needs:
        if need.what != "generation":
            for pairs in SPLITS[need.split].pairs(need):
                for prompt, answer in pairs:
                    asked.setdefault(prompt, set()).add(answer)
    encode = Letters().encode
    return (
        sum(len(prompt) + sum(map(len, answers)) for prompt, answers in asked.items()),
        {tuple(encode(prompt) + encode(answer)) for prompt, answers in asked.items() for answer in answers},
    )


COUNTING = build(Counting)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.frozensets(st.sampled_from(TOKENS + FEATURES + GENERATIONS), min_size=1), st.sampled_from([1, 100, 4000]))
def test_no_sequence_is_forwarded_twice(needs: frozenset[Need], batch_tokens: int) -> None:
    COUNTING.reset()
    evidence(COUNTING, needs, batch_tokens=batch_tokens)
    tokens, sequences = fewest(needs)
    assert COUNTING.whole == Counter(dict.fromkeys(sequences, 1))
    assert not COUNTING.prompts or max(COUNTING.prompts.values()) == 1
    assert COUNTING.tokens == tokens
    wanted = {pairs[0][0] for need in needs if need.what == "generation" for pairs in SPLITS[need.split].pairs(need)}
    assert COUNTING.continued == Counter(dict.fromkeys((tuple(Letters().encode(prompt)) for prompt in wanted), 1))


@pytest.mark.parametrize(("needs", "widest"), [(TOKENS, len("in nineteen-ten")), (TOKENS[:1], len("in nineteen-ten") + 1)])
def test_logits_are_made_for_answer_positions_only(needs: list[Need], widest: int) -> None:
    COUNTING.reset()
    evidence(COUNTING, needs, batch_tokens=4000)
    assert COUNTING.widest_logits == widest < max(map(len, QUESTIONS))


def test_a_need_without_moments_is_served_by_the_one_with_them() -> None:
    plain, full = TOKENS[0], TOKENS[1]
    assert replace(plain, moments=True) == full
    model = build()
    np.testing.assert_array_equal(evidence(model, [full]).tokens(plain)[0].logprob, evidence(model, [plain]).tokens(plain)[0].logprob)
    assert evidence(model, [plain, full]).tokens(plain)[0].mean is None


def test_moments_skip_tokens_of_probability_zero() -> None:
    # p = (1/4, 3/4, 0): mean = log(1/4)/4 + 3 log(3/4)/4; variance = (3/16) log(3)^2.
    logits = torch.tensor([[[0.0, np.log(3.0), -np.inf]]])
    one = torch.ones(1, 1, dtype=torch.long)
    logprob, hit, mean, variance = token_statistics(logits, one, one, torch.tensor([True])).flatten().tolist()
    assert (logprob, hit) == (pytest.approx(np.log(0.75)), 1.0)
    assert mean == pytest.approx((np.log(0.25) + 3 * np.log(0.75)) / 4)
    assert variance == pytest.approx(3 / 16 * np.log(3) ** 2)


def test_statistics_are_made_only_where_they_are_wanted() -> None:
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    scored = torch.tensor([[1, 1, 0], [0, 1, 1]])
    made = token_statistics(logits, torch.zeros(2, 3, dtype=torch.long), scored, torch.tensor([False, True])).isfinite()
    assert torch.equal(made[0], scored.bool())
    assert torch.equal(made[1], scored.bool())
    assert torch.equal(made[2], torch.tensor([[False] * 3, [False, True, True]]))
    assert torch.equal(made[3], made[2])


@dataclass(frozen=True, kw_only=True)
class Shift(Intervention):
    """Adds a constant ramp to the first block's output."""

    size: float

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        def shifted(module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
            return output + self.size * torch.arange(output.shape[-1], dtype=output.dtype)

        handle = model.get_submodule("model.layers.0").register_forward_hook(shifted)
        try:
            yield
        finally:
            handle.remove()


def test_each_intervention_has_its_own_pass() -> None:
    model, reference = build(), build().double()
    plain = [Need(what="tokens", split="forget", moments=True), Need(what="features", split="forget", layer=0)]
    shifts = [Shift(size=0.5), Shift(size=-2.0)]
    needs = [*plain, *(replace(need, intervention=shift) for need in plain for shift in shifts)]
    found = evidence(model, needs)
    assert_equals_naive(found, reference, plain, tolerance=2e-5)
    for shift in shifts:
        with shift.applied(reference):
            assert_equals_naive(found, reference, [replace(need, intervention=shift) for need in plain], tolerance=2e-5)
    COUNTING.reset()
    evidence(COUNTING, needs)
    assert set(COUNTING.whole.values()) == {3}
    assert not any(module._forward_hooks for module in model.modules())


class Steer(layers.Conditioned):
    """Adds a vector to a block's output where the prompt has a question mark."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__(inner)
        self.vector = nn.Parameter(torch.linspace(-3, 3, 16))
        self.seen: list[str] = []

    def condition(self, prompts: Any) -> torch.Tensor:
        self.seen += prompts
        return torch.tensor([float("?" in prompt) for prompt in prompts])

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        hidden = self.inner(*args, **kwargs)
        return hidden + self.rows(len(hidden))[:, None, None].to(hidden.dtype) * self.vector


def test_a_steering_model_is_conditioned_on_each_prompt_once() -> None:
    plain, model = build(), build()
    steer = Steer(model.model.layers[0])
    layers.insert(model, "model.layers.0", steer)
    always = copy.deepcopy(plain)
    always.model.layers[0].register_forward_hook(lambda module, inputs, output: output + steer.vector.detach())
    found = evidence(model, TOKENS + FEATURES + GENERATIONS, batch_tokens=150)
    on, off = evidence(always, TOKENS + FEATURES + GENERATIONS), evidence(plain, TOKENS + FEATURES + GENERATIONS)

    assert max(Counter(steer.seen).values()) == 1
    assert steer._rows is None
    for need in TOKENS + FEATURES + GENERATIONS:
        for i, pairs in enumerate(SPLITS[need.split].pairs(need)):
            expected, other = (on, off) if "?" in pairs[0][0] else (off, on)
            if need.what == "tokens":
                tokens, same, different = (source.tokens(need)[0] for source in (found, expected, other))
                row = tokens.rows()[i]
                np.testing.assert_allclose(tokens.logprob[row], same.logprob[row], rtol=1e-4, atol=1e-5)
                assert not np.allclose(tokens.logprob[row], different.logprob[row], rtol=1e-2)
            elif need.what == "features":
                np.testing.assert_allclose(found.array(need)[i], expected.array(need)[i], rtol=1e-4, atol=1e-5)
            else:
                assert found.generations(need)[0][i] == expected.generations(need)[0][i]


def test_the_model_is_left_as_it_was() -> None:
    model = build().train()
    model.model.layers[0].eval()
    before = [module.training for module in model.modules()]
    digest = layers.model_hash(model)
    first = evidence(model, TOKENS + FEATURES + GENERATIONS)
    assert [module.training for module in model.modules()] == before
    assert layers.model_hash(model) == digest
    assert not any(module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    second = evidence(model, TOKENS + FEATURES + GENERATIONS)
    for need in TOKENS:
        np.testing.assert_array_equal(first.tokens(need)[0].logprob, second.tokens(need)[0].logprob)


def test_rows_keep_their_identity() -> None:
    found = evidence(build(), TOKENS[:1])
    assert found.ids == {"forget": FORGET.ids, "retain": RETAIN.ids}
    assert found.clusters["retain"] == ("y", "z")
    assert found.by_row("retain", [1.0, 2.0]) == {"d": 1.0, "e": 2.0}


@pytest.mark.parametrize(
    ("need", "message"),
    [
        (Need(what="tokens", split="elsewhere"), "no rows given for split 'elsewhere'"),
        (Need(what="logits", split="forget"), "logits are class scores"),
        (Need(what="features", split="forget", answer="perturbed_answer"), "one answer per row"),
        (Need(what="generation", split="forget", answer="perturbed_answer"), "one answer per row"),
        (Need(what="features", split="forget", layer=2), "has no block 2"),
    ],
)
def test_needs_that_cannot_be_served(need: Need, message: str) -> None:
    with pytest.raises(UserError, match=message):
        evidence(build(), [need])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (Rows(ids=(), clusters=(), prompts={"question": ()}, answers={"answer": ()}), "no rows"),
        (Rows(ids=("a",), clusters=("x",), prompts={"question": ("q",)}, answers={"answer": (("",),)}), "answer '' has no tokens"),
        (Rows(ids=("a",), clusters=("x",), prompts={"question": ("",)}, answers={"answer": (("a",),)}), "prompt '' has no tokens"),
        (Rows(ids=("a",), clusters=("x",), prompts={}, answers={"answer": (("a",),)}), "has no question"),
    ],
)
def test_rows_that_cannot_be_scored(rows: Rows, message: str) -> None:
    tokenizer = Letters()
    with pytest.raises(UserError, match=message):
        text_evidence(
            build(),
            tokenizer,
            {"s": rows},
            frozenset({Need(what="tokens", split="s")}),
            encode_prompt=tokenizer.encode,
            encode_answer=tokenizer.encode,
            max_new_tokens=1,
        )


def test_rows_of_unequal_columns_are_refused() -> None:
    with pytest.raises(ValueError, match="clusters has 1 entries for 2 rows"):
        Rows(ids=("a", "b"), clusters=("x",), prompts={}, answers={})
    with pytest.raises(ValueError, match="differ in their number of perturbed_answer"):
        replace(RETAIN, answers={"perturbed_answer": (("a",), ("b", "c"))})


def test_an_end_token_of_the_tokenizer_is_not_doubled() -> None:
    tokenizer, need = Letters(), TOKENS[0]
    found = text_evidence(
        build(),
        tokenizer,
        SPLITS,
        frozenset({need}),
        encode_prompt=tokenizer.encode,
        encode_answer=lambda text: [*tokenizer.encode(text), END],
        max_new_tokens=1,
    )
    np.testing.assert_array_equal(found.tokens(need)[0].logprob, evidence(build(), [need], batch_tokens=4096).tokens(need)[0].logprob)


def test_a_tokenizer_without_end_token_is_refused() -> None:
    tokenizer = Letters()
    tokenizer.eos_token_id = None  # type: ignore[assignment]
    with pytest.raises(UserError, match="no end token"):
        text_evidence(
            build(), tokenizer, SPLITS, frozenset(TOKENS), encode_prompt=tokenizer.encode, encode_answer=tokenizer.encode, max_new_tokens=1
        )


def test_batches_stay_within_the_budget() -> None:
    made = list(batches([5, 1, 3, 2, 9, 2], width=lambda width: width, rows=lambda width: 1, budget=8))
    assert made == [[1, 2, 2], [3], [5], [9]]


class AllLogits(LlamaForCausalLM):
    """An architecture that makes logits for every position."""

    def forward(self, input_ids: Any = None, attention_mask: Any = None, position_ids: Any = None, **others: Any) -> Any:
        assert "logits_to_keep" not in others
        return super().forward(input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, **others)


def test_a_model_that_cannot_leave_out_logits_gives_the_same() -> None:
    found, expected = (evidence(build(kind), TOKENS) for kind in (AllLogits, LlamaForCausalLM))
    for need in TOKENS:
        np.testing.assert_allclose(found.tokens(need)[0].logprob, expected.tokens(need)[0].logprob, rtol=1e-5, atol=1e-6)
