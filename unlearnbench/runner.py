"""Runs a suite: finds what is missing in the store, computes it, and writes one record per trial.

A second run of the same suite computes nothing. A run that was killed goes on where it was. The file turns trials into a graph of
nodes, nodes into artefacts, and trials into records.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

from unlearnbench.api import Need, UserError
from unlearnbench.artefacts import Workshop, own_randomness, peak_memory
from unlearnbench.config import Suite
from unlearnbench.evaluation import Item, score
from unlearnbench.executors import Node, Outcome, execute
from unlearnbench.files import content_key, copy_file, write_json
from unlearnbench.layers import model_hash
from unlearnbench.planning import Skipped, trials_of
from unlearnbench.provenance import machine, provenance
from unlearnbench.records import MANIFEST, Record, TrialInfo, read_record, write_items
from unlearnbench.store import Store
from unlearnbench.trial import (
    Place,
    Population,
    Settings,
    Source,
    Trained,
    Trial,
    Unlearned,
    evidence_key,
    method_of,
    needs_of,
    population_key,
    source_key,
    trial_key,
)


@dataclass(frozen=True, kw_only=True)
class EvidenceJob:
    """The evidence of an anchor or a bank's member at a place."""

    source: Source
    place: Place
    needs: frozenset[Need]


@dataclass(frozen=True, kw_only=True)
class TrialJob:
    """A trial to score, and the keys of its anchors' records."""

    trial: Trial
    anchors: dict[str, tuple[str, ...]]


Job = Population | Unlearned | EvidenceJob | TrialJob
AnchorGroup = tuple[str, str, int, str | None]


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """How a run ended: counts of records, and where they are."""

    done: int
    skipped: int
    failed: int
    folder: Path


@dataclass(kw_only=True)
class Graph:
    """The nodes of a suite that are not in the store yet, and all of its trials."""

    nodes: dict[str, Node] = field(default_factory=dict)
    cached: dict[str, str] = field(default_factory=dict)
    """Titles of what the store has, by key."""
    trials: dict[str, TrialJob] = field(default_factory=dict)
    skipped: list[Skipped] = field(default_factory=list)


def build_graph(suite: Suite, store: Store, settings: Settings) -> Graph:
    """What must be computed, dependencies first. A node that is in the store is not listed, nor is what only it needs."""
    with Workshop(store, settings).on_hardware():  # how many models are trained together may depend on the device
        trials, skipped = trials_of(suite)
    graph = Graph(skipped=skipped)
    keys = [trial_key(trial, settings) for trial in trials]
    anchors: dict[AnchorGroup, dict[str, list[str]]] = {}
    for trial, key in zip(trials, keys, strict=True):
        if trial.role in ("original", "oracle"):
            anchors.setdefault(_anchor_group(trial), {}).setdefault(trial.role, []).append(key)
    for trial, key in zip(trials, keys, strict=True):
        mine = {role: tuple(found) for role, found in anchors[_anchor_group(trial)].items()}
        graph.trials[key] = TrialJob(trial=trial, anchors=mine)
        if store.has("trial", key):
            graph.cached[f"trial/{key}"] = _title(trial)
            continue
        needs = needs_of(trial)
        after = {_add_source(graph, trial.source, store, settings)}
        members = [*trial.originals, *trial.oracles, *(source for bank in trial.banks.values() for _, source in bank)]
        after.update(_add_evidence(graph, source, trial.place, needs, store, settings) for source in [trial.source, *members])
        _add(graph, f"trial/{key}", _title(trial), graph.trials[key], after, store)
    return graph


def _anchor_group(trial: Trial) -> AnchorGroup:
    """Trials with the same anchors at the same place, scored by the same metrics and attacks."""
    native = trial.oracles[0].population.native
    return trial.place.scenario.label, trial.place.request, trial.place.step, native.label if native else None


def _title(trial: Trial) -> str:
    step = f" step {trial.place.step}" if trial.place.step else ""
    return f"{trial.method.label} on {trial.place.scenario.label}/{trial.place.request}{step}, seed {trial.seed}"


def _add(graph: Graph, key: str, title: str, job: Job, after: set[str], store: Store) -> str:
    kind, _, name = key.partition("/")
    if key in graph.nodes or key in graph.cached:
        return key
    if store.has(kind, name):
        graph.cached[key] = title
    else:
        graph.nodes[key] = Node(key=key, title=title, payload=job, after=frozenset(after & graph.nodes.keys()))
    return key


def _add_source(graph: Graph, source: Source, store: Store, settings: Settings) -> str:
    if isinstance(source, Trained):
        population = source.population
        key = f"population/{population_key(population, settings)}"
        roles = sorted({plan.role for plan, _ in population.runs})
        title = f"train {len(population.runs)} x {'/'.join(roles)} of {population.place.scenario.label}/{population.place.request}"
        return _add(graph, key, title, population, set(), store)
    key = f"unlearned/{source_key(source, settings)}"
    if store.has("unlearned", key.partition("/")[2]):
        return _add(graph, key, "", source, set(), store)
    after = {_add_source(graph, before, store, settings) for before in (source.before, *source.originals, *source.oracles)}
    title = f"unlearn with {source.method.label} on {source.place.scenario.label}/{source.place.request}, seed {source.seed}"
    return _add(graph, key, title, source, after, store)


def _add_evidence(graph: Graph, source: Source, place: Place, needs: frozenset[Need], store: Store, settings: Settings) -> str:
    plain = frozenset(need for need in needs if need.intervention is None)
    key = f"evidence/{evidence_key(source, place, plain, settings)}"
    if store.has("evidence", key.partition("/")[2]):
        return _add(graph, key, "", EvidenceJob(source=source, place=place, needs=plain), set(), store)
    after = {_add_source(graph, source, store, settings)}
    title = f"evidence on {place.scenario.label}/{place.request}, seed {source.seed}"
    return _add(graph, key, title, EvidenceJob(source=source, place=place, needs=plain), after, store)


# --------------------------------------------------------------------------------------------------------------------------- run


def run_suite(
    suite: Suite,
    *,
    store: str,
    out: Path,
    workers: int = 1,
    device: Literal["cpu", "cuda"] = "cpu",
    dtype: Literal["fp32", "bf16"] = "fp32",
    on_record: Callable[[Record, int, int], None] | None = None,
) -> RunSummary:
    """Run what is missing and write all records of the suite into `out`.

    Args:
        suite: what to run.
        store: where artefacts are kept, a folder or an fsspec URL.
        out: the folder of the records; `suite.json` in it names the records of the latest run.
        workers: processes; results do not depend on it.
        device: where models run.
        dtype: the precision of training.
        on_record: called with each record, the number of records so far and their total.
    """
    if workers < 1:
        raise UserError(f"--workers is {workers}; it must be 1 or more")
    settings = Settings(device=device, dtype=dtype)
    url = store if "://" in store else str(Path(store).expanduser().absolute())
    run = secrets.token_hex(8)
    place = _opened(url, run)
    graph = build_graph(suite, place, settings)
    kept_trials = [key for key in graph.trials if f"trial/{key}" in graph.cached]
    if any(place.get("trial", key) is None for key in kept_trials):
        graph = build_graph(suite, place, settings)  # a damaged record is gone now: it is made again, with whatever it needs
    out.mkdir(parents=True, exist_ok=True)
    written: list[Record] = []
    total = len(graph.trials) + len(graph.skipped)

    def keep(record: Record) -> None:
        record.write(out)
        written.append(record)
        if on_record is not None:
            on_record(record, len(written), total)

    for skip in graph.skipped:
        keep(_skipped(skip))
    _write_manifest(out, suite, graph, written)
    for key, job in graph.trials.items():
        if f"trial/{key}" in graph.cached:
            keep(_published(place, job, key, out, settings))

    def done(node: Node, outcome: Outcome) -> None:
        if outcome.failure is not None:
            logging.getLogger(__name__).warning("%s failed: %s", node.title, outcome.failure)
        if isinstance(node.payload, TrialJob):
            key = node.key.partition("/")[2]
            if outcome.failure is not None:
                keep(_failed(node.payload, key, outcome.failure, settings))
            elif isinstance(outcome.value, Record):
                keep(outcome.value)
            else:
                keep(_published(place, node.payload, key, out, settings))

    execute(list(graph.nodes.values()), partial(work, url, run, settings), workers=workers, done=done)
    failed = sum(record.status == "failed" or any(cell.status == "failed" for cell in record.cells) for record in written)
    skipped = sum(record.status == "skipped" for record in written)
    return RunSummary(done=len(written) - failed - skipped, skipped=skipped, failed=failed, folder=out)


def _write_manifest(out: Path, suite: Suite, graph: Graph, skipped: Sequence[Record]) -> None:
    """Name the records of this run, so that those of earlier code or settings in the same folder are not shown."""
    names = [record.filename for record in skipped]
    names += [_filename(job.trial.method.label, key) for key, job in graph.trials.items()]
    write_json(out / MANIFEST, {"suite": suite.document(), "records": sorted(names)})


def _filename(label: str, key: str) -> str:
    info: Any = TrialInfo.model_construct(label=label)
    return Record.model_construct(key=key, trial=info).filename


@lru_cache(maxsize=1)
def _opened(url: str, run: str) -> Store:
    """One store for each process and run: what was read and verified in this run is not read again."""
    return Store(url)


def work(store: str, run: str, settings: Settings, job: Job) -> Record | None:
    """Compute one node. A trial with a failed cell is returned and not kept, so that the next run tries it again."""
    workshop = Workshop(_opened(store, run), settings)
    if isinstance(job, Population):
        workshop.population(job)
    elif isinstance(job, Unlearned):
        workshop.unlearned(job)
    elif isinstance(job, EvidenceJob):
        workshop.evidence(job.source, job.place, job.needs)
    else:
        return _run_trial(workshop, job)
    return None


class _NotKept(Exception):
    """A trial with a failed cell."""

    def __init__(self, record: Record) -> None:
        super().__init__(record.key)
        self.record = record


def _run_trial(workshop: Workshop, job: TrialJob) -> Record | None:
    key = trial_key(job.trial, workshop.settings)

    def write(folder: Path) -> None:
        record, items = _scored(workshop, job, key)
        if any(cell.status == "failed" for cell in record.cells):
            raise _NotKept(record)
        write_json(folder / "record.json", record.model_dump(mode="json"))
        write_items(folder / "items.parquet", items)

    try:
        workshop.store.build("trial", key, write)
    except _NotKept as failed:
        return failed.record
    return None


def _scored(workshop: Workshop, job: TrialJob, key: str) -> tuple[Record, list[Item]]:
    trial, settings = job.trial, workshop.settings
    with own_randomness(trial.seed):
        scores = score(trial, workshop)
    cost = workshop.cost(trial.source)
    retraining = workshop.cost(trial.oracles[0])["seconds"]
    record = Record(
        key=key,
        status="done",
        trial=info_of(trial),
        cells=tuple(scores.cells),
        anchors=job.anchors,
        provenance={**provenance(trial, settings), "model": model_hash(workshop.model(trial.source))},
        volatile={
            **machine(settings.device),
            "seconds": {"model": cost["seconds"], **scores.seconds},
            "share_of_retraining": cost["seconds"] / retraining if isinstance(trial.source, Unlearned) else None,
            "samples": cost.get("samples"),
            "peak_memory_bytes": max(cost["peak_memory"], peak_memory(settings.device)),
        },
    )
    return record, scores.items


def _published(store: Store, job: TrialJob, key: str, out: Path, settings: Settings) -> Record:
    """A kept record, as this suite calls the trial, with its per-item values copied into the results."""
    folder = store.get("trial", key)
    if folder is None:
        return _failed(job, key, "its record was damaged as soon as it was written; run again", settings)
    kept = read_record(folder / "record.json")
    record = kept.model_copy(update={"trial": kept.trial.model_copy(update={"suite": job.trial.suite})})
    copy_file(folder / "items.parquet", (out / record.filename).with_suffix(".parquet"))
    return record


def info_of(trial: Trial | Skipped) -> TrialInfo:
    """A trial as its record tells it."""
    scenario = trial.place.open()
    request = scenario.asked()
    anchor = isinstance(trial, Trial) and trial.role in ("original", "oracle")
    method = None if anchor else method_of(trial.method)
    return TrialInfo(
        suite=trial.suite,
        scenario=trial.place.scenario.label,
        settings=dict(trial.place.scenario.fields),
        request=request.name,
        request_kind=request.kind,
        request_description=request.description,
        signal=request.signal,
        step=trial.place.step,
        method=trial.method.name,
        label=trial.method.label,
        role=trial.role,
        hyperparameters=dict(trial.method.fields),
        seed=trial.seed if isinstance(trial, Trial) else 0,
        native=trial.native if isinstance(trial, Trial) else None,
        edits_weights=getattr(method, "edits_weights", None),
    )


def _failed(job: TrialJob, key: str, reason: str, settings: Settings) -> Record:
    return Record(
        key=key,
        status="failed",
        reason=reason,
        trial=info_of(job.trial),
        anchors=job.anchors,
        provenance=provenance(job.trial, settings),
        volatile=machine(settings.device),
    )


def _skipped(skip: Skipped) -> Record:
    labels = [skip.place.scenario.label, skip.method.label]
    key = content_key({"what": "skipped", "place": skip.place.identity(), "labels": labels, "fields": skip.method.fields})
    return Record(key=key, status="skipped", reason=skip.reason, trial=info_of(skip), anchors={}, provenance={})
