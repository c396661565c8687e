"""Encoding and collation at their borders, and the tokenizer and model made from scratch."""

import pytest
import torch
from transformers import LlamaForCausalLM

from unlearnbench.api import UserError
from unlearnbench.scenarios.fiction import generate
from unlearnbench.scenarios.language import Encoder
from unlearnbench.scenarios.templates import PromptTemplate
from unlearnbench.scenarios.text import IGNORE_INDEX, Encoded, collate, join
from unlearnbench.scenarios.tiny_lm import build_model, build_tokenizer

PROMPT, ANSWER = "Question: Who wrote it?\nAnswer:", " Ada Brook"


class LetterTokenizer:
    """Two lower-case letters 'ab' merge into one token; a beginning-of-sequence token on request. pad == eos == 0."""

    eos_token_id: int | None = 0
    bos_token_id: int | None = 1

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        ids = [self.bos_token_id] if add_special_tokens else []
        return ids + [ord(letter) for letter in text.replace("ab", "\x02")]


def encode(tokenizer: object, prompt: str, answer: str, *, max_length: int | None = None, ends: bool = True) -> Encoded:
    return Encoder(tokenizer, PromptTemplate(), max_length, ends).pair(prompt, answer)


def tiny_model() -> LlamaForCausalLM:
    return build_model(130, seed=0, hidden_size=16, n_heads=2, mlp_size=24, eos_token_id=0, pad_token_id=0).double().eval()


def answer_loss(model: LlamaForCausalLM, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Summed loss of each row, written out: position t predicts token t + 1."""
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    log_probs = logits[:, :-1].log_softmax(-1)
    labels = batch["labels"][:, 1:]
    picked = log_probs.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    return -(picked * (labels != IGNORE_INDEX)).sum(1)


def test_prompt_and_answer_do_not_merge_across_the_border() -> None:
    encoded = encode(LetterTokenizer(), "a", "b")
    assert encoded == Encoded((1, ord("a"), ord("b"), 0), prompt_len=2)


def test_special_tokens_open_the_prompt_alone_and_eos_closes_the_answer() -> None:
    encoded = encode(LetterTokenizer(), "xy", "z")
    assert encoded.input_ids == (1, ord("x"), ord("y"), ord("z"), 0)
    assert encoded.prompt_len == 3


def test_answer_without_tokens_is_refused() -> None:
    with pytest.raises(UserError, match="the answer '' to 'xy' has no tokens"):
        encode(LetterTokenizer(), "xy", "")


def test_prompt_without_tokens_is_refused() -> None:
    with pytest.raises(UserError, match="the prompt 'x' has no tokens"):
        join([], [5], end=0, texts=("x", "y"))


def test_no_prompt_is_the_token_that_begins_a_sequence_or_else_the_end_token() -> None:
    tokenizer = LetterTokenizer()
    assert encode(tokenizer, "", "z") == Encoded((1, ord("z"), 0), prompt_len=1)
    tokenizer.bos_token_id = None
    assert encode(tokenizer, "", "z") == Encoded((0, ord("z"), 0), prompt_len=1)


def test_an_end_token_is_never_doubled_and_a_text_of_a_corpus_has_none() -> None:
    assert encode(LetterTokenizer(), "x", "z\0").input_ids == (1, ord("x"), ord("z"), 0)
    assert encode(LetterTokenizer(), "x", "z", ends=False).input_ids == (1, ord("x"), ord("z"))


def test_a_one_token_answer_is_scored_with_its_end_token() -> None:
    batch = collate([encode(LetterTokenizer(), "who?", "x")], pad_id=0)
    assert [label for label in batch["labels"][0].tolist() if label != IGNORE_INDEX] == [ord("x"), 0]


def test_tokenizer_without_eos_is_refused() -> None:
    tokenizer = LetterTokenizer()
    tokenizer.eos_token_id = None
    with pytest.raises(UserError, match="eos_token"):
        encode(tokenizer, "x", "y")


def test_sequence_that_just_fits_passes_and_one_token_more_is_refused() -> None:
    assert len(encode(LetterTokenizer(), "xy", "z", max_length=5).input_ids) == 5
    with pytest.raises(UserError, match="'xyz' has 5 tokens; the context allows 4"):
        encode(LetterTokenizer(), "xy", "z", max_length=4)
    with pytest.raises(UserError, match=r"the prompt 'y{50} \[...\] y{25}' alone has 101 tokens; the context allows 4"):
        encode(LetterTokenizer(), 100 * "y", "z", max_length=4)


def test_collate_by_hand() -> None:
    batch = collate([Encoded((5, 6, 7, 8, 0), 3), Encoded((5, 9, 0), 1)], pad_id=0)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 0], [5, 9, 0, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    ignored = IGNORE_INDEX
    assert batch["labels"].tolist() == [[ignored, ignored, ignored, 8, 0], [ignored, 9, 0, ignored, ignored]]
    assert {tensor.dtype for tensor in batch.values()} == {torch.long}


def test_collate_keeps_a_pad_token_inside_the_sequence() -> None:
    # pad == eos, and a chat prompt holds end-of-sequence tokens: they are attended to.
    batch = collate([Encoded((0, 5, 0, 7, 0), 3), Encoded((5, 7, 0), 1)], pad_id=0)
    assert batch["attention_mask"][0].tolist() == [1, 1, 1, 1, 1]


def test_empty_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="empty batch"):
        collate([], pad_id=0)


@pytest.mark.parametrize("pad_id", [0, 77])
def test_padding_changes_no_loss(pad_id: int) -> None:
    model = tiny_model()
    tokenizer = LetterTokenizer()
    rows = [encode(tokenizer, "who?", answer) for answer in ("x", "long answer", "four")]
    together = answer_loss(model, collate(rows, pad_id))
    alone = torch.cat([answer_loss(model, collate([row], pad_id)) for row in rows])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)
    assert len(set(alone.tolist())) == 3


def test_labels_give_the_loss_transformers_computes() -> None:
    model = tiny_model()
    batch = collate([encode(LetterTokenizer(), "who?", answer) for answer in ("x", "long answer")], pad_id=0)
    n_scored = (batch["labels"] != IGNORE_INDEX).sum()
    assert n_scored == 2 + 12  # "x" and eos; eleven letters and eos
    expected = answer_loss(model, batch).sum() / n_scored
    # transformers computes its loss in single precision.
    torch.testing.assert_close(model(**batch).loss.double(), expected, rtol=1e-6, atol=0)


def test_template_puts_the_space_into_the_answer() -> None:
    template = PromptTemplate()
    assert template.prompt_text("Who?") + template.answer_text("Ada") == "Question: Who?\nAnswer: Ada"
    assert not template.prompt_text("Who?").endswith(" ")


def test_every_word_is_one_token_for_every_author() -> None:
    fiction = generate(n_authors=20, n_facts=5)
    template = PromptTemplate()
    texts = [template.prompt_text(text) + template.answer_text(text) for text in fiction.texts()]
    tokenizer = build_tokenizer(texts, phrases=("Question:", "\nAnswer:"))
    for row in (*fiction.rows, *fiction.general):
        prompt, answer = template.prompt_text(row.question), template.answer_text(row.answer)
        encoded = encode(tokenizer, prompt, answer)
        words, commas = len(row.answer.split()), row.answer.count(",")
        assert len(encoded.input_ids) - encoded.prompt_len == words + commas + 1
        assert encoded.prompt_len == len(row.question.split()) + 3  # "Question:", "?" and "\nAnswer:"
        assert tokenizer.decode(encoded.input_ids[:-1]) == prompt + answer


@pytest.mark.parametrize("text", ["I don't know.", "  two  spaces\n\n", "Ünïcode ▁ 🙂_x", "Anna Annasson", ""])
def test_unknown_text_survives_a_round_trip_without_an_unknown_token(text: str) -> None:
    tokenizer = build_tokenizer(["Anna", " two"])
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == text
    assert tokenizer.unk_token_id not in ids


def test_tokenizer_depends_on_the_set_of_texts_alone() -> None:
    texts = ["Who was Anna?", "Anna was born", "born"]
    assert build_tokenizer(texts).get_vocab() == build_tokenizer([*reversed(texts), "Anna"]).get_vocab()
    tokenizer = build_tokenizer(texts)
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 1)


def test_model_is_drawn_from_its_seed_and_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    one, same, other = (build_model(50, seed=seed, hidden_size=16, mlp_size=24) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not torch.equal(one.lm_head.weight, other.lm_head.weight)
    assert one.lm_head.weight is one.model.embed_tokens.weight
