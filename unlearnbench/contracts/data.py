"""Contract tests of scenarios: requests, splits, what each view holds, keys, training and the evidence pass.

Rows are compared by identity and by content. The file knows no data set.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from unlearnbench.api import Data, Need, Scenario, Split, UserError
from unlearnbench.contracts.checks import Report, disturb, require
from unlearnbench.layers import model_hash

BATCH_KEYS = {"language": {"input_ids", "attention_mask", "labels", "prompts"}, "vision": {"images", "labels"}}
VIEW_KEYS = {
    *("modality", "task", "kind", "classes", "tokenizer", "recipe", "loss", "encode"),
    *("forget", "retain", "validation"),
}


def check_scenario(report: Report, scenario: Scenario) -> None:
    """All contract tests of a scenario, on each of its requests and steps; two small trainings are run."""
    if not report.run("requests are named, described and served", lambda: _requests(scenario)):
        return
    for request in scenario.requests():
        asked = scenario.with_request(request.name)
        for name, test in REQUEST_TESTS.items():
            report.run(f"{request.name}: {name}", partial(test, asked))
        for step in range(request.steps):
            place = f"{request.name} step {step}" if request.steps > 1 else request.name
            for name, test in STEP_TESTS.items():
                report.run(f"{place}: {name}", partial(test, asked.at(step)))
    report.run("batches fit the loss", lambda: _batches(scenario))
    report.run("evidence keeps identities and leaves the model alone", lambda: _evidence(scenario))
    report.run("training depends on plan and seed alone", lambda: _training(scenario))


def _requests(scenario: Scenario) -> None:
    requests = scenario.requests()
    names = [request.name for request in requests]
    require(bool(requests) and len(set(names)) == len(names), f"requests are {names}; allowed: one or more, each name once")
    for request in requests:
        require(bool(request.description), f"request {request.name!r} has no description")
        require(request.steps >= 1, f"request {request.name!r} has {request.steps} steps; allowed: 1 or more")
        asked = scenario.with_request(request.name).asked()
        same = (asked.name, asked.kind, asked.steps) == (request.name, request.kind, request.steps)
        require(same and asked.signal <= request.signal, f"asked() of {request.name!r} is another request")
    require({"forget", "retain", "holdout"} <= set(scenario.splits), f"splits are {scenario.splits}; always: forget, retain, holdout")
    try:
        scenario.with_request("no such request").asked()
    except UserError:
        return
    require(False, "asked() of an unknown request raises no UserError")


def _validation(scenario: Scenario) -> None:
    name = scenario.validation_request
    require(name in {request.name for request in scenario.requests()}, f"validation_request is {name!r}, which is no request")
    if name != scenario.request:
        shared = scenario.forget_rows() & scenario.with_request(name).forget_rows()
        require(not shared, f"it shares {len(shared)} of its rows with the validation request {name!r}, such as {sorted(shared)[:1]}")


def _shadows(scenario: Scenario) -> None:
    own, holdout = set(scenario.split("forget").ids), set(scenario.split("holdout").ids)
    for index in range(2):
        shadow = scenario.shadow_request(index)
        rows = set(shadow.split("forget").ids)
        require(shadow.forget_rows() == scenario.shadow_request(index).forget_rows(), f"shadow {index} is another one each time")
        require(bool(rows) and not rows & own, f"shadow {index} forgets {len(rows & own)} rows of the request itself")
        require(not rows & holdout, f"shadow {index} forgets {len(rows & holdout)} rows held out, which no model knows")
        require(
            scenario.asked().kind == "class" or len(shadow.forget_rows()) == len(scenario.forget_rows()),
            f"shadow {index} forgets {len(shadow.forget_rows())} and not {len(scenario.forget_rows())}",
        )
        same = _settings(shadow, "original") == _settings(scenario, "original")
        require(same, f"the original of shadow {index} has other training settings, though it sees the same data")


def _plans(scenario: Scenario) -> None:
    for role in ("original", "oracle"):
        settings = scenario.training_settings(scenario.plan(role))
        require(json.loads(json.dumps(settings)) == settings, f"training_settings of the {role} do not survive JSON: {settings!r:.200}")
    require(_settings(scenario, "original") != _settings(scenario, "oracle"), "original and oracle have the same training settings")
    forget = scenario.method_view()["forget"].train
    asked, oracle, original = _contents(forget), _rows_of(scenario, "oracle"), _rows_of(scenario, "original")
    require(bool(asked) and asked <= original, f"{len(asked - original)} of {len(asked)} rows to forget are not in the original's training")
    require(not asked & oracle, f"the oracle is trained on {len(asked & oracle)} of {len(asked)} rows to forget")
    held_out = _contents(scenario.split("holdout"))
    require(not held_out & original, f"the original is trained on {len(held_out & original)} rows held out")


def _splits(scenario: Scenario) -> None:
    splits = {name: scenario.split(name) for name in scenario.splits}
    for name, data in splits.items():
        require(len(data) > 0, f"split {name!r} has no rows")
        require(len(set(data.ids)) == len(data.ids), f"split {name!r} has the same id twice")
        require(len(data.clusters) == len(data.ids), f"split {name!r} has {len(data.clusters)} clusters for {len(data.ids)} rows")
    contents = {name: _contents(data) for name, data in splits.items()}
    for first in ("forget", "retain", "holdout"):
        for second in ("forget", "retain", "holdout"):
            if first < second:
                ids = set(splits[first].ids) & set(splits[second].ids)
                require(not ids, f"{first} and {second} share {len(ids)} ids, such as {sorted(ids)[:1]}")
                require(not contents[first] & contents[second], f"{first} and {second} share rows of the same content")


def _method_view(scenario: Scenario) -> None:
    view = scenario.method_view()
    require(set(view) == VIEW_KEYS, f"method_view() differs in {sorted(set(view) ^ VIEW_KEYS)}")
    held_out = _contents(scenario.split("holdout"))
    forget = _contents(view["forget"].train) | _contents(view["forget"].eval)
    for name, data in _data(view):
        require(not _contents(data) & held_out, f"{name} holds rows of the holdout")
        require(name.startswith("forget") or not _contents(data) & forget, f"{name} holds rows to forget")


def _attacker(scenario: Scenario) -> None:
    parts, forget, judged = scenario.attack_parts(), scenario.split("forget"), scenario.judged()
    require(judged <= set(forget.ids), f"judged() names {len(judged - set(forget.ids))} rows that are not in the forget split")
    if not judged:  # nothing could be split off
        require(len(set(forget.clusters)) == 1, f"judged() is empty, though there are {len(set(forget.clusters))} clusters to split")
        return
    clusters = {cluster for row, cluster in zip(forget.ids, forget.clusters, strict=True) if row in judged}
    rows = _contents(forget.take([i for i, row in enumerate(forget.ids) if row in judged]))
    for name, data in _data({"forget_part": parts["forget_part"]}):
        require(len(data) > 0, f"{name} has no rows")
        require(not clusters & set(data.clusters), f"{name} shares clusters with the rows that the attack is judged on")
        require(not rows & _contents(data), f"{name} holds rows that the attack is judged on")


def _sequence(scenario: Scenario) -> None:
    before = frozenset[str]()
    for step in range(scenario.asked().steps):
        here = scenario.at(step)
        require(before < here.forget_rows(), f"step {step} forgets nothing more than the steps before")
        require(_settings(here, "original") == _settings(scenario, "original"), f"the original of step {step} is another one than at first")
        before = here.forget_rows()
    try:
        scenario.at(scenario.asked().steps)
    except UserError:
        return
    require(False, f"at({scenario.asked().steps}) raises no UserError, though there are {scenario.asked().steps} steps")


def _batches(scenario: Scenario) -> None:
    view, data = scenario.method_view(), scenario.split("forget")
    batch = data.batch([0, len(data) - 1])
    require(set(batch) >= BATCH_KEYS[scenario.modality], f"a batch holds {sorted(batch)}; asked: {sorted(BATCH_KEYS[scenario.modality])}")
    with torch.no_grad():
        loss = view["loss"](scenario.build(0).eval(), batch)
    require(loss.shape == (2,) and bool(torch.isfinite(loss).all()), f"the loss of two rows is {loss!r}; allowed: two finite numbers")


def _evidence(scenario: Scenario) -> None:
    model = scenario.build(0)
    model.train()
    before = model_hash(model)
    needs = frozenset(Need(what="tokens" if scenario.modality == "language" else "logits", split=split) for split in ("forget", "holdout"))
    evidence = scenario.evidence(model, needs)
    for split in ("forget", "holdout"):
        require(evidence.ids[split] == scenario.split(split).ids, f"the evidence of {split} has other ids than the split")
        require(evidence.clusters[split] == scenario.split(split).clusters, f"the evidence of {split} has other clusters than the split")
    require(model_hash(model) == before and model.training, "the pass changed the model's weights or mode")
    if not scenario.judged():
        return
    only = scenario.evidence(model, needs, only=scenario.judged())
    require(set(only.ids["forget"]) == scenario.judged(), "`only` gives other rows of forget than it names")
    require(only.ids["holdout"] == evidence.ids["holdout"], "`only` restricts another split than forget")


def _training(scenario: Scenario) -> None:
    plan, hashes = scenario.plan("oracle"), []
    require(model_hash(scenario.build(0)) == model_hash(scenario.build(0)), "build(0) gives another model each time")
    for number in range(2):
        with torch.random.fork_rng(devices=[]):
            disturb(number)
            models: list[nn.Module] = scenario.train([plan], [1])
        hashes += [model_hash(model) for model in models]
    require(len(hashes) == 2, f"one plan and seed gave {len(hashes) / 2:g} models")
    require(hashes[0] == hashes[1], "the same plan and seed gave another model")
    require(hashes[0] != model_hash(scenario.build(1)), "training changed nothing")


REQUEST_TESTS: Mapping[str, Callable[[Scenario], None]] = {
    "the validation request forgets other rows": _validation,
    "a shadow forgets other rows, as many": _shadows,
    "plans leave out what is forgotten": _plans,
    "each step forgets more than the one before": _sequence,
}
STEP_TESTS: Mapping[str, Callable[[Scenario], None]] = {
    "splits share no row": _splits,
    "a method's view holds no holdout row": _method_view,
    "an attack is judged on rows that its attacker does not hold": _attacker,
}


def _settings(scenario: Scenario, role: str) -> dict[str, Any]:
    return scenario.training_settings(scenario.plan(role))


def _rows_of(scenario: Scenario, role: str) -> set[str]:
    return _contents(scenario.train_view(scenario.plan(role)).data.train)


def _data(parts: dict[str, Any]) -> Iterator[tuple[str, Data]]:
    """The data among the fields of a view, each half of a split by itself."""
    for name, part in parts.items():
        if isinstance(part, Split):
            yield f"{name}.train", part.train
            if part.eval is not part.train:
                yield f"{name}.eval", part.eval
        elif isinstance(part, Data):
            yield name, part


def _contents(data: Data) -> set[str]:
    """A digest of each row as a model would get it, whatever its id."""
    digests = set()
    for index in range(len(data)):
        digest = hashlib.sha256()
        for name, value in sorted(data.batch([index]).items()):
            digest.update(name.encode())
            digest.update(value.numpy().tobytes() if isinstance(value, Tensor) else repr(value).encode())
        digests.add(digest.hexdigest())
    return digests
