"""KLOM: KL divergence of margins, of models unlearned from many originals from as many oracles, point by point.

Attribute-to-Delete: Machine Unlearning via Datamodel Matching. Georgiev, Rinberg, Park, Garg, Ilyas, Madry, Neel. 2024, arXiv 2410.23232.
A margin is log p_y / (1 - p_y). Deviations, from the released versions:

- The largest value of a point counts (`numpy.histogram` has an inclusive right edge); all released versions lose it.
- The direction is KL(unlearned || oracles), as in the paper; one release computes the other, without saying so.
- Both sides are clipped, and the oracles' shares are not made to sum to 1 again.
- 50 models a side are the least. Two samples of the same distribution give 3.0 in the mean with 20 a side, 0.86 with 50, 0.33 with 100 and
  0.15 with 200 (95th percentiles 5.1, 1.70, 0.65, 0.28): a value below the floor says nothing. `klom_floor` measures the floor itself,
  between halves of twice as many oracles; the oracles' own rows are held-out oracles against oracles.
- The 95th percentile over points has an interval by bootstrap over points.

The file knows margins, and no model.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, Field

from unlearnbench.api import Audit, Bank, Estimate, Metric, Need, NotMeasurable, Scenario, Side, Threat
from unlearnbench.distributions import klom
from unlearnbench.evidence import Evidence
from unlearnbench.populations import label_margins, values_of

Doubles = NDArray[np.float64]

MIN_MODELS = 50
RESAMPLES = 1000
SMALLEST_EPS = 1e-12


def _enough(models: int) -> int:
    if models < MIN_MODELS:
        raise ValueError(f"must be {MIN_MODELS} or more: with fewer models a side, KLOM of equal distributions is above 0.86 in the mean")
    return models


Models = Annotated[int, AfterValidator(_enough)]


def summary(values: Doubles, statistic: Literal["p95", "mean"]) -> Doubles:
    """The 95th percentile or the mean over the last axis.

    >>> float(summary(np.arange(101.0), "p95"))
    95.0
    """
    return np.asarray(np.percentile(values, 95, axis=-1) if statistic == "p95" else values.mean(axis=-1))


class _OfMargins(Metric):
    """What the two have in common: settings, and a summary over the points of one split."""

    paper = "arXiv 2410.23232"
    modality = ("vision",)
    level = Threat.T0
    bounds = (0.0, float(np.log(1 / SMALLEST_EPS)))
    direction = "higher"

    split: str = "forget"
    n: Models = 100
    """Models a side."""
    statistic: Literal["p95", "mean"] = "p95"
    """Over the points of the split; the paper's headline is the 95th percentile."""
    bins: Annotated[int, Field(ge=2)] = 20
    eps: Annotated[float, Field(ge=SMALLEST_EPS, lt=1)] = 1e-5
    """The oracles' smallest share of a bin; no value is above ln(1 / eps)."""
    clip: Annotated[float, Field(gt=0)] = 100.0
    """Margins are clipped to this absolute value."""

    def supports(self, scenario: Scenario) -> str | None:
        """The scenario must be a classifier's and have the split."""
        known = self.split in scenario.splits
        return super().supports(scenario) or (None if known else f"needs a split {self.split!r}, not one of {scenario.splits}")

    def wants(self, scenario: Scenario) -> tuple[Need, ...]:
        """The logits of the split."""
        return (Need(what="logits", split=self.split),)

    def _margins(self, evidence: Evidence, audit: Audit, role: str, n: int) -> Doubles:
        """Margins of a bank's models on the rows of the model under test, in the order of their identities [n, points].

        Raises:
            NotMeasurable: the bank is too small, or there are no rows.
        """
        rows = sorted(evidence.ids[self.split])
        if not rows:
            raise NotMeasurable(f"{self.split} has no rows")
        return values_of(audit.bank, role, n, self.split, rows, label_margins)

    def _klom(self, unlearned: Doubles, oracles: Doubles) -> Doubles:
        return klom(unlearned, oracles, bins=self.bins, eps=self.eps, clip=self.clip)

    @abstractmethod
    def measure(self, evidence: Evidence, audit: Audit) -> Estimate:
        """See `Metric.measure`."""


class Klom(_OfMargins):
    """KL divergence of the unlearned models' margins from the oracles', summarised over the rows of a split."""

    @property
    def side(self) -> Side:
        """On forget it judges forgetting; elsewhere it says what else has changed."""
        return "forget" if self.split == "forget" else "diagnostic"

    @property
    def headline(self) -> bool:
        """See `Metric.headline`."""
        return self.side == "forget" and self.statistic == "p95"

    @property
    def banks(self) -> tuple[Bank, ...]:
        """As many unlearned models as oracles."""
        return (Bank(role="unlearned", n=self.n), Bank(role="oracle", n=self.n))

    def measure(self, evidence: Evidence, audit: Audit) -> Estimate:
        """The summary, with a bootstrap interval over points.

        Raises:
            NotMeasurable: a bank has fewer models than asked for, or the split has no rows.
            ValueError: a member's evidence lacks a row.
        """
        values = self._klom(*(self._margins(evidence, audit, role, self.n) for role in ("unlearned", "oracle")))
        drawn = np.random.default_rng(0).integers(0, len(values), (RESAMPLES, len(values)))
        low, high = np.percentile(summary(values[drawn], self.statistic), (2.5, 97.5))
        return Estimate(float(summary(values, self.statistic)), (float(low), float(high)), "items")


class KlomFloor(_OfMargins):
    """KLOM between halves of twice as many oracles: the mean over random halves, and the range of 95 % of them."""

    side = "diagnostic"

    halves: Annotated[int, Field(ge=20)] = 200
    """Random halves that are compared."""

    @property
    def banks(self) -> tuple[Bank, ...]:
        """Twice as many oracles as KLOM has on a side; KLOM's own, and those that are held out against them."""
        return (Bank(role="oracle", n=2 * self.n),)

    def measure(self, evidence: Evidence, audit: Audit) -> Estimate:
        """The mean over halves, with the interval that covers 95 % of them.

        Raises:
            NotMeasurable: the bank has fewer oracles than asked for, or the split has no rows.
            ValueError: a member's evidence lacks a row.
        """
        oracles = self._margins(evidence, audit, "oracle", 2 * self.n)
        draw = np.random.default_rng(0)
        found = []
        for _ in range(self.halves):
            order = draw.permutation(2 * self.n)
            found.append(float(summary(self._klom(oracles[order[: self.n]], oracles[order[self.n :]]), self.statistic)))
        low, high = np.percentile(found, (2.5, 97.5))
        return Estimate(float(np.mean(found)), (float(low), float(high)), "oracles")
