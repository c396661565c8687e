"""A tiny vision scenario: noisy blobs of three classes and a small net with batch-norm.

In a suite it is called `path/to/tiny_vision.py:TinyVision`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from unlearnbench.api import Data, Modality, Need, Plan, Request, Task
from unlearnbench.contracts.tiny import STEPS, Count, Tiny, both, without
from unlearnbench.evidence import Evidence
from unlearnbench.nets.vit import vit
from unlearnbench.scenarios.images import ImageData, image_evidence, image_loss
from unlearnbench.training import hardware

CLASSES = 3
"""Classes of the blobs."""


class TinyNet(nn.Module):
    """A perceptron with batch-norm: images [B, 1, 4, 4] -> logits [B, CLASSES]."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            nn.Sequential(nn.Flatten(), nn.Linear(16, width), nn.BatchNorm1d(width), nn.ReLU()), nn.Linear(width, width)
        )
        self.head = nn.Linear(width, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of the classes."""
        return self.head(self.blocks(images).relu())  # type: ignore[no-any-return]


class TinyVision(Tiny):
    """Gaussian blobs of three classes, every third image with a wrong label that models memorise; plans leave out images by id."""

    modality: ClassVar[Modality] = "vision"
    task: ClassVar[Task] = "classify"
    splits: ClassVar[tuple[str, ...]] = ("forget", "retain", "holdout", "test")

    net: Literal["perceptron", "vit"] = "perceptron"
    """A perceptron with batch-norm, or a vision transformer of four patches."""
    epochs: Count = 60
    batch_size: Annotated[int, Field(ge=2)] = 18

    @classmethod
    def requests(cls) -> tuple[Request, ...]:
        """See `Scenario.requests`."""
        return (
            Request(name="mislabelled", kind="instances", description="six images with wrong labels"),
            Request(name="class0", kind="class", description="all images labelled 0"),
            Request(name="class1", kind="class", description="all images labelled 1"),
            Request(name="validation", kind="instances", description="six other images with wrong labels"),
            Request(name="sequence", kind="instances", description="two images with wrong labels, and two, and two", steps=STEPS),
        )

    @property
    def validation_request(self) -> str:
        """See `Scenario.validation_request`; for a class another one."""
        return {"class0": "class1", "class1": "class0"}.get(self.asked().name, "validation")

    def _pools(self) -> dict[str, ImageData]:
        return _blobs(self.split_seed)

    def _asked_now(self) -> tuple[str, ...]:
        training, name = self._pools()["train"], self.asked().name
        if name.startswith("class"):
            number = int(name.removeprefix("class"))
            number = number if self.shadow is None else (number + 1 + self.shadow % (CLASSES - 1)) % CLASSES
            return tuple(row for row, label in zip(training.ids, training.labels.tolist(), strict=True) if label == number)
        wrong = training.ids[::3]
        groups = {"mislabelled": [wrong[:6]], "validation": [wrong[6:12]], "sequence": [wrong[2 * i : 2 * i + 2] for i in range(STEPS)]}
        return self._pick(groups[name], wrong)

    def _named(self, names: Sequence[str]) -> Data:
        training = self._pools()["train"]
        return without(training, frozenset(training.ids) - frozenset(names))

    def _kept(self, data: ImageData) -> Data:
        """The rows of a class that need not be forgotten; all of them where no class is."""
        gone = self._named(self._asked_now()).batch([0])["labels"][0] if self.asked().kind == "class" else -1
        return data.take((data.labels != gone).nonzero().flatten().tolist())

    def split(self, name: str) -> ImageData:
        """See `Scenario.split`: "holdout" is like "forget" but never trained on, "test" has the right labels."""
        pools = self._pools()
        if name == "test":
            chosen = self._kept(pools["test"])
        elif name == "holdout":
            gone = frozenset(self._kept(pools["holdout"]).ids) if self.asked().kind == "class" else frozenset(pools["holdout"].ids[1::2])
            chosen = without(pools["holdout"], gone)
        else:
            forget = self._named(sorted(self.forget_rows()))
            chosen = forget if name == "forget" else without(pools["train"], frozenset(forget.ids))
        assert isinstance(chosen, ImageData)  # rows of image data are image data
        return chosen

    def _common(self) -> dict[str, Any]:
        return {
            "modality": self.modality,
            "task": self.task,
            "kind": self.asked().kind,
            "classes": CLASSES,
            "tokenizer": None,
            "recipe": self.recipe,
            "loss": image_loss,
            "encode": None,
        }

    def method_view(self) -> dict[str, Any]:
        """See `Scenario.method_view`."""
        forget, retain = self._named(self._asked_now()), self.split("retain")
        return {**self._common(), "forget": both(forget), "retain": both(retain), "validation": self._kept(self._pools()["validation"])}

    def attack_parts(self) -> dict[str, Any]:
        """See `Scenario.attack_parts`; the attacker holds every other image."""
        return {
            "forget": both(self.split("forget")),
            "forget_part": both(without(self.split("forget"), self.judged())),
            "retain": both(self.split("retain")),
            "unrelated": self._kept(self._pools()["validation"]),
        }

    def judged(self) -> frozenset[str]:
        """See `Scenario.judged`."""
        return frozenset(self.split("forget").ids[::2])

    def _training_rows(self, plan: Plan) -> Data:
        return without(self._pools()["train"], plan.rows)

    def training_settings(self, plan: Plan) -> dict[str, Any]:
        """See `Scenario.training_settings`."""
        return {**super().training_settings(plan), "net": self.net}

    def build(self, seed: int) -> nn.Module:
        """See `Scenario.build`."""
        if self.net == "vit":
            return vit(classes=CLASSES, channels=1, size=4, patch=2, width=8, depth=1, heads=2, stem=4, seed=seed).to(hardware.get().device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return TinyNet(width=48).to(hardware.get().device)

    def evidence(
        self,
        model: nn.Module,
        needs: frozenset[Need],
        *,
        rewrite: Callable[[Any], Any] | None = None,
        only: frozenset[str] | None = None,
    ) -> Evidence:
        """See `Scenario.evidence`; `rewrite` changes one image, float32 [1, 4, 4]."""
        splits = {name: data for name, data in self._scored(needs, only).items() if isinstance(data, ImageData)}
        return image_evidence(model, splits if rewrite is None else {k: v.rewritten(rewrite) for k, v in splits.items()}, needs)


@cache
def _blobs(split_seed: int) -> dict[str, ImageData]:
    """Images by pool, their labels in turn; in "train" every third and in "holdout" every other one carries a wrong label."""
    generator = torch.Generator().manual_seed(split_seed)
    centres = torch.randn(CLASSES, 1, 4, 4, generator=generator)
    pools = {}
    for name, count, every in (("train", 54, 3), ("holdout", 36, 2), ("test", 18, 0), ("validation", 9, 0)):
        truth = torch.arange(count) // 3 % CLASSES
        noise = torch.randn(count, 1, 4, 4, generator=generator)
        wrong = torch.arange(count) % every == 0 if every else torch.zeros(count, dtype=torch.bool)
        labels = torch.where(wrong, (truth + 1 + torch.arange(count) // 9 % 2) % CLASSES, truth)
        pools[name] = ImageData(centres[truth] + noise, labels, [f"{name}/{i}" for i in range(count)])
    return pools
