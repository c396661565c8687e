"""Other models' evidence on the rows of the model under test, joined by identity: what banks and anchors are read through.

Knows members and evidence; no model and no metric.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unlearnbench.api import Member, Need, NotMeasurable
from unlearnbench.confidence import margins
from unlearnbench.evidence import Evidence

Floats = NDArray[np.floating[Any]]
Doubles = NDArray[np.float64]


def positions(evidence: Evidence, split: str, rows: Sequence[str], whose: str) -> NDArray[np.int64]:
    """Where these rows stand in a split of another model's evidence [rows].

    Args:
        evidence: the other model's.
        split: name of the split.
        rows: identities.
        whose: for the message, such as "an oracle".

    Raises:
        ValueError: the evidence lacks a row.
    """
    place = {row: index for index, row in enumerate(evidence.ids[split])}
    missing = [row for row in rows if row not in place]
    if missing:
        raise ValueError(f"{whose}'s evidence lacks {len(missing)} rows of {split!r}, the first is {missing[0]!r}")
    return np.array([place[row] for row in rows], dtype=np.int64)


def array_on(evidence: Evidence, need: Need, rows: Sequence[str], whose: str) -> Floats:
    """Another model's logits or features of these rows, in this order [rows, width]; errors as `positions`."""
    return evidence.array(need)[positions(evidence, need.split, rows, whose)]


def label_margins(evidence: Evidence, split: str) -> Doubles:
    """Log-odds of each row's label [n], in nats, off the logits of a split."""
    return margins(evidence.array(Need(what="logits", split=split)), evidence.labels[split])


def values_of(
    members: Sequence[Member], role: str, n: int, split: str, rows: Sequence[str], read: Callable[[Evidence, str], Doubles]
) -> Doubles:
    """One number per model of a bank and row [n, rows].

    Args:
        members: the members of all banks.
        role: of those that are read.
        n: how many there must be; of more, the first n.
        split: name of the split.
        rows: identities, in the order of the columns.
        read: the numbers of all rows of a split.

    Raises:
        NotMeasurable: there are fewer than n.
        ValueError: a member's evidence lacks a row.
    """
    found = [member.evidence for member in members if member.role == role][:n]
    if len(found) < n:
        raise NotMeasurable(f"the bank has {len(found)} models of role {role!r}, not {n}")
    whose = f"a model of role {role!r}"
    return np.stack([read(evidence, split)[positions(evidence, split, rows, whose)] for evidence in found])
