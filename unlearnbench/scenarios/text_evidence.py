"""The one evidence pass for language: from what metrics need to the fewest forward passes, and back to rows.

All needs over all splits become one set of (prompt, answer) sequences and one queue of prompts to continue for each setting of
generation. Each is forwarded once, however many splits, rows and needs share it, and its numbers are scattered to all of them.
Batches are made in `text_jobs` and run in `text_forward`; the file knows no data set, no template and no metric.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from unlearnbench import layers
from unlearnbench.api import Intervention, Need, UserError
from unlearnbench.evidence import Evidence, Tokens
from unlearnbench.scenarios.text_forward import Forward
from unlearnbench.scenarios.text_jobs import Answer, Generation, Job, Outcome, Pair, Prompt, Scores, generation_jobs, scoring_jobs

__all__ = ["Conventions", "Encode", "Generation", "Rows", "TextPass", "forward_of", "text_evidence"]

Encode = Callable[[str], Sequence[int]]
EncodePair = Callable[[str, str, bool], tuple[Sequence[int], int]]
Texts = tuple[str, str]
"""A prompt's and an answer's."""


@dataclass(frozen=True, kw_only=True)
class Conventions:
    """Where a caller departs from how texts become sequences and sequences texts.

    Attributes:
        encode_pair: prompt text, answer text and `Rows.ends` -> ids of both together and how many of them are the prompt's, taken as
            they are (no end token is added); None to encode them apart.
        hidden: ids of tokens that attention does not see. Teacher forcing counts them in positions, generation does not.
        ends: ids that end a generation; empty for the tokenizer's end token.
        repetition_penalty: of generation.
        decode: ids of a generation -> text; None for the tokenizer's, without special tokens.
    """

    encode_pair: EncodePair | None = None
    hidden: tuple[int, ...] = ()
    ends: tuple[int, ...] = ()
    repetition_penalty: float = 1.0
    decode: Callable[[Sequence[int]], str] | None = None


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The rows of one split, as texts.

    Attributes:
        ids: identity of each row.
        clusters: what each row belongs to.
        prompts: kind of question (as in `Need.question`) -> one prompt text per row; this text is what steering models see.
        answers: kind of answer (as in `Need.answer`) -> the answer texts of each row: as many for all rows, one or several.
        generation: how prompts of this split are continued.
        ends: whether an answer is ended by the end token, which is then scored; False for passages that go on.
    """

    ids: tuple[str, ...]
    clusters: tuple[str, ...]
    prompts: Mapping[str, tuple[str, ...]]
    answers: Mapping[str, tuple[tuple[str, ...], ...]]
    generation: Generation = field(default_factory=Generation)
    ends: bool = True

    def __post_init__(self) -> None:
        columns = {"clusters": self.clusters, **self.prompts, **self.answers}
        for name, column in columns.items():
            if len(column) != len(self.ids):
                raise ValueError(f"{name} has {len(column)} entries for {len(self.ids)} rows")
        for name, answers in self.answers.items():
            if len({len(several) for several in answers}) > 1:
                raise ValueError(f"rows differ in their number of {name}: {sorted({len(several) for several in answers})}")

    def pairs(self, need: Need) -> list[tuple[Texts, ...]]:
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
    generation_tokens: int | None = None,
    conventions: Conventions = Conventions(),
) -> Evidence:
    """Everything that `needs` name, in one pass over the unique sequences; one more pass for each distinct intervention.

    Gradients, which need a pass of their own, are taken sequence by sequence; texts need none.

    Args:
        model: a causal LM, where it is (device) and as it is (dtype); unchanged afterwards, its train or eval modes and gradients too.
        tokenizer: gives the end token and decodes generations.
        splits: the rows of every split that a need names.
        needs: what is wanted; `logits` are for classifiers and refused.
        encode_prompt: prompt text -> token ids, at least one (a prompt of "" has its beginning-of-sequence token).
        encode_answer: answer text -> token ids, tokenised apart from the prompt; the end token is appended where it lacks.
        max_new_tokens: bound of a generation, in tokens, for splits that name none.
        batch_tokens: bound of a batch, in tokens, padding and tokens to generate included; a prompt and its answers stay together.
        generation_tokens: the same for generations; None for `batch_tokens`.
        conventions: departures from the above.

    Returns:
        Evidence of the given splits. Features are the mean, over an answer's tokens without its last (the end token), of the block's
        output; gradient norms [rows, 1] the mean over parameter tensors of the L2 norm of the gradient of a row's mean negative
        log-likelihood per answer token. Generations and references are stripped of surrounding white space.

    Raises:
        UserError: a split, question, answer or block that is not there, a text without tokens, a tokenizer without end token.
    """
    made = TextPass(
        tokenizer,
        splits,
        needs,
        encode_prompt=encode_prompt,
        encode_answer=encode_answer,
        max_new_tokens=max_new_tokens,
        conventions=conventions,
    )
    with layers.evaluating(model):
        forward = forward_of(model, tokenizer, made.prompts, conventions)
        # In the order of first appearance, which is sorted; a set's order would differ from process to process.
        for intervention in dict.fromkeys(need.intervention for need in made.rows):
            outcome = Outcome({}, {}, {})
            with nullcontext() if intervention is None else intervention.applied(model):
                for job in made.jobs(batch_tokens, generation_tokens or batch_tokens, intervention):
                    outcome.add(forward.run(job))
            made.take(outcome, intervention)
    return made.evidence


def forward_of(model: nn.Module, tokenizer: Any, prompts: Sequence[str], conventions: Conventions) -> Forward:
    """A model in eval mode, ready for the jobs of a pass over these prompts."""
    with torch.no_grad():
        conditions = layers.condition(model, prompts)
    return Forward(
        model=model,
        conditions=conditions,
        places={prompt: place for place, prompt in enumerate(prompts)},
        ends=conventions.ends or (tokenizer.eos_token_id,),
        pad=tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
        decode=conventions.decode or _plain_text(tokenizer),
        hidden=conventions.hidden,
        repetition_penalty=conventions.repetition_penalty,
    )


def _plain_text(tokenizer: Any) -> Callable[[Sequence[int]], str]:
    return lambda ids: str(tokenizer.decode(ids, skip_special_tokens=True))


_GIVEN = ("tokens", "generation", "text", "gradient_norm", "features")


@dataclass(frozen=True)
class _Texts:
    """Texts as token ids, each tokenised once."""

    encode_prompt: Encode
    encode_answer: Encode
    encode_pair: EncodePair | None
    end: int
    prompts: dict[str, Prompt] = field(default_factory=dict)
    answers: dict[tuple[str, bool], Answer] = field(default_factory=dict)
    joint: dict[tuple[str, str, bool], Pair] = field(default_factory=dict)

    def prompt(self, text: str) -> Prompt:
        if text not in self.prompts:
            self.prompts[text] = _prompt(text, tuple(self.encode_prompt(text)))
        return self.prompts[text]

    def answer(self, text: str, ends: bool) -> Answer:
        if (text, ends) not in self.answers:
            ids = tuple(self.encode_answer(text))
            if not ids or (ends and ids == (self.end,)):
                raise UserError(f"the answer {text!r} has no tokens: there is nothing to score")
            ended = ids[-1] == self.end or not ends
            self.answers[text, ends] = Answer(text, ids if ended else (*ids, self.end))
        return self.answers[text, ends]

    def pair(self, prompt: str, answer: str, ends: bool) -> Pair:
        if self.encode_pair is None:
            return self.prompt(prompt), self.answer(answer, ends)
        if (prompt, answer, ends) not in self.joint:
            ids, length = self.encode_pair(prompt, answer, ends)
            if length >= len(ids):
                raise UserError(f"the answer {answer!r} has no tokens: there is nothing to score")
            self.joint[prompt, answer, ends] = _prompt(prompt, tuple(ids[:length])), Answer(answer, tuple(ids[length:]))
        return self.joint[prompt, answer, ends]


def _prompt(text: str, ids: tuple[int, ...]) -> Prompt:
    if not ids:
        raise UserError(f"the prompt {text!r} has no tokens: an answer's first token has nothing to be predicted from")
    return Prompt(text, ids)


class TextPass:
    """One pass in the making: needs to batches, which may be run anywhere, and their outcome back to rows.

    Attributes:
        rows: need -> the (prompt, answer) texts of each row, in an order that depends on the needs alone.
        prompts: all prompt texts, sorted.
    """

    def __init__(
        self,
        tokenizer: Any,
        splits: Mapping[str, Rows],
        needs: frozenset[Need],
        *,
        encode_prompt: Encode,
        encode_answer: Encode,
        max_new_tokens: int,
        conventions: Conventions,
    ) -> None:
        """See `text_evidence`."""
        unknown = sorted({need.split for need in needs} - set(splits))
        if unknown:
            raise UserError(f"no rows given for split {unknown[0]!r}; given: {', '.join(sorted(splits))}")
        if any(need.what == "logits" for need in needs):
            raise UserError("logits are class scores of a classifier; a language scenario gives: " + ", ".join(_GIVEN))
        if tokenizer.eos_token_id is None:
            raise UserError("the tokenizer has no end token (eos_token), which ends every answer")
        self._splits, self._max_new_tokens = splits, max_new_tokens
        self._texts = _Texts(encode_prompt, encode_answer, conventions.encode_pair, tokenizer.eos_token_id)
        self._decode = conventions.decode or _plain_text(tokenizer)
        self.rows = {need: splits[need.split].pairs(need) for need in sorted(needs, key=repr)}
        self.prompts = sorted({prompt for several in self.rows.values() for pairs in several for prompt, _ in pairs})
        self._token_stats: dict[Need, tuple[Tokens, ...]] = {}
        self._generations: dict[Need, tuple[str, ...]] = {}
        self._references: dict[Need, tuple[str, ...]] = {}
        self._arrays: dict[Need, NDArray[np.floating[Any]]] = {}

    @property
    def evidence(self) -> Evidence:
        """What was taken so far."""
        return Evidence(
            ids={name: split.ids for name, split in self._splits.items()},
            clusters={name: split.clusters for name, split in self._splits.items()},
            token_stats=self._token_stats,
            texts=self._generations,
            references=self._references,
            arrays=self._arrays,
        )

    def jobs(self, batch_tokens: int, generation_tokens: int, intervention: Intervention | None = None) -> Iterator[Job]:
        """Batches of the unique sequences of needs that share an intervention, in an order that depends on them alone."""
        group = [need for need in self.rows if need.intervention == intervention]
        asked: dict[Prompt, list[Answer]] = {}
        for prompt, answer in sorted(self._wanted(need for need in group if need.what in ("tokens", "features"))):
            asked.setdefault(prompt, []).append(answer)
        features = sorted({need.layer for need in group if need.what == "features"})
        if features and any(len(answer.ids) < 2 for answers in asked.values() for answer in answers):
            raise UserError("an answer of one token has no features: they are read where an answer's tokens but its last are")
        moments = self._wanted(need for need in group if need.what == "tokens" and need.moments)
        yield from scoring_jobs(asked, moments=moments, features=features, budget=batch_tokens)
        for pair in sorted(self._wanted(need for need in group if need.what == "gradient_norm")):
            yield Job(prompts=((pair[0], (pair[1],)),), gradient=True)
        queues: dict[Generation, set[Prompt]] = {}
        for need in group:
            if need.what == "generation":
                queues.setdefault(self._generation(need), set()).update(self._texts.prompt(row[0][0]) for row in self.rows[need])
        for generation, prompts in queues.items():
            yield from generation_jobs(sorted(prompts), generation, budget=generation_tokens)

    def take(self, outcome: Outcome, intervention: Intervention | None = None) -> None:
        """Give every row what is its of the outcome of `jobs`."""
        for need, rows in self.rows.items():
            if need.intervention == intervention:
                self._take(need, rows, outcome)

    def _take(self, need: Need, rows: Sequence[tuple[Texts, ...]], outcome: Outcome) -> None:
        if need.what == "generation":
            generation = self._generation(need)
            ids = [outcome.continued[self._texts.prompt(row[0][0]), generation] for row in rows]
            self._generations[need] = tuple(_cut(self._decode(new), generation.stop).strip() for new in ids)
        if need.what in ("generation", "text"):
            self._references[need] = tuple(row[0][1].strip() for row in rows)
            return
        ends = self._splits[need.split].ends
        if need.what == "gradient_norm":
            self._arrays[need] = np.array([[outcome.norms[self._texts.pair(*row[0], ends)]] for row in rows])
            return
        scores = [[outcome.scores[self._texts.pair(*texts, ends)] for texts in row] for row in rows]
        if need.what == "features":
            self._arrays[need] = np.stack([row[0].features[need.layer] for row in scores])
        else:
            self._token_stats[need] = tuple(_tokens(answers, moments=need.moments) for answers in zip(*scores, strict=True))

    def _wanted(self, needs: Iterable[Need]) -> set[Pair]:
        return {self._texts.pair(*texts, self._splits[need.split].ends) for need in needs for row in self.rows[need] for texts in row}

    def _generation(self, need: Need) -> Generation:
        generation = self._splits[need.split].generation
        return generation if generation.max_new_tokens is not None else replace(generation, max_new_tokens=self._max_new_tokens)


def _cut(text: str, stop: Sequence[str]) -> str:
    """The text before the first stop string."""
    return text[: min((text.index(string) for string in stop if string in text), default=len(text))]


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
