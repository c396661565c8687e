"""The denoising scenario of the digits: its judge, its rows, and that anchors can be told apart."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from unlearnbench.api import Need
from unlearnbench.scenarios.digits_data import draw_pool
from unlearnbench.scenarios.digits_diffusion import BOUNDS, DigitsDiffusion, judge


def test_the_judge_knows_unseen_digits() -> None:
    pool = draw_pool(0)
    unseen = pool.data(pool.unseen)
    with torch.no_grad():
        right = (judge(0)(unseen.images).argmax(1) == unseen.labels).float().mean().item()
    assert right > 0.97


def test_bounds_are_those_of_the_images() -> None:
    images = draw_pool(0).images
    assert (images.min().item(), images.max().item()) == pytest.approx(BOUNDS)


def test_rows_are_those_of_the_digits() -> None:
    scenario = DigitsDiffusion(request="class4")
    assert set(scenario.split("forget").labels.tolist()) == {4}
    assert set(scenario.split("retain").labels.tolist()) == set(range(10)) - {4}
    assert scenario.validation_request == "class5"
    assert DigitsDiffusion(request="class9").validation_request == "class0"


def test_settings_of_sampling_are_no_settings_of_training() -> None:
    scenario, other = DigitsDiffusion(request="class4"), DigitsDiffusion(request="class4", sampling_steps=5, guidance=0.0)
    plan = scenario.plan("oracle")
    assert scenario.training_settings(plan) == other.training_settings(plan)
    assert scenario.training_settings(plan) != DigitsDiffusion(request="class4", timesteps=100).training_settings(plan)


@pytest.mark.slow
def test_the_original_draws_all_digits_and_the_oracle_all_but_the_one_it_never_saw() -> None:
    scenario = DigitsDiffusion(request="class4", width=128, depth=2, epochs=60, lr=2e-3)
    needs = {name: Need(what="logits", split=name) for name in ("forget", "retain")}
    right = {}
    for role in ("original", "oracle"):
        evidence = scenario.evidence(scenario.train([scenario.plan(role)], [0])[0], frozenset(needs.values()))
        right[role] = {name: np.mean(evidence.array(need).argmax(1) == evidence.labels[name]) for name, need in needs.items()}
    assert right["original"]["forget"] > 0.8, right
    assert right["oracle"]["forget"] < 0.35, right
    assert min(each["retain"] for each in right.values()) > 0.8, right
