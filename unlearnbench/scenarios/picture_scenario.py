"""The base of scenarios on pictures from files: the nets, how they are trained, and the requests that all of them serve.

Knows nets, recipes and requests for instances; which files there are and what their classes are called is up to its subclasses.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from unlearnbench.api import Plan, TrainView, UserError
from unlearnbench.nets import NetName, net, prepare, recipe_of
from unlearnbench.scenarios.image_pool import Drawn
from unlearnbench.scenarios.picture_pool import PicturePool
from unlearnbench.scenarios.picture_requests import SHARES, draw_elsewhere, draw_instances, validation_of
from unlearnbench.scenarios.vision_scenario import VisionScenario, both
from unlearnbench.training import Recipe, hardware

Count = Annotated[int, Field(ge=1)]


class PictureScenario(VisionScenario):
    """Pictures in colour, standardised by fixed constants, not augmented: a model sees each picture as it is scored.

    Of equal pictures to train on with one label all are forgotten or none; one with another label, or an unseen one that is equal to a
    training picture, is left out. One in ten of the unseen pictures of a class is for validation.
    """

    net: NetName = "resnet9"
    """The architecture; recipes are those of the papers, see `unlearnbench.nets.recipe_of`."""
    width: Count | None = None
    """Channels of the first convolution, or width of the ViT's tokens; None as published."""
    depth: Count | None = None
    """Blocks per stage; None as published."""
    epochs: Count | None = None
    """None is the net's recipe, which is meant for 50,000 pictures."""
    batch_size: Annotated[int, Field(ge=2)] | None = None
    lr: Annotated[float, Field(gt=0)] | None = None
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 computes the loss under autocast."""
    train_per_class: Count | None = None
    """Training pictures taken of each class, drawn by the split seed; None for all."""
    test_per_class: Count | None = None
    """Unseen pictures taken of each class; None for all."""
    forget_size: Count | None = None
    """Pictures that a request for instances forgets; None is the share that its description says, and 20 at least."""

    # ---------------------------------------------------------------------------------------------------- what subclasses know

    @abstractmethod
    def pool(self) -> PicturePool:
        """See `VisionScenario.pool`."""

    @abstractmethod
    def own_class(self) -> Drawn:
        """The rows of a request for a class, or for a class within one."""

    @abstractmethod
    def other_class(self, index: int) -> Drawn:
        """The rows of another class, drawn by the split seed and this number."""

    # ---------------------------------------------------------------------------------------------------------------- requests

    def _instances(self) -> str | None:
        """The request's name if it asks for instances."""
        name = self.asked().name
        return name if name.removeprefix("validation_") in SHARES else None

    @property
    def validation_request(self) -> str:
        """See `Scenario.validation_request`: of the same kind."""
        name = self._instances()
        return self.next_class() if name is None else validation_of(name)

    @abstractmethod
    def next_class(self) -> str:
        """The request for the next class."""

    def own(self) -> Drawn:
        """See `VisionScenario.own`."""
        name = self._instances()
        return self.own_class() if name is None else draw_instances(self.pool(), name, self.forget_size)

    def elsewhere(self, index: int) -> Drawn:
        """See `VisionScenario.elsewhere`."""
        name = self._instances()
        return self.other_class(index) if name is None else draw_elsewhere(self.pool(), name, self.forget_size, index)

    # ---------------------------------------------------------------------------------------------------------------- training

    stack: ClassVar[int] = 8
    """Of the nets as published, 32x32 pixels, eight keep some 10 GiB (ResNet-18) or less for their backward passes."""

    @property
    def batched(self) -> bool:
        """See `VisionScenario.batched`: residual nets, on a GPU, where a step of one narrow net leaves most of the device idle.

        On a CPU the loop is as fast, with the memory of one model (`benchmarks/ensemble.py` measures both).
        """
        return self.net != "vit" and hardware.get().device == "cuda"

    @property
    def trained_together(self) -> int:
        """See `Scenario.trained_together`: a stack on a GPU; where the loop trains, one, so that the models are shared out to workers."""
        return self.stack if self.batched else 1

    @property
    def classes(self) -> int:
        """See `VisionScenario.classes`."""
        return self.pool().classes

    @property
    def recipe(self) -> Recipe:
        """How the original and the oracles are trained."""
        given = {name: getattr(self, name) for name in ("epochs", "batch_size", "lr")}
        return replace(recipe_of(self.net), precision=self.precision, **{name: value for name, value in given.items() if value is not None})

    def net_settings(self) -> dict[str, Any]:
        """See `VisionScenario.net_settings`."""
        return {"net": self.net, "width": self.width, "depth": self.depth, "classes": self.classes}

    def build(self, seed: int) -> nn.Module:
        """See `Scenario.build`; a ResNet-9's whitening layer is still to be computed from the pictures it is trained on."""
        channels, height, width = self.pool().images.shape[1:]
        if height != width:
            raise UserError(f"pictures have {height}x{width} pixels; nets take squares")
        model = net(self.net, classes=self.classes, channels=channels, size=height, width=self.width, depth=self.depth, seed=seed)
        return model.to(hardware.get().device)

    def prepare(self, model: nn.Module, images: Tensor) -> None:
        """See `VisionScenario.prepare`: a ResNet-9's whitening layer."""
        prepare(model, images)

    def train_view(self, plan: Plan) -> TrainView:
        """See `Scenario.train_view`; `build` gives models that are prepared for the plan's images."""
        rows = self.without(plan.rows)

        def build(seed: int) -> nn.Module:
            model = self.build(seed)
            self.prepare(model, rows.images.to(hardware.get().device))
            return model

        return replace(super().train_view(plan), data=both(rows), build=build)
