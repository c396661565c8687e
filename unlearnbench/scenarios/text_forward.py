"""Forward passes of a causal LM over prompts with answers, and generation: batches in, per-row numbers and texts out.

Knows batches, padding, keys and values, conditions; nothing of splits, needs or metrics. Rules that hold throughout:

- Masks and positions are explicit and come from lengths, so padding changes nothing and the pad token may be the end token.
- An answer's last token, the end token, is scored but never fed: no token is forwarded whose output nobody reads.
- A prompt with several answers is forwarded once and lends them its keys and values.
- Logits are upcast to float32 at least before any softmax.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from unlearnbench import layers

Item = TypeVar("Item")
Pair = tuple[str, str]
"""The texts of a prompt and an answer."""
# Logits upcast at a time: bounds the float32 copies, and on a processor keeps them in its cache (4 MiB).
_CHUNK, _CHUNK_CPU = 1 << 26, 1 << 20


class Prompt(NamedTuple):
    """A prompt as text, which conditions a model that steers on it, and as token ids (at least one)."""

    text: str
    ids: tuple[int, ...]


class Answer(NamedTuple):
    """An answer as text and as token ids, of which the last is the end token (at least two)."""

    text: str
    ids: tuple[int, ...]


class Scores(NamedTuple):
    """What teacher forcing gives for one (prompt, answer) of T answer tokens, the end token included.

    statistics: float32 [4, T]: log-probability, arg-max hit (0 or 1), mean and variance of the log-probability under the model's
        own distribution (nan if they were not asked for).
    features: block -> float32 [width], mean over the answer's tokens but for the end token.
    """

    statistics: NDArray[np.float32]
    features: dict[int, NDArray[np.float32]]


def token_statistics(logits: Tensor, targets: Tensor, scored: Tensor, moments: Tensor) -> Tensor:
    """Statistics of `targets` [B, T] under `logits` [B, T, V] where `scored` [B, T] is not 0; see `Scores.statistics`.

    With p the softmax of the logits: mean = sum_v p_v log p_v and variance = sum_v p_v (log p_v - mean)^2, where a token of
    probability 0 adds nothing.

    Returns:
        [4, B, T], float32 at least; nan where not scored, and for mean and variance also in rows where `moments` [B] is False.
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    statistics = torch.full((4, targets.numel()), torch.nan, dtype=dtype, device=logits.device)
    flat, target, with_moments = logits.flatten(0, 1), targets.flatten(), moments[:, None].expand_as(targets).flatten()
    size = max(1, (_CHUNK_CPU if logits.device.type == "cpu" else _CHUNK) // logits.shape[-1])
    for places in torch.split(scored.flatten().nonzero()[:, 0], size):
        values = flat.index_select(0, places).to(dtype)
        wanted = target[places]
        logp = values.log_softmax(-1)
        statistics[0, places] = logp.gather(-1, wanted[:, None])[:, 0]
        statistics[1, places] = (values.argmax(-1) == wanted).to(dtype)
        chosen = with_moments[places]
        if chosen.any():
            # A logit of -inf would give 0 * -inf = nan; exp(-1000) is 0 in double precision too.
            logp = logp[chosen].clamp_(min=-1000.0)
            p = logp.exp()
            mean = torch.linalg.vecdot(p, logp)
            statistics[2, places[chosen]] = mean
            statistics[3, places[chosen]] = torch.linalg.vecdot(p, logp.sub_(mean[:, None]).square_())
    return statistics.reshape(4, *targets.shape)


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


@dataclass(frozen=True, kw_only=True)
class Forward:
    """A model in eval mode, and how its inputs are batched.

    Attributes:
        model: any causal LM of transformers, also wrapped by peft or with inserted modules.
        conditions: what `layers.condition` gave for the prompts in `places`.
        places: prompt text -> its row in `conditions`.
        end: id of the end token.
        pad: any id, that of the end token too.
        budget: tokens per batch, padding included.
    """

    model: Any
    conditions: list[Tensor]
    places: Mapping[str, int]
    end: int
    pad: int
    budget: int

    @property
    def device(self) -> torch.device:
        """Where the model takes its inputs."""
        device: torch.device = next(iter(self.model.parameters())).device
        return device

    def _conditioned(self, prompts: Sequence[str]) -> AbstractContextManager[None]:
        rows = torch.tensor([self.places[prompt] for prompt in prompts])
        return layers.conditioned(self.model, [condition.index_select(0, rows.to(condition.device)) for condition in self.conditions])

    def _last(self, count: int) -> dict[str, int]:
        """The argument that makes logits for the last `count` positions only, where the architecture knows it."""
        models = (module for module in self.model.modules() if isinstance(module, PreTrainedModel))
        known = any("logits_to_keep" in inspect.signature(module.forward).parameters for module in models)
        return {"logits_to_keep": count} if known else {}

    def score(self, asked: Mapping[Prompt, Sequence[Answer]], *, moments: Set[Pair], features: Sequence[int]) -> dict[Pair, Scores]:
        """Teacher-force every answer of every prompt once.

        Args:
            asked: prompt -> its answers, without repetition.
            moments: (prompt text, answer text) of the sequences whose mean and variance of the log-probability are computed.
            features: blocks whose outputs are averaged.

        Returns:
            (prompt text, answer text) -> scores.
        """
        alone = [(prompt, answers[0]) for prompt, answers in asked.items() if len(answers) == 1]
        several = [(prompt, answers) for prompt, answers in asked.items() if len(answers) > 1]
        scores: dict[Pair, Scores] = {}
        # A model without a list of blocks can still be scored where nobody asks for features.
        recording: AbstractContextManager[Mapping[int, Tensor]] = layers.captured(self.model, features) if features else nullcontext({})
        with recording as outputs:
            for pairs in batches(
                alone, width=lambda pair: len(pair[0].ids) + len(pair[1].ids) - 1, rows=lambda pair: 1, budget=self.budget
            ):
                scores.update(self._score_whole(pairs, moments, outputs))
            for group in batches(
                several,
                width=lambda item: len(item[0].ids) + max(len(answer.ids) for answer in item[1]) - 1,
                rows=lambda item: len(item[1]),
                budget=self.budget,
            ):
                scores.update(self._score_shared(group, moments, outputs))
        return scores

    def _score_whole(self, pairs: Sequence[tuple[Prompt, Answer]], moments: Set[Pair], outputs: Mapping[int, Tensor]) -> dict[Pair, Scores]:
        """One pass over prompt and answer, padded on the left: what predicts and reads answers is at the end of every row."""
        ids, mask = self._padded([prompt.ids + answer.ids[:-1] for prompt, answer in pairs], "left")
        targets, scored = self._padded([answer.ids for _, answer in pairs], "left")
        kept = targets.shape[1]
        with self._conditioned([prompt.text for prompt, _ in pairs]):
            result = self.model(input_ids=ids, attention_mask=mask, position_ids=_positions(mask), use_cache=False, **self._last(kept))
        statistics = token_statistics(result.logits[:, -kept:], targets, scored, self._among(pairs, moments))
        hidden = {layer: output[:, -(kept - 1) :] for layer, output in outputs.items()}
        return _unpadded(pairs, statistics, scored, hidden, scored[:, :-1])

    def _score_shared(
        self, group: Sequence[tuple[Prompt, Sequence[Answer]]], moments: Set[Pair], outputs: Mapping[int, Tensor]
    ) -> dict[Pair, Scores]:
        """One pass over prompts, padded on the left, and one over all their answers, padded on the right, on the prompts' cache."""
        prompts = [prompt for prompt, _ in group]
        ids, mask = self._padded([prompt.ids for prompt in prompts], "left")
        with self._conditioned([prompt.text for prompt in prompts]):
            result = self.model(input_ids=ids, attention_mask=mask, position_ids=_positions(mask), use_cache=True, **self._last(1))
        owner = torch.tensor([i for i, (_, answers) in enumerate(group) for _ in answers], device=self.device)
        pairs = [(prompt, answer) for prompt, answers in group for answer in answers]
        cache = result.past_key_values
        cache.reorder_cache(owner)

        targets, scored = self._padded([answer.ids for _, answer in pairs], "right")
        # Statistics of an answer's first token come from its prompt's last position.
        chosen = self._among(pairs, moments)
        first = token_statistics(result.logits[:, -1:].index_select(0, owner), targets[:, :1], scored[:, :1], chosen)
        ids, fed = self._padded([answer.ids[:-1] for _, answer in pairs], "right")
        start = mask.sum(1).index_select(0, owner)
        with self._conditioned([prompt.text for prompt, _ in pairs]):
            result = self.model(
                input_ids=ids,
                attention_mask=torch.cat([mask.index_select(0, owner), fed], 1),
                position_ids=start[:, None] + torch.arange(ids.shape[1], device=self.device),
                past_key_values=cache,
                use_cache=True,
            )
        statistics = torch.cat([first, token_statistics(result.logits, targets[:, 1:], fed, chosen)], 2)
        return _unpadded(pairs, statistics, scored, outputs, fed)

    def generate(self, prompts: Iterable[Prompt], *, max_new_tokens: int) -> dict[str, list[int]]:
        """Continue each prompt greedily to the end token (left out of the result) or `max_new_tokens`; prompt text -> new ids."""
        continued: dict[str, list[int]] = {}
        for batch in batches(prompts, width=lambda prompt: len(prompt.ids) + max_new_tokens, rows=lambda prompt: 1, budget=self.budget):
            ids, mask = self._padded([prompt.ids for prompt in batch], "left")
            with self._conditioned([prompt.text for prompt in batch]):
                output = self.model.generate(
                    input_ids=ids,
                    attention_mask=mask,
                    max_new_tokens=max_new_tokens,
                    do_sample=False,
                    num_beams=1,
                    # A published model's own setting would make "greedy" something else than the arg-max.
                    repetition_penalty=1.0,
                    eos_token_id=self.end,
                    pad_token_id=self.pad,
                )
            for prompt, row in zip(batch, output[:, ids.shape[1] :].tolist(), strict=True):
                # What follows the end token is padding of the rows that ended early.
                continued[prompt.text] = row[: row.index(self.end)] if self.end in row else row
        return continued

    def _among(self, pairs: Iterable[tuple[Prompt, Answer]], chosen: Set[Pair]) -> Tensor:
        """Whether each sequence is one of the chosen ones, bool [pairs]."""
        return torch.tensor([(prompt.text, answer.text) in chosen for prompt, answer in pairs], device=self.device)

    def _padded(self, rows: Sequence[Sequence[int]], side: str) -> tuple[Tensor, Tensor]:
        """Token ids and mask (1 on tokens, 0 on padding), both int64 [rows, longest], padded on the side "left" or "right"."""
        longest = max(map(len, rows))
        ids = torch.full((len(rows), longest), self.pad)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            place = slice(longest - len(row), longest) if side == "left" else slice(0, len(row))
            ids[i, place] = torch.tensor(row, dtype=torch.long)
            mask[i, place] = 1
        return ids.to(self.device), mask.to(self.device)


def _positions(mask: Tensor) -> Tensor:
    """Positions that count tokens only; padding on the left gets 0."""
    return (mask.cumsum(1) - 1).clamp(min=0)


def _unpadded(
    pairs: Sequence[tuple[Prompt, Answer]], statistics: Tensor, scored: Tensor, hidden: Mapping[int, Tensor], fed: Tensor
) -> dict[Pair, Scores]:
    """Take the rows of a batch apart: statistics [4, B, T] where `scored` [B, T] is 1, means of hidden [B, S, W] where `fed` [B, S] is."""
    values, chosen = statistics.float().cpu().numpy(), scored.bool().cpu().numpy()
    means = {}
    for layer, output in hidden.items():
        kept = output.float().masked_fill(fed[..., None] == 0, 0.0)
        means[layer] = (kept.sum(1) / fed.sum(1, keepdim=True)).cpu().numpy()
    return {
        (prompt.text, answer.text): Scores(values[:, i, chosen[i]], {layer: mean[i] for layer, mean in means.items()})
        for i, (prompt, answer) in enumerate(pairs)
    }
