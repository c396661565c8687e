"""SalUn: what the mask leaves alone stays to the bit, with a mask of everything it is random labelling, and what it must not depend on."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from math import ceil
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unlearnbench.api import Batch, MethodView, Split
from unlearnbench.fields import FieldError, construct
from unlearnbench.layers import model_hash
from unlearnbench.methods import salun as module
from unlearnbench.methods.random_labels import RandomLabels
from unlearnbench.methods.salun import SalUn
from unlearnbench.testing import in_training, tiny_vision_model, tiny_vision_view

VIEW = tiny_vision_view()
HARD: list[dict[str, Any]] = [
    {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.1},
    {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.1, "clip": 0.5},
    {"optimizer": "adamw", "momentum": 0.0, "weight_decay": 0.1},
    {"optimizer": "adam", "momentum": 0.0, "weight_decay": 0.1},
]
SETTINGS: dict[str, Any] = {"lr": 0.05, "epochs": 3, "batch_size": 4}


def held(method: SalUn, view: MethodView, model: nn.Module) -> bool:
    """Whether each weight outside the mask is the original's to the bit, and those inside have moved."""
    masks, before = method.masks(tiny_vision_model(), view), dict(tiny_vision_model().named_parameters())
    same = {name: weight == before[name] for name, weight in model.named_parameters()}
    inside = torch.cat([same[name][mask] for name, mask in masks.items()])
    assert inside.double().mean() < 0.1
    return all(bool(same[name][~mask].all()) for name, mask in masks.items())


@pytest.mark.parametrize("changes", HARD, ids=lambda changes: "-".join(map(str, changes.values())))
@pytest.mark.parametrize("order", ["joint", "sequential"])
def test_masked_out_weights_stay_to_the_bit_under_momentum_and_decay(changes: dict[str, Any], order: Any) -> None:
    view, method = in_training(VIEW, **changes), SalUn(order=order, mask_ratio=0.3, **SETTINGS)
    assert held(method, view, method.unlearn(tiny_vision_model(), view, seed=0))


def test_masking_gradients_alone_would_not_hold_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fault of code released before February 2026: the check above must fail for it."""
    true = module.masked

    @contextmanager
    def gradients_only(*given: Any) -> Any:
        with true(*given):
            yield None

    monkeypatch.setattr(module, "masked", gradients_only)
    method = SalUn(mask_ratio=0.3, **SETTINGS)
    for changes in HARD:
        view = in_training(VIEW, **changes)
        assert not held(method, view, method.unlearn(tiny_vision_model(), view, seed=0))


@pytest.mark.parametrize("changes", HARD, ids=lambda changes: "-".join(map(str, changes.values())))
@pytest.mark.parametrize(
    "labels", [{"order": order, "redraw": redraw, "exclude_true": True} for order in ("joint", "sequential") for redraw in (False, True)]
)
@pytest.mark.parametrize("batch_norm", ["frozen", "train"])
def test_with_a_mask_of_everything_it_is_random_labelling(changes: dict[str, Any], labels: dict[str, Any], batch_norm: Any) -> None:
    view = in_training(VIEW, **changes)
    settings = {**SETTINGS, **labels, "epochs": 2, "batch_norm": batch_norm}
    salun = SalUn(mask_ratio=1.0, **settings).unlearn(tiny_vision_model(), view, seed=3)
    assert model_hash(salun) == model_hash(RandomLabels(**settings).unlearn(tiny_vision_model(), view, seed=3))
    half = SalUn(mask_ratio=0.5, **settings).unlearn(tiny_vision_model(), view, seed=3)
    assert model_hash(half) != model_hash(salun)


def test_the_mask_is_that_of_the_forget_loss_and_of_no_batch_size() -> None:
    model = tiny_vision_model()
    batch = VIEW.forget.train.batch(range(10))
    gradients = torch.autograd.grad(nn.functional.cross_entropy(model(batch["images"]), batch["labels"]), list(model.parameters()))
    flat = torch.cat([gradient.abs().flatten() for gradient in gradients])
    count = int(0.3 * len(flat))
    for size in (3, 10):
        masks = SalUn(mask_ratio=0.3, batch_size=size).masks(model, VIEW)
        chosen = torch.cat([mask.flatten() for mask in masks.values()])
        assert int(chosen.sum()) == count
        assert set(chosen.nonzero().flatten().tolist()) == set(flat.topk(count).indices.tolist())
    assert not model.training
    assert all(weight.grad is None for weight in model.parameters())


def seen_by(method: SalUn) -> list[dict[float, int]]:
    """The training batches: each image, by its sum, and its label."""
    batches: list[dict[float, int]] = []

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        batches.append(dict(zip(batch["images"].sum((1, 2, 3)).tolist(), batch["labels"].tolist(), strict=True)))
        return VIEW.loss(model, batch)

    method.unlearn(tiny_vision_model(), replace(VIEW, loss=loss), seed=0)
    own = ceil(len(FORGET) / method.batch_size)
    assert all(set(batch) <= set(FORGET) for batch in batches[:own])  # the saliency's own pass over the forget rows
    return batches[own:]


def labels_in(split: Split) -> dict[float, int]:
    """Each image, by its sum, and its label."""
    batch = split.train.batch(range(len(split.train)))
    return dict(zip(batch["images"].sum((1, 2, 3)).tolist(), batch["labels"].tolist(), strict=True))


FORGET, RETAIN = labels_in(VIEW.forget), labels_in(VIEW.retain)


def test_in_each_epoch_forget_rows_under_fresh_wrong_labels_come_first_then_retain_rows() -> None:
    batches = seen_by(SalUn(epochs=3, batch_size=4))
    assert len(batches) == 3 * 8
    drawn = []
    for start in (0, 8, 16):
        forget: dict[float, int] = {key: label for batch in batches[start : start + 3] for key, label in batch.items()}
        assert set(forget) == set(FORGET)
        assert set(forget.values()) == {1, 2}  # all forget rows are of class 0
        assert {key: label for batch in batches[start + 3 : start + 8] for key, label in batch.items()} == RETAIN
        drawn.append(forget)
    assert drawn[0] != drawn[1] != drawn[2] != drawn[0]
    assert len({tuple(labels) for labels in drawn}) == 3  # their order too


def test_labels_drawn_once_stay() -> None:
    batches = seen_by(SalUn(epochs=3, batch_size=4, redraw=False))
    drawn = [{key: label for batch in batches[start : start + 3] for key, label in batch.items()} for start in (0, 8, 16)]
    assert drawn[0] == drawn[1] == drawn[2]


def test_joint_batches_mix_both_sets() -> None:
    batches = seen_by(SalUn(epochs=2, batch_size=6, order="joint"))
    assert [len(batch) for batch in batches] == [6] * 10
    epochs = [{key: label for batch in part for key, label in batch.items()} for part in (batches[:5], batches[5:])]
    assert all(set(epoch) == {*FORGET, *RETAIN} for epoch in epochs)
    assert any(set(batch) & set(FORGET) and set(batch) & set(RETAIN) for batch in batches)
    assert all(epoch[key] == label for epoch in epochs for key, label in RETAIN.items())


def test_the_released_draw_may_give_the_true_label() -> None:
    drawn = [batch[key] for batch in seen_by(SalUn(epochs=3, batch_size=4, exclude_true=False)) for key in batch if key in FORGET]
    assert set(drawn) == {0, 1, 2}


def test_running_statistics_move_only_when_asked() -> None:
    before = dict(tiny_vision_model().named_buffers())

    def moved(model: nn.Module) -> bool:
        return any(not torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())

    assert not moved(SalUn(**SETTINGS).unlearn(tiny_vision_model(), VIEW, seed=0))
    assert moved(SalUn(batch_norm="train", **SETTINGS).unlearn(tiny_vision_model(), VIEW, seed=0))


def test_it_leaves_no_hook_and_a_trainable_model_in_eval_mode() -> None:
    model = SalUn(**SETTINGS).unlearn(tiny_vision_model(), VIEW, seed=0)
    assert not model.training
    assert all(weight.requires_grad and weight.grad is None and not weight._backward_hooks for weight in model.parameters())


def test_the_forget_rows_are_answered_wrongly_and_the_retain_rows_rightly_afterwards() -> None:
    model = SalUn(lr=0.1, epochs=20, batch_size=10).unlearn(tiny_vision_model(), VIEW, seed=0)
    with torch.no_grad():
        forget = model(VIEW.forget.eval.batch(range(10))["images"]).argmax(1)
        batch = VIEW.retain.eval.batch(range(20))
        assert (forget == 0).double().mean() < 0.2
        assert (model(batch["images"]).argmax(1) == batch["labels"]).double().mean() > 0.8


@pytest.mark.parametrize("wrong", [{"mask_ratio": 0}, {"mask_ratio": 1.1}, {"order": "retain first"}, {"lora_rank": 4}, {"lr": 0}])
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(FieldError):
        construct(SalUn, "salun", wrong)


def test_the_defaults_are_the_papers() -> None:
    chosen = {"mask_ratio": 0.5, "lr": 0.013, "epochs": 10, "batch_size": 256, "order": "sequential", "redraw": True, "exclude_true": True}
    assert construct(SalUn, "salun", {}) == SalUn(**chosen)
