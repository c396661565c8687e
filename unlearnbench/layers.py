"""Inserted modules, conditions, features and stripping, for any causal LM or classifier, also under peft or another wrapper.

A method that changes the computation does it by wrapping a submodule in an `Inserted` module, never by a hook that closes over an
object: inserted modules are part of the module tree, so that deepcopy, saving, LoRA on top and stripping all work.

A method that steers on the text decides per row, on the prompt alone, before any answer is seen: its `Conditioned` module turns
prompts into a condition once, and `conditioned` carries that through teacher forcing, key-value cache, beams and returned sequences.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from unlearnbench.api import UserError


class Inserted(nn.Module):
    """A module that stands in front of `inner` and may change its inputs or outputs.

    Subclasses take `inner` first and JSON-able keyword arguments after it, return the latter from `config`, and define `forward`.
    Attributes they lack are looked up on `inner`, so that a wrapped decoder layer still answers for what it is.
    """

    inner: nn.Module

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            # A special method of `inner` (its own deepcopy) would act on `inner` alone.
            if name == "inner" or name.startswith("__") or self.__dict__.get("_alone"):
                raise
            return getattr(super().__getattr__("inner"), name)

    # torch refuses to register a name that `hasattr` finds, and would find those of `inner` (of the same class, when a method serves a
    # sequence of requests), so `inner` is out of sight meanwhile.

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """See `nn.Module`; names may be those of `inner`."""
        with self._out_of_sight():
            super().register_parameter(name, param)

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        """See `nn.Module`; names may be those of `inner`."""
        with self._out_of_sight():
            super().register_buffer(name, tensor, persistent)

    def add_module(self, name: str, module: nn.Module | None) -> None:
        """See `nn.Module`; names may be those of `inner`."""
        with self._out_of_sight():
            super().add_module(name, module)

    @contextmanager
    def _out_of_sight(self) -> Iterator[None]:
        self.__dict__["_alone"] = True
        try:
            yield
        finally:
            del self.__dict__["_alone"]

    def config(self) -> dict[str, Any]:
        """The keyword arguments, JSON-able, that rebuild this module around a fresh `inner`."""
        return {}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run `inner` unchanged."""
        return self.inner(*args, **kwargs)


class Conditioned(Inserted):
    """An inserted module that acts on each row by that row's condition."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__(inner)
        self._rows: Tensor | None = None

    def condition(self, prompts: Sequence[str]) -> Tensor:
        """One row per prompt [len(prompts), ...]; sees the prompts alone."""
        raise NotImplementedError(f"{type(self).__name__} must define condition()")

    def rows(self, batch: int) -> Tensor:
        """The conditions of a batch [batch, ...]; beams and returned sequences repeat each row in place.

        Raises:
            RuntimeError: outside `conditioned`, or when the batch is no multiple of the prompts.
        """
        if self._rows is None:
            raise RuntimeError(f"{type(self).__name__} decides on the prompt: run the model inside layers.conditioned(model, ...)")
        if batch % len(self._rows):
            raise RuntimeError(f"a batch of {batch} rows does not fit the {len(self._rows)} prompts it was conditioned on")
        return self._rows.repeat_interleave(batch // len(self._rows), dim=0)


def insert(model: nn.Module, path: str, module: Inserted) -> None:
    """Put `module` in the place of the submodule that it wraps.

    Raises:
        ValueError: `module.inner` is not what stands at `path`, or is the model itself.
    """
    if not path:
        raise ValueError("the path is empty: an inserted module wraps a submodule, since generation calls the model itself")
    if model.get_submodule(path) is not module.inner:
        raise ValueError(f"{type(module).__name__} does not wrap the module at {path!r}")
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent) if parent else model, name, module)


def inserted(model: nn.Module) -> list[tuple[str, Inserted]]:
    """All inserted modules with their paths, outermost first."""
    return [(path, module) for path, module in model.named_modules() if isinstance(module, Inserted)]


def strip(model: nn.Module) -> nn.Module:
    """The model without inserted modules and adapters; works in place and returns the bare model.

    What T5 attacks. For a model whose weights were edited this changes nothing.
    """
    if hasattr(model, "peft_config") and hasattr(model, "unload"):
        model = model.unload()  # type: ignore[operator]
    if isinstance(model, Inserted):
        return strip(model.inner)
    for name, child in list(model.named_children()):
        bare = child
        while isinstance(bare, Inserted):
            bare = bare.inner
        if bare is not child:
            setattr(model, name, bare)
        strip(bare)
    return model


def condition(model: nn.Module, prompts: Sequence[str]) -> list[Tensor]:
    """Each conditioned module's rows for these prompts, in module order."""
    return [module.condition(prompts) for module in model.modules() if isinstance(module, Conditioned)]


@contextmanager
def conditioned(model: nn.Module, prompts: Sequence[str] | list[Tensor]) -> Iterator[None]:
    """A context inside which every conditioned module acts by these prompts, or by rows made earlier with `condition`.

    Nothing happens for a model without conditioned modules.
    """
    modules = [module for module in model.modules() if isinstance(module, Conditioned)]
    rows = [row for row in prompts if isinstance(row, Tensor)]
    if not rows:
        rows = condition(model, [prompt for prompt in prompts if isinstance(prompt, str)])
    with _installed(list(zip(modules, rows, strict=True))):
        yield


@contextmanager
def _installed(rows: list[tuple[Conditioned, Tensor | None]]) -> Iterator[None]:
    before = [(module, module._rows) for module, _ in rows]
    for module, row in rows:
        module._rows = row
    try:
        yield
    finally:
        for module, earlier in before:
            module._rows = earlier


def as_now(model: nn.Module) -> AbstractContextManager[None]:
    """A context, to be entered later, inside which every conditioned module has the rows that it has now.

    For what is computed a second time after `conditioned` was left: activation checkpointing.
    """
    return _installed([(module, module._rows) for module in model.modules() if isinstance(module, Conditioned)])


def blocks(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The repeated blocks of a model with their paths: decoder layers of a causal LM, or what a classifier calls `blocks`.

    The longest `nn.ModuleList` (or `nn.Sequential` named `blocks`) that is in no other one is taken, so that a block's own lists
    (experts) are not mistaken for it; a wrapper or adapter around the model does not matter.

    Raises:
        ValueError: the model has no such list.
    """
    candidates = [
        (path, module)
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) or (isinstance(module, nn.Sequential) and path.rpartition(".")[2] == "blocks")
    ]
    if not candidates:
        raise ValueError(f"{type(model).__name__} has no list of blocks to read features from")
    paths = [path for path, _ in candidates]
    outermost = [item for item in candidates if not any(item[0].startswith(f"{path}.") for path in paths)]
    path, found = max(outermost, key=lambda item: len(item[1]))
    return [(f"{path}.{name}", child) for name, child in found.named_children()]


@contextmanager
def captured(model: nn.Module, indices: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """A context that records the output of the given blocks (as deployed: inserted modules included) of the last forward pass.

    Raises:
        UserError: the model has no block of that number.
    """
    found = blocks(model)
    for index in indices:
        if not -len(found) <= index < len(found):
            raise UserError(f"{type(model).__name__} has no block {index}; its blocks are 0 to {len(found) - 1}, or -1 for the last")
    outputs: dict[int, Tensor] = {}

    def record(index: int) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            outputs[index] = output[0] if isinstance(output, tuple) else output

        return hook

    handles = [found[index][1].register_forward_hook(record(index)) for index in indices]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def last_linear(model: nn.Module) -> nn.Linear:
    """The last linear layer of a classifier by order of definition; layers that methods or adapters put around it are not meant.

    Raises:
        UserError: the model has no linear layer.
    """
    found = list(_linear_layers(model))
    if not found:
        raise UserError(f"{type(model).__name__} has no linear layer whose input could be read as its features")
    return found[-1]


def _linear_layers(module: nn.Module) -> Iterator[nn.Linear]:
    if isinstance(module, Inserted):
        yield from _linear_layers(module.inner)
    elif isinstance(base := getattr(module, "base_layer", None), nn.Module):  # a peft adapter around one layer
        yield from _linear_layers(base)
    elif isinstance(module, nn.Linear):
        yield module
    else:
        for child in module.children():
            yield from _linear_layers(child)


@contextmanager
def penultimate(model: nn.Module) -> Iterator[list[Tensor]]:
    """A context that records a classifier's features, the input of its `last_linear` [B, width], of the last forward pass.

    The list holds that one tensor, or nothing before the first pass; gradients flow through it.

    Raises:
        UserError: the model has no linear layer.
    """
    seen: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen[:] = inputs[:1]

    handle = last_linear(model).register_forward_pre_hook(keep)
    try:
        yield seen
    finally:
        handle.remove()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """A context with every module in eval mode; each gets its own mode back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def reinitialise(model: nn.Module, *, seed: int) -> nn.Module:
    """Draw all trained weights anew, in place: by each layer's own ``reset_parameters``, which resets batch-norm's statistics too.

    What a module without that method holds itself (a class token) has its entries shuffled, so that it keeps their size and forgets
    their order. A module whose own weights do not have ``requires_grad`` (a fixed first layer) stays as it is.
    """
    device = next(model.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.no_grad():
        torch.manual_seed(seed)
        for module in model.modules():
            own = list(module.parameters(recurse=False))
            if own and not any(parameter.requires_grad for parameter in own):
                continue
            reset = getattr(type(module), "reset_parameters", None)
            if reset is not None:
                reset(module)
                continue
            for parameter in own:
                order = torch.randperm(parameter.numel()).to(device)
                parameter.copy_(parameter.flatten()[order].reshape(parameter.shape))
    return model


def model_hash(model: nn.Module) -> str:
    """A hash of all parameters and buffers: names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
