"""YAML text as plain data, with the line of every value.

Knows YAML and nothing of suites. Safe by construction: only scalars, lists and mappings are made. Scalars follow YAML 1.2, so that
`1e-5` is a number, `no` a word and `010` no octal; anchors, aliases and merge keys are refused, since a suite has no inheritance.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import yaml

from unlearnbench.api import UserError

Path = tuple[str | int, ...]
"""Where a value is: keys and positions from the top."""


class Document(NamedTuple):
    """Plain data, the name of where it came from, and the line of each value."""

    data: Any
    source: str
    lines: dict[Path, int]
    """Counted from 1; 0 where the source has no lines, such as an option of the command line."""

    def where(self, path: Path) -> str:
        """`source:line` of a value, or of the innermost thing around it that exists."""
        while path not in self.lines:
            path = path[:-1]
        return f"{self.source}:{self.lines[path]}" if self.lines[path] else self.source


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the scalars of YAML 1.2 and without aliases."""

    yaml_implicit_resolvers: dict[str, Any] = {}

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise yaml.composer.ComposerError(None, None, "anchors and aliases are not allowed: write the value out", event.start_mark)
        return super().compose_node(parent, index)


class _Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper with the same scalars, so that a word that looks like one is quoted, and without aliases."""

    yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", r"[-+]?(0|[1-9][0-9]*)", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+.0123456789"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first))


def parse(text: str, source: str) -> Document:
    r"""Read one YAML document.

    Args:
        text: the document.
        source: what to call it in errors, such as its file's name.

    Raises:
        UserError: it is empty, not YAML, has a key twice, or uses what a suite may not.

    >>> parse("seeds: [0, 1]\nlr: 1e-5", "suite.yaml").data
    {'seeds': [0, 1], 'lr': 1e-05}
    """
    lines: dict[Path, int] = {}
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            raise UserError(f"{source}:1: the file is empty; a suite is a mapping with suite, seeds and tracks")
        return Document(_plain(loader, node, (), node.start_mark.line + 1, lines, source), source, lines)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise UserError(f"{source}:{mark.line + 1 if mark else 1}: not YAML: {' '.join(str(error.problem).split())}") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{source}:1: not YAML: {' '.join(str(error).split())}") from error


def dump(data: Any) -> str:
    r"""Plain data as YAML that `parse` reads back as the same data.

    >>> dump({"seeds": [0, 1], "lr": 1e-05, "word": "1e-5", "no": "no"})
    "seeds:\n- 0\n- 1\nlr: 1.0e-05\nword: '1e-5'\nno: no\n"
    """
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def _plain(loader: _Loader, node: yaml.Node, path: Path, line: int, lines: dict[Path, int], source: str) -> Any:
    """The value of a node; notes its line and those inside it."""
    lines[path] = line
    if isinstance(node, yaml.SequenceNode) and node.tag.endswith(":seq"):
        return [_plain(loader, item, (*path, i), item.start_mark.line + 1, lines, source) for i, item in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode) and node.tag.endswith(":map"):
        mapping: dict[str, Any] = {}
        for key_node, value in node.value:
            at = key_node.start_mark.line + 1
            key = loader.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise UserError(f"{source}:{at}: the key {key!r} is no word; keys are words, quoted where they look like numbers")
            if key in mapping:
                raise UserError(f"{source}:{at}: the key {key!r} is given twice (first on line {lines[(*path, key)]}); once is allowed")
            mapping[key] = _plain(loader, value, (*path, key), at, lines, source)
        return mapping
    if not isinstance(node, yaml.ScalarNode) or node.tag.rpartition(":")[2] not in ("str", "int", "float", "bool", "null"):
        raise UserError(f"{source}:{line}: the tag {node.tag!r} is not allowed; only lists, mappings, words and numbers are")
    try:
        return loader.construct_object(node)
    except ValueError as error:  # a tag that the text does not fit, such as `!!int x`
        raise UserError(f"{source}:{line}: {node.value!r} does not fit its tag {node.tag!r}; leave the tag out") from error
