"""The contracts: what a scenario, a method, an attack and a metric are.

Four kinds of plugin stand on this file. All are keyword-only dataclasses: fields are hyper-parameters (validated by pydantic from
YAML), class attributes are facts. The file knows the shapes of the conversation and nothing of any model, data set or formula. What
each plugin may see is in `views`, whose names are all importable from here.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from unlearnbench.scenario import Plugin, Scenario
from unlearnbench.views import (
    AttackNeed,
    AttackView,
    Audit,
    Bank,
    BankRole,
    Batch,
    Data,
    Direction,
    Intervention,
    Kind,
    Member,
    MethodView,
    Modality,
    Need,
    NotMeasurable,
    Plan,
    ReferenceView,
    Request,
    Side,
    Split,
    Task,
    Threat,
    TrainView,
    Undeclared,
    UserError,
    View,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

    from unlearnbench.evidence import Evidence
    from unlearnbench.layers import Inserted

__all__ = [
    "Applied",
    "Attack",
    "AttackNeed",
    "AttackView",
    "Audit",
    "Bank",
    "BankRole",
    "Batch",
    "Data",
    "Direction",
    "Estimate",
    "InferenceAttack",
    "Intervention",
    "Kind",
    "Member",
    "Method",
    "MethodView",
    "Metric",
    "Modality",
    "Need",
    "NotMeasurable",
    "Plan",
    "Plugin",
    "Reference",
    "ReferenceView",
    "Request",
    "Scenario",
    "Side",
    "Split",
    "SplitMetric",
    "Stage",
    "Task",
    "Threat",
    "TrainView",
    "Undeclared",
    "UserError",
    "View",
]


class Applied(Plugin):
    """A plugin that is applied to scenarios: a method, an attack, a metric."""

    paper: ClassVar[str] = ""
    modality: ClassVar[tuple[Modality, ...]] = ("language", "vision")
    tasks: ClassVar[tuple[Task, ...]] = ("generate", "classify")

    def supports(self, scenario: Scenario) -> str | None:
        """None when it can serve the scenario, else the reason, the N/A cell's text; by default checks modality and task."""
        if scenario.modality not in self.modality:
            return f"works on {' and '.join(self.modality)}, not on {scenario.modality}"
        if scenario.task not in self.tasks:
            return f"is for models that {' or '.join(self.tasks)}, not for those that {scenario.task}"
        return None


class Method(Applied):
    """An unlearning method."""

    edits_weights: ClassVar[bool] = True
    """False for a method that only inserts modules: stripped of them, its model must equal the stripped original."""
    native: ClassVar[bool] = False
    """True for a method that owns training; its original, oracles and banks are then trained by its own `train`."""
    inserts: ClassVar[tuple[type[Inserted], ...]] = ()
    """The module classes this method inserts, so that a saved model can be rebuilt without running code named in a file."""
    row: ClassVar[Literal["method", "reference", "sanity"]] = "method"
    """Reference and sanity rows are shown and never ranked."""

    @abstractmethod
    def unlearn(self, model: nn.Module, view: MethodView, *, seed: int) -> nn.Module:
        """Forget `view.forget`.

        Args:
            model: the model that knows the forget set, in eval mode; a private copy that may be changed in place. In a sequence of
                requests it is what this method returned for the previous one.
            view: forget and retain data, a validation part, the loss and the recipe.
            seed: seeds everything random in here.

        Returns:
            The unlearned model. All its state lives in parameters, buffers and submodules (inserted through `layers.insert`), so
            that it can be copied, saved, reloaded and stripped.
        """

    def train(self, view: TrainView, *, seed: int) -> nn.Module:
        """For native methods: train a model of this mechanism on `view.data`."""
        raise NotImplementedError(f"{type(self).__name__} declares native = True and must define train()")


class Reference(Method):
    """A row that takes the auditor's view (oracle, mean of oracles, head distillation). Marked, never ranked."""

    row: ClassVar[Literal["method", "reference", "sanity"]] = "reference"

    def unlearn(self, model: nn.Module, view: MethodView, *, seed: int) -> nn.Module:
        """Not for reference rows: the runner calls `refer`."""
        raise TypeError(f"{type(self).__name__} is a reference row: it needs the auditor's view, through refer()")

    @abstractmethod
    def refer(self, model: nn.Module, view: ReferenceView, *, seed: int) -> nn.Module:
        """The reference model, given the original and the auditor's view."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One point of an attack: the model as it is then, and how its inputs are changed."""

    step: int
    """The attacker's budget so far (steps, bits, share of the answer): what the curve is drawn over."""
    model: nn.Module
    final: bool = False
    """True for the attack's last and strongest point, where generation is scored too."""
    rewrite: Callable[[Any], Any] | None = None
    """For prompt attacks on language: example -> example with another prompt; identity is kept."""
    intervention: Intervention | None = None


class Attack(Applied):
    """An attack that changes the model or its inputs and is then scored by the metrics."""

    level: ClassVar[Threat]
    strips: ClassVar[bool] = True
    """Of level T5: whether it begins by `layers.strip`; False for one that puts back what a method has already taken away."""
    needs: ClassVar[frozenset[AttackNeed]] = frozenset()

    @abstractmethod
    def stages(self, model: nn.Module, view: AttackView, *, seed: int) -> Iterator[Stage]:
        """Attack a private copy of the deployed model, yielding the points to score, from no change to the strongest.

        A yielded model is scored before the iterator is advanced, so it may be changed in place afterwards. An attack of level T5
        calls `layers.strip` itself, unless it says `strips = False`.

        Raises:
            NotMeasurable: it has nothing to do with such a model; its cells are N/A, with this reason.
        """


class InferenceAttack(Applied):
    """Membership inference: scores examples; the core turns scores into AUC and TPR at a low FPR, once, for all attacks."""

    level: ClassVar[Threat] = Threat.T2

    @property
    def banks(self) -> tuple[Bank, ...]:
        """The populations it compares with; their members come together, told apart by `Member.role`."""
        return ()

    @abstractmethod
    def wants(self, split: str, scenario: Scenario) -> tuple[Need, ...]:
        """What it reads of a split."""

    @abstractmethod
    def score(self, evidence: Evidence, split: str, bank: Sequence[Member]) -> NDArray[np.floating[Any]]:
        """Scores [n] of the split's rows; higher means more likely a member of the training set."""


class Estimate(float):
    """A single value of a metric with its own interval, for what is no mean over rows."""

    interval: tuple[float, float]
    """Its 95 % interval."""
    covers: str
    """What varies in it: "items", "clusters" or "oracles"."""

    def __new__(cls, value: float, interval: tuple[float, float], covers: str) -> Estimate:
        """The value, which is also the float itself, with its interval."""
        made = super().__new__(cls, value)
        made.interval, made.covers = interval, covers
        return made


class Metric(Applied):
    """A number, or one number per example, read off the evidence. A metric never touches the model.

    Facts that may depend on a field (which split is read) are properties; a plain class attribute (`side = "utility"`)
    may take their place. So ask an object, never the class.
    """

    level: ClassVar[Threat]
    bounds: ClassVar[tuple[float, float]]
    curve: ClassVar[bool] = True
    """Cheap enough for every stage of an attack; otherwise only for the first and the strongest."""
    two_sided: ClassVar[bool] = False
    """True where departing from the oracle to either side gives the forget set away: what counts is the distance."""

    @property
    def banks(self) -> tuple[Bank, ...]:
        """The populations it compares with, beside the anchors."""
        return ()

    @property
    @abstractmethod
    def direction(self) -> Direction:
        """Whether more of it means that more is known (forget side) or that the model is more useful ("higher"), or less."""

    @property
    @abstractmethod
    def side(self) -> Side:
        """What it speaks of; the picture draws forgetting against utility."""

    @property
    def headline(self) -> bool:
        """Meant for the headline: the original must fail it and the oracle pass it on every request with a signal."""
        return False

    @abstractmethod
    def wants(self, scenario: Scenario) -> tuple[Need, ...]:
        """What it reads; its splits are those of `scenario.splits`."""

    @abstractmethod
    def measure(self, evidence: Evidence, audit: Audit) -> Mapping[str, float] | float:
        """One value per row identity, or a single value for the whole split, perhaps an `Estimate`.

        A mean over rows must be returned as per-row values: the core averages, and keeps the clusters for the intervals.

        NaN is never returned.

        Raises:
            NotMeasurable: it says nothing of such evidence (too few rows); the cell is N/A, with this reason.
            ValueError: something is wrong with the evidence; the cell has failed, with this reason.
        """


class SplitMetric(Metric):
    """A metric read on one split: of forgetting on "forget", of utility on what the model should keep."""

    direction: ClassVar[Direction] = "higher"
    tells_apart: ClassVar[bool]
    """On "forget" the original fails it and the oracle passes it; where not, it is a diagnostic on every split."""

    split: str = "forget"

    @property
    def side(self) -> Side:
        """By the split; on "holdout", which nobody ever trained on, all metrics are diagnostics."""
        if not self.tells_apart or self.split == "holdout":
            return "diagnostic"
        return "forget" if self.split == "forget" else "utility"

    @property
    def headline(self) -> bool:
        """See `Metric.headline`."""
        return self.side == "forget"

    def supports(self, scenario: Scenario) -> str | None:
        """The scenario must have the modality and the split."""
        known = self.split in scenario.splits
        return super().supports(scenario) or (None if known else f"needs a split {self.split!r}, not one of {scenario.splits}")
