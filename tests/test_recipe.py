"""Recipes: the schedules against torch's and transformers', and what a recipe refuses."""

import json
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_linear_schedule_with_warmup,
)

from unlearnbench.recipe import Recipe, rate


@pytest.mark.parametrize(("schedule", "warmup"), [(s, w) for s in ("constant", "linear", "cosine") for w in (0, 0.25)])
def test_schedules_equal_transformers(schedule: Any, warmup: float) -> None:
    recipe = Recipe(epochs=1, batch_size=1, lr=0.3, schedule=schedule, warmup=warmup)
    stepper = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3)
    rising = int(np.ceil(warmup * 22))
    reference = {
        "constant": lambda: get_constant_schedule_with_warmup(stepper, rising),
        "linear": lambda: get_linear_schedule_with_warmup(stepper, rising, 22),
        "cosine": lambda: get_cosine_schedule_with_warmup(stepper, rising, 22),
    }[schedule]()
    for step in range(23):
        assert rate(recipe, step, 22) == pytest.approx(stepper.param_groups[0]["lr"], abs=1e-12)
        stepper.step()
        reference.step()


def test_onecycle_equals_torch() -> None:
    recipe = Recipe(epochs=1, batch_size=1, lr=0.3, schedule="onecycle", warmup=0.3)
    stepper = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3)
    reference = torch.optim.lr_scheduler.OneCycleLR(stepper, max_lr=0.3, total_steps=23, pct_start=0.3, cycle_momentum=False)
    for step in range(23):
        assert rate(recipe, step, 23) == pytest.approx(stepper.param_groups[0]["lr"], rel=1e-9)
        stepper.step()
        if step < 22:
            reference.step()
    assert rate(recipe, 0, 1) == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"epochs": 0}, "epochs is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"accumulate": -1}, "accumulate is -1"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1"),
        ({"optimizer": "lion"}, "optimizer is 'lion'; allowed: adamw, adam, sgd"),
        ({"schedule": "step"}, "allowed: constant, linear, cosine, onecycle"),
        ({"schedule": "onecycle"}, "onecycle needs it above 0"),
        ({"warmup": 1.5}, "warmup is 1.5"),
        ({"momentum": 0.9}, "only sgd"),
        ({"clip": 0.0}, "clip is 0.0"),
        ({"precision": "fp16"}, "allowed: fp32, bf16"),
    ],
)
def test_a_wrong_recipe_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe(**{"epochs": 1, "batch_size": 8, "lr": 0.1} | wrong)


def test_a_recipe_survives_json() -> None:
    recipe = Recipe(epochs=1, batch_size=8, lr=1e-3, clip=1.0)
    assert Recipe(**json.loads(json.dumps(asdict(recipe)))) == recipe
