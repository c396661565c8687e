"""The nets of the digits scenario learn, generalise, and memorise wrong labels; nothing of that holds without training."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unlearnbench.ensembles import train_ensemble
from unlearnbench.scenarios.digits_nets import (
    CONVNET_RECIPE,
    CONVNET_WIDTH,
    MLP_RECIPE,
    MLP_WIDTH,
    convnet,
    images,
    mlp,
)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """A worker's thread policy; more threads only slow these sizes down."""
    found = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(found)


def accuracy(model: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        return float((model.eval()(inputs).argmax(1) == labels).double().mean())


def test_images_are_standardised() -> None:
    inputs, labels = images()
    assert inputs.shape == (1797, 1, 8, 8)
    assert inputs.mean().abs() < 1e-3
    assert abs(float(inputs.std()) - 1) < 1e-3
    assert labels.bincount().min() >= 174


@pytest.mark.parametrize(("build", "width", "recipe"), [(mlp, MLP_WIDTH, MLP_RECIPE), (convnet, CONVNET_WIDTH, CONVNET_RECIPE)])
def test_wrong_labels_are_memorised_and_gone_from_the_oracle(build: Any, width: int, recipe: Any) -> None:
    inputs, labels = images()
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(1797, generator=generator)
    wrong, train, test = order[:112], order[:1400], order[1400:]
    mistaken = labels.clone()
    mistaken[wrong] = (labels[wrong] + torch.randint(1, 10, (112,), generator=generator)) % 10
    members = torch.zeros(2, 1797, dtype=torch.bool)
    members[0, train] = members[1, train[112:]] = True
    original, oracle = train_ensemble(lambda seed: build(width, seed), inputs, mistaken, members, [0, 0], recipe, batched=True, chunk=2)
    assert accuracy(original, inputs[wrong], mistaken[wrong]) >= 0.97
    assert accuracy(oracle, inputs[wrong], mistaken[wrong]) <= 0.02
    assert accuracy(oracle, inputs[wrong], labels[wrong]) >= 0.93
    assert accuracy(oracle, inputs[test], labels[test]) >= 0.95


@pytest.mark.parametrize("build", [mlp, convnet])
def test_weights_come_from_the_seed_and_logits_from_the_features(build: Any) -> None:
    state = torch.get_rng_state()
    model = build(4, 0).eval()
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(1)
    assert torch.equal(model.head.weight, build(4, 0).head.weight)
    assert not torch.equal(model.head.weight, build(4, 1).head.weight)
    inputs = images()[0][:3]
    torch.testing.assert_close(model.head(model.features(inputs)), model(inputs))
    assert model.features(inputs).dim() == 2
