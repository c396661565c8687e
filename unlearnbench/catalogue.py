"""Plugins as people read them: the lists and descriptions of the command line.

Knows the facts that each kind of plugin states, and draws tables; nothing is run.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from unlearnbench import registry
from unlearnbench.api import Plugin, Scenario
from unlearnbench.fields import describe
from unlearnbench.registry import Group

FACTS: dict[Group, tuple[str, ...]] = {
    "scenarios": ("modality", "task", "splits"),
    "methods": ("paper", "modality", "row", "native", "edits_weights"),
    "attacks": ("paper", "modality", "level", "needs"),
    "metrics": ("paper", "modality", "level", "direction", "bounds", "side", "headline", "curve"),
}
"""The class attributes that say what a plugin is."""


def facts(group: Group, cls: type[Plugin]) -> dict[str, Any]:
    """The facts that a class states, as JSON-able values; those that depend on its fields are left out."""
    found = {fact: getattr(cls, fact) for fact in FACTS[group] if hasattr(cls, fact) and not isinstance(getattr(cls, fact), property)}
    plain = {fact: sorted(value) if isinstance(value, frozenset) else value for fact, value in found.items()}
    return {fact: list(value) if isinstance(value, tuple) else value for fact, value in plain.items()}


def summary(cls: type[Plugin]) -> str:
    """The first line of the class's own docstring."""
    lines = inspect.cleandoc(cls.__dict__.get("__doc__") or "").splitlines()
    # dataclasses write a signature where a class has no docstring
    return lines[0] if lines and not lines[0].startswith(f"{cls.__name__}(") else ""


def listing(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """All plugins of these groups, the broken ones with their error."""
    rows: list[dict[str, Any]] = []
    for group in groups:
        found = registry.discover(group)
        for entry in registry.entries(group):
            row: dict[str, Any] = {"group": group, "name": entry.name, "reference": entry.reference, "distribution": entry.distribution}
            cls = found.working.get(entry.name)
            if cls is not None:
                rows.append({**row, "summary": summary(cls), **facts(group, cls)})
            else:
                error = next(b.error for b in found.broken if (b.name, b.reference) == (entry.name, entry.reference))
                rows.append({**row, "error": error})
    return rows


def print_listing(console: Console, groups: Sequence[Group]) -> None:
    """A table for each group."""
    rows = listing(groups)
    for group in groups:
        table = Table(title=group, title_justify="left", title_style="bold", box=None, pad_edge=False)
        for column in ("name", "level" if group in ("attacks", "metrics") else "modality", "what it is", "from"):
            table.add_column(column, no_wrap=column == "name")
        for row in rows:
            if row["group"] == group:
                fact = row.get("level") or row.get("modality") or ""
                text = f"[red]broken: {escape(row['error'])}[/red]" if "error" in row else escape(row["summary"])
                table.add_row(escape(row["name"]), escape(_words(fact)), text, escape(row["distribution"]))
        console.print(table if table.row_count else f"[bold]{group}[/bold]\n(none)")
        console.print()


def print_description(console: Console, group: Group, name: str) -> None:
    """One plugin: its docstring, its facts, its module's source note, and a table of its fields."""
    cls = registry.load(group, name)
    where = name if registry.is_path(name) else f"{cls.__module__}:{cls.__qualname__}"
    console.print(f"[bold]{escape(registry.plugin_name(cls))}[/bold] ({group.removesuffix('s')}, {escape(where)})\n")
    doc = inspect.cleandoc(cls.__dict__.get("__doc__") or "") if summary(cls) else "(no description)"
    module = inspect.getmodule(cls)
    for text in (doc, inspect.cleandoc(module.__doc__ or "") if module else ""):
        if text:
            console.print(text, markup=False, highlight=False)
            console.print()
    for fact, value in facts(group, cls).items():
        console.print(f"{fact}: {_words(value) or '-'}", markup=False, highlight=False)
    if issubclass(cls, Scenario):
        for request in cls.requests():
            signal = "" if request.signal else " (carries no signal: shown, not scored)"
            console.print(f"request {request.name}: {request.description}{signal}", markup=False, highlight=False)
    fields = [field for field in describe(cls) if not (issubclass(cls, Scenario) and field.name == "request")]
    table = Table(title="fields", title_justify="left", title_style="bold", box=None, pad_edge=False)
    for column in ("name", "type", "default", "allowed", "meaning"):
        table.add_column(column, no_wrap=column == "name")
    for field in fields:
        table.add_row(*(escape(text) for text in field))
    console.print()
    console.print(table if fields else "no fields")


def _words(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
