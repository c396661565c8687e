"""The nets by name, with the recipe that each is trained by from scratch. Knows no data set.

The recipes have no label smoothing, and no test-time augmentation belongs to them: both distort margins and membership. The loss is
cross-entropy; augmentation is the scenario's. Where a paper lowers the rate in steps, these lower it along a cosine.
"""

from collections.abc import Callable
from typing import Literal

from torch import Tensor, nn

from unlearnbench.api import UserError
from unlearnbench.nets.classifier import Classifier
from unlearnbench.nets.resnet9 import ResNet9, resnet9
from unlearnbench.nets.resnets import resnet18, thin_resnet
from unlearnbench.nets.vit import vit
from unlearnbench.recipe import Recipe

NetName = Literal["resnet9", "resnet18", "resnet20", "resnet56", "vit"]

SMALLEST = 8
"""Side of the smallest images that all nets take."""

_RECIPES: dict[NetName, Recipe] = {
    # Datamodel matching's: 24 epochs, rate .4, rising for 5 of them.
    "resnet9": Recipe(
        epochs=24, batch_size=256, lr=0.4, optimizer="sgd", momentum=0.9, weight_decay=5e-4, schedule="linear", warmup=5 / 24
    ),
    # SalUn's and l1-sparse's: 182 epochs.
    "resnet18": Recipe(epochs=182, batch_size=256, lr=0.1, optimizer="sgd", momentum=0.9, weight_decay=5e-4, schedule="cosine"),
    # He et al.'s, and Idelbayev's.
    "resnet20": Recipe(epochs=200, batch_size=128, lr=0.1, optimizer="sgd", momentum=0.9, weight_decay=1e-4, schedule="cosine"),
    # The deep one is warmed up, as in He et al., section 4.2 (theirs by a lower rate).
    "resnet56": Recipe(
        epochs=200, batch_size=128, lr=0.1, optimizer="sgd", momentum=0.9, weight_decay=1e-4, schedule="cosine", warmup=0.01
    ),
    # Ours: no paper trains so small a ViT from scratch on so few images.
    "vit": Recipe(epochs=100, batch_size=256, lr=1e-3, optimizer="adamw", weight_decay=0.05, schedule="cosine", warmup=0.05, clip=1.0),
}


def net(
    name: NetName, *, classes: int, channels: int, size: int, width: int | None = None, depth: int | None = None, seed: int
) -> Classifier:
    """A fresh net on the CPU; its weights are drawn from the seed alone, and torch's random state is left as it was.

    A ResNet-9 has a fixed first layer that `prepare` computes from the training images.

    Args:
        name: Which one.
        classes: Number of logits.
        channels: Channels of the images.
        size: Side of the images, 8 or more.
        width: Channels of the first convolution (64; of the thin ResNets 16), or width of the ViT's tokens (192, a multiple of 4).
        depth: Blocks per stage (ResNet-18: 2, -20: 3, -56: 9), residual pairs per place (ResNet-9: 1), or the ViT's blocks (6).
        seed: Of the initial weights.

    Raises:
        UserError: a name or size that is not allowed.
    """
    if name not in _RECIPES:
        raise UserError(f"net is {name!r}; allowed: {', '.join(_RECIPES)}")
    for what, value, least in (("size", size, SMALLEST), ("width", width, 1), ("depth", depth, 1)):
        if value is not None and value < least:
            raise UserError(f"{what} of {name} is {value}; allowed: {least} or more")
    given = {key: value for key, value in (("width", width), ("depth", depth)) if value is not None}
    shape = {"classes": classes, "channels": channels, "seed": seed}
    makers: dict[NetName, Callable[[], Classifier]] = {
        "resnet9": lambda: resnet9(**shape, **given),
        "resnet18": lambda: resnet18(**shape, **given),
        "resnet20": lambda: thin_resnet(**shape, **{"depth": 3, **given}),
        "resnet56": lambda: thin_resnet(**shape, **{"depth": 9, **given}),
        "vit": lambda: vit(**shape, size=size, **given),
    }
    return makers[name]()


def recipe_of(name: NetName) -> Recipe:
    """How a net is trained from scratch on some 50,000 images of 32x32 pixels; smaller data and nets want other values.

    Raises:
        UserError: no net has this name.
    """
    if name not in _RECIPES:
        raise UserError(f"net is {name!r}; allowed: {', '.join(_RECIPES)}")
    return _RECIPES[name]


def prepare(model: nn.Module, images: Tensor) -> None:
    """Compute what a net takes from its training images before it is trained: a ResNet-9's whitening layer; the others take nothing.

    Args:
        model: Of `net`; changed in place.
        images: All that the model will be trained on, and no other: of an oracle the retained ones. Standardised, without augmentation,
            ``[n, channels, size, size]``.
    """
    if isinstance(model, ResNet9):
        model.whiten(images)
