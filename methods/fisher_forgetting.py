"""Eternal sunshine of the spotless net: Fisher forgetting, noise where the retain rows do not hold the weights.

Aditya Golatkar, Alessandro Achille, Stefano Soatto. CVPR 2020, arXiv:1911.04933. Each weight gets Gaussian noise with a variance inverse to
its Fisher information on the retain rows, bounded at 1000 (100 in the last layer), averaged over the inputs of each unit and ten times as
large in the last layer and in batch-norm. Of classes that have no retain row, the last layer's weights are drawn anew around 0 with
variance 0.001. Bounds, factors and alpha 1e-6 are those of the code that the SalUn and SSD authors run; published alphas are 1e-9 to 3e-6.

Deviations: that code finds last layer and batch-norm by shape, so that its factor of ten reaches all biases; here it is the modules' kind
that counts. The paper's variance goes with the root of the inverse information, that of the code with the inverse.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from unlearnbench.api import Method, MethodView
from unlearnbench.finetuning import shuffled
from unlearnbench.layers import last_linear
from unlearnbench.mechanisms.importance import fisher_diagonal, fisher_variance
from unlearnbench.mechanisms.relabelling import labels_of

LARGEST, LARGEST_OF_HEAD = 1e3, 1e2
"""Bounds of the inverse information."""
WIDER = 10.0
"""Factor of the variance in the last layer and in batch-norm."""
GONE = 1e-3
"""Variance of the last layer's weights of a class without retain rows."""


class FisherForgetting(Method):
    """Add noise in proportion to the inverse Fisher information on the retain rows."""

    paper = "arXiv:1911.04933"
    modality = ("vision",)

    alpha: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1e-6
    """Variance of the noise times the Fisher information."""
    batch_size: Annotated[int, Field(ge=1)] = 1
    """Rows whose mean gradient is squared; 1 gives the Fisher information, more is cheaper and another number."""

    def unlearn(self, model: nn.Module, view: MethodView, *, seed: int) -> nn.Module:
        """See `Method.unlearn`."""
        retain = view.retain.train
        information = fisher_diagonal(model, shuffled(retain, self.batch_size, seed=seed)(0))
        head = {id(parameter) for parameter in last_linear(model).parameters()}
        norms = {id(parameter) for module in model.modules() if isinstance(module, _BatchNorm) for parameter in module.parameters()}
        gone = sorted(set(labels_of(view.forget.train).tolist()) - set(labels_of(retain).tolist()))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if name not in information:
                    continue
                in_head = id(weight) in head
                variance = fisher_variance(information[name], alpha=self.alpha, largest=LARGEST_OF_HEAD if in_head else LARGEST)
                variance = variance * (WIDER if in_head or id(weight) in norms else 1.0)
                if in_head:
                    weight[gone] = 0.0
                    variance[gone] = GONE
                weight.add_(variance.sqrt() * _normal(weight, generator))
        return model


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal numbers, the same on every device."""
    return torch.randn(like.shape, generator=generator, dtype=like.dtype).to(like.device)
