"""Commands on model folders that users have: `unlearnbench unlearn` and `unlearnbench evaluate`.

Knows arguments and what to print; what a command does is imported by it, so that `--help` stays quick.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from unlearnbench.cli_options import (
    STORE,
    Device,
    DeviceOption,
    Dtype,
    StoreOption,
    Verbose,
    Workers,
    cores,
    device_of,
    folder_of,
)
from unlearnbench.views import UserError

PRECISIONS = {Dtype.fp32: "float32", Dtype.bf16: "bfloat16"}


class Benchmark(StrEnum):
    """What a checkpoint is evaluated on."""

    tofu = "tofu"
    muse = "muse"


class Profile(StrEnum):
    """Whose conventions."""

    open_unlearning = "open-unlearning"


def unlearn(
    method: Annotated[str, typer.Option(metavar="NAME_OR_PATH", help="A method's name, or path/to/file.py:Class.")],
    model: Annotated[str, typer.Option(metavar="DIR", help="The model that knows: a folder that from_pretrained opens, or a hub name.")],
    forget: Annotated[str, typer.Option(metavar="FILE", help="Rows to forget, {question, answer} or {text}: JSON lines or a JSON list.")],
    retain: Annotated[str, typer.Option(metavar="FILE", help="Rows to retain, of the same form.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="The model's folder, new or empty.")],
    sets: Annotated[list[str], typer.Option("--set", metavar="FIELD=VALUE", help="A hyper-parameter, such as lr=1e-5.")] = [],  # noqa: B006
    chat: Annotated[bool, typer.Option("--chat", help="Put questions in the tokenizer's chat template.")] = False,
    system: Annotated[str, typer.Option(metavar="TEXT", help="With --chat: the system message.")] = "",
    seed: Annotated[int, typer.Option(min=0, help="Seeds the method.")] = 0,
    device: DeviceOption = Device.auto,
    dtype: Annotated[Dtype, typer.Option(help="Precision of training.")] = Dtype.fp32,
    verbose: Verbose = False,
) -> None:
    """Unlearn a model of your own and save it as a folder.

    What comes out is opened by from_pretrained, or by unlearnbench's own load_checkpoint where the method inserted modules; `evaluate`
    takes both. `unlearnbench list methods` names the methods and `describe NAME` their hyper-parameters.

    [bold]For example:[/bold] unlearnbench unlearn --method npo --model DIR --forget forget.jsonl --retain retain.jsonl --set lr=2e-5
    --out unlearned
    """
    from rich.console import Console

    folder, place = folder_of(out), device_of(device)
    if system and not chat:
        raise UserError("--system is a part of a chat template: give --chat too")
    from unlearnbench import terminal, unlearning
    from unlearnbench.training import DivergedError

    console = Console(stderr=True)
    with terminal.logging_to(console, verbose), terminal.Reporter(console, f"unlearn with {method}"):
        try:
            text = unlearning.unlearn_folder(
                method=method,
                model=model,
                forget=forget,
                retain=retain,
                fields=unlearning.fields_of(sets),
                template={"style": "chat", "system": system} if chat else {"style": "plain"},
                out=folder,
                seed=seed,
                device=place,
                dtype=dtype.value,
            )
        except DivergedError as error:
            typer.echo(f"error: {error}; nothing was written", err=True)
            raise typer.Exit(1) from error
    typer.echo(text)


def evaluate(
    model: Annotated[str, typer.Option(metavar="DIR", help="The checkpoint: a folder that from_pretrained opens, or a hub name.")],
    scenario: Annotated[Benchmark, typer.Option(help="What it was to forget.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the results go.")],
    forget: Annotated[str, typer.Option(metavar="NAME", help="TOFU's forget set: forget01, forget05 or forget10.")] = "forget10",
    corpus: Annotated[str, typer.Option(metavar="NAME", help="MUSE's corpus: news or books.")] = "news",
    oracle: Annotated[
        str | None, typer.Option(metavar="DIR", help="The model retrained without the forget set, which is evaluated too.")
    ] = None,
    oracle_log: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Its results instead, such as its TOFU_EVAL.json (with --profile).")
    ] = None,
    reference_model: Annotated[str | None, typer.Option(metavar="DIR", help="The model of the reference attack.")] = None,
    data_dir: Annotated[str | None, typer.Option(metavar="DIR", help="The data set's folder instead of the hub.")] = None,
    limit: Annotated[int | None, typer.Option(metavar="N", min=1, help="Only the first N rows of every split.")] = None,
    attacks: Annotated[str | None, typer.Option(metavar="LIST", help="Attacks by name, separated by commas.")] = None,
    profile: Annotated[Profile | None, typer.Option(help="Another program's conventions, metrics and files instead of ours.")] = None,
    workers: Workers = None,
    device: DeviceOption = Device.auto,
    dtype: Annotated[Dtype, typer.Option(help="Precision of the model.")] = Dtype.fp32,
    store: StoreOption = STORE,
    verbose: Verbose = False,
) -> None:
    """Evaluate a checkpoint of your own; nothing is trained but what an attack trains.

    Writes a record and shows its table. With open-unlearning's profile it writes that program's files: TOFU_EVAL.json and
    TOFU_SUMMARY.json, or MUSE_EVAL.json and MUSE_SUMMARY.json.

    [bold]TOFU:[/bold] unlearnbench evaluate --model DIR --scenario tofu --forget forget10 --oracle RETAIN --out results

    [bold]As open-unlearning:[/bold] unlearnbench evaluate --model DIR --scenario muse --profile open-unlearning --out results
    """
    from rich.console import Console

    folder, place = folder_of(out), device_of(device)
    named = None if attacks is None else tuple(name.strip() for name in attacks.split(",") if name.strip())
    from unlearnbench import terminal

    console = Console(stderr=True)
    with terminal.logging_to(console, verbose), terminal.Reporter(console, f"evaluate {scenario.value}"):
        if profile is not None:
            text = _as_open_unlearning(
                _suite(scenario, forget, corpus, data_dir, limit),
                folder,
                model=(model, place, PRECISIONS[dtype]),
                oracle=oracle,
                oracle_log=oracle_log,
                reference=reference_model,
                attacks=named,
                workers=(workers or cores()) if place == "cpu" else 1,
            )
        else:
            if oracle_log is not None:
                raise UserError("--oracle-log is read with --profile open-unlearning; our own metrics take the model itself, by --oracle")
            text = _by_our_metrics(
                folder,
                {
                    "scenario": scenario.value,
                    "request": forget if scenario is Benchmark.tofu else "forget",
                    "fields": {"data_dir": data_dir, "limit": limit, **({"corpus": corpus} if scenario is Benchmark.muse else {})},
                    "model": model,
                    "oracle": oracle,
                    "reference": reference_model,
                    "attacks": named,
                },
                store=store,
                device=place,
                dtype=dtype.value,
            )
    typer.echo(text)


def _suite(scenario: Benchmark, forget: str, corpus: str, data_dir: str | None, limit: int | None) -> Any:
    from unlearnbench.open_unlearning.muse import MuseSuite
    from unlearnbench.open_unlearning.tofu import TofuSuite

    return TofuSuite(forget, data_dir, limit) if scenario is Benchmark.tofu else MuseSuite(corpus, data_dir, limit)


def _as_open_unlearning(suite: Any, out: Path, *, model: tuple[str, str, str], **options: Any) -> str:
    """The aggregates, one a line, and where the files are."""
    from unlearnbench.open_unlearning.evaluate import Request, summary, write
    from unlearnbench.open_unlearning.evaluate import evaluate as evaluated
    from unlearnbench.open_unlearning.passes import Model

    groups = evaluated(Request(suite=suite, model=Model(*model), **options))
    written = write(suite, groups, out)
    lines = [f"{name:<24} {value:.6g}" for name, value in summary(suite, groups).items()]
    return "\n".join([*lines, f"written: {', '.join(map(str, written))}"])


def _by_our_metrics(out: Path, checkpoint: dict[str, Any], **options: Any) -> str:
    """The table."""
    from unlearnbench import report
    from unlearnbench.evaluating import Checkpoint
    from unlearnbench.evaluating import evaluate as evaluated

    records = evaluated(Checkpoint(**checkpoint), out=out, **options)
    return f"{report.leaderboard(out)}\nwritten: {', '.join(str(out / record.filename) for record in records)}"
