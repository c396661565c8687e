"""Oracle matching: fine-tuning on the mean logits of models that never saw the forget rows. A reference row.

Georgiev et al., "Attribute-to-Delete: Machine Unlearning via Datamodel Matching", ICLR 2025, arXiv:2410.23232, algorithm C.1: what
datamodel matching would be with perfect predictions. Ten oracles as in the published code, or all there are if fewer.

Deviations: as for datamodel matching (rows shuffled and without augmentation, batch-norm frozen unless asked otherwise).
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from unlearnbench.api import Reference, ReferenceView
from unlearnbench.mechanisms.matching import MatchingMethod, logits_of


class OracleMatching(MatchingMethod, Reference):
    """Match the mean logits of the oracles on the forget rows and a sample of the retain rows."""

    paper = "arXiv:2410.23232"

    n_oracles: Annotated[int, Field(ge=1)] = 10
    """Oracles whose logits are averaged, or all of the request's if they are fewer."""

    def refer(self, model: nn.Module, view: ReferenceView, *, seed: int) -> nn.Module:
        """See `Reference.refer`."""
        images = self.images(view)
        targets = torch.stack([logits_of(load(), images) for load in view.oracles[: self.n_oracles]]).mean(0)
        return self.descend(model, view, images, targets, seed=seed)
