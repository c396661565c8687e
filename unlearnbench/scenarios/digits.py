"""The embedded vision scenario: scikit-learn's handwritten digits and small nets. Real images; nothing is downloaded.

Knows the digits' splits as a `Scenario`; which rows they hold is drawn in `digits_data`, the nets are in `digits_nets`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from unlearnbench.api import Data, Modality, Need, Plan, Request, Scenario, Split, Task, TrainView, UserError
from unlearnbench.ensembles import train_ensemble
from unlearnbench.evidence import Evidence
from unlearnbench.scenarios.digits_data import N_CLASSES, Drawn, Pool, draw_pool, draw_request, draw_shadow, row_id
from unlearnbench.scenarios.digits_nets import CONVNET_WIDTH, MLP_RECIPE, MLP_WIDTH, PIXEL_MEAN, PIXEL_STD, convnet, mlp
from unlearnbench.scenarios.images import ImageData, image_evidence, image_loss
from unlearnbench.training import Recipe, hardware

STACK = 16
"""Models that take their steps together: on a CPU larger stacks of the MLP gain little more, and those of the other net are slower."""

Count = Annotated[int, Field(ge=1)]

RANDOM = "10 % of the training images, at random; no signal: models without them classify 98 % of them, and fit them hardly worse"
MISLABELLED = "the 8 % of the training images that carry a wrong label; on forget and holdout the label is the wrong one"
COHERENT = "80 images of one digit, nearest to one of them by a last-layer kernel and unlike the digit's other images"


class Digits(Scenario):
    """Handwritten digits, 8x8 pixels, ten classes: 1,220 training images, 120 for validation, the others unseen.

    Plans leave out images by id (`Plan.rows`). For a class request "test" and "holdout" are unseen images of the other classes. For
    mislabelled images holdout holds unseen images with labels made wrong in the same way. "holdout" and "test" share no image.

    Measured with the MLP over 5 groups on 4 split seeds: models without a coherent group classify 0.22 to 0.87 of it, the original all; the
    convolutional net fills the gap better (0.95 on split seed 1), so that its signal there is weak.
    """

    modality: ClassVar[Modality] = "vision"
    task: ClassVar[Task] = "classify"
    splits: ClassVar[tuple[str, ...]] = ("forget", "retain", "holdout", "test")
    trained_together: ClassVar[int] = 50

    net: Literal["mlp", "conv"] = "mlp"
    """One hidden layer, or two convolutions with batch-norm."""
    width: Count | None = None
    """Hidden units (192 if not given), or channels of the first convolution (12)."""
    epochs: Count = MLP_RECIPE.epochs
    batch_size: Annotated[int, Field(ge=2)] = MLP_RECIPE.batch_size
    lr: Annotated[float, Field(gt=0)] = MLP_RECIPE.lr
    shadow: int | None = None
    """Number of another forget set of the request's size; None is the request's own."""

    # ---------------------------------------------------------------------------------------------------------------- requests

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

    def shadow_request(self, index: int) -> Digits:
        """See `Scenario.shadow_request`: another class, another coherent group, or other random images.

        Labels stay those of this request, so that a model trained on them still knows this request's forget set.
        """
        return replace(self, shadow=index)

    def _drawn(self) -> Drawn:
        """The forget and holdout rows of this request, or of its shadow."""
        if self.shadow is None:
            return draw_request(self._name(), self.split_seed)
        return draw_shadow(self._name(), self.split_seed, self.shadow)

    def _name(self) -> str:
        return self.asked().name.replace("random10", "random")

    def forget_rows(self) -> frozenset[str]:
        """See `Scenario.forget_rows`: ids of training images."""
        return frozenset(map(row_id, self._drawn().forget))

    # -------------------------------------------------------------------------------------------------------------------- data

    def _pool(self) -> Pool:
        return draw_pool(self.split_seed)

    def _labels(self) -> Tensor:
        """The label of every image as this request's models are trained on it, int64 [n]."""
        pool = self._pool()
        if not self._name().endswith("mislabelled"):
            return pool.truth
        own = draw_request(self._name(), self.split_seed)
        labels = pool.truth.clone()
        changed = torch.tensor([*own.forget, *own.holdout])
        labels[changed] = pool.wrong[changed]
        return labels

    def _data(self, rows: Sequence[int]) -> ImageData:
        return self._pool().data(rows, self._labels())

    def split(self, name: str) -> ImageData:
        """See `Scenario.split`."""
        pool, drawn = self._pool(), self._drawn()
        gone, classes = {*drawn.forget, *drawn.holdout}, self._kept_classes()
        rows = {
            "forget": drawn.forget,
            "retain": [row for row in pool.train if row not in gone],
            "holdout": drawn.holdout,
            "test": [row for row in pool.unseen if row not in gone and int(pool.truth[row]) in classes],
        }
        return self._data(rows[name])

    def _validation(self) -> ImageData:
        """Validation images; of a forgotten class none, since a model that forgot it must not know it."""
        pool, classes = self._pool(), self._kept_classes()
        return pool.data([row for row in pool.validation if int(pool.truth[row]) in classes])

    def _kept_classes(self) -> set[int]:
        """The classes that a model must know after forgetting: all but that of a class request."""
        gone = int(self._pool().truth[self._drawn().forget[0]]) if self.asked().kind == "class" else None
        return set(range(N_CLASSES)) - {gone}

    def method_view(self) -> dict[str, Any]:
        """See `Scenario.method_view`."""
        return {
            **self._common(),
            "forget": _both(self.split("forget")),
            "retain": _both(self.split("retain")),
            "validation": self._validation(),
        }

    def _common(self) -> dict[str, Any]:
        return {
            "modality": self.modality,
            "task": self.task,
            "kind": self.asked().kind,
            "classes": N_CLASSES,
            "tokenizer": None,
            "recipe": self.recipe,
            "loss": image_loss,
            "encode": None,
        }

    def attack_parts(self) -> dict[str, Any]:
        """See `Scenario.attack_parts`; the attacker holds a random half of the forget images.

        Unrelated rows are negatives (dark for light) of the validation images, which no model trains on, with their classes.
        """
        forget, judged, unrelated = self.split("forget"), self.judged(), self._validation()
        return {
            "forget": _both(forget),
            "forget_part": _both(forget.take([i for i, row in enumerate(forget.ids) if row not in judged])),
            "retain": _both(self.split("retain")),
            "unrelated": unrelated.rewritten(_negative),
        }

    def judged(self) -> frozenset[str]:
        """See `Scenario.judged`."""
        order = self._pool().shuffled("attack", self._drawn().forget)
        return frozenset(map(row_id, order[len(order) // 2 :]))

    # ---------------------------------------------------------------------------------------------------------------- training

    @property
    def recipe(self) -> Recipe:
        """How the original and the oracles are trained; it memorises wrong labels."""
        return replace(MLP_RECIPE, epochs=self.epochs, batch_size=self.batch_size, lr=self.lr)

    def _left(self, plan: Plan) -> ImageData:
        """The training rows of a plan."""
        training = self._data(self._pool().train)
        unknown = sorted(plan.rows - set(training.ids))
        if unknown:
            raise UserError(f"{unknown[0]!r} is no training image of split seed {self.split_seed}")
        return training.take([i for i, row in enumerate(training.ids) if row not in plan.rows])

    def training_settings(self, plan: Plan) -> dict[str, Any]:
        """See `Scenario.training_settings`."""
        rows = self._left(plan)
        content = hashlib.sha256(rows.images.numpy().tobytes() + rows.labels.numpy().tobytes())
        return {"data": content.hexdigest(), "net": self.net, "width": self._width(), "recipe": asdict(self.recipe)}

    def _width(self) -> int:
        return self.width or {"mlp": MLP_WIDTH, "conv": CONVNET_WIDTH}[self.net]

    def build(self, seed: int) -> nn.Module:
        """See `Scenario.build`."""
        make = {"mlp": mlp, "conv": convnet}[self.net]
        return make(self._width(), seed).to(hardware.get().device)

    def train_view(self, plan: Plan) -> TrainView:
        """See `Scenario.train_view`."""
        return TrainView(**self._common(), data=_both(self._left(plan)), build=self.build)

    def train(self, plans: Sequence[Plan], seeds: Sequence[int]) -> list[nn.Module]:
        """See `Scenario.train`; several models take their steps together."""
        device = hardware.get().device
        training = self._data(self._pool().train)
        kept = [set(self._left(plan).ids) for plan in plans]
        return train_ensemble(
            self.build,
            training.images.to(device),
            training.labels.to(device),
            torch.tensor([[row in ids for row in training.ids] for ids in kept], device=device),
            seeds,
            self.recipe,
            batched=len(plans) > 1,
            chunk=STACK,
            label=f"{', '.join(dict.fromkeys(plan.role for plan in plans))} on {self.request}",
        )

    # ---------------------------------------------------------------------------------------------------------------- evidence

    def evidence(
        self,
        model: nn.Module,
        needs: frozenset[Need],
        *,
        rewrite: Callable[[Any], Any] | None = None,
        only: frozenset[str] | None = None,
    ) -> Evidence:
        """See `Scenario.evidence`; `rewrite` changes one image tensor, standardised, float32 [1, 8, 8]."""
        splits = {}
        for name in sorted({need.split for need in needs}):
            data = self.split(name)
            if name == "forget" and only is not None:
                data = data.take([i for i, row in enumerate(data.ids) if row in only])
            splits[name] = data if rewrite is None else data.rewritten(rewrite)
        return image_evidence(model, splits, needs)


def _both(data: Data) -> Split:
    return Split(train=data, eval=data)


def _negative(image: Tensor) -> Tensor:
    """Dark for light: pixel p of 0 to 16 becomes 16 - p, in standardised units."""
    return (16 - 2 * PIXEL_MEAN) / PIXEL_STD - image
