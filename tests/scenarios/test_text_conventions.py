"""What rows and callers may ask of the evidence pass beyond its defaults, against plain forwards of one row."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from letters import END, FORGET, RETAIN, SPLITS, Counting, Letters, _one_thread_and_cache_rows, build, evidence, naive

from unlearnbench.api import Need, UserError
from unlearnbench.evidence import Evidence
from unlearnbench.scenarios.text_evidence import Conventions, Generation, Rows, text_evidence

__all__ = ["_one_thread_and_cache_rows"]

TOKENS = Need(what="tokens", split="forget")
SEVERAL = Need(what="tokens", split="forget", answer="perturbed_answer")
NORMS = Need(what="gradient_norm", split="forget", answer="paraphrased_answer")
TEXT = Need(what="text", split="forget")


def run(model: Any, splits: dict[str, Rows], needs: list[Need], **options: Any) -> Evidence:
    tokenizer = Letters()
    settings: dict[str, Any] = {"max_new_tokens": 6, "batch_tokens": 200} | options
    return text_evidence(
        model, tokenizer, splits, frozenset(needs), encode_prompt=tokenizer.encode, encode_answer=tokenizer.encode, **settings
    )


def test_texts_need_no_forward_and_are_kept_on_disk(tmp_path: Path) -> None:
    model = build(Counting)
    model.reset()
    found = evidence(model, [TEXT])
    assert found.references[TEXT] == tuple(row[0] for row in FORGET.answers["answer"])
    assert model.tokens == 0
    assert not model.continued
    found.save(tmp_path)
    loaded = Evidence.load(tmp_path)
    assert loaded.references == found.references
    assert not loaded.texts


def test_gradient_norms_equal_a_backward_of_one_row_in_double(tmp_path: Path) -> None:
    model = build().double()
    frozen = model.model.embed_tokens.weight.requires_grad_(False)
    found = evidence(model, [NORMS, TOKENS])
    assert not frozen.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
    frozen.requires_grad_(True)
    expected = []
    for question, (answer,) in zip(FORGET.prompts["question"], FORGET.answers["paraphrased_answer"], strict=True):
        model.zero_grad()
        prompt, target = Letters().encode(question), [*Letters().encode(answer), END]
        ids = torch.tensor([prompt + target])
        model(ids, labels=torch.tensor([[-100] * len(prompt) + target])).loss.backward()
        expected.append([np.mean([parameter.grad.norm().item() for parameter in model.parameters()])])
    np.testing.assert_allclose(found.array(NORMS), expected, rtol=1e-6)
    found.save(tmp_path)
    np.testing.assert_array_equal(Evidence.load(tmp_path).array(NORMS), found.array(NORMS))


def continued(model: Any, question: str, length: int) -> str:
    ids = torch.tensor([Letters().encode(question)])
    new = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=length, do_sample=False)[0, ids.shape[1] :].tolist()
    text: str = Letters().decode([i for i in new if i != END])
    return text


def test_splits_are_continued_by_their_own_settings_in_one_queue_for_equal_ones() -> None:
    model = build(Counting)
    with torch.no_grad():
        model.lm_head.weight[END] *= 3
    model.reset()
    texts = {question: continued(model, question, 9) for question in FORGET.prompts["question"]}
    # A letter that some generations reach late and others never, so that rows of a batch stop apart.
    stop = max(
        "".join(texts.values()).replace(" ", "").replace("\n", ""),
        key=lambda letter: sum(text.find(letter, 2) > 1 for text in texts.values()),
    )
    splits = {
        "plain": FORGET,
        "again": RETAIN,
        "longer": replace(RETAIN, generation=Generation(max_new_tokens=9)),
        "stopped": replace(FORGET, generation=Generation(max_new_tokens=9, stop=(stop, "no such text"))),
    }
    model.reset()
    found = run(model, splits, [Need(what="generation", split=split) for split in splits])
    for split, rows in splits.items():
        generated = found.generations(Need(what="generation", split=split))[0]
        length = rows.generation.max_new_tokens or 6
        expected = [continued(model, question, length) for question in rows.prompts["question"]]
        if split == "stopped":
            assert any(stop in text for text in expected)
            expected = [text.split(stop)[0] for text in expected]
        assert generated == tuple(text.strip() for text in expected)
    model.reset()
    run(model, splits, [Need(what="generation", split=split) for split in splits])
    # "why" is in all four splits: once for the two plain ones, once longer, once stopped.
    assert model.continued[tuple(Letters().encode("why"))] == 3


@pytest.mark.parametrize("needs", [[TOKENS], [TOKENS, SEVERAL]])
def test_answers_without_an_end_are_scored_as_they_are(needs: list[Need]) -> None:
    model, splits = build(), {"forget": replace(FORGET, ends=False), "retain": replace(SPLITS["forget"], ends=True)}
    found = run(model, splits, [*needs, replace(TOKENS, split="retain")])
    reference = build().double()
    for need in [*needs, replace(TOKENS, split="retain")]:
        for i, pairs in enumerate(splits[need.split].pairs(need)):
            for number, pair in enumerate(pairs):
                tokens = found.tokens(need)[number]
                expected = naive(reference, *pair)[0][0]
                kept = expected[:-1] if need.split == "forget" else expected
                np.testing.assert_allclose(tokens.logprob[tokens.rows()[i]], kept, rtol=2e-5, atol=2e-5)


def test_one_token_answers_without_an_end_have_no_features() -> None:
    splits = {"forget": replace(FORGET, ends=False)}
    with pytest.raises(UserError, match="has no features"):
        run(build(), splits, [Need(what="features", split="forget")])


HIDDEN = Letters().encode("r")[0]


def paired(prompt: str, answer: str, ends: bool) -> tuple[list[int], int]:
    """Prompt and answer with a border that moves: a comma between them belongs to the prompt."""
    return Letters().encode(f"{prompt},{answer}{'.' * ends}"), len(prompt) + 1


@pytest.mark.parametrize("needs", [[TOKENS], [TOKENS, SEVERAL]])
def test_pairs_encoded_together_with_hidden_tokens(needs: list[Need]) -> None:
    model = build().double()
    found = run(model, SPLITS, needs, conventions=Conventions(encode_pair=paired, hidden=(HIDDEN,)))
    differs = []
    for need in needs:
        for i, pairs in enumerate(FORGET.pairs(need)):
            for number, (prompt, answer) in enumerate(pairs):
                ids, length = paired(prompt, answer, True)
                row = torch.tensor([ids])
                with torch.no_grad():
                    logits = model(row, attention_mask=(row != HIDDEN).long(), position_ids=torch.arange(len(ids))[None]).logits[0]
                    plain = model(row).logits[0]
                expected, other = (
                    values.log_softmax(-1)[range(length - 1, len(ids) - 1), ids[length:]].numpy() for values in (logits, plain)
                )
                tokens = found.tokens(need)[number]
                np.testing.assert_allclose(tokens.logprob[tokens.rows()[i]], expected, rtol=1e-5, atol=1e-6)
                differs.append(not np.allclose(expected, other, rtol=1e-3))
    assert any(differs)
    assert not all(differs)


def test_generation_with_hidden_tokens_takes_positions_from_the_mask() -> None:
    model, length = build().double(), 6
    need = Need(what="generation", split="forget")
    found = run(model, SPLITS, [need], conventions=Conventions(hidden=(HIDDEN,), ends=(31, END)), max_new_tokens=length)
    same = []
    for text, question in zip(found.generations(need)[0], FORGET.prompts["question"], strict=True):
        kept = [i for i in Letters().encode(question) if i != HIDDEN]
        ids = list(kept)
        while len(ids) < len(kept) + length:
            with torch.no_grad():
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] in (31, END):
                ids.pop()
                break
        # A hidden token is neither seen nor counted: as if it were not there.
        assert text == Letters().decode(ids[len(kept) :]).strip()
        same.append(text == continued(model, question, length).strip())
    assert not all(same)


def test_a_decoding_of_ones_own() -> None:
    need = Need(what="generation", split="forget")
    found = run(build(), SPLITS, [need], conventions=Conventions(decode=lambda ids: f" {len(ids)} new "))
    assert found.generations(need)[0] == ("6 new",) * 4


def test_a_pair_without_answer_tokens_is_refused() -> None:
    with pytest.raises(UserError, match="the answer 'a man' has no tokens"):
        run(build(), SPLITS, [TOKENS], conventions=Conventions(encode_pair=lambda prompt, answer, ends: ([3, 4], 2)))
