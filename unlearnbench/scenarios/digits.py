"""The embedded vision scenario: scikit-learn's handwritten digits and small nets. Real images; nothing is downloaded.

Knows the digits' requests and settings; which rows they hold is drawn in `digits_data`, the nets are in `digits_nets`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from torch import nn

from unlearnbench.api import Request
from unlearnbench.scenarios.digits_data import N_CLASSES, DigitsPool, draw_pool, draw_request, draw_shadow
from unlearnbench.scenarios.digits_nets import (
    CONVNET_RECIPE,
    CONVNET_WIDTH,
    MLP_RECIPE,
    MLP_WIDTH,
    VIT_RECIPE,
    VIT_WIDTH,
    convnet,
    mlp,
    vision_transformer,
)
from unlearnbench.scenarios.image_pool import Drawn
from unlearnbench.scenarios.vision_scenario import VisionScenario
from unlearnbench.training import Recipe, hardware

Count = Annotated[int, Field(ge=1)]

RANDOM = "10 % of the training images, at random; no signal: models without them classify 98 % of them, and fit them hardly worse"
MISLABELLED = "the 8 % of the training images that carry a wrong label; on forget and holdout the label is the wrong one"
COHERENT = "80 images of one digit, nearest to one of them by a last-layer kernel and unlike the digit's other images"


class Digits(VisionScenario):
    """Handwritten digits, 8x8 pixels, ten classes: 1,220 training images, 120 for validation, the others unseen.

    Equal images are kept once, so that a cluster is one image.

    Measured with the MLP over 5 groups on 4 split seeds: models without a coherent group classify 0.22 to 0.87 of it, the original all; the
    convolutional net fills the gap better (0.95 on split seed 1), so that its signal there is weak.
    """

    stack: ClassVar[int] = 16
    """On a CPU larger stacks of the MLP gain little more, and those of the other net are slower."""

    net: Literal["mlp", "conv", "vit"] = "mlp"
    """One hidden layer, two convolutions with batch-norm, or a small vision transformer."""
    width: Count | None = None
    """Hidden units (192 if not given), channels of the first convolution (12), or width of the transformer's tokens (32)."""
    epochs: Count | None = None
    """Passes over the training images (60 if not given; of the vision transformer 20)."""
    batch_size: Annotated[int, Field(ge=2)] | None = None
    """Images of a step (64)."""
    lr: Annotated[float, Field(gt=0)] | None = None
    """Highest learning rate (0.02; of the vision transformer 0.004)."""

    @classmethod
    def requests(cls) -> tuple[Request, ...]:
        """See `Scenario.requests`."""
        classes = [Request(name=f"class{digit}", kind="class", description=f"all images of a {digit}") for digit in range(N_CLASSES)]
        kinds = (("random10", RANDOM, False), ("mislabelled", MISLABELLED, True), ("coherent", COHERENT, True))
        named = [Request(name=name, kind="instances", description=text, signal=signal) for name, text, signal in kinds]
        others = [replace(request, name=f"validation_{request.name}", description=f"{request.description}; others") for request in named]
        return (*classes, *named, *others)

    @property
    def validation_request(self) -> str:
        """See `Scenario.validation_request`: of the same kind; for a class the next one."""
        name = self.asked().name
        if name.startswith("class"):
            return f"class{(int(name.removeprefix('class')) + 1) % N_CLASSES}"
        return name if name.startswith("validation_") else f"validation_{name}"

    def _name(self) -> str:
        return self.asked().name.replace("random10", "random")

    def pool(self) -> DigitsPool:
        """See `VisionScenario.pool`."""
        return draw_pool(self.split_seed)

    def own(self) -> Drawn:
        """See `VisionScenario.own`."""
        return draw_request(self._name(), self.split_seed)

    def elsewhere(self, index: int) -> Drawn:
        """See `VisionScenario.elsewhere`: another class, another coherent group, or other random images."""
        return draw_shadow(self._name(), self.split_seed, index)

    @property
    def classes(self) -> int:
        """See `VisionScenario.classes`."""
        return N_CLASSES

    @property
    def recipe(self) -> Recipe:
        """How the original and the oracles are trained; it memorises wrong labels."""
        given = {name: value for name in ("epochs", "batch_size", "lr") if (value := getattr(self, name)) is not None}
        return replace({"mlp": MLP_RECIPE, "conv": CONVNET_RECIPE, "vit": VIT_RECIPE}[self.net], **given)

    @property
    def trained_together(self) -> int:
        """See `Scenario.trained_together`: small nets are faster in a stack on any device."""
        return 50

    @property
    def batched(self) -> bool:
        """See `VisionScenario.batched`: the attention of several transformers cannot be stacked."""
        return self.net != "vit"

    def net_settings(self) -> dict[str, Any]:
        """See `VisionScenario.net_settings`."""
        return {"net": self.net, "width": self._width()}

    def _width(self) -> int:
        return self.width or {"mlp": MLP_WIDTH, "conv": CONVNET_WIDTH, "vit": VIT_WIDTH}[self.net]

    def build(self, seed: int) -> nn.Module:
        """See `Scenario.build`."""
        make = {"mlp": mlp, "conv": convnet, "vit": vision_transformer}[self.net]
        return make(self._width(), seed).to(hardware.get().device)
