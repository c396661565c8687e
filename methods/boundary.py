"""Boundary unlearning: rapid forgetting of deep networks via shifting the decision boundary. Shrink and expand.

Min Chen, Weizhuo Gao, Gaoyang Liu, Kai Peng, Chen Wang. CVPR 2023, arXiv:2303.11570. Shrink gives each forget image the nearest wrong
class, found by one step of 0.1 up the sign of the loss's gradient from the image, and trains on these labels. Expand adds a class, trains
the forget rows into it and cuts it off again. Both train on forget rows alone. Defaults: 10 epochs at 1e-5.

Deviations: a view does not say how images were normalised, so the step is a share of each channel's range over forget and retain images,
and its result is clamped to that range and not rounded to 255 levels; the nearest class is the likeliest wrong one there, where published
code keeps the true class if it is still the likeliest; the rate is constant; optimizer and weight decay are those of the original's
training; batch-norm is frozen by default. Made for classes, both are defined for any rows.
"""

from __future__ import annotations

from typing import Annotated

import torch
from accelerate.utils import send_to_device
from pydantic import Field
from torch import Tensor, nn

from unlearnbench.api import Batch, Data, MethodView
from unlearnbench.finetuning import TrainedMethod, shuffled
from unlearnbench.layers import evaluating, last_linear
from unlearnbench.mechanisms.relabelling import Relabelled


class BoundaryShrink(TrainedMethod):
    """Train the forget rows towards their nearest wrong class. Epochs pass over the forget rows."""

    paper = "arXiv:2303.11570"
    modality = ("vision",)

    step: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Length of the step to the nearest class in each pixel, as a share of the channel's range."""

    def unlearn(self, model: nn.Module, view: MethodView, *, seed: int) -> nn.Module:
        """See `Method.unlearn`."""
        low, high = _bounds(view.forget.train, view.retain.train, self.batch_size)
        device, found = next(model.parameters()).device, []
        for index in torch.split(torch.arange(len(view.forget.train)), self.batch_size):
            batch = send_to_device(view.forget.train.batch(index), device)
            shifted = uphill(model, view, batch, self.step * (high - low).to(device)).clamp(low.to(device), high.to(device))
            with torch.no_grad(), evaluating(model):
                found.append(likeliest_wrong(model(shifted), batch["labels"]).cpu())
        return _learn(self, model, view, Relabelled(view.forget.train, torch.cat(found)), seed=seed)


class BoundaryExpand(TrainedMethod):
    """Train the forget rows into a class of their own, which is then cut off. Epochs pass over the forget rows."""

    paper = "arXiv:2303.11570"
    modality = ("vision",)

    def unlearn(self, model: nn.Module, view: MethodView, *, seed: int) -> nn.Module:
        """See `Method.unlearn`."""
        classes = last_linear(model).out_features
        _resize_head(model, classes + 1, seed=seed)
        forget = view.forget.train
        _learn(self, model, view, Relabelled(forget, torch.full((len(forget),), classes)), seed=seed)
        _resize_head(model, classes, seed=seed)
        return model.eval()


def uphill(model: nn.Module, view: MethodView, batch: Batch, step: Tensor | float) -> Tensor:
    """Images one step up the sign of the gradient of their loss, in eval mode (FGSM, Goodfellow et al. 2015, arXiv:1412.6572).

    Args:
        model: its weights and their gradients are left alone.
        view: gives the loss.
        batch: images [B, ...] and labels [B].
        step: length in each pixel, broadcast over the images.
    """
    images = batch["images"].detach().clone().requires_grad_()
    with torch.enable_grad(), evaluating(model):
        (slope,) = torch.autograd.grad(view.loss(model, {**batch, "images": images}).sum(), images)
    shifted: Tensor = images + step * slope.sign()
    return shifted.detach()


def likeliest_wrong(logits: Tensor, labels: Tensor) -> Tensor:
    """The class of the largest logit but for the true one: int64 [B] out of [B, K] and [B].

    >>> likeliest_wrong(torch.tensor([[3.0, 1.0, 2.0], [3.0, 1.0, 2.0]]), torch.tensor([0, 1]))
    tensor([2, 0])
    """
    return logits.scatter(1, labels[:, None], -torch.inf).argmax(1)


def _bounds(forget: Data, retain: Data, batch_size: int) -> tuple[Tensor, Tensor]:
    """Smallest and largest value of each channel over all images [1, channels, 1, 1]."""
    lows, highs = [], []
    for rows in (forget, retain):
        for index in torch.split(torch.arange(len(rows)), batch_size):
            images = rows.batch(index)["images"]
            lows.append(images.amin((0, 2, 3), keepdim=True))
            highs.append(images.amax((0, 2, 3), keepdim=True))
    return torch.cat(lows).amin(0, keepdim=True), torch.cat(highs).amax(0, keepdim=True)


def _learn(method: TrainedMethod, model: nn.Module, view: MethodView, rows: Data, *, seed: int) -> nn.Module:
    """Train on these rows alone."""

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return view.loss(model, batch).mean()

    return method.descend(model, view, loss, shuffled(rows, method.batch_size, seed=seed), n=len(rows), seed=seed)


def _resize_head(model: nn.Module, classes: int, *, seed: int) -> None:
    """Give the last linear layer this many outputs: the first ones are kept, new ones are drawn as in a fresh layer."""
    old = last_linear(model)
    path = next(path for path, module in model.named_modules() if module is old)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.default_generator.manual_seed(seed)
        new = nn.Linear(old.in_features, classes, bias=old.bias is not None).to(old.weight)
        kept = min(classes, old.out_features)
        for target, source in zip(new.parameters(), old.parameters(), strict=True):
            target[:kept] = source[:kept]
            target.requires_grad_(source.requires_grad)
    model.set_submodule(path, new)
