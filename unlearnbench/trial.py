"""What is computed, by name: populations of trained models, unlearned models, trials, and the content key of each.

Everything here is a small picklable description; a key is a hash of all that the result depends on (settings, data, seeds, device
kind, dtype, and the code of the plugins and of the first-party modules they import). The file runs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

from unlearnbench import registry
from unlearnbench.api import Attack, InferenceAttack, Metric, Need, Plan, Scenario
from unlearnbench.code import code_hash, module_hash
from unlearnbench.config import PluginSpec
from unlearnbench.files import content_key

Role = Literal["original", "oracle", "method", "reference", "sanity"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Where and how everything of a run is computed; part of every key."""

    device: str = "cpu"
    dtype: str = "fp32"


@dataclass(frozen=True, kw_only=True)
class Place:
    """A scenario with its request, at one step of it."""

    scenario: PluginSpec
    request: str
    step: int = 0

    def open(self) -> Scenario:
        """The scenario object."""
        return _open(self)

    def identity(self) -> dict[str, Any]:
        """What tells this place from others."""
        return {"scenario": self.scenario.name, "fields": dict(self.scenario.fields), "request": self.request, "step": self.step}


@lru_cache(maxsize=1024)
def _open(place: str) -> Scenario:
    """The scenario of a place's identity, as JSON."""
    identity = json.loads(place)
    scenario = registry.make("scenarios", identity["scenario"], {**identity["fields"], "request": identity["request"]})
    assert isinstance(scenario, Scenario)  # the registry has checked the group
    scenario.asked()
    return scenario.at(identity["step"])


@dataclass(frozen=True, kw_only=True, eq=False)
class Population:
    """Models trained in one go, one for each pair of plan and seed."""

    place: Place
    runs: tuple[tuple[Plan, int], ...]
    native: PluginSpec | None = None
    """The method that owns training, if any."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Trained:
    """One model of a population."""

    population: Population
    index: int

    @property
    def seed(self) -> int:
        """The training seed."""
        return self.population.runs[self.index][1]


@dataclass(frozen=True, kw_only=True, eq=False)
class Unlearned:
    """What a method makes of a model at a place."""

    place: Place
    method: PluginSpec
    seed: int
    before: Source
    originals: tuple[Trained, ...] = ()
    """For reference rows, which take the auditor's view; empty for methods."""
    oracles: tuple[Trained, ...] = ()


Source = Trained | Unlearned


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One model under test at one place, with everything it is scored by."""

    suite: str
    place: Place
    role: Role
    method: PluginSpec
    """For anchors: a spec without a plugin whose label is "original" or "oracle"."""
    seed: int
    source: Source
    originals: tuple[Trained, ...]
    oracles: tuple[Trained, ...]
    attacks: tuple[PluginSpec, ...]
    metrics: tuple[PluginSpec, ...]
    banks: Mapping[str, tuple[Source, ...]] = field(default_factory=dict)
    """The bank of each membership attack or metric that declares one, by label."""
    native: str | None = None
    """For the anchors of a native method: the label of that method."""


def needs_of(trial: Trial) -> frozenset[Need]:
    """The union of what the trial's metrics and membership attacks read, interventions included."""
    scenario = trial.place.open()
    found: set[Need] = set()
    for spec in trial.metrics:
        metric = spec.make("metrics")
        assert isinstance(metric, Metric)  # the registry has checked the group
        if metric.supports(scenario) is None:
            found.update(metric.wants(scenario))
    for spec in trial.attacks:
        attack = spec.make("attacks")
        if isinstance(attack, InferenceAttack) and attack.supports(scenario) is None:
            found.update(attack.wants("forget", scenario))
            found.update(attack.wants("holdout", scenario))
    return frozenset(found)


# -------------------------------------------------------------------------------------------------------------------------- keys


@cache
def _code(group: registry.Group, name: str) -> str:
    return code_hash(registry.load(group, name))


def _plugin(group: registry.Group, spec: PluginSpec) -> dict[str, Any]:
    return {"name": spec.name, "fields": dict(spec.fields), "code": _code(group, spec.name)}


def population_key(population: Population, settings: Settings) -> str:
    """The key of a population's artefact."""
    scenario = population.place.open()
    return content_key(
        {
            "what": "population",
            "scenario": population.place.scenario.name,
            "code": _code("scenarios", population.place.scenario.name),
            "runs": [[scenario.training_settings(plan), seed] for plan, seed in population.runs],
            "native": _plugin("methods", population.native) if population.native else None,
            "settings": [settings.device, settings.dtype],
        }
    )


def source_key(source: Source, settings: Settings) -> str:
    """The key that identifies one model: of its artefact and, for a population, of its place in it."""
    if isinstance(source, Trained):
        return f"{population_key(source.population, settings)}/{source.index}"
    return content_key(
        {
            "what": "unlearned",
            "place": source.place.identity(),
            "scenario": _code("scenarios", source.place.scenario.name),
            "method": _plugin("methods", source.method),
            "seed": source.seed,
            "before": source_key(source.before, settings),
            "anchors": [source_key(anchor, settings) for anchor in (*source.originals, *source.oracles)],
            "settings": [settings.device, settings.dtype],
        }
    )


def evidence_key(source: Source, place: Place, needs: frozenset[Need], settings: Settings) -> str:
    """The key of one model's evidence at a place."""
    return content_key(
        {
            "what": "evidence",
            "model": source_key(source, settings),
            "place": place.identity(),
            "scenario": _code("scenarios", place.scenario.name),
            "needs": sorted(map(repr, needs)),
            "settings": [settings.device, settings.dtype],
        }
    )


def trial_key(trial: Trial, settings: Settings) -> str:
    """The key of a trial's record."""
    return content_key(
        {
            "what": "trial",
            "role": trial.role,
            "label": trial.method.label,
            "model": source_key(trial.source, settings),
            "place": trial.place.identity(),
            "scenario": _code("scenarios", trial.place.scenario.name),
            "attacks": [{"label": spec.label, **_plugin("attacks", spec)} for spec in trial.attacks],
            "metrics": [{"label": spec.label, **_plugin("metrics", spec)} for spec in trial.metrics],
            "anchors": [[source_key(anchor, settings) for anchor in group] for group in (trial.originals, trial.oracles)],
            "banks": {label: [source_key(source, settings) for source in bank] for label, bank in trial.banks.items()},
            "harness": module_hash("unlearnbench.evaluation"),
            "settings": [settings.device, settings.dtype],
        }
    )


def attacks_of(trial: Trial) -> list[tuple[PluginSpec, Attack]]:
    """The trial's attacks that change the model or its inputs."""
    made = [(spec, spec.make("attacks")) for spec in trial.attacks]
    return [(spec, attack) for spec, attack in made if isinstance(attack, Attack)]


def inference_attacks_of(trial: Trial) -> list[tuple[PluginSpec, InferenceAttack]]:
    """The trial's membership attacks."""
    made = [(spec, spec.make("attacks")) for spec in trial.attacks]
    return [(spec, attack) for spec, attack in made if isinstance(attack, InferenceAttack)]


def metrics_of(trial: Trial) -> list[tuple[PluginSpec, Metric]]:
    """The trial's metrics."""
    made = [(spec, spec.make("metrics")) for spec in trial.metrics]
    return [(spec, metric) for spec, metric in made if isinstance(metric, Metric)]
