"""Which training examples pull a model the same way: similarities between examples, seen through a model's gradients.

Knows features, errors and gradients; nothing of requests or methods.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import one_hot, softmax


def classification_errors(logits: Tensor, labels: Tensor) -> Tensor:
    """Gradient of each example's cross-entropy in its logits, softmax(logits) - onehot(label), float64 ``[n, classes]``.

    Args:
        logits: ``[n, classes]``.
        labels: Classes, int64 ``[n]``.

    >>> classification_errors(torch.zeros(1, 2), torch.tensor([1])).tolist()
    [[0.5, -0.5]]
    """
    wide = logits.to(torch.float64)
    return softmax(wide, dim=1) - one_hot(labels, wide.shape[1])


def last_layer_kernel(features: Tensor, errors: Tensor) -> Tensor:
    """Inner products of the examples' gradients in the last layer's weights and biases, float64 ``[n, n]``.

    The loss of example i has the gradient e_i phi_i' in the weights and e_i in the biases of the layer that maps features
    phi to logits, so that K_ij = (phi_i . phi_j + 1) (e_i . e_j): a step on j lowers the loss of i by lr K_ij. It is the part of
    the neural tangent kernel (Jacot et al. 2018, arXiv:1806.07572), and of TRAK's features (Park et al. 2023,
    arXiv:2303.14186), that one forward pass gives.

    Args:
        features: Inputs of the last layer, ``[n, f]``.
        errors: Gradients of the losses in the logits, ``[n, classes]``.

    Raises:
        ValueError: Features and errors of unequal numbers of examples.

    >>> last_layer_kernel(torch.tensor([[1.0, 2.0], [0.0, 3.0]]), torch.tensor([[0.5, -0.5], [1.0, 0.0]])).tolist()
    [[3.0, 3.5], [3.5, 10.0]]
    """
    if len(features) != len(errors):
        raise ValueError(f"features of {len(features)} and errors of {len(errors)} examples; allowed: the same examples")
    phi, e = features.to(torch.float64), errors.to(torch.float64)
    return (phi @ phi.T + 1) * (e @ e.T)


def cosines(kernel: Tensor) -> Tensor:
    """A kernel scaled to a diagonal of ones: K_ij / sqrt(K_ii K_jj), ``[n, n]``; 0 where an example has no gradient.

    >>> cosines(torch.tensor([[4.0, 3.0, 0.0], [3.0, 9.0, 0.0], [0.0, 0.0, 0.0]])).tolist()
    [[1.0, 0.5, 0.0], [0.5, 1.0, 0.0], [0.0, 0.0, 0.0]]
    """
    norms = kernel.diagonal().sqrt()
    norms = kernel.diagonal().sqrt()
    scales = norms.outer(norms)
    return torch.where(scales > 0, kernel / scales, torch.zeros_like(kernel))
