"""A tiny scenario of a denoising model: the noisy blobs of the tiny vision scenario, asked not to draw one class of them.

In a suite it is called `path/to/tiny_diffusion.py:TinyDiffusion`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, ClassVar

import torch
from torch import nn

from unlearnbench.api import Need, Request, Task
from unlearnbench.contracts.tiny import Count
from unlearnbench.contracts.tiny_vision import CLASSES, TinyVision
from unlearnbench.diffusion import denoising_loss
from unlearnbench.evidence import Evidence
from unlearnbench.nets.denoiser import PerceptronDenoiser
from unlearnbench.scenarios.diffusion_evidence import Sampler, diffusion_evidence
from unlearnbench.scenarios.images import ImageData
from unlearnbench.training import hardware


class TinyDiffusion(TinyVision):
    """Gaussian blobs of three classes, drawn by a small perceptron; the judge takes the nearest centre of the training images."""

    task: ClassVar[Task] = "diffuse"

    epochs: Count = 30

    @classmethod
    def requests(cls) -> tuple[Request, ...]:
        """See `Scenario.requests`."""
        return tuple(request for request in super().requests() if request.kind == "class")

    def _pools(self) -> dict[str, ImageData]:
        # The true classes: wrong labels are there for requests of instances.
        return {name: ImageData(data.images, torch.arange(len(data)) // 3 % CLASSES, data.ids) for name, data in super()._pools().items()}

    def _common(self) -> dict[str, Any]:
        return {**super()._common(), "loss": denoising_loss}

    def build(self, seed: int) -> nn.Module:
        """See `Scenario.build`."""
        return tiny_denoiser(seed).to(hardware.get().device)

    def evidence(
        self,
        model: nn.Module,
        needs: frozenset[Need],
        *,
        rewrite: Callable[[Any], Any] | None = None,
        only: frozenset[str] | None = None,
    ) -> Evidence:
        """See `Scenario.evidence`; `rewrite` changes one image, float32 [1, 4, 4]."""
        splits = {name: data for name, data in self._scored(needs, only).items() if isinstance(data, ImageData)}
        given = splits if rewrite is None else {name: data.rewritten(rewrite) for name, data in splits.items()}
        return diffusion_evidence(model, _judge(self.split_seed), given, needs, Sampler(steps=5, guidance=1.0))

    def training_images(self) -> ImageData:
        """All images that the original is trained on."""
        return self._pools()["train"]


def tiny_denoiser(seed: int) -> PerceptronDenoiser:
    """An untrained net of the tiny scenario: 4x4 images, 30 timesteps."""
    return PerceptronDenoiser(32, 1, (1, 4, 4), classes=CLASSES, steps=30, bounds=(-4.0, 4.0), seed=seed)


@cache
def _judge(split_seed: int) -> nn.Module:
    """Logits 2 x.c - c.c, whose largest is the nearest centre's; its features are the pixels."""
    rows = TinyDiffusion(request="class0", split_seed=split_seed).training_images()
    centres = torch.stack([rows.images[rows.labels == number].flatten(1).mean(0) for number in range(CLASSES)])
    linear = nn.Linear(16, CLASSES)
    with torch.no_grad():
        linear.weight.copy_(2 * centres)
        linear.bias.copy_(-centres.square().sum(1))
    return nn.Sequential(nn.Flatten(), linear).eval().requires_grad_(False)
