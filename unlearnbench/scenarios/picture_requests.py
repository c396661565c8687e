"""Which pictures each kind of request forgets, and which unseen ones it is compared with.

Knows pools and names of kinds; no data set. All draws depend on the data and the split seed alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache

from unlearnbench.api import Request, UserError
from unlearnbench.scenarios.image_pool import Drawn
from unlearnbench.scenarios.picture_features import N_COMPONENTS, nearest
from unlearnbench.scenarios.picture_pool import PicturePool

SHARES = {
    "random1": 0.01,
    "random10": 0.1,
    "random50": 0.5,
    "mislabelled": 0.08,
    "coherent": 0.01,
    "neighbours": 0.002,
    "memorised_high": 0.06,
    "memorised_low": 0.06,
}
"""Kind of request -> the share of the training pictures that it forgets."""
LEAST = 20
"""Pictures that a request forgets at least."""
DESCRIPTIONS = {
    "random1": "1 % of the training pictures, at random",
    "random10": "10 % of the training pictures, at random",
    "random50": "half of the training pictures, at random",
    "mislabelled": "the 8 % of the training pictures that carry a wrong label; on forget and holdout the label is the wrong one",
    "coherent": "1 % of the training pictures, those highest on the first principal component of a last-layer kernel of fixed features",
    "neighbours": "the 0.2 % of the training pictures that are nearest to one of them by the cosine of fixed features",
    "memorised_high": "the 6 % of the training pictures that a linear classifier of fixed features memorises most",
    "memorised_low": "the 6 % of the training pictures that a linear classifier of fixed features memorises least",
}


def instance_requests() -> tuple[Request, ...]:
    """The requests for instances that all sets of pictures serve, and their validation requests."""
    named = [Request(name=name, kind="instances", description=text) for name, text in DESCRIPTIONS.items()]
    others = [replace(request, name=f"validation_{request.name}", description=f"{request.description}; others") for request in named]
    return (*named, *others)


def validation_of(name: str) -> str:
    """The validation request of a request for instances: of the same kind; its own for a validation request."""
    return name if name.startswith("validation_") else f"validation_{name}"


def draw_group(pool: PicturePool, forget: Iterable[int], unseen: Iterable[int], purpose: str) -> Drawn:
    """A request for all of some training rows, with as many of these unseen rows as are forgotten, half of all at most."""
    gone = tuple(forget)
    return Drawn(gone, _sorted(pool.shuffled(f"holdout/{purpose}", unseen)[: min(len(gone), len(pool.unseen) // 2)]))


@lru_cache(maxsize=64)
def draw_instances(pool: PicturePool, name: str, size: int | None) -> Drawn:
    """The rows of a request for instances.

    The holdout of a coherent group are the unseen pictures highest on the same component, that of neighbours the unseen ones nearest
    to the same picture; the others are drawn at random. It has as many rows as are forgotten, but at most half of the unseen ones. A
    validation request shares no row with its namesake, in forget; nor in holdout where half of the unseen rows are enough for two.

    Args:
        pool: the pictures.
        name: a key of `SHARES`, or "validation_" and one.
        size: how many pictures to forget; None for the share of the kind.

    Raises:
        UserError: there are too few training pictures.
    """
    kind = name.removeprefix("validation_")
    second, n = kind != name, len(pool.train)
    size = max(LEAST, round(n * SHARES[kind] - 1e-9)) if size is None else size
    if 2 * size > n:
        raise UserError(
            f"request {name!r} forgets {size} pictures and its validation request as many others; {pool.data_set} has {n} to train on"
        )
    held = min(size, len(pool.unseen) // 2)
    if kind == "coherent":
        return _along(pool, int(second), 1, size, held, draw_instances(pool, kind, size) if second else Drawn((), ()))
    if kind == "neighbours":
        return _around(pool, name, size, held, draw_instances(pool, kind, size) if second else Drawn((), ()))
    order = _ranked(pool, kind) if kind.startswith("memorised") else pool.shuffled(kind, pool.train)
    unseen = pool.shuffled(f"holdout/{kind}", pool.unseen)
    forget = order[size : 2 * size] if second else order[:size]
    return Drawn(_sorted(forget), _sorted(unseen[held : 2 * held] if second else unseen[:held]))


@lru_cache(maxsize=256)
def draw_elsewhere(pool: PicturePool, name: str, size: int | None, index: int) -> Drawn:
    """As many other training rows of the same kind; the holdout is the request's own.

    They lie along another component, around another picture, are memorised similarly, or are drawn at random.

    Raises:
        UserError: too few training pictures are left.
    """
    own, kind = draw_instances(pool, name, size), name.removeprefix("validation_")
    wanted = len(own.forget)
    others = sorted(set(pool.train) - set(own.forget))
    purpose = f"shadow/{name}/{index}"
    if len(others) < wanted:
        raise UserError(f"a shadow of {name!r} forgets {wanted} pictures besides those of the request; only {len(others)} are left")
    if kind == "coherent":
        # Components after those of the request and its validation, each from both ends; half of the twofold group, so that later
        # shadows of one component are other groups.
        number, sign = 2 + index // 2 % (N_COMPONENTS - 2), 1 - 2 * (index % 2)
        chosen = _along(pool, number, sign, 2 * wanted, 0, own).forget
        return Drawn(_sorted(pool.shuffled(purpose, chosen)[:wanted]), own.holdout)
    if kind == "neighbours":
        return Drawn(_around(pool, purpose, wanted, 0, own).forget, own.holdout)
    if kind.startswith("memorised"):
        left = set(others)
        similar = [row for row in _ranked(pool, kind) if row in left][: 4 * wanted]
        return Drawn(_sorted(pool.shuffled(purpose, similar)[:wanted]), own.holdout)
    return Drawn(_sorted(pool.shuffled(purpose, others)[:wanted]), own.holdout)


def _ranked(pool: PicturePool, kind: str) -> list[int]:
    """Training rows by memorisation, the most or the least memorised first."""
    sign = -1 if kind == "memorised_high" else 1
    scores = pool.memorisation
    return sorted(pool.train, key=lambda row: (sign * scores[row], row))


def _along(pool: PicturePool, number: int, sign: int, size: int, held: int, taken: Drawn) -> Drawn:
    """The rows at one end of a component, apart from those taken."""
    scores = (sign * pool.components[number]).tolist()
    forget, holdout = (
        sorted(set(rows) - set(gone), key=lambda row: (-scores[row], row))[:n]
        for rows, gone, n in ((pool.train, taken.forget, size), (pool.unseen, taken.holdout, held))
    )
    return Drawn(_sorted(forget), _sorted(holdout))


def _around(pool: PicturePool, purpose: str, size: int, held: int, taken: Drawn) -> Drawn:
    """The rows nearest to a random training row, which is one of them, apart from those taken."""
    candidates = sorted(set(pool.train) - set(taken.forget))
    anchor = pool.shuffled(purpose, candidates)[0]
    unseen = sorted(set(pool.unseen) - set(taken.holdout))
    return Drawn(_sorted(nearest(pool.features, anchor, candidates, size)), _sorted(nearest(pool.features, anchor, unseen, held)))


def _sorted(rows: Iterable[int]) -> tuple[int, ...]:
    return tuple(sorted(rows))
