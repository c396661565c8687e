"""ELM: concepts, strengths and fluent texts, each term alone against numpy, and what the whole does."""

import copy
import random
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from torch import nn

from unlearnbench.api import MethodView, Split, UserError
from unlearnbench.mechanisms.questions import changed
from unlearnbench.methods.elm import CHANGES, ELM, EXPERTS, NOVICES, concepts, cross_entropy, padded, strengths, without_end
from unlearnbench.testing import in_training, tiny_language_model, tiny_language_view, tiny_vision_view
from unlearnbench.training import fit

VIEW = tiny_language_view()
FORGET, RETAIN = VIEW.forget.train, VIEW.retain.train
SETTINGS: dict[str, Any] = {"lr": 5e-3, "epochs": 2, "batch_size": 4, "lora_rank": 4, "fluent_tokens": 3, "depths": (0.0, 1.0)}


def answer_rows(model: nn.Module, batch: dict[str, Any]) -> list[np.ndarray]:
    """Of each row the logits that foretell its answer's tokens."""
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"]).logits.numpy()
    return [row[[t - 1 for t in range(len(labels)) if labels[t] != -100]] for row, labels in zip(logits, batch["labels"], strict=True)]


def test_a_concept_is_what_the_questions_of_its_cluster_alone_hold() -> None:
    assert concepts(FORGET, RETAIN, 8) == ["Quill", "Quill", "Bram Osk", "Bram Osk"]
    asked = ["Where in Norwick did Ada Quill live?", "Was it Norwick?", "Where is Tarn?", "When?"]
    assert concepts(changed(FORGET, questions=asked, user="t"), RETAIN, 2)[0] == "Norwick, in"
    with pytest.raises(UserError, match="the questions of 'Ada Osk' is in a retain question too"):
        concepts(RETAIN, RETAIN, 8)


def test_strengths_rise_along_each_answer() -> None:
    found = strengths(torch.tensor([1, 4, 2]), 1000.0)
    np.testing.assert_allclose(found, [1, *np.linspace(1, 1000, 4), 1, 1000], rtol=1e-6)
    assert strengths(torch.tensor([3]), 0.0).tolist() == [0.0, 0.0, 0.0]


def test_cross_entropy_equals_numpy_for_distributions_and_for_tokens() -> None:
    model, batch = tiny_language_model(), FORGET.batch(range(4))
    rows = answer_rows(model, batch)
    draw = np.random.default_rng(0)
    targets = [softmax(draw.normal(size=row.shape), -1) for row in rows]
    expected = np.mean([-(target * log_softmax(row, -1)).sum(-1).mean() for row, target in zip(rows, targets, strict=True)])
    assert len({len(row) for row in rows}) > 1
    found = cross_entropy(model, batch, torch.from_numpy(np.concatenate(targets)))
    assert float(found.detach()) == pytest.approx(expected, rel=1e-9)
    tokens = torch.from_numpy(np.concatenate([target.argmax(-1) for target in targets]))
    expected = np.mean(
        [-np.take_along_axis(log_softmax(r, -1), t.argmax(-1)[:, None], 1).mean() for r, t in zip(rows, targets, strict=True)]
    )
    assert float(cross_entropy(model, batch, tokens).detach()) == pytest.approx(expected, rel=1e-9)


def captured(method: ELM, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any, list[Any]]:
    """The adapted model, the loss and the first epoch's steps that training is given."""
    seen: list[Any] = []

    def keep(self: Any, model: Any, view: Any, loss: Any, steps: Any, *, n: int, seed: int) -> nn.Module:
        seen.extend((model, loss, list(steps(0))))
        return model  # type: ignore[no-any-return]

    monkeypatch.setattr(ELM, "minimise", keep)
    monkeypatch.setattr("unlearnbench.methods.elm.merged", lambda model: model)
    method.unlearn(tiny_language_model(), VIEW, seed=0)
    return seen[0], seen[1], seen[2]


@pytest.mark.parametrize("strength", [0.0, 5.0])
def test_the_erasing_term_is_taken_to_the_target_of_frozen_expert_and_novice(strength: float, monkeypatch: pytest.MonkeyPatch) -> None:
    method = ELM(strength=strength, top_k=7, retain_weight=0.0, fluency_weight=0.0, **SETTINGS)
    model, loss, steps = captured(method, monkeypatch)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.05)
    bare, terms = tiny_language_model(), []
    (step,) = steps
    current = answer_rows(model, step.forget)
    assert not np.allclose(current[0], answer_rows(bare, step.forget)[0])
    frozen, expert, novice = (answer_rows(bare, part) for part in (step.forget, step.expert, step.novice))
    for now, plain, better, worse in zip(current, frozen, expert, novice, strict=True):
        eta = np.linspace(min(1.0, strength), strength, len(now))[:, None]
        score = log_softmax(plain / 1.2, -1) - eta * (log_softmax(better / 1.2, -1) - log_softmax(worse / 1.2, -1))
        target = np.where(score >= np.sort(score)[:, -7:][:, :1], score, -np.inf)
        terms.append(-(softmax(target, -1) * log_softmax(now, -1)).sum(-1).mean())
    assert float(loss(model, step).detach()) == pytest.approx(np.mean(terms), rel=1e-6)


def test_the_retain_term_goes_to_the_frozen_models_first_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    model, loss, steps = captured(ELM(erase_weight=0.0, fluency_weight=0.0, **SETTINGS), monkeypatch)
    rows = answer_rows(tiny_language_model(), steps[0].retain)
    expected = np.mean([-log_softmax(row, -1).max(-1).mean() for row in rows])
    assert float(loss(model, steps[0]).detach()) == pytest.approx(expected, rel=1e-6)


def test_rows_are_asked_of_an_expert_and_a_novice_in_their_own_concept(monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, (step,) = captured(ELM(**SETTINGS), monkeypatch)
    named = dict(zip(FORGET.batch(range(4))["prompts"], concepts(FORGET, RETAIN, 8), strict=True))
    for templates, part in ((EXPERTS, step.expert), (NOVICES, step.novice)):
        for prompt, told in zip(step.forget["prompts"], part["prompts"], strict=True):
            assert told in [prompt.replace("Question: ", f"Question: {text.format(named[prompt])}") for text in templates]
        rows = [[row[row != -100].tolist() for row in batch["labels"]] for batch in (step.forget, part)]
        assert rows[0] == rows[1]


def fluent(method: ELM, view: MethodView = VIEW, seed: int = 0) -> list[tuple[list[int], int]]:
    told = {text: changed(FORGET, questions=[text.format("it") for _ in range(4)], user="t") for text in (*EXPERTS, *NOVICES)}
    return method._fluent(tiny_language_model(), view, FORGET, told, seed=seed)


def test_fluent_texts_open_with_a_change_of_subject_and_go_on_within_the_context() -> None:
    rows = fluent(ELM(fluent_tokens=3, batch_size=3))
    decode = VIEW.tokenizer.decode
    opened = [VIEW.tokenizer.encode(f" {change}", add_special_tokens=False) for change in CHANGES]
    for (ids, prompt), text in zip(rows, FORGET.batch(range(4))["prompts"], strict=True):
        assert decode(ids[:prompt]) == text
        opening = next(change for change in opened if ids[prompt : prompt + len(change)] == change)
        more = len(ids) - prompt - len(opening)
        assert 1 <= more <= 3
    assert rows == fluent(ELM(fluent_tokens=3, batch_size=3)) != fluent(ELM(fluent_tokens=3, batch_size=3), seed=1)
    assert max(len(ids) for ids, _ in fluent(ELM(fluent_tokens=500))) <= 64


def test_batches_out_of_token_ids_are_those_of_the_encoder() -> None:
    batch, end = FORGET.batch(range(4)), VIEW.tokenizer.eos_token_id
    rows = [without_end(batch, row, end) for row in range(4)]
    again = padded([([*ids, end], prompt) for ids, prompt in rows], VIEW.tokenizer.pad_token_id)
    assert all(torch.equal(again[name], batch[name]) for name in ("input_ids", "labels", "attention_mask"))


def test_answers_known_by_heart_become_unlikely_and_other_subjects_likely() -> None:
    """Retain answers, learned as well, fall less than those to forget."""
    original, rows = tiny_language_model(), [FORGET.batch(range(4)), RETAIN.batch(range(8))]
    recipe = in_training(VIEW, epochs=60, lr=0.02).recipe
    fit(original, lambda net, batch: VIEW.loss(net, batch).mean(), lambda epoch: rows, recipe, seed=0, total_steps=120)
    model = ELM(**{**SETTINGS, "epochs": 30}).unlearn(copy.deepcopy(original), VIEW, seed=0)
    draw = random.Random("elm/0")
    other = changed(FORGET, answers=[draw.choice(CHANGES) for _ in range(4)], user="t").batch(range(4))
    with torch.no_grad():
        forget, retain, fluent = (VIEW.loss(model, batch) - VIEW.loss(original, batch) for batch in (*rows, other))
    assert (forget > 0.1).all()
    assert retain.mean() < 0.5 * forget.mean()
    assert (fluent < -1).all()
    assert not hasattr(model, "peft_config")
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_documents_images_and_nameless_authors_are_refused() -> None:
    documents = SimpleNamespace(modality="language", task="generate", asked=lambda: SimpleNamespace(kind="documents"))
    assert "rows are documents" in str(ELM().supports(documents))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="elm: ImageData has no examples"):
        ELM().unlearn(tiny_language_model(), replace(VIEW, forget=tiny_vision_view().forget), seed=0)
    same = Split(train=copy.copy(RETAIN), eval=RETAIN)
    with pytest.raises(UserError, match="is in a retain question too"):
        ELM().unlearn(tiny_language_model(), replace(VIEW, forget=same), seed=0)
