"""Where a number comes from: versions, commit, hashes of data; and, apart, the machine it was computed on."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import unlearnbench
from unlearnbench.code import code_hash, module_hash
from unlearnbench.files import content_key
from unlearnbench.trial import Settings, Trial

LIBRARIES = ("torch", "transformers", "peft", "accelerate", "scikit-learn", "numpy", "scipy", "tokenizers")


def provenance(trial: Trial, settings: Settings) -> dict[str, Any]:
    """What a record's numbers depend on, beside the trial itself."""
    scenario = trial.place.open()
    return {
        "package": unlearnbench.__version__,
        "commit": _checkout().get("commit"),
        "libraries": {name: importlib.metadata.version(name) for name in LIBRARIES},
        "device": settings.device,
        "dtype": settings.dtype,
        "data": content_key([scenario.training_settings(scenario.plan(role)) for role in ("original", "oracle")]),
        "code": {"scenario": code_hash(type(scenario)), "harness": module_hash("unlearnbench.evaluation")},
    }


@cache
def machine(device: str) -> dict[str, Any]:
    """The machine and checkout: for the volatile block, never compared."""
    name = platform.processor() or platform.machine()
    if device == "cuda":
        import torch

        name = torch.cuda.get_device_name()
    return {"machine": name, "python": platform.python_version(), "dirty": _checkout().get("dirty")}


@cache
def _checkout() -> dict[str, Any]:
    """Commit and dirty flag of the checkout this package runs from; empty for an installed package."""
    root = Path(unlearnbench.__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return {}

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=True).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.CalledProcessError):  # no git here, or a checkout of someone else's: the record does without
        return {}
