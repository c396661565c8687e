"""Runs the command line again and again in forked children, so that a test does not wait for imports; for `test_faults`.

Reads one JSON object a line: {"argv": [...], "log": path, "file_limit": bytes or null} starts a child and answers its process id;
{"wait": pid} answers its exit status (negative for a signal); {"poll": pid} the same, or null while it runs.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys

# What a run imports, loaded once; nothing is computed here, so that forking is safe.
import sklearn.datasets  # noqa: F401
import torch

import unlearnbench.report
import unlearnbench.runner  # noqa: F401
from unlearnbench.cli import main


def start(argv: list[str], log: str, file_limit: int | None) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 70
    try:
        os.setpgid(0, 0)
        handle = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        if file_limit is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
        sys.argv = ["unlearnbench", *argv]
        main()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def main_loop() -> None:
    torch.set_num_threads(1)
    print("ready", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        if "argv" in order:
            answer: int | None = start(order["argv"], order["log"], order["file_limit"])
        else:
            pid, state = os.waitpid(order.get("wait", order.get("poll")), 0 if "wait" in order else os.WNOHANG)
            answer = os.waitstatus_to_exitcode(state) if pid else None
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main_loop()
