"""A model as a method hands it over: saved to a folder, loaded in a fresh process, copied.

A folder holds `model.safetensors` (every parameter and buffer, tied ones once), `deployed.json` (which modules were inserted where, by
class name and JSON configuration) and, where a peft adapter stands around the model, its `adapter_config.json`. Loading builds the bare
architecture, inserts the method's own module classes again, puts the adapter around and fills in the weights: no code is named in the
folder.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from unlearnbench.layers import Inserted, insert, inserted, strip
from unlearnbench.tensors import load_tensors, save_tensors

ADAPTER = "adapter_config.json"
"""The name that peft gives to it."""


def save_model(model: nn.Module, folder: Path) -> None:
    """Write the model into an existing folder.

    Raises:
        ValueError: the model itself, not one of its submodules, is an inserted module; or it has several adapters.
    """
    base: nn.Module = model.get_base_model() if hasattr(model, "peft_config") else model  # type: ignore[operator]
    if isinstance(base, Inserted):
        raise ValueError(f"{type(base).__name__} wraps the whole model; insert it in front of a submodule")
    if base is not model:
        _save_adapter(model, folder)
    # Reversed: a module inside another comes first, so that on loading each finds its place in a tree built so far.
    found = [
        {"path": _bare(base, path), "class": type(module).__name__, "config": module.config()} for path, module in reversed(inserted(base))
    ]
    save_tensors(folder, model.state_dict())
    (folder / "deployed.json").write_text(json.dumps({"inserted": found}, indent=1, sort_keys=True), encoding="utf-8")


def load_model(folder: Path, build: Callable[[], nn.Module], inserts: tuple[type[Inserted], ...] = ()) -> nn.Module:
    """Read what `save_model` wrote, in eval mode.

    Args:
        folder: the folder.
        build: makes the architecture; its weights are replaced.
        inserts: the module classes of the method that made the model.

    Raises:
        ValueError: the folder needs a module class that is not among `inserts`, or its weights do not fit.
    """
    model = build()
    # A published model may come with inserted modules: they are made anew, with what the folder says of them.
    known = {cls.__name__: cls for cls in (*inserts, *(type(module) for _, module in inserted(model)))}
    model = strip(model)
    for entry in json.loads((folder / "deployed.json").read_text(encoding="utf-8"))["inserted"]:
        if entry["class"] not in known:
            raise ValueError(f"{folder} needs the inserted module {entry['class']!r}; the method knows {sorted(known) or 'none'}")
        insert(model, entry["path"], known[entry["class"]](model.get_submodule(entry["path"]), **entry["config"]))
    if (folder / ADAPTER).exists():
        model = _load_adapter(model, folder)
    tensors = load_tensors(folder)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:  # names or shapes
        raise ValueError(f"the weights in {folder} do not fit: {' '.join(str(error).split())}") from error
    return model.eval()


def _save_adapter(model: Any, folder: Path) -> None:
    configs = model.peft_config
    if list(configs) != ["default"]:
        raise ValueError(f"the model has adapters {list(configs)}; one, named 'default', can be saved: merge them")
    configs["default"].save_pretrained(str(folder))


def _load_adapter(model: nn.Module, folder: Path) -> nn.Module:
    from peft import PeftConfig, get_peft_model

    with torch.random.fork_rng(devices=[]):  # its weights are drawn, and then replaced
        adapted: nn.Module = get_peft_model(model, PeftConfig.from_pretrained(str(folder)))
    return adapted


def _bare(model: nn.Module, path: str) -> str:
    """The path as it is without the `.inner` of inserted modules on the way."""
    names: list[str] = []
    here = model
    for name in path.split("."):
        if not (isinstance(here, Inserted) and name == "inner"):
            names.append(name)
        here = getattr(here, name)
    return ".".join(names)
