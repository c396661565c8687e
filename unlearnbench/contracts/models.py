"""Contract tests of plugins that make models: methods, and attacks that change a model or its inputs.

Knows how a result is copied, saved, reloaded and stripped, and that a seed decides it; knows no method.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unlearnbench.api import Attack, AttackView, Data, Method, MethodView, Plan, Reference, ReferenceView, Scenario, Split, Threat
from unlearnbench.contracts.checks import Report, Violation, disturb, require, trained
from unlearnbench.deployed import load_model, save_model
from unlearnbench.layers import Inserted, blocks, evaluating, insert, inserted, model_hash, strip
from unlearnbench.nets.prompts import add_prompts
from unlearnbench.nets.vit import VisionTransformer

SEED = 0
ORACLE_SEED = 1000
VIEW_FIELDS = ("modality", "task", "kind", "classes", "tokenizer", "recipe", "loss", "encode")


def check_method(report: Report, method: Method, site: str, scenario: Scenario) -> None:
    """All contract tests of a method on one scenario it serves, and on its sequence of requests if it has one."""
    original = _original(method, scenario)
    result: list[nn.Module] = []

    def unlearns() -> None:
        view = method_view(scenario)
        before = _fingerprint(view)
        result.append(_unlearn(method, original, view, scenario, number=0))
        require(isinstance(result[0], nn.Module), f"unlearn() returned {type(result[0]).__name__}, not an nn.Module")
        _finite(result[0])
        require(_fingerprint(view) == before, "the view's data were changed")

    def repeats() -> None:
        again = model_hash(_unlearn(method, original, method_view(scenario), scenario, number=1))
        require(again == model_hash(result[0]), "the same seed gave another model: draw from a torch.Generator or fit(seed=...)")

    def clones() -> None:
        expected, clone = outputs(result[0], scenario), copy.deepcopy(result[0])
        require(torch.equal(outputs(clone, scenario), expected), "a deepcopy gives other outputs")
        weights = copy.deepcopy(result[0].state_dict())
        with torch.no_grad():
            for parameter in result[0].parameters():
                parameter.zero_()
        alone = torch.equal(outputs(clone, scenario), expected)
        result[0].load_state_dict(weights)
        require(alone, "a deepcopy still uses the model it was copied from")

    def reloads() -> None:
        again = _reloaded(result[0], method, scenario)
        require(model_hash(again) == model_hash(result[0]), "a saved and loaded model has other weights")
        same = torch.equal(outputs(again, scenario), outputs(result[0], scenario))
        require(same, "a saved and loaded model gives other outputs: its state must live in parameters, buffers and inserted modules")

    def strips() -> None:
        bare = strip(copy.deepcopy(result[0]))
        require(not inserted(bare), "strip() leaves inserted modules")
        if not method.edits_weights:
            expected = model_hash(strip(copy.deepcopy(original)))
            require(model_hash(bare) == expected, "edits_weights is False, yet the stripped model is not the stripped original")
        elif not inserted(result[0]) and not hasattr(result[0], "peft_config"):
            require(model_hash(bare) == model_hash(result[0]), "strip() changes a model without inserted modules")

    if method.native:
        report.run(f"{site}: train() depends on plan and seed alone", lambda: _trains(method, scenario))
    if not report.run(f"{site}: gives a finite model and leaves the data alone", unlearns):
        return
    report.run(f"{site}: the seed decides the result", repeats)
    report.run(f"{site}: a clone is the same and stands alone", clones)
    report.run(f"{site}: saved and loaded it is the same to the bit", reloads)
    report.run(f"{site}: stripping undoes what was inserted", strips)
    sequence = [request for request in scenario.requests() if request.steps > 1]
    if sequence and method.supports(scenario.with_request(sequence[0].name)) is None:
        report.run(f"{site}: serves one request after another", lambda: _serves(method, scenario.with_request(sequence[0].name)))


def method_view(scenario: Scenario) -> MethodView:
    """What a method sees, with subset models trained on the spot."""

    def subsets(left_out: Sequence[frozenset[str]]) -> list[nn.Module]:
        return [copy.deepcopy(trained(scenario, Plan(role="subset", rows=rows), seed)) for seed, rows in enumerate(left_out)]

    return MethodView(**scenario.method_view(), subset_models=subsets)


@torch.no_grad()
def outputs(model: nn.Module, scenario: Scenario) -> Tensor:
    """The loss of every row of forget and retain [n], as deployed; noise in it is the same each time."""
    view = scenario.method_view()
    rows = [view["forget"].eval, view["retain"].eval]
    with evaluating(model), torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return torch.cat([view["loss"](model, data.batch(range(len(data)))) for data in rows])


def _original(method: Method, scenario: Scenario) -> nn.Module:
    plan = scenario.plan("original")
    if method.native:
        return method.train(scenario.train_view(plan), seed=SEED).eval()
    return trained(scenario, plan, SEED)


def _unlearn(method: Method, model: nn.Module, view: MethodView, scenario: Scenario, *, number: int) -> nn.Module:
    private = copy.deepcopy(model)
    with torch.random.fork_rng(devices=[]):
        disturb(number)
        if not isinstance(method, Reference):
            return method.unlearn(private, view, seed=SEED)
        originals = [trained(scenario, scenario.plan("original"), SEED + index) for index in range(2)]
        oracles = [trained(scenario, scenario.plan("oracle"), ORACLE_SEED + index) for index in range(2)]
        auditor = ReferenceView(
            **vars(view),
            originals=tuple(partial(copy.deepcopy, model) for model in originals),
            oracles=tuple(partial(copy.deepcopy, model) for model in oracles),
        )
        return method.refer(private, auditor, seed=SEED)


def _trains(method: Method, scenario: Scenario) -> None:
    hashes = []
    for number in range(2):
        with torch.random.fork_rng(devices=[]):
            disturb(number)
            model = method.train(scenario.train_view(scenario.plan("oracle")), seed=SEED)
        _finite(model)
        hashes.append(model_hash(model))
    require(hashes[0] == hashes[1], "the same seed gave another model")
    require(model_hash(_reloaded(model, method, scenario)) == hashes[0], "a saved and loaded model has other weights")


def _serves(method: Method, scenario: Scenario) -> None:
    model = _original(method, scenario)
    for step in range(scenario.asked().steps):
        here = scenario.at(step)
        model = _reloaded(_unlearn(method, model, method_view(here), here, number=step), method, here)
        _finite(model)


def _reloaded(model: nn.Module, method: Method, scenario: Scenario) -> nn.Module:
    with tempfile.TemporaryDirectory() as folder:
        save_model(model, Path(folder))
        return load_model(Path(folder), lambda: scenario.build(SEED + 1), method.inserts)


def _finite(model: nn.Module) -> None:
    for name, tensor in model.state_dict().items():
        require(not tensor.is_floating_point() or bool(torch.isfinite(tensor).all()), f"{name} has NaN or infinite values")


def _fingerprint(view: MethodView) -> list[Any]:
    rows: list[Data] = [view.forget.train, view.forget.eval, view.retain.train, view.retain.eval, view.validation]
    return [[data.ids, data.clusters, _plain(data.batch(range(len(data))))] for data in rows]


def _plain(batch: dict[str, Any]) -> dict[str, Any]:
    return {name: value.tolist() if isinstance(value, Tensor) else value for name, value in batch.items()}


# ----------------------------------------------------------------------------------------------------------------------- attacks


def check_attack(report: Report, attack: Attack, site: str, scenario: Scenario) -> None:
    """All contract tests of an attack on one scenario it serves."""
    deployed = copy.deepcopy(trained(scenario, scenario.plan("original"), SEED))
    if attack.level is Threat.T5:
        path, block = blocks(deployed)[0]
        insert(deployed, path, Inserted(block))
    if isinstance(deployed, VisionTransformer):  # as prompt removal deploys it, for attacks on prompts
        add_prompts(deployed, range(1, deployed.head.out_features), generator=torch.Generator().manual_seed(SEED))
    before = model_hash(deployed)
    found: list[list[tuple[int, bool, str]]] = []

    def attacks() -> None:
        private = copy.deepcopy(deployed)
        view = _attack_view(attack, scenario)
        held = _parts(view)
        found.append(_stages(attack, private, view, scenario, number=0))
        require(_parts(view) == held, "the view's data were changed")
        require(model_hash(deployed) == before, "the model that the private copy was made from was changed")

    def budget() -> None:
        steps = [step for step, _, _ in found[0]]
        require(bool(steps) and steps[0] == 0, f"the stages' steps are {steps}; the first must be 0, the model unchanged")
        require(all(a < b for a, b in pairwise(steps)), f"the stages' steps are {steps}; they must rise")
        finals = [final for _, final, _ in found[0]]
        require(finals == [False] * (len(finals) - 1) + [True], f"final is {finals}; it must be True at the last stage and nowhere else")

    def starts_unchanged() -> None:
        stripped = attack.level is Threat.T5 and attack.strips
        expected = model_hash(strip(copy.deepcopy(deployed))) if stripped else before
        what = "the stripped model" if stripped else "the model as it was given"
        require(found[0][0][2] == expected, f"the first stage is not {what}")

    def repeats() -> None:
        again = _stages(attack, copy.deepcopy(deployed), _attack_view(attack, scenario), scenario, number=1)
        require(again == found[0], "the same seed gave other stages: draw from torch.Generator() or fit(seed=...)")

    if not report.run(f"{site}: runs on what it declares, and changes its own copy alone", attacks):
        return
    report.run(f"{site}: steps rise from 0 and the last stage is final", budget)
    report.run(f"{site}: the first stage is no attack yet", starts_unchanged)
    report.run(f"{site}: the seed decides the stages", repeats)


def _stages(attack: Attack, model: nn.Module, view: AttackView, scenario: Scenario, *, number: int) -> list[tuple[int, bool, str]]:
    found = []
    with torch.random.fork_rng(devices=[]):
        disturb(number)
        for stage in attack.stages(model, view, seed=SEED):
            _finite(stage.model)
            if stage.rewrite is not None and scenario.modality == "language":
                for example in scenario.split("forget").examples:  # type: ignore[attr-defined]
                    new = stage.rewrite(example)
                    require(new.id == example.id, f"rewrite() turns row {example.id!r} into row {new.id!r}; identity must be kept")
            found.append((stage.step, stage.final, model_hash(stage.model)))
    return found


def _attack_view(attack: Attack, scenario: Scenario) -> AttackView:
    common = scenario.method_view()
    every: dict[str, Any] = {
        **scenario.attack_parts(),
        "original": copy.deepcopy(trained(scenario, scenario.plan("original"), SEED)),
        "references": lambda n: [copy.deepcopy(trained(scenario, scenario.plan("oracle"), ORACLE_SEED + i)) for i in range(n)],
    }
    unknown = sorted(attack.needs - set(every))
    if unknown:
        raise Violation(f"needs names {unknown[0]!r}; allowed: {', '.join(sorted(every))}")
    return AttackView(**{name: common[name] for name in VIEW_FIELDS}, parts={name: every[name] for name in attack.needs})


def _parts(view: AttackView) -> list[Any]:
    found: list[Any] = []
    for name, part in sorted(view.parts.items()):
        if isinstance(part, Split):
            found += [(name, data.ids, _plain(data.batch(range(len(data))))) for data in (part.train, part.eval)]
        elif isinstance(part, Data):
            found.append((name, part.ids, _plain(part.batch(range(len(part))))))
    return found
