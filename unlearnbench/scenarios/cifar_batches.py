"""The Python batches in which CIFAR-10 and CIFAR-100 were published: pickle files, so that reading them carelessly runs them.

A file is read if its MD5 sum is the official one, and then by an unpickler that can rebuild dictionaries, lists, numbers, texts and
numpy arrays, and nothing else. Knows the files' form; which files there are is said in `cifar_files`.
"""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from unlearnbench.api import UserError
from unlearnbench.scenarios.image_rows import Bytes

SIDE = 32
_RECONSTRUCT = np.empty(0).__reduce__()[0]
ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}
"""All that a file may name: what rebuilds a numpy array, as older and newer versions of numpy call it."""


class NumpyUnpickler(pickle.Unpickler):
    """Reads a pickle that holds plain values and numpy arrays; one that names anything else is refused before that is called."""

    def find_class(self, module: str, name: str) -> Any:
        """What the file means by a name.

        Raises:
            UnpicklingError: it is not among `ALLOWED`.
        """
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}; allowed: numpy arrays")
        return ALLOWED[module, name]

    def persistent_load(self, pid: Any) -> Any:
        """Refused: a batch has no outside references."""
        raise pickle.UnpicklingError("it refers to something outside of the file")


def read_batch(path: Path, md5: str, columns: Mapping[str, str]) -> tuple[Bytes, dict[str, list[int]]]:
    """Pictures uint8 ``[n, 3, 32, 32]`` and class numbers of one file.

    Args:
        path: the file.
        md5: the official sum of its content, in hexadecimal.
        columns: column -> the file's name for it.

    Raises:
        UserError: the file is missing, is not the official one, or holds something else than pictures with labels.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != md5:
        raise UserError(f"{path} has the MD5 sum {found}; the official file has {md5}: it is damaged or another file, and was not read")
    batch = plain_content(content, str(path))
    data = batch.get("data") if isinstance(batch, dict) else None
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3 * SIDE * SIDE:
        raise UserError(f"{path} holds no array `data` of {3 * SIDE * SIDE} bytes a row")
    labels = {column: batch.get(name) for column, name in columns.items()}
    for column, values in labels.items():
        if not isinstance(values, list) or len(values) != len(data) or not all(isinstance(value, int) for value in values):
            raise UserError(f"{path} holds no list {columns[column]!r} of {len(data)} class numbers")
    return data.reshape(-1, 3, SIDE, SIDE), labels


def plain_content(content: bytes, place: str) -> Any:
    """What a pickle of plain values and numpy arrays holds.

    Raises:
        UserError: it names anything else, or is damaged.
    """
    try:
        return NumpyUnpickler(io.BytesIO(content), encoding="latin1").load()
    except Exception as error:  # a damaged pickle raises almost anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{place} cannot be read as a batch of pictures: {reason:.160}") from error
