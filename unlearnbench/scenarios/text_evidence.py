"""The one evidence pass for language: from what metrics need to the fewest forward passes, and back to rows.

All needs over all splits become one set of (prompt, answer) sequences and one queue of prompts to continue. Each is forwarded once,
however many splits, rows and needs share it, and its numbers are scattered to all of them. How a batch is run is in `text_forward`;
the file knows no data set, no template and no metric.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from unlearnbench import layers
from unlearnbench.api import Need, UserError
from unlearnbench.evidence import Evidence, Tokens
from unlearnbench.scenarios.text_forward import Answer, Forward, Pair, Prompt, Scores

Encode = Callable[[str], Sequence[int]]


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The rows of one split, as texts.

    Attributes:
        ids: identity of each row.
        clusters: what each row belongs to.
        prompts: kind of question (as in `Need.question`) -> one prompt text per row; this text is what steering models see.
        answers: kind of answer (as in `Need.answer`) -> the answer texts of each row: as many for all rows, one or several.
    """

    ids: tuple[str, ...]
    clusters: tuple[str, ...]
    prompts: Mapping[str, tuple[str, ...]]
    answers: Mapping[str, tuple[tuple[str, ...], ...]]

    def __post_init__(self) -> None:
        columns = {"clusters": self.clusters, **self.prompts, **self.answers}
        for name, column in columns.items():
            if len(column) != len(self.ids):
                raise ValueError(f"{name} has {len(column)} entries for {len(self.ids)} rows")
        for name, answers in self.answers.items():
            if len({len(several) for several in answers}) > 1:
                raise ValueError(f"rows differ in their number of {name}: {sorted({len(several) for several in answers})}")

    def pairs(self, need: Need) -> list[tuple[Pair, ...]]:
        """The (prompt, answer) texts of each row under a need, one per answer.

        Raises:
            UserError: the split has no rows, lacks the kind of question or answer, or has several answers where a need takes one.
        """
        if not self.ids:
            raise UserError(f"split {need.split!r} has no rows to score")
        for kind, wanted, held in (("question", need.question, self.prompts), ("answer", need.answer, self.answers)):
            if wanted not in held:
                raise UserError(f"split {need.split!r} has no {kind} {wanted!r}; it has: {', '.join(sorted(held))}")
        answers = self.answers[need.answer]
        if need.what != "tokens" and any(len(several) != 1 for several in answers):
            raise UserError(f"{need.what} of split {need.split!r} take one answer per row; {need.answer!r} has several")
        return [tuple((prompt, answer) for answer in several) for prompt, several in zip(self.prompts[need.question], answers, strict=True)]


def text_evidence(
    model: nn.Module,
    tokenizer: Any,
    splits: Mapping[str, Rows],
    needs: frozenset[Need],
    *,
    encode_prompt: Encode,
    encode_answer: Encode,
    max_new_tokens: int,
    batch_tokens: int = 4096,
) -> Evidence:
    """Everything that `needs` name, in one pass over the unique sequences; one more pass for each distinct intervention.

    Args:
        model: a causal LM, where it is (device) and as it is (dtype); unchanged afterwards, its train or eval modes too.
        tokenizer: gives the end token and decodes generations.
        splits: the rows of every split that a need names.
        needs: what is wanted; `logits` are for classifiers and refused.
        encode_prompt: prompt text -> token ids, at least one (a prompt of "" has its beginning-of-sequence token).
        encode_answer: answer text -> token ids, tokenised apart from the prompt; the end token is appended where it lacks.
        max_new_tokens: bound of a generation, in tokens.
        batch_tokens: bound of a batch, in tokens, padding and tokens to generate included; a prompt and its answers stay together.

    Returns:
        Evidence of the given splits. Features are the mean, over an answer's tokens without the end token, of the block's output.
        Generations and references are stripped of surrounding white space.

    Raises:
        UserError: a split, question, answer or block that is not there, a text without tokens, a tokenizer without end token.
    """
    unknown = sorted({need.split for need in needs} - set(splits))
    if unknown:
        raise UserError(f"no rows given for split {unknown[0]!r}; given: {', '.join(sorted(splits))}")
    if any(need.what == "logits" for need in needs):
        raise UserError("logits are class scores of a classifier; a language scenario gives: tokens, generation, features")
    if tokenizer.eos_token_id is None:
        raise UserError("the tokenizer has no end token (eos_token), which ends every answer")

    texts = _Texts(encode_prompt, encode_answer, tokenizer.eos_token_id)
    rows = {need: splits[need.split].pairs(need) for need in sorted(needs, key=repr)}
    prompts = sorted({prompt for several in rows.values() for pairs in several for prompt, _ in pairs})
    token_stats: dict[Need, tuple[Tokens, ...]] = {}
    generations: dict[Need, tuple[str, ...]] = {}
    references: dict[Need, tuple[str, ...]] = {}
    arrays: dict[Need, NDArray[np.floating[Any]]] = {}
    with torch.no_grad(), layers.evaluating(model):
        forward = Forward(
            model=model,
            conditions=layers.condition(model, prompts),
            places={prompt: place for place, prompt in enumerate(prompts)},
            end=tokenizer.eos_token_id,
            pad=tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
            budget=batch_tokens,
        )
        # In the order of first appearance, which is sorted; a set's order would differ from process to process.
        for intervention in dict.fromkeys(need.intervention for need in rows):
            group = {need: pairs for need, pairs in rows.items() if need.intervention == intervention}
            with nullcontext() if intervention is None else intervention.applied(model):
                scores = _teacher_forced(forward, texts, group)
                continued = forward.generate(texts.queue(group), max_new_tokens=max_new_tokens)
            for need, pairs in group.items():
                if need.what == "tokens":
                    token_stats[need] = tuple(
                        _tokens([scores[row[number]] for row in pairs], moments=need.moments) for number in range(len(pairs[0]))
                    )
                elif need.what == "features":
                    arrays[need] = np.stack([scores[row[0]].features[need.layer] for row in pairs])
                else:
                    generations[need] = tuple(tokenizer.decode(continued[row[0][0]], skip_special_tokens=True).strip() for row in pairs)
                    references[need] = tuple(row[0][1].strip() for row in pairs)
    return Evidence(
        ids={name: split.ids for name, split in splits.items()},
        clusters={name: split.clusters for name, split in splits.items()},
        token_stats=token_stats,
        texts=generations,
        references=references,
        arrays=arrays,
    )


Group = Mapping[Need, Sequence[tuple[Pair, ...]]]


@dataclass(frozen=True)
class _Texts:
    """Texts as token ids, each tokenised once."""

    encode_prompt: Encode
    encode_answer: Encode
    end: int
    prompts: dict[str, Prompt] = field(default_factory=dict)
    answers: dict[str, Answer] = field(default_factory=dict)

    def prompt(self, text: str) -> Prompt:
        if text not in self.prompts:
            ids = tuple(self.encode_prompt(text))
            if not ids:
                raise UserError(f"the prompt {text!r} has no tokens: an answer's first token has nothing to be predicted from")
            self.prompts[text] = Prompt(text, ids)
        return self.prompts[text]

    def answer(self, text: str) -> Answer:
        if text not in self.answers:
            ids = tuple(self.encode_answer(text))
            ids = ids if ids and ids[-1] == self.end else (*ids, self.end)
            if len(ids) < 2:
                raise UserError(f"the answer {text!r} has no tokens: there is nothing to score")
            self.answers[text] = Answer(text, ids)
        return self.answers[text]

    def queue(self, group: Group) -> list[Prompt]:
        """The unique prompts to continue, in an order that depends on them alone."""
        wanted = {row[0][0] for need, pairs in group.items() if need.what == "generation" for row in pairs}
        return [self.prompt(text) for text in sorted(wanted)]


def _teacher_forced(forward: Forward, texts: _Texts, group: Group) -> dict[Pair, Scores]:
    """Score the unique sequences of needs that share a pass."""
    wanted = {pair for need, pairs in group.items() if need.what != "generation" for row in pairs for pair in row}
    asked: dict[Prompt, list[Answer]] = {}
    for prompt, answer in sorted(wanted):
        asked.setdefault(texts.prompt(prompt), []).append(texts.answer(answer))
    return forward.score(
        asked,
        moments={pair for need, pairs in group.items() if need.what == "tokens" and need.moments for row in pairs for pair in row},
        features=sorted({need.layer for need in group if need.what == "features"}),
    )


def _tokens(scores: Sequence[Scores], *, moments: bool) -> Tokens:
    """One container out of the scores of a split's rows for one answer."""
    statistics = np.concatenate([score.statistics for score in scores], axis=1)
    lengths = [score.statistics.shape[1] for score in scores]
    return Tokens(
        logprob=statistics[0],
        hit=statistics[1] > 0,
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        mean=statistics[2] if moments else None,
        variance=statistics[3] if moments else None,
    )
