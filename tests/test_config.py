"""Suites: what a YAML file states, and every mistake in one line that names file, line, place, value and what is allowed."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import yaml

from unlearnbench import document
from unlearnbench.api import UserError
from unlearnbench.config import PluginSpec, Suite, add_methods, expand, load_suite, override

PLUGINS = Path(__file__).parent / "fixtures" / "small_plugins.py"

GOOD = """\
suite: small
seeds: [0, 1]
oracles: 4
budget: 6
tracks:
  - scenario: {name: "plugins.py:Small", n: 5}
    requests: [one, two]
    methods:
      - plugins.py:Descend
      - {name: "plugins.py:Descend", label: strong, lr: 1e-5, steps: [3]}
      - name: plugins.py:Descend
        label: swept
        noisy: true
        grid:
          lr: [1, 1e-4]
          mode: [a, b]
    attacks: ["plugins.py:Guess"]
    metrics:
      - plugins.py:Share
      - {name: "plugins.py:Share", label: kept, split: retain}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "plugins.py").write_text(PLUGINS.read_text())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(folder: Path, text: str) -> Suite:
    (folder / "suite.yaml").write_text(text)
    return load_suite("suite.yaml")


def test_a_suite_is_read_with_every_default_filled_in(folder: Path) -> None:
    suite = load(folder, GOOD)
    assert (suite.suite, suite.seeds, suite.oracles, suite.budget) == ("small", (0, 1), 4, 6)
    (track,) = suite.tracks
    assert track.scenario.fields == {"split_seed": 0, "n": 5}
    assert track.asked("two").request == "two"
    plain, strong, swept = track.methods
    assert (plain.name, plain.label, plain.fields["lr"]) == ("plugins.py:Descend", "Descend", 1.0)
    assert strong.fields == {"lr": 1e-5, "steps": [3], "mode": "a", "depth": None, "noisy": False, "colour": "red"}
    assert strong.make("methods").hyperparameters()["steps"] == (3,)
    assert swept.grid == {"lr": [1.0, 1e-4], "mode": ["a", "b"]}
    assert [spec.label for spec in track.metrics] == ["Share", "kept"]


def test_a_suite_survives_pickling_and_its_own_yaml(folder: Path) -> None:
    suite = load(folder, GOOD)
    assert pickle.loads(pickle.dumps(suite)) == suite
    assert load(folder, yaml.safe_dump(suite.document())) == suite


def test_oracles_budget_and_attacks_have_defaults(folder: Path) -> None:
    lines = [line for line in GOOD.splitlines() if not line.strip().startswith(("oracles", "budget", "attacks"))]
    suite = load(folder, "\n".join(lines))
    assert (suite.oracles, suite.budget, suite.tracks[0].attacks) == (4, 8, ())


def test_a_grid_expands_into_labelled_points(folder: Path) -> None:
    plain, _, swept = load(folder, GOOD).tracks[0].methods
    assert expand(plain) == [plain]
    points = expand(swept)
    assert [point.label for point in points] == [
        "swept[lr=1.0,mode=a]",
        "swept[lr=1.0,mode=b]",
        "swept[lr=0.0001,mode=a]",
        "swept[lr=0.0001,mode=b]",
    ]
    assert [point.fields["lr"] for point in points] == [1.0, 1.0, 1e-4, 1e-4]
    assert all(point.fields["noisy"] is True and not point.grid for point in points)
    with pytest.raises(UserError, match="swept is a grid over lr, mode"):
        swept.make("methods")


def test_plugin_files_are_found_beside_the_suite(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "elsewhere").mkdir()
    (folder / "suite.yaml").write_text(GOOD)
    assert load_suite(folder / "suite.yaml").tracks[0].scenario.name == "plugins.py:Small"
    monkeypatch.chdir(folder / "elsewhere")
    assert load_suite("../suite.yaml").tracks[0].scenario.name == f"{folder.resolve().as_posix()}/plugins.py:Small"


MISTAKES = [
    # what to replace, by what, and what the one line must say
    ("suite: small", "suite: Small Suite", "suite.yaml:1: field 'suite' is \"Small Suite\", must match pattern"),
    ("suite: small\n", "", "suite.yaml:1: field 'suite' is missing"),
    ("seeds: [0, 1]", "seeds: []", "suite.yaml:2: field 'seeds' is [], must have at least 1 item"),
    ("seeds: [0, 1]", "seeds: [0, 0]", "suite.yaml:2: seeds.1: the seed 0 is given more than once"),
    ("seeds: [0, 1]", "seeds: [0, -1]", "suite.yaml:2: field 'seeds[1]' is -1, must be greater than or equal to 0"),
    ("seeds: [0, 1]", "seeds: [true]", "suite.yaml:2: field 'seeds[0]' is true, must be a valid integer"),
    ("seeds: [0, 1]", "seeds: ['0']", "suite.yaml:2: field 'seeds[0]' is \"0\", must be a valid integer"),
    ("oracles: 4", "oracles: 1", "suite.yaml:3: field 'oracles' is 1, must be greater than or equal to 2"),
    ("oracles: 4", "oracels: 4", "suite.yaml:3: there is no field 'oracels' (did you mean 'oracles'?); the fields are: suite, seeds"),
    ("budget: 6", "budget: 0", "suite.yaml:4: field 'budget' is 0, must be greater than or equal to 1"),
    ("n: 5}", "n: 1}", "suite.yaml:6: tracks.0.scenario: Small: field 'n' is 1, must be greater than or equal to 2"),
    ("n: 5}", "request: one}", "suite.yaml:6: tracks.0.scenario: Small: field 'request' is set by the track's list of requests"),
    ("n: 5}", "grid: {n: [2, 3]}}", "suite.yaml:6: tracks.0.scenario: only methods have a grid"),
    ('scenario: {name: "plugins.py:Small", n: 5}', "scenario: 3", "suite.yaml:6: tracks.0.scenario is 3; it must be a name or a mapping"),
    ('scenario: {name: "plugins.py:Small", n: 5}', "scenario: authers", "suite.yaml:6: tracks.0.scenario: no scenario 'authers'"),
    (
        "requests: [one, two]",
        "requests: [one, three]",
        "suite.yaml:7: tracks.0.requests.1 is 'three'; plugins.py:Small has the requests one, two",
    ),
    ("requests: [one, two]", "requests: [one, one]", "suite.yaml:7: tracks.0.requests.1: the request 'one' is given more than once"),
    ("requests: [one, two]", "requests: []", "suite.yaml:7: tracks.0: field 'requests' is [], must have at least 1 item"),
    ("requests: [one, two]", "requests: [10]", "suite.yaml:7: tracks.0: field 'requests[0]' is 10, must be a valid string"),
    ("    requests: [one, two]\n", "", "suite.yaml:6: tracks.0: field 'requests' is missing"),
    ("requests:", "request:", "suite.yaml:6: tracks.0: field 'requests' is missing"),
    ("- plugins.py:Descend\n", "- plugins.py:Descent\n", "suite.yaml:9: tracks.0.methods.0: 'plugins.py:Descent': plugins.py has no class"),
    ("- plugins.py:Descend\n", "- plugins.py:Share\n", "suite.yaml:9: tracks.0.methods.0: plugins.py:Share is no method"),
    ("- plugins.py:Descend\n", "- plugins.py:Steeper\n", "suite.yaml:9: tracks.0.methods.0: Steeper: field 'floor' is missing"),
    ("- plugins.py:Descend\n", "- 3\n", "suite.yaml:9: tracks.0.methods.0 is 3; it must be a name or a mapping with a name"),
    (
        "- plugins.py:Descend\n",
        "- {label: x}\n",
        "suite.yaml:9: tracks.0.methods.0 is {'label': 'x'}; it must be a name or a mapping with a name",
    ),
    (
        "- plugins.py:Descend\n",
        "- {name: 'plugins.py:Descend', label: a/b}\n",
        "suite.yaml:9: tracks.0.methods.0: label is 'a/b'; a label is a word",
    ),
    (
        "- plugins.py:Descend\n",
        "- {name: 'plugins.py:Descend', label: 3}\n",
        "suite.yaml:9: tracks.0.methods.0: label is 3; a label is a word",
    ),
    ("label: strong", "label: Descend", "suite.yaml:10: tracks.0.methods.1: the label 'Descend' is given more than once"),
    ("label: kept, ", "", "suite.yaml:20: tracks.0.metrics.1: the label 'Share' is given more than once"),
    ("label: kept", "label: Guess", "suite.yaml:20: tracks.0.metrics.1: the label 'Guess' is given more than once"),
    ("lr: 1e-5", "lr: -1e-5", "suite.yaml:10: tracks.0.methods.1: Descend: field 'lr' is -1e-05, must be greater than 0"),
    ("lr: 1e-5", "lr: '1e-5'", "suite.yaml:10: tracks.0.methods.1: Descend: field 'lr' is \"1e-5\", must be a valid number"),
    (
        "lr: 1e-5",
        "lrr: 1e-5",
        "suite.yaml:10: tracks.0.methods.1: Descend: there is no field 'lrr' (did you mean 'lr'?); the fields are: lr, steps",
    ),
    ("noisy: true", "noisy: yes", "suite.yaml:13: tracks.0.methods.2: Descend: field 'noisy' is \"yes\", must be a valid boolean"),
    ("lr: [1, 1e-4]", "lr: [1, -1]", "suite.yaml:15: tracks.0.methods.2: Descend: field 'lr' is -1, must be greater than 0"),
    ("lr: [1, 1e-4]", "lr: [1, 1.0]", "suite.yaml:11: tracks.0.methods.2: grid.lr is [1, 1.0]; each value may be given once"),
    ("lr: [1, 1e-4]", "lr: 1", "suite.yaml:11: tracks.0.methods.2: grid.lr is 1; it must be a list of at least one value"),
    ("lr: [1, 1e-4]", "lr: []", "suite.yaml:11: tracks.0.methods.2: grid.lr is []; it must be a list of at least one value"),
    ("lr: [1, 1e-4]", "noisy: [true]", "suite.yaml:11: tracks.0.methods.2: field 'noisy' is given both a value and a grid"),
    (
        'attacks: ["plugins.py:Guess"]',
        "attacks: plugins.py:Guess",
        "suite.yaml:17: tracks.0: field 'attacks' is \"plugins.py:Guess\", must be a list",
    ),
    ("attacks:", "atacks:", "suite.yaml:17: tracks.0: there is no field 'atacks' (did you mean 'attacks'?)"),
    ("split: retain", "split: 3", "suite.yaml:20: tracks.0.metrics.1: Share: field 'split' is 3, must be a valid string"),
    (GOOD[GOOD.index("tracks") :], "tracks: []", "suite.yaml:5: field 'tracks' is [], must have at least 1 item"),
    (GOOD[GOOD.index("tracks") :], "tracks: [x]", "suite.yaml:5: field 'tracks[0]' is \"x\", must be a valid dictionary"),
    (GOOD, "", "suite.yaml:1: the file is empty"),
    (GOOD, "[1, 2]", "suite.yaml:1: a suite is a mapping with suite, seeds, oracles, budget, tracks"),
    (GOOD, "a: [", "suite.yaml:1: not YAML: expected the node content"),
    (GOOD, "a: b: c", "suite.yaml:1: not YAML: mapping values are not allowed here"),
    (GOOD, "a: 1\n\ttab: 2", "suite.yaml:2: not YAML: found character '\\t'"),
    ("budget: 6", "oracles: 5", "suite.yaml:4: the key 'oracles' is given twice (first on line 3)"),
    ("budget: 6", "6: budget", "suite.yaml:4: the key 6 is no word"),
    ("seeds: [0, 1]", "seeds: &s [0, 1]", "suite.yaml:2: not YAML: anchors and aliases are not allowed"),
    ("seeds: [0, 1]", "seeds: !!python/object/apply:os.system ['touch owned']", "suite.yaml:2: the tag"),
    ("seeds: [0, 1]", "seeds: !!python/name:os.system", "suite.yaml:2: the tag"),
    ("oracles: 4", "oracles: !!int four", "suite.yaml:3: 'four' does not fit its tag"),
]


@pytest.mark.parametrize(("old", "new", "message"), MISTAKES)
def test_every_mistake_is_one_line_and_nothing_is_written(old: str, new: str, message: str, folder: Path) -> None:
    assert old in GOOD
    (folder / "suite.yaml").write_text(GOOD.replace(old, new, 1))
    before = sorted(folder.iterdir())
    with pytest.raises(UserError) as caught:
        load_suite("suite.yaml")
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    assert [path for path in sorted(folder.iterdir()) if path.name != "__pycache__"] == before


def test_the_same_scenario_and_request_in_two_tracks_need_labels(folder: Path) -> None:
    track = GOOD[GOOD.index("  - scenario") :]
    with pytest.raises(UserError, match=r"tracks.1: the scenario and request 'Small one' is given more than once"):
        load(folder, GOOD + track)
    suite = load(folder, GOOD + track.replace("n: 5}", "n: 6, label: larger}"))
    assert [t.scenario.label for t in suite.tracks] == ["Small", "larger"]


def test_a_file_that_cannot_be_read_is_one_line(folder: Path) -> None:
    with pytest.raises(UserError, match=r"^absent\.yaml: No such file or directory"):
        load_suite("absent.yaml")
    with pytest.raises(UserError, match="Is a directory"):
        load_suite(folder)
    (folder / "latin.yaml").write_bytes("suite: naïve".encode("latin-1"))
    with pytest.raises(UserError, match=r"^latin\.yaml: not UTF-8 text: .* at byte 9"):
        load_suite("latin.yaml")


def test_scalars_follow_yaml_1_2() -> None:
    text = "[1e-5, 1E3, -.5, 7, -3, 010, 1:30, yes, no, on, True, false, ~, null, 2024-01-01, '1', x]"
    expected = [1e-5, 1e3, -0.5, 7, -3, "010", "1:30", "yes", "no", "on", True, False, None, None, "2024-01-01", "1", "x"]
    found = document.parse(text, "x").data
    assert found == expected
    assert [type(value) for value in found] == [type(value) for value in expected]


def test_deep_nesting_is_no_crash() -> None:
    with pytest.raises(UserError, match="not YAML"):
        document.parse("[" * 10000, "x")


def test_values_are_replaced_by_place(folder: Path) -> None:
    suite = load(folder, GOOD)
    changed = override(
        suite, ["oracles=6", "seeds=[3]", "tracks.0.scenario.n=40", "tracks.0.methods.1.lr=2e-3", "tracks.0.metrics.0.label=m"]
    )
    assert (changed.oracles, changed.seeds, changed.tracks[0].scenario.fields["n"]) == (6, (3,), 40)
    assert changed.tracks[0].methods[1].fields["lr"] == 2e-3
    assert changed.tracks[0].metrics[0].label == "m"
    assert suite == load(folder, GOOD), "the suite itself stays as it is"
    assert override(suite, []) is suite
    replaced = override(suite, ['tracks.0.methods=["plugins.py:Talk"]'])
    assert [spec.label for spec in replaced.tracks[0].methods] == ["Talk"]


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("oracles", "--set oracles: write field=value"),
        ("=3", "--set =3: write field=value"),
        ("oracles=1", "--set oracles=1: field 'oracles' is 1, must be greater than or equal to 2"),
        ("oracels=3", "--set oracels=3: there is no field 'oracels' (did you mean 'oracles'?)"),
        ("oracles=", "--set oracles=: field 'oracles' is \"\", must be a valid integer"),
        ("oracles=[", "--set oracles=[:1: not YAML"),
        ("tracks.3.scenario.n=4", "--set tracks.3.scenario.n=4: there is no 3 here; there is: 0"),
        ("tracks.0.methods.9=x", "--set tracks.0.methods.9=x: there is no 9 here; there is: 0, 1, 2"),
        ("oracles.deep=3", "--set oracles.deep=3: there is no 'deep' here; there is: nothing"),
        ("tracks.0.scenario.m=4", "--set tracks.0.scenario.m=4: tracks.0.scenario: Small: there is no field 'm'"),
    ],
)
def test_a_wrong_replacement_is_one_line(assignment: str, message: str, folder: Path) -> None:
    with pytest.raises(UserError) as caught:
        override(load(folder, GOOD), [assignment])
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_method_is_added_to_the_tracks_that_it_supports(folder: Path) -> None:
    suite = load(folder, GOOD.replace("      - plugins.py:Descend\n", ""))
    assert [spec.label for spec in add_methods(suite, ["plugins.py:Descend"]).tracks[0].methods] == ["strong", "swept", "Descend"]
    with pytest.raises(UserError, match=r"no track of small supports it \(Small: works on language, not on vision\)"):
        add_methods(suite, ["plugins.py:Talk"])
    with pytest.raises(UserError, match="the track Small already has a method labelled 'Descend'"):
        add_methods(load(folder, GOOD), ["plugins.py:Descend"])


def test_a_suite_built_in_code_is_held_to_the_same_rules(folder: Path) -> None:
    suite = load(folder, GOOD)
    with pytest.raises(ValueError, match="greater than or equal to 2"):
        Suite(suite="x", seeds=(0,), oracles=1, tracks=suite.tracks)
    with pytest.raises(ValueError, match="frozen"):
        suite.oracles = 3
    assert expand(PluginSpec(name="a", label="a", grid={"x": [[1, 2]], "y": ["b"]}))[0].label == "a[x=[1, 2],y=b]"
