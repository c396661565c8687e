"""A class-conditional denoising model of the handwritten digits, asked to forget how to draw one of them.

The CPU-sized counterpart of the published setting (class-conditional diffusion models of CIFAR-10, SalUn, arXiv:2310.12508): same
objective, guidance and scores, on 8x8 images. What it says is about mechanisms, not about image quality at scale.

Knows settings, training and the judge; rows come from `digits_data`, the net is `nets.denoiser`, the pass `diffusion_evidence`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from unlearnbench.api import Batch, Need, Plan, Request, Task
from unlearnbench.diffusion import denoising_loss
from unlearnbench.evidence import Evidence
from unlearnbench.finetuning import shuffled
from unlearnbench.nets.denoiser import PerceptronDenoiser
from unlearnbench.scenarios.diffusion_evidence import Sampler, diffusion_evidence
from unlearnbench.scenarios.digits_data import N_CLASSES, DigitsPool, draw_pool, draw_request, draw_shadow
from unlearnbench.scenarios.digits_nets import CONVNET_RECIPE, CONVNET_WIDTH, PIXEL_MEAN, PIXEL_STD, convnet
from unlearnbench.scenarios.image_pool import Drawn
from unlearnbench.scenarios.images import ImageData, image_loss
from unlearnbench.scenarios.vision_scenario import VisionScenario
from unlearnbench.training import Recipe, fit, hardware, step_count

Count = Annotated[int, Field(ge=1)]

BOUNDS = ((0 - PIXEL_MEAN) / PIXEL_STD, (16 - PIXEL_MEAN) / PIXEL_STD)
"""The range of a pixel, standardised."""
JUDGE_SEED = 0
JUDGE_RECIPE = replace(CONVNET_RECIPE, epochs=30, lr=0.01)


class DigitsDiffusion(VisionScenario):
    """Noise prediction for handwritten digits with guidance without a classifier; a request is a digit no longer to be drawn.

    A row of a split stands for a sample of its class. "forget" shows the samples of the forgotten digit, "retain" those of the others (see
    `Evidence.array`), judged by a convolutional net trained on the real training images of all ten digits and on nothing generated; it
    classifies 98.5 % of the unseen images (split seed 0). An oracle never saw the digit and draws others in its place, as without a label.
    """

    task: ClassVar[Task] = "diffuse"

    width: Annotated[int, Field(ge=2, multiple_of=2)] = 256
    """Units of each layer of the net."""
    depth: Count = 3
    """Residual blocks."""
    timesteps: Annotated[int, Field(ge=21)] = 200
    """Steps of the noising process."""
    epochs: Count = 150
    batch_size: Annotated[int, Field(ge=2)] = 64
    lr: Annotated[float, Field(gt=0)] = 1e-3
    sampling_steps: Annotated[int, Field(ge=2)] = 20
    """Steps of DDIM for each sample that is scored."""
    guidance: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """w of the samples that are scored; the Fréchet distance of the original's samples is lowest near 1."""

    @classmethod
    def requests(cls) -> tuple[Request, ...]:
        """See `Scenario.requests`."""
        return tuple(Request(name=f"class{digit}", kind="class", description=f"all images of a {digit}") for digit in range(N_CLASSES))

    @property
    def validation_request(self) -> str:
        """See `Scenario.validation_request`: the next digit."""
        return f"class{(int(self.asked().name.removeprefix('class')) + 1) % N_CLASSES}"

    def pool(self) -> DigitsPool:
        """See `VisionScenario.pool`."""
        return draw_pool(self.split_seed)

    def own(self) -> Drawn:
        """See `VisionScenario.own`."""
        return draw_request(self.asked().name, self.split_seed)

    def elsewhere(self, index: int) -> Drawn:
        """See `VisionScenario.elsewhere`: another digit."""
        return draw_shadow(self.asked().name, self.split_seed, index)

    @property
    def classes(self) -> int:
        """See `VisionScenario.classes`."""
        return N_CLASSES

    @property
    def recipe(self) -> Recipe:
        """How the original and the oracles are trained: Adam, clipped, the rate falling to 0 where papers average weights."""
        return Recipe(epochs=self.epochs, batch_size=self.batch_size, lr=self.lr, optimizer="adam", schedule="linear", clip=1.0)

    def net_settings(self) -> dict[str, Any]:
        """See `VisionScenario.net_settings`."""
        return {"net": "perceptron", "width": self.width, "depth": self.depth, "timesteps": self.timesteps}

    def _common(self) -> dict[str, Any]:
        return {**super()._common(), "loss": denoising_loss}

    def build(self, seed: int) -> nn.Module:
        """See `Scenario.build`."""
        net = PerceptronDenoiser(self.width, self.depth, (1, 8, 8), classes=N_CLASSES, steps=self.timesteps, bounds=BOUNDS, seed=seed)
        return net.to(hardware.get().device)

    def train(self, plans: Sequence[Plan], seeds: Sequence[int]) -> list[nn.Module]:
        """See `Scenario.train`."""
        return [self._fitted(plan, seed) for plan, seed in zip(plans, seeds, strict=True)]

    def _fitted(self, plan: Plan, seed: int) -> nn.Module:
        model, rows, recipe = self.build(seed), self.without(plan.rows), self.recipe
        steps, total = shuffled(rows, recipe.batch_size, seed=seed), step_count(len(rows), recipe)
        fit(model, _mean_loss, steps, recipe, seed=seed, total_steps=total, label=f"{plan.role} on {self.request}")
        return model.eval()

    def read(self, model: nn.Module, splits: Mapping[str, ImageData], needs: frozenset[Need]) -> Evidence:
        """See `VisionScenario.read` and `diffusion_evidence`."""
        sampler = Sampler(steps=self.sampling_steps, guidance=self.guidance)
        return diffusion_evidence(model, judge(self.split_seed), splits, needs, sampler)


def _mean_loss(model: nn.Module, batch: Batch) -> Tensor:
    return denoising_loss(model, batch).mean()


@cache
def judge(split_seed: int) -> nn.Module:
    """The classifier that says what a sample shows: trained on the real training images, the same for all models."""
    pool = draw_pool(split_seed)
    rows, net = pool.data(pool.train), convnet(CONVNET_WIDTH, JUDGE_SEED)
    steps, total = shuffled(rows, JUDGE_RECIPE.batch_size, seed=JUDGE_SEED), step_count(len(rows), JUDGE_RECIPE)
    with torch.enable_grad():  # whoever scores may have turned gradients off
        fit(net, lambda net, batch: image_loss(net, batch).mean(), steps, JUDGE_RECIPE, seed=JUDGE_SEED, total_steps=total, label="judge")
    return net.eval().requires_grad_(False)
