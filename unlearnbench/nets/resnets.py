"""Residual nets for small images: ResNet-18 with a 3x3 stem, and the thin ResNet-20 and ResNet-56.

Kaiming He, Xiangyu Zhang, Shaoqing Ren, Jian Sun, "Deep residual learning for image recognition", CVPR 2016, arXiv:1512.03385. The thin
nets are those of its section 4.2, with shortcuts that have no weights (its option A), so that the published weights of Yerlan
Idelbayev's ResNet-20 fit. Of the ResNet-18 for ImageNet the stem is replaced, as is usual for 32x32 images: one 3x3 convolution, no
pooling. Weights start as He et al. propose (normal, by fan-out), batch-norm at one and zero.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from unlearnbench.api import UserError
from unlearnbench.nets.classifier import Classifier, seeded

Shortcut = Literal["padded", "projected"]


class Padded(nn.Module):
    """A shortcut without weights: every `stride`-th pixel, and zero channels on both sides up to the number wanted.

    Args:
        inputs: Channels that come in.
        outputs: Channels that go out, more by an even number.
        stride: Step between the pixels that are kept.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride, self.each = stride, (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        """``[B, inputs, h, w]`` to ``[B, outputs, ceil(h / stride), ceil(w / stride)]``."""
        return pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.each, self.each))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch-norm, added to a shortcut.

    Args:
        inputs: Channels that come in.
        outputs: Channels that go out.
        stride: Of the first convolution.
        shortcut: padded has no weights; projected is a 1x1 convolution with batch-norm. Both only where the shape changes.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            projection = (nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
            self.shortcut = Padded(inputs, outputs, stride) if shortcut == "padded" else nn.Sequential(*projection)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """``[B, inputs, h, w]`` to ``[B, outputs, h / stride, w / stride]``."""
        branch = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        out: Tensor = self.relu2(branch + self.shortcut(x))
        return out


class ResNet(Classifier):
    """A 3x3 stem, stages of basic blocks that double the channels and halve the sides, the mean over positions, a linear head.

    Args:
        classes: Number of logits.
        channels: Channels of the images.
        widths: Channels of each stage; the first also those of the stem.
        depth: Blocks per stage.
        shortcut: See `BasicBlock`.

    Attributes:
        blocks: All blocks in order; what `layers.captured` counts.
    """

    def __init__(self, *, classes: int, channels: int, widths: Sequence[int], depth: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, widths[0], 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU()
        blocks, inputs = [], widths[0]
        for stage, width in enumerate(widths):
            for number in range(depth):
                blocks.append(BasicBlock(inputs, width, 2 if stage and not number else 1, shortcut))
                inputs = width
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.head = nn.Linear(inputs, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def features(self, images: Tensor) -> Tensor:
        """See `Classifier.features`: the mean over positions of the last block's output."""
        maps = self.blocks(self.relu(self.bn(self.conv(images))))
        out: Tensor = self.flatten(self.pool(maps))
        return out


def resnet18(*, classes: int, channels: int, width: int = 64, depth: int = 2, seed: int) -> ResNet:
    """Four stages of `width`, 2, 4 and 8 times `width` channels, `depth` blocks each; 11.2 million weights as given."""
    widths = [width * factor for factor in (1, 2, 4, 8)]
    return seeded(lambda: ResNet(classes=classes, channels=channels, widths=widths, depth=depth, shortcut="projected"), seed)


def thin_resnet(*, classes: int, channels: int, width: int = 16, depth: int, seed: int) -> ResNet:
    """Three stages of `width`, 2 and 4 times `width` channels, `depth` blocks each: 3 make ResNet-20, 9 make ResNet-56."""
    widths = [width * factor for factor in (1, 2, 4)]
    return seeded(lambda: ResNet(classes=classes, channels=channels, widths=widths, depth=depth, shortcut="padded"), seed)


def load_published_resnet20(path: Path) -> ResNet:
    """The ResNet-20 of `resnet20-12fca82f.th` (Yerlan Idelbayev, pytorch_resnet_cifar10, BSD 2-Clause), in eval mode, on the CPU.

    It was trained on the whole training set of CIFAR-10, on pixels of 0 to 1 from which ImageNet's means (.485 .456 .406) were taken
    and which were divided by its deviations (.229 .224 .225).

    Raises:
        UserError: there is no such file, it is none that torch reads without running code, or its weights are others.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path}; expected: the published weights resnet20-12fca82f.th")
    try:
        published = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    except Exception as error:  # torch raises many kinds for damaged files
        raise UserError(f"{path} is no checkpoint with a state_dict: {' '.join(str(error).split())[:120]}") from error
    model = thin_resnet(classes=10, channels=3, depth=3, seed=0)
    try:
        model.load_state_dict({_renamed(name): tensor for name, tensor in published.items()} | _counters(model))
    except RuntimeError as error:  # names or shapes
        raise UserError(f"the weights in {path} are not those of a ResNet-20: {' '.join(str(error).split())[:160]}") from error
    return model.eval()


def _renamed(name: str) -> str:
    """The name here of a published tensor: stages are joined, the wrapper for several GPUs is gone."""
    first, *rest = name.removeprefix("module.").split(".")
    if first.startswith("layer") and rest:
        return ".".join(["blocks", str(3 * (int(first.removeprefix("layer")) - 1) + int(rest[0])), *rest[1:]])
    return ".".join([{"conv1": "conv", "bn1": "bn", "linear": "head"}.get(first, first), *rest])


def _counters(model: nn.Module) -> dict[str, Tensor]:
    """The counters of batches, which are younger than the published file; nothing reads them where momentum is given."""
    return {name: tensor for name, tensor in model.state_dict().items() if name.endswith("num_batches_tracked")}
