"""Likelihoods of a language model as pure functions of logits and labels; how values at its tokens are laid out and averaged.

Knows tensors only; what unlearning methods minimise is in `unlearning_losses`. Two conventions hold everywhere: labels are those of the
input, and the shift by one position (the logits at t predict the token at t + 1) happens here; label -100 marks what is not scored.
Logits are upcast to float32 (float64 stays) at the scored positions alone, before any softmax. All values are in nats.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

IGNORE_INDEX = -100
"""Label of a position that is not scored."""


def answer_lengths(labels: Tensor) -> Tensor:
    """The number of scored tokens of each row.

    Args:
        labels: int64 [B, T]. The first position has nothing before it and is never scored.

    Returns:
        int64 [B].

    >>> answer_lengths(torch.tensor([[-100, 3, 1], [2, -100, 1]]))
    tensor([2, 1])
    """
    return (labels[:, 1:] != IGNORE_INDEX).sum(1)


def at_scored(logits: Tensor, labels: Tensor) -> Tensor:
    """The logits that foretell the scored tokens, row after row, upcast to float32 (float64 stays).

    Args:
        logits: [B, T, V].
        labels: int64 [B, T].

    Returns:
        [N, V], N the number of scored tokens of the batch.

    >>> at_scored(torch.arange(6.0).reshape(1, 3, 2), torch.tensor([[-100, -100, 1]]))
    tensor([[2., 3.]])
    """
    found = logits[:, :-1][labels[:, 1:] != IGNORE_INDEX]
    return found if found.dtype == torch.float64 else found.float()


def scored_targets(labels: Tensor) -> Tensor:
    """The scored tokens themselves, in the order of `at_scored`: int64 [N] out of labels [B, T].

    >>> scored_targets(torch.tensor([[-100, 3, 1], [2, -100, 1]]))
    tensor([3, 1, 1])
    """
    targets = labels[:, 1:]
    return targets[targets != IGNORE_INDEX]


def per_token(values: Tensor, labels: Tensor) -> Tensor:
    """Values [N] of the scored tokens, in the order of `at_scored`, as [B, T - 1] with 0 where the label is -100.

    >>> per_token(torch.tensor([5.0, 7.0]), torch.tensor([[-100, 3, 1], [-100, -100, -100]]))
    tensor([[5., 7.],
            [0., 0.]])
    """
    scored = labels[:, 1:] != IGNORE_INDEX
    return values.new_zeros(scored.shape).masked_scatter(scored, values)


def token_nll(logits: Tensor, labels: Tensor) -> Tensor:
    """Negative log-likelihood of each scored token: -log softmax(logits[b, t])[labels[b, t + 1]].

    Args:
        logits: [B, T, V].
        labels: int64 [B, T].

    Returns:
        float32 or float64 [B, T - 1], 0 where the label is -100.

    >>> token_nll(torch.zeros(1, 3, 4), torch.tensor([[-100, -100, 1]]))
    tensor([[0.0000, 1.3863]])
    """
    found = at_scored(logits, labels)
    return per_token(functional.cross_entropy(found, scored_targets(labels), reduction="none"), labels)


def answer_mean(values: Tensor, labels: Tensor) -> Tensor:
    """Mean over the scored tokens of each row.

    Args:
        values: one for each token, 0 where the label is -100 [B, T - 1].
        labels: int64 [B, T].

    Returns:
        [B].

    Raises:
        ValueError: a row has no scored token.

    >>> answer_mean(torch.tensor([[0.0, 3.0, 1.0]]), torch.tensor([[-100, -100, 1, 2]]))
    tensor([2.])
    """
    lengths = answer_lengths(labels)
    if bool((lengths == 0).any()):
        raise ValueError(f"rows {torch.nonzero(lengths == 0).flatten().tolist()} of the batch have no scored token; allowed: 1 or more")
    return values.sum(1) / lengths


def example_nll(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean negative log-likelihood per scored token of each row.

    Args:
        logits: [B, T, V].
        labels: int64 [B, T].

    Returns:
        float32 or float64 [B].

    Raises:
        ValueError: a row has no scored token.

    >>> example_nll(torch.zeros(1, 4, 4), torch.tensor([[-100, -100, 1, 2]]))
    tensor([1.3863])
    """
    return answer_mean(token_nll(logits, labels), labels)


def sequence_logprob(logits: Tensor, labels: Tensor) -> Tensor:
    """Log-probability of the scored tokens of each row: their sum, not their mean.

    Args:
        logits: [B, T, V].
        labels: int64 [B, T].

    Returns:
        float32 or float64 [B].

    >>> sequence_logprob(torch.zeros(1, 4, 4), torch.tensor([[-100, -100, 1, 2]]))
    tensor([-2.7726])
    """
    return -token_nll(logits, labels).sum(1)
