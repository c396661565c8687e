"""Last-layer kernels against autograd, and against what a step of gradient descent really does."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from unlearnbench.attribution.kernels import classification_errors, cosines, last_layer_kernel


@pytest.fixture
def case() -> tuple[nn.Linear, Tensor, Tensor]:
    """A head, features of 7 examples, and their labels."""
    generator = torch.Generator().manual_seed(0)
    head = nn.Linear(5, 4).double()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    features = torch.randn(7, 5, generator=generator, dtype=torch.float64)
    return head, features, torch.tensor([0, 3, 1, 2, 2, 0, 1])


def gradient(head: nn.Linear, features: Tensor, label: Tensor) -> Tensor:
    loss = cross_entropy(head(features)[None], label[None])
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(head.parameters()))])


def test_errors_are_gradients_in_the_logits(case: tuple[nn.Linear, Tensor, Tensor]) -> None:
    head, features, labels = case
    logits = head(features).detach().requires_grad_()
    cross_entropy(logits, labels, reduction="sum").backward()
    torch.testing.assert_close(classification_errors(logits.detach(), labels), logits.grad)


def test_kernel_is_the_inner_product_of_autograd_gradients(case: tuple[nn.Linear, Tensor, Tensor]) -> None:
    head, features, labels = case
    gradients = torch.stack([gradient(head, row, label) for row, label in zip(features, labels, strict=True)])
    kernel = last_layer_kernel(features, classification_errors(head(features).detach(), labels))
    torch.testing.assert_close(kernel, gradients @ gradients.T)
    assert kernel.min() < 0 < kernel.max()


def test_a_step_on_one_example_lowers_the_loss_of_another_by_the_kernel(case: tuple[nn.Linear, Tensor, Tensor]) -> None:
    head, features, labels = case
    kernel = last_layer_kernel(features, classification_errors(head(features).detach(), labels))
    before = cross_entropy(head(features), labels, reduction="none")
    lr = 1e-6
    grads = torch.autograd.grad(cross_entropy(head(features[2:3]), labels[2:3]), list(head.parameters()))
    with torch.no_grad():
        for parameter, grad in zip(head.parameters(), grads, strict=True):
            parameter -= lr * grad
        after = cross_entropy(head(features), labels, reduction="none")
    torch.testing.assert_close((before - after) / lr, kernel[2], rtol=1e-3, atol=1e-4)


def test_half_precision_is_computed_in_double() -> None:
    features = torch.tensor([[300.0, 300.0]], dtype=torch.float16)
    assert last_layer_kernel(features, torch.tensor([[1.0]])).tolist() == [[180001.0]]  # 180,000 is no float16


def test_cosines_are_those_of_the_vectors() -> None:
    vectors = np.random.default_rng(0).normal(size=(4, 3))
    expected = np.array([[a @ b / np.linalg.norm(a) / np.linalg.norm(b) for b in vectors] for a in vectors])
    np.testing.assert_allclose(cosines(torch.tensor(vectors @ vectors.T)).numpy(), expected, rtol=1e-12)


def test_other_numbers_of_examples_are_refused() -> None:
    with pytest.raises(ValueError, match="features of 3 and errors of 2 examples"):
        last_layer_kernel(torch.zeros(3, 2), torch.zeros(2, 2))
