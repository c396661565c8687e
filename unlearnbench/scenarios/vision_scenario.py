"""The base of scenarios that classify images: splits, views, training and evidence from a pool of images and the rows a request names.

Knows which rows go where; no data set, no net and no kind of request.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import lru_cache
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from unlearnbench.api import Data, Modality, Need, Plan, Scenario, Split, Task, TrainView, UserError
from unlearnbench.ensembles import train_ensemble
from unlearnbench.evidence import Evidence
from unlearnbench.scenarios.image_pool import Drawn, Pool
from unlearnbench.scenarios.images import ImageData, image_evidence, image_loss
from unlearnbench.training import Recipe, hardware

S = TypeVar("S", bound="VisionScenario")


class VisionScenario(Scenario):
    """A scenario of labelled images. Plans leave out images by cluster (`Plan.rows`): equal images are one cluster.

    "test" are the unseen images that are not held out. For a class request "test" and "holdout" show the other classes. For
    mislabelled images holdout holds unseen images with labels made wrong in the same way. "holdout" and "test" share no image.
    """

    modality: ClassVar[Modality] = "vision"
    task: ClassVar[Task] = "classify"
    splits: ClassVar[tuple[str, ...]] = ("forget", "retain", "holdout", "test")
    stack: ClassVar[int] = 16
    """Models of one chunk that take their steps together."""

    shadow: int | None = None
    """Number of another forget set of the request's size; None is the request's own."""

    # ---------------------------------------------------------------------------------------------------- what subclasses know

    @property
    @abstractmethod
    def classes(self) -> int:
        """Number of classes that models tell apart."""

    @property
    @abstractmethod
    def recipe(self) -> Recipe:
        """How the original and the oracles are trained."""

    @abstractmethod
    def net_settings(self) -> dict[str, Any]:
        """The architecture as plain values, for keys."""

    @abstractmethod
    def pool(self) -> Pool:
        """All images of this scenario."""

    @abstractmethod
    def own(self) -> Drawn:
        """The rows of the request itself."""

    @abstractmethod
    def elsewhere(self, index: int) -> Drawn:
        """Other rows to forget, as many, disjoint from the request's; the holdout that belongs to them."""

    @property
    def mislabelled(self) -> bool:
        """Whether the request's rows carry wrong labels."""
        return self.asked().name.endswith("mislabelled")

    @property
    def batched(self) -> bool:
        """Whether several models of this architecture may take their steps together."""
        return True

    # ---------------------------------------------------------------------------------------------------------------- requests

    def shadow_request(self: S, index: int) -> S:
        """See `Scenario.shadow_request`.

        Labels stay those of this request, so that a model trained on them still knows this request's forget set.
        """
        return replace(self, shadow=index)

    def drawn(self) -> Drawn:
        """The forget and holdout rows of this request, or of its shadow."""
        return self.own() if self.shadow is None else self.elsewhere(self.shadow)

    def forget_rows(self) -> frozenset[str]:
        """See `Scenario.forget_rows`: clusters of training images."""
        return frozenset(map(self.pool().identity, self.drawn().forget))

    # -------------------------------------------------------------------------------------------------------------------- data

    def _labels(self) -> Tensor:
        """The label of every image as this request's models are trained on it, int64 [n]."""
        pool = self.pool()
        if not self.mislabelled:
            return pool.truth
        own, labels = self.own(), pool.truth.clone()
        changed = torch.tensor([copy for row in (*own.forget, *own.holdout) for copy in (row, *pool.copies.get(row, ()))])
        labels[changed] = pool.wrong[changed]
        return labels

    def _data(self, rows: Sequence[int]) -> ImageData:
        return self.pool().data(rows, self._labels())

    def split(self, name: str) -> ImageData:
        """See `Scenario.split`."""
        pool, drawn = self.pool(), self.drawn()
        gone, classes = {*drawn.forget, *drawn.holdout}, self._kept_classes()
        if name == "forget":
            return self._data(drawn.forget)
        if name == "retain":
            return self._data([row for row in pool.train if row not in gone])
        if name == "holdout":
            return self._data(drawn.holdout)
        if name == "test":
            return self._data([row for row in pool.unseen if row not in gone and int(pool.truth[row]) in classes])
        raise UserError(f"{type(self).__name__} has no split {name!r}; it has: {', '.join(self.splits)}")

    def _validation(self) -> ImageData:
        """Validation images; of a forgotten class none, since a model that forgot it must not know it."""
        pool, classes = self.pool(), self._kept_classes()
        return pool.data([row for row in pool.validation if int(pool.truth[row]) in classes])

    def _kept_classes(self) -> set[int]:
        """The classes that a model must know after forgetting: all but that of a class request."""
        gone = int(self.pool().truth[self.drawn().forget[0]]) if self.asked().kind == "class" else None
        return set(range(self.classes)) - {gone}

    def method_view(self) -> dict[str, Any]:
        """See `Scenario.method_view`."""
        return {
            **self._common(),
            "forget": both(self.split("forget")),
            "retain": both(self.split("retain")),
            "validation": self._validation(),
        }

    def _common(self) -> dict[str, Any]:
        return {
            "modality": self.modality,
            "task": self.task,
            "kind": self.asked().kind,
            "classes": self.classes,
            "tokenizer": None,
            "recipe": self.recipe,
            "loss": image_loss,
            "encode": None,
        }

    def attack_parts(self) -> dict[str, Any]:
        """See `Scenario.attack_parts`; the attacker holds a random half of the forget images.

        Unrelated rows are negatives (dark for light) of the validation images, which no model trains on, with their classes.
        """
        forget, judged, unrelated, extremes = self.split("forget"), self.judged(), self._validation(), self.pool().extremes
        return {
            "forget": both(forget),
            "forget_part": both(forget.take([i for i, row in enumerate(forget.ids) if row not in judged])),
            "retain": both(self.split("retain")),
            "unrelated": unrelated.rewritten(lambda image: extremes - image),
        }

    def judged(self) -> frozenset[str]:
        """See `Scenario.judged`."""
        pool = self.pool()
        order = pool.shuffled("attack", self.drawn().forget)
        chosen = order[len(order) // 2 :]
        return frozenset(pool.identity(copy) for row in chosen for copy in (row, *pool.copies.get(row, ())))

    # ---------------------------------------------------------------------------------------------------------------- training

    def without(self, rows: frozenset[str]) -> ImageData:
        """The training images without these clusters.

        Raises:
            UserError: one of them is no training image.
        """
        training = self._data(self.pool().train)
        unknown = sorted(rows - set(training.clusters))
        if unknown:
            raise UserError(f"{unknown[0]!r} is no training image of split seed {self.split_seed}")
        return training.take([i for i, cluster in enumerate(training.clusters) if cluster not in rows])

    def training_settings(self, plan: Plan) -> dict[str, Any]:
        """See `Scenario.training_settings`."""
        return {"data": _content(self, plan.rows), **self.net_settings(), "recipe": asdict(self.recipe)}

    def train_view(self, plan: Plan) -> TrainView:
        """See `Scenario.train_view`."""
        return TrainView(**self._common(), data=both(self.without(plan.rows)), build=self.build)

    def prepare(self, model: nn.Module, images: Tensor) -> None:
        """Set what a fresh model takes from the images that it will be trained on ``[n, channels, height, width]``; by default nothing."""

    def train(self, plans: Sequence[Plan], seeds: Sequence[int]) -> list[nn.Module]:
        """See `Scenario.train`; several models take their steps together where their layers can be stacked."""
        device = hardware.get().device
        training = self._data(self.pool().train)
        kept = [set(self.without(plan.rows).ids) for plan in plans]
        return train_ensemble(
            self.build,
            training.images.to(device),
            training.labels.to(device),
            torch.tensor([[row in ids for row in training.ids] for ids in kept], device=device),
            seeds,
            self.recipe,
            batched=self.batched and len(plans) > 1,
            chunk=self.stack,
            prepare=self.prepare,
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
        """See `Scenario.evidence`; `rewrite` changes one image tensor, standardised, float32 [channels, height, width]."""
        splits = {}
        for name in sorted({need.split for need in needs}):
            data = self.split(name)
            if name == "forget" and only is not None:
                data = data.take([i for i, row in enumerate(data.ids) if row in only])
            splits[name] = data if rewrite is None else data.rewritten(rewrite)
        return self.read(model, splits, needs)

    def read(self, model: nn.Module, splits: Mapping[str, ImageData], needs: frozenset[Need]) -> Evidence:
        """The evidence of these rows."""
        return image_evidence(model, splits, needs)


@lru_cache(maxsize=256)
def _content(scenario: VisionScenario, left_out: frozenset[str]) -> str:
    """A hash of the images and labels that models are trained on, in their order."""
    rows = scenario.without(left_out)
    return hashlib.sha256(rows.images.numpy().tobytes() + rows.labels.numpy().tobytes()).hexdigest()


def both(data: Data) -> Split:
    """The same rows for training and for scoring."""
    return Split(train=data, eval=data)
