"""Boundary shrink and expand: nearest wrong classes, and a class that is there during training alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from trained_vision import VIEW, accuracy, knowing

from unlearnbench.api import Batch
from unlearnbench.layers import model_hash
from unlearnbench.methods.boundary import BoundaryExpand, BoundaryShrink, likeliest_wrong, uphill


def test_a_step_uphill_follows_the_sign_of_a_numeric_gradient() -> None:
    model, batch, size = knowing(), VIEW.forget.train.batch(range(3)), 1e-5
    before = model_hash(model)
    moved = (uphill(model, VIEW, batch, 0.25) - batch["images"]).flatten(1)
    assert model_hash(model) == before
    assert all(parameter.grad is None for parameter in model.parameters())
    with torch.no_grad():
        for place in range(16):
            shift = torch.zeros(16, dtype=torch.float64)
            shift[place] = size
            images = [batch["images"] + sign * shift.view(1, 1, 4, 4) for sign in (1, -1)]
            up, down = (VIEW.loss(model, {**batch, "images": image}) for image in images)
            torch.testing.assert_close(moved[:, place], 0.25 * (up - down).sign())


def test_the_nearest_class_is_never_the_true_one() -> None:
    logits = torch.randn(500, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(500) % 4
    found = likeliest_wrong(logits, labels)
    assert (found != labels).all()
    for row in range(500):
        others = [k for k in range(4) if k != labels[row]]
        assert found[row] == max(others, key=lambda k: float(logits[row, k]))


class Diagonal(nn.Module):
    """Three classes on the line, by the mean pixel: class 0 below -1, class 2 above 1; the rest of a net is not needed."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(1, 3).double()
        with torch.no_grad():
            self.head.weight.copy_(torch.tensor([[-4.0], [0.0], [4.0]]))
            self.head.bias.copy_(torch.tensor([-4.0, 0.0, -4.0]))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(images.mean((1, 2, 3))[:, None])  # type: ignore[no-any-return]


def test_shrink_trains_on_the_likeliest_wrong_class_a_tenth_of_the_range_uphill() -> None:
    """The loss of class 0 rises with the mean pixel: class 1 is nearest, or class 2 where the step ends above 1."""
    seen: list[Tensor] = []

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        seen.append(batch["labels"])
        return cross_entropy(model(batch["images"]), batch["labels"], reduction="none")

    BoundaryShrink(epochs=1, batch_size=10).unlearn(Diagonal().eval(), replace(VIEW, loss=loss), seed=0)
    images = VIEW.forget.train.batch(range(10))["images"]
    everything = torch.cat([images, VIEW.retain.train.batch(range(20))["images"]])
    low, high = everything.min(), everything.max()
    means = (images + 0.1 * (high - low)).clamp(max=high).mean((1, 2, 3))
    expected = torch.where(means > 1, 2, 1)
    assert set(expected.tolist()) == {1, 2}
    assert torch.equal(seen[0], torch.zeros(10, dtype=torch.int64))
    assert sorted(seen[1].tolist()) == sorted(expected.tolist())


@pytest.mark.parametrize("method", [BoundaryShrink(lr=0.02, epochs=20), BoundaryExpand(lr=0.02, epochs=20)], ids=["shrink", "expand"])
def test_the_class_is_forgotten_on_forget_rows_alone(method: BoundaryShrink | BoundaryExpand) -> None:
    found = method.unlearn(knowing(), VIEW, seed=0)
    assert accuracy(found, VIEW.forget.eval) < 0.2


def test_expand_trains_a_shadow_class_and_cuts_it_off() -> None:
    seen: list[tuple[Tensor, int]] = []

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        seen.append((batch["labels"], model(batch["images"]).shape[1]))
        return VIEW.loss(model, batch)

    found = BoundaryExpand(lr=0.02, epochs=2).unlearn(knowing(), replace(VIEW, loss=loss), seed=0)
    assert all((labels == 3).all() and width == 4 for labels, width in seen)
    assert sum(len(labels) for labels, _ in seen) == 20
    before, after = knowing().state_dict(), found.state_dict()
    assert {name: tensor.shape for name, tensor in before.items()} == {name: tensor.shape for name, tensor in after.items()}
    assert found(VIEW.forget.eval.batch([0])["images"]).shape == (1, 3)
    assert {parameter.dtype for parameter in found.parameters()} == {torch.float64}
    assert all(parameter.requires_grad for parameter in found.parameters())


def test_expand_keeps_the_rows_of_the_classes() -> None:
    """Without a step to speak of, the head is the original's: neither drawn anew nor another class's."""
    found = BoundaryExpand(lr=1e-12, epochs=1).unlearn(knowing(), VIEW, seed=0)
    torch.testing.assert_close(found.head.weight, knowing().head.weight, atol=1e-9, rtol=0)
    torch.testing.assert_close(found.head.bias, knowing().head.bias, atol=1e-9, rtol=0)
