"""What contract tests are made of: results, where plugins are tried, and the models that tests share.

Each test raises `Violation`, or whatever the plugin itself raises, and becomes one result. The tests are in `models`,
`scoring` and `data`; `testing.check_plugin` runs those of a plugin.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import NamedTuple

import torch
from torch import nn

from unlearnbench.api import Plan, Scenario
from unlearnbench.contracts.tiny_diffusion import TinyDiffusion
from unlearnbench.contracts.tiny_language import TinyLanguage
from unlearnbench.contracts.tiny_vision import TinyVision

SITES: Mapping[str, Scenario] = {
    "tiny language": TinyLanguage(request="authors"),
    "tiny vision, a class": TinyVision(request="class0"),
    "tiny vision, instances": TinyVision(request="mislabelled"),
    "tiny diffusion": TinyDiffusion(request="class0"),
}
"""Where plugins are tried."""

LAST_SITE = ("tiny vision, a transformer's class", TinyVision(request="class0", net="vit", lr=0.01))
"""Where those are tried that serve none of `SITES`."""


class CheckResult(NamedTuple):
    """One contract test of a plugin."""

    name: str
    passed: bool
    reason: str | None = None
    """Why it failed."""


class Violation(Exception):
    """A plugin does not keep the contract; the message says what was found and what is asked."""


def require(holds: bool, message: str) -> None:
    """Raise `Violation` with the message unless it holds."""
    if not holds:
        raise Violation(message)


class Report:
    """Collects results; a test that raises has failed."""

    def __init__(self) -> None:
        self.results: list[CheckResult] = []

    def run(self, name: str, test: Callable[[], None]) -> bool:
        """Run one test and say whether it passed."""
        try:
            test()
        except Violation as violation:
            self.results.append(CheckResult(name, False, str(violation)))
        except Exception as error:  # a plugin may raise anything
            reason = (str(error).splitlines() or ["no message"])[0]
            self.results.append(CheckResult(name, False, f"{type(error).__name__}: {reason}"))
        else:
            self.results.append(CheckResult(name, True))
        return self.results[-1].passed


@cache
def trained(scenario: Scenario, plan: Plan, seed: int) -> nn.Module:
    """A trained model that all tests share: copy it before changing it."""
    with torch.random.fork_rng(devices=[]):
        return scenario.train([plan], [seed])[0].eval()


def disturb(number: int) -> None:
    """Put torch's global generator somewhere else: what a plugin does must not depend on it."""
    torch.manual_seed(900 + number)
