"""CIFAR-10 and CIFAR-100: 32x32 pictures of ten classes, and of a hundred classes in twenty super-classes.

"Learning Multiple Layers of Features from Tiny Images". Krizhevsky. 2009; data sets `uoft-cs/cifar10` and `uoft-cs/cifar100`. Knows
which classes a request names; files are `cifar_files`, nets and training `picture_scenario`.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from functools import lru_cache
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field

from unlearnbench.api import Request
from unlearnbench.scenarios.cifar_classes import CIFAR10, CIFAR100, COARSE, COARSE_OF, TRANSFER
from unlearnbench.scenarios.cifar_files import PUBLISHED10, PUBLISHED100
from unlearnbench.scenarios.image_pool import Drawn
from unlearnbench.scenarios.image_rows import ImageRows
from unlearnbench.scenarios.images import ImageData
from unlearnbench.scenarios.picture_pool import Layout, PicturePool, draw_pool
from unlearnbench.scenarios.picture_requests import draw_group, instance_requests
from unlearnbench.scenarios.picture_scenario import PictureScenario

MEAN10, STD10 = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
MEAN100, STD100 = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
"""Of the channels of the training pictures, 0 to 1."""


class _Cifar(PictureScenario):
    """What both share: classes by name."""

    data_dir: str | None = None
    """Folder of the data set, parquet or Python batches; by default below UNLEARNBENCH_DATA where that is set, or else the hub."""

    @abstractmethod
    def _group(self, name: str) -> Drawn:
        """The training rows of a request for a class, and unseen rows beside them."""

    def _alike(self) -> tuple[str, ...]:
        """The requests of this one's kind, in order."""
        sort = self.asked().name.split("_")[0] + "_"
        return tuple(request.name for request in self.requests() if request.name.startswith(sort))

    def own_class(self) -> Drawn:
        """See `PictureScenario.own_class`."""
        return self._group(self.asked().name)

    def other_class(self, index: int) -> Drawn:
        """See `PictureScenario.other_class`."""
        others = [name for name in self._alike() if name != self.request]
        return self._group(self.pool().rng(f"shadow/{self.request}/{index}").choice(others))

    def next_class(self) -> str:
        """See `PictureScenario.next_class`."""
        names = self._alike()
        return names[(names.index(self.request) + 1) % len(names)]

    def _of_class(self, number: int, purpose: str) -> Drawn:
        """All rows of a class; nets know unseen pictures of a class as well as trained ones, so that the holdout shows others."""
        pool = self.pool()
        others = set(pool.unseen) - set(pool.of_class(pool.unseen, number))
        return draw_group(pool, pool.of_class(pool.train, number), others, purpose)


class Cifar10(_Cifar):
    """CIFAR-10: 50,000 training pictures and 10,000 unseen ones of ten classes."""

    @classmethod
    def requests(cls) -> tuple[Request, ...]:
        """See `Scenario.requests`."""
        classes = [Request(name=f"class_{name}", kind="class", description=f"all pictures of the class {name}") for name in CIFAR10]
        return (*classes, *instance_requests())

    def pool(self) -> PicturePool:
        """See `VisionScenario.pool`."""
        layout = Layout(
            data_set="cifar10",
            names=CIFAR10,
            column="label",
            fine="label",
            train_per_class=self.train_per_class,
            test_per_class=self.test_per_class,
            mean=MEAN10,
            std=STD10,
        )
        sides = (PUBLISHED10.rows(part, self.data_dir) for part in ("train", "test"))
        return draw_pool(*sides, layout, self.split_seed)

    def _group(self, name: str) -> Drawn:
        return self._of_class(CIFAR10.index(name.removeprefix("class_")), name)


class Cifar100(_Cifar):
    """CIFAR-100: 50,000 training pictures and 10,000 unseen ones of a hundred classes in twenty super-classes.

    Requests for a super-class and for a class within one (subclass) have models that tell the twenty super-classes apart, all others
    models that tell the hundred classes apart. For a subclass, which siblings with the same label outlive, the holdout is the unseen
    pictures of that class. "near" and "far" are pictures of CIFAR-10's test part, of the three classes nearest in meaning to the
    super-class of (most of) the forgotten pictures, and of the three farthest: representations should be useless for neither.
    """

    splits: ClassVar[tuple[str, ...]] = ("forget", "retain", "holdout", "test", "near", "far")

    rows: Literal["published", "test"] = "published"
    """Train and test part as published, or the 10,000 test rows alone, parted into 80 rows to train on and 20 unseen ones a class
    (or as `train_per_class` says)."""
    cifar10_dir: str | None = None
    """Folder of CIFAR-10, for the splits near and far; found like `data_dir`."""
    transfer_per_class: Annotated[int, Field(ge=10)] = 200
    """Pictures of each of their classes."""

    @classmethod
    def requests(cls) -> tuple[Request, ...]:
        """See `Scenario.requests`."""
        whole = [Request(name=f"superclass_{name}", kind="class", description=f"all pictures of the super-class {name}") for name in COARSE]
        single = [Request(name=f"class_{name}", kind="class", description=f"all pictures of the class {name}") for name in CIFAR100]
        within = [
            Request(
                name=f"subclass_{name}", kind="instances", description=f"the pictures of {name} within the super-class {COARSE_OF[name]}"
            )
            for name in CIFAR100
        ]
        return (*whole, *single, *within, *instance_requests())

    def _coarse(self) -> bool:
        """Whether models tell super-classes apart."""
        return self.asked().name.startswith(("superclass_", "subclass_"))

    def pool(self) -> PicturePool:
        """See `VisionScenario.pool`."""
        layout = Layout(
            data_set="cifar100",
            names=COARSE if self._coarse() else CIFAR100,
            column="coarse_label" if self._coarse() else "fine_label",
            fine="fine_label",
            train_per_class=self.train_per_class,
            test_per_class=self.test_per_class,
            mean=MEAN100,
            std=STD100,
        )
        test = PUBLISHED100.rows("test", self.data_dir)
        sides: tuple[ImageRows, ImageRows | None] = (test, None)
        if self.rows == "published":
            sides = (PUBLISHED100.rows("train", self.data_dir), test)
        return draw_pool(*sides, layout, self.split_seed)

    def _group(self, name: str) -> Drawn:
        sort, _, named = name.partition("_")
        if sort != "subclass":
            return self._of_class((COARSE if sort == "superclass" else CIFAR100).index(named), name)
        pool, number = self.pool(), CIFAR100.index(named)
        forget, unseen = ([row for row in rows if int(pool.fine[row]) == number] for rows in (pool.train, pool.unseen))
        return draw_group(pool, forget, unseen, name)

    def other_class(self, index: int) -> Drawn:
        """See `PictureScenario.other_class`; the holdout of a subclass stays the request's own, or it would be trained on."""
        drawn = super().other_class(index)
        return replace(drawn, holdout=self.own_class().holdout) if self.asked().kind == "instances" else drawn

    def split(self, name: str) -> ImageData:
        """See `Scenario.split`."""
        if name not in ("near", "far"):
            return super().split(name)
        pool = self.pool()
        coarse = [COARSE_OF[CIFAR100[number]] for number in pool.fine[list(self.drawn().forget)].tolist()]
        most = max(COARSE, key=coarse.count)
        return _pictures10(PUBLISHED10.rows("test", self.cifar10_dir), getattr(TRANSFER[most], name), self.transfer_per_class)


@lru_cache(maxsize=32)
def _pictures10(rows: ImageRows, names: tuple[str, ...], n: int) -> ImageData:
    """The first pictures of some classes of CIFAR-10, standardised like those of CIFAR-100, with CIFAR-10's class numbers."""
    labels = rows.labels["label"].tolist()
    index = [row for name in names for row in [row for row, label in enumerate(labels) if label == CIFAR10.index(name)][:n]]
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN100, STD100))
    images = (rows.pixels(index).to(torch.float32) / 255 - mean) / std
    return ImageData(images, rows.labels["label"][index], [f"cifar10-test-{row:05d}" for row in index])
