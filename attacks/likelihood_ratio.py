"""Membership by likelihood ratio: is a row's margin more like that of models that knew the row, or of models that never did?

`lira`: Membership Inference Attacks From First Principles (Carlini, Chien, Nasr, Song, Terzis, Tramer 2022, arXiv 2112.03570). `u_lira`:
Inexact Unlearning Needs More Careful Evaluations to Avoid a False Sense of Privacy (Hayes, Shumailov, Triantafillou, Khalifa, Papernot
2024, arXiv 2403.01218). `ruli`: RULI (Naderloui et al. 2025, arXiv 2506.13009), whose densities are kernel estimates.

Each row has densities of its own, from models of two banks. For `lira` the one holds originals, the other oracles; for `u_lira` and `ruli`
the one holds models that were trained on the forget set and then unlearned it, the other oracles that unlearned another request of equal
size: the row is seen through unlearning on both sides, and known before it on one. Deviations:

- One forget set, that of the request, and the model under test; the papers draw a forget set per shadow model.
- The score is the log of the ratio, which has the order of p_in / (p_in + p_out). The core compares it between forget and holdout, on
  which both banks are alike; the papers compare models that knew a row with models that did not.
- A margin is log p_y / (1 - p_y), exact in float64; published code clips probabilities at 1e-6.
- The model under test is in no bank, so that nothing is held out.

A language model's loss is a mean over tokens and has no such logit: vision only. The file knows margins, and no model.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from unlearnbench.api import Bank, InferenceAttack, Member, Need, Scenario, Threat
from unlearnbench.distributions import gaussian_log_density, kernel_log_density
from unlearnbench.evidence import Evidence
from unlearnbench.populations import label_margins, values_of
from unlearnbench.views import BankRole

Doubles = NDArray[np.float64]


class _LikelihoodRatio(InferenceAttack):
    """What the three have in common: two banks, and the difference of two log-densities."""

    modality = ("vision",)
    level = Threat.T2
    knew: ClassVar[BankRole] = "unlearned"
    never_knew: ClassVar[BankRole] = "oracle_unlearned_elsewhere"

    n: Annotated[int, Field(ge=2)] = 64
    """Models in each bank."""

    @property
    def banks(self) -> tuple[Bank, ...]:
        """Models that knew the rows of forget, and models that never did."""
        return (Bank(role=self.knew, n=self.n), Bank(role=self.never_knew, n=self.n))

    def wants(self, split: str, scenario: Scenario) -> tuple[Need, ...]:
        """The logits."""
        return (Need(what="logits", split=split),)

    @abstractmethod
    def _log_density(self, values: Doubles, samples: Doubles) -> Doubles:
        """Log-density of each value [points] by the samples of its column [models, points]."""

    def score(self, evidence: Evidence, split: str, bank: Sequence[Member]) -> Doubles:
        """The log of the likelihood ratio of each row [n].

        Raises:
            NotMeasurable: a bank has fewer models than asked for.
            ValueError: a member's evidence lacks a row.
        """
        values, rows = label_margins(evidence, split), evidence.ids[split]
        knew, never = (values_of(bank, role, self.n, split, rows, label_margins) for role in (self.knew, self.never_knew))
        return self._log_density(values, knew) - self._log_density(values, never)


class ULiRA(_LikelihoodRatio):
    """Ratio of Gaussian densities of margins after unlearning."""

    paper = "arXiv 2403.01218"

    def _log_density(self, values: Doubles, samples: Doubles) -> Doubles:
        return gaussian_log_density(values, samples)


class LiRA(ULiRA):
    """Ratio of Gaussian densities of margins of originals and oracles: what is left of the original's."""

    paper = "arXiv 2112.03570"
    knew = "original"
    never_knew = "oracle"


class RULI(_LikelihoodRatio):
    """Ratio of kernel densities of margins after unlearning."""

    paper = "arXiv 2506.13009"

    n: Annotated[int, Field(ge=2)] = 90
    """Models in each bank."""
    bandwidth: Annotated[float, Field(gt=0)] = 1.0
    """Standard deviation of the kernel, in the margin's unit."""

    def _log_density(self, values: Doubles, samples: Doubles) -> Doubles:
        return kernel_log_density(values, samples, bandwidth=self.bandwidth)
