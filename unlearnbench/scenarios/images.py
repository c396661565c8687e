"""What vision scenarios share: images as rows, the loss, and the one evidence pass over a classifier.

Knows batches of labelled images and models that map images to logits; no data set, no request and no metric.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, cross_entropy

from unlearnbench.api import Batch, Data, Need, UserError
from unlearnbench.evidence import Evidence
from unlearnbench.layers import captured, evaluating, last_linear

Floats = NDArray[np.floating[Any]]

PENULTIMATE = -1
"""`Need.layer` of the last linear layer's input; other numbers count the model's blocks."""
GRID = 8
"""Cells a side to which pixels are averaged: evidence is kept for every model, and pixels are the same for all."""


class ImageData(Data):
    """Labelled images.

    Args:
        images: float32 ``[n, channels, height, width]``.
        labels: Classes, int64 ``[n]``; of a mislabelled image the wrong one.
        ids: Identity of each image: the same image has the same identity in all splits.
        clusters: What each image belongs to; by default each is its own.
    """

    def __init__(self, images: Tensor, labels: Tensor, ids: Sequence[str], clusters: Sequence[str] | None = None) -> None:
        if not len(images) == len(labels) == len(ids) == len(ids if clusters is None else clusters):
            raise ValueError(f"{len(images)} images, {len(labels)} labels and {len(ids)} ids; allowed: one of each per row")
        self.images, self.labels = images, labels
        self.ids = tuple(ids)
        self.clusters = self.ids if clusters is None else tuple(clusters)

    def take(self, index: Sequence[int]) -> ImageData:
        """See `Data.take`."""
        rows = torch.tensor(list(index), dtype=torch.int64)
        return ImageData(self.images[rows], self.labels[rows], [self.ids[i] for i in index], [self.clusters[i] for i in index])

    def batch(self, index: Sequence[int] | Tensor) -> Batch:
        """See `Data.batch`: images float32 ``[B, channels, height, width]`` and labels int64 ``[B]``."""
        rows = torch.as_tensor(index, dtype=torch.int64)
        return {"images": self.images[rows], "labels": self.labels[rows]}

    def rewritten(self, rewrite: Callable[[Tensor], Tensor]) -> ImageData:
        """The same rows with each image ``[channels, height, width]`` changed by an attack on inputs."""
        return ImageData(torch.stack([rewrite(image) for image in self.images]), self.labels, self.ids, self.clusters)


def image_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy of each image ``[B]``, in nats, computed in float32 at least."""
    logits = model(batch["images"])
    return cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), batch["labels"], reduction="none")


def image_evidence(model: nn.Module, splits: Mapping[str, ImageData], needs: frozenset[Need], *, batch_size: int = 512) -> Evidence:
    """Everything that `needs` name, in one pass over the distinct images; one more pass for each distinct intervention.

    Args:
        model: a classifier, images to logits, where it is (device) and as it is (dtype); unchanged afterwards.
        splits: the rows of every split that a need names; an image with one identity in two splits is forwarded once.
        needs: logits, `coarse_pixels`, and features: layer -1 is the input of the last linear layer, other layers are blocks' outputs,
            averaged over positions (``[B, channels, height, width]``) or tokens (``[B, tokens, width]``).
        batch_size: images per forward pass.

    Returns:
        Evidence of the given splits, all arrays in float32, with the labels of every split.

    Raises:
        UserError: a split that is not given or has no rows, a need that only language has, or a layer that is not there.
    """
    wanted = sorted(needs, key=repr)
    for need in wanted:
        if need.split not in splits or not len(splits[need.split]):
            filled = sorted(name for name, data in splits.items() if len(data))
            raise UserError(f"split {need.split!r} has no rows to score; with rows: {', '.join(filled)}")
        if need.what not in ("logits", "features", "pixels"):
            raise UserError(f"a classifier of images has no {need.what}; it gives: logits, features, pixels")
    arrays = {need: coarse_pixels(splits[need.split]) for need in wanted if need.what == "pixels"}
    passed = [need for need in wanted if need.what != "pixels"]
    with torch.no_grad(), evaluating(model):
        for intervention in dict.fromkeys(need.intervention for need in passed):
            group = [need for need in passed if need.intervention == intervention]
            images: dict[str, Tensor] = {}
            for name in dict.fromkeys(need.split for need in group):
                images.update(zip(splits[name].ids, splits[name].images, strict=True))
            places = {identity: place for place, identity in enumerate(images)}
            layers = sorted({need.layer for need in group if need.what == "features"})
            with ExitStack() as stack:
                if intervention is not None:
                    stack.enter_context(intervention.applied(model))
                logits, features = _forward(model, list(images.values()), layers, batch_size)
            for need in group:
                rows = [places[identity] for identity in splits[need.split].ids]
                arrays[need] = (logits if need.what == "logits" else features[need.layer])[rows]
    return Evidence(
        ids={name: data.ids for name, data in splits.items()},
        clusters={name: data.clusters for name, data in splits.items()},
        arrays=arrays,
        labels={name: data.labels.numpy().astype(np.int64) for name, data in splits.items()},
    )


def coarse_pixels(data: ImageData) -> Floats:
    """The images, each channel averaged over a grid of at most 8 x 8 cells, float32 ``[n, channels * cells]``."""
    height, width = (min(GRID, side) for side in data.images.shape[2:])
    return np.asarray(adaptive_avg_pool2d(data.images, (height, width)).flatten(1).to(torch.float32).numpy())


def _forward(model: nn.Module, images: Sequence[Tensor], layers: Sequence[int], batch_size: int) -> tuple[Floats, dict[int, Floats]]:
    """Logits of the images, and the features of some layers."""
    like = next(model.parameters())
    logits: list[Floats] = []
    features: dict[int, list[Floats]] = {layer: [] for layer in layers}
    with _recorded(model, layers) as outputs:
        for start in range(0, len(images), batch_size):
            logits.append(_rows(model(torch.stack(list(images[start : start + batch_size])).to(like.device, like.dtype))))
            for layer in layers:
                features[layer].append(_rows(outputs[layer]))
    return np.concatenate(logits), {layer: np.concatenate(parts) for layer, parts in features.items()}


@contextmanager
def _recorded(model: nn.Module, layers: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """A context that records what layers give in the last forward pass; the penultimate features are no block's output."""
    blocks = [layer for layer in layers if layer != PENULTIMATE]
    with ExitStack() as stack:
        outputs = stack.enter_context(captured(model, blocks)) if blocks else {}
        if PENULTIMATE in layers:

            def keep(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
                outputs[PENULTIMATE] = inputs[0]

            handle = last_linear(model).register_forward_pre_hook(keep)
            stack.callback(handle.remove)
        yield outputs


def _rows(output: Tensor) -> Floats:
    """One float32 vector per image ``[B, width]``: the mean over positions or tokens, if there are any."""
    wide = output.detach().to(torch.float32)
    if wide.dim() == 4:
        wide = wide.mean(dim=(2, 3))
    elif wide.dim() == 3:
        wide = wide.mean(dim=1)
    return np.asarray(wide.cpu().numpy())
