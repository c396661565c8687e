"""open-unlearning's TOFU evaluation: which rows it reads, and its metrics by the names of `TOFU_EVAL.json`.

Rows: `<forget>_perturbed` (checked against `<forget>`), `holdout` of the same size, `retain_perturbed` (checked against the first rows
of `full`), `real_authors_perturbed` and `world_facts_perturbed`, whose answers stand for their paraphrases.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from unlearnbench.api import Need, UserError
from unlearnbench.evidence import Evidence
from unlearnbench.open_unlearning import scores
from unlearnbench.open_unlearning.prompts import Prompts
from unlearnbench.open_unlearning.scores import Group
from unlearnbench.open_unlearning.suite import Anchor, Suite, membership_groups, membership_needs, text_group
from unlearnbench.scenarios.hub_data import Column, DataSet, Row, find, same_rows
from unlearnbench.scenarios.text_evidence import Rows

HUB = "locuslab/TOFU"
SIZES = {"forget01": 40, "forget05": 200, "forget10": 400}
RETAINED, AUTHORS, FACTS, FULL = 400, 100, 117, 4000
_QA: dict[str, Column] = {"question": "text", "answer": "text"}
_WRONG: dict[str, Column] = {**_QA, "perturbed_answer": "texts"}
_ALL: dict[str, Column] = {**_WRONG, "paraphrased_answer": "text"}
_SHORT = {"real_authors": "ra", "world_facts": "wf"}


@dataclass(frozen=True)
class TofuSuite(Suite):
    """TOFU with one of its forget sets."""

    forget: str
    """forget01, forget05 or forget10."""
    data_dir: str | None
    limit: int | None

    name = "TOFU"
    anchored = ("forget_truth_ratio", "mia_min_k")
    summarised = (
        "exact_memorization",
        "extraction_strength",
        "forget_Q_A_Prob",
        "forget_Q_A_ROUGE",
        "forget_quality",
        "forget_truth_ratio",
        "model_utility",
        "privleak",
    )

    def chat(self, tokenizer: object) -> bool:
        """See `Suite.chat`."""
        return getattr(tokenizer, "chat_template", None) is not None

    def _files(self) -> Mapping[str, tuple[Row, ...]]:
        if self.forget not in SIZES:
            raise UserError(f"--forget {self.forget!r} is no forget set of TOFU; allowed: {', '.join(SIZES)}")
        data, count = find(HUB, under="tofu", data_dir=self.data_dir), SIZES[self.forget]
        found = {
            "forget": _read(data, f"{self.forget}_perturbed", _ALL, count),
            "retain": _read(data, "retain_perturbed", _ALL, RETAINED),
            "holdout": _read(data, self.forget.replace("forget", "holdout"), _QA, count),
            "real_authors": _read(data, "real_authors_perturbed", _WRONG, AUTHORS),
            "world_facts": _read(data, "world_facts_perturbed", _WRONG, FACTS),
        }
        taught, full = _read(data, self.forget, _QA, count), _read(data, "full", _QA, FULL)
        same_rows(found["forget"], taught, tuple(_QA), what=f"{self.forget}_perturbed", of=self.forget)
        same_rows(found["retain"], full[:RETAINED], tuple(_QA), what="retain_perturbed", of=f"the first {RETAINED} of full")
        same_rows(taught, full[-count:], tuple(_QA), what=self.forget, of=f"the last {count} of full")
        return {split: rows[: self.limit] for split, rows in found.items()}

    def rows(self, prompts: Prompts) -> dict[str, Rows]:
        """See `Suite.rows`."""
        made = {}
        for split, rows in self._files().items():
            answers = {kind: tuple(_several(row[kind]) for row in rows) for kind in _ALL if kind != "question" and kind in rows[0]}
            texts = [
                prompts.question(row["question"], [answer for several in answers.values() for answer in several[i]])
                for i, row in enumerate(rows)
            ]
            ids = tuple(map(str, range(len(rows))))
            made[split] = Rows(ids=ids, clusters=ids, prompts={"question": tuple(texts)}, answers=answers)
        return made

    def needs(self, attacks: Sequence[str]) -> frozenset[Need]:
        """See `Suite.needs`."""
        # The forget set's own answers are among the needs of membership, with or without moments.
        kinds = {"forget": tuple(_ALL)[2:], "retain": tuple(_ALL)[1:], "real_authors": tuple(_WRONG)[1:], "world_facts": tuple(_WRONG)[1:]}
        tokens = {Need(what="tokens", split=split, answer=kind) for split in kinds for kind in kinds[split]}  # type: ignore[arg-type]
        return frozenset(tokens | {Need(what="generation", split=split) for split in kinds} | membership_needs(attacks))

    def anchor_needs(self) -> frozenset[Need]:
        """See `Suite.anchor_needs`."""
        kinds = ("paraphrased_answer", "perturbed_answer")
        return frozenset({Need(what="tokens", split="forget", answer=kind) for kind in kinds} | membership_needs(()))  # type: ignore[arg-type]

    def anchor(self, evidence: Evidence, prompts: Prompts, rows: Mapping[str, Rows]) -> Mapping[str, Group]:
        """See `Suite.anchor`."""
        return {"forget_truth_ratio": _forget_ratio(evidence)[0], **membership_groups(evidence, None, prompts, rows, ("min_k",))}

    def check_log(self, log: Mapping[str, Group], prompts: Prompts, rows: Mapping[str, Rows]) -> None:
        """See `Suite.check_log`."""
        shown = log.get("forget_Q_A_ROUGE", {}).get("value_by_index", {})
        forget = rows["forget"]
        for i, (prompt, (answer,)) in enumerate(zip(forget.prompts["question"], forget.answers["answer"], strict=True)):
            theirs, ours = shown.get(str(i), {}).get("ground_truth"), prompts.expected(prompt, answer)
            if shown and theirs != ours:
                raise UserError(
                    f"row {i} of the oracle's log answers {theirs!r:.80}, and row {i} of {self.forget} {ours!r:.80}: another split"
                )

    def groups(
        self,
        evidence: Evidence,
        reference: Evidence | None,
        prompts: Prompts,
        rows: Mapping[str, Rows],
        anchor: Anchor,
        attacks: Sequence[str],
    ) -> dict[str, Group]:
        """See `Suite.groups`."""
        answers = evidence.tokens(Need(what="tokens", split="forget", answer="answer"))[0]
        ratio, right, wrong = _forget_ratio(evidence)
        found = {
            "forget_Q_A_Prob": scores.probability(evidence, "forget"),
            "forget_Q_A_PARA_Prob": right,
            "forget_Q_A_PERT_Prob": wrong,
            "forget_truth_ratio": ratio,
            "forget_quality": scores.forget_quality(ratio, anchor.ratios),
            "forget_Q_A_ROUGE": text_group(evidence, prompts, rows, "forget", "rougeL_recall"),
            "exact_memorization": scores.exact_memorization(answers),
            "extraction_strength": scores.extraction_strength(answers),
            **membership_groups(evidence, reference, prompts, rows, attacks),
            **self._utility(evidence, prompts, rows),
        }
        found["privleak"] = scores.privleak(found["mia_min_k"]["auc"], anchor.auc)
        return found

    def _utility(self, evidence: Evidence, prompts: Prompts, rows: Mapping[str, Rows]) -> dict[str, Group]:
        found = {f"{name}_Q_A_Prob": scores.probability(evidence, split) for split, name in {"retain": "retain", **_SHORT}.items()}
        found |= {
            f"{name}_Q_A_PERT_Prob": scores.probability(evidence, split, "perturbed_answer")
            for split, name in {"retain": "retain", **_SHORT}.items()
        }
        found["retain_Q_A_PARA_Prob"] = scores.probability(evidence, "retain", "paraphrased_answer")
        for split, name in {"retain": "retain", **_SHORT}.items():
            right, wrong = found[f"{name}_Q_A_{'PARA_' * (name == 'retain')}Prob"], found[f"{name}_Q_A_PERT_Prob"]
            found[f"{name}_Truth_Ratio"] = scores.truth_ratio(right, wrong, scores.true_better)
            found[f"{name}_Q_A_ROUGE"] = text_group(evidence, prompts, rows, split, "rougeL_recall")
            if name != "retain":
                found[f"{name}_Q_A_Prob_normalised"] = scores.probability_with_options(right, wrong)
        probabilities = ("retain_Q_A_Prob", "ra_Q_A_Prob_normalised", "wf_Q_A_Prob_normalised")
        others = [f"{name}_{kind}" for name in ("retain", "ra", "wf") for kind in ("Q_A_ROUGE", "Truth_Ratio")]
        found["model_utility"] = scores.model_utility([found[name] for name in (*probabilities, *others)])
        return found


def _forget_ratio(evidence: Evidence) -> tuple[Group, Group, Group]:
    """The truth ratio of the forget set, and the right and the wrong answers it is made of."""
    right, wrong = (scores.probability(evidence, "forget", kind) for kind in ("paraphrased_answer", "perturbed_answer"))
    return scores.truth_ratio(right, wrong, scores.closer_to_1_better), right, wrong


def _read(data: DataSet, configuration: str, columns: Mapping[str, Column], count: int) -> tuple[Row, ...]:
    return data.rows(configuration, file=f"{configuration}.json", columns=columns, count=count)


def _several(answers: str | list[str]) -> tuple[str, ...]:
    return (answers,) if isinstance(answers, str) else tuple(answers)
