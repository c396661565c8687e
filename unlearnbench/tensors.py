"""Named tensors in a safetensors file, with the memory they share, and the hash of their values.

This file knows tensors and their storage. safetensors itself refuses tensors that share memory (tied weights): here each
storage is written once, and an alias map in the file's metadata says which names are views of which written tensor.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:  # torch takes a second to import, and commands that only read records need none
    from torch import Tensor

# The only entry of ours, and one string: safetensors does not promise an order of several entries.
ALIASES = "unlearnbench.aliases"


class _Alias(NamedTuple):
    """A tensor as a view of another that is stored: ``as_strided`` of its flattened values, in elements."""

    of: str
    shape: list[int]
    stride: list[int]
    offset: int


def save_tensors(folder: Path, tensors: Mapping[str, Tensor], name: str = "model.safetensors") -> Path:
    """Write tensors of any shape, dtype and device, tied or not contiguous; equal tensors give equal bytes.

    Args:
        folder: An existing folder.
        tensors: Names and tensors, in any order. Of tensors that share memory, each must be the same view as, or lie
            within, one contiguous tensor among them.
        name: The file's name.

    Returns:
        The file.

    Raises:
        ValueError: A tensor has no dense values (sparse, meta), or two overlap and neither holds the other.
    """
    from safetensors.torch import save_file

    written, aliases = _without_sharing(tensors)
    metadata = {ALIASES: json.dumps({alias: view._asdict() for alias, view in aliases.items()}, sort_keys=True)}
    save_file({key: tensor.detach().cpu().contiguous() for key, tensor in written.items()}, folder / name, metadata)
    return folder / name


def load_tensors(folder: Path, name: str = "model.safetensors") -> dict[str, Tensor]:
    """Read what `save_tensors` wrote, on the CPU, by name in sorted order; what shared memory shares it again."""
    import torch
    from safetensors import safe_open

    with safe_open(folder / name, framework="pt") as file:
        tensors: dict[str, Tensor] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
        aliases = json.loads((file.metadata() or {}).get(ALIASES, "{}"))
    for alias, entry in aliases.items():
        view = _Alias(**entry)
        base = tensors[view.of]
        tensors[alias] = torch.as_strided(base, view.shape, view.stride, base.storage_offset() + view.offset)
    return dict(sorted(tensors.items()))


def tensor_hash(tensors: Mapping[str, Tensor]) -> str:
    """The sha256 (hex) over names, dtypes, shapes and bytes, whatever the order, device, strides and sharing."""
    import torch

    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        total.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def _without_sharing(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, _Alias]]:
    """Split tensors into those to write, which share no element, and those that are views of them."""
    import torch

    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.device.type == "meta":
            raise ValueError(f"tensor {name!r} is {tensor.layout} on {tensor.device}; allowed: dense tensors with values")
    written: dict[str, Tensor] = {}
    aliases: dict[str, _Alias] = {}
    storages: dict[tuple[str, int], list[str]] = {}
    # The largest contiguous one of a storage first, so that it is written and the others are views of it; then by name.
    for name in sorted(tensors, key=lambda key: (not tensors[key].is_contiguous(), -tensors[key].numel(), key)):
        tensor = tensors[name]
        others = storages.setdefault((str(tensor.device), tensor.untyped_storage().data_ptr()), [])
        alias = next((view for other in others if (view := _view(tensor, other, tensors[other]))), None)
        if alias is not None and tensor.numel():
            aliases[name] = alias
            continue
        for other in others:
            if _overlap(tensor, tensors[other]):
                raise ValueError(f"tensors {other!r} and {name!r} overlap in part; allowed: one within the other, or copies")
        if tensor.numel():
            others.append(name)
        written[name] = tensor
    return written, aliases


def _view(tensor: Tensor, name: str, base: Tensor) -> _Alias | None:
    """How ``tensor`` is a view of ``base``, which shares its storage, or None."""
    import torch

    if tensor.dtype != base.dtype:
        return None
    start = int(tensor.storage_offset()) - int(base.storage_offset())
    shape, stride = list(tensor.shape), list(tensor.stride())
    if start == 0 and shape == list(base.shape) and stride == list(base.stride()):
        written = torch.empty(shape, device="meta")  # the base is written contiguous, whatever its strides here
        return _Alias(name, shape, list(written.stride()), 0)
    last = start + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    return _Alias(name, shape, stride, start) if base.is_contiguous() and start >= 0 and last < base.numel() else None


def _overlap(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors of one storage have a byte in common (columns of one matrix interleave without)."""
    import torch

    used = torch.zeros(first.untyped_storage().nbytes(), dtype=torch.bool)

    def bytes_of(tensor: Tensor) -> Tensor:
        width = tensor.element_size()
        steps = [step * width for step in tensor.stride()]
        return used.as_strided([*tensor.shape, width], [*steps, 1], tensor.storage_offset() * width)

    bytes_of(first).fill_(True)
    return bool(bytes_of(second).any())
