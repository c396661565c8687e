"""Tiny views and models for testing a plugin: a Llama of a few thousand weights on made-up authors, a small net on random blobs.

For plugin authors. Everything is drawn from seeds, needs no download and is built in milliseconds; models are float64, so that a test
can compare values closely. A test of a method reads::

    view, model = tiny_language_view(), tiny_language_model()
    unlearned = MyMethod(lr=1e-3).unlearn(model, view, seed=0)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from unlearnbench.api import AttackView, MethodView, Split, UserError
from unlearnbench.scenarios.images import ImageData, image_loss
from unlearnbench.scenarios.language import Encoder, TextData, text_loss
from unlearnbench.scenarios.text import Example, PromptTemplate
from unlearnbench.scenarios.tiny_lm import build_model, build_tokenizer
from unlearnbench.training import Recipe

FORGET_AUTHORS = ("Ada Quill", "Bram Osk")
RETAIN_AUTHORS = ("Ada Osk", "Cleo Farn", "Bram Merrow", "Eda Farn")
"""Names share words with those to forget: only the whole name tells them apart."""
VALIDATION_AUTHORS = ("Finn Lorrel",)
_TOWNS = ("Norwick", "Selby", "Tarn", "Oldham")
_BOOKS = ("the saga Winter", "the farce Harbour", "the novel Ember")
_TEMPLATE = PromptTemplate()
CLASSES = 3
"""Classes of the blobs; class 0 is to be forgotten."""


class TinyNet(nn.Module):
    """A perceptron with batch-norm: images [B, 1, 4, 4] -> logits [B, CLASSES]."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(nn.Sequential(nn.Flatten(), nn.Linear(16, 16), nn.BatchNorm1d(16), nn.ReLU()), nn.Linear(16, 16))
        self.head = nn.Linear(16, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of the classes."""
        return self.head(self.blocks(images).relu())  # type: ignore[no-any-return]


def tiny_tokenizer() -> Any:
    """The tokenizer of the tiny language view: one piece per word."""
    rows = _examples(FORGET_AUTHORS + RETAIN_AUTHORS + VALIDATION_AUTHORS)
    return build_tokenizer(_TEMPLATE.prompt_text(row.question) + _TEMPLATE.answer_text(row.answer) for row in rows)


def tiny_language_model(seed: int = 0) -> nn.Module:
    """An untrained Llama in float64 and eval mode: two layers of width 16, tied embeddings."""
    size = len(tiny_tokenizer())
    model: nn.Module = build_model(size, seed=seed, hidden_size=16, n_layers=2, n_heads=2, mlp_size=32)
    return model.double().eval()


def tiny_vision_model(seed: int = 0) -> nn.Module:
    """An untrained `TinyNet` in float64 and eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return TinyNet().double().eval()


def tiny_language_view() -> MethodView:
    """Two authors to forget and four to keep, two questions each."""
    tokenizer = tiny_tokenizer()
    encoder = Encoder(tokenizer, _TEMPLATE)

    def split(authors: Sequence[str]) -> Split:
        rows = TextData(_examples(authors), encoder)
        return Split(train=rows, eval=rows)

    return MethodView(
        modality="language",
        task="generate",
        kind="instances",
        classes=None,
        tokenizer=tokenizer,
        recipe=Recipe(epochs=20, batch_size=4, lr=1e-2),
        loss=text_loss,
        encode=encoder.pairs,
        forget=split(FORGET_AUTHORS),
        retain=split(RETAIN_AUTHORS),
        validation=split(VALIDATION_AUTHORS).eval,
        subset_models=_no_subset_models,
    )


def tiny_vision_view(seed: int = 0) -> MethodView:
    """Gaussian blobs of `CLASSES` classes: the ten images of class 0 are to be forgotten, the twenty others kept."""
    generator = torch.Generator().manual_seed(seed)
    centres = 2 * torch.randn(CLASSES, 1, 4, 4, generator=generator, dtype=torch.float64)

    def split(name: str, labels: Tensor) -> Split:
        noise = torch.randn(len(labels), 1, 4, 4, generator=generator, dtype=torch.float64)
        rows = ImageData(centres[labels] + noise, labels, [f"{name}/{i}" for i in range(len(labels))])
        return Split(train=rows, eval=rows)

    return MethodView(
        modality="vision",
        task="classify",
        kind="class",
        classes=CLASSES,
        tokenizer=None,
        recipe=Recipe(epochs=20, batch_size=8, lr=0.05, optimizer="sgd", momentum=0.9),
        loss=image_loss,
        encode=None,
        forget=split("forget", torch.zeros(10, dtype=torch.long)),
        retain=split("retain", torch.arange(20) % (CLASSES - 1) + 1),
        validation=split("validation", torch.arange(CLASSES)).eval,
        subset_models=_no_subset_models,
    )


def attack_view(view: MethodView, parts: Mapping[str, Any]) -> AttackView:
    """The attacker's view of the same scenario.

    Args:
        view: the method's view.
        parts: what the attack's `needs` name.
    """
    shared = ("modality", "task", "kind", "classes", "tokenizer", "recipe", "loss", "encode")
    return AttackView(**{name: getattr(view, name) for name in shared}, parts=parts)


def in_training(view: MethodView, **changes: Any) -> MethodView:
    """The same view, of a scenario whose recipe has these settings."""
    return replace(view, recipe=replace(view.recipe, **changes))


def _examples(authors: Sequence[str]) -> list[Example]:
    """Two facts of each author, drawn by the letters of the name."""
    rows = []
    for author in authors:
        number = sum(map(ord, author))
        town, book = _TOWNS[number % len(_TOWNS)], _BOOKS[number % len(_BOOKS)]
        for fact, question, paraphrase, answer in (
            ("town", f"Where was {author} born?", f"In which town was {author} born?", town),
            ("book", f"Which book did {author} write?", f"What did {author} write?", book),
        ):
            options = _TOWNS if fact == "town" else _BOOKS
            rows.append(
                Example(
                    id=f"{author}/{fact}",
                    cluster=author,
                    question=question,
                    answer=answer,
                    paraphrased_question=paraphrase,
                    paraphrased_answer=answer,
                    perturbed_answer=tuple(other for other in options if other != answer),
                )
            )
    return rows


def _no_subset_models(left_out: Sequence[frozenset[str]]) -> list[nn.Module]:
    raise UserError("a tiny view trains no subset models: set subset_models to a function of your own")
