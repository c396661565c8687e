"""Losses against numpy, hand-computed cases and transformers; a wrong shift, sign or mask fails here."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from unlearnbench.losses import answer_lengths, answer_mean, example_nll, sequence_logprob, token_nll


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


def test_a_mean_of_tokens_is_that_of_the_scored_ones() -> None:
    logits, labels = drawn()
    np.testing.assert_allclose(
        answer_mean(token_nll(logits, labels) ** 2, labels).numpy(),
        [np.mean(np.square(row)) for row in by_numpy(logits, labels)],
        rtol=1e-12,
    )
    with pytest.raises(ValueError, match=r"rows \[0\] of the batch have no scored token"):
        answer_mean(torch.zeros(1, 2), torch.full((1, 3), -100))


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
