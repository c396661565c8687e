"""Prompts with answers as batches: what is asked of a causal LM, and what comes back.

A batch (a job) depends on what is asked alone, never on who computes it or how many do. The file knows ids and widths; nothing of
models, splits or metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

Item = TypeVar("Item")


class Prompt(NamedTuple):
    """A prompt as text, which conditions a model that steers on it, and as token ids (at least one)."""

    text: str
    ids: tuple[int, ...]


class Answer(NamedTuple):
    """An answer as text and as the token ids that are scored (at least one), the end token too where it ends one."""

    text: str
    ids: tuple[int, ...]


Pair = tuple[Prompt, Answer]


@dataclass(frozen=True)
class Generation:
    """How the prompts of a split are continued: greedily, to the end token or one of these.

    Attributes:
        max_new_tokens: bound in tokens; None for the pass's own.
        stop: strings that end a generation; its text is cut before the first of them.
    """

    max_new_tokens: int | None = None
    stop: tuple[str, ...] = ()


class Scores(NamedTuple):
    """What teacher forcing gives for one (prompt, answer) of T answer tokens.

    statistics: float32 [4, T]: log-probability, arg-max hit (0 or 1), mean and variance of the log-probability under the model's
        own distribution (nan if they were not asked for).
    features: block -> float32 [width], mean over the answer's tokens but for its last.
    """

    statistics: NDArray[np.float32]
    features: dict[int, NDArray[np.float32]]


class Outcome(NamedTuple):
    """What jobs give: scores and gradient norms of sequences, and new token ids of prompts under their settings."""

    scores: dict[Pair, Scores]
    norms: dict[Pair, float]
    continued: dict[tuple[Prompt, Generation], list[int]]

    def add(self, other: Outcome) -> None:
        """Take in another outcome."""
        self.scores.update(other.scores)
        self.norms.update(other.norms)
        self.continued.update(other.continued)


@dataclass(frozen=True, kw_only=True)
class Job:
    """One batch. Without `generation` or `gradient`, answers are scored: one of each prompt, or several of each.

    Attributes:
        prompts: each with the answers that are read after it; none where prompts are continued.
        moments: the sequences whose mean and variance of the log-probability are computed.
        features: blocks whose outputs are averaged.
        generation: how to continue the prompts.
        gradient: whether the gradient of the one sequence is measured.
    """

    prompts: tuple[tuple[Prompt, tuple[Answer, ...]], ...]
    moments: frozenset[Pair] = frozenset()
    features: tuple[int, ...] = ()
    generation: Generation | None = None
    gradient: bool = False

    @property
    def pairs(self) -> list[Pair]:
        """The sequences of the job, prompt by prompt."""
        return [(prompt, answer) for prompt, answers in self.prompts for answer in answers]


def batches(items: Iterable[Item], *, width: Callable[[Item], int], rows: Callable[[Item], int], budget: int) -> Iterator[list[Item]]:
    """Group items of similar width so that rows x the largest width stays within `budget` tokens.

    An item that alone exceeds the budget is a batch of its own. The order of equally wide items is kept.
    """
    batch: list[Item] = []
    total = 0
    for item in sorted(items, key=width):
        if batch and (total + rows(item)) * width(item) > budget:
            yield batch
            batch, total = [], 0
        batch.append(item)
        total += rows(item)
    if batch:
        yield batch


def scoring_jobs(asked: Mapping[Prompt, Sequence[Answer]], *, moments: Set[Pair], features: Sequence[int], budget: int) -> Iterator[Job]:
    """Batches that teacher-force every answer of every prompt once.

    Args:
        asked: prompt -> its answers, without repetition.
        moments: see `Job`.
        features: see `Job`.
        budget: tokens of a batch, padding included; a prompt and its answers stay together.
    """
    alone = [(prompt, tuple(answers)) for prompt, answers in asked.items() if len(answers) == 1]
    several = [(prompt, tuple(answers)) for prompt, answers in asked.items() if len(answers) > 1]
    for groups in (alone, several):
        for batch in batches(
            groups,
            width=lambda item: len(item[0].ids) + max(len(answer.ids) for answer in item[1]) - 1,
            rows=lambda item: len(item[1]),
            budget=budget,
        ):
            job = Job(prompts=tuple(batch), features=tuple(features))
            yield replace(job, moments=frozenset(moments & set(job.pairs)))


def generation_jobs(prompts: Iterable[Prompt], generation: Generation, *, budget: int) -> Iterator[Job]:
    """Batches that continue every prompt once; the budget counts the tokens to generate too."""
    longest = generation.max_new_tokens or 0
    for batch in batches(prompts, width=lambda prompt: len(prompt.ids) + longest, rows=lambda prompt: 1, budget=budget):
        yield Job(prompts=tuple((prompt, ()) for prompt in batch), generation=generation)
