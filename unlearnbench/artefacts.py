"""Builds what is computed once and kept: populations, unlearned models, and the evidence of anchors and banks.

Every builder looks in the store first; what it makes depends on its description alone, whoever asks for it and in which process. The
file knows where models come from and nothing of how they are scored.
"""

from __future__ import annotations

import json
import random
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from unlearnbench.api import AttackView, Data, Member, MethodView, Need, Plan, Reference, ReferenceView, Split
from unlearnbench.config import PluginSpec
from unlearnbench.deployed import load_model, save_model
from unlearnbench.evidence import Evidence
from unlearnbench.progress import passes, progress
from unlearnbench.store import Store
from unlearnbench.training import Hardware, hardware
from unlearnbench.trial import (
    Place,
    Population,
    Settings,
    Source,
    Trained,
    Unlearned,
    evidence_key,
    method_of,
    population_key,
    shared_key,
    source_key,
)


class Workshop:
    """Makes and fetches artefacts of one store under one set of settings."""

    def __init__(self, store: Store, settings: Settings) -> None:
        self.store = store
        self.settings = settings

    # ------------------------------------------------------------------------------------------------------------- models

    def population(self, population: Population) -> Path:
        """The folder of a trained population: one folder per model, and `meta.json` with its cost."""

        def write(folder: Path) -> None:
            plans, seeds = [plan for plan, _ in population.runs], [seed for _, seed in population.runs]
            scenario = population.place.open()
            with self._measured() as cost, own_randomness(seeds[0]):
                if all(plan.role == "untrained" for plan in plans):
                    models = [scenario.build(seed) for seed in seeds]
                elif population.native is None:
                    models = scenario.train(plans, seeds)
                else:
                    method = method_of(population.native)
                    models = [method.train(scenario.train_view(plan), seed=seed) for plan, seed in population.runs]
            for index, model in enumerate(models):
                (folder / str(index)).mkdir()
                save_model(model.eval(), folder / str(index))
            _write_meta(folder, {**cost, "models": len(models)})

        return self.store.build("population", population_key(population, self.settings), write)

    def unlearned(self, source: Unlearned) -> Path:
        """The folder of an unlearned model, and `meta.json` with its cost."""

        def write(folder: Path) -> None:
            method = method_of(source.method)
            model = self.model(source.before)
            view = self.method_view(source.place, source.method, source.unseen)
            with self._measured() as cost, own_randomness(source.seed):
                if isinstance(method, Reference):
                    model = method.refer(model, self._reference_view(source, view), seed=source.seed)
                else:
                    model = method.unlearn(model, view, seed=source.seed)
            _check_finite(model, source.method.label)
            save_model(model, folder)
            _write_meta(folder, cost)

        return self.store.build("unlearned", source_key(source, self.settings), write)

    def folder(self, source: Source) -> Path:
        """The folder that holds one model."""
        if isinstance(source, Trained):
            return self.population(source.population) / str(source.index)
        return self.unlearned(source)

    def model(self, source: Source) -> nn.Module:
        """A private copy of a model on the run's device, in eval mode."""
        folder = self.folder(source)
        place = source.population.place if isinstance(source, Trained) else source.place
        inserts = tuple(cls for spec in _methods(source) for cls in method_of(spec).inserts)
        with self.on_hardware():
            model = load_model(folder, lambda: place.open().build(0), inserts)
        return model.to(self.settings.device)

    def cost(self, source: Source) -> dict[str, Any]:
        """What making a model took: seconds and rows passed forward (of a population, the share of one model), and peak memory."""
        if isinstance(source, Trained):
            meta: dict[str, Any] = json.loads((self.population(source.population) / "meta.json").read_text(encoding="utf-8"))
            return {**meta, "seconds": meta["seconds"] / meta["models"], "samples": meta["samples"] // meta["models"]}
        loaded: dict[str, Any] = json.loads((self.unlearned(source) / "meta.json").read_text(encoding="utf-8"))
        return loaded

    # -------------------------------------------------------------------------------------------------------------- views

    def method_view(self, place: Place, method: PluginSpec, unseen: Place | None = None) -> MethodView:
        """What a method sees at a place; where the model never saw the forget set of another place, the method does not either."""

        def tell(label: str, done: int, total: int) -> None:
            listener = progress.get()
            if listener is not None:
                listener(label, done, total)

        gone = frozenset[str]() if unseen is None else unseen.open().forget_rows()

        def subsets(left_out: Sequence[frozenset[str]]) -> list[nn.Module]:
            return self._subset_models(place, [rows | gone for rows in left_out])

        def shared(key: Mapping[str, Any], compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
            return self._shared(shared_key(place, method, {"key": dict(key), "unseen": sorted(gone)}, self.settings), compute)

        fields = place.open().method_view()
        if gone:
            fields["retain"] = Split(train=_without(fields["retain"].train, gone), eval=_without(fields["retain"].eval, gone))
        return MethodView(**fields, subset_models=subsets, shared=shared, progress=tell)

    def _shared(self, key: str, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        def write(folder: Path) -> None:
            with own_randomness(0):
                found = {name: tensor.detach().cpu().contiguous() for name, tensor in compute().items()}
            save_file(found, folder / "shared.safetensors")

        return load_file(self.store.build("shared", key, write) / "shared.safetensors")

    def attack_view(self, place: Place, original: Source, needs: frozenset[str], oracles: Sequence[Source]) -> AttackView:
        """What an attack with these needs sees at a place."""
        scenario = place.open()
        common = scenario.method_view()
        parts: dict[str, Any] = {name: part for name, part in scenario.attack_parts().items() if name in needs}
        if "original" in needs:
            parts["original"] = self.model(original)
        if "references" in needs:
            # Models without the forget set are what the oracle pool is; the attacker could train them himself.
            parts["references"] = lambda n: [self.model(source) for source in oracles[:n]]
        missing = needs - set(parts)
        if missing:
            raise ValueError(f"{place.scenario.name} has no {', '.join(sorted(missing))} for an attack")
        fields = ("modality", "task", "kind", "classes", "tokenizer", "recipe", "loss", "encode")
        return AttackView(**{name: common[name] for name in fields}, parts=parts)

    def _reference_view(self, source: Unlearned, view: MethodView) -> ReferenceView:
        def loader(anchor: Source) -> Any:
            return lambda: self.model(anchor)

        return ReferenceView(
            **vars(view),
            originals=tuple(loader(anchor) for anchor in source.originals),
            oracles=tuple(loader(anchor) for anchor in source.oracles),
        )

    def _subset_models(self, place: Place, left_out: Sequence[frozenset[str]]) -> list[nn.Module]:
        runs = [(Plan(role="subset", rows=rows), seed) for seed, rows in enumerate(left_out)]
        with self.on_hardware():
            size = place.open().trained_together
        models: list[nn.Module] = []
        for start in range(0, len(runs), size):
            population = Population(place=place, runs=tuple(runs[start : start + size]))
            models += [self.model(Trained(population=population, index=index)) for index in range(len(population.runs))]
        return models

    # ----------------------------------------------------------------------------------------------------------- evidence

    def evidence(self, source: Source, place: Place, needs: frozenset[Need]) -> Evidence:
        """The evidence of a model at a place, without interventions, kept in the store."""
        plain = frozenset(need for need in needs if need.intervention is None)

        def write(folder: Path) -> None:
            model = self.model(source)
            with self.on_hardware(), own_randomness(source.seed):
                place.open().evidence(model, plain).save(folder)

        return _loaded(self.store.build("evidence", evidence_key(source, place, plain, self.settings), write))

    def member(self, source: Source, role: str, place: Place, needs: frozenset[Need]) -> Member:
        """One model of a bank, with its evidence at a place."""
        return Member(role=role, seed=source.seed, evidence=self.evidence(source, place, needs), load=lambda: self.model(source))

    # -------------------------------------------------------------------------------------------------------------- around

    @contextmanager
    def on_hardware(self) -> Iterator[None]:
        """A context in which models are built and trained on this run's device and dtype."""
        settings = Hardware(device=self.settings.device, dtype="bf16" if self.settings.dtype == "bf16" else "fp32")
        token = hardware.set(settings)
        try:
            yield
        finally:
            hardware.reset(token)

    @contextmanager
    def _measured(self) -> Iterator[dict[str, Any]]:
        cost: dict[str, Any] = {}
        start = time.perf_counter()
        if self.settings.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        counted: list[int] = []
        token = passes.set(counted)
        try:
            with self.on_hardware():
                yield cost
        finally:
            passes.reset(token)
        cost["samples"] = sum(counted)
        cost["seconds"] = time.perf_counter() - start
        cost["peak_memory"] = peak_memory(self.settings.device)


@contextmanager
def own_randomness(seed: int) -> Iterator[None]:
    """A context in which the global random numbers are drawn from this seed; afterwards they go on as if nothing had been drawn.

    A plugin that draws from them gives the same result in whatever order and process things are built.
    """
    before = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])


@lru_cache(maxsize=256)
def _loaded(folder: Path) -> Evidence:
    """The evidence in a folder: every trial of a place reads that of its anchors, and a folder's content never changes."""
    return Evidence.load(folder)


def peak_memory(device: str) -> int:
    """Bytes: the most the device held since the last reset, or, on a CPU, the most this process held since it began."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes if sys.platform == "darwin" else 1024 * kilobytes  # a Mac counts bytes


def _methods(source: Source) -> list[Any]:
    """The methods whose inserted modules a model may hold."""
    if isinstance(source, Trained):
        return [source.population.native] if source.population.native else []
    return [source.method, *_methods(source.before)]


def _without(data: Data, gone: frozenset[str]) -> Data:
    """The rows of which neither the id nor the cluster is among these."""
    return data.take([i for i, (row, cluster) in enumerate(zip(data.ids, data.clusters, strict=True)) if not {row, cluster} & gone])


def _check_finite(model: nn.Module, label: str) -> None:
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise FloatingPointError(f"{label} left {name} with NaN or infinite values")


def _write_meta(folder: Path, meta: dict[str, Any]) -> None:
    (folder / "meta.json").write_text(json.dumps(meta, sort_keys=True), encoding="utf-8")
