"""NPO with SAM: without perturbation it is NPO; with it, a plain loop that moves the weights and puts them back."""

import copy

import pytest
import torch
from torch import nn

from unlearnbench.finetuning import paired
from unlearnbench.layers import model_hash
from unlearnbench.methods.npo import NPO, NPOSAM
from unlearnbench.testing import in_training, tiny_language_model, tiny_language_view

VIEW = in_training(tiny_language_view(), optimizer="sgd", momentum=0.0)
SETTINGS = {"lr": 0.02, "epochs": 2, "batch_size": 3, "beta": 0.4, "forget_weight": 0.7, "retain_weight": 1.5}


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [parameter.detach() for parameter in model.parameters()]


@pytest.mark.parametrize("rank", [None, 2])
def test_without_perturbation_it_is_npo(rank: int | None) -> None:
    plain = NPO(lora_rank=rank, **SETTINGS).unlearn(tiny_language_model(), VIEW, seed=0)  # type: ignore[arg-type]
    still = NPOSAM(rho=0.0, lora_rank=rank, **SETTINGS).unlearn(tiny_language_model(), VIEW, seed=0)  # type: ignore[arg-type]
    torch.testing.assert_close(weights(still), weights(plain), rtol=1e-5, atol=1e-6)  # transformers takes the norms in float32


def test_the_path_equals_a_plain_loop_that_copies_the_model() -> None:
    rho, model = 0.3, tiny_language_model()
    frozen = copy.deepcopy(model)

    def forget(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        counts = (batch["labels"] != -100).sum(1)
        ratio = (VIEW.loss(frozen, batch).detach() - VIEW.loss(model, batch)) * counts
        return (2 / 0.4 * torch.log1p(torch.exp(0.4 * ratio))).mean()

    for epoch in range(2):
        for pair in paired(VIEW.forget.train, VIEW.retain.train, 3, seed=0)(epoch):
            up = torch.autograd.grad(forget(model, pair.forget), list(model.parameters()))
            length = torch.cat([part.flatten() for part in up]).norm()
            away = copy.deepcopy(model)
            with torch.no_grad():
                for weight, part in zip(away.parameters(), up, strict=True):
                    weight += rho * part / length
            sharp = torch.autograd.grad(forget(away, pair.forget), list(away.parameters()))
            plain = torch.autograd.grad(VIEW.loss(model, pair.retain).mean(), list(model.parameters()))
            with torch.no_grad():
                for weight, a, b in zip(model.parameters(), sharp, plain, strict=True):
                    weight -= 0.02 * (0.7 * a + 1.5 * b)
    found = NPOSAM(rho=rho, **SETTINGS).unlearn(tiny_language_model(), VIEW, seed=0)  # type: ignore[arg-type]
    torch.testing.assert_close(weights(found), weights(model), rtol=1e-4, atol=1e-5)
    unperturbed = NPO(**SETTINGS).unlearn(tiny_language_model(), VIEW, seed=0)  # type: ignore[arg-type]
    assert max(float((a - b).abs().max()) for a, b in zip(weights(found), weights(unperturbed), strict=True)) > 1e-3


def test_in_bf16_the_perturbation_acts() -> None:
    view = in_training(VIEW, precision="bf16")
    near, far = (NPOSAM(rho=rho, lr=0.02, epochs=1).unlearn(tiny_language_model().float(), view, seed=0) for rho in (0.0, 3.0))
    assert max(float((a - b).abs().max()) for a, b in zip(weights(near), weights(far), strict=True)) > 1e-3


def test_a_rate_of_0_leaves_the_weights_to_the_bit() -> None:
    assert model_hash(NPOSAM(lr=0.0, rho=0.5).unlearn(tiny_language_model(), VIEW, seed=0)) == model_hash(tiny_language_model())
