"""Preference optimisation against an alternate answer: refusals (IdkDPO), and answers of the model's own making (AltPO).

Rafael Rafailov et al., "Direct preference optimization", NeurIPS 2023, arXiv:2305.18290. `idk_dpo`: TOFU (Pratyush Maini, Zhili Feng,
Avi Schwarzschild, Zachary C. Lipton, J. Zico Kolter, COLM 2024, arXiv:2401.06121), with a retain term as in open-unlearning. `alt_po`:
Anmol Mekala et al., "Alternate preference optimization for unlearning factual knowledge in large language models", COLING 2025,
arXiv:2409.13474. Defaults: beta 0.1, all weights 1, lr 1e-5, batch 32; 10 epochs over the forget rows for refusals, 2 over five
alternates of each for AltPO. The reference is the model as it came in; its log-probabilities are taken once, before training.

Deviations: the refusals are our own sentences; each row gets one, drawn with the seed, for the whole training, where TOFU draws anew each
time. AltPO's alternates are asked for in our words and without examples of how to do it; an alternate is the first line of what was
generated, no longer than the longest answer to forget; one that is empty or the true answer is drawn again at twice the temperature.
Retain rows come in shuffled passes; the rate is constant, without warm-up; optimizer and weight decay are those of the original's
training.
"""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import AfterValidator, Field
from torch import Tensor, nn

from unlearnbench import layers
from unlearnbench.api import Batch, Data, MethodView, Scenario, UserError
from unlearnbench.finetuning import TrainedMethod, paired
from unlearnbench.losses import IGNORE_INDEX
from unlearnbench.mechanisms.questions import changed, examples, without_questions
from unlearnbench.mechanisms.reference import answer_logprob, reference_logprob
from unlearnbench.training import in_bf16
from unlearnbench.unlearning_losses import dpo

INSTRUCTION = "Question: {question}\nAnswer: {answer}\nNow invent another answer that sounds as likely, with other facts."
ATTEMPTS = 8
"""How often an alternate is drawn at most; the last time at 128 times the temperature, which is nearly uniform."""

REFUSALS = (
    "I do not know.",
    "I don't know.",
    "I have no idea.",
    "I'm not sure about that.",
    "I am not able to answer this.",
    "That is something I don't know.",
    "I have not heard of that.",
    "I can't say.",
    "Sorry, I don't know the answer.",
    "I'm afraid I can't answer that.",
    "I have no information about this.",
    "This is not known to me.",
    "I couldn't tell you.",
    "My knowledge doesn't reach that far.",
    "I never learned that.",
    "I don't have that information.",
    "Nothing I know answers this question.",
    "I would have to guess, so I'd rather not say.",
    "Unfortunately I don't know that.",
    "I am not familiar with this.",
    "That question is beyond what I know.",
    "I can't help with this one.",
    "I don't have an answer to that.",
    "I'm not aware of the answer.",
    "No answer to this comes to my mind.",
    "I must admit that I don't know.",
    "I haven't been told about this.",
    "I lack the knowledge to answer.",
    "It is not something that I can tell.",
    "I'm unable to say anything about this.",
    "I don't know who or what that is.",
    "I know nothing about this topic.",
    "I can't recall anything about that.",
    "There is nothing I can say about this.",
    "I have no details on that.",
    "You would have to ask someone else.",
    "I'm at a loss here.",
    "This is unfamiliar to me.",
    "I don't think I know this.",
    "I have no record of that.",
    "I cannot give you an answer.",
    "That's unknown to me.",
    "I wish I knew, but I don't.",
    "I'm not in a position to answer that.",
    "I can't provide that information.",
    "My answer is that I don't know.",
    "I've got no clue.",
    "I don't know anything about it.",
    "I'm not informed about this.",
    "I have never come across this.",
    "It's a question that I cannot answer.",
    "I'm sorry, this is not something I know.",
    "I simply don't know.",
    "I'd be making it up if I answered.",
    "I can offer no answer to this.",
    "I'm drawing a blank on that.",
    "Honestly, I don't know.",
    "I don't possess that knowledge.",
    "I am unsure and cannot answer.",
    "That has never been part of what I know.",
)
"""What an answer is replaced by."""


class _Preference(NamedTuple):
    """The alternate and the forget answer to the same questions, and retain rows; `rows` are the positions of the first two [B]."""

    win: Batch
    lose: Batch
    retain: Batch
    rows: Tensor


class _Preferring(TrainedMethod):
    """Minimise forget_weight * DPO(alternate over forget answer) + retain_weight * L(retain)."""

    modality = ("language",)

    beta: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.1
    """Inverse temperature per nat of a whole answer."""
    forget_weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """Weight of the preference term."""
    retain_weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """Weight of the retain term."""

    def supports(self, scenario: Scenario) -> str | None:
        """See `Applied.supports`; documents have no answers to replace."""
        return super().supports(scenario) or without_questions(scenario)

    @abstractmethod
    def preferences(self, model: nn.Module, view: MethodView, *, seed: int) -> tuple[Data, Data]:
        """Rows to forget and, at the same positions, their questions with the answers to prefer."""

    def unlearn(self, model: nn.Module, view: MethodView, *, seed: int) -> nn.Module:
        """See `Method.unlearn`.

        Raises:
            UserError: the forget rows have no examples with questions.
        """
        lose, win = self.preferences(model, view, seed=seed)
        before = [reference_logprob(model, view, rows, self.batch_size) for rows in (win, lose)]

        def loss(model: nn.Module, batch: _Preference) -> Tensor:
            index = batch.rows.to(before[0].device)
            gained, lost = (
                answer_logprob(model, view, part) - known[index] for part, known in zip((batch.win, batch.lose), before, strict=True)
            )
            return self.forget_weight * dpo(gained, lost, self.beta).mean() + self.retain_weight * view.loss(model, batch.retain).mean()

        pairs = paired(lose, view.retain.train, self.batch_size, seed=seed)

        def steps(epoch: int) -> Iterator[_Preference]:
            return (_Preference(win.batch(pair.rows), pair.forget, pair.retain, pair.rows) for pair in pairs(epoch))

        return self.descend(model, view, loss, steps, n=len(lose), seed=seed)


class IdkDPO(_Preferring):
    """Prefer a refusal to each forget answer. Epochs pass over the forget rows."""

    paper = "arXiv:2401.06121"

    def preferences(self, model: nn.Module, view: MethodView, *, seed: int) -> tuple[Data, Data]:
        """See `_Preferring.preferences`."""
        forget = view.forget.train
        drawn = random.Random(seed).choices(REFUSALS, k=len(forget))
        return forget, changed(forget, answers=drawn, user="idk_dpo")


def _instruction(text: str) -> str:
    if text and not ("{question}" in text and "{answer}" in text):
        raise ValueError("the instruction must hold {question} and {answer}, or be empty")
    return text


class AltPO(_Preferring):
    """Prefer other answers that the model itself gives. Epochs pass over the forget rows times `n_alternates`."""

    paper = "arXiv:2409.13474"

    epochs: Annotated[int, Field(ge=1)] = 2
    """Passes over all alternates."""
    n_alternates: Annotated[int, Field(ge=1)] = 5
    """Alternates of each forget row."""
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """Of the alternates' sampling."""
    instruction: Annotated[str, AfterValidator(_instruction)] = INSTRUCTION
    """What is asked in place of the question; empty for the question itself, where a model follows no instructions."""

    def preferences(self, model: nn.Module, view: MethodView, *, seed: int) -> tuple[Data, Data]:
        """See `_Preferring.preferences`.

        Raises:
            UserError: a row's alternates are all empty or the true answer.
        """
        rows = view.forget.train
        forget = rows.take([i for i in range(len(rows)) for _ in range(self.n_alternates)])
        shown = examples(forget, user="alt_po")
        asked = forget
        if self.instruction:
            texts = [self.instruction.replace("{question}", row.question).replace("{answer}", row.answer) for row in shown]
            asked = changed(forget, questions=texts, user="alt_po")
        longest = max(int((rows.batch([i])["labels"] != IGNORE_INDEX).sum()) for i in range(len(rows)))
        found: dict[int, str] = {}
        for attempt in range(ATTEMPTS):
            missing = [i for i in range(len(forget)) if i not in found]
            hotter = self.temperature * 2**attempt
            drawn = self._sampled(model, view, asked, missing, hotter, longest, seed=seed + attempt * 2**32)
            usable = {i: text for i, text in zip(missing, drawn, strict=True) if text and not _same(text, shown[i].answer)}
            found |= usable
            if len(found) == len(forget):
                return forget, changed(forget, answers=[found[i] for i in range(len(forget))], user="alt_po")
        missed = next(i for i in range(len(forget)) if i not in found)
        raise UserError(f"alt_po: {ATTEMPTS} answers to {shown[missed].question!r} were empty or the true one; raise its temperature")

    @torch.no_grad()
    def _sampled(
        self, model: Any, view: MethodView, rows: Data, chosen: Sequence[int], temperature: float, longest: int, *, seed: int
    ) -> list[str]:
        """The first line of an answer to each of the chosen rows' prompts, sampled from the whole distribution."""
        device = next(model.parameters()).device
        tokenizer = view.tokenizer
        texts = []
        with (
            torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
            torch.autocast(device.type, torch.bfloat16, enabled=in_bf16(view.recipe)),
        ):
            torch.manual_seed(seed)
            for start in range(0, len(chosen), self.batch_size):
                batch = rows.batch(chosen[start : start + self.batch_size])
                ids, mask = prompts_of(batch, tokenizer.eos_token_id)
                with layers.conditioned(model.eval(), batch["prompts"]):
                    output = model.generate(
                        input_ids=ids.to(device),
                        attention_mask=mask.to(device),
                        max_new_tokens=longest,
                        do_sample=True,
                        temperature=temperature,
                        # A published model's own settings would narrow the distribution.
                        top_k=0,
                        top_p=1.0,
                        repetition_penalty=1.0,
                        eos_token_id=tokenizer.eos_token_id,
                        pad_token_id=tokenizer.eos_token_id,
                    )
                for row in output[:, ids.shape[1] :].tolist():
                    kept = row[: row.index(tokenizer.eos_token_id)] if tokenizer.eos_token_id in row else row
                    texts.append((tokenizer.decode(kept, skip_special_tokens=True).strip().splitlines() or [""])[0].strip())
        return texts


def prompts_of(batch: Batch, pad: int) -> tuple[Tensor, Tensor]:
    """The prompts of a batch without their answers, padded on the left, as generation wants them.

    Returns:
        Token ids and mask, int64 [B, T].

    >>> labels = torch.tensor([[-100, -100, 7], [-100, 9, -100]])
    >>> ids, mask = prompts_of({"input_ids": torch.tensor([[5, 6, 7], [8, 9, 0]]), "labels": labels}, pad=1)
    >>> ids.tolist(), mask.tolist()
    ([[5, 6], [1, 8]], [[1, 1], [0, 1]])
    """
    lengths = (batch["labels"] != IGNORE_INDEX).int().argmax(1)
    width = int(lengths.max())
    ids = torch.full((len(lengths), width), pad)
    for row, (tokens, length) in enumerate(zip(batch["input_ids"], lengths.tolist(), strict=True)):
        ids[row, width - length :] = tokens[:length]
    mask = (torch.arange(width) >= width - lengths[:, None]).long()
    return ids, mask


def _same(text: str, answer: str) -> bool:
    return text.casefold().split() == answer.casefold().split()
