"""Oracle matching and head distillation: the mean of the oracles is reached, and what is read off features stays the original's."""

from copy import deepcopy
from dataclasses import fields
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LinearRegression
from torch import nn

from unlearnbench.api import MethodView, ReferenceView
from unlearnbench.attribution.removal import features_of, training_rows
from unlearnbench.mechanisms.matching import logits_of
from unlearnbench.methods.head_distillation import HeadDistillation, distilled
from unlearnbench.methods.oracle_matching import OracleMatching
from unlearnbench.testing import TinyVision


@pytest.fixture(scope="module")
def trained() -> tuple[list[nn.Module], list[nn.Module]]:
    """Two originals and three oracles of the tiny scenario's wrong labels."""
    scenario = TinyVision(request="mislabelled")
    plans = [scenario.plan("original")] * 2 + [scenario.plan("oracle")] * 3
    models = scenario.train(plans, [0, 1, 1000, 1001, 1002])
    return models[:2], models[2:]


def view_of(oracles: list[nn.Module]) -> ReferenceView:
    scenario = TinyVision(request="mislabelled")
    view = MethodView(**scenario.method_view(), subset_models=_none)
    own = {field.name: getattr(view, field.name) for field in fields(view)}
    return ReferenceView(**own, originals=(), oracles=tuple(partial(deepcopy, oracle) for oracle in oracles))


def _none(_: Any) -> list[nn.Module]:
    raise AssertionError("a reference row trains no subset models")


def test_the_model_itself_as_only_oracle_is_a_fixed_point(trained: tuple[list[nn.Module], list[nn.Module]]) -> None:
    original = trained[0][0]
    before = deepcopy(original.state_dict())
    matched = OracleMatching(optimizer="sgd", lr=0.1).refer(deepcopy(original), view_of([original]), seed=0)
    for name, value in matched.state_dict().items():
        torch.testing.assert_close(value, before[name], atol=1e-5, rtol=0)


def test_oracle_matching_approaches_the_mean_of_the_oracles(trained: tuple[list[nn.Module], list[nn.Module]]) -> None:
    originals, oracles = trained
    view = view_of(oracles)
    method = OracleMatching(lr=0.01, epochs=200, decay=0.99, n_oracles=2)
    images = method.images(view)
    wanted = torch.stack([logits_of(oracle, images) for oracle in oracles[:2]]).mean(0)
    matched = method.refer(deepcopy(originals[1]).float(), view, seed=0)
    far = float((logits_of(originals[1].float(), images) - wanted).norm())
    assert float((logits_of(matched, images) - wanted).norm()) < 0.1 * far
    other = torch.stack([logits_of(oracle, images) for oracle in oracles]).mean(0)
    assert float((logits_of(matched, images) - wanted).norm()) < float((logits_of(matched, images) - other).norm())


def test_a_distilled_head_leaves_the_features_as_they_were_and_looks_forgotten(trained: tuple[list[nn.Module], list[nn.Module]]) -> None:
    originals, oracles = trained
    original = originals[1].float()
    view = view_of(oracles)
    rows = training_rows(view)
    made = HeadDistillation().refer(deepcopy(original), view, seed=0)
    changed = {name for name, value in made.state_dict().items() if not torch.equal(value, original.state_dict()[name])}
    assert changed == {"head.weight", "head.bias"}
    assert torch.equal(features_of(made, rows.images), features_of(original, rows.images))
    wanted = torch.stack([logits_of(oracle, rows.images) for oracle in oracles]).mean(0)
    before, after = (float((logits_of(model, rows.images) - wanted)[rows.forget].norm()) for model in (original, made))
    assert after < 0.5 * before
    forgotten = rows.forget
    right = [(logits_of(model, rows.images).argmax(1) == rows.labels)[forgotten].float().mean() for model in (original, made)]
    assert right[0] > 0.9
    assert right[1] < 0.5


@pytest.mark.parametrize("bias", [True, False])
def test_the_head_is_the_weighted_least_squares_solution(bias: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(30, 4, generator=generator), torch.randn(30, 3, generator=generator)
    weights = torch.rand(30, generator=generator) + 0.1
    expected = LinearRegression(fit_intercept=bias).fit(x.double().numpy(), y.double().numpy(), sample_weight=weights.numpy())
    weight, offset = distilled(x, y, weights, bias=bias)
    np.testing.assert_allclose(weight, expected.coef_, atol=1e-7)
    np.testing.assert_allclose(offset, np.broadcast_to(expected.intercept_, 3), atol=1e-7)
    collinear, _ = distilled(torch.cat([x, x], dim=1), y, weights, bias=bias)
    np.testing.assert_allclose(collinear[:, :4] + collinear[:, 4:], expected.coef_, atol=1e-5)
