"""Datamodel matching: on least squares it reaches the retrained model; fixed points, linearity, labels never read."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from least_squares import LeastSquares, Regression
from torch import Tensor, nn

from unlearnbench.api import MethodView, Split, UserError
from unlearnbench.attribution import removal
from unlearnbench.mechanisms.matching import logits_of
from unlearnbench.methods.datamodel_matching import DatamodelMatching
from unlearnbench.scenarios.images import ImageData
from unlearnbench.testing import TinyVision, tiny_vision_model, tiny_vision_view

FINE: dict[str, Any] = {"lr": 0.05, "epochs": 300, "decay": 0.98, "retain_multiplier": 100.0}


def error(model: nn.Module, problem: LeastSquares) -> float:
    """Of the change of all logits by unlearning, relative to that by retraining."""
    images = problem.rows.images
    before, wanted = logits_of(problem.trained(), images), logits_of(problem.trained(problem.forget), images)
    return float((logits_of(model, images) - wanted).norm() / (before - wanted).norm())


@pytest.mark.parametrize(("forget", "tolerance"), [(1, 1e-3), (4, 0.03), (16, 0.2)])
def test_with_exact_effects_a_convex_model_becomes_the_retrained_one(forget: int, tolerance: float) -> None:
    problem = LeastSquares(forget, 160 - forget)
    method = DatamodelMatching(attribution="leave_one_out", multiplier=1.0, **FINE)
    assert error(method.unlearn(problem.trained(), problem.view, seed=0), problem) < tolerance


def test_datamodels_of_half_subsets_need_half_the_multiplier() -> None:
    problem = LeastSquares(8, 152)
    errors = {}
    for multiplier in (None, 1.0):
        method = DatamodelMatching(n_subsets=800, regression="ridge", multiplier=multiplier, **FINE)
        errors[multiplier] = error(method.unlearn(problem.trained(), problem.view, seed=0), problem)
    assert errors[None] < 0.3 < 0.7 < errors[1.0]


def test_the_multiplier_is_calibrated_on_other_rows_and_neither_it_nor_the_subsets_depend_on_the_call() -> None:
    problem = LeastSquares(8, 152)
    method = DatamodelMatching(n_subsets=400, regression="ridge", calibration_models=5)
    kept: dict[str, dict[str, Tensor]] = {}

    def shared(key: Mapping[str, Any], compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        name = json.dumps(key)
        if name not in kept:
            kept[name] = compute()
        return kept[name]

    view = replace(problem.view, shared=shared)
    for seed in (0, 1):
        method.unlearn(problem.trained(), view, seed=seed)
    assert len(kept) == 1
    assert len(problem.asked) == 400 / removal.TOGETHER + 1
    calibration = problem.asked[-1]
    assert [len(rows) for rows in calibration] == [8] * 5
    assert not any(rows & problem.forget for rows in calibration)
    shares = [len(rows & problem.forget) / 8 for part in problem.asked[:-1] for rows in part]
    assert sum(shares) / 400 == pytest.approx(0.5, abs=0.03)
    (found,) = kept.values()
    assert 0.3 < float(found["factor"]) < 0.8
    assert found["effects"].shape == (8 + 24, 2)
    assert found["effects"].dtype == torch.float32


def test_neighbourhoods_are_left_out_together() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = torch.eye(4).repeat_interleave(20, 0)
    features = centres + 0.05 * torch.randn(80, 4, generator=generator)
    masks = removal.without_neighbourhoods(features, 300, 0.6, largest=20, generator=generator)
    assert torch.equal(masks.sum(1), torch.full((300,), 48))
    present = masks.float() - 0.6
    together = (present.T @ present / 300).view(4, 20, 4, 20)
    own = torch.stack([together[i, :, i] for i in range(4)]).mean()
    other = together[0, :, 1:].mean()
    assert own > 0.05 > 0 > other


@pytest.mark.parametrize("settings", [{"multiplier": 0.0}, {"pull": 0.0, "multiplier": 1.0}], ids=["multiplier 0", "effects 0"])
def test_where_nothing_is_to_change_nothing_does(settings: dict[str, Any]) -> None:
    images = tiny_vision_view().forget.eval.batch(range(1))["images"]

    def nothing(key: Mapping[str, Any], compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        return {"effects": images.new_zeros(40, 3), "factor": torch.ones(())}

    model = tiny_vision_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    view = replace(tiny_vision_view(), shared=nothing, retain=_both(_rows(tiny_vision_view().retain, 30)))
    after = DatamodelMatching(optimizer="sgd", lr=0.1, **settings).unlearn(model, view, seed=0)
    for name, value in after.state_dict().items():
        torch.testing.assert_close(value, before[name], atol=1e-12, rtol=0)


def _both(rows: ImageData) -> Split:
    return Split(train=rows, eval=rows)


def _rows(split: Split, n: int) -> ImageData:
    batch = split.eval.batch([i % len(split.eval) for i in range(n)])
    return ImageData(batch["images"], batch["labels"], [f"row {i}" for i in range(n)])


def test_the_predicted_change_is_the_sum_over_the_forget_rows() -> None:
    problem = LeastSquares(10, 150)
    model, images = problem.trained(), problem.rows.images
    gone = problem.view.forget.eval

    def change(part: range) -> Tensor:
        rest = [i for i in range(10) if i not in part]
        kept = problem.rows.take([*rest, *range(10, 160)])
        view = replace(problem.view, forget=_both(gone.take(part)), retain=_both(kept))
        rows = removal.training_rows(view)
        summed = removal.by_leave_one_out(view, model, rows, images)
        return removal.change(view, rows, images, summed, candidates=(), removals=0)[0]

    torch.testing.assert_close(change(range(10)), change(range(4)) + change(range(4, 10)))
    assert change(range(10)).abs().max() > 0.01


@pytest.mark.parametrize("seed", [0, 1])
def test_labels_are_never_read(seed: int) -> None:
    problem = LeastSquares(8, 152)
    method = DatamodelMatching(n_subsets=60, regression="ridge", lr=0.05)

    def garbled(view: MethodView) -> MethodView:
        def turned(split: Split) -> Split:
            rows = split.eval
            assert isinstance(rows, ImageData)
            return _both(ImageData(rows.images, torch.full_like(rows.labels, -7), rows.ids))

        return replace(view, forget=turned(view.forget), retain=turned(view.retain), loss=_never)

    one = method.unlearn(problem.trained(), problem.view, seed=seed)
    other = method.unlearn(problem.trained(), garbled(problem.view), seed=seed)
    assert torch.equal(one.linear.weight, other.linear.weight)  # type: ignore[union-attr, arg-type]
    assert not torch.equal(one.linear.weight, problem.trained().linear.weight)  # type: ignore[union-attr, arg-type]


def _never(*_: Any) -> Tensor:
    raise AssertionError("the loss is not to be read")


def test_trak_unlearns_wrong_labels_of_the_tiny_scenario() -> None:
    scenario = TinyVision(request="mislabelled")
    models = scenario.train([scenario.plan("original")] * 3, [0, 1, 2])
    oracle = scenario.train([scenario.plan("oracle")], [7])[0]
    asked: list[Any] = []

    def subset_models(left_out: Any) -> list[nn.Module]:
        asked.extend(left_out)
        return models[: len(left_out)]

    view = MethodView(**scenario.method_view(), subset_models=subset_models)
    batch = view.forget.eval.batch(range(6))
    rows = removal.training_rows(view)
    summed = removal.by_trak(view, rows, batch["images"], checkpoints=3, dimension=64, ridge=0.1)
    effects, _ = removal.change(view, rows, batch["images"], summed, candidates=(), removals=0)
    assert asked == [frozenset()] * 3
    # Including these rows speaks for their (wrong) labels, and it is what tells the original from the oracle.
    assert (
        float(effects.gather(1, batch["labels"][:, None]).mean())
        > 0
        > float(effects.sum(1).mean() - effects.gather(1, batch["labels"][:, None]).mean())
    )
    told = logits_of(models[0], batch["images"]) - logits_of(oracle, batch["images"])
    assert float(torch.nn.functional.cosine_similarity(effects.flatten(), told.flatten(), dim=0)) > 0.4


def test_what_it_cannot_do_is_said() -> None:
    scenario = TinyVision(request="class0")
    assert DatamodelMatching().supports(scenario) is None
    reason = DatamodelMatching(attribution="leave_one_out").supports(scenario)
    assert reason is not None
    assert "exact for linear models alone" in reason
    with pytest.raises(UserError, match="TinyNet is no linear model; allowed: datamodels, trak"):
        DatamodelMatching(attribution="leave_one_out", multiplier=1.0).unlearn(tiny_vision_model(), tiny_vision_view(), seed=0)
    with pytest.raises(UserError, match=r"retain_multiplier is 0\.0: calibrating the multiplier needs retain rows"):
        DatamodelMatching(retain_multiplier=0.0).unlearn(tiny_vision_model(), tiny_vision_view(), seed=0)
    assert removal.is_linear(Regression(torch.ones(3, 2)))
    assert not removal.is_linear(tiny_vision_model())
