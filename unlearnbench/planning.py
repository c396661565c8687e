"""From a suite to trials: which models are compared with which, at every request and step.

The file expands grids, seeds, requests and sequences, gives every trial its anchors and banks, and runs nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from unlearnbench.api import Bank, BankRole, Plan
from unlearnbench.config import PluginSpec, Suite, Track, expand
from unlearnbench.trial import (
    Place,
    Population,
    Role,
    Source,
    Trained,
    Trial,
    Unlearned,
    inference_attacks_of,
    method_of,
    metrics_of,
)

ORACLE_SEED = 1000
"""Oracles are trained with seeds from here on: an oracle never shares its seed with an original."""
BANK_SEED = 2000


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A method that cannot serve a place, and why."""

    suite: str
    place: Place
    method: PluginSpec
    role: Role
    reason: str


@dataclass(frozen=True, kw_only=True)
class Anchors:
    """The originals and oracles of one place, of the standard training or of a native method's own."""

    originals: tuple[Trained, ...]
    oracles: tuple[Trained, ...]
    native: PluginSpec | None


def trials_of(suite: Suite) -> tuple[list[Trial], list[Skipped]]:
    """All trials of a suite, anchors first within each request, and the methods that cannot serve a request."""
    trials: list[Trial] = []
    skipped: list[Skipped] = []
    for track in suite.tracks:
        for request in track.requests:
            first = Place(scenario=track.scenario, request=request)
            for step in range(first.open().asked().steps):
                place = replace(first, step=step)
                anchors = anchors_at(place, suite.seeds, suite.oracles, None)
                trials += _anchor_trials(suite, track, anchors, place)
                for spec in (point for method in track.methods for point in expand(method)):
                    method = method_of(spec)
                    reason = method.supports(place.open())
                    if reason is not None:
                        skipped.append(Skipped(suite=suite.suite, place=place, method=spec, role=method.row, reason=reason))
                        continue
                    own = anchors
                    if method.native:
                        own = anchors_at(place, suite.seeds, suite.oracles, spec)
                        trials += _anchor_trials(suite, track, own, place)
                    trials += _method_trials(suite, track, own, place, spec, method.row)
    return trials, skipped


def trained(place: Place, runs: Sequence[tuple[Plan, int]], native: PluginSpec | None = None) -> tuple[Trained, ...]:
    """These models, in populations as large as the scenario trains together."""
    size = place.open().trained_together if native is None else 1
    models: list[Trained] = []
    for start in range(0, len(runs), size):
        population = Population(place=place, runs=tuple(runs[start : start + size]), native=native)
        models += [Trained(population=population, index=index) for index in range(len(population.runs))]
    return tuple(models)


def anchors_at(place: Place, seeds: Sequence[int], oracles: int, native: PluginSpec | None) -> Anchors:
    """The originals (training seeds) and the pool of oracles of a place."""
    scenario = place.open()
    # All steps of a sequence start from the same originals.
    start = replace(place, step=0)
    return Anchors(
        originals=trained(start, [(start.open().plan("original"), seed) for seed in seeds], native),
        oracles=trained(place, [(scenario.plan("oracle"), ORACLE_SEED + index) for index in range(oracles)], native),
        native=native,
    )


def _anchor_trials(suite: Suite, track: Track, anchors: Anchors, place: Place) -> Iterator[Trial]:
    native = anchors.native.label if anchors.native else None
    groups: tuple[tuple[Role, tuple[Trained, ...]], ...] = (("original", anchors.originals), ("oracle", anchors.oracles))
    for role, models in groups:
        label = role if native is None else f"{native}-{role}"
        spec = PluginSpec(name=role, label=label, fields={})
        for model in models:
            yield _trial(suite, track, anchors, place, role, spec, model.seed, model, native)


def _method_trials(suite: Suite, track: Track, anchors: Anchors, place: Place, spec: PluginSpec, role: Role) -> Iterator[Trial]:
    for original in anchors.originals:
        source = unlearned_at(place, spec, original, anchors if role == "reference" else None)
        yield _trial(suite, track, anchors, place, role, spec, original.seed, source, None)


def unlearned_at(place: Place, spec: PluginSpec, start: Trained, anchors: Anchors | None = None, unseen: Place | None = None) -> Unlearned:
    """What a method makes of a trained model at a place: step after step for a sequence of requests."""
    source: Source = start
    for step in range(place.step + 1):
        source = Unlearned(
            place=replace(place, step=step),
            method=spec,
            seed=start.seed,
            before=source,
            unseen=unseen,
            originals=anchors.originals if anchors else (),
            oracles=anchors.oracles if anchors else (),
        )
    assert isinstance(source, Unlearned)  # there is at least one step
    return source


def _trial(
    suite: Suite,
    track: Track,
    anchors: Anchors,
    place: Place,
    role: Role,
    spec: PluginSpec,
    seed: int,
    source: Source,
    native: str | None,
) -> Trial:
    banks: dict[str, tuple[tuple[BankRole, Source], ...]] = {}
    wanted = [(item.label, attack.banks) for item, attack in inference_attacks_of(track.attacks)]
    wanted += [(item.label, metric.banks) for item, metric in metrics_of(track.metrics)]
    for label, asked in wanted:
        if asked:
            banks[label] = tuple((bank.role, source) for bank in asked for source in _bank(bank, anchors, place, role, spec))
    return Trial(
        suite=suite.suite,
        place=place,
        role=role,
        method=spec,
        seed=seed,
        source=source,
        originals=anchors.originals,
        oracles=anchors.oracles,
        attacks=track.attacks,
        metrics=track.metrics,
        banks=banks,
        native=native,
    )


def _bank(bank: Bank, anchors: Anchors, place: Place, role: Role, spec: PluginSpec) -> tuple[Source, ...]:
    """The members of a bank. For an anchor under test, what unlearning would give is the anchor itself."""
    start, scenario, native = replace(place, step=0), place.open(), anchors.native
    if bank.role == "untrained":
        return trained(start, [(Plan(role="untrained", rows=frozenset()), seed) for seed in range(BANK_SEED, BANK_SEED + bank.n)])
    seeds = range(BANK_SEED, BANK_SEED + bank.n)
    if bank.role == "unlearned" and role == "oracle":
        seeds = range(BANK_SEED + bank.n, BANK_SEED + 2 * bank.n)  # held out of a bank of as many oracles
    originals = trained(start, [(start.open().plan("original"), seed) for seed in seeds], native)
    oracles = trained(place, [(scenario.plan("oracle"), seed) for seed in seeds], native)
    if bank.role == "original" or (role == "original" and bank.role in ("unlearned", "unlearned_elsewhere")):
        return originals
    if bank.role == "oracle" or role == "original" or (role == "oracle" and bank.role == "unlearned"):
        return oracles
    if bank.role == "unlearned":
        return tuple(unlearned_at(place, spec, original, anchors if role == "reference" else None) for original in originals)
    known = bank.role == "unlearned_elsewhere"
    places = [_elsewhere(place, index) for index in range(bank.n)]
    if role == "oracle":
        return tuple(
            model for other, seed in zip(places, seeds, strict=True) for model in _oracle_of(other, seed, None if known else place, native)
        )
    members: list[Source] = []
    for other, before in zip(places, originals if known else oracles, strict=True):
        own = anchors_at(other, [item.seed for item in anchors.originals], len(anchors.oracles), native) if role == "reference" else None
        members.append(unlearned_at(other, spec, before, own, None if known else place))
    return tuple(members)


def _oracle_of(place: Place, seed: int, unseen: Place | None, native: PluginSpec | None) -> tuple[Trained, ...]:
    """An oracle of a place that did not see the forget set of another place either, if one is given."""
    plan = place.open().plan("oracle")
    if unseen is not None:
        plan = Plan(role="oracle", rows=plan.rows | unseen.open().plan("oracle").rows)
    return trained(place, [(plan, seed)], native)


def _elsewhere(place: Place, index: int) -> Place:
    """The same place with another random forget set."""
    shadow = replace(place, step=0).open().shadow_request(index)
    fields = {name: value for name, value in shadow.hyperparameters().items() if name != "request"}
    return replace(place, scenario=place.scenario.model_copy(update={"fields": fields}), request=shadow.request)
