"""Writes the files of a new method: a plugin that works as it is, and its test.

Knows the text of a plugin and nothing of how it is run.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from unlearnbench.api import UserError

METHOD = '''"""TITLE OF THE PAPER: what it does in half a line.

AUTHORS. VENUE YEAR, arXiv:NUMBER. Deviations from it: none so far.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from unlearnbench.api import MethodView
from unlearnbench.finetuning import Pair, TrainedMethod, paired


class {cls}(TrainedMethod):
    """Push the loss of the forget rows up while the retain rows hold the model in place."""

    paper = "arXiv:NUMBER"

    retain_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the retain rows' loss."""

    def unlearn(self, model: nn.Module, view: MethodView, *, seed: int) -> nn.Module:
        """See `Method.unlearn`."""
        forget, retain = view.forget.train, view.retain.train

        def loss(model: nn.Module, pair: Pair) -> Tensor:
            # view.loss gives one loss per row, [B], in nats
            return self.retain_weight * view.loss(model, pair.retain).mean() - view.loss(model, pair.forget).mean()

        return self.descend(model, view, loss, paired(forget, retain, self.batch_size, seed=seed), n=len(forget), seed=seed)
'''

TEST = '''"""The contract of {name}: what the benchmark asks of every method."""

from __future__ import annotations

from pathlib import Path

import pytest

from unlearnbench import registry
from unlearnbench.api import UserError
from unlearnbench.testing import check_plugin

PLUGIN = f"{{Path(__file__).parent / '{name}.py'}}:{cls}"


def test_it_keeps_the_contract() -> None:
    results = check_plugin("methods", PLUGIN)
    assert results
    assert [f"{{result.name}}: {{result.reason}}" for result in results if not result.passed] == []


def test_a_rate_that_is_not_positive_is_refused() -> None:
    with pytest.raises(UserError, match="lr"):
        registry.make("methods", PLUGIN, {{"lr": 0}})
'''


class Written(NamedTuple):
    """The files of a new plugin and the line that registers it."""

    plugin: Path
    test: Path
    cls: str
    line: str
    """For `[project.entry-points."unlearnbench.methods"]` of the package that brings it."""


def new_method(name: str, folder: Path) -> Written:
    """Write `name.py` and `test_name.py`.

    Args:
        name: the method's name: small letters, digits and underscores.
        folder: where to write; made if it does not exist.

    Raises:
        UserError: the name is no such word, or one of the files exists.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise UserError(f"{name!r} is no name for a method: it takes small letters, digits and underscores, such as my_method")
    cls = "".join(part.capitalize() for part in name.split("_"))
    plugin, test = folder / f"{name}.py", folder / f"test_{name}.py"
    for path in (plugin, test):
        if path.exists():
            raise UserError(f"{path} exists and is not overwritten; choose another name or --dir")
    folder.mkdir(parents=True, exist_ok=True)
    for path, text in ((plugin, METHOD), (test, TEST)):
        with path.open("x", encoding="utf-8") as file:
            file.write(text.format(name=name, cls=cls))
    return Written(plugin, test, cls, f'{name} = "your_package.{name}:{cls}"')
