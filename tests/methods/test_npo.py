"""NPO: its path against a plain loop with a frozen copy, and its limits."""

import copy
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch.nn import functional

from unlearnbench.api import Batch
from unlearnbench.finetuning import paired
from unlearnbench.methods.npo import NPO
from unlearnbench.testing import in_training, tiny_language_model, tiny_language_view

VIEW = in_training(tiny_language_view(), optimizer="sgd", momentum=0.0)


def answer_logprob(model: nn.Module, batch: Batch) -> Tensor:
    """Sum of the answers' log-probabilities [B], one row and token at a time."""
    logs = functional.log_softmax(model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.double(), -1)
    rows = []
    for row, labels in zip(logs, batch["labels"], strict=True):
        rows.append(torch.stack([row[t - 1, labels[t]] for t in range(1, len(labels)) if labels[t] != -100]).sum())
    return torch.stack(rows)


def plain(method: NPO, lr: float, *, ascent: bool = False) -> list[Tensor]:
    """The weights a plain loop arrives at; `ascent` descends the mean log-probability in place of NPO."""
    model = tiny_language_model()
    frozen = copy.deepcopy(model)
    steps = paired(VIEW.forget.train, VIEW.retain.train, method.batch_size, seed=0)
    for epoch in range(method.epochs):
        for pair in steps(epoch):
            logprob = answer_logprob(model, pair.forget)
            ratio = logprob - answer_logprob(frozen, pair.forget).detach()
            forget = logprob if ascent else 2 / method.beta * torch.log1p(torch.exp(method.beta * ratio))
            loss = method.forget_weight * forget.mean() + method.retain_weight * VIEW.loss(model, pair.retain).mean()
            gradients = torch.autograd.grad(loss, list(model.parameters()))
            with torch.no_grad():
                for weight, gradient in zip(model.parameters(), gradients, strict=True):
                    weight -= lr * gradient
    return [weight.detach() for weight in model.parameters()]


def unlearned(method: NPO) -> list[Tensor]:
    return [weight.detach() for weight in method.unlearn(tiny_language_model(), VIEW, seed=0).parameters()]


def test_the_path_equals_a_plain_loop_with_a_frozen_copy() -> None:
    method = NPO(lr=0.02, epochs=3, batch_size=3, beta=0.4, forget_weight=0.7, retain_weight=1.5)
    torch.testing.assert_close(unlearned(method), plain(method, 0.02), rtol=1e-8, atol=1e-10)


def test_the_first_step_is_gradient_ascent_whatever_beta() -> None:
    for beta in (0.05, 3.0):
        method = NPO(lr=0.01, epochs=1, batch_size=4, beta=beta, retain_weight=0.0)
        torch.testing.assert_close(unlearned(method), plain(method, 0.01, ascent=True), rtol=1e-8, atol=1e-10)


def test_later_steps_are_gradient_ascent_only_as_beta_vanishes() -> None:
    tiny = NPO(lr=0.02, epochs=3, batch_size=4, beta=1e-7, retain_weight=0.0)
    torch.testing.assert_close(unlearned(tiny), plain(tiny, 0.02, ascent=True), rtol=1e-5, atol=1e-7)
    large = NPO(lr=0.02, epochs=3, batch_size=4, beta=1.0, retain_weight=0.0)
    distance = max(float((a - b).abs().max()) for a, b in zip(unlearned(large), plain(large, 0.02, ascent=True), strict=True))
    assert distance > 1e-3


def test_vision_is_not_applicable_with_a_reason() -> None:
    assert NPO().supports(SimpleNamespace(modality="vision", task="classify")) == "works on language, not on vision"  # type: ignore[arg-type]
    assert NPO().supports(SimpleNamespace(modality="language", task="generate")) is None  # type: ignore[arg-type]
