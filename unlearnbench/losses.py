"""Loss functions of language models and of unlearning, as pure functions of logits, labels and log-probabilities.

Knows tensors only. Two conventions hold everywhere: labels are those of the input, and the shift by one position (the logits at t
predict the token at t + 1) happens here; label -100 marks what is not scored. Logits are upcast to float32 (float64 stays) at the
scored positions alone, before any softmax. All values are in nats.
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
    targets = labels[:, 1:]
    scored = targets != IGNORE_INDEX
    found = logits[:, :-1][scored]
    found = found if found.dtype == torch.float64 else found.float()
    values = functional.cross_entropy(found, targets[scored], reduction="none")
    return values.new_zeros(targets.shape).masked_scatter(scored, values)


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
    lengths = answer_lengths(labels)
    if bool((lengths == 0).any()):
        raise ValueError(f"rows {torch.nonzero(lengths == 0).flatten().tolist()} of the batch have no scored token; allowed: 1 or more")
    return token_nll(logits, labels).sum(1) / lengths


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


def npo(logprob: Tensor, reference: Tensor, beta: float) -> Tensor:
    """Negative preference optimisation, Zhang et al. 2024, arXiv:2404.05868, eq. 3: -(2 / beta) log sigmoid(-beta (log pi - log pi_ref)).

    Never below 0; its gradient is that of `logprob` times 2 sigmoid(beta (log pi - log pi_ref)): at the reference exactly gradient
    ascent's, less and less as the answer becomes unlikely.

    Args:
        logprob: log-probability of each forget sequence under the model [B].
        reference: the same under the model before unlearning [B].
        beta: above 0; towards 0 this becomes gradient ascent (up to a constant).

    Returns:
        [B].

    Raises:
        ValueError: beta is not above 0.

    >>> npo(torch.tensor([-3.0, -9.0]), torch.tensor([-3.0, -3.0]), beta=0.5)
    tensor([2.7726, 0.1943])
    """
    if not beta > 0:
        raise ValueError(f"beta is {beta}; allowed: above 0")
    return -(2 / beta) * functional.logsigmoid(-beta * (logprob - reference))
