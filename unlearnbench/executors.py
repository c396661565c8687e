"""Where work runs: this process, or local worker processes. Knows a graph of nodes and nothing of what they compute.

Every node runs with one torch thread, here and in workers, so that results do not depend on the number of workers.
"""

from __future__ import annotations

import logging
import multiprocessing
import multiprocessing.connection
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Protocol

from unlearnbench.progress import progress


@dataclass(frozen=True, kw_only=True)
class Node:
    """One piece of work."""

    key: str
    title: str
    payload: Any
    """Picklable; handed to the work function."""
    after: frozenset[str] = frozenset()
    """Keys of the nodes that must have succeeded before."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a node: its value, or the reason of its failure."""

    value: Any = None
    failure: str | None = None


Done = Callable[[Node, Outcome], None]


def execute(nodes: Sequence[Node], work: Callable[[Any], Any], *, workers: int, done: Done) -> None:
    """Run all nodes, dependencies first, in the order given where they allow it.

    A node that raises fails with a one-line reason; nodes after it fail with that reason without being run; the others go on.

    Args:
        nodes: the graph; every key in `after` is one of them.
        work: a module-level function of a payload.
        workers: 1 runs everything in this process.
        done: called in this process once for every node, as soon as it ended.

    Raises:
        ValueError: a dependency is unknown, or the graph has a cycle.
    """
    _check(nodes)
    with _one_thread() if workers <= 1 else _processes() as place:
        _drain(nodes, work, place, done, at_once=max(1, workers))


def _check(nodes: Sequence[Node]) -> None:
    placed: set[str] = set()
    known = {node.key for node in nodes}
    waiting = list(nodes)
    for node in nodes:
        if node.after - known:
            raise ValueError(f"{node.title} waits for unknown nodes {sorted(node.after - known)}")
    while waiting:
        ready = [node for node in waiting if node.after <= placed]
        if not ready:
            raise ValueError(f"these nodes wait for each other: {', '.join(node.title for node in waiting)}")
        placed.update(node.key for node in ready)
        waiting = [node for node in waiting if node.key not in placed]


def _drain(nodes: Sequence[Node], work: Callable[[Any], Any], place: _Place, done: Done, at_once: int) -> None:
    outcomes: dict[str, Outcome] = {}
    waiting = list(nodes)
    running: dict[Future[Any], Node] = {}

    def end(node: Node, outcome: Outcome) -> None:
        outcomes[node.key] = outcome
        done(node, outcome)

    while waiting or running:
        for node in list(waiting):
            finished = node.after & outcomes.keys()
            broken = [key for key in sorted(finished) if outcomes[key].failure is not None]
            if broken:
                waiting.remove(node)
                end(node, Outcome(failure=outcomes[broken[0]].failure))
            elif finished == node.after and len(running) < at_once:
                waiting.remove(node)
                running[place.start(work, node.payload)] = node
        if running:
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                node = running.pop(future)
                place.ended(future)
                end(node, _outcome(future))


def _outcome(future: Future[Any]) -> Outcome:
    try:
        return Outcome(value=future.result())
    except BrokenProcessPool:
        return Outcome(failure="the worker process died (killed, or out of memory)")
    except Exception as error:  # one node's failure is recorded, the others go on
        logging.getLogger(__name__).debug("a node failed", exc_info=error)
        return Outcome(failure=f"{type(error).__name__}: {(str(error).splitlines() or ['no message'])[0]}")


# ------------------------------------------------------------------------------------------------------------------------- places


class _Place(Protocol):
    """Where nodes run."""

    def start(self, work: Callable[[Any], Any], payload: Any) -> Future[Any]:
        """Begin a piece of work."""

    def ended(self, future: Future[Any]) -> None:
        """Take note that it ended."""


class _Here:
    """This process: a piece of work has ended when it has begun."""

    def start(self, work: Callable[[Any], Any], payload: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(work(payload))
        except Exception as error:  # handed on, as a worker would
            future.set_exception(error)
        return future

    def ended(self, future: Future[Any]) -> None:
        pass


@contextmanager
def _one_thread() -> Iterator[_Place]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield _Here()
    finally:
        torch.set_num_threads(before)


class _Processes:
    """Worker processes, made when they are needed. Each is a pool of its own, so that one that dies takes only its own work along."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._level = logging.getLogger("unlearnbench").getEffectiveLevel()
        self._listener, self._lock = progress.get(), threading.Lock()
        self._idle: list[ProcessPoolExecutor] = []
        self._busy: dict[Future[Any], ProcessPoolExecutor] = {}
        self._threads: list[threading.Thread] = []

    def start(self, work: Callable[[Any], Any], payload: Any) -> Future[Any]:
        while self._idle:
            try:
                return self._submit(self._idle.pop(), work, payload)
            except BrokenProcessPool:  # it died with nothing to do
                continue
        # A pipe for each worker: a lock that all share would stay shut for good if a worker were killed while it holds it.
        reader, writer = self._context.Pipe(duplex=False)
        pool = ProcessPoolExecutor(1, mp_context=self._context, initializer=_begin, initargs=(writer, self._level))
        future = self._submit(pool, work, payload)
        writer.close()  # the worker, started by now, has its own; when that is closed, the reading ends
        self._threads.append(threading.Thread(target=self._listen, args=(reader,), daemon=True))
        self._threads[-1].start()
        return future

    def _submit(self, pool: ProcessPoolExecutor, work: Callable[[Any], Any], payload: Any) -> Future[Any]:
        future = pool.submit(work, payload)
        self._busy[future] = pool
        return future

    def ended(self, future: Future[Any]) -> None:
        pool = self._busy.pop(future)
        if isinstance(future.exception(), BrokenProcessPool):
            pool.shutdown(wait=False)
        else:
            self._idle.append(pool)

    def close(self) -> None:
        for pool in (*self._idle, *self._busy.values()):
            pool.shutdown(wait=True, cancel_futures=True)
        for thread in self._threads:
            thread.join(timeout=1)

    def _listen(self, reader: Connection) -> None:
        with suppress(EOFError, OSError), reader:
            while True:
                label, done, total = reader.recv()
                if self._listener is not None:
                    with self._lock:
                        self._listener(label, done, total)


@contextmanager
def _processes() -> Iterator[_Place]:
    place = _Processes()
    try:
        yield place
    finally:
        place.close()


def _begin(home: Connection, level: int) -> None:
    """Set up a worker: one torch thread, its log level, and progress sent home."""
    import torch

    torch.set_num_threads(1)
    logging.basicConfig(level=logging.WARNING)
    logging.getLogger("unlearnbench").setLevel(level)

    def tell(label: str, done: int, total: int) -> None:
        home.send((label, done, total))

    progress.set(tell)
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)  # nobody waits for the result any more; the store's locks are released by the kernel
