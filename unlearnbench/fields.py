"""The fields of a plugin: from plain values (YAML, JSON) to a checked instance, and back, and as text for people.

Knows pydantic and dataclasses, and nothing of names, files or entry points. Values are checked as strict JSON: a list may stand for a
tuple and a string for an enum, an integer for a float, but a boolean is no integer and a string is no number; infinities are refused.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import functools
import inspect
import itertools
import json
import re
import sys
import textwrap
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import pydantic
from pydantic_core import ErrorDetails

from unlearnbench.api import Plugin, UserError

P = TypeVar("P", bound=Plugin)


class FieldError(UserError):
    """A field of a plugin is unknown, missing, of the wrong type or out of range.

    Attributes:
        plugin: the plugin's name.
        field: the field at fault.
        problem: what is wrong with it and what is allowed, without the plugin's name.
    """

    def __init__(self, plugin: str, field: str, problem: str) -> None:
        super().__init__(plugin, field, problem)
        self.plugin, self.field, self.problem = plugin, field, problem

    def __str__(self) -> str:
        return f"{self.plugin}: {self.problem}"


class FieldText(NamedTuple):
    """One field as `describe` shows it."""

    name: str
    type: str
    default: str
    """The default as JSON, or "required"."""
    bounds: str
    """Such as "> 0, <= 1"; empty where the type alone decides."""
    doc: str


def construct(cls: type[P], name: str, values: Mapping[str, Any]) -> P:
    """A plugin with these field values, the others at their defaults.

    Args:
        cls: the plugin's class.
        name: what to call it in errors.
        values: JSON-able values by field.

    Raises:
        FieldError: a field is unknown, missing, of the wrong type or out of range.
        UserError: the class refuses the combination.
    """
    adapter = _adapter(cls)
    try:
        text = json.dumps(dict(values))
    except (TypeError, ValueError) as error:
        raise UserError(f"{name}: the fields {values!r} are not plain values: {one_line(error)}") from error
    try:
        checked = adapter.validate_json(text)
    except pydantic.ValidationError as error:
        errors = error.errors(include_url=False)
        field = str(errors[0]["loc"][0]) if errors[0]["loc"] else ""
        raise FieldError(name, field, problem(errors, _siblings(adapter, errors[0]["loc"]))) from error
    try:
        return cls(**{field: getattr(checked, field) for field in _hints(cls)})
    except (UserError, ValueError) as error:
        raise UserError(f"{name}: {one_line(error)}") from error


def resolved(plugin: Plugin) -> dict[str, Any]:
    """All fields of a plugin as JSON-able values, in order of declaration: `construct` gives the same plugin back."""
    return {
        field: pydantic.TypeAdapter(hint).dump_python(getattr(plugin, field), mode="json") for field, hint in _hints(type(plugin)).items()
    }


def describe(cls: type[Plugin]) -> list[FieldText]:
    """The fields of a plugin's class, in order of declaration.

    Raises:
        UserError: an annotation is one that pydantic cannot check.
    """
    schema = _adapter(cls).json_schema()
    docs = _docs(cls)
    texts = []
    for field, hint in _hints(cls).items():
        shape = schema["properties"][field]
        default = "required" if field in schema.get("required", ()) else json.dumps(shape.get("default"))
        texts.append(FieldText(field, _type_text(hint), default, ", ".join(_bounds(shape)), docs.get(field, "")))
    return texts


def problem(errors: Sequence[ErrorDetails], known: Iterable[str]) -> str:
    """The first of pydantic's errors in one line: the field, its value and what is allowed.

    Args:
        errors: what `ValidationError.errors` gives; of a union, all alternatives are named.
        known: the fields that exist, for the hint.
    """
    first = errors[0]
    field = str(first["loc"][0]) if first["loc"] else "?"
    inside = [str(part) for part in first["loc"][1:] if str(part).isidentifier()]
    if len(first["loc"]) > 2 and inside:
        # Of a field that is itself a set of fields ("models.scratch.width"); a union of plain types adds one word alone.
        field = ".".join([field, *inside])
    known = list(known)
    if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"there is no field {field!r}{did_you_mean(field.split('.')[-1], known)}; the fields are: {', '.join(known) or 'none'}"
    if first["type"] in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return f"field {field!r} is missing; it has no default"
    place = field + "".join(f"[{part}]" for part in first["loc"][1:] if isinstance(part, int))
    value = shorten(first["input"])  # compared as text: NaN is not equal to itself
    alternatives = dict.fromkeys(_allowed(e) for e in errors if e["loc"][:1] == first["loc"][:1] and shorten(e["input"]) == value)
    return f"field {place!r} is {value}, {' or '.join(alternatives)}"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A near-miss hint such as " (did you mean 'npo'?)", or nothing.

    >>> did_you_mean("grad_dif", ["npo", "grad_diff"])
    " (did you mean 'grad_diff'?)"
    """
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""


def one_line(error: BaseException) -> str:
    """An exception's message with its line breaks folded."""
    return " ".join(str(error).split()) or type(error).__name__


def shorten(value: Any) -> str:
    """A value as it was written, cut where it is long."""
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= 80 else text[:77] + "..."


def _allowed(error: ErrorDetails) -> str:
    """Pydantic's message as what must hold: "must be greater than 0"."""
    message = error["msg"].removeprefix("Value error, ")
    message = re.sub(r"^[A-Z]\w* should ", "must ", message)
    return re.sub(r" after validation, not \d+$", "", message).replace("valid array", "list").replace("valid tuple", "list")


@functools.cache
def _hints(cls: type[Plugin]) -> dict[str, Any]:
    """The evaluated annotation of each field.

    Only fields are evaluated: annotations of class attributes may name what is imported for type checkers alone.
    """
    hints = {}
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        if not field.init:
            continue
        owner = next(base for base in cls.__mro__ if field.name in inspect.get_annotations(base))
        annotation = types.SimpleNamespace(__annotations__={field.name: inspect.get_annotations(owner)[field.name]})
        try:
            found = typing.get_type_hints(annotation, vars(sys.modules[owner.__module__]), dict(vars(owner)), include_extras=True)
        except (NameError, TypeError, SyntaxError) as error:
            problem = f"the annotation of field {field.name!r} cannot be evaluated at run time ({one_line(error)})"
            raise UserError(f"{cls.__name__}: {problem}; import its names outside TYPE_CHECKING") from error
        hints[field.name] = found[field.name]
    return hints


@functools.cache
def _adapter(cls: type[Plugin]) -> pydantic.TypeAdapter[Any]:
    """Checks the fields of `cls`: a dataclass of the same fields, because pydantic's settings must not touch the plugin's class."""
    members = []
    declared = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for name, hint in _hints(cls).items():
        field = declared[name]
        members.append((name, hint, dataclasses.field(default=field.default, default_factory=field.default_factory)))
    settings = pydantic.ConfigDict(strict=True, extra="forbid", validate_default=True, allow_inf_nan=False)
    twin = dataclasses.make_dataclass(cls.__name__, members, kw_only=True, namespace={"__pydantic_config__": settings})
    try:
        return pydantic.TypeAdapter(twin)
    except pydantic.PydanticUserError as error:
        raise UserError(f"{cls.__name__}: a field has a type that cannot be read from YAML: {one_line(error)}") from error


def _siblings(adapter: pydantic.TypeAdapter[Any], place: Sequence[int | str]) -> list[str]:
    """The fields there are where an error was found: the plugin's, or those of a field that is a set of fields itself."""
    schema = adapter.json_schema()
    here = schema
    for part in place[:-1]:
        shape = here.get("properties", {}).get(part, {})
        reference = here.get("discriminator", {}).get("mapping", {}).get(part) or shape.get("$ref")
        here = schema["$defs"][reference.rsplit("/", 1)[1]] if reference else shape
    return list(here.get("properties", {}))


def _type_text(hint: Any) -> str:
    """An annotation as a person writes it, bounds left out."""
    if typing.get_origin(hint) is typing.Annotated:
        return _type_text(typing.get_args(hint)[0])
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return " | ".join(map(repr, arguments))
    if origin in (typing.Union, types.UnionType):
        return " | ".join(map(_type_text, arguments))
    if origin is not None and arguments:
        return f"{_type_text(origin)}[{', '.join('...' if a is Ellipsis else _type_text(a) for a in arguments)}]"
    return "None" if hint is type(None) else getattr(hint, "__name__", str(hint))


_SIGNS = {"exclusiveMinimum": "> {}", "minimum": ">= {}", "exclusiveMaximum": "< {}", "maximum": "<= {}", "multipleOf": "multiple of {}"}
_SIGNS |= {"minItems": "at least {} items", "maxItems": "at most {} items", "pattern": "matches {}"}


def _bounds(shape: Mapping[str, Any]) -> list[str]:
    """The bounds in a JSON schema, alternatives and items included."""
    texts = [sign.format(shape[key]) for key, sign in _SIGNS.items() if key in shape and "prefixItems" not in shape]
    items = [shape["items"]] if isinstance(shape.get("items"), dict) else []
    for inner in [*shape.get("anyOf", ()), *items]:
        texts += [text for text in _bounds(inner) if text not in texts]
    return texts


def _docs(cls: type[Plugin]) -> dict[str, str]:
    """The strings written below fields, own ones winning over inherited ones; none where the source is not at hand."""
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not issubclass(base, Plugin):
            continue
        try:
            body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        except (OSError, TypeError):
            continue
        statements = body.body if isinstance(body, ast.ClassDef) else []
        for statement, below in itertools.pairwise(statements):
            match statement, below:
                case ast.AnnAssign(target=ast.Name(id=field)), ast.Expr(value=ast.Constant(value=str(text))):
                    docs[field] = " ".join(text.split())
    return docs
