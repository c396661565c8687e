"""SCRUB: it is the student that moves, away on the forget rows and back on the retain rows, and the teacher never."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import kl_div
from trained_vision import VIEW, accuracy, knowing

from unlearnbench.layers import model_hash
from unlearnbench.methods import scrub
from unlearnbench.methods.scrub import SCRUB
from unlearnbench.recipe import Recipe
from unlearnbench.testing import in_training
from unlearnbench.training import make_optimizer

PLAIN = in_training(VIEW, momentum=0.0, weight_decay=0.0)
ONE_ASCENT: dict[str, Any] = {"epochs": 1, "max_epochs": 1, "kl_weight": 0.0, "loss_weight": 0.0, "batch_norm": "train", "lr": 0.05}
"""One step of ascent; the pass over the retain rows has no gradient."""


class Watched:
    """What SCRUB copies and which weights it gives an optimizer."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, on_the_teacher: bool = False) -> None:
        self.teachers: list[nn.Module] = []
        self.held: list[set[int]] = []

        def deepcopy(model: nn.Module) -> nn.Module:
            self.teachers.append(copy.deepcopy(model))
            return self.teachers[-1]

        def optimizer(parameters: list[nn.Parameter], recipe: Recipe) -> torch.optim.Optimizer:
            given = list(self.teachers[0].parameters()) if on_the_teacher else parameters
            self.held.append({id(parameter) for parameter in given})
            return make_optimizer(given, recipe)

        monkeypatch.setattr(scrub, "copy", SimpleNamespace(deepcopy=deepcopy))
        monkeypatch.setattr(scrub, "make_optimizer", optimizer)


def weights_moved(model: nn.Module) -> bool:
    before = dict(knowing().named_parameters())
    return any(not torch.equal(weight, before[name]) for name, weight in model.named_parameters())


def test_the_optimizer_holds_the_student_which_leaves_a_teacher_that_never_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    original, student = model_hash(knowing()), knowing()
    watched = Watched(monkeypatch)
    found = SCRUB(**ONE_ASCENT).unlearn(student, PLAIN, seed=0)
    assert found is student
    assert watched.held == [{id(parameter) for parameter in student.parameters()}]
    assert weights_moved(found)
    (teacher,) = watched.teachers
    assert model_hash(teacher) == original
    assert not any(module.training for module in teacher.modules())


def test_an_optimizer_on_the_teacher_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fault of a published copy: statistics drift, no weight of the student moves, and the check above must fail."""
    student = knowing()
    watched = Watched(monkeypatch, on_the_teacher=True)
    found = SCRUB(**ONE_ASCENT).unlearn(student, PLAIN, seed=0)
    assert watched.held != [{id(parameter) for parameter in student.parameters()}]
    assert not weights_moved(found)


def divergence(model: nn.Module, images: torch.Tensor) -> float:
    with torch.no_grad():
        return float(kl_div(model(images).log_softmax(1), knowing()(images).softmax(1), reduction="batchmean"))


def test_ascent_leaves_the_original_on_forget_rows_and_descent_returns_on_retain_rows() -> None:
    forget, retain = (rows.batch(range(len(rows)))["images"] for rows in (VIEW.forget.eval, VIEW.retain.eval))
    settings: dict[str, Any] = {"lr": 0.05, "decay_epochs": (), "batch_norm": "train", "batch_size": 10, "forget_batch_size": 5}
    up = SCRUB(**settings, epochs=2, max_epochs=2, kl_weight=0.0, loss_weight=0.0).unlearn(knowing(), PLAIN, seed=0)
    both = SCRUB(**settings, epochs=8, max_epochs=4).unlearn(knowing(), PLAIN, seed=0)
    down = SCRUB(**settings, epochs=2, max_epochs=0).unlearn(knowing(), PLAIN, seed=0)
    assert divergence(up, forget) > 0.1
    assert divergence(both, forget) > 5 * divergence(both, retain)
    assert divergence(down, forget) < 0.05
    assert accuracy(both, VIEW.forget.eval) < 0.5
    assert accuracy(both, VIEW.retain.eval) > 0.9


def test_one_optimizer_serves_all_passes_and_the_rate_falls(monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[tuple[int, float, int]] = []
    true = scrub.fit

    def noted(model: nn.Module, loss: Any, steps: Any, recipe: Recipe, **options: Any) -> Any:
        rows = sum(len(batch["images"]) for batch in steps(0))
        passes.append((rows, recipe.lr, id(options["optimizer"])))
        return true(model, loss, steps, recipe, **options)

    monkeypatch.setattr(scrub, "fit", noted)
    SCRUB(lr=0.1, epochs=4, max_epochs=2, decay=0.5, decay_epochs=(1, 3)).unlearn(knowing(), VIEW, seed=0)
    assert [(rows, lr) for rows, lr, _ in passes] == [(10, 0.1), (20, 0.1), (10, 0.05), (20, 0.05), (20, 0.05), (20, 0.025)]
    assert len({optimizer for _, _, optimizer in passes}) == 1
