"""NegGrad+, l1-sparse, fine-tuning and amnesiac labels against what official code gives; our plugins, with rows in stored order."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from vision_conformance import Vision, assert_agrees, far_apart, parameters_of

from unlearnbench.api import Batch, MethodView
from unlearnbench.layers import evaluating
from unlearnbench.mechanisms.relabelling import wrong_labels
from unlearnbench.methods.finetune import Finetune
from unlearnbench.methods.l1_sparse import L1Sparse, l1_norm
from unlearnbench.methods.neggrad_plus import NegGradPlus
from unlearnbench.scenarios.images import image_loss

TOLERANCE = 1e-5
FORGET_BATCH, RETAIN_BATCH, LR, GAMMA = 32, 64, 0.01, 5e-3
pytestmark = pytest.mark.usefixtures("stored_order")


def of_case(name: str, prefix: str) -> float:
    """The number that follows a prefix in a case's name: alpha0.95 -> 0.95."""
    return float(next(part.removeprefix(prefix) for part in name.split("_") if part.startswith(prefix)))


def neggrad(alpha: float, batch_norm: str) -> NegGradPlus:
    return NegGradPlus(
        alpha=alpha,
        lr=LR,
        epochs=1,
        batch_size=RETAIN_BATCH,
        forget_batch_size=FORGET_BATCH,
        batch_norm=batch_norm,  # type: ignore[arg-type]
    )


def test_neggrad_plus(vision: Vision) -> None:
    arrays = vision.entry("neggrad")
    cases = sorted({name.split("/")[0] for name in arrays if name.startswith("scrub_repo")})
    assert cases
    for case in cases:
        ours = neggrad(of_case(case, "alpha"), "train").unlearn(vision.net(), vision.view(), seed=0)
        assert_agrees(ours, parameters_of(arrays, case), atol=TOLERANCE)


def pulled(vision: Vision, strength: float) -> MethodView:
    """A view whose loss of retain rows has strength/2 |weights - original's|^2 added, and whose optimizer has no decay."""
    view, before = vision.view(weight_decay=0.0), [weight.detach() for weight in vision.net().parameters()]
    kept = {image.numpy().tobytes() for image in vision.images("retain")}

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        values = image_loss(model, batch)
        if batch["images"][0].numpy().tobytes() not in kept:
            return values
        moved = sum(((weight - old) ** 2).sum() for weight, old in zip(model.parameters(), before, strict=True))
        return values + strength / 2 * moved

    return replace(view, loss=loss)


def test_neggrad_plus_with_a_pull_to_the_original(vision: Vision) -> None:
    arrays = vision.entry("neggrad")
    cases = sorted({name.split("/")[0] for name in arrays if name.startswith("deepunlearn")})
    assert cases
    for case in cases:
        ours = neggrad(of_case(case, "alpha"), "frozen").unlearn(vision.net(), pulled(vision, of_case(case, "wd")), seed=0)
        expected = parameters_of(arrays, case)
        assert_agrees(ours, expected, atol=TOLERANCE)
        without = neggrad(of_case(case, "alpha"), "frozen").unlearn(vision.net(), vision.view(weight_decay=0.0), seed=0)
        assert far_apart(expected, without.state_dict()) > TOLERANCE


def l1(case: str) -> L1Sparse | Finetune:
    """The plugin of theta_[ft_]e<epochs>[_nol1_<epochs>|_gamma0]."""
    epochs = int(of_case(case, "e"))
    if "_ft_" in case:
        return Finetune(lr=LR, epochs=epochs, batch_size=RETAIN_BATCH, batch_norm="train")
    return L1Sparse(
        gamma=0.0 if case.endswith("gamma0") else GAMMA,
        plain_epochs=int(case.rpartition("_")[2]) if "nol1" in case else 0,
        lr=LR,
        epochs=epochs,
        batch_size=RETAIN_BATCH,
        batch_norm="train",
    )


def test_l1_sparse_and_fine_tuning(vision: Vision) -> None:
    arrays, numbers = vision.entry("l1_sparse"), vision.numbers("l1_sparse")
    cases = sorted({name.split("/")[0] for name in arrays})
    assert cases
    for case in cases:
        ours = l1(case).unlearn(vision.net(), vision.view(), seed=0)
        assert_agrees(ours, parameters_of(arrays, case), atol=TOLERANCE)
        assert l1_norm(ours).item() == pytest.approx(numbers[f"l1_norm_{case.removeprefix('theta_')}"], abs=1e-3)
    assert l1_norm(vision.net()).item() == pytest.approx(numbers["l1_norm_original"], abs=1e-3)


def test_amnesiac_labels(vision: Vision) -> None:
    """The official draw (again while it is the truth) has our property: wrong for each forget row, the truth for the others."""
    stored = torch.from_numpy(vision.entry("amnesiac")["labels"])
    forget, retain = vision.labels("forget"), vision.labels("retain")
    draws, drawn = random.Random(vision.numbers("amnesiac")["python_random_seed"]), []
    for true in forget.tolist():
        label = true
        while label == true:
            label = draws.choice(range(vision.classes))
        drawn.append(label)
    assert stored.tolist() == [*drawn, *retain.tolist()]
    assert (stored[: len(forget)] != forget).all()
    ours = wrong_labels(forget, vision.classes, seed=0)
    assert (ours != forget).all()
    assert ours.min() >= 0
    assert ours.max() < vision.classes


def test_fine_tuning_of_the_official_kind_keeps_accuracy(vision: Vision) -> None:
    net = Finetune(lr=LR, epochs=1, batch_size=RETAIN_BATCH).unlearn(vision.net(), vision.view(), seed=0)
    with torch.no_grad(), evaluating(net):
        right = net(vision.images("retain")).argmax(1) == vision.labels("retain")
    assert right.double().mean() >= vision.numbers("inputs")["accuracy"]["original"]["retain"] - 0.05
