"""Files written safely: JSON by rename, kernel locks, hashes, and the key of a content.

This file knows the file system and JSON's exact subset of Python's values. It does not know what an artefact is, nor
any library for tensors. Everything here keeps its promise when a process is killed at any moment.
"""

from __future__ import annotations

import errno
import fcntl
import glob
import hashlib
import json
import math
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from unlearnbench.api import UserError

DISK_FULL = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}


class StoreError(UserError):
    """The store cannot do what was asked: a wrong name, a place it cannot use, a full disk."""


class FileState(NamedTuple):
    """What tells, without reading it, that a file is still the one verified."""

    name: str
    size: int
    mtime_ns: int


def states(folder: Path) -> list[FileState]:
    """All files under a folder, by name."""
    if not folder.is_dir():
        raise FileNotFoundError(errno.ENOENT, "no such folder", str(folder))
    found = ((path.relative_to(folder).as_posix(), path.stat()) for path in folder.rglob("*") if path.is_file())
    return sorted(FileState(name, stat.st_size, stat.st_mtime_ns) for name, stat in found)


def digest(path: Path, sync: bool = False) -> str:
    """The sha256 of a file, read in pieces; ``sync`` also waits until the file is on disk."""
    with path.open("rb") as file:
        if sync:
            os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[bool]:
    """Hold the kernel lock of a file, made for it and removed with it; yields False if ``wait`` is off and it is held."""
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        handle = os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            yield False
            return
        with suppress(FileNotFoundError):
            # The holder before us removed the file; a lock on a file that has no name any more excludes nobody.
            if os.path.samestat(os.fstat(handle), os.stat(path)):
                break
        os.close(handle)
    try:
        yield True
    finally:
        path.unlink(missing_ok=True)
        fcntl.flock(handle, fcntl.LOCK_UN)  # closing alone would not: a forked child may hold a copy of the handle
        os.close(handle)


@contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Turn a full disk, also as safetensors reports it, into a `StoreError` that names the folder."""
    try:
        yield
    except Exception as error:
        cause = error.__cause__ if isinstance(error, StoreError) else error  # an inner block named an inner folder
        code = re.search(r"\(os error (\d+)\)", str(cause))
        number = cause.errno if isinstance(cause, OSError) else int(code[1]) if code else None
        if number not in DISK_FULL:
            raise
        raise StoreError(f"no room to write in {folder}: {cause}; free some space or choose another folder") from cause


def _plain(value: Any, where: str = "the value") -> None:
    """Refuse what JSON cannot say exactly."""
    if isinstance(value, dict):
        for name, item in value.items():
            if not isinstance(name, str):
                raise TypeError(f"{where} has the name {name!r} ({type(name).__name__}); allowed: strings")
            _plain(item, f"{where}[{name!r}]")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _plain(item, f"{where}[{index}]")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where} is {value}; allowed: finite numbers, or None for a number that is missing")
    elif value is not None and not isinstance(value, str | int | float):
        raise TypeError(f"{where} is {value!r} ({type(value).__name__}); allowed: dict, list, str, int, float, bool, None")


def content_key(obj: Any) -> str:
    """The key of what something is made from: 24 hex digits of the sha256 of its canonical JSON.

    Raises:
        TypeError: A value or a name JSON does not have (a path, a set, an integer as a name).
        ValueError: A number that is not finite.

    >>> content_key({"lr": 1e-05, "seed": 0}) == content_key({"seed": 0, "lr": 0.00001})
    True
    """
    _plain(obj)
    text = json.dumps(obj, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def write_json(path: str | Path, obj: Any) -> None:
    """Write JSON (names sorted, a newline at the end) so that a reader finds the old file or the new one, never a part.

    Raises:
        TypeError: As `content_key`.
        ValueError: A number that is not finite; say None for a missing one.
        StoreError: The disk is full; the old file is still there.
    """
    _plain(obj)
    text = json.dumps(obj, sort_keys=True, indent=2, ensure_ascii=False) + "\n"
    with _replaced(Path(path)) as temporary:
        temporary.write_text(text, encoding="utf-8")


def copy_file(source: Path, target: Path) -> None:
    """Copy a file so that a reader of `target` finds the old content or the new one, never a part.

    Raises:
        StoreError: The disk is full; the old file is still there.
    """
    with _replaced(target) as temporary:
        shutil.copyfile(source, temporary)


@contextmanager
def _replaced(path: Path) -> Iterator[Path]:
    """A temporary file beside `path`, to be written in the block; it takes the place of `path` at the end."""
    with explained(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
            with locked(left, wait=False):
                pass  # whoever wrote it was killed: it goes with the lock
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
        with locked(temporary):
            yield temporary
            digest(temporary, sync=True)
            os.replace(temporary, path)
        sync_folder(path.parent)
