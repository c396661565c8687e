"""UNSIR, boundary shrink and DUCK by the authors' codes, reproduced from our pure functions and, where the rule is the same, our plugins.

What those codes do differently is put together here: boundary shrink rounds its images and may keep the true class, DUCK looks up another
batch's centroid from the second epoch on and takes a centroid's place for its class. Numbers and sizes are read from the files.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from vision_conformance import Vision, assert_agrees, in_stored_order, parameters_of

from unlearnbench.api import Batch, Split
from unlearnbench.layers import penultimate
from unlearnbench.methods.boundary import BoundaryShrink, uphill
from unlearnbench.methods.duck import DUCK, centroids, cosine_distances, nearest_other
from unlearnbench.methods.unsir import error_maximising, noise_loss
from unlearnbench.training import Recipe, fit

MOVED_BY_ROUNDING = ("conv1.bias", "conv2.bias", "bn1.running_mean", "bn2.running_mean")
"""Biases before batch-norm have no gradient but rounding, which Adam blows up; running means follow them."""


# --------------------------------------------------------------------------------------------------------------------- unsir


def test_unsir_noise(vision: Vision) -> None:
    entry, numbers, net = vision.entry("unsir"), vision.numbers("unsir"), vision.net()
    start = torch.from_numpy(entry["noise_init"])
    labels = torch.full((len(start),), numbers["forget_class"])

    def after(steps: int) -> Tensor:
        return error_maximising(net, start, labels, lr=0.1, steps=steps, penalty=0.1)

    stored = {int(name.rpartition("_")[2]): entry[name] for name in entry if name.startswith("noise_after_")}
    assert stored
    for steps, noise in stored.items():
        torch.testing.assert_close(after(steps), torch.from_numpy(noise), atol=5e-5, rtol=0)
    (key,) = (name for name in numbers if name.startswith("printed_losses_epochs_"))
    with torch.no_grad():
        for steps, loss in zip(re.findall(r"\d+", key), numbers[key], strict=True):
            noise = after(int(steps)) if int(steps) else start
            assert noise_loss(net, noise, labels, 0.1).item() == pytest.approx(loss, rel=2e-5)


# ----------------------------------------------------------------------------------------------------------- boundary shrink


def test_boundary_shrink(vision: Vision) -> None:
    entry, net, view = vision.entry("boundary_shrink"), vision.net(), vision.view()
    batch = view.forget.train.batch(range(len(view.forget.train)))
    shifted = (255 * uphill(net, view, batch, 0.1).clamp(0, 1)).round() / 255
    torch.testing.assert_close(shifted, torch.from_numpy(entry["x_adv"]), atol=1e-6, rtol=0)
    with torch.no_grad():
        labels = net(shifted).argmax(1)
    assert torch.equal(labels, torch.from_numpy(entry["labels"]))
    assert int((labels != batch["labels"]).sum()) == vision.numbers("boundary_shrink")["num_changed"]
    size = 32
    steps = [{name: tensor[rows] for name, tensor in {**batch, "labels": labels}.items()} for rows in torch.arange(len(labels)).split(size)]
    method = BoundaryShrink(lr=0.01, epochs=1, batch_size=size, batch_norm="train")
    trained = method.descend(net, view, lambda model, batch: view.loss(model, batch).mean(), lambda _: steps, n=len(labels), seed=0)
    assert_agrees(trained, parameters_of(entry, "theta_1epoch"), atol=1e-5)


# ---------------------------------------------------------------------------------------------------------------------- duck


def features_of(net: nn.Module, batches: Sequence[Batch]) -> Tensor:
    with torch.no_grad(), penultimate(net) as seen:
        return torch.cat([(net(batch["images"]), seen[0])[1] for batch in batches])


def means_of(vision: Vision, batches: Sequence[Batch]) -> Tensor:
    return centroids(features_of(vision.net(), batches), torch.cat([batch["labels"] for batch in batches]))[1]


def published_duck(net: nn.Module, forget: Sequence[Batch], retain: Sequence[Batch], means: Tensor, epochs: int) -> nn.Module:
    """DUCK's first phase with its list of choices: one entry for each step of the first epoch, looked up by the forget batch's number.

    A centroid's place is taken for its class, whatever classes are left.
    """
    choices: list[Tensor] = []
    places = torch.arange(len(means))

    def loss(model: nn.Module, step: tuple[int, int, Batch, Batch]) -> Tensor:
        epoch, number, ours, others = step
        with penultimate(model) as seen:
            model(ours["images"])
        distances = cosine_distances(seen[0], means)
        if epoch == 0:
            choices.append(nearest_other(distances, places, ours["labels"]))
        chosen = choices[-1] if epoch == 0 else choices[number]
        drawn = distances.gather(1, chosen[:, None]).mean()
        return drawn + 1.4 * cross_entropy(model(others["images"]) / 2, others["labels"])

    steps = [(epoch, number, ours, others) for epoch in range(epochs) for number, ours in enumerate(forget) for others in retain]
    recipe = Recipe(epochs=1, batch_size=64, lr=4e-4, optimizer="adam", weight_decay=5e-4, batch_norm="train")
    fit(net, loss, lambda _: steps, recipe, seed=0, total_steps=len(steps), weigh=lambda step: 1)
    return net.eval()


def test_duck_centroids_and_first_distances(vision: Vision) -> None:
    entry, net, retain = vision.entry("duck"), vision.net(), vision.batches("retain", 64)
    means = means_of(vision, retain)
    torch.testing.assert_close(means, torch.from_numpy(entry["centroids"]), atol=1e-5, rtol=0)
    first = features_of(net.train(), vision.batches("forget", len(vision.labels("forget"))))
    torch.testing.assert_close(first, torch.from_numpy(entry["first_features"]), atol=1e-5, rtol=0)
    torch.testing.assert_close(cosine_distances(first, means), torch.from_numpy(entry["first_cosine_distances"]), atol=1e-5, rtol=0)


def test_duck_homogeneous_removal_with_the_published_list_of_choices(vision: Vision) -> None:
    keys = {name.split("/")[0] for name in vision.entry("duck") if name.startswith("theta_hr_")}
    assert keys
    for key in keys:
        epochs, count = map(int, re.findall(r"(\d+)(?:epochs?|batch)", key))
        retain = vision.batches("retain", 64)
        forget = vision.batches("forget", len(vision.labels("forget")) // count)
        net = published_duck(vision.net(), forget, retain, means_of(vision, retain), epochs)
        assert_agrees(net, parameters_of(vision.entry("duck"), key), atol=1e-5, leave_out=MOVED_BY_ROUNDING)


def test_duck_class_removal_with_places_taken_for_classes(vision: Vision) -> None:
    entry = vision.entry("duck")
    (key,) = {name.split("/")[0] for name in entry if re.match(r"theta_cr\d+_1epoch/", name)}
    gone = int(re.findall(r"\d+", key)[0])
    rows = vision.rows("train")
    ours, others = (torch.nonzero((rows.labels == gone) == side).flatten() for side in (True, False))
    forget, retain = [rows.batch(ours)], [rows.batch(index) for index in others.split(64)]
    means = means_of(vision, retain)
    torch.testing.assert_close(means, torch.from_numpy(entry[f"centroids_without_class{gone}"]), atol=1e-5, rtol=0)
    first = cosine_distances(features_of(vision.net().train(), forget), means)
    torch.testing.assert_close(first, torch.from_numpy(entry[f"first_cosine_distances_class{gone}"]), atol=1e-5, rtol=0)
    net = published_duck(vision.net(), forget, retain, means, 1)
    assert_agrees(net, parameters_of(entry, key), atol=1e-5, leave_out=MOVED_BY_ROUNDING)


def test_the_plugin_is_the_published_method_where_that_has_no_fault(vision: Vision, monkeypatch: pytest.MonkeyPatch) -> None:
    in_stored_order(monkeypatch)
    size = len(vision.labels("forget"))
    view, steps = vision.view(), len(vision.batches("retain", size))
    method = DUCK(epochs=1, batch_size=size, retain_batches=steps, settle_epochs=0, batch_norm="train")
    net = method.unlearn(vision.net(), replace(view, retain=Split(train=view.retain.train, eval=view.retain.train)), seed=0)
    assert_agrees(net, parameters_of(vision.entry("duck"), "theta_hr_1epoch_1batch"), atol=1e-5, leave_out=MOVED_BY_ROUNDING)
