"""TRAK: attribution in the space of projected gradients, averaged over a few trained models.

Sung Min Park, Kristian Georgiev, Andrew Ilyas, Guillaume Leclerc, Aleksander Madry. "TRAK: Attributing Model Behavior at Scale".
ICML 2023, arXiv:2303.14186. With phi_i the projected gradient of row i's margin log p/(1-p), and g(x) that of an output at x, including
row i adds g(x)' (Phi'Phi + ridge)^-1 phi_i (1 - p_i), the minus gradient of its loss being (1 - p_i) phi_i.

Different from the published code (traker 0.3.2): the inverse is not divided by the mean of its absolute values, so that effects have a
scale; a ridge, a small share of the mean eigenvalue, keeps it stable; products (1 - p_i) phi_i are averaged over the models, not the
two factors apart; outputs may be all logits. Like the published code it leaves out the weights p(1-p) of the Gauss-Newton matrix, so
that the scale still wants `calibration`. Knows classifiers in eval mode, images and labels; nothing of requests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

from unlearnbench.layers import evaluating

Project = Callable[[Tensor], Tensor]
"""Gradients ``[B, P]`` -> projected ``[B, dimension]``."""


def margin(logits: Tensor, label: Tensor) -> Tensor:
    """Log-odds log p / (1 - p) of the label: its logit minus the log-sum-exp of the others; logits ``[..., K]``, labels int64 ``[...]``.

    >>> round(float(margin(torch.tensor([2.0, 1.0, 1.0]), torch.tensor(0))), 4)
    0.3069
    """
    own: Tensor = label[..., None] == torch.arange(logits.shape[-1], device=logits.device)
    others = logits.masked_fill(own, float("-inf")).logsumexp(-1)
    of_label: Tensor = (logits * own).sum(-1)
    return of_label - others


def errors(logits: Tensor, labels: Tensor) -> Tensor:
    """1 - p of each row's label ``[n]``: the sigmoid of minus the margin, so that small ones keep their digits.

    >>> errors(torch.tensor([[0.0, 0.0], [60.0, 0.0]]), torch.tensor([0, 0])).tolist()
    [0.5, 8.75651089272076e-27]
    """
    return torch.sigmoid(-margin(logits, labels))


def gaussian(parameters: int, dimension: int, *, seed: int, device: torch.device | str = "cpu", memory: int = 2**28) -> Project:
    """A projection by a matrix of independent N(0, 1/dimension) entries, which keeps inner products in expectation.

    Args:
        parameters: Length of a gradient.
        dimension: Length after projection.
        seed: Seeds the entries.
        device: Where gradients are.
        memory: Bytes that the matrix may take; a larger one is drawn again at each use, in blocks of this size.
    """
    block = max(1, memory // (4 * dimension))
    starts = range(0, parameters, block)

    def draw(number: int) -> Tensor:
        rows = min(block, parameters - number * block)
        generator = torch.Generator(device).manual_seed(seed + 1_000_003 * number)
        drawn: Tensor = torch.randn(rows, dimension, generator=generator, device=device) / dimension**0.5
        return drawn

    kept = draw(0) if len(starts) == 1 else None

    def project(gradients: Tensor) -> Tensor:
        if kept is not None:
            return gradients @ kept.to(gradients.dtype)
        out = gradients.new_zeros(len(gradients), dimension)
        for number, start in enumerate(starts):
            out += gradients[:, start : start + block] @ draw(number).to(gradients.dtype)
        return out

    return project


def projected_gradients(
    model: nn.Module,
    outputs: Callable[[Tensor, Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    project: Project,
    *,
    memory: int = 2**28,
) -> Tensor:
    """Projected gradients of outputs of single rows in all parameters, the model in eval mode.

    Args:
        model: Images to logits; all parameters that are trained count, in their order.
        outputs: Of one row: logits ``[K]`` and label ``[]`` -> ``[q]``.
        images: ``[n, ...]``.
        labels: Int64 ``[n]``.
        project: See `gaussian`.
        memory: Bytes that the gradients of a chunk of rows may take, activations apart.

    Returns:
        ``[n, q, dimension]`` in the model's precision.
    """
    parameters: Mapping[str, Tensor] = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    fixed = dict(model.named_buffers()) | {name: p.detach() for name, p in model.named_parameters() if not p.requires_grad}
    size = sum(p.numel() for p in parameters.values())

    def of_one(weights: Mapping[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        logits = functional_call(model, {**weights, **fixed}, (image[None],))[0]
        return outputs(logits, label)

    with evaluating(model), torch.no_grad():
        count = len(outputs(model(images[:1])[0], labels[0]))
        chunk = max(1, memory // (4 * size * count))
        found = []
        for start in range(0, len(images), chunk):
            part, own = images[start : start + chunk], labels[start : start + chunk]
            gradients = vmap(jacrev(of_one), in_dims=(None, 0, 0))(parameters, part, own)
            flat = torch.cat([g.flatten(2) for g in gradients.values()], dim=2).flatten(0, 1)
            found.append(project(flat).view(len(part), count, -1))
    return torch.cat(found)


def features(gradients: Tensor, *, ridge: float = 1e-3) -> Tensor:
    """G (G'G + ridge t I)^-1 with t the mean eigenvalue of G'G, ``[n, dimension]``; solved in float64, returned as given.

    Args:
        gradients: Projected margins' gradients of the training rows, ``[n, dimension]``.
        ridge: Relative to the mean eigenvalue; 0 is the published form.
    """
    wide = gradients.double()
    gram = wide.T @ wide
    gram += ridge * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    solved: Tensor = torch.linalg.solve(gram, wide.T)
    return solved.T.to(gradients.dtype)


def effects(features: Tensor, errors: Tensor, targets: Tensor) -> Tensor:
    """What including each row adds to each output, by one model: tau ``[n, m, q]``.

    Args:
        features: Of the training rows, ``[n, dimension]``, see `features`.
        errors: 1 - p of each training row's label, ``[n]``.
        targets: Projected gradients of the outputs asked about, ``[m, q, dimension]``.
    """
    return torch.einsum("nd,mqd->nmq", features * errors[:, None], targets)
