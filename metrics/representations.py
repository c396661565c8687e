"""How a model's features differ from the oracles' or the originals' on the same inputs: neighbours, shape, order, main directions.

`mutual_knn`: the share of nearest neighbours that a row has in both models. The Platonic Representation Hypothesis. Huh, Cheung, Wang,
Isola. 2024, arXiv 2405.07987. Rank-based: independent features give about k / (n - 1).
`procrustes`: the distance of the two shapes after the best rotation. Generalized Shape Metrics on Neural Representations. Williams, Kunz,
Kornblith, Linderman. 2021, arXiv 2110.14739.
`rsa`: the rank correlation of dissimilarities. Kriegeskorte, Mur, Bandettini. 2008, Frontiers in Systems Neuroscience 2:4.
`pca_shift` and `pca_cosine`: how far the mean has moved along the original's principal directions, and how far the first direction has
turned. Unlearning Isn't Deletion: Investigating Reversibility of Machine Unlearning in LLMs. Xu et al. 2025, arXiv 2505.16831.

All are diagnostics, as `unbiased_cka` is, and are read beside the oracles' own rows: two oracles differ from each other too. One feature
of very large activations, if both models have it, makes shapes and CKA alike whatever the rest does; neighbours by cosine less so.

Deviations. Features are the evidence's (for language the mean over an answer's tokens), where the code of 2505.16831 takes the first token
alone or counts padding. Its shift is in the features' unit and signed by an arbitrary component; here it is a length, in standard
deviations of the original along the same directions. Directions of models trained apart have nothing in common: of several originals
the one whose features are nearest to the model's is taken to be the one that it came from; between an oracle or an original under test
and the nearest original both numbers say only how far apart independent trainings are. The file knows feature matrices, and no model.
"""

from __future__ import annotations

import sys
from abc import abstractmethod
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from unlearnbench.api import Audit, Direction, Metric, Need, NotMeasurable, Scenario, Threat
from unlearnbench.evidence import Evidence
from unlearnbench.geometry import principal_cosine, principal_shift, procrustes_distance, rsa
from unlearnbench.populations import array_on
from unlearnbench.similarity import mutual_neighbours

Floats = NDArray[np.floating[Any]]


class _OfFeatures(Metric):
    """A diagnostic read off the features of one layer on one split."""

    level = Threat.T0
    side = "diagnostic"

    split: str = "forget"
    layer: int = -1
    """The block whose output is read; -1 is the last (of a classifier: what enters its last layer)."""

    def supports(self, scenario: Scenario) -> str | None:
        """The scenario must have the split."""
        known = self.split in scenario.splits
        return super().supports(scenario) or (None if known else f"needs a split {self.split!r}, not one of {scenario.splits}")

    def wants(self, scenario: Scenario) -> tuple[Need, ...]:
        """The features of one layer."""
        return (self._need(),)

    def _need(self) -> Need:
        return Need(what="features", split=self.split, layer=self.layer)

    def _features(
        self, evidence: Evidence, audit: Audit, reference: Literal["oracle", "original"], least: int
    ) -> tuple[Floats, list[Floats]]:
        """The model's features, and each reference's of the same rows.

        Raises:
            NotMeasurable: there are fewer rows than `least`, or an original is compared with itself, the only one.
            ValueError: there is no oracle, or another's evidence lacks a row.
        """
        pool = audit.oracles if reference == "oracle" else audit.originals
        if not pool:
            if reference == "original":
                raise NotMeasurable("there is no other original to compare with")
            raise ValueError("there is no oracle to compare with")
        features, rows = evidence.array(self._need()), evidence.ids[self.split]
        if len(rows) < least:
            raise NotMeasurable(f"{self.split} has {len(rows)} rows; this takes {least} or more")
        return features, [array_on(member.evidence, self._need(), rows, f"an {reference}") for member in pool]


class _Compared(_OfFeatures):
    """A mean over the oracles, or the originals, of a comparison of features."""

    reference: Literal["oracle", "original"] = "oracle"
    """Whom the features are compared with."""

    @property
    def direction(self) -> Direction:
        """On forget, nearer to the oracles means less known, and nearer to the originals more; elsewhere nearer means more useful."""
        nearer_is_more = self.split != "forget" or self.reference == "original"
        return "higher" if nearer_is_more == self._similarity else "lower"

    @property
    def _similarity(self) -> bool:
        """Whether more of it means nearer."""
        return True

    @abstractmethod
    def _compare(self, ours: Floats, theirs: Floats) -> float:
        """The number of two models' features of the same rows."""

    def measure(self, evidence: Evidence, audit: Audit) -> float:
        """The mean over the oracles or the originals.

        Raises:
            NotMeasurable: the split has too few rows, or an original is compared with itself, the only one.
            ValueError: features that cannot be compared; or there is no oracle, or another's evidence lacks a row.
        """
        ours, others = self._features(evidence, audit, self.reference, 3)
        return float(np.mean([self._compare(ours, theirs) for theirs in others]))


class MutualKNN(_Compared):
    """Share of the nearest neighbours by cosine that rows have in both models."""

    paper = "arXiv 2405.07987"
    bounds = (0.0, 1.0)

    k: Annotated[int, Field(ge=1)] = 10
    """Neighbours of a row; at most half of the other rows, since of all others every row has the same."""

    def _compare(self, ours: Floats, theirs: Floats) -> float:
        return mutual_neighbours(ours, theirs, min(self.k, (len(ours) - 1) // 2))


class Procrustes(_Compared):
    """Distance of the two models' shapes after the best rotation, from 0 to the root of 2."""

    paper = "arXiv 2110.14739"
    bounds = (0.0, 2.0**0.5)

    @property
    def _similarity(self) -> bool:
        return False

    def _compare(self, ours: Floats, theirs: Floats) -> float:
        return procrustes_distance(ours, theirs)


class RSA(_Compared):
    """Rank correlation of the two models' dissimilarities of all pairs of rows."""

    paper = "doi 10.3389/neuro.06.004.2008"
    bounds = (-1.0, 1.0)

    def _compare(self, ours: Floats, theirs: Floats) -> float:
        return rsa(ours, theirs)


class _OfDirections(_OfFeatures):
    """A comparison with the principal directions of the original that the model came from."""

    paper = "arXiv 2505.16831"

    def _origin(self, evidence: Evidence, audit: Audit, least: int) -> tuple[Floats, Floats]:
        """The model's features, and those of the nearest original.

        Raises:
            NotMeasurable: see `_features`.
            ValueError: see `_features`; or an original's features have another width.
        """
        ours, originals = self._features(evidence, audit, "original", least)
        for theirs in originals:
            if theirs.shape != ours.shape:
                raise ValueError(f"an original's features have shape {theirs.shape}, the model's {ours.shape}; allowed: the same")
        return ours, min(originals, key=lambda theirs: float(np.linalg.norm(ours.astype(np.float64) - theirs)))


class PCAShift(_OfDirections):
    """How far the mean of the features has moved along the original's principal directions, in standard deviations along them."""

    bounds = (0.0, sys.float_info.max)
    direction = "lower"

    components: Annotated[int, Field(ge=1)] = 2
    """Principal directions of the original."""

    def measure(self, evidence: Evidence, audit: Audit) -> float:
        """The length of the shift.

        Raises:
            NotMeasurable: the split has too few rows, or there is no other original.
            ValueError: more components than features, features that do not vary or of other widths, or a row that another lacks.
        """
        ours, original = self._origin(evidence, audit, self.components + 1)
        return principal_shift(original, ours, self.components)


class PCACosine(_OfDirections):
    """Cosine between the first principal directions of the original and of the model, without its sign."""

    bounds = (0.0, 1.0)
    direction = "higher"

    def measure(self, evidence: Evidence, audit: Audit) -> float:
        """The cosine.

        Raises:
            NotMeasurable: the split has too few rows, or there is no other original.
            ValueError: features that do not vary or of other widths, or a row that another lacks.
        """
        ours, original = self._origin(evidence, audit, 3)
        return principal_cosine(original, ours)
