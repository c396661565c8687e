"""Where nodes run: order, failures, workers that die, progress and threads, in this process and in others."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from unlearnbench.executors import Node, Outcome, execute
from unlearnbench.progress import progress

WORK = """
import os, signal, time
import torch
from unlearnbench.progress import Meter

def work(payload):
    what, argument = payload
    if what == "double":
        return 2 * argument
    if what == "raise":
        raise ValueError(argument)
    if what == "exit":
        os._exit(3)
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "sleep":
        time.sleep(argument)
        return "slept"
    if what == "threads":
        return torch.get_num_threads()
    if what == "pid":
        return os.getpid()
    if what == "progress":
        Meter(argument, 3).update(3)
        return argument
    if what == "tell":
        open(argument, "w").write(str(os.getpid()))
        time.sleep(60)
"""


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The work function, from a module that workers can import."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "ubtest_work.py").write_text(WORK)
    sys.path.insert(0, str(folder))  # spawned workers are handed sys.path
    import ubtest_work  # type: ignore[import-not-found]

    yield ubtest_work.work
    sys.path.remove(str(folder))
    del sys.modules["ubtest_work"]


def node(key: str, what: str = "double", argument: Any = 1, after: tuple[str, ...] = ()) -> Node:
    return Node(key=key, title=f"node {key}", payload=(what, argument), after=frozenset(after))


def run(nodes: list[Node], work: Any, workers: int) -> dict[str, Outcome]:
    """The outcomes in the order in which the nodes ended."""
    outcomes: dict[str, Outcome] = {}

    def done(ended: Node, outcome: Outcome) -> None:
        assert ended.key not in outcomes
        outcomes[ended.key] = outcome

    execute(nodes, work, workers=workers, done=done)
    return outcomes


def test_nodes_run_in_the_order_given_after_what_they_wait_for(work: Any) -> None:
    nodes = [node("last", after=("b", "a")), node("b", argument=2, after=("a",)), node("a", argument=1), node("free", argument=5)]
    outcomes = run(nodes, work, 1)
    assert list(outcomes) == ["a", "free", "b", "last"] or list(outcomes) == ["a", "b", "last", "free"]
    assert {key: outcome.value for key, outcome in outcomes.items()} == {"a": 2, "b": 4, "last": 2, "free": 10}


@pytest.mark.parametrize("workers", [1, 2])
def test_a_failure_is_handed_on_with_its_reason_and_the_others_go_on(work: Any, workers: int) -> None:
    nodes = [
        node("bad", "raise", "first line\nsecond line"),
        node("child", after=("bad", "good")),
        node("grandchild", after=("child",)),
        node("good", argument=4),
        node("silent", "raise", ""),
    ]
    outcomes = run(nodes, work, workers)
    assert set(outcomes) == {"bad", "child", "grandchild", "good", "silent"}
    for key in ("bad", "child", "grandchild"):
        assert outcomes[key].failure == "ValueError: first line"
    assert outcomes["silent"].failure == "ValueError: no message"
    assert outcomes["good"] == Outcome(value=8)


@pytest.mark.parametrize("how", ["exit", "kill"])
def test_a_worker_that_dies_takes_only_its_own_work_along(work: Any, how: str) -> None:
    nodes = [
        node("beside", "sleep", 1.5),
        node("dies", how),
        node("child", after=("dies",)),
        node("later", argument=3),
        node("more", argument=4),
    ]
    outcomes = run(nodes, work, 2)
    assert "the worker process died" in str(outcomes["dies"].failure)
    assert outcomes["child"].failure == outcomes["dies"].failure
    assert [outcomes[key].value for key in ("beside", "later", "more")] == ["slept", 6, 8]


def test_workers_are_few_and_used_again(work: Any) -> None:
    outcomes = run([node(str(i), "pid") for i in range(6)], work, 2)
    pids = {outcome.value for outcome in outcomes.values()}
    assert 1 <= len(pids) <= 2
    assert os.getpid() not in pids
    assert not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in pids)
    assert run([node("here", "pid")], work, 1)["here"].value == os.getpid()


@pytest.mark.parametrize("workers", [1, 2])
def test_one_thread_for_torch_and_progress_told_here(work: Any, workers: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    told: list[tuple[str, int, int]] = []
    token = progress.set(lambda *event: told.append(event))
    try:
        outcomes = run([node("t", "threads"), node("p", "progress", "training")], work, workers)
        assert outcomes["t"].value == 1
        assert torch.get_num_threads() == 3
        assert told == [("training", 3, 3)]
    finally:
        progress.reset(token)
        torch.set_num_threads(before)


def test_threads_come_back_after_an_error_too(work: Any) -> None:
    def done(ended: Node, outcome: Outcome) -> None:
        raise KeyError("the caller")

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with pytest.raises(KeyError):
            execute([node("a")], work, workers=1, done=done)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_circles_and_unknown_nodes_are_refused_before_anything_runs(work: Any) -> None:
    ran: list[str] = []
    nodes = [node("free"), node("a", after=("b",)), node("b", after=("a",))]
    with pytest.raises(ValueError, match="these nodes wait for each other: node a, node b"):
        execute(nodes, lambda payload: ran.append(payload), workers=1, done=lambda *_: None)
    with pytest.raises(ValueError, match=r"node a waits for unknown nodes \['nowhere'\]"):
        execute([node("a", after=("nowhere",))], lambda payload: ran.append(payload), workers=1, done=lambda *_: None)
    assert ran == []


def test_workers_die_with_a_killed_parent(work: Any, tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(f"""
import sys
sys.path.insert(0, {os.path.dirname(sys.modules["ubtest_work"].__file__ or "")!r})
from unlearnbench.executors import Node, execute
from ubtest_work import work
if __name__ == "__main__":
    nodes = [Node(key=str(i), title="t", payload=("tell", {str(tmp_path)!r} + f"/pid{{i}}")) for i in range(2)]
    execute(nodes, work, workers=2, done=lambda *_: None)
""")
    parent = subprocess.Popen([sys.executable, str(script)])
    try:
        told = [tmp_path / "pid0", tmp_path / "pid1"]
        _until(lambda: all(path.exists() and path.read_text() for path in told), seconds=60)
        pids = [int(path.read_text()) for path in told]
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        _until(lambda: not any(_alive(pid) for pid in pids), seconds=10)
    finally:
        parent.kill()
        parent.wait()


def _alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _until(holds: Any, *, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)
