"""What is computed, by name: populations of trained models, unlearned models, trials, and the content key of each.

Everything here is a small picklable description; a key is a hash of all that the result depends on (settings, data, seeds, device
kind, dtype, and the code of the plugins and of the first-party modules they import). The file runs nothing.

Descriptions of models are compared by their keys, never with `==`: a key is worked out once for each object.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Any, Literal

from unlearnbench import registry
from unlearnbench.api import Attack, BankRole, InferenceAttack, Method, Metric, Need, Plan, Plugin, Scenario
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
        """The scenario object; one for equal places."""
        return _open(json.dumps(self.identity()))

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
    unseen: Place | None = None
    """A place whose forget set the model before never saw: the method is not given it as rows to retain either."""


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
    banks: Mapping[str, tuple[tuple[BankRole, Source], ...]] = field(default_factory=dict)
    """The members of the banks of each membership attack or metric that declares any, by label."""
    native: str | None = None
    """For the anchors of a native method: the label of that method."""


@lru_cache(maxsize=4096)
def _made(group: registry.Group, spec: str) -> Plugin:
    return PluginSpec.model_validate_json(spec).make(group)


def _plugins(group: registry.Group, specs: tuple[PluginSpec, ...]) -> list[tuple[PluginSpec, Plugin]]:
    return [(spec, _made(group, spec.model_dump_json())) for spec in specs]


def method_of(spec: PluginSpec) -> Method:
    """The method of a spec; equal specs share one, as plugins are frozen."""
    method = _made("methods", spec.model_dump_json())
    assert isinstance(method, Method)  # the registry has checked the group
    return method


def attacks_of(specs: tuple[PluginSpec, ...]) -> list[tuple[PluginSpec, Attack]]:
    """Those of a trial's attacks that change the model or its inputs."""
    return [(spec, attack) for spec, attack in _plugins("attacks", specs) if isinstance(attack, Attack)]


def inference_attacks_of(specs: tuple[PluginSpec, ...]) -> list[tuple[PluginSpec, InferenceAttack]]:
    """Those of a trial's attacks that infer membership."""
    return [(spec, attack) for spec, attack in _plugins("attacks", specs) if isinstance(attack, InferenceAttack)]


def metrics_of(specs: tuple[PluginSpec, ...]) -> list[tuple[PluginSpec, Metric]]:
    """The metrics of a trial."""
    return [(spec, metric) for spec, metric in _plugins("metrics", specs) if isinstance(metric, Metric)]


def needs_of(trial: Trial) -> frozenset[Need]:
    """The union of what the trial's metrics and membership attacks read, interventions included."""
    scenario = trial.place.open()
    found: set[Need] = set()
    for _, metric in metrics_of(trial.metrics):
        if metric.supports(scenario) is None:
            found.update(metric.wants(scenario))
    for _, attack in inference_attacks_of(trial.attacks):
        if attack.supports(scenario) is None:
            found.update(attack.wants("forget", scenario))
            found.update(attack.wants("holdout", scenario))
    return frozenset(found)


# -------------------------------------------------------------------------------------------------------------------------- keys


@cache
def _code(group: registry.Group, name: str) -> str:
    return code_hash(registry.load(group, name))


def _plugin(group: registry.Group, spec: PluginSpec) -> dict[str, Any]:
    return {"name": spec.name, "fields": dict(spec.fields), "code": _code(group, spec.name)}


@lru_cache(maxsize=4096)
def _training_settings(place: str, plan: Plan) -> dict[str, Any]:
    return _open(place).training_settings(plan)


@lru_cache(maxsize=4096)
def population_key(population: Population, settings: Settings) -> str:
    """The key of a population's artefact."""
    place = json.dumps(population.place.identity())
    return content_key(
        {
            "what": "population",
            "scenario": population.place.scenario.name,
            "code": _code("scenarios", population.place.scenario.name),
            "runs": [
                [_training_settings(place, plan), seed, *(["untrained"] if plan.role == "untrained" else [])]
                for plan, seed in population.runs
            ],
            "native": _plugin("methods", population.native) if population.native else None,
            "settings": [settings.device, settings.dtype],
        }
    )


@lru_cache(maxsize=4096)
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
            "unseen": source.unseen.identity() if source.unseen else None,
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


def shared_key(place: Place, method: PluginSpec, key: Mapping[str, Any], settings: Settings) -> str:
    """The key of what all calls of a method at a place share; its hyper-parameters count only as far as the method puts them in `key`."""
    return content_key(
        {
            "what": "shared",
            "place": place.identity(),
            "scenario": _code("scenarios", place.scenario.name),
            "method": [method.name, _code("methods", method.name)],
            "key": dict(key),
            "settings": [settings.device, settings.dtype],
        }
    )


def trial_key(trial: Trial, settings: Settings) -> str:
    """The key of a trial's record."""
    return content_key(
        {
            "what": "trial",
            "role": trial.role,
            "labels": [trial.place.scenario.label, trial.method.label],
            "model": source_key(trial.source, settings),
            "place": trial.place.identity(),
            "scenario": _code("scenarios", trial.place.scenario.name),
            "attacks": [{"label": spec.label, **_plugin("attacks", spec)} for spec in trial.attacks],
            "metrics": [{"label": spec.label, **_plugin("metrics", spec)} for spec in trial.metrics],
            "anchors": [[source_key(anchor, settings) for anchor in group] for group in (trial.originals, trial.oracles)],
            "banks": {label: [[role, source_key(source, settings)] for role, source in bank] for label, bank in trial.banks.items()},
            "harness": module_hash("unlearnbench.evaluation"),
            "settings": [settings.device, settings.dtype],
        }
    )
