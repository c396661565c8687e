"""Where a model stands between the anchors: the original, which never forgot, and the oracles, which never knew.

The file knows numbers by name and how to get the anchors' from their evidence; which numbers is the metrics' matter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from unlearnbench.api import Member, NotMeasurable
from unlearnbench.evidence import Evidence

Parts = Mapping[str, float]
"""Numbers by name."""


def pooled(members: Sequence[Member], read: Callable[[Evidence], Parts], role: str) -> dict[str, float]:
    """Mean of each number over the members of a pool.

    Args:
        members: the pool.
        read: the numbers, from one member's evidence; the same names for all.
        role: what the members are, for the message.

    Raises:
        NotMeasurable: the pool is empty.
    """
    if not members:
        raise NotMeasurable(f"there is no {role} to compare with")
    found = [read(member.evidence) for member in members]
    return {name: float(np.mean([parts[name] for parts in found])) for name in found[0]}


def way_to_oracle(name: str, value: float, original: float, oracle: float) -> float:
    """How much of the way from the original to the oracle is gone: 0 at the original, 1 at the oracle, more beyond.

    Args:
        name: of the number, for the message.
        value: the model's.
        original: the originals'.
        oracle: the oracles'.

    Raises:
        NotMeasurable: the original does not know more than the oracle, so that there is no way to go.

    >>> way_to_oracle("probability", 0.375, original=1.0, oracle=0.25)
    0.8333333333333334
    """
    _check(name, original, oracle)
    return (original - value) / (original - oracle)


def agreement(name: str, value: float, original: float, oracle: float) -> float:
    """Nearness to the oracle from either side: 1 at the oracle, 0 at the original and wherever as far from the oracle or farther.

    Forgetting beyond the oracle is as wrong as not to forget: what no ignorant model does tells that something was removed.

    Args:
        name: of the number, for the message.
        value: the model's.
        original: the originals'.
        oracle: the oracles'.

    Raises:
        NotMeasurable: the original does not know more than the oracle, so that there is no unit of distance.

    >>> [round(agreement("AUC", value, original=1.0, oracle=0.4), 4) for value in (1.0, 0.7, 0.4, 0.1)]
    [0.0, 0.5, 1.0, 0.5]
    """
    _check(name, original, oracle)
    return max(0.0, 1.0 - abs(value - oracle) / (original - oracle))


def kept(name: str, value: float, oracle: float) -> float:
    """Share of the oracle's usefulness; more than the oracle's counts as 1.

    Args:
        name: of the number, for the message.
        value: the model's, at least 0.
        oracle: the oracles'.

    Raises:
        NotMeasurable: the oracle has none.

    >>> kept("ROUGE-L", 0.3, oracle=0.6), kept("ROUGE-L", 0.9, oracle=0.6)
    (0.5, 1.0)
    """
    if not oracle > 0:
        raise NotMeasurable(f"{name} of the oracle is {oracle:g}, of which no share can be kept")
    return min(1.0, value / oracle)


def _check(name: str, original: float, oracle: float) -> None:
    if not original > oracle:
        raise NotMeasurable(f"{name} does not tell the original ({original:.4g}) from the oracle ({oracle:.4g})")
