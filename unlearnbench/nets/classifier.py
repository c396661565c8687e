"""What all nets share: features that end in one linear head, and initial weights drawn from a seed alone. Knows no architecture."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

N = TypeVar("N", bound=nn.Module)


class Classifier(nn.Module):
    """A classifier of images in two parts, so that probes, kernels and CKA read `features` and nothing else."""

    head: nn.Linear
    """The last layer, from features to logits."""

    def features(self, images: Tensor) -> Tensor:
        """Penultimate features ``[B, f]`` of images ``[B, channels, size, size]``."""
        raise NotImplementedError(f"{type(self).__name__} must define features()")

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``[B, classes]`` of images ``[B, channels, size, size]``."""
        logits: Tensor = self.head(self.features(images))
        return logits


def seeded(make: Callable[[], N], seed: int) -> N:
    """What `make` gives when torch's generator of the CPU starts at `seed`; its state is put back afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return make()
