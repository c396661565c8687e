"""open-unlearning's MUSE evaluation: which rows it reads, and its metrics by the names of `MUSE_EVAL.json`.

Questions are asked in plain text after ten examples, also of a tokenizer that has a chat template; passages go on from their prompts.
Memorisation is measured on verbmem, membership on privleak. The local folder's `retain2_qa` is the hub's `retain_qa`.
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
from unlearnbench.scenarios.hub_data import Column, DataSet, Row, find
from unlearnbench.scenarios.text_evidence import Generation, Rows

CORPORA = {"news": "muse-bench/MUSE-News", "books": "muse-bench/MUSE-Books"}
COUNT, EXAMPLES = 100, 10
_QA: dict[str, Column] = {"question": "text", "answer": "text"}
_PASSAGE: dict[str, Column] = {"prompt": "text", "gt": "text"}
_TEXT: dict[str, Column] = {"text": "text"}
KNOWN = Generation(max_new_tokens=32, stop=("\n\n", "\nQuestion", "Question:"))
VERBATIM = Generation(max_new_tokens=128)


@dataclass(frozen=True)
class MuseSuite(Suite):
    """MUSE on one of its corpora."""

    corpus: str
    """news or books."""
    data_dir: str | None
    limit: int | None

    name = "MUSE"
    anchored = ("mia_min_k",)
    summarised = (
        "exact_memorization",
        "extraction_strength",
        "forget_knowmem_ROUGE",
        "forget_verbmem_ROUGE",
        "privleak",
        "retain_knowmem_ROUGE",
    )

    def chat(self, tokenizer: object) -> bool:
        """See `Suite.chat`."""
        return False

    def _data(self) -> DataSet:
        if self.corpus not in CORPORA:
            raise UserError(f"--corpus {self.corpus!r} is no corpus of MUSE; allowed: {', '.join(CORPORA)}")
        return find(CORPORA[self.corpus], under=f"muse/{self.corpus}", data_dir=self.data_dir)

    def rows(self, prompts: Prompts) -> dict[str, Rows]:
        """See `Suite.rows`."""
        data, made = self._data(), {}
        for split, local, hub in (("forget_knowmem", "forget_qa", "forget_qa"), ("retain_knowmem", "retain2_qa", "retain_qa")):
            told, asked = (
                data.rows("knowmem", hub + icl, file=f"knowmem/{local}{icl}.json", columns=_QA, count=count)
                for icl, count in (("_icl", EXAMPLES), ("", COUNT))
            )
            examples = tuple((row["question"], row["answer"]) for row in told)
            kept = asked[: self.limit]
            texts = [prompts.question(row["question"], [row["answer"]], examples) for row in kept]
            made[split] = _rows(texts, [row["answer"] for row in kept], KNOWN)
        passages = data.rows("verbmem", "forget", file="verbmem/forget.json", columns=_PASSAGE)[: self.limit]
        texts = [prompts.completion(row["prompt"], row["gt"], space=True) for row in passages]
        made["verbmem"] = _rows(texts, [row["gt"] for row in passages], VERBATIM)
        for split in ("forget", "holdout"):
            whole: tuple[Row, ...] = data.rows("privleak", split, file=f"privleak/{split}.json", columns=_TEXT)[: self.limit]
            texts = [prompts.completion("", row["text"], space=False) for row in whole]
            made[split] = _rows(texts, [row["text"] for row in whole], Generation())
        return made

    def needs(self, attacks: Sequence[str]) -> frozenset[Need]:
        """See `Suite.needs`."""
        texts = {Need(what="generation", split=split) for split in ("forget_knowmem", "retain_knowmem", "verbmem")}
        return frozenset({Need(what="tokens", split="verbmem"), *texts, *membership_needs(attacks)})

    def anchor_needs(self) -> frozenset[Need]:
        """See `Suite.anchor_needs`."""
        return membership_needs(())

    def anchor(self, evidence: Evidence, prompts: Prompts, rows: Mapping[str, Rows]) -> Mapping[str, Group]:
        """See `Suite.anchor`."""
        return membership_groups(evidence, None, prompts, rows, ("min_k",))

    def check_log(self, log: Mapping[str, Group], prompts: Prompts, rows: Mapping[str, Rows]) -> None:
        """See `Suite.check_log`."""
        passages = rows["verbmem"]
        shown = log.get("forget_verbmem_ROUGE", {}).get("value_by_index", {})
        for i, (prompt, (answer,)) in enumerate(zip(passages.prompts["question"], passages.answers["answer"], strict=True)):
            theirs = shown.get(str(i), {}).get("ground_truth")
            if shown and theirs != prompts.expected(prompt, answer):
                raise UserError(f"passage {i} of the oracle's log is another than that of {self.corpus}: another split")

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
        passages = evidence.tokens(Need(what="tokens", split="verbmem"))[0]
        found = {
            "exact_memorization": scores.exact_memorization(passages),
            "extraction_strength": scores.extraction_strength(passages),
            "forget_knowmem_ROUGE": text_group(evidence, prompts, rows, "forget_knowmem", "rougeL_f1"),
            "retain_knowmem_ROUGE": text_group(evidence, prompts, rows, "retain_knowmem", "rougeL_f1"),
            "forget_verbmem_ROUGE": text_group(evidence, prompts, rows, "verbmem", "rougeL_f1"),
            **membership_groups(evidence, reference, prompts, rows, attacks),
        }
        found["privleak"] = scores.privleak(found["mia_min_k"]["auc"], anchor.auc)
        return found


def _rows(texts: Sequence[str], answers: Sequence[str], generation: Generation) -> Rows:
    ids = tuple(map(str, range(len(texts))))
    return Rows(
        ids=ids,
        clusters=ids,
        prompts={"question": tuple(texts)},
        answers={"answer": tuple((answer,) for answer in answers)},
        generation=generation,
    )
