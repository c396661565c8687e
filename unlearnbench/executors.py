"""Where work runs: this process, or local worker processes. Knows a graph of nodes and nothing of what they compute.

Every node runs with one torch thread, here and in workers, so that results do not depend on the number of workers.
"""

from __future__ import annotations

import logging
import multiprocessing
import multiprocessing.connection
import os
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

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
    with _pool(workers) as submit:
        _drain(nodes, lambda node: submit(work, node.payload), done, at_once=max(1, workers))


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


def _drain(nodes: Sequence[Node], start: Callable[[Node], Future[Any]], done: Done, at_once: int) -> None:
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
                running[start(node)] = node
        if running:
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                node = running.pop(future)
                end(node, _outcome(future))


def _outcome(future: Future[Any]) -> Outcome:
    try:
        return Outcome(value=future.result())
    except BrokenProcessPool:
        return Outcome(failure="the worker process died (killed, or out of memory)")
    except Exception as error:  # one node's failure is recorded, the others go on
        logging.getLogger(__name__).debug("a node failed", exc_info=True)
        return Outcome(failure=f"{type(error).__name__}: {(str(error).splitlines() or ['no message'])[0]}")


Submit = Callable[[Callable[[Any], Any], Any], "Future[Any]"]


@contextmanager
def _pool(workers: int) -> Iterator[Submit]:
    if workers <= 1:
        with _one_thread():
            yield _run_here
        return
    context = multiprocessing.get_context("spawn")
    events = context.Queue()
    listener = progress.get()
    stop = threading.Event()
    thread = threading.Thread(target=_forward, args=(events, listener, stop), daemon=True)
    thread.start()
    level = logging.getLogger("unlearnbench").getEffectiveLevel()
    pools: list[ProcessPoolExecutor] = []

    def fresh() -> ProcessPoolExecutor:
        pools.append(ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(events, level)))
        return pools[-1]

    def submit(work: Callable[[Any], Any], payload: Any) -> Future[Any]:
        try:
            return (pools[-1] if pools else fresh()).submit(work, payload)
        except BrokenProcessPool:  # a worker died; what is left runs in new ones
            return fresh().submit(work, payload)

    try:
        yield submit
    finally:
        for pool in pools:
            pool.shutdown(wait=True, cancel_futures=True)
        stop.set()
        thread.join()
        events.close()


def _run_here(work: Callable[[Any], Any], payload: Any) -> Future[Any]:
    future: Future[Any] = Future()
    try:
        future.set_result(work(payload))
    except Exception as error:  # handed on, as a worker would
        future.set_exception(error)
    return future


@contextmanager
def _one_thread() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _begin(events: Any, level: int) -> None:
    """Set up a worker: one torch thread, its log level, and progress sent home."""
    import torch

    torch.set_num_threads(1)
    logging.basicConfig(level=logging.WARNING)
    logging.getLogger("unlearnbench").setLevel(level)

    def tell(label: str, done: int, total: int) -> None:
        events.put((label, done, total))

    progress.set(tell)
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)  # nobody waits for the result any more; the store's locks are released by the kernel


def _forward(events: Any, listener: Callable[[str, int, int], None] | None, stop: threading.Event) -> None:
    while not stop.is_set():
        try:
            label, done, total = events.get(timeout=0.1)
        except (queue.Empty, OSError, EOFError):
            continue
        if listener is not None:
            listener(label, done, total)
