"""One learned token per class in front of a vision transformer's own, and low-rank updates of its layers, as modules in the tree.

What prompt removal is made of (Pre-Forgettable Models, arXiv:2509.15230) and what its attack puts back. A prompt is a row of the bank
and nothing else in the model names it: without its row it is nowhere. Prompts have no positions, so that their order hardly matters; the
bank keeps them in the order of their classes, so that equal sets are equal to the bit. Knows no loss and no training.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, linear

from unlearnbench.api import Scenario
from unlearnbench.layers import Inserted, insert, inserted
from unlearnbench.nets.vit import VisionTransformer


class ClassPrompts(Inserted):
    """Around a transformer's encoder: puts prompts in front of its tokens, and takes what became of them away again.

    Args:
        inner: The encoder, tokens ``[B, tokens, width]`` to the same shape.
        labels: Classes that have a prompt, each once.
        width: Of a token.

    Attributes:
        labels: The classes, rising.
        vectors: Their prompts ``[classes, width]``, zero until they are set.
    """

    def __init__(self, inner: nn.Module, *, labels: Collection[int], width: int) -> None:
        super().__init__(inner)
        self.labels, self.width = tuple(sorted(labels)), width
        self.vectors = nn.Parameter(torch.zeros(len(self.labels), width))

    def config(self) -> dict[str, Any]:
        """See `Inserted.config`."""
        return {"labels": list(self.labels), "width": self.width}

    def forward(self, tokens: Tensor, chosen: Tensor | None = None) -> Tensor:
        """The encoder's output for the tokens alone ``[B, tokens, width]``.

        Args:
            tokens: ``[B, tokens, width]``.
            chosen: Rows of `vectors` that stand in front of each image's tokens, in order, int64 ``[B, prompts]``; by default the bank.
        """
        prompts = self.vectors.expand(len(tokens), -1, -1) if chosen is None else self.vectors[chosen]
        out: Tensor = self.inner(torch.cat([prompts.to(tokens.dtype), tokens], 1))
        return out[:, prompts.shape[1] :]

    def drop(self, labels: Collection[int]) -> dict[int, Tensor]:
        """Take the prompts of some classes out of the bank, in the time of a copy, and give them back ``{label: [width]}``.

        Labels without a prompt are passed over: a class that was never trained has nothing to drop.
        """
        taken = {label: self.vectors.detach()[row].clone() for row, label in enumerate(self.labels) if label in labels}
        kept = [row for row, label in enumerate(self.labels) if label not in labels]
        self._hold({self.labels[row]: self.vectors.detach()[row] for row in kept})
        return taken

    def put(self, prompts: dict[int, Tensor]) -> None:
        """Put prompts ``{label: [width]}`` into the bank, in the place of those that the classes have."""
        held = {label: self.vectors.detach()[row] for row, label in enumerate(self.labels)}
        self._hold(held | prompts)

    def _hold(self, prompts: dict[int, Tensor]) -> None:
        like = self.vectors
        self.labels = tuple(sorted(prompts))
        rows = [prompts[label].detach().to(like.device, like.dtype) for label in self.labels]
        self.vectors = nn.Parameter(torch.stack(rows) if rows else like.detach()[:0].clone(), like.requires_grad)


class LowRank(Inserted):
    """A linear layer with a low-rank update beside it (LoRA, Edward Hu et al., arXiv:2106.09685): y = W x + b + alpha/rank * U D x.

    Args:
        inner: The linear layer; it is not changed.
        rank: Rows of D.
        alpha: Scale of the update times the rank.
        dropout: Share of the entries of x that the update does not see in training.

    Attributes:
        down: D ``[rank, inputs]``; zero until `draw`.
        up: U ``[outputs, rank]``; zero, so that the layer computes what it did.
    """

    def __init__(self, inner: nn.Module, *, rank: int, alpha: float, dropout: float) -> None:
        super().__init__(inner)
        self.rank, self.alpha, self.dropout = rank, alpha, dropout
        outputs, inputs = inner.weight.shape  # type: ignore[misc]
        self.down = nn.Parameter(torch.zeros(rank, inputs))
        self.up = nn.Parameter(torch.zeros(outputs, rank))

    def config(self) -> dict[str, Any]:
        """See `Inserted.config`."""
        return {"rank": self.rank, "alpha": self.alpha, "dropout": self.dropout}

    def draw(self, generator: torch.Generator) -> None:
        """Start as LoRA does: D uniform within 1 / sqrt(inputs), U zero."""
        with torch.no_grad():
            bound = 1 / math.sqrt(self.down.shape[1])
            self.down.copy_((2 * torch.rand(self.down.shape, generator=generator) - 1) * bound)
            self.up.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """``[..., inputs]`` to ``[..., outputs]``."""
        update = linear(linear(dropout(x, self.dropout, self.training), self.down), self.up)
        out: Tensor = self.inner(x) + (self.alpha / self.rank) * update
        return out


def prompt_bank(model: nn.Module) -> tuple[str, ClassPrompts] | None:
    """The model's bank of prompts and where it stands; None where it has none."""
    return next(((path, module) for path, module in inserted(model) if isinstance(module, ClassPrompts)), None)


def add_prompts(model: VisionTransformer, labels: Collection[int], *, generator: torch.Generator) -> ClassPrompts:
    """Put a bank around the encoder of a bare transformer, prompts drawn from N(0, 1); the model must have none."""
    bank = ClassPrompts(model.encoder, labels=labels, width=model.width).to(model.class_token.device, model.class_token.dtype)
    with torch.no_grad():
        bank.vectors.copy_(torch.randn(bank.vectors.shape, generator=generator))
    insert(model, "encoder", bank)
    return bank


def add_low_rank(
    model: VisionTransformer, names: Sequence[str], *, rank: int, alpha: float, dropout: float, generator: torch.Generator
) -> list[LowRank]:
    """Put low-rank updates around all layers whose last name is one of `names`; they still compute what they did."""
    made = []
    for path, layer in [item for item in model.named_modules() if item[0].rpartition(".")[2] in names]:
        update = LowRank(layer, rank=rank, alpha=alpha, dropout=dropout).to(model.class_token.device, model.class_token.dtype)
        update.draw(generator)
        insert(model, path, update)
        made.append(update)
    return made


def prompted_logits(model: VisionTransformer, images: Tensor, chosen: Tensor) -> Tensor:
    """Logits ``[B, classes]`` with chosen prompts in front of each image, see `ClassPrompts.forward`."""
    logits: Tensor = model.head(model.pool(model.encoder(model.embed(images), chosen)))
    return logits


def without_prompts(scenario: Scenario) -> str | None:
    """Why class prompts cannot serve a scenario of images, or None: they need a vision transformer and a class to forget."""
    if scenario.asked().kind != "class":
        return f"forgets a class, by its prompt; it cannot forget {scenario.asked().kind}"
    built = scenario.build(0)
    return None if isinstance(built, VisionTransformer) else f"needs a vision transformer, which {type(built).__name__} is not"
