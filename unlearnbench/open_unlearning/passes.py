"""One evidence pass over model folders under open-unlearning's conventions, its batches shared out to worker processes.

Which rows share a batch is settled before any worker starts, so values do not depend on how many there are. The file knows folders and
batches; nothing of data sets or metrics.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from unlearnbench.api import Need, UserError
from unlearnbench.checkpoints import load_checkpoint, load_tokenizer
from unlearnbench.evidence import Evidence
from unlearnbench.executors import Node, Outcome, execute
from unlearnbench.open_unlearning.prompts import Prompts
from unlearnbench.progress import progress
from unlearnbench.scenarios.text_evidence import Conventions, Rows, TextPass, forward_of
from unlearnbench.scenarios.text_forward import Forward
from unlearnbench.scenarios.text_jobs import Job
from unlearnbench.scenarios.text_jobs import Outcome as Numbers

NEW_TOKENS = 200
SCORED_TOKENS, GENERATED_TOKENS = 4096, 32768
"""Bounds of a batch, padding included: of scored answers, and of generations with what they may add."""
_GRADIENTS, _SCORINGS = 64, 8
"""Batches of a kind that travel to a worker together."""


@dataclass(frozen=True)
class Model:
    """A model folder or hub name, and where and how its model runs."""

    folder: str
    device: str = "cpu"
    dtype: str = "float32"


@dataclass(frozen=True)
class _Share:
    """Some batches of a pass."""

    model: Model
    prompts: tuple[str, ...]
    conventions: Conventions
    jobs: tuple[Job, ...]


def run_passes(
    passes: Sequence[tuple[Model, frozenset[Need]]], prompts: Prompts, splits: Mapping[str, Rows], *, workers: int
) -> list[Evidence]:
    """The evidence of each model, all over the same rows.

    Args:
        passes: models and what is wanted of each.
        prompts: texts made ready, of the first model's tokenizer.
        splits: rows whose prompts and answers `prompts` has.
        workers: processes; 1 runs everything in this one.

    Raises:
        UserError: a folder holds no model.
        RuntimeError: a batch failed.
    """
    made = [_pass(model, prompts, splits, needs) for model, needs in passes]
    nodes: list[Node] = []
    numbers, failures, ended = [Numbers({}, {}, {}) for _ in passes], list[str](), list[Node]()
    for place, ((model, _), (text_pass, conventions)) in enumerate(zip(passes, made, strict=True)):
        sent = replace(conventions, encode_pair=None, decode=None)
        for jobs in _shares(list(text_pass.jobs(SCORED_TOKENS, GENERATED_TOKENS))):
            share = _Share(model, tuple(text_pass.prompts), sent, jobs)
            nodes.append(Node(key=f"{place}/{len(nodes)}", title=f"batches of {model.folder}", payload=share))

    def done(node: Node, outcome: Outcome) -> None:
        ended.append(node)
        if outcome.failure is not None:
            failures.append(outcome.failure)
        else:
            numbers[int(node.key.split("/")[0])].add(outcome.value)
        if (tell := progress.get()) is not None:
            tell("evaluate", len(ended), len(nodes))

    execute(nodes, _compute, workers=workers, done=done)
    if failures:
        raise (UserError if failures[0].startswith("UserError: ") else RuntimeError)(failures[0].removeprefix("UserError: "))
    for (text_pass, _), outcome in zip(made, numbers, strict=True):
        text_pass.take(outcome)
    return [text_pass.evidence for text_pass, _ in made]


def _pass(model: Model, prompts: Prompts, splits: Mapping[str, Rows], needs: frozenset[Need]) -> tuple[TextPass, Conventions]:
    conventions = prompts.conventions(_generation_config(model.folder))
    used = {need.split for need in needs}
    text_pass = TextPass(
        prompts.tokenizer,
        {name: rows for name, rows in splits.items() if name in used},
        needs,
        encode_prompt=prompts.encode_prompt,
        encode_answer=prompts.encode_answer,
        max_new_tokens=NEW_TOKENS,
        conventions=conventions,
    )
    return text_pass, conventions


def _generation_config(folder: str) -> Any:
    """The model's own settings of generation; those that follow from its configuration where it has no file of them."""
    from transformers import AutoConfig, GenerationConfig

    try:
        return GenerationConfig.from_pretrained(folder)
    except OSError:
        pass
    try:
        return GenerationConfig.from_model_config(AutoConfig.from_pretrained(folder, trust_remote_code=False))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} is no causal language model that transformers can read: {str(error).strip().splitlines()[0]}") from error


def _shares(jobs: list[Job]) -> Iterator[tuple[Job, ...]]:
    """Batches in loads for workers, the longest first, so that none is left over for the end."""
    generating = [job for job in jobs if job.generation is not None]
    gradients = [job for job in jobs if job.gradient]
    scoring = [job for job in jobs if job.generation is None and not job.gradient][::-1]
    yield from ((job,) for job in generating[::-1])
    for kind, size in ((gradients, _GRADIENTS), (scoring, _SCORINGS)):
        yield from (tuple(kind[start : start + size]) for start in range(0, len(kind), size))


def _compute(share: _Share) -> Numbers:
    forward, numbers = _forward(share.model, share.prompts, share.conventions), Numbers({}, {}, {})
    for job in share.jobs:
        numbers.add(forward.run(job))
    return numbers


@lru_cache(maxsize=2)
def _forward(model: Model, prompts: tuple[str, ...], conventions: Conventions) -> Forward:
    """A model ready to run, kept for the process's next share."""
    tokenizer = load_tokenizer(model.folder)
    loaded = load_checkpoint(model.folder, dtype=model.dtype, device_map=None if model.device == "cpu" else model.device)
    return forward_of(loaded, tokenizer, prompts, replace(conventions, decode=Prompts(tokenizer, chat=False).decode))
