"""Names to plugin classes: from entry points, or from `path/to/file.py:Class`.

Knows entry-point groups and the four base classes; never imports a pack by name. A plugin that fails to import is listed as broken
with its error, and raises when it is asked for.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, overload

from unlearnbench.api import Attack, InferenceAttack, Method, Metric, Plugin, Scenario, UserError
from unlearnbench.fields import construct, did_you_mean, one_line

Group = Literal["scenarios", "methods", "attacks", "metrics"]

BASES: Mapping[Group, tuple[type[Plugin], ...]] = {
    "scenarios": (Scenario,),
    "methods": (Method,),
    "attacks": (Attack, InferenceAttack),
    "metrics": (Metric,),
}
"""The base classes of each group, in the order the groups are shown."""

RESERVED = ("name", "label", "grid")
"""Keys that an item of a suite uses itself, so that no plugin may have a field of that name."""


class Entry(NamedTuple):
    """An entry point, not imported."""

    name: str
    reference: str
    """Where the class is: `module:Class`."""
    distribution: str
    """Name of the package that brings it."""


class Broken(NamedTuple):
    """A plugin that cannot be used, and why."""

    name: str
    reference: str
    error: str


class Listing(NamedTuple):
    """All plugins of a group: classes by name, and the broken ones."""

    working: dict[str, type[Plugin]]
    broken: list[Broken]


def entries(group: Group) -> list[Entry]:
    """The entry points of a group, sorted by name; nothing is imported. A name may occur more than once."""
    return sorted(Entry(point.name, point.value, point.dist.name if point.dist else "unknown") for point in _points(group))


def discover(group: Group) -> Listing:
    """Import every plugin of a group.

    Duplicates and plugins that fail to import are in `broken`.
    """
    listing = Listing({}, [])
    for entry in entries(group):
        try:
            listing.working[entry.name] = load(group, entry.name)
        except UserError as error:
            listing.broken.append(Broken(entry.name, entry.reference, str(error)))
    return listing


@overload
def load(group: Literal["scenarios"], name: str) -> type[Scenario]: ...
@overload
def load(group: Literal["methods"], name: str) -> type[Method]: ...
@overload
def load(group: Literal["attacks"], name: str) -> type[Attack] | type[InferenceAttack]: ...
@overload
def load(group: Literal["metrics"], name: str) -> type[Metric]: ...
@overload
def load(group: Group, name: str) -> type[Plugin]: ...
def load(group: Group, name: str) -> type[Plugin]:
    """The plugin class of this name.

    Args:
        group: one of `BASES`.
        name: an entry point of `unlearnbench.<group>`, or `path/to/file.py:Class`.

    Raises:
        UserError: there is no such plugin, two packages claim the name, it fails to import (the error is chained), or it is not a
            plugin of this group.
    """
    if is_path(name):
        cls = _from_file(name)
        registered = cls.__dict__.get("name") or cls.__name__ if inspect.isclass(cls) else name
    else:
        cls, registered = _from_entry_point(group, name), name
    bases = BASES[group]
    if not (inspect.isclass(cls) and issubclass(cls, bases)):
        raise UserError(f"{name} is no {_singular(group)}: {cls!r} must be a subclass of {' or '.join(base.__name__ for base in bases)}")
    if inspect.isabstract(cls):
        raise UserError(f"{name} is abstract: it must define {', '.join(sorted(cls.__abstractmethods__))}")
    plugin: type[Plugin] = cls
    taken = [field.name for field in dataclasses.fields(plugin) if field.name in RESERVED]  # type: ignore[arg-type]
    if taken:
        raise UserError(f"{name} has a field {taken[0]!r}, which a suite uses itself ({', '.join(RESERVED)}); call it something else")
    own = plugin.__dict__.get("name", "")
    if own not in ("", registered):
        raise UserError(f"{name} is registered under this name but calls itself {own!r}; a plugin has one name")
    plugin.name = registered
    return plugin


@overload
def make(group: Literal["scenarios"], name: str, fields: Mapping[str, Any]) -> Scenario: ...
@overload
def make(group: Literal["methods"], name: str, fields: Mapping[str, Any]) -> Method: ...
@overload
def make(group: Literal["attacks"], name: str, fields: Mapping[str, Any]) -> Attack | InferenceAttack: ...
@overload
def make(group: Literal["metrics"], name: str, fields: Mapping[str, Any]) -> Metric: ...
@overload
def make(group: Group, name: str, fields: Mapping[str, Any]) -> Plugin: ...
def make(group: Group, name: str, fields: Mapping[str, Any]) -> Plugin:
    """A plugin with checked fields, the others at their defaults.

    Raises:
        UserError: as `load`, or a field is unknown, missing, of the wrong type or out of range
            ("npo: field 'lr' is -1, must be greater than 0").
    """
    cls = load(group, name)
    return construct(cls, plugin_name(cls), fields)


def groups_of(name: str) -> list[Group]:
    """The groups that have a plugin of this name, entry point or file.

    Raises:
        UserError: there is none.
    """
    if is_path(name):
        cls = _from_file(name)
        groups = [group for group, bases in BASES.items() if inspect.isclass(cls) and issubclass(cls, bases)]
        if not groups:
            raise UserError(f"{name} is no plugin: {cls!r} is a subclass of none of Scenario, Method, Attack, InferenceAttack, Metric")
        return groups
    known = {group: {entry.name for entry in entries(group)} for group in BASES}
    groups = [group for group, names in known.items() if name in names]
    if not groups:
        every = sorted(set().union(*known.values()))
        raise UserError(f"no plugin {name!r}{did_you_mean(name, every)}; known: {', '.join(every) or 'none'}; or path/to/file.py:Class")
    return groups


def plugin_name(plugin: type[Plugin] | Plugin) -> str:
    """The registry's name of a plugin; the class's name for one that no registry has loaded."""
    cls = plugin if isinstance(plugin, type) else type(plugin)
    # Not by attribute: a subclass would inherit its parent's name.
    return cls.__dict__.get("name") or cls.__name__


def is_path(name: str) -> bool:
    """Whether a name means a file (`path/to/file.py:Class`) rather than an entry point."""
    return ":" in name or name.endswith(".py")


def near(path: str, folder: Path) -> str:
    """A reference `file.py:Class` that was written relative to `folder`, relative to the current directory if it lies below it."""
    file, _, cls = path.rpartition(":")
    if not file:
        return path
    full = (folder / file).resolve()
    here = Path.cwd().resolve()
    return f"{full.relative_to(here).as_posix() if full.is_relative_to(here) else full.as_posix()}:{cls}"


def _points(group: Group) -> importlib.metadata.EntryPoints:
    return importlib.metadata.entry_points(group=f"unlearnbench.{group}")


def _singular(group: Group) -> str:
    return group.removesuffix("s")


def _from_entry_point(group: Group, name: str) -> Any:
    found = [point for point in _points(group) if point.name == name]
    if not found:
        raise UserError(_unknown(group, name))
    if len(found) > 1:
        claims = " and ".join(f"{p.value} of {p.dist.name if p.dist else 'unknown'}" for p in found)
        raise UserError(f"the {_singular(group)} {name!r} is claimed twice: by {claims}; uninstall or rename one")
    try:
        return found[0].load()
    except Exception as error:  # a plugin may raise anything while it is imported
        raise UserError(f"{name} ({found[0].value}) {_import_failure(error)}") from error


def _import_failure(error: Exception) -> str:
    """What went wrong and on which line, since the one line that a person sees has no traceback."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    place = "" if isinstance(error, SyntaxError) else f" ({Path(frame.filename).name}, line {frame.lineno})"
    return f"fails to import: {type(error).__name__}: {one_line(error)}{place}"


def _unknown(group: Group, name: str) -> str:
    known = sorted({entry.name for entry in entries(group)})
    elsewhere = [other for other in BASES if other != group and any(entry.name == name for entry in entries(other))]
    hint = f"; {name!r} is among the {elsewhere[0]}" if elsewhere else did_you_mean(name, known)
    install = "a new entry point is seen after the package is installed again"
    return f"no {_singular(group)} {name!r}{hint}; {group}: {', '.join(known) or 'none'}; or path/to/file.py:Class ({install})"


def _from_file(reference: str) -> Any:
    file, _, attribute = reference.rpartition(":")
    if not file or not attribute.isidentifier() or not file.endswith(".py"):
        raise UserError(f"{reference!r} is no plugin: a file is given as path/to/file.py:Class")
    path = Path(file).resolve()
    if not path.is_file():
        raise UserError(f"{reference!r}: there is no file {path}")
    module_name = f"unlearnbench_file_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    if module_name not in sys.modules:
        spec = importlib.util.spec_from_file_location(module_name, path)
        if spec is None or spec.loader is None:
            raise UserError(f"{reference!r}: {path} is no Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module  # before it runs: its dataclasses look their module up
        try:
            spec.loader.exec_module(module)
        except Exception as error:  # a plugin may raise anything while it is imported
            del sys.modules[module_name]
            raise UserError(f"{reference} {_import_failure(error)}") from error
    module = sys.modules[module_name]
    if not hasattr(module, attribute):
        own = [name for name, value in vars(module).items() if inspect.isclass(value) and value.__module__ == module_name]
        raise UserError(f"{reference!r}: {path.name} has no class {attribute!r}{did_you_mean(attribute, own)}; it has: {', '.join(own)}")
    return getattr(module, attribute)
