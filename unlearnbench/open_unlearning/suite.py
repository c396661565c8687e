"""What open-unlearning's two evaluations share: splits and needs in, groups by name out, membership, and the retain model's numbers.

The retain model's truth ratios and min-k scores come from a log that open-unlearning (or this module) wrote, or from its folder.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from unlearnbench.api import Need, UserError
from unlearnbench.evidence import Evidence
from unlearnbench.open_unlearning import scores
from unlearnbench.open_unlearning.prompts import Prompts
from unlearnbench.open_unlearning.scores import Group
from unlearnbench.scenarios.text_evidence import Rows

GRADIENT = " but the last token"
"""Splits of this ending hold the rows whose gradients are taken, answers without their last token."""
ATTACKS = ("loss", "zlib", "min_k", "min_k_plus_plus", "gradnorm", "reference")
MEMBERS = ("forget", "holdout")


@dataclass(frozen=True)
class Anchor:
    """The retain model's truth ratios [n], where the benchmark has them, and its area under the min-k curve; None for unknown."""

    ratios: NDArray[np.float64] | None = None
    auc: float | None = None


class Suite(ABC):
    """One benchmark as open-unlearning evaluates it."""

    name: ClassVar[str]
    """What the files' names begin with."""
    summarised: ClassVar[tuple[str, ...]]
    """The groups, beside those of membership, whose aggregates the summary holds."""
    anchored: ClassVar[tuple[str, ...]]
    """The groups of a retain model's log that are read."""
    limit: int | None
    """Only the first rows of every split are scored."""

    @abstractmethod
    def chat(self, tokenizer: object) -> bool:
        """Whether questions go through the chat template."""

    @abstractmethod
    def rows(self, prompts: Prompts) -> dict[str, Rows]:
        """The rows of every split, their texts made ready in `prompts`; row i has identity str(i).

        Raises:
            UserError: rows are missing or not in the data set's order.
        """

    @abstractmethod
    def needs(self, attacks: Sequence[str]) -> frozenset[Need]:
        """What is wanted of the model."""

    @abstractmethod
    def anchor_needs(self) -> frozenset[Need]:
        """What is wanted of a retain model."""

    @abstractmethod
    def anchor(self, evidence: Evidence, prompts: Prompts, rows: Mapping[str, Rows]) -> Mapping[str, Group]:
        """A retain model's log, as far as it is read."""

    @abstractmethod
    def check_log(self, log: Mapping[str, Group], prompts: Prompts, rows: Mapping[str, Rows]) -> None:
        """Refuse a retain model's log of other rows.

        Raises:
            UserError: naming the first row that differs.
        """

    @abstractmethod
    def groups(
        self,
        evidence: Evidence,
        reference: Evidence | None,
        prompts: Prompts,
        rows: Mapping[str, Rows],
        anchor: Anchor,
        attacks: Sequence[str],
    ) -> dict[str, Group]:
        """All groups by name.

        Args:
            evidence: of the model, on `needs`.
            reference: of the reference model, on `reference_needs`; None leaves that attack out.
            prompts: as `rows` left them.
            rows: what was scored.
            anchor: of the retain model.
            attacks: names out of `ATTACKS`; min_k is always among them.
        """


def members(rows: Mapping[str, Rows]) -> dict[str, Rows]:
    """Rows whose gradients are taken, by the names of their splits."""
    return {split + GRADIENT: replace(rows[split], ends=False) for split in MEMBERS}


def membership_needs(attacks: Sequence[str]) -> frozenset[Need]:
    """What the membership attacks and min-k read."""
    tokens = {Need(what="tokens", split=split, moments="min_k_plus_plus" in attacks) for split in MEMBERS}
    gradients = {Need(what="gradient_norm", split=split + GRADIENT) for split in MEMBERS if "gradnorm" in attacks}
    return frozenset(tokens | gradients)


def membership_groups(
    evidence: Evidence, reference: Evidence | None, prompts: Prompts, rows: Mapping[str, Rows], attacks: Sequence[str]
) -> dict[str, Group]:
    """The groups of the attacks, by name."""
    tokens = {split: evidence.tokens(Need(what="tokens", split=split))[0] for split in MEMBERS}
    found = {"mia_min_k": {split: scores.lowest(tokens[split]) for split in MEMBERS}}
    if "loss" in attacks:
        found["mia_loss"] = {split: tokens[split].nll().tolist() for split in MEMBERS}
    if "zlib" in attacks:
        found["mia_zlib"] = {split: scores.compressed(tokens[split], _scored_texts(prompts, rows[split])) for split in MEMBERS}
    if "min_k_plus_plus" in attacks:
        found["mia_min_k_plus_plus"] = {split: scores.lowest_standardised(tokens[split]) for split in MEMBERS}
    if "gradnorm" in attacks:
        norms = {split: evidence.array(Need(what="gradient_norm", split=split + GRADIENT)) for split in MEMBERS}
        found["mia_gradnorm"] = {split: norms[split][:, 0].tolist() for split in MEMBERS}
    if reference is not None:
        others = {split: reference.tokens(Need(what="tokens", split=split))[0] for split in MEMBERS}
        found["mia_reference"] = {split: (tokens[split].nll() - others[split].nll()).tolist() for split in MEMBERS}
    return {name: scores.membership(values["forget"], values["holdout"]) for name, values in found.items()}


def _scored_texts(prompts: Prompts, rows: Rows) -> list[str]:
    return [prompts.scored(prompt, answer) for prompt, (answer,) in zip(rows.prompts["question"], rows.answers["answer"], strict=True)]


def text_group(evidence: Evidence, prompts: Prompts, rows: Mapping[str, Rows], split: str, headline: str) -> Group:
    """ROUGE of a split's generations."""
    asked, answers = rows[split].prompts["question"], rows[split].answers["answer"]
    generated = evidence.generations(Need(what="generation", split=split))[0]
    expected = [prompts.expected(prompt, answer) for prompt, (answer,) in zip(asked, answers, strict=True)]
    return scores.rouge([prompts.shown(prompt) for prompt in asked], expected, [prompts.generated(text) for text in generated], headline)


def read_log(path: Path) -> dict[str, Group]:
    """A log of open-unlearning's.

    Raises:
        UserError: it is no such file.
    """
    try:
        log = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--oracle-log {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise UserError(f"--oracle-log {path}: not JSON: {error}") from error
    if not isinstance(log, dict) or not all(isinstance(group, dict) and "agg_value" in group for group in log.values()):
        raise UserError(f"--oracle-log {path}: no log of metrics by name, each with its agg_value, such as TOFU_EVAL.json")
    return log


def anchor_of(suite: Suite, log: Mapping[str, Group], rows: Mapping[str, Rows]) -> Anchor:
    """The retain model's numbers out of its log; of a longer log, the first rows where the suite is limited to those.

    Raises:
        UserError: a group is missing, or has another number of rows.
    """
    if missing := [name for name in suite.anchored if name not in log]:
        raise UserError(f"the oracle's log has no {missing[0]!r}, which is compared with; it has: {', '.join(sorted(log))}")

    def values(name: str, group: Group, split: str) -> NDArray[np.float64]:
        found, count = scores.column(group, "score"), len(rows[split].ids)
        if len(found) < count or (suite.limit is None and len(found) > count):
            raise UserError(f"the oracle's log has {len(found)} rows of {name}, and {split} has {count}: another split")
        return found[:count]

    ratios = values("forget_truth_ratio", log["forget_truth_ratio"], "forget") if "forget_truth_ratio" in suite.anchored else None
    forget, holdout = (values(f"mia_min_k ({split})", log["mia_min_k"][split], split) for split in MEMBERS)
    return Anchor(ratios, scores.area(forget.tolist(), holdout.tolist()))
