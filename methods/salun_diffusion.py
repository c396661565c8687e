"""SalUn, the half for diffusion models: the salient weights learn to draw another class where the forgotten one is asked for.

Chongyu Fan, Jiancheng Liu, Yihua Zhang, Eric Wong, Dennis Wei, Sijia Liu, "SalUn: empowering machine unlearning via gradient-based weight
saliency in both image classification and generation", ICLR 2024, arXiv:2310.12508. As in the authors' code for class-conditional models:

1. Mask: gradients of the squared error of the guided noise prediction (w = 2), summed over pixels and averaged over a batch of forget rows
   at antithetic timesteps; each batch's gradient is clipped to norm 1 and added with its sign; the top half of the magnitudes may move.
2. Minimise MSE(eps(x_f, t, c), stopped eps(x_f, t, c')) + retain_weight * L(retain), c' = (c + 1) mod classes, the target from the model
   as it is now, by the original's optimizer (Adam, clipped at 1); masked-out weights stay as they were to the bit.

A trap of scale: there the retain loss is a sum over 3 x 32 x 32 pixels and the MSE a mean, hence the small alpha of 1e-3. Here both are
means over pixels, so that the default weight is 1e-3 * 3072 (at 0 all classes are destroyed). Other defaults are theirs: rate 1e-4,
batch 128, 25 passes over a forgotten class of CIFAR-10, which are 1,000 steps.

Deviations: labels are not left out at random in the forget term, where a tenth of their targets become unconditional; gradients are masked
before they are clipped, not after; forget rows pass in epochs; no dropout. The half for Stable Diffusion is not this one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from unlearnbench.api import Batch, MethodView
from unlearnbench.diffusion import drawn_steps, guided, noised
from unlearnbench.finetuning import Pair, TrainedMethod, paired
from unlearnbench.mechanisms.importance import Weights, gradients, summed
from unlearnbench.mechanisms.saliency import masked, top_share
from unlearnbench.training import batches, make_optimizer

CLIP = 1.0


def antithetic_steps(rows: int, steps: int, generator: torch.Generator) -> Tensor:
    """Timesteps int64 [rows]: half of them uniform, the other half what they lack to steps - 1, so that early and late ones balance.

    >>> t = antithetic_steps(6, 10, torch.Generator().manual_seed(0))
    >>> (t[:3] + t[3:]).tolist()
    [9, 9, 9]
    """
    drawn = torch.randint(steps, ((rows + 1) // 2,), generator=generator)
    return torch.cat([drawn, steps - 1 - drawn])[:rows]


def guided_error(model: nn.Module, batch: Batch, guidance: float) -> Tensor:
    """Squared error of the guided noise prediction, summed over pixels and averaged over rows, a scalar.

    Args:
        model: a denoising model.
        batch: "images" [B, C, H, W] that were not noised, "labels" int64 [B], "t" int64 [B] and "noise" [B, C, H, W].
        guidance: w of (1 + w) eps(x, t, c) - w eps(x, t, none).
    """
    alpha_bar: Tensor = model.alpha_bar  # type: ignore[assignment]
    mixed = noised(batch["images"], batch["noise"], alpha_bar[batch["t"]])
    error: Tensor = batch["noise"] - guided(model, mixed, batch["t"], batch["labels"], guidance)
    return error.square().sum(dim=(1, 2, 3)).mean()


def clipped(parts: Iterable[Weights], norm: float) -> Iterator[Weights]:
    """Each gradient, scaled down to this L2 norm over all weights together where it is longer.

    >>> [part["a"].tolist() for part in clipped([{"a": torch.tensor([3.0, 4.0])}, {"a": torch.tensor([0.5, 0.0])}], 1.0)]
    [[0.6000000238418579, 0.800000011920929], [0.5, 0.0]]
    """
    for part in parts:
        length = torch.stack([tensor.square().sum() for tensor in part.values()]).sum().sqrt()
        scale = (norm / length).clamp(max=1.0)
        yield {name: tensor * scale for name, tensor in part.items()}


def mistaken_error(model: nn.Module, images: Tensor, t: Tensor, labels: Tensor, others: Tensor) -> Tensor:
    """Mean squared difference over pixels [B] of eps(x, t, label) from eps(x, t, other label), through which no gradient flows.

    Args:
        model: a denoising model.
        images: noised [B, C, H, W].
        t: their timesteps int64 [B].
        labels: classes to forget int64 [B].
        others: the classes in their place int64 [B].
    """
    with torch.no_grad():
        target = model(images, t, others)
    difference: Tensor = model(images, t, labels) - target
    return difference.square().mean(dim=(1, 2, 3))


class SalUnDiffusion(TrainedMethod):
    """Another class's prediction for the forgotten label, learnt by the salient weights. Epochs pass over the forget rows."""

    paper = "arXiv:2310.12508"
    modality = ("vision",)
    tasks = ("diffuse",)

    mask_ratio: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of all weights that may move."""
    mask_epochs: Annotated[int, Field(ge=1)] = 1
    """Passes over the forget rows for the mask, each at other timesteps and noise; small forget sets want more."""
    guidance: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 2.0
    """w of the guided prediction whose error the mask is of."""
    retain_weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 3.072
    """Weight of the retain loss, both being means over pixels."""
    lr: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e-4
    """Learning rate, constant."""
    epochs: Annotated[int, Field(ge=1)] = 25
    """Passes over the forget rows."""
    batch_size: Annotated[int, Field(ge=1)] = 128
    """Rows of a batch, of forget and of retain rows."""
    lora_rank: None = None
    """The mask is one of all weights: no adapter."""

    def masks(self, model: nn.Module, view: MethodView, *, seed: int) -> dict[str, Tensor]:
        """Name -> bool, where the weight may move."""
        rows, generator = view.forget.train, torch.Generator().manual_seed(seed)

        def drawn() -> Iterator[Batch]:
            for epoch in range(self.mask_epochs):
                for index in batches(len(rows), self.batch_size, seed=seed, epoch=epoch):
                    batch = rows.batch(index)
                    t = antithetic_steps(len(index), len(model.alpha_bar), generator)  # type: ignore[arg-type]
                    yield {**batch, "t": t, "noise": torch.randn(batch["images"].shape, generator=generator)}

        found = gradients(model, lambda model, batch: guided_error(model, batch, self.guidance), drawn())
        return top_share({name: total.abs() for name, total in summed(clipped(found, CLIP)).items()}, self.mask_ratio)

    def unlearn(self, model: nn.Module, view: MethodView, *, seed: int) -> nn.Module:
        """See `Method.unlearn`."""
        masks = self.masks(model, view, seed=seed)
        parameters = {name: weight for name, weight in model.named_parameters() if name in masks}
        optimizer = make_optimizer(list(parameters.values()), self.recipe(view))

        def loss(model: nn.Module, pair: Pair) -> Tensor:
            images, labels = pair.forget["images"], pair.forget["labels"]
            t = drawn_steps(model, labels)
            mixed = noised(images, torch.randn_like(images), model.alpha_bar[t])  # type: ignore[index]
            mistaken = mistaken_error(model, mixed, t, labels, (labels + 1) % int(model.classes)).mean()  # type: ignore[arg-type]
            return mistaken + self.retain_weight * view.loss(model, pair.retain).mean()

        steps = paired(view.forget.train, view.retain.train, self.batch_size, seed=seed)
        n = len(view.forget.train)
        with masked(parameters, masks, optimizer) as restore:
            return self.minimise(model, view, loss, steps, n=n, seed=seed, optimizer=optimizer, on_step=restore)
