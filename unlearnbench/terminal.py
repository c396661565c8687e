"""What a run says while it works: bars with the time left on a terminal, one plain line per trial elsewhere.

Knows terminals and nothing of what runs; imports neither torch nor the runner.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from unlearnbench.progress import progress

if TYPE_CHECKING:
    from unlearnbench.records import Record

LOGGER = "unlearnbench"


class Reporter:
    """Listens to a run; use as a context.

    On a terminal: one bar for the trials and one for each computation under way. Elsewhere one line per trial. All of it goes to
    stderr, so that stdout holds results alone.

    Args:
        console: writes to stderr.
        title: what the overall bar is called.
    """

    def __init__(self, console: Console, title: str) -> None:
        self._console = console
        self._title = title
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        self._bars = Progress(*columns, console=console, transient=True) if console.is_terminal else None
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Reporter:
        if self._bars is not None:
            self._tasks[""] = self._bars.add_task(self._title, total=None)
            self._bars.start()
        self._token = progress.set(self.step if self._bars is not None else None)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        progress.reset(self._token)
        if self._bars is not None:
            self._bars.stop()

    def step(self, label: str, done: int, total: int) -> None:
        """A computation has come this far; called from any thread."""
        if self._bars is None:
            return
        if label not in self._tasks:
            self._tasks[label] = self._bars.add_task(label, total=total)
        self._bars.update(self._tasks[label], completed=done, total=total)
        if done >= total:
            self._bars.remove_task(self._tasks.pop(label))

    def record(self, record: Record, done: int, total: int) -> None:
        """A trial has ended, `done` of `total` so far."""
        trial = record.trial
        seed = "" if record.status == "skipped" else f", seed {trial.seed}"
        reason = f": {record.reason}" if record.reason else ""
        line = f"{trial.label} on {trial.scenario}/{trial.request}{seed}: {record.status}{reason}"
        if self._bars is None:
            self._console.print(f"[{done}/{total}] {line}", markup=False, highlight=False, soft_wrap=True)
            return
        self._bars.update(self._tasks[""], completed=done, total=total)
        if record.status == "failed":
            self._bars.console.print(line, markup=False, highlight=False, soft_wrap=True, style="red")


@contextmanager
def logging_to(console: Console, verbose: bool) -> Iterator[None]:
    """Show the package's warnings, and with `verbose` all its messages, on `console`."""
    logger = logging.getLogger(LOGGER)
    handler = RichHandler(console=console, show_path=False, show_time=verbose, markup=False, highlighter=None)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG if verbose else logging.WARNING)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
