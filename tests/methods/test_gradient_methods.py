"""Gradient ascent, GradDiff and fine-tuning: one step by hand, their limits, and what each must not read."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unlearnbench.api import Method, MethodView, Split
from unlearnbench.fields import FieldError, construct
from unlearnbench.layers import model_hash
from unlearnbench.methods.finetune import Finetune
from unlearnbench.methods.grad_diff import GradDiff
from unlearnbench.methods.gradient_ascent import GradientAscent
from unlearnbench.methods.npo import NPO
from unlearnbench.methods.random_labels import RandomLabels
from unlearnbench.testing import in_training, tiny_language_model, tiny_language_view, tiny_vision_model, tiny_vision_view
from unlearnbench.training import DivergedError

World = tuple[MethodView, Callable[[int], nn.Module]]
LANGUAGE: World = (tiny_language_view(), tiny_language_model)
VISION: World = (tiny_vision_view(), tiny_vision_model)
both = pytest.mark.parametrize("world", [LANGUAGE, VISION], ids=["language", "vision"])
TRAINED = [
    *((world, cls) for world in (LANGUAGE, VISION) for cls in (GradientAscent, GradDiff, Finetune)),
    (LANGUAGE, NPO),
    (VISION, RandomLabels),
]
trained = pytest.mark.parametrize(("world", "cls"), TRAINED, ids=lambda value: getattr(value, "__name__", ""))


def mean_loss(view: MethodView, model: nn.Module, split: Split) -> Tensor:
    return view.loss(model, split.train.batch(range(len(split.train)))).mean()


def stepped(view: MethodView, model: nn.Module, lr: float, forget: float, retain: float) -> list[Tensor]:
    """Weights after one bare gradient step down forget * L(forget) + retain * L(retain)."""
    model = copy.deepcopy(model)
    loss = forget * mean_loss(view, model, view.forget) + retain * mean_loss(view, model, view.retain)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    return [weight.detach() - lr * gradient for weight, gradient in zip(model.parameters(), gradients, strict=True)]


@both
@pytest.mark.parametrize(
    ("method", "forget", "retain"),
    [
        (GradientAscent(lr=0.01, epochs=1, batch_size=99), -1.0, 0.0),
        (Finetune(lr=0.01, epochs=1, batch_size=99), 0.0, 1.0),
        (GradDiff(lr=0.01, epochs=1, batch_size=99, forget_weight=0.3, retain_weight=2.0), -0.3, 2.0),
    ],
    ids=lambda value: type(value).__name__,
)
def test_one_step_equals_the_formula(world: World, method: Method, forget: float, retain: float) -> None:
    view, model = in_training(world[0], optimizer="sgd", momentum=0.0), world[1](0)
    expected = stepped(view, model, 0.01, forget, retain)
    torch.testing.assert_close([p.detach() for p in method.unlearn(model, view, seed=0).parameters()], expected, rtol=1e-10, atol=1e-12)


@both
def test_ascent_raises_the_forget_loss_and_fine_tuning_lowers_the_retain_loss(world: World) -> None:
    view, build = world
    with torch.no_grad():
        model = build(0)
        forget, retain = mean_loss(view, model, view.forget), mean_loss(view, model, view.retain)
    ascended = GradientAscent(lr=1e-3, epochs=3).unlearn(build(0), view, seed=0)
    tuned = Finetune(lr=1e-3, epochs=3).unlearn(build(0), view, seed=0)
    assert mean_loss(view, ascended, view.forget) > forget
    assert mean_loss(view, tuned, view.retain) < retain


@both
def test_grad_diff_without_its_forget_term_is_fine_tuning(world: World) -> None:
    view, build = world
    # The forget set is half the retain set: as many steps in twice the epochs.
    size = len(view.forget.train)
    tuned = Finetune(lr=1e-2, epochs=2, batch_size=size).unlearn(build(0), view, seed=3)
    settings: dict[str, Any] = {"lr": 1e-2, "epochs": 4, "batch_size": size}
    assert model_hash(GradDiff(forget_weight=0.0, **settings).unlearn(build(0), view, seed=3)) == model_hash(tuned)
    assert model_hash(GradDiff(forget_weight=0.1, **settings).unlearn(build(0), view, seed=3)) != model_hash(tuned)


@trained
def test_zero_rate_leaves_the_weights_to_the_bit(world: World, cls: type[Any]) -> None:
    view, build = world
    assert model_hash(cls(lr=0.0, epochs=2).unlearn(build(0), view, seed=0)) == model_hash(build(0))


@trained
def test_the_seed_decides(world: World, cls: type[Any]) -> None:
    view, build = world
    one, again, other = (model_hash(cls(lr=1e-2, epochs=1, batch_size=3).unlearn(build(0), view, seed=seed)) for seed in (0, 0, 1))
    assert one == again != other


@trained
def test_the_result_is_in_eval_mode_and_trainable(world: World, cls: type[Any]) -> None:
    view, build = world
    model = cls(lr=1e-3, epochs=1).unlearn(build(0), view, seed=0)
    assert not any(module.training for module in model.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_ascent_never_reads_retain_rows_and_fine_tuning_never_forget_rows() -> None:
    view, build = VISION
    GradientAscent(epochs=1).unlearn(build(0), replace(view, retain=None), seed=0)  # type: ignore[arg-type]
    Finetune(epochs=1).unlearn(build(0), replace(view, forget=None), seed=0)  # type: ignore[arg-type]


@pytest.mark.parametrize("cls", [GradientAscent, GradDiff, Finetune, RandomLabels])
def test_batch_norm_moves_only_when_asked(cls: type[Any]) -> None:
    view, build = VISION
    before = dict(build(0).named_buffers())

    def moved(model: nn.Module) -> bool:
        return any(not torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())

    assert not moved(cls(lr=0.1, epochs=1).unlearn(build(0), view, seed=0))
    assert moved(cls(lr=0.1, epochs=1, batch_norm="train").unlearn(build(0), view, seed=0))


def test_a_rate_beyond_reason_is_an_error_and_no_model() -> None:
    view, build = LANGUAGE
    with pytest.raises(DivergedError, match="GradientAscent"):
        GradientAscent(lr=1e200, epochs=3).unlearn(build(0), view, seed=0)


@pytest.mark.parametrize("wrong", [{"lr": 0}, {"lr": -1e-5}, {"epochs": 0}, {"batch_size": 0}, {"accumulate": 0}, {"batch_norm": "off"}])
@pytest.mark.parametrize("cls", [GradientAscent, GradDiff, Finetune, NPO, RandomLabels])
def test_settings_out_of_range_are_refused(cls: type[Any], wrong: dict[str, Any]) -> None:
    with pytest.raises(FieldError):
        construct(cls, "method", wrong)
    assert construct(cls, "method", {}) == cls()
