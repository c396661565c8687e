"""Forward passes of a causal LM over prompts with answers, gradients and generation: one batch in, its numbers and ids out.

Knows padding, keys and values, conditions; nothing of splits, needs or metrics. Rules that hold throughout:

- Masks and positions are explicit and come from lengths, so padding changes nothing and the pad token may be the end token.
- An answer's last token is scored but never fed: no token is forwarded whose output nobody reads.
- A prompt with several answers is forwarded once and lends them its keys and values.
- Logits are upcast to float32 at least before any softmax.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, StoppingCriteria, StoppingCriteriaList

from unlearnbench import layers
from unlearnbench.scenarios.text_jobs import Generation, Job, Outcome, Pair, Prompt, Scores

# Logits upcast at a time: bounds the float32 copies, and on a processor keeps them in its cache (4 MiB).
_CHUNK, _CHUNK_CPU = 1 << 26, 1 << 20


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


@dataclass(frozen=True, kw_only=True)
class Forward:
    """A model in eval mode, and how its inputs are made.

    Attributes:
        model: any causal LM of transformers, also wrapped by peft or with inserted modules.
        conditions: what `layers.condition` gave for the prompts in `places`.
        places: prompt text -> its row in `conditions`.
        ends: ids that end a generation.
        pad: any id, that of an end token too.
        decode: token ids -> text, for stop strings.
        hidden: ids that attention does not see. Teacher forcing counts them in positions, generation does not: there positions come
            from the mask, as `generate` makes them.
        repetition_penalty: of generation; 1 keeps "greedy" the arg-max whatever a published model's own setting says.
    """

    model: Any
    conditions: list[Tensor]
    places: Mapping[str, int]
    ends: tuple[int, ...]
    pad: int
    decode: Callable[[Sequence[int]], str]
    hidden: tuple[int, ...] = ()
    repetition_penalty: float = 1.0

    @property
    def device(self) -> torch.device:
        """Where the model takes its inputs."""
        device: torch.device = next(iter(self.model.parameters())).device
        return device

    def run(self, job: Job) -> Outcome:
        """Compute one batch."""
        if job.gradient:
            return Outcome({}, {pair: self._gradient_norm(pair) for pair in job.pairs}, {})
        with torch.no_grad():
            if job.generation is not None:
                return Outcome({}, {}, self._generate([prompt for prompt, _ in job.prompts], job.generation))
            # A model without a list of blocks can still be scored where nobody asks for features.
            recording: AbstractContextManager[Mapping[int, Tensor]] = nullcontext({})
            if job.features:
                recording = layers.captured(self.model, job.features)
            with recording as outputs:
                score = self._score_whole if all(len(answers) == 1 for _, answers in job.prompts) else self._score_shared
                return Outcome(score(job, outputs), {}, {})

    def _conditioned(self, prompts: Sequence[Prompt]) -> AbstractContextManager[None]:
        rows = torch.tensor([self.places[prompt.text] for prompt in prompts])
        return layers.conditioned(self.model, [condition.index_select(0, rows.to(condition.device)) for condition in self.conditions])

    def _last(self, count: int) -> dict[str, int]:
        """The argument that makes logits for the last `count` positions only, where the architecture knows it."""
        models = (module for module in self.model.modules() if isinstance(module, PreTrainedModel))
        known = any("logits_to_keep" in inspect.signature(module.forward).parameters for module in models)
        return {"logits_to_keep": count} if known else {}

    def _score_whole(self, job: Job, outputs: Mapping[int, Tensor]) -> dict[Pair, Scores]:
        """One pass over prompt and answer, padded on the left: what predicts and reads answers is at the end of every row."""
        pairs = job.pairs
        ids, fed = self._padded([prompt.ids + answer.ids[:-1] for prompt, answer in pairs], "left")
        targets, scored = self._padded([answer.ids for _, answer in pairs], "left")
        kept = targets.shape[1]
        with self._conditioned([prompt for prompt, _ in pairs]):
            result = self.model(
                input_ids=ids, attention_mask=self._seen(ids, fed), position_ids=_positions(fed), use_cache=False, **self._last(kept)
            )
        statistics = token_statistics(result.logits[:, -kept:], targets, scored, self._among(pairs, job.moments))
        hidden = {layer: output[:, output.shape[1] - (kept - 1) :] for layer, output in outputs.items()}
        return _unpadded(pairs, statistics, scored, hidden, scored[:, :-1])

    def _score_shared(self, job: Job, outputs: Mapping[int, Tensor]) -> dict[Pair, Scores]:
        """One pass over prompts, padded on the left, and one over all their answers, padded on the right, on the prompts' cache."""
        prompts, pairs = [prompt for prompt, _ in job.prompts], job.pairs
        ids, given = self._padded([prompt.ids for prompt in prompts], "left")
        seen = self._seen(ids, given)
        with self._conditioned(prompts):
            result = self.model(input_ids=ids, attention_mask=seen, position_ids=_positions(given), use_cache=True, **self._last(1))
        owner = torch.tensor([i for i, (_, answers) in enumerate(job.prompts) for _ in answers], device=self.device)
        cache = result.past_key_values
        cache.reorder_cache(owner)

        targets, scored = self._padded([answer.ids for _, answer in pairs], "right")
        # Statistics of an answer's first token come from its prompt's last position.
        chosen = self._among(pairs, job.moments)
        statistics = token_statistics(result.logits[:, -1:].index_select(0, owner), targets[:, :1], scored[:, :1], chosen)
        ids, fed = self._padded([answer.ids[:-1] for _, answer in pairs], "right")
        if ids.shape[1]:
            start = given.sum(1).index_select(0, owner)
            with self._conditioned([prompt for prompt, _ in pairs]):
                result = self.model(
                    input_ids=ids,
                    attention_mask=torch.cat([seen.index_select(0, owner), self._seen(ids, fed)], 1),
                    position_ids=start[:, None] + torch.arange(ids.shape[1], device=self.device),
                    past_key_values=cache,
                    use_cache=True,
                )
            statistics = torch.cat([statistics, token_statistics(result.logits, targets[:, 1:], fed, chosen)], 2)
        return _unpadded(pairs, statistics, scored, outputs, fed)

    def _gradient_norm(self, pair: Pair) -> float:
        """Mean over parameter tensors of the L2 norm of the gradient of one sequence's mean negative log-likelihood per answer token.

        Frozen parameters count too; their state and everybody's `.grad` are left alone.
        """
        prompt, answer = pair
        ids, fed = self._padded([prompt.ids + answer.ids[:-1]], "left")
        targets = torch.tensor(answer.ids, device=self.device)
        parameters = [parameter for parameter in self.model.parameters() if parameter.is_floating_point()]
        frozen = [parameter for parameter in parameters if not parameter.requires_grad]
        for parameter in frozen:
            parameter.requires_grad_(True)
        try:
            with torch.enable_grad(), self._conditioned([prompt]):
                result = self.model(
                    input_ids=ids,
                    attention_mask=self._seen(ids, fed),
                    position_ids=_positions(fed),
                    use_cache=False,
                    **self._last(len(targets)),
                )
                logits = result.logits[0, -len(targets) :]
                loss = torch.nn.functional.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), targets)
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        finally:
            for parameter in frozen:
                parameter.requires_grad_(False)
        norms = [torch.linalg.vector_norm(gradient.float()) for gradient in gradients if gradient is not None]
        return float(torch.stack(norms).mean())

    def _generate(self, prompts: Sequence[Prompt], generation: Generation) -> dict[tuple[Prompt, Generation], list[int]]:
        """Continue each prompt greedily; an end token is left out of the result."""
        ids, given = self._padded([prompt.ids for prompt in prompts], "left")
        stopping = [_Contains(ids.shape[1], generation.stop, self.decode)] if generation.stop else []
        with self._conditioned(prompts):
            output = self.model.generate(
                input_ids=ids,
                attention_mask=self._seen(ids, given),
                max_new_tokens=generation.max_new_tokens,
                do_sample=False,
                num_beams=1,
                repetition_penalty=self.repetition_penalty,
                eos_token_id=list(self.ends),
                pad_token_id=self.pad,
                stopping_criteria=StoppingCriteriaList(stopping),
            )
        rows = output[:, ids.shape[1] :].tolist()
        # What follows an end token is padding of the rows that ended early.
        lengths = [next((place for place, token in enumerate(row) if token in self.ends), len(row)) for row in rows]
        return {(prompt, generation): row[:length] for prompt, row, length in zip(prompts, rows, lengths, strict=True)}

    def _seen(self, ids: Tensor, given: Tensor) -> Tensor:
        """The attention mask [rows, width] of tokens: neither padding nor hidden."""
        if not self.hidden:
            return given
        return given * ~torch.isin(ids, torch.tensor(self.hidden, device=ids.device))

    def _among(self, pairs: Sequence[Pair], chosen: Set[Pair]) -> Tensor:
        """Whether each sequence is one of the chosen ones, bool [pairs]."""
        return torch.tensor([pair in chosen for pair in pairs], device=self.device)

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


class _Contains(StoppingCriteria):
    """Ends each row of a generation whose new text contains one of some strings."""

    def __init__(self, start: int, stop: Sequence[str], decode: Callable[[Sequence[int]], str]) -> None:
        self.start, self.stop, self.decode = start, stop, decode
        self.done: list[bool] = []

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Tensor:
        self.done = self.done or [False] * len(input_ids)
        for i, row in enumerate(input_ids[:, self.start :].tolist()):
            self.done[i] = self.done[i] or any(string in self.decode(row) for string in self.stop)
        return torch.tensor(self.done, device=input_ids.device)


def _positions(mask: Tensor) -> Tensor:
    """Positions that count tokens only; padding on the left gets 0."""
    return (mask.cumsum(1) - 1).clamp(min=0)


def _unpadded(pairs: Sequence[Pair], statistics: Tensor, scored: Tensor, hidden: Mapping[int, Tensor], fed: Tensor) -> dict[Pair, Scores]:
    """Take the rows of a batch apart: statistics [4, B, T] where `scored` [B, T] is 1, means of hidden [B, S, W] where `fed` [B, S] is."""
    values, chosen = statistics.float().cpu().numpy(), scored.bool().cpu().numpy()
    means = {}
    for layer, output in hidden.items():
        kept = output.float().masked_fill(fed[..., None] == 0, 0.0)
        means[layer] = (kept.sum(1) / fed.sum(1, keepdim=True)).cpu().numpy()
    return {pair: Scores(values[:, i, chosen[i]], {layer: mean[i] for layer, mean in means.items()}) for i, pair in enumerate(pairs)}
