"""What methods that work on hidden states compute: targets, distances and hinges, as pure functions of activations and log-probabilities.

Knows tensors only. Activations are [B, T, D]; a mask [B, T] says which positions count. Differences, norms and softmaxes are taken in
float32 at least.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def at_depth(share: float, n_blocks: int) -> int:
    """The block at a share of the depth, so that a default found on one model has a meaning on another.

    Args:
        share: 0 to 1; a paper's block number divided by its model's number of blocks.
        n_blocks: of the model at hand, at least 1.

    >>> [at_depth(7 / 32, n) for n in (2, 16, 32)]
    [0, 3, 7]
    """
    return min(int(share * n_blocks), n_blocks - 1)


def control_vector(width: int, length: float, *, seed: int) -> Tensor:
    """A random direction with entries above 0, scaled: RMU's c * u, Li et al. 2024, arXiv:2403.03218.

    Args:
        width: of the activations.
        length: Euclidean norm of the result.
        seed: draws the entries, uniform between 0 and 1 before scaling.

    Returns:
        float64 [width], on the CPU.

    >>> round(float(control_vector(8, 2.0, seed=0).norm()), 6)
    2.0
    """
    drawn = torch.rand(width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    scaled: Tensor = drawn * (length / torch.linalg.vector_norm(drawn))
    return scaled


def squared_distance(hidden: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """RMU's distance of each row: the mean over its masked positions of the mean over the width of (hidden - target)^2.

    Args:
        hidden: [B, T, D].
        target: [B, T, D], or [D] for the same target everywhere.
        mask: bool [B, T].

    Returns:
        [B].

    Raises:
        ValueError: a row has no masked position.

    >>> squared_distance(torch.tensor([[[1.0, 3.0], [9.0, 9.0]]]), torch.tensor([1.0, 1.0]), torch.tensor([[True, False]]))
    tensor([2.])
    """
    return _mean((_wide(hidden) - _wide(target)).square().mean(-1), mask)


def drift(hidden: Tensor, reference: Tensor, mask: Tensor) -> Tensor:
    """Circuit breakers' retain distance of each row: the mean over its masked positions of the Euclidean norm |hidden - reference|.

    Shapes and errors as in `squared_distance`. Where the two are equal, value and gradient are 0.

    >>> drift(torch.tensor([[[3.0, 4.0]]]), torch.zeros(1, 1, 2), torch.tensor([[True]]))
    tensor([5.])
    """
    return _mean(torch.linalg.vector_norm(_wide(hidden) - _wide(reference), dim=-1), mask)


def cosine_hinge(hidden: Tensor, reference: Tensor, mask: Tensor) -> Tensor:
    """Circuit breakers' forget term of each row: the mean over its masked positions of max(0, cos(hidden, reference)).

    Zou et al. 2024, arXiv:2406.04313. Shapes and errors as in `squared_distance`. At hidden = reference the value is 1, the largest,
    and the gradient therefore 0.

    >>> cosine_hinge(torch.tensor([[[1.0, 0.0], [2.0, 2.0]]]), torch.tensor([[[-1.0, 0.0], [0.0, 1.0]]]), torch.tensor([[True, True]]))
    tensor([0.3536])
    """
    return _mean(functional.cosine_similarity(_wide(hidden), _wide(reference), dim=-1).clamp(min=0), mask)


def guided(logits: Tensor, expert: Tensor, novice: Tensor, strength: Tensor | float) -> Tensor:
    """Log-probabilities turned away from what an expert would say: log p - strength (log p_expert - log p_novice), not normalised.

    Gandikota et al. 2024, arXiv:2410.02760.

    Args:
        logits: of the frozen model [..., V].
        expert: of the same model, told that an expert writes [..., V].
        novice: told that a novice writes [..., V].
        strength: one for all or one for each position [...].

    Returns:
        [..., V].
    """
    plain, better, worse = (functional.log_softmax(_wide(part), -1) for part in (logits, expert, novice))
    return plain - torch.as_tensor(strength, dtype=plain.dtype, device=plain.device)[..., None] * (better - worse)


def erasing_target(logits: Tensor, expert: Tensor, novice: Tensor, strength: Tensor | float, *, top_k: int, temperature: float) -> Tensor:
    """ELM's target distribution: softmax of `guided` over its `top_k` largest entries, all logits divided by the temperature before.

    Args:
        logits: see `guided`, as are `expert`, `novice` and `strength`.
        expert: [..., V].
        novice: [..., V].
        strength: at 0 the target is the frozen model's own distribution, truncated.
        top_k: entries that keep probability; all when V is smaller.
        temperature: above 0.

    Returns:
        [..., V], each distribution sums to 1.

    >>> frozen, expert = torch.tensor([4.0, 2.0, 1.0]).log(), torch.tensor([8.0, 1.0, 1.0]).log()
    >>> erasing_target(frozen, expert, torch.zeros(3), 1.0, top_k=2, temperature=1.0)  # 4/8, 2/1 and 1/1, the two largest
    tensor([0.0000, 0.6667, 0.3333])
    """
    scores = guided(_wide(logits) / temperature, _wide(expert) / temperature, _wide(novice) / temperature, strength)
    kept, places = scores.topk(min(top_k, scores.shape[-1]), dim=-1)
    return torch.zeros_like(scores).scatter(-1, places, kept.softmax(-1))


def _wide(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of each row's masked values; what is not masked, NaN too, has no influence."""
    counts = mask.sum(1)
    if bool((counts == 0).any()):
        raise ValueError(f"rows {torch.nonzero(counts == 0).flatten().tolist()} of the batch have no masked position; allowed: 1 or more")
    return values.masked_fill(~mask, 0).sum(1) / counts
