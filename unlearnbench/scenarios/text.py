"""What language scenarios share on the data side: one example, its token ids, a padded batch.

Knows nothing of a template, a model or a loss. Four conventions hold everywhere (each is where published code went wrong):

- Prompt and answer are tokenised apart, so the answer's tokens never depend on a merge across the border, the prompt's tokens are a
  prefix of the whole, and their number is exact.
- The end-of-sequence token is appended where the answer lacks it, and scored; the texts of a corpus end in none.
- Masks come from lengths, never from `ids != pad`, so that a tokenizer whose pad token is its end-of-sequence token works.
- Nothing is cut to fit a context: what does not fit is an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unlearnbench.api import UserError

IGNORE_INDEX = -100
"""Label of a position that is not scored; the value torch and transformers ignore."""


@dataclass(frozen=True)
class Example:
    """One question and answer in TOFU's schema; a text without a question has the question "".

    Attributes:
        id: Unique in its split; values are joined by it, never by position.
        cluster: What is forgotten or kept as a whole (an author); intervals resample clusters.
        question: A question that is taught.
        answer: Its answer.
        paraphrased_question: The question in words that are not taught; "" where there is none.
        paraphrased_answer: The answer in other words; "" where there is none.
        perturbed_answer: Wrong answers in the form of `paraphrased_answer`; empty where there are none.
    """

    id: str
    cluster: str
    question: str
    answer: str
    paraphrased_question: str = ""
    paraphrased_answer: str = ""
    perturbed_answer: tuple[str, ...] = ()


@dataclass(frozen=True)
class Encoded:
    """Token ids of one prompt and answer.

    Attributes:
        input_ids: Prompt, answer, end-of-sequence token.
        prompt_len: Number of prompt tokens; `input_ids[prompt_len:]` is what is scored.
    """

    input_ids: tuple[int, ...]
    prompt_len: int


def join(
    prompt: Sequence[int], answer: Sequence[int], *, end: int | None, texts: tuple[str, str], max_length: int | None = None
) -> Encoded:
    """One sequence out of the tokens of a prompt and of its answer.

    Args:
        prompt: At least one token: an answer's first token needs something to be predicted from.
        answer: At least one token.
        end: The end-of-sequence token, appended where the answer does not end in it; None appends nothing.
        texts: The two as texts, for errors.
        max_length: The model's context in tokens; None where nothing bounds it.

    Raises:
        UserError: If the prompt or the answer has no tokens, or the sequence is longer than `max_length` (cutting it would score
            another answer).
    """
    shown = [text if len(text) <= 80 else f"{text[:50]} [...] {text[-25:]}" for text in texts]
    if not prompt:
        raise UserError(f"the prompt {shown[0]!r} has no tokens; its answer's first token could not be scored")
    if not answer:
        raise UserError(f"the answer {shown[1]!r} to {shown[0]!r} has no tokens; allowed: at least one")
    ids = (*prompt, *answer) if end is None or answer[-1] == end else (*prompt, *answer, end)
    if max_length is not None and len(ids) > max_length:
        part = f"the prompt {shown[0]!r} alone" if len(prompt) >= max_length else f"{shown[0] + shown[1]!r}"
        count = len(prompt) if len(prompt) >= max_length else len(ids)
        raise UserError(f"{part} has {count} tokens; the context allows {max_length}")
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
