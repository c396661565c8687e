"""Forget quality: can the model's truth ratios on the forget set be told from an oracle's? As a p-value, and as a distance.

TOFU: A Task of Fictitious Unlearning for LLMs. Maini, Feng, Schwarzschild, Lipton, Kolter. 2024, arXiv 2401.06121: the p-value of the
two-sample Kolmogorov-Smirnov test. Deviations:

- Truth ratios are compared as logarithms without 1e-10; the test sees their order alone.
- With several oracles the p-value is the median over them; the published form is that of one.
- A p-value of two models that are the same in distribution is uniform between 0 and 1, so that .4 and .9 say the same; at full
  separation it is a floor that depends on the number of rows alone. So the distance D itself stands beside it, with an interval, and with
  the D between oracles: what one more model that never knew would have. (Every oracle's own D in a table is against the others, too.)

The interval of D comes from a bootstrap of clusters of rows, the same for both models: the difference of the two distribution functions
is a mean over rows, the 0.95 quantile q of the largest deviation of its resampled copies bounds its error everywhere at once, and D is
off by q at most. The file knows truth ratios, and no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from unlearnbench.answers import log_truth_ratio
from unlearnbench.api import Audit, Estimate, Member, Metric, Need, NotMeasurable, Scenario, Threat
from unlearnbench.evidence import Evidence

Floats = NDArray[np.float64]

RIGHT = Need(what="tokens", split="forget", answer="paraphrased_answer")
WRONG = Need(what="tokens", split="forget", answer="perturbed_answer")
RESAMPLES = 1000


def ks_distance(first: Floats, second: Floats) -> float:
    """Largest difference between the empirical distribution functions of two samples, whichever is above.

    >>> ks_distance(np.array([1.0, 2.0, 3.0]), np.array([2.5, 3.5]))
    0.6666666666666666
    """
    places = np.concatenate([first, second])
    return float(np.abs(_steps(first, places).mean(0) - _steps(second, places).mean(0)).max())


def distance_error(model: Floats, oracles: Sequence[Floats], clusters: Sequence[str]) -> float:
    """By how much the mean of the model's distances to the oracles may be off, at 95 %.

    Args:
        model: a number for each row [n].
        oracles: each one's numbers of the same rows [n].
        clusters: of each row; whole clusters are resampled, with a fixed seed.

    Raises:
        ValueError: there are fewer than two clusters.

    >>> rows = np.arange(40.0)
    >>> distance_error(rows, [rows], ["a"] * 20 + ["b"] * 20)  # the same numbers row by row: no resampling parts them
    0.0
    """
    names, codes = np.unique(np.asarray(clusters), return_inverse=True)
    if len(names) < 2:
        raise ValueError(f"the rows lie in {len(names)} cluster; an interval needs at least 2")
    drawn = np.random.default_rng(0).multinomial(len(names), np.full(len(names), 1 / len(names)), RESAMPLES).astype(np.float64)
    sizes = np.bincount(codes).astype(np.float64)
    errors = np.zeros(RESAMPLES)
    for oracle in oracles:
        places = np.concatenate([model, oracle])
        gap = _steps(model, places) - _steps(oracle, places)
        sums = np.zeros((len(names), gap.shape[1]))
        np.add.at(sums, codes, gap)
        errors += np.abs(drawn @ sums / (drawn @ sizes)[:, None] - gap.mean(0)).max(1)
    return float(np.quantile(errors / len(oracles), 0.95))


def _steps(sample: Floats, places: Floats) -> Floats:
    """Whether each number of a sample is at most each place [n, places], as 0 or 1."""
    return (sample[:, None] <= places[None, :]).astype(np.float64)


class _OfTruthRatios(Metric):
    """What the three have in common: log truth ratios on the forget set."""

    paper = "arXiv 2401.06121"
    modality = ("language",)
    level = Threat.T0
    side = "forget"
    bounds = (0.0, 1.0)

    def wants(self, scenario: Scenario) -> tuple[Need, ...]:
        """Token statistics of paraphrased and perturbed answers."""
        return (RIGHT, WRONG)

    def _of(self, evidence: Evidence) -> dict[str, float]:
        """Log truth ratio by row."""
        return evidence.by_row("forget", log_truth_ratio(evidence.nll(RIGHT)[0], evidence.nll(WRONG)))

    def _against(self, evidence: Evidence, oracles: Sequence[Member]) -> tuple[Floats, list[Floats]]:
        """The model's and each oracle's log truth ratios, of the model's rows in their order.

        Raises:
            NotMeasurable: there is no oracle.
            ValueError: an oracle's evidence lacks a row.
        """
        if not oracles:
            raise NotMeasurable("there is no oracle to compare with")
        found, rows = [self._of(oracle.evidence) for oracle in oracles], evidence.ids["forget"]
        if missing := [row for row in rows if any(row not in one for one in found)]:
            raise ValueError(f"an oracle's evidence lacks {len(missing)} rows of 'forget', the first is {missing[0]!r}")
        own = self._of(evidence)
        return np.array([own[row] for row in rows]), [np.array([one[row] for row in rows]) for one in found]


class ForgetQuality(_OfTruthRatios):
    """Median over the oracles of the p-value of a Kolmogorov-Smirnov test of the model's truth ratios against theirs."""

    direction = "lower"

    def measure(self, evidence: Evidence, audit: Audit) -> float:
        """The p-value; exact where scipy computes it so.

        Raises:
            NotMeasurable: there is no oracle.
        """
        from scipy.stats import ks_2samp

        model, oracles = self._against(evidence, audit.oracles)
        return float(np.median([ks_2samp(model, oracle).pvalue for oracle in oracles]))


class ForgetDistance(_OfTruthRatios):
    """Mean over the oracles of the Kolmogorov-Smirnov distance D between the model's truth ratios and theirs."""

    direction = "higher"

    def measure(self, evidence: Evidence, audit: Audit) -> float:
        """D, with its interval over clusters of rows where there are two or more.

        Raises:
            NotMeasurable: there is no oracle.
        """
        model, oracles = self._against(evidence, audit.oracles)
        value, clusters = float(np.mean([ks_distance(model, oracle) for oracle in oracles])), evidence.clusters["forget"]
        if len(set(clusters)) < 2:  # one author alone says nothing of others
            return value
        error = distance_error(model, oracles, clusters)
        covers = "items" if len(set(clusters)) == len(clusters) else "clusters"
        return Estimate(value, (max(0.0, value - error), min(1.0, value + error)), covers)


class ForgetDistanceNull(_OfTruthRatios):
    """Mean D between two oracles: what `forget_distance` is for a model that never knew."""

    direction = "higher"

    def measure(self, evidence: Evidence, audit: Audit) -> float:
        """The mean over pairs of oracles, with the range of the oracles' own mean distances to the others.

        Raises:
            NotMeasurable: there are fewer than two oracles.
        """
        if len(audit.oracles) < 2:
            raise NotMeasurable(f"oracles differ from each other in a pool of 2 or more; there is {len(audit.oracles)}")
        _, oracles = self._against(evidence, audit.oracles)
        between = np.zeros((len(oracles), len(oracles)))
        for i, j in combinations(range(len(oracles)), 2):
            between[i, j] = between[j, i] = ks_distance(oracles[i], oracles[j])
        means = between.sum(0) / (len(oracles) - 1)
        return Estimate(float(means.mean()), (float(means.min()), float(means.max())), "oracles")
