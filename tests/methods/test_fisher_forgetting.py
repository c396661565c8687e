"""Fisher forgetting: how large the noise is where, and the head's rows of a class that is gone."""

from __future__ import annotations

from dataclasses import replace

import torch
from trained_vision import VIEW, accuracy, knowing

from unlearnbench.api import Split
from unlearnbench.mechanisms.importance import fisher_diagonal, fisher_variance
from unlearnbench.mechanisms.relabelling import Relabelled
from unlearnbench.methods.fisher_forgetting import FisherForgetting

RELABELLED = Relabelled(VIEW.forget.train, torch.ones(len(VIEW.forget.train), dtype=torch.int64))
INSTANCES = replace(VIEW, kind="instances", forget=Split(train=RELABELLED, eval=RELABELLED))
"""A view whose forget rows are of classes that have retain rows too."""


def test_without_noise_only_the_heads_rows_of_a_lost_class_are_drawn_anew() -> None:
    before = knowing().state_dict()
    same = FisherForgetting(alpha=0.0).unlearn(knowing(), INSTANCES, seed=0).state_dict()
    assert all(torch.equal(same[name], tensor) for name, tensor in before.items())
    drawn = torch.stack([FisherForgetting(alpha=0.0).unlearn(knowing(), VIEW, seed=seed).head.weight[0] for seed in range(40)])
    # 640 numbers of variance 0.001: its estimate has a relative deviation of 6 %.
    assert 0.75e-3 < drawn.var() < 1.25e-3
    assert drawn.mean().abs() < 6e-3
    found = FisherForgetting(alpha=0.0).unlearn(knowing(), VIEW, seed=0).state_dict()
    changed = {name for name, tensor in before.items() if not torch.equal(found[name], tensor)}
    assert changed == {"head.weight", "head.bias"}
    assert torch.equal(found["head.weight"][1:], before["head.weight"][1:])


def test_the_noise_has_the_variance_of_the_inverse_information() -> None:
    """Ten times as much in batch-norm and in the head, whose bound is a tenth of the others'."""
    model, alpha = knowing(), 1e-6
    information = fisher_diagonal(model, (VIEW.retain.train.batch([row]) for row in range(20)))
    seeds = range(40)
    moved: dict[str, list[torch.Tensor]] = {name: [] for name in information}
    for seed in seeds:
        found = FisherForgetting(alpha=alpha).unlearn(knowing(), INSTANCES, seed=seed).state_dict()
        for name, weight in model.named_parameters():
            moved[name].append((found[name] - weight).detach())
    modules = {"blocks.0.2.": 10.0, "head.": 10.0}
    for name, tensor in information.items():
        factor = next((wide for prefix, wide in modules.items() if name.startswith(prefix)), 1.0)
        expected = factor * fisher_variance(tensor, alpha=alpha, largest=1e2 if name.startswith("head.") else 1e3)
        ratio = (torch.stack(moved[name]) ** 2 / expected).mean()
        # At least 120 standard normal squares.
        assert abs(ratio - 1) < 5 * (2 / (tensor.numel() * len(seeds))) ** 0.5, name


def test_the_seed_draws_the_noise_and_a_lost_class_is_not_recognised() -> None:
    one, other = (FisherForgetting(alpha=1e-4).unlearn(knowing(), INSTANCES, seed=seed).head.weight for seed in (0, 1))
    assert not torch.equal(one, other)
    model, images = FisherForgetting().unlearn(knowing(), VIEW, seed=0), VIEW.forget.eval.batch(range(10))["images"]
    with torch.no_grad():
        assert knowing()(images)[:, 0].min() > 1
        assert model(images)[:, 0].abs().max() < 0.5
    assert accuracy(model, VIEW.retain.eval) > 0.8
