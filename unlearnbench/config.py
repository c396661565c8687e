"""A suite: what one YAML file asks to be run, with every plugin's fields checked and resolved.

Knows the shape of a suite and asks the registry about plugins; nothing is run and nothing is written. Every mistake ends in one line:
`file:line: place: what is wrong and what is allowed`.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

import pydantic
from pydantic import ConfigDict, Field

from unlearnbench import document, registry
from unlearnbench.api import Method, Plugin, Scenario, UserError
from unlearnbench.document import Document
from unlearnbench.fields import FieldError, did_you_mean, problem, resolved
from unlearnbench.registry import Group

_FROZEN = ConfigDict(frozen=True, extra="forbid")
_LABEL = r"^[A-Za-z0-9_][A-Za-z0-9_.+-]*(\[[^\[\]/\\]*(\[[^\[\]/\\]*\][^\[\]/\\]*)*\])?$"
"""A word, or a word with a grid's point in brackets: labels become file names."""

Count = Annotated[int, Field(strict=True)]
Label = Annotated[str, Field(pattern=_LABEL, max_length=160)]


class PluginSpec(pydantic.BaseModel):
    """A plugin as a suite asks for it."""

    model_config = _FROZEN

    name: str
    """The registry's name, or `path/to/file.py:Class`."""
    label: Label
    """What the tables call it; unique in its list."""
    fields: dict[str, Any] = {}
    """All its fields, defaults included, as JSON-able values; those of `grid` are left out."""
    grid: dict[str, list[Any]] = {}
    """For methods: fields with several values each."""

    def make(self, group: Group, **more: Any) -> Plugin:
        """The plugin itself.

        Args:
            group: the registry's group, such as "methods".
            more: further fields, such as a scenario's `request`.

        Raises:
            UserError: as `registry.make`; a grid must be expanded first.
        """
        if self.grid:
            raise UserError(f"{self.label} is a grid over {', '.join(self.grid)}; expand it first")
        return registry.make(group, self.name, {**self.fields, **more})


class Track(pydantic.BaseModel):
    """One scenario, what it is asked to forget, and who takes part."""

    model_config = _FROZEN

    scenario: PluginSpec
    """Its fields leave out `request`."""
    requests: Annotated[tuple[str, ...], Field(min_length=1)]
    methods: Annotated[tuple[PluginSpec, ...], Field(min_length=1)]
    attacks: tuple[PluginSpec, ...] = ()
    metrics: Annotated[tuple[PluginSpec, ...], Field(min_length=1)]

    def asked(self, request: str) -> Scenario:
        """The scenario with one of the track's requests."""
        return cast(Scenario, self.scenario.make("scenarios", request=request))


class Suite(pydantic.BaseModel):
    """One leaderboard: tracks that share training seeds and the size of the oracle pool."""

    model_config = _FROZEN

    suite: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$", max_length=80)]
    """Its name: small letters, digits and hyphens."""
    seeds: Annotated[tuple[Annotated[Count, Field(ge=0)], ...], Field(min_length=1)]
    """Training seeds of originals and methods."""
    oracles: Annotated[Count, Field(ge=2)] = 4
    """Size of the pool of models trained without the forget set."""
    budget: Annotated[Count, Field(ge=1)] = 8
    """Number of configurations that `tune` tries for each method."""
    tracks: Annotated[tuple[Track, ...], Field(min_length=1)]

    def document(self) -> dict[str, Any]:
        """The suite as YAML states it, with every default written out: what `load_suite` reads back as the same suite.

        Plugin files are given relative to the current directory.
        """
        plain = self.model_dump(mode="json")
        for track in plain["tracks"]:
            track["scenario"] = _item(track["scenario"])
            for key in ("methods", "attacks", "metrics"):
                track[key] = [_item(spec) for spec in track[key]]
        return plain


def load_suite(path: Path | str) -> Suite:
    """Read a suite from a YAML file; plugin files in it are found relative to the file.

    Raises:
        UserError: the file is missing, not UTF-8, not YAML or states something that is not allowed.
    """
    path = Path(path)
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text: {error.reason} at byte {error.start}") from error
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}; a suite is a YAML file such as configs/quickstart.yaml") from error
    return _resolve(document.parse(text, str(path)), path.parent)


def override(suite: Suite, assignments: Iterable[str]) -> Suite:
    """A suite with some values replaced.

    Args:
        suite: stays as it is.
        assignments: each `field=value`, the field as dots and positions ("oracles", "tracks.0.scenario.n_authors"), the value in YAML.

    Raises:
        UserError: the field does not exist or the value is not allowed.
    """
    for assignment in assignments:
        field, equals, text = assignment.partition("=")
        source = f"--set {assignment}"
        if not equals or not field:
            raise UserError(f"{source}: write field=value, such as oracles=4 or tracks.0.scenario.n_authors=40")
        value = document.parse(text or "''", source).data
        data: Any = suite.document()
        steps: list[str | int] = [int(part) if part.isdecimal() else part for part in field.split(".")]
        holder = data
        for step in steps[:-1]:
            holder = _inside(holder, step, source)
        if not isinstance(holder, dict):
            _inside(holder, steps[-1], source)
        holder[steps[-1]] = value
        suite = _resolve(Document(data, source, {(): 0}), Path())
    return suite


def add_methods(suite: Suite, names: Iterable[str]) -> Suite:
    """A suite with these methods added, at their defaults, to every track whose scenario they support.

    Raises:
        UserError: there is no such method, no track supports it, or a track has one of that label.
    """
    for name in names:
        spec = _spec("methods", registry.near(name, Path()), {}, {}, None)
        tracks, reasons = [], []
        for track in suite.tracks:
            reason = cast(Method, spec.make("methods")).supports(track.asked(track.requests[0]))
            if reason is None and spec.label in {point.label for method in track.methods for point in expand(method)}:
                raise UserError(f"--method {name}: the track {track.scenario.label} already has a method labelled {spec.label!r}")
            reasons += [f"{track.scenario.label}: {reason}"] if reason else []
            tracks.append(track.model_copy(update={"methods": (*track.methods, *([] if reason else [spec]))}))
        if len(reasons) == len(tracks):
            raise UserError(f"--method {name}: no track of {suite.suite} supports it ({'; '.join(reasons)})")
        suite = suite.model_copy(update={"tracks": tuple(tracks)})
    return suite


def expand(spec: PluginSpec) -> list[PluginSpec]:
    """One spec for each point of the grid, labelled `grad_diff[lr=1e-05]`; a spec without a grid is its own only point.

    >>> [p.label for p in expand(PluginSpec(name="npo", label="npo", grid={"lr": [1e-5, 1e-4], "beta": [0.1]}))]
    ['npo[lr=1e-05,beta=0.1]', 'npo[lr=0.0001,beta=0.1]']
    """
    if not spec.grid:
        return [spec]
    specs = []
    for point in _points(spec.grid):
        text = ",".join(f"{field}={value if isinstance(value, str) else json.dumps(value)}" for field, value in point.items())
        specs.append(PluginSpec(name=spec.name, label=f"{spec.label}[{text}]", fields={**spec.fields, **point}))
    return specs


def _points(grid: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def _item(spec: Mapping[str, Any]) -> dict[str, Any]:
    """A dumped spec in the form of an item of a suite."""
    return {"name": spec["name"], "label": spec["label"], **spec["fields"], **({"grid": spec["grid"]} if spec["grid"] else {})}


def _inside(holder: Any, step: str | int, source: str) -> Any:
    """What `holder` has at a key or position."""
    allowed = list(range(len(holder))) if isinstance(holder, list) else list(holder) if isinstance(holder, dict) else []
    if step not in allowed:
        raise UserError(f"{source}: there is no {step!r} here; there is: {', '.join(map(str, allowed)) or 'nothing'}")
    return holder[step]


def _resolve(doc: Document, folder: Path) -> Suite:
    """The suite that plain data states: plugins first, so that their mistakes are named by their own fields, then the frame."""
    if not isinstance(doc.data, dict):
        raise UserError(f"{doc.where(())}: a suite is a mapping with {', '.join(Suite.model_fields)}, this is {doc.data!r}")
    data = dict(doc.data)
    if isinstance(data.get("tracks"), list):
        data["tracks"] = [_track(doc, track, ("tracks", i), folder) for i, track in enumerate(data["tracks"])]
    suite = _checked(Suite, data, doc, ())
    _unique(((seed, ("seeds", i)) for i, seed in enumerate(suite.seeds)), doc, "seed")
    places = ((f"{t.scenario.label} {request}", ("tracks", i)) for i, t in enumerate(suite.tracks) for request in t.requests)
    _unique(places, doc, "scenario and request")
    return suite


def _track(doc: Document, data: Any, path: document.Path, folder: Path) -> Any:
    """A track, if the data has the form of one; otherwise the data, for `_resolve` to refuse."""
    if not isinstance(data, dict):
        return data
    data = dict(data)
    for key, group in (("scenario", "scenarios"), ("methods", "methods"), ("attacks", "attacks"), ("metrics", "metrics")):
        items = [data[key]] if key == "scenario" and key in data else data.get(key)
        if not isinstance(items, list):
            continue
        specs = []
        for i, item in enumerate(items):
            at = (*path, key) if key == "scenario" else (*path, key, i)
            specs.append(_parsed(doc, item, at, cast(Group, group), folder))
        data[key] = specs[0] if key == "scenario" else specs
    track = _checked(Track, data, doc, path)
    # A membership attack's column is called by its label, as a metric's is.
    for keys in (("methods",), ("attacks", "metrics")):
        made = [(spec, (*path, key, i)) for key in keys for i, spec in enumerate(getattr(track, key))]
        _unique(((point.label, at) for spec, at in made for point in expand(spec)), doc, "label")
    _unique(((request, (*path, "requests", i)) for i, request in enumerate(track.requests)), doc, "request")
    known = [request.name for request in registry.load("scenarios", track.scenario.name).requests()]
    for i, request in enumerate(track.requests):
        if request not in known:
            at, hint = (*path, "requests", i), did_you_mean(request, known)
            raise UserError(f"{doc.where(at)}: {_dots(at)} is {request!r}{hint}; {track.scenario.name} has the requests {', '.join(known)}")
    return track


def _parsed(doc: Document, item: Any, path: document.Path, group: Group, folder: Path) -> PluginSpec:
    """The spec of one item, which is a bare name or a mapping."""
    if isinstance(item, str):
        item = {"name": item}
    if not isinstance(item, dict) or not isinstance(item.get("name"), str):
        raise UserError(f"{doc.where(path)}: {_dots(path)} is {item!r}; it must be a name or a mapping with a name, such as {{name: ...}}")
    fields = {key: value for key, value in item.items() if key not in registry.RESERVED}
    name = registry.near(item["name"], folder)
    try:
        if "grid" in item:
            _check_grid(item["grid"], fields, group)
        return _spec(group, name, fields, item.get("grid", {}), item.get("label"))
    except FieldError as error:
        at = next((at for at in ((*path, error.field), (*path, "grid", error.field)) if at in doc.lines), path)
        raise UserError(f"{doc.where(at)}: {_dots(path)}: {error}") from error
    except UserError as error:
        raise UserError(f"{doc.where(path)}: {_dots(path)}: {error}") from error
    except pydantic.ValidationError as error:
        rule = "a label is a word of letters, digits, '_', '.', '+' and '-'"
        raise UserError(f"{doc.where((*path, 'label'))}: {_dots(path)}: label is {item.get('label')!r}; {rule}") from error


def _check_grid(grid: Any, fields: Mapping[str, Any], group: Group) -> None:
    """Refuse a grid that is no mapping of fields to lists of values, or not on a method."""
    if group != "methods":
        raise UserError(f"only methods have a grid; list each {group.removesuffix('s')} with a label of its own")
    if not isinstance(grid, dict) or not grid:
        raise UserError(f"grid is {grid!r}; it must be a mapping of fields to lists of values")
    for field, values in grid.items():
        if not isinstance(values, list) or not values:
            raise UserError(f"grid.{field} is {values!r}; it must be a list of at least one value")
        if field in fields:
            raise UserError(f"field {field!r} is given both a value and a grid; give one")


def _spec(group: Group, name: str, given: Mapping[str, Any], grid: Mapping[str, list[Any]], label: str | None) -> PluginSpec:
    """The spec of a plugin whose fields, at every point of its grid, have been checked."""
    cls = registry.load(group, name)
    fixed = dict(given)
    if issubclass(cls, Scenario):
        if "request" in fixed:
            raise UserError(f"{registry.plugin_name(cls)}: field 'request' is set by the track's list of requests; leave it out here")
        fixed["request"] = cls.requests()[0].name
    every = [resolved(registry.make(group, name, {**fixed, **point})) for point in _points(grid)]
    hidden = {*grid, "request"} if group == "scenarios" else {*grid}
    seen = {field: list({json.dumps(point[field]): point[field] for point in every}.values()) for field in grid}
    for field, values in seen.items():
        if len(values) < len(grid[field]):
            raise UserError(f"grid.{field} is {grid[field]!r}; each value may be given once")
    fields = {field: value for field, value in every[0].items() if field not in hidden}
    return PluginSpec(name=name, label=registry.plugin_name(cls) if label is None else label, fields=fields, grid=seen)


Model = TypeVar("Model", bound=pydantic.BaseModel)


def _checked(model: type[Model], data: Mapping[str, Any], doc: Document, path: document.Path) -> Model:
    """`data` as a model, its first mistake named by file, line and place."""
    try:
        return model.model_validate(data)
    except pydantic.ValidationError as error:
        errors = error.errors(include_url=False)
        at = (*path, *errors[0]["loc"])
        inside = f"{_dots(path)}: " if path else ""
        raise UserError(f"{doc.where(at)}: {inside}{problem(errors, model.model_fields)}") from error


def _unique(places: Iterable[tuple[Any, document.Path]], doc: Document, what: str) -> None:
    """Refuse a value that is given twice, at its second place."""
    seen = []
    for value, path in places:
        if value in seen:
            raise UserError(f"{doc.where(path)}: {_dots(path)}: the {what} {value!r} is given more than once; once is allowed")
        seen.append(value)


def _dots(path: document.Path) -> str:
    return ".".join(map(str, path))
