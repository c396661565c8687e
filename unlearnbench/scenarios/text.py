"""What language scenarios share on the data side: one example, its prompt, its token ids, a padded batch.

Knows nothing of a model or a loss. Three conventions hold everywhere (each is where published code went wrong):

- Prompt and answer are tokenised apart, so the answer's tokens never depend on a merge across the border and the number
  of prompt tokens is exact.
- The end-of-sequence token is appended and scored.
- Masks come from lengths, never from `ids != pad`, so that a tokenizer whose pad token is its end-of-sequence token works.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

IGNORE_INDEX = -100
"""Label of a position that is not scored; the value torch and transformers ignore."""


class Tokenizer(Protocol):
    """The part of a transformers tokenizer that `encode` uses."""

    @property
    def eos_token_id(self) -> int | None:
        """Id of the end-of-sequence token."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids of `text`."""


@dataclass(frozen=True)
class Example:
    """One question and answer in TOFU's schema.

    Attributes:
        id: Unique in its scenario; values are joined by it, never by position.
        cluster: What is forgotten or kept as a whole (an author); intervals resample clusters.
        question: A question that is taught.
        answer: Its answer.
        paraphrased_question: The question in words that are not taught.
        paraphrased_answer: The answer in other words.
        perturbed_answer: Wrong answers in the form of `paraphrased_answer`.
    """

    id: str
    cluster: str
    question: str
    answer: str
    paraphrased_question: str
    paraphrased_answer: str
    perturbed_answer: tuple[str, ...]


@dataclass(frozen=True)
class PromptTemplate:
    """How a question becomes a prompt, and an answer the text that follows it.

    The space between the two belongs to the answer: a prompt that ends in a space tokenises unlike any text a model
    reads.

    Attributes:
        prompt: Format string with `{question}`.
        answer: Format string with `{answer}`.
    """

    prompt: str = "Question: {question}\nAnswer:"
    answer: str = " {answer}"

    def prompt_text(self, question: str) -> str:
        """The prompt for `question`."""
        return self.prompt.format(question=question)

    def answer_text(self, answer: str) -> str:
        """The continuation that states `answer`."""
        return self.answer.format(answer=answer)


@dataclass(frozen=True)
class Encoded:
    """Token ids of one prompt and answer.

    Attributes:
        input_ids: Prompt, answer, end-of-sequence token.
        prompt_len: Number of prompt tokens; `input_ids[prompt_len:]` is what is scored.
    """

    input_ids: tuple[int, ...]
    prompt_len: int


def encode(tokenizer: Tokenizer, prompt_text: str, answer_text: str, *, max_length: int | None = None) -> Encoded:
    """Tokenise a prompt and its answer, apart.

    Args:
        tokenizer: Adds its special tokens (a beginning-of-sequence token) to the prompt alone.
        prompt_text: The prompt.
        answer_text: The text that follows it, with its leading space if it has one.
        max_length: The model's context in tokens; None where nothing bounds it.

    Raises:
        ValueError: If the prompt or the answer has no tokens, if the tokenizer has no end-of-sequence token, or if the
            sequence is longer than `max_length` (cutting it would score another answer).
    """
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no end-of-sequence token; set its eos_token")
    prompt = tokenizer.encode(prompt_text, add_special_tokens=True)
    answer = tokenizer.encode(answer_text, add_special_tokens=False)
    if not prompt:
        raise ValueError(f"the prompt {prompt_text!r} has no tokens; its answer's first token could not be scored")
    if not answer:
        raise ValueError(f"the answer {answer_text!r} to {prompt_text!r} has no tokens; allowed: at least one")
    ids = (*prompt, *answer, tokenizer.eos_token_id)
    if max_length is not None and len(ids) > max_length:
        raise ValueError(f"{prompt_text + answer_text!r} has {len(ids)} tokens; the context allows {max_length}")
    return Encoded(ids, len(prompt))


def collate(batch: Sequence[Encoded], pad_id: int) -> dict[str, Tensor]:
    """Pad a batch on the right.

    Args:
        batch: B sequences, at least one; T is the length of the longest.
        pad_id: Any token id, the end-of-sequence token's too: no mask is read off the ids.

    Returns:
        `input_ids` [B, T]; `attention_mask` [B, T], 1 on the sequence and 0 on padding; `labels` [B, T], the input ids
        on answer and end-of-sequence token and `IGNORE_INDEX` elsewhere (not shifted: the loss shifts).

    Raises:
        ValueError: If the batch is empty.
    """
    if not batch:
        raise ValueError("cannot collate an empty batch")
    shape = len(batch), max(len(row.input_ids) for row in batch)
    input_ids = torch.full(shape, pad_id)
    attention_mask = torch.zeros(shape, dtype=torch.long)
    labels = torch.full(shape, IGNORE_INDEX)
    for i, row in enumerate(batch):
        ids = torch.tensor(row.input_ids)
        input_ids[i, : len(ids)] = ids
        attention_mask[i, : len(ids)] = 1
        labels[i, row.prompt_len : len(ids)] = ids[row.prompt_len :]
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
