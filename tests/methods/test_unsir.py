"""UNSIR: noise that the model errs on, labelled as the lost class; no forget image is looked at."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from trained_vision import VIEW, accuracy, knowing

from unlearnbench.api import Batch, Data, Split
from unlearnbench.contracts.models import method_view
from unlearnbench.layers import model_hash
from unlearnbench.methods import unsir
from unlearnbench.methods.unsir import UNSIR, error_maximising, noise_loss
from unlearnbench.scenarios.digits import Digits

SMALL: dict[str, Any] = {"noise_images": 6, "noise_copies": 3, "batch_size": 8}


class Blank(Data):
    """The forget rows with their pictures painted over."""

    def __init__(self, rows: Data) -> None:
        self.rows, self.ids, self.clusters = rows, rows.ids, rows.clusters

    def take(self, index: Any) -> Data:
        return Blank(self.rows.take(index))

    def batch(self, index: Any) -> Batch:
        batch = self.rows.batch(index)
        return {**batch, "images": torch.zeros_like(batch["images"])}


def test_what_noise_minimises() -> None:
    model = knowing()
    noise = torch.randn(5, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.tensor([0, 0, 1, 2, 2])
    with torch.no_grad():
        expected = -cross_entropy(model(noise), labels) + 0.3 * sum(float((image**2).sum()) for image in noise) / 5
        torch.testing.assert_close(noise_loss(model, noise, labels, 0.3), expected)


def test_noise_is_misclassified_and_the_model_stays() -> None:
    model = knowing().train()
    before = model_hash(model)
    start = torch.randn(20, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.zeros(20, dtype=torch.int64)
    noise = error_maximising(model, start, labels, lr=0.1, steps=25, penalty=0.1)
    assert model_hash(model) == before
    assert all(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    model.eval()
    with torch.no_grad():
        losses = [float(cross_entropy(model(images), labels)) for images in (start, noise)]
        assert losses[1] > losses[0] + 2
        assert (model(noise).argmax(1) == 0).double().mean() < 0.1
    calm = error_maximising(model, start, labels, lr=0.1, steps=25, penalty=10.0)
    assert calm.square().sum() < 0.3 * noise.square().sum()


def test_forget_images_are_not_looked_at() -> None:
    blank = replace(VIEW, forget=Split(train=Blank(VIEW.forget.train), eval=Blank(VIEW.forget.eval)))
    found = [model_hash(UNSIR(**SMALL).unlearn(knowing(), view, seed=0)) for view in (VIEW, blank)]
    assert found[0] == found[1]


def test_impair_sees_labelled_noise_and_retain_rows_and_repair_the_same_retain_rows() -> None:
    seen: list[tuple[int, Tensor]] = []
    pictures = {round(float(image.sum()), 9): label for rows in (VIEW.retain.train,) for image, label in _rows(rows)}

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        for image, label in zip(batch["images"], batch["labels"].tolist(), strict=True):
            key = round(float(image.sum()), 9)
            if key in pictures:
                assert pictures[key] == label
            else:
                assert label == 0
            seen.append((label, key))
        return VIEW.loss(model, batch)

    UNSIR(**SMALL, retain_per_class=4, repair_epochs=2).unlearn(knowing(), replace(VIEW, loss=loss), seed=0)
    impair, repair = seen[: 18 + 8], seen[18 + 8 :]
    noise = [key for label, key in impair if label == 0]
    assert len(noise) == 18
    assert all(noise.count(key) == 3 for key in noise)
    kept = sorted(key for label, key in impair if label)
    assert [label for label, _ in impair].count(1) == [label for label, _ in impair].count(2) == 4
    assert sorted(key for _, key in repair) == sorted([*kept, *kept])


def _rows(rows: Data) -> list[tuple[Tensor, int]]:
    batch = rows.batch(range(len(rows)))
    return list(zip(batch["images"], batch["labels"].tolist(), strict=True))


def test_the_rates_of_the_two_phases(monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    true = unsir.fit

    def noted(model: nn.Module, loss: Any, steps: Any, recipe: Any, **options: Any) -> Any:
        rates.append(recipe.lr)
        return true(model, loss, steps, recipe, **options)

    monkeypatch.setattr(unsir, "fit", noted)
    UNSIR(**SMALL).unlearn(knowing(), VIEW, seed=0)
    assert rates == [0.02, 0.01]


def test_a_digit_is_forgotten_and_the_others_are_not() -> None:
    scenario = Digits(request="class3", epochs=10)
    (model,) = scenario.train([scenario.plan("original")], [0])
    assert accuracy(model, scenario.split("forget")) > 0.95
    found = UNSIR(noise_copies=2).unlearn(model, method_view(scenario), seed=0)
    assert accuracy(found, scenario.split("forget")) < 0.1
    assert accuracy(found, scenario.split("retain")) > 0.95


def test_it_serves_requests_for_classes_alone() -> None:
    def scenario(kind: str, modality: str = "vision") -> Any:
        task = "classify" if modality == "vision" else "generate"
        return SimpleNamespace(modality=modality, task=task, asked=lambda: SimpleNamespace(kind=kind))

    assert UNSIR().supports(scenario("class")) is None
    assert UNSIR().supports(scenario("instances")) == "serves requests for classes, not for instances"
    assert UNSIR().supports(scenario("instances", "language")) == "works on vision, not on language"
