"""What changes the hash of a plugin's code and what does not: small packages written anew, in other folders, for each version."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from unlearnbench import code, registry, stats

PLUGIN = '''
"""A plugin."""

from typing import TYPE_CHECKING

from ubtest_plugins.helper import RATE

if TYPE_CHECKING:
    from ubtest_plugins.types import Number


class Plugin:
    """It."""

    rate = RATE
    """How fast."""

    def run(self):
        """Go."""
        return self.rate + 1
'''
FILES = {
    "__init__.py": "",
    "plugin.py": PLUGIN,
    "helper.py": "from . import deep\nRATE = deep.BASE * 2\n",
    "deep.py": "BASE = 3\n",
    "types.py": "Number = int\n",
    "unused.py": "X = 1\n",
}
Hash = Callable[..., str]


@pytest.fixture
def hash_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hash]:
    """Writes a package of its own with some files changed, imports its plugin and gives the hash."""
    count = 0

    def forget() -> None:
        for name in [name for name in sys.modules if name.partition(".")[0] == "ubtest_plugins"]:
            del sys.modules[name]
        importlib.invalidate_caches()

    def make(**changed: str) -> str:
        nonlocal count
        count += 1
        folder = tmp_path / f"version{count}" / "ubtest_plugins"
        folder.mkdir(parents=True)
        for name, text in {**FILES, **{f"{key}.py": value for key, value in changed.items()}}.items():
            (folder / name).write_text(text)
        forget()
        with monkeypatch.context() as patch:
            patch.syspath_prepend(str(folder.parent))
            plugin: type = importlib.import_module("ubtest_plugins.plugin").Plugin
            assert Path(sys.modules[plugin.__module__].__file__ or "").parent == folder
            return code.code_hash(plugin)

    yield make
    forget()


def test_the_place_of_a_package_does_not_count(hash_of: Hash) -> None:
    assert hash_of() == hash_of()


@pytest.mark.parametrize(
    "plugin",
    [
        PLUGIN.replace('"""A plugin."""', ""),
        PLUGIN.replace('        """Go."""\n', ""),
        PLUGIN.replace('    """How fast."""\n', ""),
        PLUGIN.replace("return self.rate + 1", "# one more\n        return (\n            self.rate + 1\n        )"),
        PLUGIN.replace("from ubtest_plugins.types import Number", "from ubtest_plugins.types import Number as N"),
    ],
)
def test_docstrings_comments_layout_and_type_imports_do_not_count(hash_of: Hash, plugin: str) -> None:
    assert plugin != PLUGIN
    assert hash_of(plugin=plugin) == hash_of()


@pytest.mark.parametrize(
    "changed",
    [
        {"plugin": PLUGIN.replace("+ 1", "- 1")},
        {"plugin": PLUGIN.replace("return self.rate", "'Go.'\n        return 2 * self.rate")},
        {"helper": "from . import deep\nRATE = deep.BASE * 4\n"},
        {"deep": "BASE = 5\n"},
    ],
)
def test_code_counts_however_far_away(hash_of: Hash, changed: dict[str, str]) -> None:
    assert hash_of(**changed) != hash_of()


def test_what_is_not_imported_or_for_the_type_checker_alone_does_not_count(hash_of: Hash) -> None:
    assert hash_of(unused="X = 2\n", types="Number = float\n") == hash_of()


def test_two_plugins_may_import_each_other(hash_of: Hash) -> None:
    assert hash_of(deep="import ubtest_plugins.helper\nBASE = 3\n") != hash_of()


def _core(folder: Path, value: int) -> ModuleType:
    folder.mkdir()
    (folder / "core.py").write_text(f"LIMIT = {value}\n")
    module = ModuleType("unlearnbench.ubtest_core")
    module.__file__ = str(folder / "core.py")
    return module


def test_a_plugin_file_counts_with_what_it_imports_of_this_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = """
import unlearnbench.ubtest_core
from unlearnbench.api import Method

class Mine(Method):
    def unlearn(self, model, view, *, seed):
        return model
"""

    def hash_with(name: str, core: int, body: str) -> str:
        monkeypatch.setitem(sys.modules, "unlearnbench.ubtest_core", _core(tmp_path / name, core))
        (tmp_path / name / "mine.py").write_text(body)
        return code.code_hash(registry.load("methods", f"{tmp_path / name / 'mine.py'}:Mine"))

    plain = hash_with("a", 1, text)
    assert hash_with("b", 1, text) == plain
    code._hash_from.cache_clear()
    assert hash_with("c", 2, text) != plain
    assert hash_with("d", 1, text.replace("return model", "return model.eval()")) != plain


def test_the_harness_has_a_hash_of_its_own() -> None:
    assert code.module_hash("unlearnbench.stats") != code.module_hash("unlearnbench.evaluation")
    with pytest.raises(ValueError, match="'numpy' is no module of unlearnbench"):
        code.module_hash("numpy")
    with pytest.raises(ValueError, match=r"'unlearnbench\.nothing' is no module"):
        code.module_hash("unlearnbench.nothing")


def test_the_hash_of_evaluation_reaches_the_statistics(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = code.module_hash("unlearnbench.evaluation")
    (tmp_path / "stats.py").write_text(Path(stats.__file__).read_text() + "\nCHANGED = 1\n")
    monkeypatch.setattr(stats, "__file__", str(tmp_path / "stats.py"))
    code._hash_from.cache_clear()
    assert code.module_hash("unlearnbench.evaluation") != before
    code._hash_from.cache_clear()
