"""What the commands share: options as the command line shows them, and what their values mean."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from unlearnbench.views import UserError


class Device(StrEnum):
    """Where models run."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Dtype(StrEnum):
    """Precision of training."""

    fp32 = "fp32"
    bf16 = "bf16"


Workers = Annotated[int | None, typer.Option(min=1, show_default="one per core", help="Processes; results do not depend on it.")]
DeviceOption = Annotated[Device, typer.Option(help="Where models run; auto takes a GPU if there is one.")]
DtypeOption = Annotated[Dtype, typer.Option(help="Precision of training.")]
StoreOption = Annotated[str, typer.Option(metavar="URL", help="Where models and evidence are kept: a folder or an fsspec URL.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Say what is done, and errors in full.")]
STORE = "runs/store"


def folder_of(out: Path) -> Path:
    """Where results go: a folder, which need not exist yet.

    Raises:
        UserError: there is a file of that name.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; it must be a folder or not exist yet")
    return out


def device_of(device: Device) -> Any:
    """The device of a run: cpu or cuda."""
    if device is Device.cpu:
        return "cpu"
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if device is Device.cuda:
        raise UserError("--device cuda: this machine has no CUDA device; allowed here: auto, cpu")
    return "cpu"


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
