"""The remote side of the store: artefacts under an fsspec URL.

This file knows how an artefact lies in a remote place and that its manifest goes up last and away first, so that a
manifest means a whole artefact. Nothing locks a remote place: it has **one writer**.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path, PurePosixPath
from typing import Any

from unlearnbench.files import StoreError, states

MANIFEST = "manifest.json"
FORMAT = 1


class Remote:
    """The remote side of a store: files under a URL, the manifest uploaded last; one writer."""

    def __init__(self, files: Any, base: str) -> None:
        self._files, self._base = files, base.rstrip("/")

    def _path(self, kind: str, key: str, name: str = MANIFEST) -> str:
        return f"{self._base}/{kind}/{key[:2]}/{key}/{name}"

    def has(self, kind: str, key: str) -> bool:
        """Whether the manifest is there."""
        self._files.invalidate_cache()  # another machine may have written since the listing was kept
        return bool(self._files.exists(self._path(kind, key)))

    def keys(self, kind: str) -> list[str]:
        """The keys of all artefacts of a kind that have a manifest, sorted."""
        self._files.invalidate_cache()
        return sorted(PurePosixPath(path).parent.name for path in self._files.glob(f"{self._base}/{kind}/*/*/{MANIFEST}"))

    def manifest(self, kind: str, key: str) -> bytes | None:
        """The manifest as it was written, or None."""
        return bytes(self._files.cat_file(self._path(kind, key))) if self.has(kind, key) else None

    def download(self, kind: str, key: str, manifest: bytes, folder: Path) -> None:
        """Copy what the manifest names; what is missing or damaged shows when the copy is verified."""
        for name in (parsed_manifest(manifest) or {"files": ()})["files"]:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            if self._files.exists(self._path(kind, key, name)):
                self._files.get_file(self._path(kind, key, name), str(folder / name))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MANIFEST).write_bytes(manifest)

    def upload(self, kind: str, key: str, folder: Path) -> None:
        """Copy a complete folder file by file, its manifest last."""
        self.remove(kind, key)  # what a killed upload left
        for name in (*(state.name for state in states(folder) if state.name != MANIFEST), MANIFEST):
            path = self._path(kind, key, name)
            self._files.makedirs(path.rpartition("/")[0], exist_ok=True)
            self._files.put_file(str(folder / name), path)

    def remove(self, kind: str, key: str) -> None:
        """Remove an artefact, its manifest first: without it the rest does not count."""
        if self.has(kind, key):
            self._files.rm(self._path(kind, key))
        folder = self._path(kind, key, "").rstrip("/")
        if self._files.exists(folder):
            self._files.rm(folder, recursive=True)


def open_url(url: str) -> tuple[Path, Remote | None]:
    """The local folder of a URL (for a remote one, its cache) and its remote side."""
    from fsspec.core import url_to_fs
    from fsspec.implementations.local import LocalFileSystem

    try:
        files, base = url_to_fs(url)
    except (ValueError, ImportError) as error:
        raise StoreError(f"store {url!r}: {error}; allowed: a folder or an fsspec URL") from error
    if isinstance(files, LocalFileSystem):
        return Path(base), None
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "unlearnbench" / "store"
    return cache / hashlib.sha256(url.encode()).hexdigest()[:16], Remote(files, base)


def parsed_manifest(text: bytes) -> dict[str, Any] | None:
    """A manifest of the right shape, whose names stay inside its folder, or None."""
    try:
        manifest = json.loads(text)
        names = [PurePosixPath(name) for name in manifest["files"]]
        whole = manifest["format"] == FORMAT and {"kind", "key"} <= manifest.keys()
        whole = whole and all({"bytes", "sha256"} <= entry.keys() for entry in manifest["files"].values())
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    return manifest if whole and not any(name.is_absolute() or ".." in name.parts for name in names) else None
