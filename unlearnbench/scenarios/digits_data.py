"""Rows of the digits scenario: which of scikit-learn's 1,797 images are trained on, and which rows each request forgets.

Knows images, labels and seeds; no model. All draws depend on the split seed alone. Classes have equally many training images, so
that all class requests have the same size.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import torch
from torch import Tensor
from torch.nn.functional import normalize

from unlearnbench.attribution.kernels import classification_errors, cosines, last_layer_kernel
from unlearnbench.scenarios.digits_nets import PIXEL_MEAN, PIXEL_STD
from unlearnbench.scenarios.digits_nets import images as load_images
from unlearnbench.scenarios.image_pool import Drawn, Pool, unique_images

N_CLASSES = 10
N_TRAIN, N_VALIDATION = 122, 12
"""Images of each class that are trained on, and that methods may look at; the others (40 to 49) are unseen."""
SIZES = {"class": 122, "random": 122, "mislabelled": 100, "coherent": 80}
"""Rows forgotten: 10 %, 10 %, 8 % and 6.6 % of the 1,220 training images."""
N_ANCHORS = 20


@dataclass(frozen=True, kw_only=True, eq=False)
class DigitsPool(Pool):
    """The distinct digits, with the kernel that tells which of them are alike."""

    def identity(self, row: int) -> str:
        """See `Pool.identity`."""
        return row_id(row)

    def nearest(self, anchor: int, rows: Iterable[int], n: int) -> list[int]:
        """The `n` rows whose last-layer gradients are most like the anchor's, nearest first; the anchor may be one of them.

        The gradients are those of a linear classifier of pixels before its first step, which gives all classes equal
        probabilities: a fixed kernel that needs no training. Similarity is the cosine, so that ink does not count.
        """
        candidates = sorted(rows)
        # Rounded: rows that tie but for the last bits keep their order on every machine.
        alike = self._likeness[anchor, candidates].round(decimals=9)
        return [candidates[int(place)] for place in alike.argsort(descending=True, stable=True)[:n]]

    @cached_property
    def _likeness(self) -> Tensor:
        logits = torch.zeros(len(self.truth), N_CLASSES, dtype=torch.float64)
        return cosines(last_layer_kernel(self.images.flatten(1), classification_errors(logits, self.truth)))

    def coherent(self, purpose: str, rows: Iterable[int]) -> tuple[int, list[int]]:
        """An anchor and the group of training `rows` around it.

        Of some random anchors that one is taken whose group the other training images vote for least: a group that is like what
        is left of its digit would be recognised by a model that never saw it, and nothing could be said of forgetting it.
        """
        candidates = sorted(rows)
        groups = {anchor: self.nearest(anchor, candidates, SIZES["coherent"]) for anchor in self.shuffled(purpose, candidates)[:N_ANCHORS]}
        anchor = min(groups, key=lambda anchor: self.support(groups[anchor]))
        return anchor, groups[anchor]

    def support(self, group: Sequence[int]) -> int:
        """Votes for a group's own digits among the five nearest other training images (by cosine of pixels) of each of its images."""
        unit = normalize(self.images.flatten(1).to(torch.float64))
        others = sorted(set(self.train) - set(group))
        voters = (unit[list(group)] @ unit[others].T).topk(5).indices
        return int((self.truth[others][voters] == self.truth[list(group)][:, None]).sum())


def row_id(row: int) -> str:
    """The identity of an image."""
    return f"digit-{row:04d}"


@cache
def draw_pool(split_seed: int) -> DigitsPool:
    """The images and the parts that a split seed draws, each with as many of every class (unseen: what is left)."""
    images, truth = load_images()
    distinct = unique_images(images)
    images, truth = images[distinct], truth[distinct]
    rng = random.Random(f"digits/parts/{split_seed}")
    parts: dict[str, list[int]] = {"train": [], "validation": [], "unseen": []}
    for digit in range(N_CLASSES):
        rows = [int(row) for row in (truth == digit).nonzero().flatten()]
        rng.shuffle(rows)
        parts["train"] += rows[:N_TRAIN]
        parts["validation"] += rows[N_TRAIN : N_TRAIN + N_VALIDATION]
        parts["unseen"] += rows[N_TRAIN + N_VALIDATION :]
    shifts = torch.tensor([rng.randint(1, N_CLASSES - 1) for _ in range(len(truth))])
    return DigitsPool(
        data_set="digits",
        images=images,
        truth=truth,
        wrong=(truth + shifts) % N_CLASSES,
        split_seed=split_seed,
        train=tuple(sorted(parts["train"])),
        validation=tuple(sorted(parts["validation"])),
        unseen=tuple(sorted(parts["unseen"])),
        extremes=torch.full((1, 1, 1), (16 - 2 * PIXEL_MEAN) / PIXEL_STD),
    )


@cache
def draw_request(name: str, split_seed: int) -> Drawn:
    """The rows of a request: "class0" to "class9", "random", "mislabelled", "coherent", or the last three with "validation_".

    The holdout of a class request shows other classes: nets know unseen images of a class as well as trained ones, and a model that
    forgot the class knows neither, so that nothing could be told from a comparison within the class. The holdout of a coherent group
    are the unseen images nearest to the same anchor; the other ones are drawn at random. A validation request shares no row with
    its namesake, in forget or in holdout.
    """
    pool = draw_pool(split_seed)
    kind = name.removeprefix("validation_")
    validation = kind != name
    if kind.startswith("class"):
        digit = int(kind.removeprefix("class"))
        others = set(pool.unseen) - set(pool.of_class(pool.unseen, digit))
        return Drawn(pool.of_class(pool.train, digit), _sorted(pool.shuffled(f"holdout/{kind}", others)[: SIZES["class"]]))
    size = SIZES[kind]
    if kind == "coherent":
        taken = draw_request(kind, split_seed) if validation else Drawn((), ())
        anchor, group = pool.coherent(name, set(pool.train) - set(taken.forget))
        unseen = set(pool.unseen) - set(taken.holdout)
        return Drawn(_sorted(group), _sorted(pool.nearest(anchor, unseen, size // 2)))
    first = size if validation else 0
    forget = pool.shuffled(kind, pool.train)[first : first + size]
    holdout = pool.shuffled(f"holdout/{kind}", pool.unseen)[first : first + size]
    return Drawn(_sorted(forget), _sorted(holdout))


@cache
def draw_shadow(name: str, split_seed: int, index: int) -> Drawn:
    """Another forget set for a request: another class, another coherent group, or other random images; its holdout unless a class."""
    pool, own = draw_pool(split_seed), draw_request(name, split_seed)
    others = sorted(set(pool.train) - set(own.forget))
    purpose = f"shadow/{name}/{index}"
    if name.startswith("class"):
        digit = int(pool.truth[pool.shuffled(purpose, others)[0]])
        return draw_request(f"class{digit}", split_seed)
    if name.endswith("coherent"):
        return Drawn(_sorted(pool.coherent(purpose, others)[1]), own.holdout)
    return Drawn(_sorted(pool.shuffled(purpose, others)[: len(own.forget)]), own.holdout)


def _sorted(rows: Iterable[int]) -> tuple[int, ...]:
    return tuple(sorted(rows))
