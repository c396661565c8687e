"""The command line: `unlearnbench list | describe | run | tune | unlearn | evaluate | leaderboard | check | new`.

Knows arguments, exit codes and what to print; everything else is imported by the command that needs it, so that `--help` stays quick.
Exit codes: 0 done, 1 something failed while running, 2 bad input (one line on stderr says what is wrong), 130 interrupted.
"""

from __future__ import annotations

import json
import logging
from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from unlearnbench import __version__
from unlearnbench.cli_models import evaluate, unlearn
from unlearnbench.cli_options import (
    STORE,
    Device,
    DeviceOption,
    Dtype,
    DtypeOption,
    StoreOption,
    Verbose,
    Workers,
    cores,
    device_of,
    folder_of,
)
from unlearnbench.views import UserError

if TYPE_CHECKING:
    from unlearnbench.config import Suite
    from unlearnbench.runner import RunSummary


class Groups(TyperGroup):
    """Turns errors into one line and an exit code, for every command."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command; see the module for the exit codes."""
        try:
            return super().invoke(ctx)
        except UserError as error:
            code, message = 2, str(error)
        except BrokenPipeError:
            raise
        except OSError as error:
            code, message = 1, f"{error.strerror or error}: {error.filename}" if error.filename else str(error)
        except KeyboardInterrupt:
            code, message = 130, "interrupted; the same command goes on where this one stopped"
        logging.getLogger(__name__).debug("the error in full", exc_info=True)
        typer.echo(f"error: {' '.join(message.split())}", err=True)
        raise SystemExit(code)


app = typer.Typer(
    cls=Groups,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
new_app = typer.Typer(no_args_is_help=True, help="Write the files of a new plugin.")
app.add_typer(new_app, name="new")
app.command()(unlearn)
app.command()(evaluate)


class Kind(StrEnum):
    """The groups of plugins, as `list` names them."""

    methods = "methods"
    attacks = "attacks"
    metrics = "metrics"
    scenarios = "scenarios"


class Format(StrEnum):
    """How a leaderboard is written."""

    table = "table"
    markdown = "markdown"
    csv = "csv"
    latex = "latex"
    json = "json"


ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="The suite, a YAML file such as configs/quickstart.yaml.")]
Sets = Annotated[list[str], typer.Option("--set", metavar="FIELD=VALUE", help="Replace a value, such as tracks.0.scenario.n_authors=40.")]
Seeds = Annotated[str | None, typer.Option(metavar="0,1,...", help="Training seeds instead of the suite's.")]
Methods = Annotated[
    list[str], typer.Option("--method", metavar="NAME_OR_PATH", help="Add a method to every track that it supports; may be repeated.")
]


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"unlearnbench {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")] = False,
) -> None:
    """After an unlearning method has run: is the data really gone from the model, or only hidden?

    [bold]Train, unlearn, attack, measure, and show the table:[/bold] unlearnbench run configs/quickstart.yaml

    [bold]With your method:[/bold] unlearnbench run configs/quickstart.yaml --method mine.py:Mine

    [bold]What it would take:[/bold] unlearnbench run configs/quickstart.yaml --dry-run

    [bold]A model of your own:[/bold] unlearnbench unlearn --help, unlearnbench evaluate --help

    [bold]The table again:[/bold] unlearnbench leaderboard runs/quickstart --format markdown

    [bold]What there is:[/bold] unlearnbench list methods, unlearnbench describe npo

    [bold]A method of your own:[/bold] unlearnbench new method mine, unlearnbench check mine.py:Mine
    """


@app.command("list")
def list_plugins(
    kind: Annotated[Kind | None, typer.Argument(help="Only these.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """List all plugins, the broken ones with their error."""
    from rich.console import Console

    from unlearnbench import catalogue, registry

    groups = [group for group in registry.BASES if kind in (None, group)]
    if as_json:
        typer.echo(json.dumps(catalogue.listing(groups), indent=2))
    else:
        catalogue.print_listing(Console(), groups)


@app.command()
def describe(name: Annotated[str, typer.Argument(metavar="NAME", help="A plugin's name, or path/to/file.py:Class.")]) -> None:
    """Describe one plugin: what it does, its paper, its fields with types, defaults and bounds."""
    from rich.console import Console

    from unlearnbench import catalogue, registry

    for group in registry.groups_of(name):
        catalogue.print_description(Console(), group, name)


@app.command()
def run(
    config: ConfigFile,
    sets: Sets = [],  # noqa: B006 (typer reads it and never changes it)
    seeds: Seeds = None,
    method: Methods = [],  # noqa: B006
    workers: Workers = None,
    device: DeviceOption = Device.auto,
    dtype: DtypeOption = Dtype.fp32,
    store: StoreOption = STORE,
    out: Annotated[Path | None, typer.Option(metavar="DIR", show_default="runs/<suite>", help="Where records and tables go.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would be computed, what is cached, time and memory.")] = False,
    verbose: Verbose = False,
) -> None:
    """Run a suite and show its leaderboard.

    What the store has is not computed again; a run that was stopped goes on where it was. Exits with 1 if a trial failed.

    [bold]Three seeds, four processes:[/bold] unlearnbench run configs/quickstart.yaml --seeds 0,1,2 --workers 4

    [bold]Other values:[/bold] unlearnbench run configs/quickstart.yaml --set oracles=6 --set tracks.0.scenario.n_authors=40
    """
    from rich.console import Console

    suite = _suite(config, sets, seeds, method)
    folder = folder_of(out or Path("runs") / suite.suite)
    place = device_of(device)
    from unlearnbench import terminal

    console = Console(stderr=True)
    with terminal.logging_to(console, verbose):
        if dry_run:
            from unlearnbench import forecast

            forecast.print_plan(Console(), forecast.plan(suite, store=store, device=place, dtype=dtype.value), workers or cores())
            return
        from unlearnbench import report, runner

        with terminal.Reporter(console, suite.suite) as reporter:
            summary = runner.run_suite(
                suite,
                store=store,
                out=folder,
                workers=workers or cores(),
                device=place,
                dtype=dtype.value,
                on_record=reporter.record,
            )
        written = report.write_all(folder)
        typer.echo(report.leaderboard(folder, scenario=None, sort=None, fmt="table"))
        typer.echo(f"picture: {', '.join(str(path) for path in written if path.suffix in ('.png', '.svg'))}")
        _close(summary)


@app.command()
def tune(
    config: ConfigFile,
    sets: Sets = [],  # noqa: B006
    seeds: Seeds = None,
    method: Methods = [],  # noqa: B006
    workers: Workers = None,
    device: DeviceOption = Device.auto,
    dtype: DtypeOption = Dtype.fp32,
    store: StoreOption = STORE,
    out: Annotated[Path | None, typer.Option(metavar="DIR", show_default="runs/<suite>-tune", help="Where the records go.")] = None,
    verbose: Verbose = False,
) -> None:
    """Choose hyper-parameters on the validation request.

    Every method with a grid gets the suite's `budget` of configurations, all of them recorded; the leaderboard's request is never read.
    """
    from rich.console import Console

    suite = _suite(config, sets, seeds, method)
    folder = folder_of(out or Path("runs") / f"{suite.suite}-tune")
    place = device_of(device)
    from unlearnbench import terminal, tuning

    console = Console(stderr=True)
    with terminal.logging_to(console, verbose), terminal.Reporter(console, f"tune {suite.suite}") as reporter:
        summary = tuning.tune_suite(
            suite, store=store, out=folder, workers=workers or cores(), device=place, dtype=dtype.value, on_record=reporter.record
        )
    _close(summary)


@app.command()
def leaderboard(
    results: Annotated[Path, typer.Argument(metavar="RESULTS", help="A folder of records, such as runs/quickstart.")],
    scenario: Annotated[str | None, typer.Option(help="Only this scenario.")] = None,
    sort: Annotated[str | None, typer.Option(metavar="METRIC", help="Sort by this column.")] = None,
    form: Annotated[Format, typer.Option("--format", help="How to write it.")] = Format.table,
) -> None:
    """Show the leaderboard of a folder of records; reads files only."""
    if not results.is_dir():
        raise UserError(f"{results} is no folder; records are in a folder such as runs/quickstart")
    from unlearnbench import report

    typer.echo(report.leaderboard(results, scenario=scenario, sort=sort, fmt=form.value))


@app.command()
def check(
    name: Annotated[str, typer.Argument(metavar="NAME_OR_PATH", help="A plugin's name, or path/to/file.py:Class.")],
    verbose: Verbose = False,
) -> None:
    """Run the contract tests of a plugin; exits with 1 if one fails."""
    from rich.console import Console

    from unlearnbench import registry, terminal

    groups = registry.groups_of(name)
    for group in groups:
        registry.load(group, name)
    with ExitStack() as stack:
        stack.enter_context(terminal.logging_to(Console(stderr=True), verbose))
        from unlearnbench import testing

        results = [result for group in groups for result in testing.check_plugin(group, name)]
    for result in results:
        reason = f": {result.reason}" if result.reason else ""
        typer.echo(f"{'pass' if result.passed else 'FAIL'}  {result.name}{reason}")
    if not all(result.passed for result in results):
        raise typer.Exit(1)


@new_app.command("method")
def new_method(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Small letters, digits and underscores, such as my_method.")],
    folder: Annotated[Path, typer.Option("--dir", metavar="DIR", help="Where to write.")] = Path(),
) -> None:
    """Write a working method, its test, and say how to run and register it."""
    from unlearnbench.scaffold import new_method as write

    written = write(name, folder)
    typer.echo(f"wrote {written.plugin} and {written.test}")
    typer.echo(f"check it:     unlearnbench check {written.plugin}:{written.cls}")
    typer.echo(f"run it:       unlearnbench run configs/quickstart.yaml --method {written.plugin}:{written.cls}")
    typer.echo('register it:  add this line under [project.entry-points."unlearnbench.methods"] and install the package again')
    typer.echo(f"              {written.line}")


def _suite(config: Path, sets: list[str], seeds: str | None, methods: list[str]) -> Suite:
    """The suite of a file with the command line's changes."""
    from unlearnbench.config import add_methods, load_suite, override

    suite = override(load_suite(config), sets)
    if seeds is not None:
        numbers = [part.strip() for part in seeds.split(",")]
        if not all(part.isdecimal() for part in numbers):
            raise UserError(f"--seeds {seeds!r}: write whole numbers from 0 on, separated by commas, such as 0,1")
        suite = override(suite, [f"seeds=[{', '.join(str(int(part)) for part in numbers)}]"])
    return add_methods(suite, methods)


def _close(summary: RunSummary) -> None:
    """Say how a run ended."""
    typer.echo(f"{summary.done} done, {summary.skipped} skipped, {summary.failed} failed; records and tables: {summary.folder}", err=True)
    if summary.failed:
        raise typer.Exit(1)


def main() -> None:
    """The entry point of the command `unlearnbench`."""
    app(prog_name="unlearnbench")
