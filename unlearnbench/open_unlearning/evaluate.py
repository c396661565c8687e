"""`evaluate --profile open-unlearning`: a checkpoint's evaluation as open-unlearning makes it, in the files that it writes.

All input is read and checked before anything is computed, and the files are written when all is computed: bad input leaves nothing.
"""

from __future__ import annotations

import filecmp
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unlearnbench.api import Need, UserError
from unlearnbench.checkpoints import load_tokenizer
from unlearnbench.open_unlearning.passes import Model, run_passes
from unlearnbench.open_unlearning.prompts import Prompts
from unlearnbench.open_unlearning.suite import ATTACKS, MEMBERS, Anchor, Suite, anchor_of, members, read_log


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is evaluated.

    Attributes:
        suite: the benchmark.
        model: the checkpoint.
        oracle: folder of the retain model, whose numbers are computed.
        oracle_log: the retain model's log, whose numbers are read.
        reference: folder of the model that `mia_reference` compares with; None leaves it out.
        attacks: membership attacks, out of `ATTACKS`; None for all that can be.
        workers: processes.
    """

    suite: Suite
    model: Model
    oracle: str | None = None
    oracle_log: Path | None = None
    reference: str | None = None
    attacks: tuple[str, ...] | None = None
    workers: int = 1


def evaluate(request: Request) -> dict[str, Any]:
    """All metrics by name, in the nesting of open-unlearning's log.

    Raises:
        UserError: a folder, a data set, a log or a choice is not what it must be.
    """
    attacks = _attacks(request)
    suite, model = request.suite, request.model
    if request.oracle is not None and request.oracle_log is not None:
        raise UserError("--oracle and --oracle-log both name the retain model; give one of them")
    prompts = Prompts(tokenizer := load_tokenizer(model.folder), chat=suite.chat(tokenizer))
    rows = suite.rows(prompts)
    anchor = Anchor()
    if request.oracle_log is not None:
        log = read_log(request.oracle_log)
        anchor = anchor_of(suite, log, rows)
        suite.check_log(log, prompts, rows)
    passes = [(model, suite.needs(attacks))]
    itself = request.reference is not None and _same_weights(request.reference, model.folder)
    if "reference" in attacks and request.reference is not None and not itself:
        passes.append((_beside(request.reference, model, prompts), frozenset(Need(what="tokens", split=split) for split in MEMBERS)))
    if request.oracle is not None:
        passes.append((_beside(request.oracle, model, prompts), suite.anchor_needs()))
    evidence = run_passes(passes, prompts, rows | members(rows), workers=request.workers)
    if request.oracle is not None:
        anchor = anchor_of(suite, suite.anchor(evidence.pop(), prompts, rows), rows)
    # Of a model against itself every score is 0, and not what another batch of the same rows rounds to.
    reference = evidence[1] if len(evidence) > 1 else evidence[0] if itself and "reference" in attacks else None
    return dict(sorted(suite.groups(evidence[0], reference, prompts, rows, anchor, attacks).items()))


def summary(suite: Suite, groups: dict[str, Any]) -> dict[str, float]:
    """The aggregates that the summary holds."""
    return {
        name: group["agg_value"]
        for name, group in groups.items()
        if (name in suite.summarised or name.startswith("mia_")) and group["agg_value"] is not None
    }


def write(suite: Suite, groups: dict[str, Any], out: Path) -> tuple[Path, Path]:
    """Write `<name>_EVAL.json` and `<name>_SUMMARY.json` and return where they are."""
    out.mkdir(parents=True, exist_ok=True)
    written = out / f"{suite.name}_EVAL.json", out / f"{suite.name}_SUMMARY.json"
    for path, content in zip(written, (groups, summary(suite, groups)), strict=True):
        path.write_text(json.dumps(content, indent=4), encoding="utf-8")
    return written


def _attacks(request: Request) -> tuple[str, ...]:
    named = request.attacks
    if named is None:
        return tuple(name for name in ATTACKS if name != "reference" or request.reference is not None)
    if unknown := [name for name in named if name not in ATTACKS]:
        raise UserError(f"--attacks {unknown[0]!r} is not one of open-unlearning's; allowed: {', '.join(ATTACKS)}")
    if "reference" in named and request.reference is None:
        raise UserError("--attacks reference compares with another model: give its folder as --reference-model")
    return tuple(named)


def _same_weights(folder: str, other: str) -> bool:
    """Whether two names are of one model: the same name, or folders with the same configuration and weights."""
    if folder == other:
        return True
    mine, theirs = (
        {path.name: path for path in Path(name).glob("*") if path.suffix in (".json", ".safetensors")} for name in (folder, other)
    )
    weights = [name for name in mine if name.endswith(".safetensors") or name == "config.json"]
    return len(weights) > 1 and all(name in theirs and filecmp.cmp(mine[name], theirs[name], shallow=False) for name in weights)


def _beside(folder: str, model: Model, prompts: Prompts) -> Model:
    """Another model that is given the first one's token ids."""
    mine, theirs = prompts.tokenizer.get_vocab(), load_tokenizer(folder).get_vocab()
    if mine != theirs:
        raise UserError(f"{folder} has another vocabulary than {model.folder}: they cannot be compared token by token")
    return Model(folder, model.device, model.dtype)
