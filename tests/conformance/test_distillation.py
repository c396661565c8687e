"""SCRUB and bad teaching by the authors' codes, reproduced from our losses and, where the rule is the same, our plugins.

What those codes do differently is put together here: bad teaching's divergence is a mean over classes too. Sizes are read from the files.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from vision_conformance import SGD, Vision, assert_agrees, in_stored_order, parameters_of

from unlearnbench.api import Batch, MethodView, Split
from unlearnbench.methods import scrub
from unlearnbench.methods.scrub import SCRUB
from unlearnbench.training import FitReport, Recipe, fit
from unlearnbench.unlearning_losses import softened_kl

TEMPERATURE = 4.0
BATCH = 64
MIXED = 32
"""Rows of each kind in bad teaching's batch."""


# --------------------------------------------------------------------------------------------------------------------- scrub


def scrub_view(vision: Vision) -> MethodView:
    """One retain batch."""
    view = vision.view()
    first = view.retain.train.take(range(BATCH))
    return replace(view, retain=Split(train=first, eval=first))


def distillation(vision: Vision, student: nn.Module, batch: Batch, temperature: float) -> Tensor:
    with torch.no_grad():
        reference = vision.net()(batch["images"])
    return temperature**2 * softened_kl(reference, student(batch["images"]), temperature).mean()


def test_distillation_losses(vision: Vision) -> None:
    numbers = {key: value for key, value in vision.numbers("scrub").items() if key.startswith("distill_kl_T")}
    assert numbers
    (batch,) = vision.batches("forget", len(vision.labels("forget")))
    for key, value in numbers.items():
        ours = distillation(vision, vision.net("retrained"), batch, float(key.removeprefix("distill_kl_T")))
        assert ours.item() == pytest.approx(value, rel=2e-5)


def test_scrub_one_step_of_ascent(vision: Vision) -> None:
    net, batches = vision.net(), vision.batches("forget", len(vision.labels("forget")))
    recipe = Recipe(epochs=1, batch_size=len(batches[0]), lr=0.02, batch_norm="train", **SGD)
    report = fit(
        net, lambda model, batch: -distillation(vision, model, batch, TEMPERATURE), lambda _: batches, recipe, seed=0, total_steps=1
    )
    assert [report.final_loss] == pytest.approx(vision.numbers("scrub")["losses_max1"], rel=2e-5)
    assert_agrees(net, parameters_of(vision.entry("scrub"), "theta_max1"), atol=1e-5)


@pytest.mark.parametrize(("key", "max_epochs"), [("min1", 0), ("max1_min1", 1)])
def test_scrub_steps_by_the_plugin(vision: Vision, monkeypatch: pytest.MonkeyPatch, key: str, max_epochs: int) -> None:
    in_stored_order(monkeypatch)
    losses: list[float] = []

    def noted(*arguments: Any, **options: Any) -> FitReport:
        report = fit(*arguments, **options)
        losses.append(report.final_loss)
        return report

    monkeypatch.setattr(scrub, "fit", noted)
    method = SCRUB(
        lr=0.02,
        decay_epochs=(),
        epochs=1,
        max_epochs=max_epochs,
        batch_size=BATCH,
        forget_batch_size=len(vision.labels("forget")),
        temperature=TEMPERATURE,
        kl_weight=0.1,
        loss_weight=0.99,
        batch_norm="train",
    )
    net = method.unlearn(vision.net(), scrub_view(vision), seed=0)
    assert losses == pytest.approx(vision.numbers("scrub")[f"losses_{key}"], rel=2e-5)
    assert_agrees(net, parameters_of(vision.entry("scrub"), f"theta_{key}"), atol=1e-5)


# --------------------------------------------------------------------------------------------------------------- bad teacher


def mixed_batch(vision: Vision) -> Batch:
    parts = [vision.rows(split).batch(range(MIXED))["images"] for split in ("forget", "retain")]
    return {"images": torch.cat(parts), "forgotten": torch.arange(2 * MIXED) < MIXED}


def published_loss(vision: Vision, student: nn.Module, batch: Batch, temperature: float) -> Tensor:
    """The mean over rows and classes."""
    images = batch["images"]
    with torch.no_grad():
        taught = torch.where(batch["forgotten"][:, None], vision.net("random")(images), vision.net()(images))
    return softened_kl(taught, student(images), temperature).mean() / vision.classes


def test_bad_teaching_losses(vision: Vision) -> None:
    numbers = {key: value for key, value in vision.numbers("bad_teacher").items() if key.startswith("loss_T")}
    assert numbers
    for key, value in numbers.items():
        ours = published_loss(vision, vision.net("retrained"), mixed_batch(vision), float(key.removeprefix("loss_T")))
        assert ours.item() == pytest.approx(value, rel=2e-5)


def test_bad_teaching_steps(vision: Vision) -> None:
    batch, losses = mixed_batch(vision), []

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        value = published_loss(vision, model, batch, 1.0)
        losses.append(value.item())
        return value

    net = vision.net()
    recipe = Recipe(epochs=1, batch_size=2 * MIXED, lr=1e-3, optimizer="adam", batch_norm="frozen")
    steps = [batch, {name: tensor.flip(0) for name, tensor in batch.items()}]
    fit(net, loss, lambda _: steps, recipe, seed=0, total_steps=2)
    assert sum(losses) / 2 == pytest.approx(vision.numbers("bad_teacher")["mean_loss_2steps"], rel=2e-5)
    assert_agrees(net, parameters_of(vision.entry("bad_teacher"), "theta_2steps"), atol=1e-5)
