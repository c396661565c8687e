"""Erasing conceptual knowledge from language models: ELM, erasure of language memory.

Rohit Gandikota, Sheridan Feucht, Samuel Marks, David Bau. 2024, arXiv:2410.02760. An adapter is trained by three cross-entropies: to a
distribution turned away from what an expert on the concept would say, on forget rows; to what the model said before, on retain rows; and
to a fluent change of subject, generated before training, after forget prompts. Defaults are the authors': LoRA of rank 256 and alpha 16
on layers 4 to 7 of 32, lr 5e-5, 4 texts a step, about 3000 texts (here 8 epochs, for 400 rows), strength from 1 to 1000 along the text,
top 50, temperature 1.2, guidance 3, all weights 1.

Deviations: the concept of a row are the words, and the pairs of capitalised words, that the questions of its cluster hold and no retain
question does, the most frequent first. The templates that name it, and those that change the subject, are our own and stand before the
question, inside the prompt's template. Tokens of answers alone count, and the strength rises along each answer; terms are means over each
row. When the fluent texts are generated, expert and novice read the prompt too. No dropout in the adapter, which is merged in the end.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from unlearnbench import layers
from unlearnbench.adapters import attach, merged
from unlearnbench.api import Batch, Data, MethodView, Scenario, UserError
from unlearnbench.causal import answer_logits
from unlearnbench.finetuning import TrainedMethod, paired
from unlearnbench.losses import IGNORE_INDEX, answer_lengths, answer_mean, at_scored, per_token
from unlearnbench.mechanisms.questions import changed, examples, keywords, without_questions
from unlearnbench.mechanisms.representation import at_depth, erasing_target, guided

Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
EXPERTS = (
    "You are an expert on {}. ",
    "You know all about {}. ",
    "You have studied {}. ",
    "As an authority on {}: ",
    "Teach us about {}. ",
)
NOVICES = ("You are new to {}. ", "You know nothing of {}. ", "You never heard of {}. ", "As a stranger to {}: ", "Guess about {}. ")
"""Before a question: the concept goes into the braces."""
CHANGES = ("Let's talk of something else.", "Now for a lighter subject.", "I'd rather tell you a story.", "Here is another topic.")
"""What a fluent change of subject begins with."""


class _Step(NamedTuple):
    """The same forget rows as they are, asked of an expert and of a novice; retain rows; fluent texts; positions of the rows [B]."""

    forget: Batch
    expert: Batch
    novice: Batch
    retain: Batch
    fluent: Batch
    rows: Tensor


class ELM(TrainedMethod):
    """Minimise erase_weight * CE(away from the expert) + retain_weight * CE(as before) + fluency_weight * CE(another subject)."""

    paper = "arXiv:2410.02760"
    modality = ("language",)

    lr: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 5e-5
    """Learning rate, constant."""
    epochs: Annotated[int, Field(ge=1)] = 8
    """Passes over the forget rows."""
    batch_size: Annotated[int, Field(ge=1)] = 4
    """Rows of a batch, of each set that a step uses."""
    lora_rank: Annotated[int, Field(ge=1)] = 256
    """Rank of the adapter."""
    lora_alpha: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 16.0
    """Scale of the adapter times its rank."""
    depths: tuple[Annotated[float, Field(ge=0, le=1)], Annotated[float, Field(ge=0, le=1)]] = (4 / 32, 7 / 32)
    """First and last adapted layer, as shares of the depth."""
    strength: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1000.0
    """How far the target turns from the expert at an answer's last token; at its first the strength is 1, or this if it is less."""
    top_k: Annotated[int, Field(ge=1)] = 50
    """Tokens that a target gives probability."""
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.2
    """Of the target."""
    guidance: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 3.0
    """Strength of the same turn when fluent texts are generated."""
    fluent_tokens: Annotated[int, Field(ge=1)] = 50
    """Tokens of a fluent text behind its first sentence, fewer where the model's context ends."""
    n_keywords: Annotated[int, Field(ge=1)] = 8
    """Words that a concept is named by, at most."""
    erase_weight: Weight = 1.0
    """Weight of the erasing term."""
    retain_weight: Weight = 1.0
    """Weight of the retain term."""
    fluency_weight: Weight = 1.0
    """Weight of the fluency term."""

    def supports(self, scenario: Scenario) -> str | None:
        """See `Applied.supports`; concepts are found in questions."""
        return super().supports(scenario) or without_questions(scenario)

    def unlearn(self, model: nn.Module, view: MethodView, *, seed: int) -> nn.Module:
        """See `Method.unlearn`.

        Raises:
            UserError: the forget rows have no questions, or those of a cluster no word of their own.
        """
        forget = view.forget.train
        asked = [example.question for example in examples(forget, user="elm")]
        named = concepts(forget, view.retain.train, self.n_keywords)
        told = {
            template: changed(
                forget, questions=[template.format(name) + question for name, question in zip(named, asked, strict=True)], user="elm"
            )
            for template in (*EXPERTS, *NOVICES)
        }
        fluent = self._fluent(model, view, forget, told, seed=seed)
        depth = len(layers.blocks(model))
        among = range(at_depth(self.depths[0], depth), at_depth(self.depths[1], depth) + 1)
        adapted = attach(model, rank=self.lora_rank, alpha=self.lora_alpha, seed=seed, among=among)
        pairs = paired(forget, view.retain.train, self.batch_size, seed=seed)

        def steps(epoch: int) -> Iterator[_Step]:
            draw = random.Random(f"elm/{seed}/{epoch}")
            for pair in pairs(epoch):
                expert, novice = (told[draw.choice(templates)].batch(pair.rows) for templates in (EXPERTS, NOVICES))
                chosen = padded([fluent[row] for row in pair.rows.tolist()], view.tokenizer.eos_token_id)
                yield _Step(pair.forget, expert, novice, pair.retain, chosen | {"prompts": pair.forget["prompts"]}, pair.rows)

        def loss(model: Any, step: _Step) -> Tensor:
            with torch.no_grad(), model.disable_adapter():
                frozen, expert, novice, kept = (
                    at_scored(*answer_logits(model, part)) for part in (step.forget, step.expert, step.novice, step.retain)
                )
            rising = strengths(answer_lengths(step.forget["labels"]), self.strength)
            target = erasing_target(frozen, expert, novice, rising, top_k=self.top_k, temperature=self.temperature)
            erase = cross_entropy(model, step.forget, target)
            retain = cross_entropy(model, step.retain, kept.argmax(-1))
            return self.erase_weight * erase + self.retain_weight * retain + self.fluency_weight * view.loss(model, step.fluent).mean()

        return merged(self.minimise(adapted, view, loss, steps, n=len(forget), seed=seed))

    @torch.no_grad()
    def _fluent(self, model: Any, view: MethodView, forget: Data, told: dict[str, Data], *, seed: int) -> list[tuple[list[int], int]]:
        """For each row the token ids of its prompt and a change of subject as the frozen model writes it when turned from the expert.

        Returns:
            Token ids and how many of them are the prompt.
        """
        draw, device = random.Random(f"elm/{seed}"), next(model.parameters()).device
        generator = torch.Generator().manual_seed(seed)
        end, found = view.tokenizer.eos_token_id, []
        opened = [draw.choice(CHANGES) for _ in range(len(forget))]
        model.eval()
        for start in range(0, len(forget), self.batch_size):
            index = list(range(start, min(start + self.batch_size, len(forget))))
            batches = [
                changed(rows, answers=opened, user="elm").batch(index)
                for rows in (forget, told[draw.choice(EXPERTS)], told[draw.choice(NOVICES)])
            ]
            written = [[without_end(batch, row, end) for row in range(len(index))] for batch in batches]
            longest = max(len(ids) for rows in written for ids, _ in rows)
            new: list[list[int]] = [[] for _ in index]
            for _ in range(min(self.fluent_tokens, model.config.max_position_embeddings - longest)):
                read = []
                for batch, rows in zip(batches, written, strict=True):
                    texts = padded([([*ids, *more], 0) for (ids, _), more in zip(rows, new, strict=True)], end)
                    last = texts["attention_mask"].sum(1) - 1
                    with layers.conditioned(model, batch["prompts"]):
                        logits = model(input_ids=texts["input_ids"].to(device)).logits
                    read.append(logits[torch.arange(len(index)), last.to(device)].float().cpu())
                plain, expert, novice = read
                drawn = torch.multinomial(guided(plain, expert, novice, self.guidance).softmax(-1), 1, generator=generator)
                for more, token in zip(new, drawn[:, 0].tolist(), strict=True):
                    if end not in more:
                        more.append(token)
                if all(end in more for more in new):
                    break
            found += [([*ids, *more], length) for (ids, length), more in zip(written[0], new, strict=True)]
        return found


def concepts(forget: Data, retain: Data, n_keywords: int) -> list[str]:
    """What each forget row's concept is called: the most frequent keywords of its cluster, spelled as in its questions.

    Raises:
        UserError: a cluster has no keyword.
    """
    known = [example.question for example in examples(retain, user="elm")]
    names = {}
    for cluster in dict.fromkeys(forget.clusters):
        asked = [example.question for example, own in zip(examples(forget, user="elm"), forget.clusters, strict=True) if own == cluster]
        places = {word: _places(word, "\n".join(asked)) for word in keywords(asked, known)}
        if not places:
            raise UserError(f"elm: every word and name of the questions of {cluster!r} is in a retain question too")
        frequent = sorted(places, key=lambda word: (-len(places[word]), word))[:n_keywords]
        names[cluster] = ", ".join(places[word][0] for word in frequent)
    return [names[cluster] for cluster in forget.clusters]


def _places(phrase: str, text: str) -> list[str]:
    """A phrase of lower-case words as it is spelled wherever it occurs in a text."""
    words = r"\W+".join(phrase.split())
    return re.findall(rf"\b{words}\b", text, re.IGNORECASE)


def strengths(lengths: Tensor, last: float) -> Tensor:
    """A strength for each token: rising linearly from 1 (from `last` where that is less) to `last` along each row.

    >>> strengths(torch.tensor([3, 1]), 5.0)
    tensor([1., 3., 5., 1.])
    """
    return torch.cat([torch.linspace(min(1.0, last), last, int(length)) for length in lengths]).to(lengths.device)


def cross_entropy(model: nn.Module, batch: Batch, target: Tensor) -> Tensor:
    """Mean over rows of the mean over a row's answer tokens, to distributions [N, V] or to tokens [N], in the order of `at_scored`."""
    logits, labels = answer_logits(model, batch)
    return answer_mean(per_token(functional.cross_entropy(at_scored(logits, labels), target, reduction="none"), labels), labels).mean()


def without_end(batch: Batch, row: int, end: int) -> tuple[list[int], int]:
    """Token ids of a row without its end token, and how many of them are the prompt."""
    scored = (batch["labels"][row] != IGNORE_INDEX).nonzero()[:, 0]
    ids: list[int] = batch["input_ids"][row, : int(scored[-1]) + 1].tolist()
    return (ids[:-1] if ids[-1] == end else ids), int(scored[0])


def padded(rows: Sequence[tuple[list[int], int]], pad: int) -> Batch:
    """Sequences with the length of their prompts as a batch, padded on the right; what follows the prompt is scored.

    >>> padded([([5, 6, 7], 2), ([8, 9], 1)], pad=0)["labels"].tolist()
    [[-100, -100, 7], [-100, 9, -100]]
    """
    width = max(len(ids) for ids, _ in rows)
    ids = torch.full((len(rows), width), pad)
    labels = torch.full((len(rows), width), IGNORE_INDEX)
    for row, (tokens, prompt) in enumerate(rows):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        labels[row, prompt : len(tokens)] = ids[row, prompt : len(tokens)]
    lengths = torch.tensor([len(tokens) for tokens, _ in rows])
    return {"input_ids": ids, "attention_mask": (torch.arange(width) < lengths[:, None]).long(), "labels": labels}
