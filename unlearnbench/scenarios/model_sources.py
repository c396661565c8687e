"""Where the models of a language scenario come from, and how questions are put to them: the values a suite may state.

Three sources: a small Llama and a tokenizer made from scratch, a published model that the scenario fine-tunes, or folders of models that
are ready. Knows recipes and loading; nothing of rows or requests.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field
from torch import nn

from unlearnbench.api import UserError
from unlearnbench.checkpoints import load_checkpoint, load_tokenizer
from unlearnbench.recipe import Recipe
from unlearnbench.scenarios.templates import ChatTemplate, PromptTemplate, Template
from unlearnbench.scenarios.tiny_lm import build_model, train_tokenizer
from unlearnbench.training import hardware

Count = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0)]
_STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

FIRST_ORACLE_SEED = 1000
"""The seed of the first oracle of a pool; the others count on from it."""


@dataclass(frozen=True, kw_only=True)
class Plain:
    """Plain text, as `PromptTemplate`."""

    __pydantic_config__ = _STRICT

    style: Literal["plain"] = "plain"
    prompt: str = PromptTemplate.prompt
    answer: str = PromptTemplate.answer

    def template(self, tokenizer: Any) -> Template:
        """The template."""
        return PromptTemplate(self.prompt, self.answer)


@dataclass(frozen=True, kw_only=True)
class Chat:
    """The chat template of the model's tokenizer, as `ChatTemplate`."""

    __pydantic_config__ = _STRICT

    style: Literal["chat"]
    system: str = ""
    date: str | None = None

    def template(self, tokenizer: Any) -> Template:
        """The template."""
        return ChatTemplate(tokenizer, self.system, self.date)


@dataclass(frozen=True, kw_only=True)
class Scratch:
    """A Llama trained from nothing but the scenario's texts, on a byte-level BPE tokenizer trained on them."""

    __pydantic_config__ = _STRICT

    source: Literal["scratch"] = "scratch"
    width: Annotated[int, Field(ge=4, multiple_of=4)] = 192
    """Width of the residual stream; the MLP is three times as wide."""
    layers: Count = 3
    heads: Count = 4
    vocabulary: Annotated[int, Field(ge=300)] = 4096
    """Pieces of the tokenizer."""
    context: Annotated[int, Field(ge=8)] = 512
    """Tokens that the model can read."""
    epochs: Count = 20
    batch_size: Count = 32
    lr: Rate = 3e-3

    def tokenizer(self, texts: Iterable[str]) -> Any:
        """A tokenizer trained on the texts."""
        return train_tokenizer(texts, vocab_size=self.vocabulary)

    def length(self) -> int:
        """The context in tokens."""
        return self.context

    def build(self, tokenizer: Any, seed: int) -> nn.Module:
        """An untrained model."""
        if self.width % (2 * self.heads):
            raise UserError(f"width is {self.width} and heads is {self.heads}; the width must be a multiple of twice the heads")
        model: nn.Module = build_model(
            len(tokenizer),
            seed=seed,
            hidden_size=self.width,
            n_layers=self.layers,
            n_heads=self.heads,
            mlp_size=3 * self.width,
            max_length=self.context,
        )
        return model.to(hardware.get().device)

    @property
    def recipe(self) -> Recipe:
        """How it is trained."""
        return Recipe(
            epochs=self.epochs, batch_size=self.batch_size, lr=self.lr, weight_decay=0.01, schedule="cosine", warmup=0.1, clip=1.0
        )

    def settings(self) -> dict[str, Any]:
        """What models of this source depend on, for keys."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Lora:
    """Low-rank adapters around the linear layers of all blocks, trained alone and then merged into the weights."""

    __pydantic_config__ = _STRICT

    rank: Count = 16
    alpha: Rate = 32.0


@dataclass(frozen=True, kw_only=True)
class _Published:
    """How models that exist are loaded."""

    __pydantic_config__ = _STRICT

    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of the weights."""
    device_map: str | None = None
    """As transformers takes it, such as "auto"; None puts the model on the run's device."""

    def _loaded(self, name: str) -> nn.Module:
        model = load_checkpoint(name, dtype=self.dtype, device_map=self.device_map)
        return model if self.device_map is not None else model.to(hardware.get().device)

    def _tokenizer(self, name: str) -> Any:
        tokenizer, size = load_tokenizer(name), _config(name).get_text_config().vocab_size
        if len(tokenizer) > size:
            raise UserError(f"the tokenizer of {name} has {len(tokenizer)} tokens; its model knows {size}")
        return tokenizer

    def _length(self, name: str) -> int | None:
        length: int | None = getattr(_config(name).get_text_config(), "max_position_embeddings", None)
        return length


@dataclass(frozen=True, kw_only=True)
class Finetuned(_Published):
    """A published model, fine-tuned on the scenario's rows; the defaults are TOFU's (arXiv 2401.06121)."""

    source: Literal["finetuned"]
    base: str
    """A folder, or a name on the hub."""
    lora: Lora | None = None
    epochs: Count = 5
    batch_size: Count = 32
    accumulate: Count = 1
    """Batches per step of the optimizer."""
    lr: Rate = 1e-5
    checkpointing: bool = False
    """Recompute activations in the backward pass."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 computes the loss under autocast."""

    def tokenizer(self, texts: Iterable[str]) -> Any:
        """The model's own."""
        return self._tokenizer(self.base)

    def length(self) -> int | None:
        """The context in tokens, where the model states one."""
        return self._length(self.base)

    def build(self, tokenizer: Any, seed: int) -> nn.Module:
        """The model as published, whatever the seed."""
        return self._loaded(self.base)

    @property
    def recipe(self) -> Recipe:
        """How it is trained: a linear schedule with one epoch of warm-up."""
        return Recipe(
            epochs=self.epochs,
            batch_size=self.batch_size,
            accumulate=self.accumulate,
            lr=self.lr,
            weight_decay=0.01,
            schedule="linear",
            warmup=1 / self.epochs if self.epochs > 1 else 0.0,
            checkpointing=self.checkpointing,
            precision=self.precision,
        )

    def settings(self) -> dict[str, Any]:
        """What models of this source depend on, for keys: the content of a folder, the name of a model on the hub."""
        return {**asdict(self), "device_map": None, "content": fingerprint(self.base)}


@dataclass(frozen=True, kw_only=True)
class Ready(_Published):
    """Folders of trained models; nothing is trained."""

    source: Literal["ready"]
    original: str
    """The model that learned everything: a folder, or a name on the hub."""
    oracles: tuple[str, ...] = ()
    """Models that never saw what `of` names, in the order of the pool."""
    of: str = ""
    """The request whose oracles these are."""
    epochs: Count = 5
    batch_size: Count = 32
    lr: Rate = 1e-5

    def tokenizer(self, texts: Iterable[str]) -> Any:
        """The original's own."""
        return self._tokenizer(self.original)

    def length(self) -> int | None:
        """The context in tokens, where the original states one."""
        return self._length(self.original)

    def build(self, tokenizer: Any, seed: int) -> nn.Module:
        """The original, whatever the seed: no earlier stage of it is at hand."""
        return self._loaded(self.original)

    def load(self, role: str, request: str, seed: int) -> nn.Module:
        """The model of a role, ready-made.

        Raises:
            UserError: there is no such model among the folders.
        """
        if role == "original":
            return self._loaded(self.original)
        number = seed - FIRST_ORACLE_SEED
        if role != "oracle" or request != self.of or number not in range(len(self.oracles)):
            has = f"{len(self.oracles)} oracles of {self.of!r}" if self.oracles else "no oracles"
            raise UserError(f"no ready model is {role} {max(number, 0) + 1} of request {request!r}; given: an original and {has}")
        return self._loaded(self.oracles[number])

    @property
    def recipe(self) -> Recipe:
        """How the original is said to have been trained: what methods derive theirs from."""
        return Recipe(epochs=self.epochs, batch_size=self.batch_size, lr=self.lr, weight_decay=0.01)

    def settings(self) -> dict[str, Any]:
        """What models of this source depend on, for keys."""
        return {**asdict(self), "device_map": None, "content": [fingerprint(name) for name in (self.original, *self.oracles)]}


Models = Annotated[Scratch | Finetuned | Ready, Field(discriminator="source")]
Prompts = Annotated[Plain | Chat, Field(discriminator="style")]


@cache
def fingerprint(name: str) -> str:
    """A hash of the files of a model's folder; of a model on the hub, its name."""
    folder = Path(name).expanduser()
    if not folder.is_dir():
        return name
    found = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.suffix in (".json", ".safetensors", ".model", ".jinja")):
        found.update(path.name.encode())
        with path.open("rb") as file:
            found.update(hashlib.file_digest(file, "sha256").digest())
    return found.hexdigest()


@cache
def _config(name: str) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{name} is no causal language model that transformers can read: {reason:.200}") from error
