"""Losses against numpy, hand-computed cases and transformers; a wrong shift, sign or mask fails here."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from unlearnbench.losses import answer_lengths, example_nll, npo, sequence_logprob, token_nll


def drawn(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Logits [3, 6, 5] and labels whose scored parts start at different places; one row has a hole, one scores position 0."""
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(3, 6, 5, generator=generator, dtype=torch.float64)).to(dtype)
    labels = torch.randint(0, 5, (3, 6), generator=generator)
    labels[0, :3] = -100
    labels[1, [0, 3, 5]] = -100
    return logits, labels


def by_numpy(logits: Tensor, labels: Tensor) -> list[list[float]]:
    """Per row, the negative log-likelihood of each scored token, from the definition with loops."""
    x, y = logits.double().numpy(), labels.numpy()
    rows = []
    for b in range(len(y)):
        row = []
        for t in range(1, y.shape[1]):
            if y[b, t] != -100:
                p = np.exp(x[b, t - 1]) / np.exp(x[b, t - 1]).sum()
                row.append(-math.log(p[y[b, t]]))
        rows.append(row)
    return rows


def test_token_nll_equals_the_definition_and_is_zero_where_masked() -> None:
    logits, labels = drawn()
    values = token_nll(logits, labels)
    assert values.shape == (3, 5)
    scored = labels[:, 1:] != -100
    np.testing.assert_allclose(values[scored].numpy(), np.concatenate(by_numpy(logits, labels)), rtol=1e-12)
    assert (values[~scored] == 0).all()


def test_mean_and_sum_equal_the_definition() -> None:
    logits, labels = drawn()
    rows = by_numpy(logits, labels)
    assert answer_lengths(labels).tolist() == [len(row) for row in rows] == [3, 3, 5]
    np.testing.assert_allclose(example_nll(logits, labels).numpy(), [np.mean(row) for row in rows], rtol=1e-12)
    np.testing.assert_allclose(sequence_logprob(logits, labels).numpy(), [-np.sum(row) for row in rows], rtol=1e-12)


def test_logits_that_foretell_the_next_token_cost_nothing() -> None:
    labels = torch.tensor([[4, 2, 0, 3]])
    foretelling = 100.0 * functional.one_hot(torch.tensor([[2, 0, 3, 1]]), 5).float()
    unshifted = 100.0 * functional.one_hot(labels, 5).float()
    assert example_nll(foretelling, labels).item() == 0
    assert example_nll(unshifted, labels).item() == pytest.approx(100)


def test_a_model_of_transformers_agrees() -> None:
    config = LlamaConfig(vocab_size=11, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    model = LlamaForCausalLM(config).double()
    ids = torch.randint(0, 11, (1, 7), generator=torch.Generator().manual_seed(3))
    labels = ids.clone()
    labels[:, :3] = -100
    with torch.no_grad():
        out = model(input_ids=ids, labels=labels)
    # transformers takes its own loss in float32.
    torch.testing.assert_close(example_nll(out.logits, labels)[0].float(), out.loss.float(), rtol=1e-6, atol=0)


def test_padding_and_what_stands_in_it_change_nothing() -> None:
    logits, labels = drawn()
    wider = torch.cat([logits, 1e4 * torch.ones(3, 2, 5, dtype=logits.dtype)], 1)
    padded = torch.cat([labels, torch.full((3, 2), -100)], 1)
    assert torch.equal(example_nll(wider, padded), example_nll(logits, labels))
    assert torch.equal(sequence_logprob(wider, padded), sequence_logprob(logits, labels))


def test_low_precision_is_upcast_before_the_softmax() -> None:
    logits, labels = drawn(torch.bfloat16)
    values = token_nll(logits, labels)
    assert values.dtype == torch.float32
    assert token_nll(logits.double(), labels).dtype == torch.float64
    # The bf16 inputs are exact in float64, so all that is left is float32's own rounding.
    torch.testing.assert_close(values.double(), token_nll(logits.double(), labels), rtol=1e-5, atol=1e-6)


def test_gradient_reaches_only_the_positions_before_scored_tokens() -> None:
    logits, labels = drawn()
    logits.requires_grad_(True)
    example_nll(logits, labels).sum().backward()
    assert logits.grad is not None
    reached = logits.grad.abs().sum(-1) > 0
    assert torch.equal(reached[:, :-1], labels[:, 1:] != -100)
    assert not reached[:, -1].any()


def test_a_row_without_a_scored_token_is_an_error() -> None:
    logits, labels = drawn()
    labels[1, 1:] = -100
    with pytest.raises(ValueError, match=r"rows \[1\] of the batch have no scored token"):
        example_nll(logits, labels)


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


@pytest.mark.parametrize("beta", [0.0, -1.0, math.nan])
def test_npo_wants_a_positive_beta(beta: float) -> None:
    with pytest.raises(ValueError, match="allowed: above 0"):
        npo(torch.zeros(1), torch.zeros(1), beta)
