"""Saliency against gradients by hand; masks: exact counts, global ranking, nesting."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from unlearnbench.mechanisms.saliency import masked, saliency, top_share


def squared(model: nn.Module, batch: Any) -> Tensor:
    return (model(batch) ** 2).sum() / 2


def linear() -> nn.Linear:
    layer = nn.Linear(2, 1, bias=False).double()
    layer.weight = nn.Parameter(torch.tensor([[1.0, 2.0]], dtype=torch.float64))
    return layer


def test_the_sum_is_taken_with_sign_and_then_the_magnitude() -> None:
    # d/dw (wx)^2 / 2 = (wx) x: (1, 2) at (1, 1) gives (3, 3); at (1, -1) gives (-1, 1).
    batches = [torch.tensor([[1.0, 1.0]], dtype=torch.float64), torch.tensor([[1.0, -1.0]], dtype=torch.float64)]
    found = saliency(linear(), squared, batches)
    assert found["weight"].tolist() == [[2.0, 4.0]]  # |3 - 1|, |3 + 1|; of magnitudes the sum would be 4, 4
    assert saliency(linear(), lambda model, batch: -squared(model, batch), batches)["weight"].tolist() == [[2.0, 4.0]]


def test_it_is_taken_in_eval_mode_and_leaves_the_model_alone() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Dropout(0.5)).train()
    before = copy.deepcopy(net.state_dict())
    rows = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    found = saliency(net, squared, [rows])
    assert torch.equal(found["0.weight"], saliency(net.eval(), squared, [rows])["0.weight"])
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert all(weight.grad is None for weight in net.parameters())
    assert list(found) == [name for name, _ in net.named_parameters()]


def test_a_weight_that_the_loss_does_not_use_has_none() -> None:
    net = nn.ModuleDict({"used": linear(), "unused": linear()})
    found = saliency(net, lambda model, batch: squared(model["used"], batch), [torch.ones(1, 2, dtype=torch.float64)])
    assert found["unused.weight"].tolist() == [[0.0, 0.0]]


def test_no_batch_has_no_saliency() -> None:
    with pytest.raises(ValueError, match="no batch to take gradients of"):
        saliency(linear(), squared, [])


@given(st.integers(0, 10_000), st.floats(0, 1), st.floats(0, 1))
def test_masks_have_their_count_rank_globally_and_nest(seed: int, one: float, other: float) -> None:
    draws = np.random.default_rng(seed)
    # Few distinct values, so that many are equal.
    scores = {name: torch.from_numpy(draws.integers(0, 5, size=shape).astype(float)) for name, shape in (("a", (3, 4)), ("b", (7,)))}
    small, large = (top_share(scores, share) for share in sorted((one, other)))
    for share, masks in zip(sorted((one, other)), (small, large), strict=True):
        chosen = np.concatenate([mask.numpy().ravel() for mask in masks.values()])
        values = np.concatenate([score.numpy().ravel() for score in scores.values()])
        assert chosen.sum() == int(share * 19)
        if 0 < chosen.sum() < 19:
            assert values[chosen].min() >= values[~chosen].max()
    assert all(bool((large[name] | ~small[name]).all()) for name in scores)


def test_one_layer_may_have_all_the_ones() -> None:
    masks = top_share({"low": torch.arange(4.0), "high": 10 + torch.arange(4.0)}, 0.5)
    assert not masks["low"].any()
    assert masks["high"].all()


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_shares_out_of_range_and_scores_without_order_are_refused(share: float) -> None:
    with pytest.raises(ValueError, match="allowed: 0 to 1"):
        top_share({"a": torch.ones(2)}, share)
    with pytest.raises(ValueError, match="NaN"):
        top_share({"a": torch.tensor([1.0, float("nan")])}, 0.5)


def test_moments_of_masked_weights_stay_zero_and_step_counts_go_on() -> None:
    for build in (torch.optim.AdamW, torch.optim.Adam):
        scale = nn.Parameter(torch.tensor(1.0))  # as many dimensions as a step count
        parameters, masks = (
            {"scale": scale, "weight": linear().weight},
            {"scale": torch.tensor(False), "weight": torch.tensor([[True, False]])},
        )
        optimizer = build(parameters.values(), lr=0.1, weight_decay=0.1)
        with masked(parameters, masks, optimizer) as restore:
            for step in range(3):
                optimizer.zero_grad()
                (parameters["weight"].sum() * scale).backward()
                assert parameters["weight"].grad is not None
                assert parameters["weight"].grad[0, 1] == 0  # what clipping would see
                optimizer.step()
                restore(step + 1, nn.Identity())
        assert scale.item() == 1.0
        assert parameters["weight"][0, 1].item() == 2.0
        assert parameters["weight"][0, 0].item() < 0.8
        assert optimizer.state[scale]["step"] == 3
        assert optimizer.state[parameters["weight"]]["exp_avg"][0, 1] == 0
        (parameters["weight"].sum() * scale).backward()
        assert scale.grad is not None
        assert scale.grad != 0  # outside the context gradients are whole again
