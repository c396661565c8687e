"""What a run would compute, and about how long it would take: the dry run.

Builds the graph of a run without running it. Times come from a probe: two training steps and one forward pass of each scenario that has
work left, on this machine. They are rough: unlearning is taken to cost as much as training a model, a generation as ten forward passes.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from unlearnbench.api import Attack, Batch, Need
from unlearnbench.artefacts import Workshop, peak_memory
from unlearnbench.config import Suite
from unlearnbench.runner import EvidenceJob, Job, TrialJob, build_graph
from unlearnbench.store import Store
from unlearnbench.training import fit, rows
from unlearnbench.trial import Place, Population, Settings, Unlearned, needs_of

GENERATION = 10
"""Forward passes that a generation is taken to cost."""


class PlanLine(NamedTuple):
    """One thing that the run needs."""

    kind: str
    """population, unlearned, evidence or trial."""
    title: str
    cached: bool
    seconds: float
    """On one core, or on the GPU; 0 for what is cached."""


class Forecast(NamedTuple):
    """What a run would do."""

    lines: list[PlanLine]
    skipped: list[str]
    """What cannot be served, and why."""
    memory: int
    """Bytes that one process holds while it trains; 0 if nothing is left to do."""

    @property
    def seconds(self) -> float:
        """What is left to do, on one core or on the GPU."""
        return sum(line.seconds for line in self.lines)


@dataclass(frozen=True, kw_only=True)
class _Pace:
    """What a scenario's probe measured, in seconds."""

    training: float
    """Of one model."""
    row: float
    """The forward pass of one row."""


def plan(suite: Suite, *, store: str, device: Literal["cpu", "cuda"], dtype: Literal["fp32", "bf16"]) -> Forecast:
    """Forecast a run; nothing is written.

    Args:
        suite: what would be run.
        store: where the run would look for what is cached.
        device: where models would run; the probe runs there.
        dtype: the precision of training.
    """
    settings = Settings(device=device, dtype=dtype)
    workshop = Workshop(Store(store), settings)
    graph = build_graph(suite, workshop.store, settings)
    paces: dict[str, _Pace] = {}
    lines = [PlanLine(key.partition("/")[0], title, True, 0.0) for key, title in graph.cached.items() if title]
    with _one_thread():
        for key, node in graph.nodes.items():
            place = node.payload.trial.place if isinstance(node.payload, TrialJob) else node.payload.place
            name = place.scenario.model_dump_json() + str(place.step)
            if name not in paces:
                paces[name] = _probe(place, workshop)
            lines.append(PlanLine(key.partition("/")[0], node.title, False, _seconds(node.payload, paces[name])))
        memory = peak_memory(device) if paces else 0
    skipped = [f"{skip.method.label} on {skip.place.scenario.label}/{skip.place.request}: {skip.reason}" for skip in graph.skipped]
    return Forecast(lines, skipped, memory)


def print_plan(console: Console, forecast: Forecast, workers: int) -> None:
    """Draw a forecast; `workers` divide its time."""
    table = Table(box=None, pad_edge=False)
    for column in ("what", "", "state", "time"):
        table.add_column(column, justify="right" if column == "time" else "left")
    for line in sorted(forecast.lines, key=lambda line: ("population", "unlearned", "evidence", "trial").index(line.kind)):
        table.add_row(line.kind, escape(line.title), "cached" if line.cached else "to do", "" if line.cached else duration(line.seconds))
    console.print(table)
    for reason in forecast.skipped:
        console.print(f"skipped: {reason}", markup=False, highlight=False)
    todo = [line for line in forecast.lines if not line.cached]
    counts = ", ".join(f"{sum(line.kind == kind for line in todo)} {kind}" for kind in dict.fromkeys(line.kind for line in todo))
    console.print(f"to do: {counts or 'nothing'}; cached: {len(forecast.lines) - len(todo)}", highlight=False)
    if todo:
        wall = duration(forecast.seconds / workers)
        memory = f"{forecast.memory / 2**30:.1f} GiB for each"
        console.print(f"estimate, good to a factor of a few: {wall} with {workers} workers, {memory}", highlight=False)


def duration(seconds: float) -> str:
    """A time as a person says it.

    >>> duration(0.2), duration(75), duration(7300)
    ('< 1 s', '1 min 15 s', '2 h 1 min')
    """
    if seconds < 1:
        return "< 1 s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if minutes else f"{rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def _seconds(job: Job, pace: _Pace) -> float:
    if isinstance(job, Population):
        return len(job.runs) * pace.training
    if isinstance(job, Unlearned):
        return pace.training
    if isinstance(job, EvidenceJob):
        return _pass(job.place, job.needs, pace)
    attacks = [spec.make("attacks") for spec in job.trial.attacks]
    scenario = job.trial.place.open()
    changing = sum(isinstance(attack, Attack) and attack.supports(scenario) is None for attack in attacks)
    # The trial's own evidence is a node of its own; an attack is taken to have one stage that costs as much.
    return changing * _pass(job.trial.place, needs_of(job.trial), pace)


def _pass(place: Place, needs: Iterable[Need], pace: _Pace) -> float:
    """Seconds of one evidence pass."""
    scenario = place.open()
    return sum(len(scenario.split(need.split)) * pace.row * (GENERATION if need.what == "generation" else 1) for need in needs)


def _probe(place: Place, workshop: Workshop) -> _Pace:
    """Two training steps, the second of them timed, and one forward pass."""
    scenario = place.open()
    with workshop.on_hardware():
        view = scenario.train_view(scenario.plan("original"))
        model = view.build(0).to(workshop.settings.device)
        data = view.data.train
        size = min(view.recipe.batch_size, len(data))
        batch = data.batch(range(size))
        stamps: list[float] = []

        def loss(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
            return view.loss(model, batch).mean()

        def stamp(step: int, model: torch.nn.Module) -> None:
            next(model.parameters()).sum().item()  # waits for a GPU
            stamps.append(time.perf_counter())

        once = replace(view.recipe, epochs=1)
        fit(model, loss, lambda epoch: [batch] * (2 * once.accumulate), once, seed=0, total_steps=2, on_step=stamp, label="probe")
        step = (stamps[1] - stamps[0]) / (once.accumulate * rows(batch))
        moved = {key: value.to(workshop.settings.device) if isinstance(value, torch.Tensor) else value for key, value in batch.items()}
        start = time.perf_counter()
        with torch.no_grad():
            view.loss(model.eval(), moved).sum().item()
        return _Pace(training=step * len(data) * view.recipe.epochs, row=(time.perf_counter() - start) / size)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Workers have one thread each, so the probe has too."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
