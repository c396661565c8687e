"""Progress of long computations, told to whoever listens: silent unless a listener is set.

Knows nothing of terminals and imports no torch; the command line sets `progress` to something that draws bars.
"""

import time
from collections.abc import Callable
from contextvars import ContextVar

#: The listener, called as ``listener(label, done, total)``; `None` is silence.
progress: ContextVar[Callable[[str, int, int], None] | None] = ContextVar("progress", default=None)

#: Where trainings add the rows they passed forward, for whoever counts what a computation cost; `None` counts nothing.
passes: ContextVar[list[int] | None] = ContextVar("passes", default=None)


def count_passes(rows: int) -> None:
    """Say that a training passed this many rows forward."""
    counted = passes.get()
    if counted is not None:
        counted.append(rows)


#: Seconds between two calls of the listener for one meter (its first and last call excepted).
INTERVAL = 0.1


class Meter:
    """Counts one computation's steps and passes them to the listener, at most ten times a second.

    Args:
        label: What is being done, as shown to a person.
        total: Steps in all; the listener is always called for the first and for this last one.
    """

    def __init__(self, label: str, total: int) -> None:
        self.label, self.total = label, total
        self._listener = progress.get()
        self._next = 0.0

    def update(self, done: int) -> None:
        """Say that `done` of the `total` steps are behind us."""
        if self._listener is None:
            return
        now = time.monotonic()
        if now >= self._next or done >= self.total:
            self._next = now + INTERVAL
            self._listener(self.label, done, self.total)
