"""Our evaluation of a TOFU checkpoint against one pass per metric: token-forwards and processor seconds, in one run on one thread.

    python benchmarks/checkpoint.py --model DIR --reference-model DIR --data-dir DIR [--forget forget10] [--limit N]

All 14 metric groups of open-unlearning under its conventions. The other way makes a pass for each metric that needs one, over its rows
in file order, 32 at a time, with logits everywhere (min-k++ once, not twice); truth ratios, model utility, forget quality and PrivLeak
reuse what is there. Losses of both ways are compared. Generation and gradient norms, which both ways make once, are printed apart.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from unlearnbench.api import Need
from unlearnbench.checkpoints import load_checkpoint, load_tokenizer
from unlearnbench.evidence import Evidence
from unlearnbench.open_unlearning.passes import GENERATED_TOKENS, NEW_TOKENS, SCORED_TOKENS
from unlearnbench.open_unlearning.prompts import Prompts
from unlearnbench.open_unlearning.suite import ATTACKS, MEMBERS, members
from unlearnbench.open_unlearning.tofu import TofuSuite
from unlearnbench.scenarios.text_evidence import Rows, TextPass, forward_of
from unlearnbench.scenarios.text_jobs import Job, Outcome

AT_ONCE = 32
FORGET, HOLDOUT = ("forget", "answer"), ("holdout", "answer")
PASSES = {
    "forget_Q_A_Prob": (FORGET,),
    "forget_Q_A_PARA_Prob": (("forget", "paraphrased_answer"),),
    "forget_Q_A_PERT_Prob": (("forget", "perturbed_answer"),),
    "exact_memorization": (FORGET,),
    "extraction_strength": (FORGET,),
    **{f"mia_{name}": (FORGET, HOLDOUT) for name in ("loss", "zlib", "min_k", "min_k_plus_plus", "reference")},
    "mia_reference, the other model": (FORGET, HOLDOUT),
    **{
        f"model_utility: {split} {answer}": ((split, answer),)
        for split in ("retain", "real_authors", "world_facts")
        for answer in ("answer", "paraphrased_answer", "perturbed_answer")
        if split == "retain" or answer != "paraphrased_answer"
    },
}
Ids = tuple[tuple[int, ...], int]


def sequences(prompts: Prompts, rows: Rows, answer: str) -> list[Ids]:
    """Ids of every prompt with every answer, and how many of them are not scored."""
    pairs = zip(rows.prompts["question"], rows.answers[answer], strict=True)
    return [prompts.encode_pair(prompt, one, True) for prompt, several in pairs for one in several]


def naive(model: Any, found: Sequence[Ids], pad: int) -> list[float]:
    """The mean loss of each sequence, all logits made."""
    losses = []
    with torch.no_grad():
        for start in range(0, len(found), AT_ONCE):
            part = found[start : start + AT_ONCE]
            ids = pad_sequence([torch.tensor(row) for row, _ in part], batch_first=True, padding_value=pad)
            logp = model(input_ids=ids, attention_mask=ids != pad).logits.float().log_softmax(-1)
            picked = logp[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
            losses += [-float(picked[i, length - 1 : len(row) - 1].mean()) for i, (row, length) in enumerate(part)]
    return losses


def tokens_of(job: Job) -> int:
    """Tokens that a job forwards, without those that it generates."""
    return sum(len(prompt.ids) for prompt, _ in job.prompts) + sum(len(answer.ids) - 1 for _, answer in job.pairs)


def ours(model: Any, prompts: Prompts, rows: dict[str, Rows], needs: frozenset[Need], costs: dict[str, list[float]]) -> Evidence:
    """One pass, its tokens and seconds added by kind."""
    conventions = prompts.conventions(model.generation_config)
    options: dict[str, Any] = {"encode_prompt": prompts.encode_prompt, "encode_answer": prompts.encode_answer}
    made = TextPass(prompts.tokenizer, rows, needs, **options, max_new_tokens=NEW_TOKENS, conventions=conventions)
    forward, outcome = forward_of(model, prompts.tokenizer, made.prompts, conventions), Outcome({}, {}, {})
    for job in made.jobs(SCORED_TOKENS, GENERATED_TOKENS):
        kind = "gradient norms" if job.gradient else "generation" if job.generation is not None else "teacher-forced"
        start = time.process_time()
        outcome.add(forward.run(job))
        costs[kind][0] += tokens_of(job)
        costs[kind][1] += time.process_time() - start
    made.take(outcome)
    return made.evidence


def lines(costs: dict[str, list[float]], other: list[float]) -> Iterator[str]:
    """What is printed."""
    tokens, seconds = costs["teacher-forced"]
    yield f"teacher-forced, {len(PASSES)} passes of all 14 groups:"
    yield f"  one pass per metric {other[0]:>9,.0f} token-forwards, {other[1]:7.1f} s"
    yield f"  ours                {tokens:>9,.0f} token-forwards, {seconds:7.1f} s: {tokens / other[0]:.0%} and {seconds / other[1]:.0%}"
    for kind in ("generation", "gradient norms"):
        yield f"{kind} (ours): {costs[kind][0]:,.0f} tokens of prompts and answers, {costs[kind][1]:.1f} s"


def main() -> None:
    """Print the two ways; a difference between their losses is an error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--model", "--reference-model", "--data-dir"):
        parser.add_argument(name, required=True)
    parser.add_argument("--forget", default="forget10")
    parser.add_argument("--limit", type=int)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    model, reference = (load_checkpoint(folder) for folder in (chosen.model, chosen.reference_model))
    suite = TofuSuite(chosen.forget, chosen.data_dir, chosen.limit)
    prompts = Prompts(tokenizer := load_tokenizer(chosen.model), chat=suite.chat(tokenizer))
    rows = suite.rows(prompts)
    costs = {kind: [0.0, 0.0] for kind in ("teacher-forced", "generation", "gradient norms")}
    evidence = ours(model, prompts, rows | members(rows), suite.needs(ATTACKS), costs)
    ours(reference, prompts, rows, frozenset(Need(what="tokens", split=split) for split in MEMBERS), costs)
    other = [0.0, 0.0]
    for name, read in PASSES.items():
        for split, answer in read:
            found = sequences(prompts, rows[split], answer)
            start = time.process_time()
            losses = naive(reference if name.endswith("the other model") else model, found, tokenizer.pad_token_id)
            other[0] += sum(len(ids) for ids, _ in found)
            other[1] += time.process_time() - start
            if not name.endswith("the other model"):
                kind: Any = answer
                mine = np.stack([tokens.nll() for tokens in evidence.tokens(Need(what="tokens", split=split, answer=kind))], 1)
                np.testing.assert_allclose(losses, mine.flatten(), rtol=1e-4, atol=3e-5, err_msg=name)
    print("\n".join(lines(costs, other)))


if __name__ == "__main__":
    main()
