"""Relearning: the declared points, one uninterrupted training, the same for every model."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unlearnbench.api import AttackView, Batch, MethodView, Stage, Undeclared, UserError
from unlearnbench.attacks.relearning import Relearning
from unlearnbench.fields import FieldError, construct
from unlearnbench.finetuning import endless
from unlearnbench.layers import model_hash, strip
from unlearnbench.methods.refusals import KeywordFilter
from unlearnbench.testing import attack_view, in_training, tiny_language_model, tiny_language_view, tiny_vision_model, tiny_vision_view

LANGUAGE, VISION = tiny_language_view(), tiny_vision_view()
worlds = pytest.mark.parametrize(
    ("view", "build"), [(LANGUAGE, tiny_language_model), (VISION, tiny_vision_model)], ids=["language", "vision"]
)


def view_of(view: MethodView) -> AttackView:
    return attack_view(view, {"forget_part": view.forget})


def attacked(attack: Relearning, model: nn.Module, view: MethodView, seed: int = 0) -> list[tuple[int, bool, str]]:
    """Step, whether it is the last, and the weights' hash of each stage, read as the core reads it: before going on."""
    return [(stage.step, stage.final, model_hash(stage.model)) for stage in attack.stages(model, view_of(view), seed=seed)]


@worlds
def test_the_declared_steps_and_no_others(view: MethodView, build: Callable[[], nn.Module]) -> None:
    stages = attacked(Relearning(steps=(0, 1, 5)), build(), view)
    assert [(step, final) for step, final, _ in stages] == [(0, False), (1, False), (5, True)]
    assert stages[0][2] == model_hash(build())
    assert len({weights for _, _, weights in stages}) == 3
    assert attacked(Relearning(steps=(0,)), build(), view) == [(0, True, model_hash(build()))]


@worlds
def test_the_last_stage_is_one_uninterrupted_training(view: MethodView, build: Callable[[], nn.Module]) -> None:
    settings = in_training(view, optimizer="adamw", momentum=0.0, weight_decay=0.1, schedule="cosine", warmup=0.5, accumulate=7)
    attack = Relearning(steps=(0, 2, 3, 7), lr=0.02, batch_size=3)
    stages = attacked(attack, build(), settings)
    assert attacked(replace(attack, steps=(0, 7)), build(), settings)[-1] == stages[-1]
    # The bare loop: a fresh AdamW at a constant rate, one batch a step, weights in eval mode.
    model, rows = build(), view.forget.train
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02, weight_decay=0.1)
    for _, index in zip(range(7), endless(len(rows), 3, seed=0), strict=False):
        optimizer.zero_grad()
        view.loss(model, rows.batch(index)).mean().backward()
        optimizer.step()
    last = build()
    for _ in attack.stages(last, view_of(settings), seed=0):
        pass
    for one, other in zip(model.parameters(), last.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


@worlds
def test_what_happens_between_stages_changes_nothing(view: MethodView, build: Callable[[], nn.Module]) -> None:
    attack, model = Relearning(steps=(0, 2, 4), lr=0.02), build().train()
    hashes = []
    for stage in attack.stages(model, view_of(view), seed=0):
        assert stage.model is model
        assert not any(module.training for module in model.modules())
        hashes.append(model_hash(model))
        torch.manual_seed(len(hashes))
        with torch.no_grad():
            view.loss(model, view.retain.train.batch(range(4)))
    assert hashes == [weights for _, _, weights in attacked(attack, build(), view)]


@worlds
def test_zero_rate_is_a_constant_curve_to_the_bit(view: MethodView, build: Callable[[], nn.Module]) -> None:
    stages = attacked(Relearning(steps=(0, 2, 4), lr=0.0), build(), in_training(view, weight_decay=0.5))
    assert {weights for _, _, weights in stages} == {model_hash(build())}


@worlds
def test_the_seed_decides_and_the_rate_is_the_originals_by_default(view: MethodView, build: Callable[[], nn.Module]) -> None:
    attack = Relearning(steps=(0, 3), batch_size=3)
    assert attacked(attack, build(), view) == attacked(attack, build(), view)
    assert attacked(attack, build(), view)[-1] != attacked(attack, build(), view, seed=1)[-1]
    assert attacked(attack, build(), view) == attacked(replace(attack, lr=view.recipe.lr), build(), view)


def test_every_model_sees_the_same_rows_in_the_same_order() -> None:
    def order(model: nn.Module) -> list[list[str]]:
        seen: list[list[str]] = []

        def loss(model: nn.Module, batch: Batch) -> Tensor:
            seen.append(batch["prompts"])
            return LANGUAGE.loss(model, batch)

        attacked(Relearning(steps=(0, 2, 6), batch_size=3), model, replace(LANGUAGE, loss=loss))
        return seen

    first = order(tiny_language_model(0))
    assert len(first) == 6
    assert order(tiny_language_model(1)) == first
    assert order(KeywordFilter().unlearn(tiny_language_model(0), LANGUAGE, seed=0)) == first


def test_batch_norm_moves_only_when_asked() -> None:
    def statistics(attack: Relearning) -> list[bool]:
        model = tiny_vision_model()
        attacked(attack, model, VISION)
        before = tiny_vision_model().state_dict()
        return [torch.equal(value, before[name]) for name, value in model.state_dict().items() if "running" in name]

    assert statistics(Relearning(steps=(0, 4), lr=0.1)) == [True, True]
    assert statistics(Relearning(steps=(0, 4), lr=0.1, batch_norm="train")) == [False, False]


def test_dropout_is_off() -> None:
    with_dropout, without = (nn.Sequential(tiny_vision_model(), nn.Dropout(rate)) for rate in (0.5, 0.0))
    assert attacked(Relearning(steps=(0, 3)), with_dropout, VISION) == attacked(Relearning(steps=(0, 3)), without, VISION)


def test_weights_that_a_method_froze_are_trained_too() -> None:
    model = tiny_vision_model().requires_grad_(False)
    assert attacked(Relearning(steps=(0, 3)), model, VISION) == attacked(Relearning(steps=(0, 3)), tiny_vision_model(), VISION)


def test_relearning_teaches_and_a_gate_withstands_it_until_stripped() -> None:
    def forget_loss(model: nn.Module) -> float:
        with torch.no_grad():
            return float(LANGUAGE.loss(model, LANGUAGE.forget.train.batch(range(4))).mean())

    gated = KeywordFilter().unlearn(tiny_language_model(), LANGUAGE, seed=0)
    attack = Relearning(steps=(0, 8), lr=0.02)
    deployed, stripped = copy.deepcopy(gated), strip(copy.deepcopy(gated))
    before, closed = forget_loss(stripped), forget_loss(deployed)
    assert len({weights for _, _, weights in attacked(attack, deployed, LANGUAGE)}) == 1
    assert forget_loss(deployed) == closed
    attacked(attack, stripped, LANGUAGE)
    assert forget_loss(stripped) < before - 1


def test_it_reads_its_part_of_the_forget_set_alone() -> None:
    assert Relearning.needs == {"forget_part"}
    with pytest.raises(Undeclared):
        list(Relearning().stages(tiny_vision_model(), attack_view(VISION, {"forget": VISION.forget}), seed=0))


def test_an_empty_part_is_an_error() -> None:
    empty = VISION.forget.train.take([])
    with pytest.raises(UserError, match="has no rows"):
        attacked(Relearning(), tiny_vision_model(), replace(VISION, forget=replace(VISION.forget, train=empty)))


@pytest.mark.parametrize("steps", [[], [4, 16], [0, 4, 4], [0, 8, 4], [0, 0.5]])
def test_steps_that_do_not_rise_from_zero_are_refused(steps: list[Any]) -> None:
    with pytest.raises(FieldError):
        construct(Relearning, "relearning", {"steps": steps})
    if all(isinstance(step, int) for step in steps):
        stages: Iterator[Stage] = Relearning(steps=tuple(steps)).stages(tiny_vision_model(), view_of(VISION), seed=0)
        with pytest.raises(UserError, match="steps are"):
            next(stages)


def test_settings_come_from_json() -> None:
    assert construct(Relearning, "relearning", {"steps": [0, 2], "lr": 0, "batch_norm": "train"}) == Relearning(
        steps=(0, 2), lr=0.0, batch_norm="train"
    )
    for wrong in ({"lr": -1}, {"batch_size": 0}, {"batch_norm": "off"}):
        with pytest.raises(FieldError):
            construct(Relearning, "relearning", wrong)
