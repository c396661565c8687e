"""The artefact store: what a trial made, found again by what it was made from.

This file knows when an artefact counts as there and who may make it. It does not know what an artefact means: the
caller hands a *kind* (``models``, ``evidence``, ...), a *key* (see `content_key`) and a function that fills a folder.

Layout: ``<root>/<kind>/<key[:2]>/<key>/`` holds the artefact's files and ``manifest.json``; ``<root>/tmp/`` what is
being written; ``<root>/locks/`` one file per lock held. An artefact appears by one rename, so it is there whole or not
at all; every lock is a kernel lock (``flock``), so that a killed process holds none.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from unlearnbench.files import FileState, StoreError, content_key, digest, explained, locked, states, sync_folder, write_json
from unlearnbench.remote import FORMAT, MANIFEST, Remote, open_url, parsed_manifest
from unlearnbench.tensors import load_tensors, save_tensors, tensor_hash

__all__ = ["Store", "StoreError", "content_key", "load_tensors", "save_tensors", "tensor_hash", "write_json"]

logger = logging.getLogger(__name__)


class Store:
    """Artefacts by kind and key, each written once and checked by hash when read.

    Args:
        url: A local folder (also ``file://...``), which any number of processes may use at once, or any other fsspec
            URL (``s3://...``, ``memory://...``) with **one writer**: nothing locks a remote place. Processes of one
            machine share its local cache and do lock each other out.

    Raises:
        StoreError: The place is a file, or fsspec cannot serve the URL.
    """

    def __init__(self, url: str | Path) -> None:
        self._remote: Remote | None = None
        self._verified: dict[Path, list[FileState]] = {}
        if "://" in str(url):
            self.root, self._remote = open_url(str(url))
        else:
            self.root = Path(url).expanduser().absolute()
        if self.root.exists() and not self.root.is_dir():
            raise StoreError(f"store {str(url)!r} is a file; allowed: a folder or an fsspec URL")

    def get(self, kind: str, key: str) -> Path | None:
        """Return the local folder of an artefact whose files all have the recorded hash, or None if there is none.

        A damaged artefact is named in a warning and removed; the answer is then None, and the caller builds it again.
        Files this process has verified are not read again while their size and modification time stay.
        """
        folder = self._folder(kind, key)
        # A cached copy of a remote artefact is trusted only once it was compared with the remote manifest.
        if (self._remote is None or folder in self._verified) and self._problem(kind, key) is None:
            return folder
        if not folder.exists() and not self.has(kind, key):
            return None
        with locked(self._lock(kind, key)):
            return self._load(kind, key)

    def put(self, kind: str, key: str, write: Callable[[Path], None]) -> Path:
        """Let ``write`` fill a temporary folder, then make it the artefact; one that is there already wins.

        Returns:
            The folder of the artefact, verified.

        Raises:
            StoreError: The disk is full, or ``write`` left something else than plain files. Nothing is left behind.
        """
        self._folder(kind, key)
        with explained(self.root), self._staged(kind, key, write) as staged, locked(self._lock(kind, key)):
            return self._load(kind, key) or self._publish(kind, key, staged)

    def build(self, kind: str, key: str, write: Callable[[Path], None]) -> Path:
        """Return the artefact, or make it while every other process that wants it waits; it is made once.

        ``write`` must not build the same artefact: it would wait for itself.

        Raises:
            StoreError: As in `put`.
        """
        found = self.get(kind, key)
        if found is not None:
            return found
        with explained(self.root), locked(self._lock(kind, key)):
            found = self._load(kind, key)
            if found is not None:
                return found
            with self._staged(kind, key, write) as staged:
                return self._publish(kind, key, staged)

    def has(self, kind: str, key: str) -> bool:
        """Whether the artefact was written completely; its files are not read."""
        folder = self._folder(kind, key)
        return self._remote.has(kind, key) if self._remote else (folder / MANIFEST).is_file()

    def keys(self, kind: str) -> list[str]:
        """The keys of all complete artefacts of a kind, sorted."""
        _checked_name("kind", kind)
        if self._remote:
            return self._remote.keys(kind)
        return sorted(path.parent.name for path in (self.root / kind).glob(f"*/*/{MANIFEST}"))

    def _folder(self, kind: str, key: str) -> Path:
        return self.root / _checked_name("kind", kind) / _checked_name("key", key)[:2] / key

    def _lock(self, kind: str, key: str) -> Path:
        return self.root / "locks" / f"{kind}@{key}"  # "@" is in no name, so two pairs never share a lock

    def _load(self, kind: str, key: str) -> Path | None:
        """`get`, by the holder of the key's lock."""
        folder = self._folder(kind, key)
        while True:
            fresh = self._remote is None or self._pull(self._remote, kind, key)
            if not folder.exists():
                return None
            problem = self._problem(kind, key)
            if problem is None:
                return folder
            logger.warning("artefact %s/%s: %s; removed", kind, key, problem)
            self._remove(folder)
            if fresh:  # else only the cached copy was damaged: fetch it again
                if self._remote:
                    self._remote.remove(kind, key)
                return None

    def _pull(self, remote: Remote, kind: str, key: str) -> bool:
        """Make the cached copy that of the remote manifest; whether anything was downloaded."""
        folder, manifest = self._folder(kind, key), remote.manifest(kind, key)
        if manifest is None:
            self._remove(folder)  # the remote place decides what exists
            return True
        if (folder / MANIFEST).is_file() and (folder / MANIFEST).read_bytes() == manifest:
            return False
        self._remove(folder)
        with self._scratch() as scratch:
            copy = scratch / key
            remote.download(kind, key, manifest, copy)
            folder.parent.mkdir(parents=True, exist_ok=True)
            os.rename(copy, folder)
        return True

    @contextmanager
    def _staged(self, kind: str, key: str, write: Callable[[Path], None]) -> Iterator[Path]:
        """A temporary folder with all of an artefact on disk, its manifest last."""
        with self._scratch() as scratch:
            folder = scratch / key
            folder.mkdir()
            write(folder)
            strange = [path for path in folder.rglob("*") if path.is_symlink() or not (path.is_file() or path.is_dir())]
            if strange or (folder / MANIFEST).exists():
                name = strange[0].relative_to(folder) if strange else MANIFEST
                raise StoreError(f"artefact {kind}/{key}: {name} cannot be stored; allowed: plain files, no {MANIFEST}")
            files = {state.name: {"bytes": state.size, "sha256": digest(folder / state.name, sync=True)} for state in states(folder)}
            write_json(folder / MANIFEST, {"files": files, "format": FORMAT, "key": key, "kind": kind})
            for path in (folder, *folder.rglob("*")):
                if path.is_dir():
                    sync_folder(path)
            yield folder

    def _publish(self, kind: str, key: str, staged: Path) -> Path:
        """Rename a staged folder into place and upload it, by the holder of the key's lock."""
        folder = self._folder(kind, key)
        folder.parent.mkdir(parents=True, exist_ok=True)
        os.rename(staged, folder)
        for parent in (folder.parent, folder.parent.parent, self.root):
            sync_folder(parent)
        if self._remote:
            self._remote.upload(kind, key, folder)
        self._verified[folder] = states(folder)  # hashed a moment ago, by this process
        return folder

    def _problem(self, kind: str, key: str) -> str | None:
        """What is wrong with the local files of an artefact, or None."""
        folder = self._folder(kind, key)
        try:
            found = states(folder)
            if self._verified.get(folder) == found:
                return None
            manifest = parsed_manifest((folder / MANIFEST).read_bytes())
            if manifest is None or (manifest["kind"], manifest["key"]) != (kind, key):
                return f"{MANIFEST} is damaged"
            sizes = {state.name: state.size for state in found if state.name != MANIFEST}
            files: dict[str, dict[str, Any]] = manifest["files"]
            for name in sorted(sizes.keys() | files.keys()):
                if name not in sizes:
                    return f"{name} is missing"
                if name not in files:
                    return f"{name} is not in the manifest"
                if sizes[name] != files[name]["bytes"]:
                    return f"{name} has {sizes[name]} bytes instead of {files[name]['bytes']}"
                if digest(folder / name) != files[name]["sha256"]:
                    return f"{name} has changed (its hash differs)"
        except FileNotFoundError as error:  # never written, or removed by another process while it was read here
            return f"{Path(error.filename).name} is missing"
        self._verified[folder] = found
        return None

    def _remove(self, folder: Path) -> None:
        """Take an artefact away in one step, so that nobody sees half of it."""
        if folder.exists():
            with self._scratch() as scratch:
                os.rename(folder, scratch / folder.name)

    @contextmanager
    def _scratch(self) -> Iterator[Path]:
        """A folder that lives as long as this block; one whose process was killed goes at the next call."""
        for place in ("tmp", "locks"):
            (self.root / place).mkdir(parents=True, exist_ok=True)
            for left in list((self.root / place).iterdir()):
                with locked(self.root / "locks" / left.name, wait=False) as free:
                    if free:
                        shutil.rmtree(self.root / "tmp" / left.name, ignore_errors=True)
        name = f"tmp@{secrets.token_hex(8)}"
        with locked(self.root / "locks" / name):
            folder = self.root / "tmp" / name
            folder.mkdir()
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)


def _checked_name(role: str, name: str) -> str:
    """A kind or key that is safe as a folder's name."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]+", name) or (role == "kind" and name in ("tmp", "locks")):
        raise StoreError(f"{role} {name!r}: allowed are two or more letters, digits, '.', '_' and '-'; not tmp, locks")
    return name
