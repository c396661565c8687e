"""The registry: names, files, near misses, duplicates, broken plugins, and the checking of fields."""

from __future__ import annotations

import importlib.metadata
import random
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from unlearnbench import fields, registry
from unlearnbench.api import UserError

PLUGINS = Path(__file__).parent / "fixtures" / "small_plugins.py"
DESCEND = f"{PLUGINS}:Descend"


class FakePoint(SimpleNamespace):
    """An entry point of a package that is not installed."""

    def load(self) -> Any:
        file, _, cls = self.value.rpartition(":")
        return importlib.metadata.EntryPoint(self.name, f"{file}:{cls}", self.group).load()


@pytest.fixture
def points(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[FakePoint]:
    """The entry points that the registry sees; `fake_plugins` is a copy of the fixture file that they can name."""
    found: list[FakePoint] = []
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda *, group: [point for point in found if point.group == group])
    (tmp_path / "fake_plugins.py").write_text(PLUGINS.read_text())
    (tmp_path / "broken_plugin.py").write_text("import math\nprint(math.nothing)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("fake_plugins", "broken_plugin"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return found


def point(name: str, value: str, group: str = "methods", package: str = "pack") -> FakePoint:
    return FakePoint(name=name, value=value, group=f"unlearnbench.{group}", dist=SimpleNamespace(name=package))


def test_entry_points_are_sorted_loaded_and_named(points: list[FakePoint]) -> None:
    points += [
        point("talk", "fake_plugins:Talk"),
        point("descend", "fake_plugins:Descend"),
        point("share", "fake_plugins:Share", "metrics"),
    ]
    assert [(e.name, e.reference, e.distribution) for e in registry.entries("methods")] == [
        ("descend", "fake_plugins:Descend", "pack"),
        ("talk", "fake_plugins:Talk", "pack"),
    ]
    assert "fake_plugins" not in sys.modules, "a listing must import nothing"
    cls = registry.load("methods", "descend")
    assert (cls.__name__, cls.name, registry.plugin_name(cls), registry.plugin_name(cls())) == ("Descend", "descend", "descend", "descend")
    assert registry.load("methods", "descend") is cls
    assert registry.groups_of("share") == ["metrics"]


def test_a_subclass_does_not_answer_to_its_parents_name(points: list[FakePoint]) -> None:
    points += [point("descend", "fake_plugins:Descend"), point("steeper", "fake_plugins:Steeper")]
    registry.load("methods", "descend")
    assert registry.plugin_name(registry.load("methods", "steeper")) == "steeper"


def test_an_unknown_name_is_answered_with_near_misses_and_all_names(points: list[FakePoint]) -> None:
    points += [
        point("grad_diff", "fake_plugins:Descend"),
        point("npo", "fake_plugins:Talk"),
        point("share", "fake_plugins:Share", "metrics"),
    ]
    with pytest.raises(UserError, match=r"no method 'grad_dif' \(did you mean 'grad_diff'\?\); methods: grad_diff, npo; .*installed again"):
        registry.load("methods", "grad_dif")
    with pytest.raises(UserError, match="'share' is among the metrics"):
        registry.load("methods", "share")
    with pytest.raises(UserError, match=r"no plugin 'shar' \(did you mean 'share'\?\)"):
        registry.groups_of("shar")


def test_a_name_claimed_twice_is_refused_when_asked_for_and_shown_in_the_listing(points: list[FakePoint]) -> None:
    points += [point("npo", "fake_plugins:Talk"), point("npo", "fake_plugins:Descend", package="other"), point("fine", "fake_plugins:Talk")]
    with pytest.raises(UserError, match="claimed twice: by fake_plugins:Talk of pack and fake_plugins:Descend of other"):
        registry.load("methods", "npo")
    listing = registry.discover("methods")
    assert list(listing.working) == ["fine"]
    assert [broken.reference for broken in listing.broken] == ["fake_plugins:Descend", "fake_plugins:Talk"]


def test_a_plugin_that_fails_to_import_is_listed_as_broken_and_raises_when_asked_for(points: list[FakePoint]) -> None:
    points += [point("bad", "broken_plugin:X"), point("gone", "fake_plugins:Nothing"), point("talk", "fake_plugins:Talk")]
    listing = registry.discover("methods")
    assert list(listing.working) == ["talk"]
    assert [broken.name for broken in listing.broken] == ["bad", "gone"]
    assert "AttributeError: module 'math' has no attribute 'nothing' (broken_plugin.py, line 2)" in listing.broken[0].error
    with pytest.raises(UserError, match=r"bad .broken_plugin:X. fails to import") as caught:
        registry.load("methods", "bad")
    assert isinstance(caught.value.__cause__, AttributeError)


def test_a_plugin_of_another_group_is_refused(points: list[FakePoint]) -> None:
    points.append(point("share", "fake_plugins:Share"))
    with pytest.raises(UserError, match=r"share is no method: .* must be a subclass of Method"):
        registry.load("methods", "share")
    assert registry.load("attacks", f"{PLUGINS}:Guess").__name__ == "Guess"
    with pytest.raises(UserError, match="must be a subclass of Attack or InferenceAttack"):
        registry.load("attacks", DESCEND)


def test_a_plugin_has_one_name(points: list[FakePoint]) -> None:
    points += [point("talk", "fake_plugins:Talk"), point("chat", "fake_plugins:Talk")]
    registry.load("methods", "talk")
    with pytest.raises(UserError, match="chat is registered under this name but calls itself 'talk'"):
        registry.load("methods", "chat")


def test_a_file_is_loaded_once_under_a_name_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = tmp_path / "a" / "mine.py", tmp_path / "b" / "mine.py"
    for path in (first, second):
        path.parent.mkdir()
        path.write_text(PLUGINS.read_text())
    cls = registry.load("methods", f"{first}:Talk")
    assert registry.plugin_name(cls) == "Talk"
    assert sys.modules[cls.__module__].Talk is cls, "pickling finds a class by its module"
    assert registry.load("methods", f"{second}:Talk") is not cls
    monkeypatch.chdir(first.parent)
    assert registry.load("methods", "mine.py:Talk") is cls
    assert registry.groups_of("mine.py:Talk") == ["methods"]


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("absent.py:X", "there is no file"),
        ("mine.py", "a file is given as path/to/file.py:Class"),
        ("mine:Talk", "a file is given as path/to/file.py:Class"),
        ("mine.py:Tlak", r"has no class 'Tlak' \(did you mean 'Talk'\?\); it has: Colour, Descend"),
        ("mine.py:Colour", "is no method: .*Colour"),
        ("mine.py:PLUGINS", "has no class"),
        ("mine.py:Unfinished", "is abstract: it must define unlearn"),
        ("mine.py:Labelled", "has a field 'label', which a suite uses itself"),
        ("syntax.py:X", "fails to import: SyntaxError: .*line 2"),
        ("raises.py:X", "fails to import: ZeroDivisionError: division by zero .raises.py, line 3"),
    ],
)
def test_a_bad_reference_to_a_file_is_one_line(reference: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(PLUGINS.read_text())
    (tmp_path / "syntax.py").write_text("x = 1\nclass X(:\n")
    (tmp_path / "raises.py").write_text("def f():\n    pass\n1 / 0\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        registry.load("methods", reference)
    assert "\n" not in str(caught.value)


def test_fields_are_checked_filled_and_given_back() -> None:
    plugin = registry.make("methods", DESCEND, {"steps": [3, 4], "colour": "blue", "lr": 2})
    assert plugin.hyperparameters() == {"lr": 2.0, "steps": (3, 4), "mode": "a", "depth": None, "noisy": False, "colour": "blue"}
    assert isinstance(plugin.lr, float)  # type: ignore[attr-defined]
    plain = fields.resolved(plugin)
    assert plain == {"lr": 2.0, "steps": [3, 4], "mode": "a", "depth": None, "noisy": False, "colour": "blue"}
    assert registry.make("methods", DESCEND, plain) == plugin


def test_a_default_is_made_the_fields_own_type() -> None:
    # lr's default is the integer 1: a key must not tell 1 from 1.0
    assert repr(fields.resolved(registry.make("methods", DESCEND, {}))["lr"]) == "1.0"


def test_floats_survive_checking_bit_for_bit() -> None:
    generator = random.Random(0)
    for value in (generator.random() * 10.0 ** generator.randint(-20, 0) for _ in range(300)):
        assert registry.make("methods", DESCEND, {"lr": value}).hyperparameters()["lr"] == value


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"lr": -1}, "Descend: field 'lr' is -1, must be greater than 0"),
        ({"lr": 11}, "Descend: field 'lr' is 11, must be less than or equal to 10"),
        ({"lr": True}, "Descend: field 'lr' is true, must be a valid number"),
        ({"lr": "1"}, "Descend: field 'lr' is \"1\", must be a valid number"),
        ({"lr": None}, "Descend: field 'lr' is null, must be a valid number"),
        ({"lr": float("inf")}, "Descend: field 'lr' is Infinity, must be a finite number"),
        ({"lr": float("nan")}, "Descend: field 'lr' is NaN, must be a finite number"),
        ({"steps": 3}, "Descend: field 'steps' is 3, must be a list"),
        ({"steps": [1, "x"]}, "Descend: field 'steps[1]' is \"x\", must be a valid integer"),
        ({"steps": [1.5]}, "Descend: field 'steps[0]' is 1.5, must be a valid integer"),
        ({"mode": "c"}, "Descend: field 'mode' is \"c\", must be 'a' or 'b'"),
        ({"colour": "green"}, "Descend: field 'colour' is \"green\", must be 'red' or 'blue'"),
        ({"depth": True}, "Descend: field 'depth' is true, must be a valid integer"),
        ({"noisy": 1}, "Descend: field 'noisy' is 1, must be a valid boolean"),
        (
            {"lrr": 1},
            "Descend: there is no field 'lrr' (did you mean 'lr'?); the fields are: lr, steps, mode, depth, noisy, colour",
        ),
        ({"checked": 1}, "Descend: there is no field 'checked'; the fields are: lr, steps, mode, depth, noisy, colour"),
    ],
)
def test_a_wrong_field_is_named_with_its_value_and_what_is_allowed(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        registry.make("methods", DESCEND, given)
    assert str(caught.value) == message


def test_a_missing_field_and_a_refused_combination_name_the_plugin() -> None:
    with pytest.raises(UserError, match=r"^Steeper: field 'floor' is missing; it has no default$"):
        registry.make("methods", f"{PLUGINS}:Steeper", {})
    with pytest.raises(UserError, match=r"^Steeper: floor 2.0 is above lr 1.0$"):
        registry.make("methods", f"{PLUGINS}:Steeper", {"floor": 2})
    with pytest.raises(UserError, match="not plain values"):
        registry.make("methods", DESCEND, {"lr": object()})


def test_an_annotation_for_type_checkers_alone_is_explained() -> None:
    with pytest.raises(UserError, match=r"Unresolved: the annotation of field 'thing' .*OnlyForTypeCheckers.*outside TYPE_CHECKING"):
        registry.make("methods", f"{PLUGINS}:Unresolved", {})


def test_a_description_has_types_defaults_bounds_and_meaning() -> None:
    found = {field.name: field for field in fields.describe(registry.load("methods", f"{PLUGINS}:Steeper"))}
    assert found["lr"] == ("lr", "float", "1", "> 0, <= 10", "How far each step goes.")
    assert found["floor"] == ("floor", "float", "required", "", "")
    assert (found["steps"].type, found["steps"].default) == ("tuple[int, ...]", "[1, 2]")
    assert (found["depth"].type, found["depth"].default) == ("int | None", "null")
    assert (found["mode"].type, found["colour"].default) == ("'a' | 'b'", '"red"')
