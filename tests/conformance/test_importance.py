"""SSD, Fisher forgetting and influence unlearning by the authors' codes, reproduced from our pure functions.

What those codes do differently is put together here: Fisher forgetting finds layers by shape, the recursion of influence unlearning
keeps one vector. Names and sizes are read from the files.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from vision_conformance import Vision, assert_agrees, parameters_of

from unlearnbench.api import Batch
from unlearnbench.mechanisms.importance import (
    dampened,
    fisher_diagonal,
    fisher_variance,
    gradients,
    influence_direction,
    mean_gradient,
    squared_gradient,
)
from unlearnbench.scenarios.images import image_loss


def mean_loss(model: nn.Module, batch: Batch) -> Tensor:
    return cross_entropy(model(batch["images"]), batch["labels"])


def assert_close_to_largest(ours: Mapping[str, Tensor], expected: Mapping[str, Tensor], share: float = 1e-5) -> None:
    """Within a share of the largest entry of all tensors together."""
    largest = max(float(tensor.abs().max()) for tensor in expected.values())
    assert set(ours) == set(expected)
    for name, tensor in expected.items():
        assert float((ours[name] - tensor).abs().max()) <= share * largest, name


def keys(entry: Mapping[str, object], prefix: str) -> list[str]:
    found = sorted({name.split("/")[0] for name in entry if name.startswith(prefix)})
    assert found
    return found


def number(pattern: str, name: str, default: float) -> float:
    found = re.search(pattern + r"([\d.]+)", name)
    return float(found.group(1)) if found else default


# ----------------------------------------------------------------------------------------------------------------------- ssd


def test_ssd_importances_and_dampened_weights(vision: Vision) -> None:
    entry, counts, net = vision.entry("ssd"), vision.numbers("ssd"), vision.net()
    for key in keys(entry, "importance_"):
        split = "train" if "all" in key else "forget"
        ours = squared_gradient(net, mean_loss, vision.batches(split, int(number("batch", key, 64))))
        assert_close_to_largest(ours, parameters_of(entry, key))
    overall = parameters_of(entry, "importance_all")
    for key in keys(entry, "theta_"):
        forget = parameters_of(entry, "importance_forget" + ("_batch16" if "batch16" in key else ""))
        alpha, strength = number("alpha", key, 10), number("lambda", key, 1)
        ours = {
            name: dampened(weight.detach(), forget[name], overall[name], alpha=alpha, strength=strength)
            for name, weight in net.named_parameters()
        }
        assert_agrees(ours, parameters_of(entry, key), atol=5e-5)
        changed = sum(int((ours[name] != weight).sum()) for name, weight in net.named_parameters())
        assert changed == counts[key.replace("theta", "changed")]


# -------------------------------------------------------------------------------------------------------------------- fisher


def by_shape(information: Mapping[str, Tensor], classes: int, *, wide: bool) -> dict[str, Tensor]:
    """Variances as published: the last layer is what has K rows; ten times as large there (`wide`) and for vectors."""
    found = {}
    for name, tensor in information.items():
        head = len(tensor) == classes
        variance = fisher_variance(tensor, alpha=1e-6, largest=1e2 if head else 1e3)
        found[name] = variance * (10 if tensor.dim() == 1 or (wide and head) else 1)
    return found


def test_fisher_information_variance_and_noise(vision: Vision) -> None:
    entry, net, classes = vision.entry("fisher"), vision.net(), vision.classes
    theta, eps = {name: weight.detach() for name, weight in net.named_parameters()}, parameters_of(entry, "eps")
    information = fisher_diagonal(net, vision.batches("retain", 32))
    assert_close_to_largest(information, parameters_of(entry, "new_grad2"))
    variance = by_shape(parameters_of(entry, "new_grad2"), classes, wide=True)
    assert_close_to_largest(variance, parameters_of(entry, "new_var"))
    ours = {name: theta[name] + variance[name].sqrt() * eps[name] for name in theta}
    assert_agrees(ours, parameters_of(entry, "new_theta"), atol=1e-5)

    means, variances = parameters_of(entry, "new_classwise_mu"), parameters_of(entry, "new_classwise_var")
    gone = int((means["fc.weight"] == 0).all(1).nonzero())
    for name in means:
        weight = theta[name].clone()
        weight[gone], variance[name][gone] = 0, 1e-4 * 10
        torch.testing.assert_close(means[name], weight, atol=0, rtol=0)
    assert_close_to_largest({name: variance[name] for name in variances}, variances)


def test_fisher_information_of_single_rows(vision: Vision) -> None:
    entry = vision.entry("fisher")
    (key,) = keys(entry, "ssdrepo_grad2")
    rows = vision.rows("retain").take(range(int(number("retain", key, 0))))
    information = fisher_diagonal(vision.net(), (rows.batch([row]) for row in range(len(rows))))
    assert_close_to_largest(information, parameters_of(entry, key))
    variance = by_shape(parameters_of(entry, key), vision.classes, wide=False)
    assert_close_to_largest(variance, parameters_of(entry, key.replace("grad2", "var")))


def test_the_older_fisher_forgetting(vision: Vision) -> None:
    entry, net = vision.entry("fisher"), vision.net()
    information = squared_gradient(net, mean_loss, vision.batches("retain", 1))
    assert_close_to_largest(information, parameters_of(entry, "old_information"))
    eps, stored, ours = parameters_of(entry, "eps"), parameters_of(entry, "old_information"), {}
    for name, weight in net.named_parameters():
        deviation = (1e-9 / stored[name]).sqrt().clamp(max=1e-3) * (10 if weight.shape[-1] == vision.classes else 1)
        ours[name] = weight.detach() + deviation * eps[name]
    assert_agrees(ours, parameters_of(entry, "old_theta"), atol=1e-5)


# ----------------------------------------------------------------------------------------------------------------- influence


def published_recursion(vector: Tensor, rows: Iterator[Tensor], damping: float = 1000.0, most: int = 1002) -> Tensor:
    """One vector stands for the inverse: it begins as the first row's gradient, which corrects nothing, and is only scaled after."""
    product, kept = vector, next(rows)
    for _, row in zip(range(most - 1), rows, strict=False):
        along = kept @ row
        product = product - (product @ row) / (damping + along) * kept
        kept = kept - along / (damping + along) * kept
    return product


def test_influence_unlearning_with_the_published_recursion(vision: Vision) -> None:
    entry = vision.entry("influence")
    for key in keys(entry, "theta_"):
        net = vision.net({"theta_conv": "original"}.get(key, key.removeprefix("theta_")))
        means = [
            torch.cat([part.flatten() for part in mean_gradient(net, image_loss, vision.batches(split, 64)).values()])
            for split in ("forget", "retain")
        ]
        direction = influence_direction(*means, len(vision.labels("forget")), len(vision.labels("retain")))
        singles = gradients(net, mean_loss, vision.batches("retain", 1))
        step = 5 * published_recursion(direction, (torch.cat([part.flatten() for part in found.values()]) for found in singles))
        weights = dict(net.named_parameters())
        parts = step.split([weight.numel() for weight in weights.values()])
        ours = {name: (weight + part.view_as(weight)).detach() for (name, weight), part in zip(weights.items(), parts, strict=True)}
        assert_agrees(ours, parameters_of(entry, key), atol=1e-5)
