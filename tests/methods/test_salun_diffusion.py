"""SalUn for denoising models: the mask against gradients by hand, what may move, and where the forgotten label goes."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import nn

from unlearnbench.api import MethodView
from unlearnbench.contracts.tiny_diffusion import TinyDiffusion
from unlearnbench.contracts.tiny_vision import TinyVision
from unlearnbench.diffusion import noised
from unlearnbench.methods.salun_diffusion import SalUnDiffusion, antithetic_steps, clipped, guided_error, mistaken_error
from unlearnbench.training import batches

SCENARIO = TinyDiffusion(request="class0", epochs=150)
VIEW = MethodView(**SCENARIO.method_view(), subset_models=lambda left_out: [])


@cache
def trained() -> nn.Module:
    return SCENARIO.train([SCENARIO.plan("original")], [0])[0]


def original() -> nn.Module:
    return copy.deepcopy(trained())


def drawn(rows: int = 6) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    batch = VIEW.forget.train.batch(range(rows))
    t = torch.randint(30, (rows,), generator=generator)
    return {**batch, "t": t, "noise": torch.randn(batch["images"].shape, generator=generator)}


def apart(model: nn.Module, other: int) -> float:
    """Mean squared difference of the prediction under label 0 from the original's under another, at fixed noised images."""
    batch = drawn()
    images = noised(batch["images"], batch["noise"], model.alpha_bar[batch["t"]])
    with torch.no_grad():
        target = trained()(images, batch["t"], torch.full_like(batch["t"], other))
        return float((model(images, batch["t"], torch.zeros_like(batch["t"])) - target).square().mean())


def test_the_error_of_the_guided_prediction_is_summed_over_pixels_and_averaged_over_rows() -> None:
    model, batch = original(), drawn()
    share = model.alpha_bar[batch["t"]].reshape(-1, 1, 1, 1)
    images = share.sqrt() * batch["images"] + (1 - share).sqrt() * batch["noise"]
    with torch.no_grad():
        given, none = (model(images, batch["t"], torch.full_like(batch["t"], label)) for label in (0, 3))
        expected = ((3 * given - 2 * none - batch["noise"]) ** 2).sum() / 6
        torch.testing.assert_close(guided_error(model, batch, 2.0), expected)


def test_half_of_the_timesteps_mirror_the_others() -> None:
    t = antithetic_steps(7, 30, torch.Generator().manual_seed(1))
    assert t.shape == (7,)
    assert torch.equal(t[:3] + t[4:], torch.full((3,), 29))
    assert 0 <= t.min() <= t.max() <= 29


def test_each_batchs_gradient_is_clipped_over_all_weights_before_the_signed_sum() -> None:
    parts = [{"a": torch.tensor([3.0]), "b": torch.tensor([-4.0])}, {"a": torch.tensor([-0.3]), "b": torch.tensor([0.4])}]
    found = list(clipped(parts, 1.0))
    assert found[0]["a"].item() == pytest.approx(0.6)
    assert found[0]["b"].item() == pytest.approx(-0.8)
    assert found[1] == parts[1]


def test_the_mask_is_the_top_half_of_the_signed_sum_of_clipped_gradients() -> None:
    method = SalUnDiffusion(batch_size=7, mask_epochs=2)
    total: dict[str, torch.Tensor] = {}
    generator, model, rows = torch.Generator().manual_seed(3), original(), VIEW.forget.train
    for epoch in range(2):
        for index in batches(len(rows), 7, seed=3, epoch=epoch):
            batch = rows.batch(index)
            t = antithetic_steps(len(index), 30, generator)
            noise = torch.randn(batch["images"].shape, generator=generator)
            model.zero_grad()
            guided_error(model, {**batch, "t": t, "noise": noise}, 2.0).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for name, weight in model.named_parameters():
                total[name] = total.get(name, torch.zeros_like(weight)) + weight.grad
    masks = method.masks(original(), VIEW, seed=3)
    flat = torch.cat([total[name].abs().flatten() for name in masks])
    chosen = torch.cat([mask.flatten() for mask in masks.values()])
    assert int(chosen.sum()) == len(flat) // 2
    assert flat[chosen].min() >= flat[~chosen].max() * (1 - 1e-4)


def test_the_target_is_the_current_models_prediction_for_the_other_class_and_carries_no_gradient() -> None:
    model, batch = original(), drawn()
    images, t = batch["images"], batch["t"]
    zeros, ones = torch.zeros_like(t), torch.ones_like(t)
    error = mistaken_error(model, images, t, zeros, ones)
    expected = (model(images, t, zeros) - model(images, t, ones)).square().flatten(1).mean(1)
    torch.testing.assert_close(error, expected)
    error.sum().backward()
    gradient = model.label.weight.grad
    assert gradient[0].abs().max() > 0
    assert gradient[1].abs().max() == 0  # only the target reads class 1


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_masked_out_weights_stay_to_the_bit(weight_decay: float) -> None:
    view = replace(VIEW, recipe=replace(VIEW.recipe, optimizer="adamw", weight_decay=weight_decay))
    method = SalUnDiffusion(lr=1e-2, epochs=3, batch_size=6)
    masks = method.masks(original(), view, seed=0)
    before, after = original().state_dict(), method.unlearn(original(), view, seed=0).state_dict()
    moved = torch.cat([(after[name] != before[name])[mask] for name, mask in masks.items()])
    held = torch.cat([(after[name] != before[name])[~mask] for name, mask in masks.items()])
    assert held.sum() == 0
    assert moved.float().mean() > 0.9


def test_the_forgotten_label_is_predicted_like_the_next_class_and_others_as_before() -> None:
    model = SalUnDiffusion(lr=3e-3, epochs=150, batch_size=18).unlearn(original(), VIEW, seed=0)
    assert apart(model, 1) < 0.3 * apart(original(), 1)
    assert apart(model, 0) > apart(model, 1)
    rows = VIEW.retain.train.batch(range(len(VIEW.retain.train)))
    losses = []
    for net in (original(), model):
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            losses.append(float(VIEW.loss(net, rows).mean()))
    assert losses[1] < 1.2 * losses[0]


def test_without_the_retain_loss_other_classes_are_lost_sooner() -> None:
    rows = VIEW.retain.train.batch(range(len(VIEW.retain.train)))
    losses = []
    for weight in (3.072, 0.0):
        model = SalUnDiffusion(lr=1e-2, epochs=40, batch_size=18, retain_weight=weight).unlearn(original(), VIEW, seed=0)
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            losses.append(float(VIEW.loss(model, rows).mean()))
    assert losses[1] > 1.2 * losses[0]


def test_other_tasks_are_told_so() -> None:
    assert "diffuse" in (SalUnDiffusion().supports(TinyVision(request="class0")) or "")
    assert SalUnDiffusion().supports(SCENARIO) is None
