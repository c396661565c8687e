"""Losses of unlearning methods against numpy, hand-computed cases and the properties that their papers claim."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.special import expit, log_softmax, rel_entr, softmax
from torch import Tensor

from unlearnbench.losses import answer_lengths, example_nll, token_nll
from unlearnbench.unlearning_losses import ceu, dpo, dual_step, kl, logit_margin, npo, satimp, simnpo, skip_first, softened_kl, undial, wga

TokenLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
# Reference logits, logits, labels -> values of tokens.
OF_TOKENS: dict[str, TokenLoss] = {
    "kl": kl,
    "undial": lambda reference, logits, labels: undial(reference, logits, labels, beta=3.0),
    "ceu": lambda reference, logits, labels: ceu(logits, labels),
    "ceu_skip": lambda reference, logits, labels: ceu(logits, skip_first(labels, 1)),
    "wga": lambda reference, logits, labels: wga(token_nll(logits, labels), beta=1.5),
    "satimp": lambda reference, logits, labels: satimp(token_nll(logits, labels), beta1=0.5, beta2=2.0),
    "logit_margin": lambda reference, logits, labels: logit_margin(logits, labels),
}
of_tokens = pytest.mark.parametrize("loss", OF_TOKENS.values(), ids=OF_TOKENS)


def drawn(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Reference logits and logits [3, 6, 5], and labels of uneven length; one row has a hole, one scores position 0."""
    generator = torch.Generator().manual_seed(0)
    reference, logits = (2 * torch.randn(2, 3, 6, 5, generator=generator, dtype=torch.float64)).to(dtype)
    labels = torch.randint(0, 5, (3, 6), generator=generator)
    labels[0, :3] = -100
    labels[1, [0, 3, 5]] = -100
    return reference, logits, labels


def by_numpy(name: str, z: np.ndarray, y: int, z_ref: np.ndarray) -> float:
    """One token's loss from the definition."""
    p, onehot = softmax(z), np.eye(len(z))[y]
    match name:
        case "kl":
            return float(rel_entr(softmax(z_ref), p).sum())
        case "undial":
            return float(-(softmax(z_ref - 3.0 * onehot) * log_softmax(z)).sum())
        case "ceu" | "ceu_skip":
            others = np.delete(np.arange(len(z)), y)
            return float(-(p[others] / p[others].sum() * np.log(p[others])).sum())
        case "wga":
            return float(p[y] ** 1.5 * np.log(p[y]))
        case "satimp":
            return float(p[y] ** 0.5 * (1 - p[y]) ** 2 * np.log(p[y]))
        case "logit_margin":
            return float((z.max() - z.mean()) ** 2)
    raise AssertionError(name)


@pytest.mark.parametrize("name", OF_TOKENS)
def test_values_of_tokens_equal_the_definition(name: str) -> None:
    reference, logits, labels = drawn()
    found = OF_TOKENS[name](reference, logits, labels)
    expected = torch.zeros(3, 5, dtype=torch.float64)
    for b in range(3):
        places = [t for t in range(1, 6) if labels[b, t] != -100]
        for t in places[1:] if name == "ceu_skip" else places:
            expected[b, t - 1] = by_numpy(name, logits[b, t - 1].numpy(), int(labels[b, t]), reference[b, t - 1].numpy())
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)


@of_tokens
def test_padding_and_what_stands_in_it_change_nothing(loss: TokenLoss) -> None:
    reference, logits, labels = drawn()
    noise = 1e4 * torch.ones(3, 2, 5, dtype=torch.float64)
    wider = loss(torch.cat([reference, -noise], 1), torch.cat([logits, noise], 1), torch.cat([labels, torch.full((3, 2), -100)], 1))
    assert torch.equal(wider[:, :5], loss(reference, logits, labels))
    assert (wider[:, 5:] == 0).all()


@of_tokens
def test_low_precision_is_upcast(loss: TokenLoss) -> None:
    reference, logits, labels = drawn(torch.bfloat16)
    values = loss(reference, logits, labels)
    assert values.dtype == torch.float32
    torch.testing.assert_close(values.double(), loss(reference.double(), logits.double(), labels), rtol=2e-5, atol=2e-6)


@of_tokens
def test_gradient_reaches_the_model_before_scored_tokens_and_nothing_else(loss: TokenLoss) -> None:
    reference, logits, labels = drawn()
    reference.requires_grad_(True)
    logits.requires_grad_(True)
    values = loss(reference, logits, labels)
    values.sum().backward()
    assert reference.grad is None
    assert logits.grad is not None
    reached = logits.grad.abs().sum(-1) > 0
    assert torch.equal(reached[:, :-1], values != 0)
    assert not reached[:, -1].any()


def slopes(values: Tensor, logits: Tensor) -> Tensor:
    return torch.autograd.grad(values.sum(), logits)[0]


def test_undial_without_lowering_holds_the_reference() -> None:
    reference, _, labels = drawn()
    logits = reference.clone().requires_grad_(True)
    assert slopes(undial(reference, logits, labels, beta=0.0), logits).abs().max() < 1e-14
    lowering = slopes(undial(reference, logits, labels, beta=3.0), logits)
    for b, t in (labels[:, 1:] != -100).nonzero().tolist():
        assert lowering[b, t, labels[b, t + 1]] > 1e-5


def test_ceu_pushes_down_the_scored_token_and_nothing_below_its_share() -> None:
    _, logits, labels = drawn()
    logits.requires_grad_(True)
    found, p = slopes(ceu(logits, labels), logits), logits.detach().softmax(-1)
    for b, t in (labels[:, 1:] != -100).nonzero().tolist():
        y = labels[b, t + 1]
        expected = p[b, t] - p[b, t] / (1 - p[b, t, y])
        expected[y] = p[b, t, y]  # the slope of the scored token's logit is its probability: above 0
        torch.testing.assert_close(found[b, t], expected, rtol=1e-10, atol=1e-14)


def test_skipping_counts_scored_tokens_of_each_row() -> None:
    labels = torch.tensor([[7, -100, 4, -100, 5, 6], [-100, -100, -100, -100, -100, 8]])
    assert skip_first(labels, 0).tolist() == [[-100, -100, 4, -100, 5, 6], [-100, -100, -100, -100, -100, 8]]
    assert skip_first(labels, 2).tolist() == [[-100, -100, -100, -100, -100, 6], [-100] * 6]
    assert labels[0, 0] == 7, "the labels that were given are left alone"


@pytest.mark.parametrize("loss", [lambda nll: wga(nll, 0.0), lambda nll: satimp(nll, 0.0, 0.0)], ids=["wga", "satimp"])
def test_without_weights_it_is_gradient_ascent(loss: Callable[[Tensor], Tensor]) -> None:
    _, logits, labels = drawn()
    logits.requires_grad_(True)
    nll = token_nll(logits, labels)
    assert torch.equal(loss(nll), -nll)
    torch.testing.assert_close(slopes(loss(nll), logits), slopes(-token_nll(logits, labels), logits), rtol=1e-14, atol=0)


def test_weights_are_constants_to_the_gradient() -> None:
    nll = torch.tensor([0.1, 1.0, 4.0], dtype=torch.float64, requires_grad=True)
    p = torch.exp(-nll.detach())
    torch.testing.assert_close(slopes(wga(nll, 2.0), nll), -(p**2))
    torch.testing.assert_close(slopes(satimp(nll, 3.0, 2.0), nll), -(p**3) * (1 - p) ** 2)


def test_satimp_is_finite_where_a_token_is_certain() -> None:
    nll = torch.tensor([0.0, 1e-9, 200.0], requires_grad=True)
    for beta2 in (0.0, 0.5, 1.0):
        assert torch.isfinite(satimp(nll, 5.0, beta2)).all()
        assert torch.isfinite(slopes(satimp(nll, 5.0, beta2), nll)).all()


def test_constant_logits_have_no_margin() -> None:
    _, logits, labels = drawn()
    assert (logit_margin(torch.full_like(logits, 7.5), labels) == 0).all()
    assert (logit_margin(logits, labels)[labels[:, 1:] != -100] > 0).all()
    torch.testing.assert_close(logit_margin(logits + 100, labels), logit_margin(logits, labels), rtol=1e-10, atol=1e-12)


def test_kl_is_zero_at_the_reference_alone() -> None:
    reference, logits, labels = drawn()
    assert (kl(reference, reference + 3.0, labels).abs() < 1e-14).all()
    assert (kl(reference, logits, labels)[labels[:, 1:] != -100] > 0.01).all()
    at_reference = reference.clone().requires_grad_(True)
    assert slopes(kl(reference, at_reference, labels), at_reference).abs().max() < 1e-14


def test_the_multiplier_is_never_negative_and_rises_only_above_the_limit() -> None:
    assert dual_step(0.0, -0.5, 5.0) == 0.0
    assert dual_step(3.0, 0.0, 5.0) == 3.0
    assert dual_step(3.0, 0.1, 5.0) == 3.5
    assert dual_step(3.0, -0.1, 5.0) == 2.5
    assert dual_step(3.0, -9.0, 5.0) == 0.0


@pytest.mark.parametrize(("beta", "delta"), [(4.5, 0.0), (3.5, 1.0)])
def test_simnpo_equals_the_paper_in_numpy(beta: float, delta: float) -> None:
    nll = np.array([0.0, 0.3, 2.0, 9.0])
    expected = 2 / beta * np.log1p(np.exp(-beta * (nll - delta)))
    np.testing.assert_allclose(simnpo(torch.tensor(nll), beta, delta).numpy(), expected, rtol=1e-10)


def test_simnpo_does_not_see_how_long_an_answer_is() -> None:
    _, logits, labels = drawn()
    logits, labels = logits[2:], labels[2:]
    # Each position twice: the same tokens with the same losses.
    doubled = torch.cat([logits[:, :-1].repeat_interleave(2, 1), logits[:, -1:]], 1)
    twice = torch.cat([labels[:, :1], labels[:, 1:].repeat_interleave(2, 1)], 1)
    assert answer_lengths(twice) == 2 * answer_lengths(labels)
    once, again = (simnpo(example_nll(*rows), 4.5, 0.5) for rows in ((logits, labels), (doubled, twice)))
    torch.testing.assert_close(once, again, rtol=1e-12, atol=0)
    sums = [npo(-token_nll(*rows).sum(1), torch.full((1,), -3.0), 0.1) for rows in ((logits, labels), (doubled, twice))]
    assert abs(float(sums[0] - sums[1])) > 0.1, "a sum of tokens does see it"


@pytest.mark.parametrize("beta", [0.1, 2.0])
def test_dpo_equals_the_paper_in_numpy(beta: float) -> None:
    win, lose = np.array([0.0, 3.0, -4.0]), np.array([0.0, -2.0, 5.0])
    expected = -2 / beta * np.log(expit(beta * (win - lose)))
    np.testing.assert_allclose(dpo(torch.tensor(win), torch.tensor(lose), beta).numpy(), expected, rtol=1e-10)


def test_dpo_raises_the_preferred_and_lowers_the_other() -> None:
    win, lose = (torch.tensor([value], dtype=torch.float64, requires_grad=True) for value in (0.5, -0.5))
    up, down = torch.autograd.grad(dpo(win, lose, 0.3).sum(), [win, lose])
    assert up == -down == -2 * expit(-0.3)
    # A preference without a preferred answer is NPO.
    torch.testing.assert_close(dpo(torch.zeros(1), torch.tensor([-0.7]), 0.3), npo(torch.tensor([-3.7]), torch.tensor([-3.0]), 0.3))


@pytest.mark.parametrize("beta", [0.0, -1.0, math.nan])
def test_a_preference_wants_a_positive_beta(beta: float) -> None:
    for loss in (lambda: npo(torch.zeros(1), torch.zeros(1), beta), lambda: dpo(torch.zeros(1), torch.zeros(1), beta)):
        with pytest.raises(ValueError, match="allowed: above 0"):
            loss()
    with pytest.raises(ValueError, match="allowed: above 0"):
        simnpo(torch.zeros(1), beta, 0.0)


@pytest.mark.parametrize("beta", [0.05, 0.1, 2.0])
def test_npo_equals_the_paper_in_numpy(beta: float) -> None:
    logprob, reference = np.array([-3.0, -9.0, -1.0, -4.5]), np.array([-3.0, -3.0, -5.0, -4.0])
    # Eq. 3 of the paper: (2 / beta) E log(1 + (pi / pi_ref)^beta).
    expected = 2 / beta * np.log1p((np.exp(logprob) / np.exp(reference)) ** beta)
    np.testing.assert_allclose(npo(torch.tensor(logprob), torch.tensor(reference), beta).numpy(), expected, rtol=1e-12)


def test_npo_is_stable_where_the_ratio_overflows() -> None:
    far = npo(torch.tensor([0.0, -1e5]), torch.tensor([-1e5, 0.0]), beta=0.1)
    torch.testing.assert_close(far, torch.tensor([2e5, 0.0]))


def test_npo_at_the_reference_is_gradient_ascent() -> None:
    logprob = torch.tensor([-3.0, -9.0], dtype=torch.float64, requires_grad=True)
    loss = npo(logprob, logprob.detach(), beta=0.7)
    torch.testing.assert_close(loss, torch.full((2,), 2 / 0.7 * math.log(2), dtype=torch.float64))
    loss.sum().backward()
    assert logprob.grad is not None
    # Gradient ascent minimises the log-probability itself: gradient 1 for each row.
    torch.testing.assert_close(logprob.grad, torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize(("beta", "within"), [(1e-2, 0.1), (1e-4, 1e-3)])
def test_npo_tends_to_gradient_ascent_as_beta_falls(beta: float, within: float) -> None:
    logprob = torch.tensor([-20.0, -5.0], dtype=torch.float64, requires_grad=True)
    npo(logprob, torch.tensor([-3.0, -8.0], dtype=torch.float64), beta).sum().backward()
    assert logprob.grad is not None
    assert (logprob.grad - 1).abs().max() < within
    assert (logprob.grad != 1).all()


def test_npo_lets_go_of_what_is_forgotten() -> None:
    logprob = torch.tensor([-60.0], dtype=torch.float64, requires_grad=True)
    npo(logprob, torch.tensor([-3.0], dtype=torch.float64), beta=0.1).backward()
    assert logprob.grad is not None
    assert logprob.grad.item() == pytest.approx(2 / (1 + math.exp(5.7)))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_softened_kl_by_scipy(temperature: float) -> None:
    rng = np.random.default_rng(0)
    reference, logits = rng.normal(scale=3, size=(2, 7, 4))
    wanted, found = softmax(reference / temperature, axis=1), softmax(logits / temperature, axis=1)
    given = torch.tensor(reference, requires_grad=True)
    ours = softened_kl(given, torch.tensor(logits, requires_grad=True), temperature)
    np.testing.assert_allclose(ours.detach(), rel_entr(wanted, found).sum(1), rtol=1e-10)
    assert ours.dtype == torch.float64
    ours.sum().backward()
    assert given.grad is None
    assert softened_kl(given.bfloat16(), torch.tensor(logits).bfloat16(), temperature).dtype == torch.float32


def test_softened_kl_wants_a_temperature() -> None:
    with pytest.raises(ValueError, match=r"temperature is 0\.0; allowed: above 0"):
        softened_kl(torch.zeros(1, 2), torch.zeros(1, 2), 0.0)
