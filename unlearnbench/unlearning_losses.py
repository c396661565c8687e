"""The loss functions of unlearning methods, as pure functions of logits, labels and log-probabilities.

Knows tensors only, with the conventions of `losses`: labels are those of the input, -100 marks what is not scored, logits are upcast at
the scored positions alone, values are in nats. A loss of whole answers gives one value a row [B], a loss of tokens [B, T - 1] with 0
where nothing is scored (`losses.answer_mean` makes rows of it). All are to be minimised. Weights and targets that a formula takes from
the model itself are constants to the gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from unlearnbench.losses import IGNORE_INDEX, at_scored, per_token, scored_targets

# ---------------------------------------------------------------------------------------------------------- of whole answers


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
    return _preference(reference - logprob, beta)


def simnpo(mean_nll: Tensor, beta: float, delta: float) -> Tensor:
    """Simple NPO, Fan et al. 2024, arXiv:2410.07163: -(2 / beta) log sigmoid(beta (nll - delta)), without a reference model.

    Args:
        mean_nll: mean negative log-likelihood per token of each forget answer [B].
        beta: above 0.
        delta: margin in nats per token: an answer is let go of once its loss is well above this.

    Returns:
        [B].

    Raises:
        ValueError: beta is not above 0.

    >>> simnpo(torch.tensor([0.0, 2.0]), beta=4.5, delta=0.0)
    tensor([3.0807e-01, 5.4845e-05])
    """
    return _preference(mean_nll - delta, beta)


def dpo(win_logratio: Tensor, lose_logratio: Tensor, beta: float) -> Tensor:
    """Direct preference optimisation, Rafailov et al. 2023, arXiv:2305.18290, times 2 / beta so that it compares with `npo`.

    -(2 / beta) log sigmoid(beta (win - lose)), each ratio being log pi - log pi_ref of a whole answer.

    Args:
        win_logratio: of the preferred answers [B].
        lose_logratio: of the answers to forget [B].
        beta: above 0.

    Returns:
        [B].

    Raises:
        ValueError: beta is not above 0.

    >>> dpo(torch.tensor([0.0, 3.0]), torch.tensor([0.0, -6.0]), beta=0.5)
    tensor([2.7726, 0.0442])
    """
    return _preference(win_logratio - lose_logratio, beta)


def _preference(margin: Tensor, beta: float) -> Tensor:
    """-(2 / beta) log sigmoid(beta margin): its slope is -1 at margin 0 and falls to 0 as the margin grows."""
    if not beta > 0:
        raise ValueError(f"beta is {beta}; allowed: above 0")
    return -(2 / beta) * functional.logsigmoid(beta * margin)


# ----------------------------------------------------------------------------------------------------------------- of tokens


def kl(reference: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    """Kullback-Leibler divergence from the reference to the model at each scored token: sum_v p_ref (log p_ref - log p).

    Args:
        reference: logits of the reference [B, T, V]; no gradient reaches them.
        logits: logits of the model [B, T, V].
        labels: int64 [B, T]; they only say which positions count.

    Returns:
        [B, T - 1], never below 0 but for rounding.

    >>> kl(torch.zeros(1, 2, 2), torch.tensor([[[0.0, 1.0], [0.0, 0.0]]]), torch.tensor([[-100, 0]]))
    tensor([[0.1201]])
    """
    wanted = at_scored(reference.detach(), labels).log_softmax(-1)
    found = at_scored(logits, labels).log_softmax(-1)
    return per_token(functional.kl_div(found, wanted, reduction="none", log_target=True).sum(-1), labels)


def undial(reference: Tensor, logits: Tensor, labels: Tensor, beta: float) -> Tensor:
    """Self-distillation with adjusted logits, Dong et al. 2024, arXiv:2402.10052: cross-entropy to softmax(z_ref - beta onehot(y)).

    Args:
        reference: logits of the model before unlearning [B, T, V]; no gradient reaches them.
        logits: logits of the model [B, T, V].
        labels: int64 [B, T].
        beta: how far the scored token's logit is lowered in the target; at 0 the target is the reference itself.

    Returns:
        [B, T - 1].

    >>> undial(torch.zeros(1, 2, 2), torch.tensor([[[0.0, 1.0], [0.0, 0.0]]]), torch.tensor([[-100, 0]]), beta=10.0)
    tensor([[0.3133]])
    """
    lowered = at_scored(reference.detach(), labels)
    lowered = lowered - beta * functional.one_hot(scored_targets(labels), lowered.shape[-1])
    return per_token(functional.cross_entropy(at_scored(logits, labels), lowered.softmax(-1), reduction="none"), labels)


def ceu(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy unlearning, Yang 2025, arXiv:2503.01224: cross-entropy to the model's own prediction without the scored token.

    The target is softmax(z) with the scored token's logit at minus infinity, a constant to the gradient.

    Args:
        logits: [B, T, V].
        labels: int64 [B, T]; see `skip_first`.

    Returns:
        [B, T - 1].

    >>> ceu(torch.zeros(1, 2, 2), torch.tensor([[-100, 0]]))
    tensor([[0.6931]])
    """
    found = at_scored(logits, labels)
    others = found.detach().scatter(-1, scored_targets(labels)[:, None], -torch.inf).softmax(-1)
    return per_token(functional.cross_entropy(found, others, reduction="none"), labels)


def skip_first(labels: Tensor, count: int) -> Tensor:
    """Labels [B, T] without the first `count` scored tokens of each row.

    >>> skip_first(torch.tensor([[-100, 3, 1, 2], [-100, -100, -100, 5]]), 1)
    tensor([[-100, -100,    1,    2],
            [-100, -100, -100, -100]])
    """
    scored = labels != IGNORE_INDEX
    scored[:, 0] = False
    return labels.masked_fill(scored.cumsum(1) <= count, IGNORE_INDEX)


def wga(nll: Tensor, beta: float) -> Tensor:
    """Weighted gradient ascent, Wang et al. 2025, arXiv:2502.19301: -p^beta nll, with p = exp(-nll) a constant to the gradient.

    Args:
        nll: negative log-likelihood of each token, 0 where nothing is scored, any shape (see `token_nll`).
        beta: 0 or more; 0 is gradient ascent, more spares tokens that are unlikely already.

    Returns:
        The shape of `nll`.

    >>> wga(torch.tensor([[0.0, 0.5, 3.0]]), beta=1.0)
    tensor([[-0.0000, -0.3033, -0.1494]])
    """
    return -torch.exp(-beta * nll.detach()) * nll


def satimp(nll: Tensor, beta1: float, beta2: float) -> Tensor:
    """Saturation and importance, Yang et al. 2025, arXiv:2505.11953: -p^beta1 (1 - p)^beta2 nll, with p = exp(-nll) a constant.

    Args:
        nll: negative log-likelihood of each token, 0 where nothing is scored, any shape (see `token_nll`).
        beta1: 0 or more: spares tokens that are unlikely already.
        beta2: 0 or more: spares tokens that follow from their context alone. With both 0 this is gradient ascent.

    Returns:
        The shape of `nll`.

    >>> satimp(torch.tensor([[0.0, 0.5, 3.0]]), beta1=5.0, beta2=1.0)
    tensor([[-0.0000e+00, -1.6149e-02, -8.7202e-07]])
    """
    known = nll.detach()
    return -torch.exp(-beta1 * known) * (-torch.expm1(-known)) ** beta2 * nll


def logit_margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Squared distance of the largest logit from the mean logit at each scored token: 0 where the prediction is uniform.

    The forget loss of Entesari et al. 2025, arXiv:2506.05314.

    Args:
        logits: [B, T, V].
        labels: int64 [B, T]; they only say which positions count.

    Returns:
        [B, T - 1], in squared logits.

    >>> logit_margin(torch.tensor([[[0.0, 1.0, 5.0], [0.0, 0.0, 0.0]]]), torch.tensor([[-100, 0]]))
    tensor([[9.]])
    """
    found = at_scored(logits, labels)
    return per_token((found.amax(-1) - found.mean(-1)) ** 2, labels)


# ------------------------------------------------------------------------------------------------------------- of classifiers


def softened_kl(reference: Tensor, logits: Tensor, temperature: float) -> Tensor:
    """Kullback-Leibler divergence of softened predictions: sum_k t_k (log t_k - log s_k), t = softmax(z_ref / T), s = softmax(z / T).

    The distillation loss of Hinton et al. 2015, arXiv:1503.02531, is this times T^2.

    Args:
        reference: logits of the teacher [B, K]; no gradient reaches them.
        logits: logits of the student [B, K].
        temperature: T, above 0.

    Returns:
        [B], never below 0 but for rounding, in float32 at least.

    Raises:
        ValueError: the temperature is not above 0.

    >>> softened_kl(torch.zeros(1, 2), torch.tensor([[0.0, 2.0]]), temperature=2.0)
    tensor([0.1201])
    """
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; allowed: above 0")
    dtype = torch.promote_types(logits.dtype, torch.float32)
    wanted = (reference.detach().to(dtype) / temperature).log_softmax(-1)
    found = (logits.to(dtype) / temperature).log_softmax(-1)
    return functional.kl_div(found, wanted, reduction="none", log_target=True).sum(-1)


# --------------------------------------------------------------------------------------------------------------- constraints


def dual_step(dual: float, excess: float, rate: float) -> float:
    """Projected ascent on the multiplier of a constraint excess <= 0: max(0, dual + rate excess).

    >>> dual_step(2.0, excess=0.1, rate=5.0), dual_step(2.0, excess=-0.7, rate=5.0)
    (2.5, 0.0)
    """
    return max(0.0, dual + rate * excess)
