"""All but one: surgical concept erasing with model preservation in text-to-image diffusion models.

Seunghoo Hong, Juhun Lee, Simon S. Woo. AAAI 2024, arXiv:2312.12807. The idea, from the paper's abstract: of the two terms of guided
sampling, the unconditional prediction and the guidance of the concept, change the guidance of the erased concept alone and keep the
unconditional prediction from drifting; an alternative concept may be named in its place.

The objective is RECONSTRUCTED, not read: no code was found, and of the paper only the opening could be had. With the original frozen (*)
and g(c) = eps(x_t, t, c) - eps(x_t, t, none), minimise

    mean |g(c_erase) - g*(c_alt)|^2 + preservation * mean |eps(x_t, t, none) - eps*(x_t, t, none)|^2

over pixels. The x_t lie on the original's own guided sampling paths to the erased class, so that no image of the data is read: of the
forget set only the class. The alternative is the next class, or none (then the target guidance is 0). All defaults are ours.

How other classes are drawn is in neither term: they stay as they are only as far as they share no weights with the erased one.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from unlearnbench.api import Batch, MethodView, Scenario
from unlearnbench.diffusion import sampling, unlabelled
from unlearnbench.finetuning import TrainedMethod
from unlearnbench.training import batches


def split_prediction(model: nn.Module, images: Tensor, t: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The two terms of guided sampling: eps(x, t, none) and g = eps(x, t, c) - eps(x, t, none), each shaped like `images`.

    Args:
        model: a denoising model.
        images: noised [B, C, H, W].
        t: int64 [B].
        labels: classes int64 [B]; for the label that stands for none, g is 0.
    """
    both: Tensor = model(torch.cat([images, images]), torch.cat([t, t]), torch.cat([labels, unlabelled(model, labels)]))
    given, none = both.chunk(2)
    return none, given - none


def surgical_error(
    model: nn.Module, frozen: nn.Module, images: Tensor, t: Tensor, erased: Tensor, alternative: Tensor, preservation: float
) -> Tensor:
    """Each row's mean |g(c_erase) - g*(c_alt)|^2 + preservation * mean |eps(none) - eps*(none)|^2 over pixels [B].

    Args:
        model: what is trained.
        frozen: the original; no gradient flows through it.
        images: noised [B, C, H, W].
        t: int64 [B].
        erased: classes to erase int64 [B].
        alternative: classes in their place int64 [B], or the label that stands for none.
        preservation: weight of the second term.
    """
    with torch.no_grad():
        kept, wanted = split_prediction(frozen, images, t, alternative)
    none, guidance = split_prediction(model, images, t, erased)
    each = (guidance - wanted).square() + preservation * (none - kept).square()
    return each.mean(dim=(1, 2, 3))


class AllButOne(TrainedMethod):
    """Another guidance for the erased class, the unconditional prediction kept. Epochs pass over the points of sampling paths."""

    paper = "arXiv:2312.12807"
    modality = ("vision",)
    tasks = ("diffuse",)

    alternative: Literal["next_class", "none"] = "next_class"
    """Whose guidance takes the erased one's place; none: nobody's."""
    preservation: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """Weight of the term that keeps the unconditional prediction."""
    paths: Annotated[int, Field(ge=1)] = 128
    """Sampling paths of the original that training points lie on."""
    path_steps: Annotated[int, Field(ge=2)] = 20
    """Points of a path."""
    guidance: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """w of the original's sampling."""
    lr: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e-4
    """Learning rate, constant."""
    epochs: Annotated[int, Field(ge=1)] = 10
    """Passes over all points."""
    batch_size: Annotated[int, Field(ge=1)] = 128
    """Points of a batch."""

    def supports(self, scenario: Scenario) -> str | None:
        """A class must be asked for: its guidance is what is changed."""
        if (reason := super().supports(scenario)) is not None:
            return reason
        kind = scenario.asked().kind
        return None if kind == "class" else f"erases a class, and this request names {kind}"

    def points(self, frozen: nn.Module, erased: int, like: Tensor, *, seed: int) -> Batch:
        """What the original passes on its way to samples of the erased class.

        Args:
            frozen: the original.
            erased: the class.
            like: an image [C, H, W], for the shape.
            seed: seeds the noise that paths begin with.

        Returns:
            "images" [paths * path_steps, C, H, W] and their timesteps "t", where the model is.
        """
        weight = next(frozen.parameters())
        noise = torch.randn((self.paths, *like.shape), generator=torch.Generator().manual_seed(seed)).to(weight.device, weight.dtype)
        labels = torch.full((self.paths,), erased, device=weight.device)
        with torch.no_grad():
            on_way = list(sampling(frozen, noise, labels, steps=self.path_steps, guidance=self.guidance))[:-1]  # samples have no timestep
        return {"images": torch.cat([images for images, _ in on_way]), "t": torch.cat([t for _, t in on_way])}

    def unlearn(self, model: nn.Module, view: MethodView, *, seed: int) -> nn.Module:
        """See `Method.unlearn`."""
        first = view.forget.train.batch([0])
        erased, classes = int(first["labels"][0]), int(model.classes)  # type: ignore[arg-type]
        replacement = (erased + 1) % classes if self.alternative == "next_class" else classes
        frozen = copy.deepcopy(model).eval()
        points = self.points(frozen, erased, first["images"][0], seed=seed)

        def steps(epoch: int) -> Iterator[Batch]:
            for index in batches(len(points["t"]), self.batch_size, seed=seed, epoch=epoch):
                yield {name: values[index.to(values.device)] for name, values in points.items()}

        def loss(model: nn.Module, batch: Batch) -> Tensor:
            t = batch["t"]
            old, new = torch.full_like(t, erased), torch.full_like(t, replacement)
            return surgical_error(model, frozen, batch["images"], t, old, new, self.preservation).mean()

        return self.descend(model, view, loss, steps, n=len(points["t"]), seed=seed)
