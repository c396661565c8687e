"""A method of another package: adds seeded noise to every weight, so that the model forgets a little of everything."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from unlearnbench.api import Method, MethodView


class Nudge(Method):
    """Add normal noise to every parameter."""

    paper = "none"

    scale: Annotated[float, Field(ge=0)] = 0.01
    """Standard deviation of the noise, as a share of each parameter's own."""

    def unlearn(self, model: nn.Module, view: MethodView, *, seed: int) -> nn.Module:
        """See `Method.unlearn`."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                noise = torch.randn(parameter.shape, generator=generator).to(parameter)
                parameter += self.scale * parameter.std(correction=0) * noise
        return model
