"""One evidence pass against one pass per metric: token-forwards and processor seconds, measured in one run on one thread.

    python benchmarks/evidence.py

A small Llama with random weights, 40 questions of 50 to 90 tokens, each with an answer, a paraphrase and five perturbed answers of
20 to 50 tokens. Three ways to serve the same metrics, whose values are compared:

- naive: as in published code, every metric makes its own pass over its rows in file order, 32 at a time, with logits everywhere;
- per metric: our pass, once per metric;
- shared: our pass, once for all.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from unlearnbench.api import Need
from unlearnbench.evidence import Evidence, Tokens
from unlearnbench.scenarios.text_evidence import Rows, text_evidence

VOCABULARY, END, NEW_TOKENS, ROWS_AT_ONCE, REPEATS = 8_000, 1, 30, 32, 2

ANSWER, MOMENTS = Need(what="tokens", split="forget"), Need(what="tokens", split="forget", moments=True)
PARAPHRASED = Need(what="tokens", split="forget", answer="paraphrased_answer")
PERTURBED = Need(what="tokens", split="forget", answer="perturbed_answer")
GENERATION = Need(what="generation", split="forget")
TEACHER_FORCED = {
    "probability": (ANSWER,),
    "paraphrase probability": (PARAPHRASED,),
    "truth ratio": (PARAPHRASED, PERTURBED),
    "extraction strength": (ANSWER,),
    "exact memorisation": (ANSWER,),
    "membership by loss": (ANSWER,),
    "membership by zlib": (ANSWER,),
    "membership by min-k": (ANSWER,),
    "membership by min-k++": (MOMENTS,),
}
GENERATED = {"ROUGE-L": (GENERATION,), "fluency": (GENERATION,)}


class Numbers:
    """A tokenizer of texts that are token ids."""

    eos_token_id = pad_token_id = END

    def encode(self, text: str) -> list[int]:
        """Token ids of a text."""
        return [int(word) for word in text.split()]

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        """The text of token ids."""
        return " ".join(str(i) for i in ids if i != END)


@dataclass
class Counter:
    """Counts the tokens that are no padding, and with it, that a model forwards."""

    tokens: int = 0
    padded: int = 0

    def __call__(self, model: Any, args: Any, kwargs: dict[str, Any]) -> None:
        """A forward pre-hook."""
        ids, mask = kwargs["input_ids"], kwargs["attention_mask"]
        self.padded += ids.numel()
        self.tokens += int(mask[:, -ids.shape[1] :].sum())


def text(generator: np.random.Generator, low: int, high: int) -> str:
    """Between `low` and `high` random tokens."""
    return " ".join(map(str, generator.integers(2, VOCABULARY, generator.integers(low, high + 1))))


def rows() -> Rows:
    """40 questions with seven answers each."""
    generator = np.random.default_rng(0)
    names = tuple(map(str, range(40)))
    counts = {"answer": 1, "paraphrased_answer": 1, "perturbed_answer": 5}
    return Rows(
        ids=names,
        clusters=names,
        prompts={"question": tuple(text(generator, 50, 90) for _ in names)},
        answers={kind: tuple(tuple(text(generator, 20, 50) for _ in range(n)) for _ in names) for kind, n in counts.items()},
    )


def naive(model: LlamaForCausalLM, split: Rows, needs: frozenset[Need]) -> Evidence:
    """The needs one by one: file order, padding on the right, logits of all positions."""
    encode, stats, texts = Numbers().encode, {}, {}
    for need in needs:
        pairs = split.pairs(need)
        if need.what == "generation":
            continued: list[str] = []
            for start in range(0, len(pairs), ROWS_AT_ONCE):
                prompts = [encode(row[0][0]) for row in pairs[start : start + ROWS_AT_ONCE]]
                width = max(map(len, prompts))
                ids = torch.tensor([[END] * (width - len(prompt)) + prompt for prompt in prompts])
                mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
                output = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=END)
                continued += [Numbers().decode(row, skip_special_tokens=True) for row in output[:, width:].tolist()]
            texts[need] = tuple(continued)
            continue
        found = []
        for number in range(len(pairs[0])):
            flat: list[torch.Tensor] = []
            for start in range(0, len(pairs), ROWS_AT_ONCE):
                batch = [(encode(row[number][0]), [*encode(row[number][1]), END]) for row in pairs[start : start + ROWS_AT_ONCE]]
                width = max(len(prompt) + len(answer) for prompt, answer in batch)
                ids = torch.tensor([prompt + answer + [END] * (width - len(prompt) - len(answer)) for prompt, answer in batch])
                mask = torch.tensor([[1] * (len(p) + len(a)) + [0] * (width - len(p) - len(a)) for p, a in batch])
                logp = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1].float().log_softmax(-1)
                for i, (prompt, answer) in enumerate(batch):
                    target = torch.tensor(answer)
                    row = logp[i, len(prompt) - 1 : len(prompt) + len(answer) - 1]
                    columns = [row.gather(-1, target[:, None])[:, 0], (row.argmax(-1) == target).float()]
                    if need.moments:
                        mean = (row.exp() * row).sum(-1)
                        columns += [mean, (row.exp() * (row - mean[:, None]).square()).sum(-1)]
                    flat.append(torch.stack(columns))
            values = torch.cat(flat, 1).numpy()
            offsets = np.concatenate([[0], np.cumsum([part.shape[1] for part in flat])])
            found.append(Tokens(values[0], values[1] > 0, offsets, *values[2:]))
        stats[need] = tuple(found)
    return Evidence(ids={}, clusters={}, token_stats=stats, texts=texts, references=texts)


@dataclass
class Cost:
    """The least processor seconds of the repeats, and the tokens of one."""

    seconds: float = np.inf
    tokens: int = 0
    padded: int = 0
    found: dict[str, Evidence] = field(default_factory=dict)


def measured(model: LlamaForCausalLM, serve: Callable[[], dict[str, Evidence]], cost: Cost) -> None:
    """Run `serve` once and enter into `cost` what it took and found."""
    counter = Counter()
    handle = model.register_forward_pre_hook(counter, with_kwargs=True)
    start = time.process_time()
    with torch.no_grad():
        found = serve()
    cost.seconds = min(cost.seconds, time.process_time() - start)
    handle.remove()
    cost.tokens, cost.padded, cost.found = counter.tokens, counter.padded, found


def agree(metrics: dict[str, tuple[Need, ...]], left: dict[str, Evidence], right: dict[str, Evidence]) -> float:
    """The largest difference of any log-probability or moment; raises where hits, lengths or texts differ."""
    largest = 0.0
    for metric, needs in metrics.items():
        for need in needs:
            if need.what == "generation":
                assert left[metric].generations(need)[0] == right[metric].generations(need)[0], metric
                continue
            for one, other in zip(left[metric].tokens(need), right[metric].tokens(need), strict=True):
                np.testing.assert_array_equal(one.offsets, other.offsets)
                np.testing.assert_array_equal(one.hit, other.hit)
                arrays = [(one.logprob, other.logprob)]
                if need.moments:
                    arrays += [(one.mean, other.mean), (one.variance, other.variance)]
                for mine, theirs in arrays:
                    largest = max(largest, float(np.abs(mine - theirs).max()))
    assert largest < 1e-4, largest
    return largest


def main() -> None:
    """Print three lines for teacher forcing and three for generation; a difference in values is an error."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        bos_token_id=None,
        eos_token_id=END,
        pad_token_id=END,
    )
    model, split, tokenizer = LlamaForCausalLM(config).eval(), rows(), Numbers()

    def pass_over(needs: frozenset[Need]) -> Evidence:
        return text_evidence(
            model,
            tokenizer,
            {"forget": split},
            needs,
            encode_prompt=tokenizer.encode,
            encode_answer=tokenizer.encode,
            max_new_tokens=NEW_TOKENS,
        )

    for title, metrics in (("teacher-forced", TEACHER_FORCED), ("generation", GENERATED)):
        union = frozenset(need for needs in metrics.values() for need in needs)
        ways: dict[str, Callable[[], dict[str, Evidence]]] = {
            "naive": lambda metrics=metrics: {name: naive(model, split, frozenset(needs)) for name, needs in metrics.items()},
            "per metric": lambda metrics=metrics: {name: pass_over(frozenset(needs)) for name, needs in metrics.items()},
            "shared": lambda metrics=metrics, union=union: dict.fromkeys(metrics, pass_over(union)),
        }
        costs = {way: Cost() for way in ways}
        for _ in range(REPEATS):
            for way, serve in ways.items():
                measured(model, serve, costs[way])
        shared = costs["shared"]
        print(f"{title}: {len(metrics)} metrics")
        for way, cost in costs.items():
            difference = agree(metrics, cost.found, shared.found)
            print(
                f"  {way:<10} {cost.tokens:>7,} token-forwards ({cost.tokens / shared.tokens:4.1f} x), {cost.padded:>7,} with padding;"
                f" {cost.seconds:6.2f} s ({cost.seconds / shared.seconds:4.1f} x); largest difference {difference:.0e}"
            )


if __name__ == "__main__":
    main()
