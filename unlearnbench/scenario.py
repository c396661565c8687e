"""What a plugin is, and the contract of scenarios.

The file knows the shapes of the conversation between a scenario, which owns data, models and the evidence pass, and everything that
runs on it. Plugin authors import both names from `unlearnbench.api`.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, dataclass_transform

from unlearnbench.views import Data, Modality, Need, Plan, Request, Task, TrainView, UserError

if TYPE_CHECKING:
    from torch import nn

    from unlearnbench.evidence import Evidence


@dataclass_transform(kw_only_default=True)
class Plugin(ABC):
    """Base of all plugins. A subclass is a keyword-only dataclass (made one here, so that nobody forgets the decorator)."""

    name: ClassVar[str] = ""
    """The registry's name; filled in by the registry from the entry point when empty."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        dataclass(kw_only=True, frozen=True)(cls)

    def hyperparameters(self) -> dict[str, Any]:
        """The fields as JSON-able values, in order of declaration."""
        return dataclasses.asdict(self)  # type: ignore[call-overload, no-any-return]


class Scenario(Plugin):
    """Data, models, training recipe and requests; owns its evidence pass.

    The fields are its settings; two of them are fixed: `request` and `split_seed`, which draws the forget set. A scenario object
    serves one request; `with_request` gives the same scenario with another.
    """

    modality: ClassVar[Modality]
    task: ClassVar[Task]
    splits: ClassVar[tuple[str, ...]]
    """Names of the splits that can be scored; always "forget", "retain", "holdout" (never trained on, like forget), and others."""

    request: str
    split_seed: int = 0

    def with_request(self, request: str) -> Scenario:
        """The same scenario with another forget set.

        Raises:
            UserError: the scenario has no such request.
        """
        return dataclasses.replace(self, request=request)

    @classmethod
    @abstractmethod
    def requests(cls) -> tuple[Request, ...]:
        """The requests by name, in the order they are shown."""

    def asked(self) -> Request:
        """This object's request. Settings that leave too little to tell models apart may take its signal away, no more.

        Raises:
            UserError: the scenario has no such request.
        """
        known = {request.name: request for request in self.requests()}
        if self.request not in known:
            raise UserError(f"{type(self).__name__} has no request {self.request!r}; it has: {', '.join(known)}")
        return known[self.request]

    @property
    @abstractmethod
    def validation_request(self) -> str:
        """The request on which hyper-parameters are tuned: other rows, with their own oracle."""

    def at(self, step: int) -> Scenario:
        """For a sequence of requests: the scenario as it stands at one step (forget: all requests up to it)."""
        if step not in range(self.asked().steps):
            raise UserError(f"request {self.request!r} has no step {step}; it has {self.asked().steps}")
        return self

    @abstractmethod
    def shadow_request(self, index: int) -> Scenario:
        """The same scenario asked to forget another random set of equal size, disjoint from this one's forget set."""

    @abstractmethod
    def split(self, name: str) -> Data:
        """The rows scored under a name of `splits`."""

    @abstractmethod
    def method_view(self) -> dict[str, Any]:
        """The fields of `MethodView` that the scenario knows: all but `subset_models`, `shared` and `progress`."""

    @abstractmethod
    def attack_parts(self) -> dict[str, Any]:
        """The data parts of `AttackView` that the scenario knows: forget, forget_part, retain, unrelated.

        `forget_part` is the share of the forget set that the attacker holds, split off by cluster; `judged` names the rows (ids of
        the split "forget") of the rest.
        """

    @abstractmethod
    def judged(self) -> frozenset[str]:
        """Ids of the rows of "forget" that an attack which holds `forget_part` is judged on."""

    def plan(self, role: str) -> Plan:
        """What a model of this role is trained on: "original" leaves out nothing, "oracle" the forget set."""
        left_out = frozenset[str]() if role == "original" else self.forget_rows()
        return Plan(role=role, rows=left_out)

    @abstractmethod
    def forget_rows(self) -> frozenset[str]:
        """The clusters or ids (see `Plan.rows`) of the training rows to forget."""

    @abstractmethod
    def training_settings(self, plan: Plan) -> dict[str, Any]:
        """Everything a model trained by this plan depends on but its seed and the code: JSON, used for its key.

        Two requests whose originals see the same data give the same settings, so that they share them.
        """

    @abstractmethod
    def build(self, seed: int) -> nn.Module:
        """An untrained model."""

    @property
    def trained_together(self) -> int:
        """How many models one call of `train` takes: more than one where an ensemble is faster than a loop.

        May depend on `hardware`, whose device is part of every key, and on nothing else but the scenario's fields.
        """
        return 1

    @abstractmethod
    def train(self, plans: Sequence[Plan], seeds: Sequence[int]) -> list[nn.Module]:
        """Trained models, one for each pair of plan and seed; at most `trained_together` pairs are given at a time."""

    @abstractmethod
    def train_view(self, plan: Plan) -> TrainView:
        """The plan as a native method sees it."""

    @abstractmethod
    def evidence(
        self,
        model: nn.Module,
        needs: frozenset[Need],
        *,
        rewrite: Callable[[Any], Any] | None = None,
        only: frozenset[str] | None = None,
    ) -> Evidence:
        """One pass over the splits that `needs` name.

        Args:
            model: the model to look at, unchanged afterwards; put in eval mode.
            needs: the union of what metrics and membership attacks want.
            rewrite: a prompt attack's change of each example.
            only: restricts the split "forget" to these rows.
        """
