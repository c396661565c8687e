"""For plugin authors: tiny views and models, tiny scenarios, and the contract tests that `unlearnbench check` runs.

A Llama of a few thousand weights on made-up authors, and a small net on random blobs. Everything is drawn from
seeds, needs no download and is built in milliseconds; models are float64, so that a test can compare values closely. A test of a
method reads::

    view, model = tiny_language_view(), tiny_language_model()
    unlearned = MyMethod(lr=1e-3).unlearn(model, view, seed=0)

and, since most of what a plugin can get wrong is the same for all of them::

    assert all(result.passed for result in check_plugin("methods", "path/to/my_method.py:MyMethod"))
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from unlearnbench import registry
from unlearnbench.api import (
    Applied,
    Attack,
    AttackView,
    InferenceAttack,
    Method,
    MethodView,
    Metric,
    Plugin,
    Scenario,
    Split,
    UserError,
)
from unlearnbench.contracts.checks import LAST_SITE, SITES, CheckResult, Report, require
from unlearnbench.contracts.data import check_scenario
from unlearnbench.contracts.models import check_attack, check_method
from unlearnbench.contracts.scoring import check_inference, check_metric
from unlearnbench.contracts.tiny_language import TinyLanguage, facts
from unlearnbench.contracts.tiny_vision import CLASSES, TinyNet, TinyVision
from unlearnbench.registry import Group
from unlearnbench.scenarios.images import ImageData, image_loss
from unlearnbench.scenarios.language import Encoder, TextData, text_loss
from unlearnbench.scenarios.templates import PromptTemplate
from unlearnbench.scenarios.text import Example
from unlearnbench.scenarios.tiny_lm import build_model, build_tokenizer
from unlearnbench.training import Recipe

__all__ = [
    "CLASSES",
    "FORGET_AUTHORS",
    "RETAIN_AUTHORS",
    "VALIDATION_AUTHORS",
    "CheckResult",
    "TinyLanguage",
    "TinyNet",
    "TinyVision",
    "attack_view",
    "check_plugin",
    "in_training",
    "tiny_language_model",
    "tiny_language_view",
    "tiny_tokenizer",
    "tiny_vision_model",
    "tiny_vision_view",
]

FORGET_AUTHORS = ("Ada Quill", "Bram Osk")
RETAIN_AUTHORS = ("Ada Osk", "Cleo Farn", "Bram Merrow", "Eda Farn")
"""Names share words with those to forget: only the whole name tells them apart."""
VALIDATION_AUTHORS = ("Finn Lorrel",)
_TEMPLATE = PromptTemplate()


def tiny_tokenizer() -> Any:
    """The tokenizer of the tiny language view: one piece per word."""
    rows = _examples(FORGET_AUTHORS + RETAIN_AUTHORS + VALIDATION_AUTHORS)
    return build_tokenizer(_TEMPLATE.prompt_text(row.question) + _TEMPLATE.answer_text(row.answer) for row in rows)


def tiny_language_model(seed: int = 0) -> nn.Module:
    """An untrained Llama in float64 and eval mode: two layers of width 16, tied embeddings."""
    size = len(tiny_tokenizer())
    model: nn.Module = build_model(size, seed=seed, hidden_size=16, n_layers=2, n_heads=2, mlp_size=32)
    return model.double().eval()


def tiny_vision_model(seed: int = 0) -> nn.Module:
    """An untrained `TinyNet` in float64 and eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return TinyNet().double().eval()


def tiny_language_view() -> MethodView:
    """Two authors to forget and four to keep, two questions each."""
    tokenizer = tiny_tokenizer()
    encoder = Encoder(tokenizer, _TEMPLATE)

    def split(authors: Sequence[str]) -> Split:
        rows = TextData(_examples(authors), encoder)
        return Split(train=rows, eval=rows)

    return MethodView(
        modality="language",
        task="generate",
        kind="instances",
        classes=None,
        tokenizer=tokenizer,
        recipe=Recipe(epochs=20, batch_size=4, lr=1e-2),
        loss=text_loss,
        encode=encoder.pairs,
        forget=split(FORGET_AUTHORS),
        retain=split(RETAIN_AUTHORS),
        validation=split(VALIDATION_AUTHORS).eval,
        subset_models=_no_subset_models,
    )


def tiny_vision_view(seed: int = 0) -> MethodView:
    """Gaussian blobs of `CLASSES` classes: the ten images of class 0 are to be forgotten, the twenty others kept."""
    generator = torch.Generator().manual_seed(seed)
    centres = 2 * torch.randn(CLASSES, 1, 4, 4, generator=generator, dtype=torch.float64)

    def split(name: str, labels: Tensor) -> Split:
        noise = torch.randn(len(labels), 1, 4, 4, generator=generator, dtype=torch.float64)
        rows = ImageData(centres[labels] + noise, labels, [f"{name}/{i}" for i in range(len(labels))])
        return Split(train=rows, eval=rows)

    return MethodView(
        modality="vision",
        task="classify",
        kind="class",
        classes=CLASSES,
        tokenizer=None,
        recipe=Recipe(epochs=20, batch_size=8, lr=0.05, optimizer="sgd", momentum=0.9),
        loss=image_loss,
        encode=None,
        forget=split("forget", torch.zeros(10, dtype=torch.long)),
        retain=split("retain", torch.arange(20) % (CLASSES - 1) + 1),
        validation=split("validation", torch.arange(CLASSES)).eval,
        subset_models=_no_subset_models,
    )


def attack_view(view: MethodView, parts: Mapping[str, Any]) -> AttackView:
    """The attacker's view of the same scenario.

    Args:
        view: the method's view.
        parts: what the attack's `needs` name.
    """
    shared = ("modality", "task", "kind", "classes", "tokenizer", "recipe", "loss", "encode")
    return AttackView(**{name: getattr(view, name) for name in shared}, parts=parts)


def in_training(view: MethodView, **changes: Any) -> MethodView:
    """The same view, of a scenario whose recipe has these settings."""
    return replace(view, recipe=replace(view.recipe, **changes))


# --------------------------------------------------------------------------------------------------------------------- contracts


def check_plugin(group: Group, name: str, fields: Mapping[str, Any] | None = None) -> list[CheckResult]:
    """Run the contract tests of a plugin.

    Args:
        group: "methods", "attacks", "metrics" or "scenarios".
        name: the registry's name, or `path/to/file.py:Class`.
        fields: settings other than the defaults, such as a smaller scenario.

    Returns:
        One result per test. A test that needs what an earlier one found broken is not run.

    Raises:
        UserError: there is no such plugin.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the benchmark's workers; tiny models are many times slower on several
    try:
        return _results(group, name, dict(fields or {}))
    finally:
        torch.set_num_threads(threads)


def _results(group: Group, name: str, settings: dict[str, Any]) -> list[CheckResult]:
    cls = registry.load(group, name)
    if issubclass(cls, Scenario):
        settings.setdefault("request", cls.requests()[0].name)
    report = Report()
    report.run("the module's docstring says what it is", lambda: _documented(cls))
    if not report.run("fields have valid defaults and survive JSON", lambda: _round_trip(group, name, settings)):
        return report.results
    plugin = registry.make(group, name, settings)
    if isinstance(plugin, Scenario):
        check_scenario(report, plugin)
    elif isinstance(plugin, Applied):
        served = [_check_applied(report, plugin, site, scenario) for site, scenario in SITES.items()]
        if not any(served):
            _check_applied(report, plugin, *LAST_SITE)
    return report.results


def _check_applied(report: Report, plugin: Applied, site: str, scenario: Scenario) -> bool:
    """Whether the plugin serves the scenario; one that cannot say so has failed, and is not tried elsewhere."""
    if not report.run(f"{site}: supports() gives None or a reason", lambda: _answers(plugin, scenario)):
        return True
    if plugin.supports(scenario) is not None:
        return False
    if isinstance(plugin, Method):
        check_method(report, plugin, site, scenario)
    elif isinstance(plugin, Attack):
        check_attack(report, plugin, site, scenario)
    elif isinstance(plugin, InferenceAttack):
        check_inference(report, plugin, site, scenario)
    elif isinstance(plugin, Metric):
        check_metric(report, plugin, site, scenario)
    return True


def _documented(cls: type[Plugin]) -> None:
    module = inspect.getmodule(cls)
    text = (module.__doc__ if module is not None else None) or ""
    require(bool(text.strip()), "the module has no docstring")
    require(bool((cls.__doc__ or "").strip()) and not (cls.__doc__ or "").startswith(f"{cls.__name__}("), "the class has no docstring")
    if issubclass(cls, Method | Attack | InferenceAttack):
        named = bool(cls.paper) or re.search(r"\bno paper\b|arxiv|\b(19|20)\d\d\b", text, re.IGNORECASE)
        require(bool(named), 'the module\'s docstring names no paper (title, authors, year, arXiv id) and does not say "No paper."')


def _round_trip(group: Group, name: str, settings: Mapping[str, Any]) -> None:
    plugin = registry.make(group, name, settings)
    plain = json.loads(json.dumps(plugin.hyperparameters(), allow_nan=False))
    again = registry.make(group, name, plain)
    require(again == plugin, f"{plain} gives another plugin: {again} instead of {plugin}")


def _answers(plugin: Applied, scenario: Scenario) -> None:
    reason = plugin.supports(scenario)
    require(reason is None or (isinstance(reason, str) and bool(reason.strip())), f"supports() gives {reason!r}; allowed: None or a reason")


# ------------------------------------------------------------------------------------------------------------------------- tiny


def _examples(authors: Sequence[str]) -> list[Example]:
    """Two facts of each author, drawn by the letters of the name."""
    return [row for author in authors for row in facts(author, sum(map(ord, author)))]


def _no_subset_models(left_out: Sequence[frozenset[str]]) -> list[nn.Module]:
    raise UserError("a tiny view trains no subset models: set subset_models to a function of your own")
