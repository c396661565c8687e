"""The images of the digits scenario (scikit-learn's, 8x8, ten classes), its small nets and how these are trained.

All end in features and a linear head on them, so that last-layer kernels, probes and CKA read `features` and nothing else; the vision
transformer is that of `nets`. The recipes of the other two memorise: of 8 % wrong training labels a net learns all (measured
over 9 pairs of split and seed: 0.99 to 1.00 by the MLP, over 6 pairs 0.98 to 1.00 by the convolutional net; both 0.00 to 0.01
without these rows). Knows nothing of requests.
"""

import torch
from torch import Tensor, nn

from unlearnbench.nets import VisionTransformer, vit
from unlearnbench.training import Recipe

#: Mean and standard deviation of all pixels of the data set (0 to 16); scaling speeds up memorising several times.
PIXEL_MEAN, PIXEL_STD = 4.884, 6.017

MLP_WIDTH = 192
MLP_RECIPE = Recipe(epochs=60, batch_size=64, lr=0.02, schedule="linear")
CONVNET_WIDTH = 12
CONVNET_RECIPE = Recipe(epochs=60, batch_size=64, lr=0.02, schedule="linear")
VIT_WIDTH = 32
VIT_RECIPE = Recipe(epochs=20, batch_size=64, lr=0.004, weight_decay=0.05, schedule="cosine", warmup=0.1)


def images() -> tuple[Tensor, Tensor]:
    """All 1,797 images, standardised, float32 ``[n, 1, 8, 8]``, and their digits, int64 ``[n]``; nothing is downloaded."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = torch.from_numpy(digits.images).to(torch.float32)[:, None]
    return (pixels - PIXEL_MEAN) / PIXEL_STD, torch.from_numpy(digits.target).long()


class DigitsNet(nn.Module):
    """A classifier of 8x8 images in two parts.

    Args:
        body: From images ``[n, 1, 8, 8]`` to features ``[n, f]``.
        head: The last layer, from features to logits ``[n, 10]``.
    """

    def __init__(self, body: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.body, self.head = body, head

    def features(self, images: Tensor) -> Tensor:
        """Penultimate features ``[n, f]`` of images ``[n, 1, 8, 8]``."""
        out: Tensor = self.body(images)
        return out

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``[n, 10]`` of images ``[n, 1, 8, 8]``."""
        out: Tensor = self.head(self.features(images))
        return out


def mlp(width: int, seed: int) -> DigitsNet:
    """One hidden layer: 64 -> `width` -> 10; its initial weights are drawn from `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return DigitsNet(nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU()), nn.Linear(width, 10))


def convnet(width: int, seed: int) -> DigitsNet:
    """Two 3x3 convolutions with batch-norm, `width` and twice `width` channels; initial weights from `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        body = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 3, padding=1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
        )
        return DigitsNet(body, nn.Linear(8 * width, 10))


def vision_transformer(width: int, seed: int) -> VisionTransformer:
    """Sixteen patches of 2x2 pixels and a class token, two blocks of `width`; initial weights from `seed` alone."""
    return vit(classes=10, channels=1, size=8, patch=2, width=width, depth=2, seed=seed)
