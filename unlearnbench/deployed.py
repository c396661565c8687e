"""A model as a method hands it over: saved to a folder, loaded in a fresh process, copied.

A folder holds `model.safetensors` (every parameter and buffer, tied ones once) and `deployed.json` (which modules were inserted
where, by class name and JSON configuration). Loading builds the bare architecture, inserts the method's own module classes again and
fills in the weights: no code is named in the folder.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from unlearnbench.layers import Inserted, insert, inserted
from unlearnbench.tensors import load_tensors, save_tensors

if TYPE_CHECKING:
    from torch import nn


def save_model(model: nn.Module, folder: Path) -> None:
    """Write the model into an existing folder.

    Raises:
        ValueError: the model itself, not one of its submodules, is an inserted module.
    """
    if isinstance(model, Inserted):
        raise ValueError(f"{type(model).__name__} wraps the whole model; insert it in front of a submodule")
    # Reversed: a module inside another comes first, so that on loading each finds its place in a tree built so far.
    found = [
        {"path": _bare(model, path), "class": type(module).__name__, "config": module.config()}
        for path, module in reversed(inserted(model))
    ]
    save_tensors(folder, model.state_dict())
    (folder / "deployed.json").write_text(json.dumps({"inserted": found}, indent=1, sort_keys=True), encoding="utf-8")


def load_model(folder: Path, build: Callable[[], nn.Module], inserts: tuple[type[Inserted], ...] = ()) -> nn.Module:
    """Read what `save_model` wrote, in eval mode.

    Args:
        folder: the folder.
        build: makes the bare architecture; its weights are replaced.
        inserts: the module classes of the method that made the model.

    Raises:
        ValueError: the folder needs a module class that is not among `inserts`, or its weights do not fit.
    """
    known = {cls.__name__: cls for cls in inserts}
    model = build()
    for entry in json.loads((folder / "deployed.json").read_text(encoding="utf-8"))["inserted"]:
        if entry["class"] not in known:
            raise ValueError(f"{folder} needs the inserted module {entry['class']!r}; the method knows {sorted(known) or 'none'}")
        insert(model, entry["path"], known[entry["class"]](model.get_submodule(entry["path"]), **entry["config"]))
    tensors = load_tensors(folder)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:  # names or shapes
        raise ValueError(f"the weights in {folder} do not fit: {' '.join(str(error).split())}") from error
    return model.eval()


def _bare(model: nn.Module, path: str) -> str:
    """The path as it is without the `.inner` of inserted modules on the way."""
    names: list[str] = []
    here = model
    for name in path.split("."):
        if not (isinstance(here, Inserted) and name == "inner"):
            names.append(name)
        here = getattr(here, name)
    return ".".join(names)
