"""SAM's perturbation and gradient on a quadratic and on a model; the weights come back to the bit."""

import pytest
import torch
from torch import nn

from unlearnbench.mechanisms.sharpness import perturbation, sharp, shifted


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_perturbation_has_the_asked_length_and_the_gradients_direction() -> None:
    gradients = [draw(3, 2, seed=1), draw(4, seed=2)]
    parts = perturbation(gradients, rho=0.01)
    flat, up = (torch.cat([part.flatten() for part in group]) for group in (parts, gradients))
    assert float(flat.norm()) == pytest.approx(0.01, rel=1e-12)
    torch.testing.assert_close(flat, 0.01 * up / up.norm())
    assert [part.shape for part in parts] == [part.shape for part in gradients]


def test_a_gradient_of_0_moves_nothing() -> None:
    assert torch.equal(perturbation([torch.zeros(3)], rho=1.0)[0], torch.zeros(3))


@pytest.mark.parametrize("rho", [0.0, 1e-3, 2.0])
def test_on_a_quadratic_the_gradient_is_that_of_the_shifted_point(rho: float) -> None:
    a, theta = draw(5, 3, seed=3), nn.Parameter(draw(3, seed=4))
    found = sharp(lambda: 0.5 * (a @ theta).square().sum(), [theta], rho)
    here = a.T @ a @ theta.detach()
    there = a.T @ a @ (theta.detach() + rho * here / here.norm())
    torch.testing.assert_close(found.detach(), 0.5 * (a @ theta).square().sum().detach())
    torch.testing.assert_close(torch.autograd.grad(found, theta)[0], there, rtol=1e-12, atol=0)


def test_the_term_can_be_weighted_and_added_to_others() -> None:
    theta = nn.Parameter(draw(3, seed=4))
    alone = torch.autograd.grad(sharp(lambda: theta.pow(4).sum(), [theta], 0.1), theta)[0]
    other = 2 * theta.detach()
    total = 0.3 * sharp(lambda: theta.pow(4).sum(), [theta], 0.1) + theta.square().sum()
    torch.testing.assert_close(torch.autograd.grad(total, theta)[0], 0.3 * alone + other)


def test_weights_come_back_to_the_bit_also_after_an_error() -> None:
    model = nn.Linear(7, 5)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    inputs, seen = torch.randn(4, 7, generator=torch.Generator().manual_seed(0)), []

    def loss() -> torch.Tensor:
        seen.append(model.weight.detach().clone())
        return model(inputs).tanh().sum()

    sharp(loss, list(model.parameters()), 0.37)
    assert not torch.equal(*seen)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))

    def broken() -> None:
        with shifted(list(model.parameters()), [torch.ones_like(p) / 3 for p in model.parameters()]):
            assert not torch.equal(model.weight, before[0])
            raise RuntimeError

    with pytest.raises(RuntimeError):
        broken()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))


def test_an_unused_parameter_is_left_alone() -> None:
    used, unused = nn.Parameter(draw(2, seed=0)), nn.Parameter(draw(2, seed=1))
    found = sharp(lambda: used.square().sum(), [used, unused], 0.5)
    assert torch.equal(torch.autograd.grad(found, unused)[0], torch.zeros(2, dtype=torch.float64))


def test_under_autocast_the_shifted_weights_are_used_and_then_the_first_again() -> None:
    weight, inputs = nn.Parameter(draw(4, 4, seed=0).float()), draw(2, 4, seed=1).float()
    seen: list[torch.Tensor] = []

    def loss() -> torch.Tensor:
        seen.append(inputs @ weight)
        return seen[-1].float().square().sum()

    with torch.autocast("cpu", torch.bfloat16):
        sharp(loss, [weight], rho=1.0)
        after = inputs @ weight
    assert seen[0].dtype == torch.bfloat16
    assert float((seen[1] - seen[0]).abs().max().detach()) > 0.1
    assert torch.equal(after, seen[0])


def test_the_gradient_of_several_parameters_is_each_ones_own() -> None:
    a, b = nn.Parameter(draw(3, seed=6)), nn.Parameter(draw(2, 2, seed=7))
    found = torch.autograd.grad(sharp(lambda: a.pow(4).sum() + b.pow(4).sum(), [a, b], 0.2), [a, b])
    here = [4 * part.detach() ** 3 for part in (a, b)]
    length = torch.cat([part.flatten() for part in here]).norm()
    expected = [4 * (part.detach() + 0.2 * up / length) ** 3 for part, up in zip((a, b), here, strict=True)]
    torch.testing.assert_close(list(found), expected, rtol=1e-12, atol=0)


def test_a_short_gradient_is_stretched_too() -> None:
    (part,) = perturbation([torch.tensor([3e-9, 4e-9], dtype=torch.float64)], rho=0.5)
    torch.testing.assert_close(part, torch.tensor([0.3, 0.4], dtype=torch.float64))


def test_offsets_must_be_as_many_as_the_parameters() -> None:
    parameter = nn.Parameter(torch.ones(2))
    for offsets in ([], [torch.ones(2), torch.ones(2)]):
        with pytest.raises(ValueError, match="zip"), shifted([parameter], offsets):
            pass
