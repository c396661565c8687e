"""Texts of a corpus as rows: cut to what a model can read, and mixed with questions.

Knows tokens and row numbers; nothing of a data set.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from math import ceil

from torch import Tensor

from unlearnbench.api import Batch, UserError
from unlearnbench.scenarios.language import Encoder, TextData
from unlearnbench.scenarios.templates import RawText
from unlearnbench.scenarios.text import Example, collate


@cache
def raw(encoder: Encoder, prefix: str) -> Encoder:
    """The encoder of a corpus: no question, a stated prefix, and no end token."""
    return encoder.using(RawText(prefix), ends=False)


@cache
def passages(encoder: Encoder, text: str, longest: int = 2048, overlap: int = 1) -> tuple[str, ...]:
    """A text in as few passages of about equally many words as fit the context; joined they are the text.

    Args:
        encoder: of a corpus (`raw`); its context bounds a passage, prefix included.
        text: at least one word.
        longest: another bound, in tokens.
        overlap: how many passages hold each word. A passage then begins with every 1 / overlap of the length of one, and those at either
            end of the text are shorter.

    Raises:
        UserError: a single word does not fit.
    """
    limit = _limit(encoder, longest)
    words = re.findall(r"\s*\S+(?:\s+$)?", text)
    for n in range(max(1, ceil(len(encoder.answer_ids(text)) / max(limit, 1))), len(words) + 1):
        places = [i * len(words) // (n * overlap) for i in range(n * overlap + 1)]
        starts, ends = [0] * (overlap - 1) + places[:-1], places[1:] + [len(words)] * (overlap - 1)
        pieces = ["".join(words[start:end]) for start, end in zip(starts, ends, strict=True) if start < end]
        if all(len(encoder.answer_ids(piece)) <= limit for piece in pieces):
            return tuple(pieces)
    raise UserError(f"the text {text[:40]!r} has a word of more tokens than fit the context behind the prefix: {limit}")


@cache
def head(encoder: Encoder, text: str, longest: int = 2048) -> str:
    """As many words of a text, from its first on, as fit the context and `longest` tokens; see `passages`."""
    words = re.findall(r"\s*\S+(?:\s+$)?", text)
    limit = _limit(encoder, longest)
    n = _most(len(words), lambda n: len(encoder.answer_ids("".join(words[:n]))) <= limit)
    if not n:
        raise UserError(f"the text {text[:40]!r} begins with a word that does not fit the context behind the prefix: {limit} tokens")
    return "".join(words[:n])


@cache
def tail(encoder: Encoder, text: str, answer: str) -> str:
    """As many words of a text, from its last back, as fit the context with the answer that follows them."""
    words = re.findall(r"\S+\s*", text)
    limit = (encoder.max_length or sys.maxsize) - len(encoder.answer_ids(answer)) - 1

    def fits(n: int) -> bool:
        return len(encoder.prompt_ids(encoder.template.prompt_text("".join(words[len(words) - n :])))) <= limit

    n = _most(len(words), fits)
    return text if n == len(words) else "".join(words[len(words) - n :])


def _most(n: int, fits: Callable[[int], bool]) -> int:
    """The largest number up to n that fits, where all smaller ones do."""
    fitting, beyond = 0, n + 1
    while beyond - fitting > 1:
        middle = (fitting + beyond) // 2
        fitting, beyond = (middle, beyond) if fits(middle) else (fitting, middle)
    return fitting


def _limit(encoder: Encoder, longest: int) -> int:
    """Tokens that a text may have behind its prefix."""
    prompt = len(encoder.prompt_ids(encoder.template.prompt_text("")))
    return longest if encoder.max_length is None else min(longest, encoder.max_length - prompt)


def corpus_rows(texts: Iterable[tuple[str, str]], encoder: Encoder, *, first_only: bool = False, overlap: int = 1) -> TextData:
    """Passages of texts as rows.

    Args:
        texts: the identity, which is the cluster of all its passages, and the text of each.
        encoder: of a corpus (`raw`).
        first_only: one row per text, its first passage: rows to score, of a length that does not depend on the text's.
        overlap: see `passages`.
    """
    examples = []
    for identity, text in texts:
        pieces = passages(encoder, text, overlap=overlap)
        for number, piece in enumerate(pieces[:1] if first_only else pieces):
            examples.append(Example(id=f"{identity}#{number}", cluster=identity, question="", answer=piece))
    return TextData(examples, encoder)


class MixedData(TextData):
    """Rows of several encoders as one: passages and questions, say."""

    def __init__(self, parts: Sequence[TextData]) -> None:
        super().__init__([example for part in parts for example in part.examples], parts[0].encoder)
        self._encoders = tuple(part.encoder for part in parts for _ in part.examples)

    def take(self, index: Sequence[int]) -> TextData:
        """See `Data.take`."""
        return MixedData([TextData([self.examples[i]], self._encoders[i]) for i in index])

    def batch(self, index: Sequence[int] | Tensor) -> Batch:
        """See `TextData.batch`."""
        rows = [(self.examples[int(i)], self._encoders[int(i)]) for i in index]
        texts = [(encoder.template.prompt_text(row.question), encoder.template.answer_text(row.answer)) for row, encoder in rows]
        encoded = [encoder.pair(*pair) for pair, (_, encoder) in zip(texts, rows, strict=True)]
        batch: Batch = dict(collate(encoded, self.encoder.pad_id))
        batch["prompts"] = [prompt for prompt, _ in texts]
        return batch
