"""ResNet-9, the net that is retrained by the hundred: a fixed whitening layer, eight convolutions, two of them pairs with a shortcut.

The layout after the whitening layer is that of the net which the authors of datamodel matching retrain (Kristian Georgiev et al.,
"Attribute-to-delete: machine unlearning via datamodel matching", arXiv:2410.23232): 64 and 128 channels with a 5x5 convolution of stride
2, a residual pair, 256 channels, pooling, a residual pair, 128 channels, the maximum over positions, a linear head without bias whose
logits are scaled by 0.2. Theirs has no whitening layer; it is that of Keller Jordan's "94 % on CIFAR-10 in 3.29 seconds on a single
GPU" (arXiv:2404.00498): eigenvectors of 2x2 patches and their negatives, scaled to unit variance, never trained. There it is computed
from all training images, those to forget included; here from the images that the caller gives, which must be the retained ones.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import unfold

from unlearnbench.nets.classifier import Classifier, seeded

PATCH = 2
"""Side of the patches that are whitened."""

SCALE = 0.2
"""Of the logits; it stands in the features, so that the logits are those of the head alone."""

CHUNK = 1024
"""Images whose patches are in memory at once."""


class Residual(nn.Module):
    """What a chain of layers gives, added to what it was given."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.branch = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """The same shape as `x`."""
        out: Tensor = x + self.branch(x)
        return out


class ResNet9(Classifier):
    """See the module; images have sides of 8 or more.

    Args:
        classes: Number of logits.
        channels: Channels of the images.
        width: Channels of the first trained convolution; the others have 2, 4 and 2 times as many.
        depth: Residual pairs at each of the two places.

    Attributes:
        whitening: The fixed layer; random directions until `whiten`.
        blocks: Its stages; what `layers.captured` counts.
    """

    def __init__(self, *, classes: int, channels: int, width: int = 64, depth: int = 1) -> None:
        super().__init__()
        directions = channels * PATCH * PATCH
        self.whitening = nn.Conv2d(channels, 2 * directions, PATCH, bias=False)
        with torch.no_grad():
            _fill(self.whitening, torch.linalg.qr(torch.randn(directions, directions)).Q)
        self.whitening.weight.requires_grad_(False)
        self.relu = nn.ReLU()
        stages: list[nn.Module] = [_convolution(2 * directions, width), _convolution(width, 2 * width, kernel=5, stride=2)]
        stages += [_pair(2 * width) for _ in range(depth)]
        stages += [nn.Sequential(*_convolution(2 * width, 4 * width), nn.MaxPool2d(2))]
        stages += [_pair(4 * width) for _ in range(depth)]
        stages += [_convolution(4 * width, 2 * width)]
        self.blocks = nn.Sequential(*stages)
        self.pool = nn.AdaptiveMaxPool2d(1)
        self.flatten = nn.Flatten()
        self.head = nn.Linear(2 * width, classes, bias=False)

    def features(self, images: Tensor) -> Tensor:
        """See `Classifier.features`: the maximum over positions, times 0.2."""
        maps = self.blocks(self.relu(self.whitening(images)))
        out: Tensor = SCALE * self.flatten(self.pool(maps))
        return out

    @torch.no_grad()
    def whiten(self, images: Tensor) -> None:
        """Set the fixed layer from the images that the net is going to be trained on ``[n, channels, size, size]``, standardised."""
        _fill(self.whitening, whitening_directions(images.to(self.whitening.weight.device)))


def resnet9(*, classes: int, channels: int, width: int = 64, depth: int = 1, seed: int) -> ResNet9:
    """A net whose weights are drawn from the seed alone; its whitening layer is still to be set."""
    return seeded(lambda: ResNet9(classes=classes, channels=channels, width=width, depth=depth), seed)


def whitening_directions(images: Tensor, *, eps: float = 5e-4) -> Tensor:
    """Directions along which patches have unit variance and no correlation.

    Args:
        images: ``[n, channels, height, width]``.
        eps: Added to the variances, so that directions of hardly any variance do not become noise.

    Returns:
        float64 ``[d, d]`` with d the pixels of a patch, one direction per row, the largest variance first; the largest entry of a
        direction is positive, so that the same images give the same directions everywhere.
    """
    patches = unfold(images[:1], PATCH).shape[1]
    total, square, count = images.new_zeros(patches, dtype=torch.float64), images.new_zeros(patches, patches, dtype=torch.float64), 0
    for part in torch.split(images, CHUNK):
        rows = unfold(part, PATCH).transpose(1, 2).flatten(0, 1).double()
        total, square, count = total + rows.sum(0), square + rows.mT @ rows, count + len(rows)
    mean = total / count
    variances, vectors = torch.linalg.eigh(square / count - torch.outer(mean, mean))
    directions = (vectors / (variances.clamp(min=0) + eps).sqrt()).mT.flip(0)
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    signed: Tensor = directions * largest.sign()
    return signed


def _fill(layer: nn.Conv2d, directions: Tensor) -> None:
    layer.weight.copy_(torch.cat([directions, -directions]).view_as(layer.weight))


def _convolution(inputs: int, outputs: int, *, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


def _pair(width: int) -> Residual:
    return Residual(*_convolution(width, width), *_convolution(width, width))
