"""Sanity rows: models that say nothing, at every prompt or where a name occurs. No paper.

Both stand at the output head, change no weight and answer with the end token at once. Stripped of its module either is the original to
the bit: a metric that calls them unlearned measures the surface. The keyword filter holds the forgotten names in clear.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from unlearnbench.api import Method, MethodView, UserError
from unlearnbench.layers import Conditioned, Inserted, insert
from unlearnbench.mechanisms.questions import examples, keywords, phrases

MARGIN = 100.0
"""How far the end token's logit stands above all others: certain, yet every log-probability stays finite in half precision."""


class Refusal(Inserted):
    """An output head that always foretells the end token; hidden states [B, T, D] -> logits [B, T, V]."""

    def __init__(self, inner: nn.Module, *, end_token: int) -> None:
        super().__init__(inner)
        self.end_token = end_token

    def config(self) -> dict[str, Any]:
        """See `Inserted.config`."""
        return {"end_token": self.end_token}

    def forward(self, hidden: Tensor) -> Tensor:
        """Logits of the end token alone; the weights stay in the graph with gradient 0, so that an attacker's step is defined."""
        logits: Tensor = self.inner(hidden)
        return ending(logits, self.end_token) + 0 * logits


class KeywordGate(Conditioned):
    """An output head that foretells the end token in rows whose prompt holds a keyword, and else is the head it wraps.

    A keyword is one word or two words that follow each other, in lower case.
    """

    def __init__(self, inner: nn.Module, *, keywords: Sequence[str], end_token: int) -> None:
        super().__init__(inner)
        self.keywords = frozenset(keywords)
        self.end_token = end_token

    def config(self) -> dict[str, Any]:
        """See `Inserted.config`: the keywords, in clear, and the end token."""
        return {"keywords": sorted(self.keywords), "end_token": self.end_token}

    def condition(self, prompts: Sequence[str]) -> Tensor:
        """Whether each prompt holds a keyword, bool [len(prompts)]."""
        device = next(self.inner.parameters()).device
        return torch.tensor([not self.keywords.isdisjoint(phrases(prompt)) for prompt in prompts], device=device)

    def forward(self, hidden: Tensor) -> Tensor:
        """Logits [B, T, V]; those of rows without a keyword are the inner head's to the bit."""
        logits: Tensor = self.inner(hidden)
        gated = self.rows(len(logits)).view(-1, *[1] * (logits.dim() - 1))
        return torch.where(gated, ending(logits, self.end_token), logits)


class RefuseAll(Method):
    """Answers every prompt with the end token."""

    modality = ("language",)
    edits_weights = False
    inserts = (Refusal,)
    row = "sanity"

    def unlearn(self, model: nn.Module, view: MethodView, *, seed: int) -> nn.Module:
        """See `Method.unlearn`."""
        path, head = output_head(model)
        insert(model, path, Refusal(head, end_token=view.tokenizer.eos_token_id))
        return model


class KeywordFilter(Method):
    """Answers prompts that hold a name of the forget questions with the end token."""

    modality = ("language",)
    edits_weights = False
    inserts = (KeywordGate,)
    row = "sanity"

    def unlearn(self, model: nn.Module, view: MethodView, *, seed: int) -> nn.Module:
        """See `Method.unlearn`.

        Raises:
            UserError: the forget questions hold no word and no name of their own.
        """
        asked, kept = ([row.question for row in examples(split.eval, user="keyword_filter")] for split in (view.forget, view.retain))
        found = keywords(asked, kept)
        if not found:
            raise UserError("keyword_filter: every word and name of the forget questions is in a retain question too")
        path, head = output_head(model)
        insert(model, path, KeywordGate(head, keywords=found, end_token=view.tokenizer.eos_token_id))
        return model


def ending(logits: Tensor, end_token: int) -> Tensor:
    """Logits of the given shape [..., V] that are `MARGIN` at the end token and 0 elsewhere.

    >>> ending(torch.randn(1, 3), end_token=1)
    tensor([[  0., 100.,   0.]])
    """
    refusal = torch.zeros_like(logits)
    refusal[..., end_token] = MARGIN
    return refusal


def output_head(model: nn.Module) -> tuple[str, nn.Module]:
    """The module that makes logits, and its path; what earlier requests inserted there included.

    Raises:
        UserError: the model has none.
    """
    head = model.get_output_embeddings()  # type: ignore[operator]
    for path, module in model.named_modules():
        if module is head:
            return path, module
    raise UserError(f"{type(model).__name__} has no output head")
