"""GUARD-IT: what its gate lets pass stays to the bit, what it does not is turned alike however the model is run, and nothing is erased."""

import copy
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from unlearnbench.api import Need, Split, UserError
from unlearnbench.contracts.tiny_language import TinyLanguage
from unlearnbench.deployed import load_model, save_model
from unlearnbench.layers import blocks, captured, conditioned, inserted, model_hash, strip
from unlearnbench.mechanisms.embedders import HashingTfidfEmbedder
from unlearnbench.mechanisms.steering import quantile_threshold
from unlearnbench.methods.guard_it import GuardIT, Redirection
from unlearnbench.scenarios.language import Encoder, TextData, rows_of
from unlearnbench.scenarios.templates import PromptTemplate, RawText
from unlearnbench.scenarios.text import Example
from unlearnbench.scenarios.text_evidence import text_evidence
from unlearnbench.testing import FORGET_AUTHORS, tiny_language_model, tiny_language_view

VIEW = tiny_language_view()
ask = PromptTemplate().prompt_text
LAYER = 0
"""A quarter of two layers, rounded down."""


def unlearned(**fields: Any) -> nn.Module:
    return GuardIT(**{"alpha": 3.0, **fields}).unlearn(tiny_language_model(), VIEW, seed=0)


def gate(model: nn.Module) -> Redirection:
    ((_, module),) = inserted(model)
    assert isinstance(module, Redirection)
    return module


def prompts(split: Split) -> list[str]:
    return [ask(example.question) for example in split.eval.examples]  # type: ignore[attr-defined]


FORGET, RETAIN = prompts(VIEW.forget), prompts(VIEW.retain)
MIXED = [RETAIN[0], FORGET[0], RETAIN[5], FORGET[3]]


def opened(model: nn.Module, texts: Sequence[str]) -> list[bool]:
    found: list[bool] = (gate(model).condition(texts) != 0).any(1).tolist()
    return found


@torch.no_grad()
def logits(model: nn.Module, texts: Sequence[str], answer: str = " Norwick") -> Tensor:
    """All logits of prompts and an answer, padding left out, one row after the other."""
    assert VIEW.encode is not None
    batch = VIEW.encode([(text, answer) for text in texts])
    with conditioned(model, texts):
        out: Tensor = model(input_ids=batch["input_ids"]).logits
    return out[batch["attention_mask"].bool()]


def generate(model: nn.Module, texts: Sequence[str], **options: Any) -> Tensor:
    inputs = VIEW.tokenizer(texts, return_tensors="pt", return_token_type_ids=False, padding=True, padding_side="left")
    with conditioned(model, texts), torch.no_grad():
        out: Tensor = model.generate(**inputs, do_sample=False, max_new_tokens=5, pad_token_id=0, **options)  # type: ignore[operator]
    return out[:, inputs["input_ids"].shape[1] :]


# ------------------------------------------------------------------------------------------------------------------ what is built


@pytest.mark.parametrize("depth", [0.25, 0.5])
def test_one_clusters_vector_is_that_of_numpy(depth: float) -> None:
    model = unlearned(clusters=1, depth=depth, alpha=0.7)
    layer = int(2 * depth)
    assert [path for path, _ in inserted(model)] == [f"model.layers.{layer}"]

    def documents(split: Split) -> list[Any]:
        """The mean state of each row behind the layer, one row at a time."""
        rows, bare = [], tiny_language_model()
        for index in range(len(split.train)):
            with captured(bare, [layer]) as outputs, torch.no_grad():
                bare(input_ids=split.train.batch([index])["input_ids"])
            rows.append(outputs[layer][0].mean(0).numpy())
        return rows

    forget, retain = np.stack(documents(VIEW.forget)), np.stack(documents(VIEW.retain))
    f, r = forget.mean(0), retain.mean(0)
    s = f - (f @ r) / (r @ r) * r
    length = (np.linalg.norm(forget, axis=1).mean() + np.linalg.norm(retain, axis=1).mean()) / 2
    np.testing.assert_allclose(gate(model).vectors[0], 0.7 * s / np.linalg.norm(s) * length, rtol=1e-3, atol=1e-6)


def test_the_gate_opens_for_what_is_forgotten_alone() -> None:
    model = unlearned()
    assert all(opened(model, FORGET))
    assert not any(opened(model, [*RETAIN, "", "What is the sea?", *VIEW.validation.batch(range(2))["prompts"]]))


def test_centroids_and_thresholds_are_those_of_the_prompts() -> None:
    model, embedder = unlearned(clusters=1, threshold="quantile", target_fpr=0.3), HashingTfidfEmbedder()
    weights = embedder.fit(FORGET + RETAIN)
    mean = embedder.embed(FORGET, weights).mean(0)
    np.testing.assert_allclose(gate(model).centroids[0], mean / np.linalg.norm(mean), atol=1e-9)
    kept = embedder.embed(RETAIN, weights).mean(0)
    np.testing.assert_allclose(gate(model).retained, kept / np.linalg.norm(kept), atol=1e-9)
    others = RETAIN + VIEW.validation.batch(range(len(VIEW.validation)))["prompts"]
    expected = quantile_threshold(embedder.embed(others, weights) @ mean / np.linalg.norm(mean), 0.3)
    assert float(gate(model).thresholds[0]) == pytest.approx(expected, rel=1e-6)
    assert float(gate(unlearned(threshold=0.4)).thresholds[0]) == pytest.approx(0.4)


def threshold(forget: Sequence[float], retain: Sequence[float], **fields: Any) -> float:
    """What the method makes of prompts with these similarities to a single cluster."""
    similarities = {"forget": (np.array(forget)[:, None], None), "others": (np.array(retain)[:, None], None)}
    stub: Any = SimpleNamespace(similarities=lambda texts: similarities[texts[0]])
    return GuardIT(**fields)._threshold(stub, ["forget"], ["others"])


def test_the_rules_weigh_false_positives_and_never_open_to_what_is_unlike() -> None:
    forget, retain = [0.2, 0.6, 0.9], [0.1, 0.3, 0.7, 0.8]
    assert 0.8 < threshold(forget, retain) <= 0.9
    assert threshold(forget, retain, fpr_weight=0.5) == pytest.approx(0.105, abs=0.01)
    assert threshold(forget, retain, threshold="quantile", target_fpr=0.5) == pytest.approx(0.5)
    assert threshold([-0.1, 0.5], [-0.3, -0.2]) == 0.0
    assert threshold(forget, [-0.3, -0.2], threshold="quantile") == 0.0


@pytest.mark.parametrize(("prefix", "all_raw"), [("", True), ("", False), ("A text:", True)])
def test_texts_without_a_question_are_known_by_their_words(prefix: str, all_raw: bool) -> None:
    def raw(split: Split) -> Split:
        encoder = Encoder(VIEW.tokenizer, RawText(prefix))
        rows = TextData([Example(id=text, cluster=text, question="", answer=text) for text in passages(split)], encoder)
        return Split(train=rows, eval=rows)

    def passages(split: Split) -> list[str]:
        return [f" {row.question} {row.answer}." for row in split.train.examples]  # type: ignore[attr-defined]

    view = replace(VIEW, forget=raw(VIEW.forget), retain=raw(VIEW.retain) if all_raw else VIEW.retain)
    model = GuardIT().unlearn(tiny_language_model(), view, seed=0)
    assert all(opened(model, [prefix + text.rpartition(" ")[0] for text in passages(VIEW.forget)]))  # the beginning of each
    kept = [prefix + text for text in passages(VIEW.retain)] if all_raw else RETAIN
    assert not any(opened(model, [prefix, *kept]))


def test_each_selection_serves() -> None:
    for mode, always in (("weighted_threshold", False), ("ratio", False), ("best", True), ("soft", True), ("dissimilar_threshold", True)):
        model = unlearned(selection=mode, clusters=2)
        assert all(opened(model, FORGET)), mode
        assert all(opened(model, RETAIN)) == always, mode


# ----------------------------------------------------------------------------------------------------------------- what it does


@pytest.mark.parametrize("text", [FORGET[0], RETAIN[0]])
def test_states_keep_their_length_and_turn_away_from_the_vector_where_the_gate_is_open(text: str) -> None:
    model = unlearned()
    original = tiny_language_model()
    states = []
    for net in (original, model):
        with captured(net, [LAYER]) as outputs:
            logits(net, [text])
        states.append(outputs[LAYER][0])
    before, after = states
    torch.testing.assert_close(after.norm(dim=-1), before.norm(dim=-1), rtol=1e-12, atol=0)
    if text in RETAIN:
        assert torch.equal(after, before)
    else:
        vector = gate(model).condition([text]).expand_as(before)
        assert (torch.cosine_similarity(after, vector, dim=-1) < torch.cosine_similarity(before, vector, dim=-1)).all()


def test_with_the_gate_shut_or_no_strength_logits_are_the_originals_to_the_bit() -> None:
    original = logits(tiny_language_model(), FORGET + RETAIN)
    assert torch.equal(logits(unlearned(threshold=1.01), FORGET + RETAIN), original)
    assert torch.equal(logits(unlearned(alpha=0.0), FORGET + RETAIN), original)
    assert torch.equal(logits(unlearned(), RETAIN), logits(tiny_language_model(), RETAIN))
    assert not torch.allclose(logits(unlearned(), FORGET), logits(tiny_language_model(), FORGET), atol=0.01)


def test_rows_of_a_mixed_batch_are_those_of_single_ones() -> None:
    model = unlearned(clusters=3)
    conditions = gate(model).condition(MIXED)
    for row, text in enumerate(MIXED):
        assert torch.equal(conditions[row], gate(model).condition([text])[0])
    single = torch.cat([logits(model, [text]) for text in MIXED])
    torch.testing.assert_close(logits(model, MIXED), single, rtol=1e-12, atol=1e-12)


def test_generation_is_the_same_with_and_without_cache_alone_in_batches_and_with_beams() -> None:
    model = unlearned()
    # In a batch, prompts of one length: padding would move positions, and with them the last bits.
    for options in ({}, {"num_beams": 3}, {"num_beams": 3, "num_return_sequences": 2}):
        several = options.get("num_return_sequences", 1)
        for text in MIXED:
            assert torch.equal(generate(model, [text], **options), generate(model, [text], use_cache=False, **options))
        pair = [text for text in FORGET + RETAIN if "born" in text][:4]
        batch = generate(model, pair, **options)
        assert torch.equal(batch, torch.cat([generate(model, [text], **options) for text in pair]))
        assert len(batch) == several * len(pair)
    assert not torch.equal(generate(model, FORGET[:1]), generate(tiny_language_model(), FORGET[:1]))
    assert torch.equal(generate(model, RETAIN[:1]), generate(tiny_language_model(), RETAIN[:1]))


@pytest.mark.parametrize("batch_tokens", [1, 4096])
def test_the_evidence_pass_gives_what_single_rows_give(batch_tokens: int) -> None:
    model = unlearned(clusters=2)
    answers = ("answer", "perturbed_answer")
    needs = [Need(what="tokens", split=split, answer=answer) for split in ("forget", "retain") for answer in answers]  # type: ignore[arg-type]
    texts = [Need(what="generation", split=split) for split in ("forget", "retain")]
    splits = {"forget": rows_of(VIEW.forget.eval), "retain": rows_of(VIEW.retain.eval)}  # type: ignore[arg-type]
    encoder = VIEW.forget.eval.encoder  # type: ignore[attr-defined]
    found = text_evidence(
        model,
        VIEW.tokenizer,
        splits,
        frozenset([*needs, *texts]),
        encode_prompt=encoder.prompt_ids,
        encode_answer=encoder.answer_ids,
        max_new_tokens=5,
        batch_tokens=batch_tokens,
    )
    assert VIEW.encode is not None
    for need in needs:  # with two wrong answers and the right one, every prompt is shared: its keys and values are made once
        for row, pairs in enumerate(splits[need.split].pairs(need)):
            for number, pair in enumerate(pairs):
                tokens = found.tokens(need)[number]
                with torch.no_grad():
                    nll = VIEW.loss(model, VIEW.encode([pair]))
                assert -tokens.logprob[tokens.rows()[row]].mean() == pytest.approx(float(nll), rel=1e-6)
    for need in texts:
        for text, ((prompt, _),) in zip(found.generations(need)[0], splits[need.split].pairs(need), strict=True):
            new = generate(model, [prompt], use_cache=False)[0]
            assert text == VIEW.tokenizer.decode(new, skip_special_tokens=True).strip()


# -------------------------------------------------------------------------------------------------------- what is left, what is kept


def test_stripped_it_is_the_original_to_the_bit() -> None:
    model = unlearned()
    assert not GuardIT.edits_weights
    assert {name for name, _ in model.named_parameters()} == {
        name.replace("layers.0.", "layers.0.inner.") for name, _ in tiny_language_model().named_parameters()
    }
    bare = strip(copy.deepcopy(model))
    assert model_hash(bare) == model_hash(tiny_language_model())
    assert torch.equal(logits(bare, FORGET), logits(tiny_language_model(), FORGET))


def test_saved_and_loaded_it_answers_alike_and_holds_no_text(tmp_path: Path) -> None:
    model = unlearned(clusters=2)
    save_model(model, tmp_path)
    loaded = load_model(tmp_path, lambda: tiny_language_model(seed=1), GuardIT.inserts)
    clone = copy.deepcopy(model)
    expected = logits(model, FORGET + RETAIN)
    gate(model).vectors.zero_()
    assert not torch.equal(logits(model, FORGET), expected[: len(logits(model, FORGET))])
    for other in (loaded, clone):
        assert torch.equal(logits(other, FORGET + RETAIN), expected)
    held = b"".join(path.read_bytes() for path in tmp_path.iterdir()).lower()
    assert all(name.lower().encode() not in held for author in FORGET_AUTHORS for name in (author, author.split()[1]))
    assert json.loads(json.dumps(gate(model).config())) == {
        "clusters": 2,
        "width": 16,
        "features": 2**14,
        "embedder": "hashing_tfidf",
        "selection": "threshold",
    }


def part(author: str) -> Any:
    """The view of a request for one author."""
    rows = VIEW.forget.train.within(frozenset([author]))
    return replace(VIEW, forget=Split(train=rows, eval=rows))


def test_a_later_request_adds_clusters_and_leaves_what_only_old_ones_match_to_the_bit() -> None:
    method = GuardIT(alpha=3.0)
    old = [text for text in FORGET if "Ada Quill" in text]
    new = [text for text in FORGET if "Bram Osk" in text]
    first = method.unlearn(tiny_language_model(), part("Ada Quill"), seed=0)
    kept = copy.deepcopy(gate(first))
    before = logits(first, old)
    assert opened(first, old + new) == [True, True, False, False]
    second = method.unlearn(first, part("Bram Osk"), seed=0)
    assert all(opened(second, old + new))
    assert torch.equal(logits(second, old), before)
    assert torch.equal(logits(second, RETAIN), logits(tiny_language_model(), RETAIN))
    module = gate(second)
    assert len(module.vectors) > len(kept.vectors)
    for name in ("vectors", "centroids", "thresholds"):
        assert torch.equal(getattr(module, name)[: len(kept.vectors)], getattr(kept, name))
    assert kept.retained.any()
    assert torch.equal(module.retained, kept.retained)
    assert torch.equal(module.weights, kept.weights)
    # The new vectors are made of the original's states, not of states that earlier vectors have turned.
    alone = gate(method.unlearn(tiny_language_model(), part("Bram Osk"), seed=0))
    torch.testing.assert_close(module.vectors[len(kept.vectors) :].sum(0), alone.vectors.sum(0))
    assert model_hash(strip(second)) == model_hash(tiny_language_model())


def test_a_later_request_with_other_settings_says_so() -> None:
    first = GuardIT().unlearn(tiny_language_model(), part("Ada Quill"), seed=0)
    with pytest.raises(UserError, match="selection is 'best', but earlier requests were served with 'threshold'"):
        GuardIT(selection="best").unlearn(copy.deepcopy(first), part("Bram Osk"), seed=0)
    with pytest.raises(UserError, match=r"layer is 'model.layers.1', but earlier requests were served with 'model.layers.0'"):
        GuardIT(depth=0.5).unlearn(copy.deepcopy(first), part("Bram Osk"), seed=0)


def test_outside_a_condition_it_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="decides on the prompt"):
        unlearned()(input_ids=torch.tensor([[3, 4]]))


def test_a_layer_that_returns_more_than_states_keeps_the_rest() -> None:
    class Pair(nn.Linear):
        def forward(self, x: Tensor) -> Any:
            return x, "cache"

    module = Redirection(Pair(2, 2), clusters=1, width=2, embedder="hashing_tfidf", features=8, selection="best")
    module.vectors.copy_(torch.tensor([[0.0, 8.0]]))
    with conditioned(module, ["any"]):
        states, rest = module(torch.tensor([[[3.0, 4.0]]]))
    assert (states.tolist(), rest) == ([[[3.0, -4.0]]], "cache")


def test_vision_is_not_applicable_with_a_reason() -> None:
    assert GuardIT().supports(SimpleNamespace(modality="vision", task="classify")) == "works on language, not on vision"  # type: ignore[arg-type]


def test_a_trained_model_no_longer_tells_what_it_forgot_and_tells_the_rest() -> None:
    scenario = TinyLanguage(request="authors")
    (original,) = scenario.train([scenario.plan("original")], [0])
    view = replace(VIEW, **scenario.method_view())
    model = GuardIT(alpha=8.0).unlearn(copy.deepcopy(original.eval()), view, seed=0)
    needs = {split: Need(what="tokens", split=split) for split in ("forget", "retain", "general")}
    hits = {}
    for name, net in (("before", original), ("after", model)):
        found = scenario.evidence(net, frozenset(needs.values()))
        hits[name] = {split: float(found.tokens(need)[0].hit.mean()) for split, need in needs.items()}
    assert min(hits["before"].values()) > 0.95
    assert hits["after"]["forget"] < 0.6
    assert hits["after"]["retain"] > 0.9
    assert hits["after"]["general"] == hits["before"]["general"]
    assert blocks(model)[LAYER][1] is gate(model)
