"""DUCK: forget rows go to the nearest wrong centroid, keep it, and training stops when they look unseen."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import ceil
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy
from trained_vision import VIEW, accuracy, knowing

from unlearnbench.api import MethodView, Split
from unlearnbench.finetuning import Joined
from unlearnbench.methods import duck
from unlearnbench.methods.duck import DUCK, centroids, cosine_distances, nearest_other


def features(model: nn.Module, images: Tensor) -> Tensor:
    return model.blocks(images).relu()  # type: ignore[no-any-return, operator]


def test_centroids_distances_and_choices_by_numpy() -> None:
    rng = np.random.default_rng(0)
    rows, labels = rng.normal(size=(40, 6)), rng.choice([1, 4, 5], size=40)
    classes, means = centroids(torch.from_numpy(rows), torch.from_numpy(labels))
    assert classes.tolist() == [1, 4, 5]
    expected = np.stack([rows[labels == label].mean(0) for label in (1, 4, 5)])
    np.testing.assert_allclose(means, expected)
    found = cosine_distances(torch.from_numpy(rows), means)
    cosines = rows @ expected.T / np.linalg.norm(rows, axis=1)[:, None] / np.linalg.norm(expected, axis=1)
    np.testing.assert_allclose(found, 1 - cosines)
    own = np.arange(40) % 6
    chosen = nearest_other(found, classes, torch.from_numpy(own))
    for row in range(40):
        allowed = [place for place, label in enumerate((1, 4, 5)) if label != own[row]]
        assert chosen[row] == max(allowed, key=lambda place: cosines[row, place])


def both(view: MethodView) -> MethodView:
    """Instances: forget rows of all classes, so that true classes have centroids."""
    rows = Joined(view.forget.train, view.retain.train)
    forget, retain = rows.take(range(0, 30, 3)), rows.take([row for row in range(30) if row % 3])
    return replace(view, kind="instances", forget=Split(train=forget, eval=forget), retain=Split(train=retain, eval=retain))


def test_three_epochs_by_a_plain_loop_where_rows_keep_their_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    """In stored order, two forget batches: a row's choice is that of its last step of the first epoch, found by its number."""

    def stored(n: int, batch_size: int, *, seed: int, epoch: int) -> Iterator[Tensor]:
        order = torch.arange(n).roll(3 * epoch if seed else 0)
        yield from order.split(batch_size)

    def endless(n: int, batch_size: int, *, seed: int, skip: int = 0) -> Iterator[Tensor]:
        cycle = list(torch.arange(n).split(batch_size))
        while True:
            yield cycle[skip % len(cycle)]
            skip += 1

    monkeypatch.setattr(duck, "batches", stored)
    monkeypatch.setattr(duck, "endless", endless)
    view = both(VIEW)
    # Validation rows that the model gets wrong, so that training does not stop.
    wrong = replace(view, validation=VIEW.validation)
    method = DUCK(epochs=3, batch_size=6, retain_batches=2, lr=0.01, settle_epochs=1, settle_lr=1e-3)
    monkeypatch.setattr(duck._Read, "accuracy", lambda read: float(len(read.labels)))
    found = method.unlearn(knowing(), replace(wrong, validation=view.validation), seed=0)

    model = knowing()
    forget, retain = (rows.batch(range(len(rows))) for rows in (view.forget.train, view.retain.train))
    with torch.no_grad():
        means = torch.stack([features(model, retain["images"][retain["labels"] == label]).mean(0) for label in range(3)])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=5e-4)
    kept: dict[int, int] = {}
    step = 0
    for epoch in range(4):
        for row in optimizer.param_groups:
            row["lr"] = 0.01 if epoch < 3 else 1e-3
        for rows in torch.arange(10).roll(3 * epoch).split(6):
            for _ in range(2):
                images = features(model, forget["images"][rows])
                cosines = torch.stack([cosine_similarity(images, mean[None]) for mean in means], 1)
                for place, row in enumerate(rows.tolist()):
                    if epoch == 0:
                        others = [k for k in range(3) if k != forget["labels"][row]]
                        kept[row] = max(others, key=lambda k: float(cosines[place, k].detach()))
                drawn = 1 - torch.stack([cosines[place, kept[row]] for place, row in enumerate(rows.tolist())])
                part = retain["images"].split(6)[step % ceil(20 / 6)], retain["labels"].split(6)[step % ceil(20 / 6)]
                loss = (1.0 if epoch < 3 else 0.1) * drawn.mean() + 1.4 * cross_entropy(model(part[0]) / 2, part[1])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                step += 1
    for name, weight in model.named_parameters():
        torch.testing.assert_close(found.get_parameter(name), weight, atol=1e-8, rtol=1e-6)


def epochs_of(method: DUCK, view: MethodView, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The rates of the passes that the method makes."""
    rates: list[float] = []
    true = duck.fit

    def noted(model: nn.Module, loss: Any, steps: Any, recipe: Any, **options: Any) -> Any:
        rates.append(recipe.lr)
        return true(model, loss, steps, recipe, **options)

    monkeypatch.setattr(duck, "fit", noted)
    method.unlearn(knowing(), view, seed=0)
    return rates


def test_instances_stop_at_the_originals_validation_accuracy(monkeypatch: pytest.MonkeyPatch) -> None:
    """All training rows are known, so with known validation rows the goal is 1 from the start; one pass is always made."""
    known = replace(both(VIEW), validation=VIEW.retain.eval)
    assert epochs_of(DUCK(epochs=7), known, monkeypatch) == [4e-4, 1e-4, 1e-4]
    assert epochs_of(DUCK(epochs=7, lr=1e-6, settle_epochs=0), replace(known, kind="class"), monkeypatch) == [1e-6] * 7


def test_a_class_is_forgotten_and_lies_with_others() -> None:
    found = DUCK(lr=5e-3, batch_size=10).unlearn(knowing(), VIEW, seed=0)
    assert accuracy(found, VIEW.forget.eval) <= 0.2
    assert accuracy(found, VIEW.retain.eval) == 1
    retain, forget = VIEW.retain.train.batch(range(20)), VIEW.forget.train.batch(range(10))["images"]
    with torch.no_grad():
        means = centroids(features(knowing(), retain["images"]), retain["labels"])[1]
        near = [cosine_distances(features(model, forget), means).amin(1).mean() for model in (knowing(), found)]
    assert near[1] < 0.5 * near[0]
