"""Membership by pairwise ratios: how many rows of the population does the model fit less well, each measured by what references give it?

Low-Cost High-Power Membership Inference Attacks. Zarifzadeh, Liu, Shokri. 2023, arXiv 2312.03262; the offline form, whose ratio of a row is
p(row | model) / p(row), with p(row) made of a few references that never saw the row and an interpolation constant. Deviations:

- The references are oracles, trained by the scenario's recipe without the forget set; they have seen no row of either split. The online
  form, which also takes references that were trained on the row, is left out: nobody was ever trained on a row of "holdout", so it would
  measure the two splits by different formulas.
- The population is "holdout" itself, of which a row is never compared with itself. So the scores have the order of the ratios, and what
  the population adds is a score with a meaning: the share of unseen rows that a row exceeds.
- A population row is exceeded by a ratio of more than 1, as in the authors' code today; with the paper's gamma of 2 scores are lower, in
  the same order.
- All references count for a population row; the authors' code takes the largest few of them.
- The constant is fixed at that of the authors' configurations for CIFAR-10, not tuned on a second model.
- The probability of an answer is the geometric mean of its tokens', end token included; that of an image is its label's by softmax, where
  the authors take a Taylor expansion with a margin, and 18 augmented copies of the image.

The file knows probabilities of rows, and no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from unlearnbench.api import Bank, InferenceAttack, Member, Need, NotMeasurable, Scenario, Threat
from unlearnbench.confidence import label_log_probability
from unlearnbench.evidence import Evidence
from unlearnbench.membership import loss_scores, tokens_of
from unlearnbench.populations import values_of

Doubles = NDArray[np.float64]

POPULATION = "holdout"
MIN_ROWS = 2
"""A row of the population is compared with another one at least."""


def log_prior(references: Doubles, a: float) -> Doubles:
    """Log-probability of each row over all models [n]: that of ((1 + a) m + 1 - a) / 2, where m is the mean of the references.

    Models that were trained on the row would give it more than m; a line through (1, 1) stands for them.

    Args:
        references: log-probabilities under models that never saw the rows [models, n].
        a: slope of that line, in [0, 1]; at 1 the prior is m.

    >>> np.exp(log_prior(np.log([[0.1, 0.5], [0.3, 0.5]]), a=0.5)).round(4).tolist()  # (1.5 * 0.2 + 0.5) / 2, (1.5 * 0.5 + 0.5) / 2
    [0.4, 0.625]
    """
    mean = np.logaddexp.reduce(references, axis=0) - np.log(len(references))
    with np.errstate(divide="ignore"):  # the log of 0 is what a = 1 asks for
        return np.asarray(np.logaddexp(np.log((1 + a) / 2) + mean, np.log((1 - a) / 2)))


def share_exceeded(ratios: Doubles, population: Doubles) -> Doubles:
    """Share of the population whose ratio is smaller [n], in [0, 1].

    Args:
        ratios: of the rows asked about, or their logarithms [n].
        population: the same of the population's rows, at least one.

    >>> share_exceeded(np.array([0.5, 2.0, 9.0]), np.array([1.0, 2.0, 3.0, 0.5])).tolist()
    [0.0, 0.5, 1.0]
    """
    return np.asarray(np.searchsorted(np.sort(population), ratios, "left") / len(population))


class RMIA(InferenceAttack):
    """Scores a row by the share of unseen rows that the model fits less well, relative to references."""

    paper = "arXiv 2312.03262"
    level = Threat.T2

    n: Annotated[int, Field(ge=1)] = 2
    """References."""
    a: Annotated[float, Field(ge=0, le=1)] = 0.33
    """Interpolation constant: 1 where training on a row changes its probability little."""

    @property
    def banks(self) -> tuple[Bank, ...]:
        """Models that never saw the rows."""
        return (Bank(role="oracle", n=self.n),)

    def wants(self, split: str, scenario: Scenario) -> tuple[Need, ...]:
        """Token statistics or logits, of the population too."""
        return tuple(_need(name, generates=scenario.task == "generate") for name in dict.fromkeys((split, POPULATION)))

    def score(self, evidence: Evidence, split: str, bank: Sequence[Member]) -> Doubles:
        """The share of the population that each row exceeds [n].

        Raises:
            NotMeasurable: there are fewer references than asked for, or too few rows of the population.
            ValueError: a probability is NaN, or a reference's evidence lacks a row.
        """
        if len(evidence.ids[POPULATION]) < MIN_ROWS:
            raise NotMeasurable(f"{POPULATION} has {len(evidence.ids[POPULATION])} rows; the population needs {MIN_ROWS} or more")
        ratios, population = (self._log_ratios(evidence, name, bank) for name in (split, POPULATION))
        shares = share_exceeded(ratios, population)
        # A row never exceeds itself, so that only the number it could exceed is one less.
        return shares * len(population) / (len(population) - 1) if split == POPULATION else shares

    def _log_ratios(self, evidence: Evidence, split: str, bank: Sequence[Member]) -> Doubles:
        references = values_of(bank, "oracle", self.n, split, evidence.ids[split], _log_probabilities)
        ratios = _log_probabilities(evidence, split) - log_prior(references, self.a)
        if np.isnan(ratios).any():
            raise ValueError(f"the ratio of {int(np.isnan(ratios).sum())} of {len(ratios)} rows of {split!r} is NaN")
        return ratios


def _need(split: str, *, generates: bool) -> Need:
    return tokens_of(split) if generates else Need(what="logits", split=split)


def _log_probabilities(evidence: Evidence, split: str) -> Doubles:
    """Log-probability of each row [n]: of its answer, per token, or of its label."""
    if split in evidence.labels:  # only classifiers have labels
        return label_log_probability(evidence.array(_need(split, generates=False)), evidence.labels[split])
    return loss_scores(evidence, split)
