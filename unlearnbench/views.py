"""What plugins are given: data, requests, and the views that decide who may see what.

A method gets a `MethodView` (forget, retain, a validation part, the loss, the recipe), an attack an `AttackView` (only what its
`needs` declare), a metric an `Audit` (everything, oracles included). What a view lacks cannot be read. Plugin authors import all of
it from `unlearnbench.api`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor, nn

    from unlearnbench.evidence import Evidence
    from unlearnbench.training import Recipe

Batch = dict[str, Any]
Modality = Literal["language", "vision"]
Task = Literal["generate", "classify", "diffuse"]
Kind = Literal["instances", "class", "documents"]
Direction = Literal["higher", "lower"]
Side = Literal["forget", "utility", "diagnostic"]


class UserError(Exception):
    """Bad input. The message is one line saying what is wrong, where, and what is allowed; the command line exits with code 2."""


class NotMeasurable(Exception):
    """A metric or attack has nothing to say of this evidence (too few rows, say): its cell becomes N/A with the message as reason."""


class Undeclared(TypeError):
    """An attack read something of its view that its `needs` do not declare."""


class Threat(StrEnum):
    """What an attacker holds. Levels are never averaged into one number."""

    T0 = "T0"
    """Audit: sees all models, oracles included. Not an attacker."""
    T1 = "T1"
    """Text (or labels) in, text (or labels) out."""
    T2 = "T2"
    """T1 and log-probabilities."""
    T3 = "T3"
    """Reads weights and activations of the model as deployed."""
    T4 = "T4"
    """Fine-tunes the model as deployed."""
    T5 = "T5"
    """Strips inserted modules, gates and adapters, then does what T3 and T4 do."""


# ---------------------------------------------------------------------------------------------------------------------- data


class Data(ABC):
    """Rows of one split. Rows are joined by identity (`ids`), never by position."""

    ids: tuple[str, ...]
    """Identity of each row, unique within the split."""
    clusters: tuple[str, ...]
    """What each row belongs to (author, class, document): the unit that statistics resample and that attacks split by."""

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.ids)

    @abstractmethod
    def take(self, index: Sequence[int]) -> Data:
        """The rows at these positions, in this order."""

    @abstractmethod
    def batch(self, index: Sequence[int] | Tensor) -> Batch:
        """The rows at these positions as model input, ready for `View.loss`; tensors are on the CPU."""

    def within(self, clusters: frozenset[str]) -> Data:
        """The rows whose cluster is one of these, order kept."""
        return self.take([i for i, cluster in enumerate(self.clusters) if cluster in clusters])


@dataclass(frozen=True, kw_only=True)
class Split:
    """One set of examples seen two ways: the rows a training run draws from, and the rows that are scored."""

    train: Data
    eval: Data


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a scenario can be asked to forget."""

    name: str
    kind: Kind
    description: str
    signal: bool = True
    """False where original and oracle cannot be told apart: such a request is shown, not scored."""
    steps: int = 1
    """More than one for a sequence of requests, served one after the other."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A training run of the scenario but for its seed: what tells one population of models from another."""

    role: str
    """"original", "oracle", "subset", or a name that the scenario understands (an earlier stage)."""
    rows: frozenset[str]
    """Clusters or ids of training rows that are left out; the scenario says which of the two it uses."""


@dataclass(frozen=True, kw_only=True)
class Intervention(ABC):
    """A change to the forward pass that lasts for one evidence pass (activation patching, ablation)."""

    @abstractmethod
    def applied(self, model: nn.Module) -> AbstractContextManager[None]:
        """A context inside which `model` runs with the change."""


@dataclass(frozen=True, kw_only=True)
class Need:
    """One thing that a metric or a membership attack wants of the pass over a split.

    The runner takes the union over all metrics and the scenario makes one pass. Two equal needs are one.
    """

    what: Literal[
        "tokens",
        "generation",
        "text",
        "gradient_norm",
        "logits",
        "features",
        "pixels",
        "image_features",
        "denoising_loss",
        "unconditional",
    ]
    """tokens: statistics of the tokens of answers; text: the reference answers alone; gradient_norm, pixels, and what a denoising model
    gives beside logits and features (the last three): see `Evidence.array`."""
    split: str
    question: Literal["question", "paraphrased_question"] = "question"
    answer: Literal["answer", "paraphrased_answer", "perturbed_answer"] = "answer"
    moments: bool = False
    """Also the mean and variance of the log-probability under the model, per token."""
    layer: int = -1
    """For features: the block whose output is read, counted as in a list; -1 is the last."""
    intervention: Intervention | None = None


BankRole = Literal["original", "oracle", "unlearned", "unlearned_elsewhere", "oracle_unlearned_elsewhere", "untrained"]


@dataclass(frozen=True, kw_only=True)
class Bank:
    """A population that a membership attack or a metric asks for; no model of it is the model under test or an anchor."""

    role: BankRole
    """unlearned: this method on this request with other seeds; for an oracle, those that follow on a bank of as many oracles;
    unlearned_elsewhere: this method on other requests of equal size (`Scenario.shadow_request`), so that the audited forget set is
    still known; oracle_unlearned_elsewhere: the same from oracles, so that it was never known, neither before nor by the method;
    untrained: models that the scenario has built and nobody has trained."""
    n: int


# --------------------------------------------------------------------------------------------------------------------- views


@dataclass(frozen=True, kw_only=True)
class View:
    """What everybody may know of a scenario."""

    modality: Modality
    task: Task
    kind: Kind
    classes: int | None
    """Number of classes, for vision."""
    tokenizer: Any
    """The tokenizer, for language; None otherwise."""
    recipe: Recipe
    """How the original was trained."""
    loss: Callable[[nn.Module, Batch], Tensor]
    """Per-example loss [B] of a batch: in nats the mean over answer tokens for language and cross-entropy for classifiers; of a denoising
    model the mean squared error per pixel at a timestep and noise from torch's global generator (`training.fit` seeds it)."""
    encode: Callable[[Sequence[tuple[str, str]]], Batch] | None
    """For language: a batch out of (prompt text, answer text) pairs of a plugin's own making."""


@dataclass(frozen=True, kw_only=True)
class MethodView(View):
    """What a method sees: never holdout data, oracles or metrics."""

    forget: Split
    retain: Split
    validation: Data
    """Rows that nobody trains on or is scored on, for early stopping."""
    subset_models: Callable[[Sequence[frozenset[str]]], list[nn.Module]]
    """Models trained without the given clusters or ids, one for each set; built by the runner and shared between methods."""
    shared: Callable[[Mapping[str, Any], Callable[[], dict[str, Tensor]]], dict[str, Tensor]] = field(
        default=lambda key, compute: compute()
    )
    """``shared(key, compute)``: tensors by name that depend on the request and on `key` (JSON-able) alone, not on the model or the seed
    of one call, such as a matrix of attributions. Computed once and kept in the store, for all seeds."""
    progress: Callable[[str, int, int], None] = field(default=lambda label, done, total: None)


@dataclass(frozen=True, kw_only=True)
class TrainView(View):
    """What a native method sees when it owns training: the rows of one plan, and how the scenario builds a fresh model."""

    data: Split
    build: Callable[[int], nn.Module]
    """Seed -> an untrained model."""


AttackNeed = Literal["original", "forget", "forget_part", "retain", "unrelated", "references"]


@dataclass(frozen=True, kw_only=True)
class AttackView(View):
    """What an attack sees: what it declared in `needs`, and nothing else.

    Reading an undeclared part raises `Undeclared`.
    """

    parts: Mapping[str, Any]

    def _part(self, name: AttackNeed) -> Any:
        if name not in self.parts:
            raise Undeclared(f"this attack reads {name!r} but declares only {sorted(self.parts)} in its needs")
        return self.parts[name]

    @property
    def original(self) -> nn.Module:
        """The model before unlearning (a copy)."""
        return self._part("original")  # type: ignore[no-any-return]

    @property
    def forget(self) -> Split:
        """The whole forget set."""
        return self._part("forget")  # type: ignore[no-any-return]

    @property
    def forget_part(self) -> Split:
        """The part of the forget set that the attacker holds; the rest, split off by cluster, is what the attack is judged on."""
        return self._part("forget_part")  # type: ignore[no-any-return]

    @property
    def retain(self) -> Split:
        """The retain set."""
        return self._part("retain")  # type: ignore[no-any-return]

    @property
    def unrelated(self) -> Data:
        """Rows of another kind than forget and retain."""
        return self._part("unrelated")  # type: ignore[no-any-return]

    @property
    def references(self) -> Callable[[int], list[nn.Module]]:
        """A number -> models that the attacker could train without the forget set."""
        return self._part("references")  # type: ignore[no-any-return]


@dataclass(frozen=True, kw_only=True)
class Member:
    """One model of a bank: its evidence on the audited request's splits, and how to load it."""

    role: str
    seed: int
    evidence: Evidence
    load: Callable[[], nn.Module]


@dataclass(frozen=True, kw_only=True)
class Audit:
    """What a metric sees beside the evidence of the model under test. An anchor under test is never its own anchor."""

    originals: tuple[Member, ...]
    oracles: tuple[Member, ...]
    bank: tuple[Member, ...] = ()
    """The members of all banks that the metric asks for, told apart by `Member.role`."""


@dataclass(frozen=True, kw_only=True)
class ReferenceView(MethodView):
    """What a reference row sees: the auditor's view. Such rows are marked and never ranked."""

    originals: tuple[Callable[[], nn.Module], ...]
    oracles: tuple[Callable[[], nn.Module], ...]
