"""The evidence pass over images against plain forward passes, with a model that counts what it is shown."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from unlearnbench.api import Intervention, Need, UserError
from unlearnbench.layers import Inserted, insert, last_linear
from unlearnbench.scenarios.images import ImageData, coarse_pixels, image_evidence, image_loss


class Net(nn.Module):
    """Two convolutional blocks with batch-norm and dropout, a hidden layer and a head; counts the images it is shown."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.blocks = nn.Sequential(
                nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU()),
                nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            )
            self.hidden = nn.Linear(16, 6)
            self.drop = nn.Dropout(0.5)
            self.head = nn.Linear(6, 5)
        self.seen: list[bytes] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen += [image.float().numpy().tobytes() for image in images]
        out: Tensor = self.head(self.features(images))
        return out

    def features(self, images: Tensor) -> Tensor:
        return self.drop(self.hidden(self.blocks(images).flatten(1)).relu())


@pytest.fixture
def splits() -> dict[str, ImageData]:
    """Three splits of ten images; "b" and "c" share four of them."""
    generator = torch.Generator().manual_seed(1)
    images, labels = torch.randn(10, 1, 4, 4, generator=generator), torch.randint(0, 5, (10,), generator=generator)
    everything = ImageData(images, labels, [f"i{n}" for n in range(10)])
    return {"a": everything.take([2, 0, 1]), "b": everything.take([3, 4, 5, 6, 7]), "c": everything.take([7, 6, 5, 4, 9, 8])}


def logits(split: str, intervention: Intervention | None = None) -> Need:
    return Need(what="logits", split=split, intervention=intervention)


def features(split: str, layer: int = -1) -> Need:
    return Need(what="features", split=split, layer=layer)


def test_evidence_is_that_of_plain_forward_passes(splits: dict[str, ImageData]) -> None:
    net = Net().eval()
    needs = frozenset({logits("a"), logits("b"), logits("c"), features("b"), features("c", 0), features("c", 1)})
    evidence = image_evidence(net, splits, needs, batch_size=4)
    with torch.no_grad():
        for name, data in splits.items():
            np.testing.assert_allclose(evidence.array(logits(name)), net(data.images).numpy(), rtol=1e-5, atol=1e-6)
            assert evidence.ids[name] == evidence.clusters[name] == data.ids
            assert evidence.labels[name].tolist() == data.labels.tolist()
        np.testing.assert_allclose(evidence.array(features("b")), net.features(splits["b"].images).numpy(), rtol=1e-5, atol=1e-6)
        first = net.blocks[0](splits["c"].images)
        np.testing.assert_allclose(evidence.array(features("c", 0)), first.mean((2, 3)).numpy(), rtol=1e-5, atol=1e-6)
        second = net.blocks[1](first)
        np.testing.assert_allclose(evidence.array(features("c", 1)), second.mean((2, 3)).numpy(), rtol=1e-5, atol=1e-6)


def test_no_image_is_forwarded_twice(splits: dict[str, ImageData]) -> None:
    net = Net()
    needs = frozenset(need for name in splits for need in (logits(name), features(name), features(name, 0)))
    image_evidence(net, splits, needs, batch_size=3)
    assert len(net.seen) == len(set(net.seen)) == 10


def test_pixels_are_cell_means_of_the_rows_and_take_no_forward_pass(splits: dict[str, ImageData]) -> None:
    net, need = Net(), Need(what="pixels", split="c")
    found = image_evidence(net, splits, frozenset({need, logits("a")})).array(need)
    np.testing.assert_array_equal(found, splits["c"].images.flatten(1))
    assert len(net.seen) == 3
    large = torch.arange(2 * 3 * 16 * 24, dtype=torch.float32).reshape(2, 3, 16, 24)
    cells = large.numpy().reshape(2, 3, 8, 2, 8, 3).mean(axis=(3, 5))
    found = coarse_pixels(ImageData(large, torch.zeros(2, dtype=torch.int64), ["a", "b"]))
    np.testing.assert_allclose(found, cells.reshape(2, -1), rtol=1e-6)
    assert found.dtype == np.float32


def test_splits_that_no_need_names_are_not_forwarded(splits: dict[str, ImageData]) -> None:
    net = Net()
    image_evidence(net, splits, frozenset({features("a")}))
    assert len(net.seen) == 3


@dataclass(frozen=True, kw_only=True)
class Scaled(Intervention):
    """Multiplies the head's output."""

    factor: float

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        handle = model.get_submodule("head").register_forward_hook(lambda module, inputs, output: output * self.factor)
        try:
            yield
        finally:
            handle.remove()


def test_each_intervention_has_its_own_pass_over_its_own_rows(splits: dict[str, ImageData]) -> None:
    net = Net()
    doubled, tripled = Scaled(factor=2.0), Scaled(factor=3.0)
    evidence = image_evidence(net, splits, frozenset({logits("a"), logits("b"), logits("a", doubled), logits("b", tripled)}))
    np.testing.assert_allclose(evidence.array(logits("a", doubled)), 2 * evidence.array(logits("a")), rtol=1e-6)
    np.testing.assert_allclose(evidence.array(logits("b", tripled)), 3 * evidence.array(logits("b")), rtol=1e-6)
    assert len(net.seen) == 8 + 3 + 5


def test_the_model_is_left_as_it_was(splits: dict[str, ImageData]) -> None:
    net = Net().train()
    net.hidden.eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state = torch.get_rng_state()
    first = image_evidence(net, splits, frozenset({logits("a"), features("a"), features("a", 0)}))
    again = image_evidence(net, splits, frozenset({logits("a")}))
    assert np.array_equal(first.array(logits("a")), again.array(logits("a")))  # no dropout
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert net.training
    assert net.blocks[0].training
    assert not net.hidden.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_low_precision_is_upcast(splits: dict[str, ImageData]) -> None:
    net = Net().eval()
    exact = image_evidence(net, splits, frozenset({logits("b")})).array(logits("b"))
    rough = image_evidence(net.bfloat16(), splits, frozenset({logits("b")})).array(logits("b"))
    assert rough.dtype == np.float32
    np.testing.assert_allclose(rough, exact, atol=0.03)
    batch = splits["b"].batch([0, 1])
    batch["images"] = batch["images"].bfloat16()
    assert image_loss(net, batch).dtype == torch.float32


class Steered(Inserted):
    """An inserted module with a linear layer of its own."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__(inner)
        self.gate = nn.Linear(5, 5)

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.gate(self.inner(images))
        return out


def test_the_head_is_found_below_what_methods_put_around_it(splits: dict[str, ImageData]) -> None:
    net = Net().eval()
    head = net.head
    expected = net.features(splits["a"].images).detach().numpy()
    insert(net, "head", Steered(head))
    assert last_linear(net) is head
    adapted = get_peft_model(Net().eval(), LoraConfig(r=2, target_modules=["hidden", "head"])).eval()  # type: ignore[arg-type]
    found = last_linear(adapted)
    assert (found.in_features, found.out_features) == (6, 5)
    for model in (net, adapted):
        evidence = image_evidence(model, splits, frozenset({features("a")}))
        np.testing.assert_allclose(evidence.array(features("a")), expected, rtol=1e-5, atol=1e-6)


def test_rows_and_batches_keep_identity(splits: dict[str, ImageData]) -> None:
    data = splits["c"]
    assert data.within(frozenset({"i9", "i5"})).ids == ("i5", "i9")
    batch = data.batch(torch.tensor([4, 0]))
    assert list(batch) == ["images", "labels"]
    assert torch.equal(batch["images"], data.take([4, 0]).images)
    assert torch.equal(batch["labels"], data.labels[[4, 0]])
    assert len(data.take([])) == 0
    negated = data.rewritten(torch.neg)
    assert torch.equal(negated.images, -data.images)
    assert negated.ids == data.ids


def test_loss_is_the_negative_log_softmax_of_each_row(splits: dict[str, ImageData]) -> None:
    net, data = Net().eval(), splits["b"]
    scores = net(data.images).detach().double().numpy()
    probabilities = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    expected = -np.log(probabilities[np.arange(5), data.labels.numpy()])
    np.testing.assert_allclose(image_loss(net, data.batch(range(5))).detach().numpy(), expected, rtol=1e-5)


def test_mistakes_are_named(splits: dict[str, ImageData]) -> None:
    with pytest.raises(ValueError, match="3 images, 2 labels and 3 ids"):
        ImageData(torch.zeros(3, 1, 2, 2), torch.zeros(2), ["a", "b", "c"])
    with pytest.raises(UserError, match="split 'd' has no rows to score; with rows: a, b, c"):
        image_evidence(Net(), splits, frozenset({logits("d")}))
    with pytest.raises(UserError, match="has no tokens"):
        image_evidence(Net(), splits, frozenset({Need(what="tokens", split="a")}))
    with pytest.raises(UserError, match="no linear layer"):
        image_evidence(nn.Conv2d(1, 2, 3), splits, frozenset({features("a")}))
    with pytest.raises(UserError, match="no block 2"):
        image_evidence(Net(), splits, frozenset({features("a", 2)}))
