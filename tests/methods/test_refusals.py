"""Keyword filter and refuse-all: what is gated ends at once, what is not stays to the bit, and stripping gives the original back."""

import copy
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from unlearnbench.api import Method, Split, UserError
from unlearnbench.deployed import load_model, save_model
from unlearnbench.layers import conditioned, model_hash, strip
from unlearnbench.methods.refusals import KeywordFilter, KeywordGate, RefuseAll
from unlearnbench.scenarios.templates import PromptTemplate
from unlearnbench.testing import tiny_language_model, tiny_language_view, tiny_vision_view

VIEW = tiny_language_view()
END = VIEW.tokenizer.eos_token_id
ask = PromptTemplate().prompt_text
METHODS: list[Method] = [KeywordFilter(), RefuseAll()]
each = pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)


def unlearned(method: Method) -> nn.Module:
    return method.unlearn(tiny_language_model(), VIEW, seed=0)


def prompts(split: Split, question: str = "question") -> list[str]:
    return [ask(getattr(example, question)) for example in split.eval.examples]  # type: ignore[attr-defined]


@torch.no_grad()
def logits(model: nn.Module, texts: Sequence[str], answer: str = " Norwick") -> Tensor:
    assert VIEW.encode is not None
    batch = VIEW.encode([(text, answer) for text in texts])
    with conditioned(model, texts):
        out: Tensor = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return out


def generate(model: nn.Module, text: str, **options: int) -> Tensor:
    inputs = VIEW.tokenizer(text, return_tensors="pt", return_token_type_ids=False)
    with conditioned(model, [text]):
        out: Tensor = model.generate(**inputs, do_sample=False, max_new_tokens=5, pad_token_id=0, **options)  # type: ignore[operator]
    return out[:, inputs["input_ids"].shape[1] :]


@pytest.mark.parametrize("question", ["question", "paraphrased_question"])
def test_the_filter_gates_forget_prompts_and_no_others(question: str) -> None:
    gate = unlearned(KeywordFilter()).lm_head
    assert isinstance(gate, KeywordGate)
    assert gate.condition(prompts(VIEW.forget, question)).all()
    assert not gate.condition(prompts(VIEW.retain, question)).any()
    assert not gate.condition(prompts(Split(train=VIEW.validation, eval=VIEW.validation), question)).any()


def test_rows_without_a_keyword_are_the_originals_to_the_bit_in_a_mixed_batch() -> None:
    mixed = [prompts(VIEW.retain)[0], prompts(VIEW.forget)[0], prompts(VIEW.retain)[5], prompts(VIEW.forget)[3]]
    original, filtered = logits(tiny_language_model(), mixed), logits(unlearned(KeywordFilter()), mixed)
    assert torch.equal(filtered[[0, 2]], original[[0, 2]])
    assert (filtered[[1, 3]].argmax(-1) == END).all()
    assert (original[[1, 3]].argmax(-1) != END).any()


@each
def test_gated_prompts_end_at_once_and_stay_finite(method: Method) -> None:
    model = unlearned(method)
    for text in prompts(VIEW.forget):
        assert generate(model, text).tolist() == [[END]]
        assert (generate(model, text, num_beams=2, num_return_sequences=2)[:, 0] == END).any()
    scores = logits(model, prompts(VIEW.forget)).half().log_softmax(-1)
    assert scores.isfinite().all()
    assert (scores[..., END] > -1e-3).all()


def test_generation_of_other_prompts_is_the_originals() -> None:
    text = prompts(VIEW.retain)[0]
    expected = generate(tiny_language_model(), text)
    assert expected.shape[1] == 5
    assert torch.equal(generate(unlearned(KeywordFilter()), text), expected)
    assert generate(unlearned(RefuseAll()), text).tolist() == [[END]]


@each
def test_stripped_it_is_the_original_to_the_bit(method: Method) -> None:
    model = unlearned(method)
    assert model_hash(strip(copy.deepcopy(model))) == model_hash(tiny_language_model())
    assert not method.edits_weights
    assert method.row == "sanity"


@each
def test_saved_and_loaded_it_answers_alike(method: Method, tmp_path: Path) -> None:
    model = unlearned(method)
    save_model(model, tmp_path)
    loaded = load_model(tmp_path, lambda: tiny_language_model(seed=1), method.inserts)
    texts = prompts(VIEW.forget) + prompts(VIEW.retain)
    assert torch.equal(logits(loaded, texts), logits(model, texts))
    assert torch.equal(logits(copy.deepcopy(model), texts), logits(model, texts))


def test_the_configuration_is_json_and_holds_the_names() -> None:
    config = json.loads(json.dumps(unlearned(KeywordFilter()).lm_head.config()))  # type: ignore[operator, union-attr]
    # Ada, Bram and Osk are names of authors to keep too; only the whole name gives Bram Osk away.
    assert config == {"keywords": ["bram osk", "quill"], "end_token": END}


def test_a_second_request_adds_to_the_first() -> None:
    one, two = ([name] for name in ("Ada Quill", "Bram Osk"))
    model = tiny_language_model()
    for authors in (one, two):
        part = VIEW.forget.eval.within(frozenset(authors))
        model = KeywordFilter().unlearn(model, replace(VIEW, forget=Split(train=part, eval=part)), seed=0)
    texts = prompts(VIEW.forget) + prompts(VIEW.retain)
    assert torch.equal(logits(model, texts), logits(unlearned(KeywordFilter()), texts))


def test_outside_a_condition_it_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="decides on the prompt"):
        unlearned(KeywordFilter())(input_ids=torch.tensor([[3, 4]]))


def test_without_words_of_its_own_or_questions_the_filter_says_so() -> None:
    with pytest.raises(UserError, match="is in a retain question too"):
        KeywordFilter().unlearn(tiny_language_model(), replace(VIEW, forget=VIEW.retain), seed=0)
    with pytest.raises(UserError, match="ImageData has no examples"):
        KeywordFilter().unlearn(tiny_language_model(), replace(VIEW, forget=tiny_vision_view().forget), seed=0)


@each
def test_vision_is_not_applicable_with_a_reason(method: Method) -> None:
    assert method.supports(SimpleNamespace(modality="vision", task="classify")) == "works on language, not on vision"  # type: ignore[arg-type]
