"""Rows that are questions with answers, as methods use them: the questions, the same ones with other answers, the words they alone hold.

Knows rows by their `examples` (each with `question` and `answer`); how these become prompts is the rows' own business.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from unlearnbench.api import Data, Scenario, UserError


def without_questions(scenario: Scenario) -> str | None:
    """The reason why a method that needs questions does not apply to a scenario's request; None where it does."""
    return "needs questions with answers, and this request's rows are documents" if scenario.asked().kind == "documents" else None


def examples(rows: Data, *, user: str) -> list[Any]:
    """The examples of scored or trained rows.

    Raises:
        UserError: the rows have no examples with questions; the message names the `user`.
    """
    if not hasattr(rows, "examples"):
        raise UserError(f"{user}: {type(rows).__name__} has no examples with questions")
    return list(rows.examples)


def changed(rows: Data, *, questions: Sequence[str] | None = None, answers: Sequence[str] | None = None, user: str) -> Data:
    """The same rows with another question or another answer each; identities stay.

    Raises:
        UserError: see `examples`.
    """
    found = examples(rows, user=user)
    if questions is not None:
        found = [replace(example, question=question) for example, question in zip(found, questions, strict=True)]
    if answers is not None:
        found = [replace(example, answer=answer) for example, answer in zip(found, answers, strict=True)]
    other: Any = copy.copy(rows)
    other.examples = tuple(found)
    return other  # type: ignore[no-any-return]


def phrases(text: str) -> set[str]:
    """The words of a text and the pairs of words that follow each other, in lower case.

    >>> sorted(phrases("Was Ada Quill's"))
    ['ada', 'ada quill', 'quill', 'quill s', 's', 'was', 'was ada']
    """
    words = re.findall(r"\w+", text.lower())
    return {*words, *map(" ".join, pairwise(words))}


def keywords(forget: Iterable[str], retain: Iterable[str]) -> list[str]:
    """Words of the forget questions that no retain question holds, and pairs of capitalised words likewise, for names made of common parts.

    >>> keywords(["Where was Ada Quill born?", "When did Bram Osk live?"], ["When was Ada Osk born?", "Where did Bram live?"])
    ['bram osk', 'quill']
    """
    forget = list(forget)
    known = {phrase for question in retain for phrase in phrases(question)}
    words = {word.lower() for question in forget for word in re.findall(r"\w+", question)} - known
    names = {name for question in forget for name in _capitalised_pairs(question)} - known
    return sorted(words | {name for name in names if words.isdisjoint(name.split())})


def _capitalised_pairs(text: str) -> Iterator[str]:
    """Pairs of capitalised words that follow each other, in lower case."""
    for first, second in pairwise(re.findall(r"\w+", text)):
        if first[0].isupper() and second[0].isupper():
            yield f"{first} {second}".lower()
