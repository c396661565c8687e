"""Sanity row: a model destroyed on purpose, of which nothing is left to forget or to use.

No paper. The entries of each parameter are shuffled among themselves: the weights keep their distribution, so that activations stay
finite in any architecture, and lose everything they stood for. A metric that rewards this row does not measure unlearning.
"""

from __future__ import annotations

import torch
from torch import nn

from unlearnbench.api import Method, MethodView


class Collapsed(Method):
    """Shuffle the entries of every parameter. Buffers (running statistics, positions) stay."""

    row = "sanity"
    tasks = ("generate", "classify", "diffuse")

    @torch.no_grad()
    def unlearn(self, model: nn.Module, view: MethodView, *, seed: int) -> nn.Module:
        """See `Method.unlearn`."""
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
            parameter.copy_(parameter.flatten()[order].view_as(parameter))
        return model.eval()
