"""The dry run: what would be computed, what is cached, and about how long it would take; nothing is written."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from rich.console import Console

from unlearnbench.config import Suite, load_suite, override
from unlearnbench.forecast import Forecast, PlanLine, plan, print_plan

SUITE = """\
suite: small
seeds: [0]
oracles: 2
tracks:
  - scenario: {name: digits, width: 8, epochs: 2}
    requests: [class0]
    methods: [{name: collapsed}, {name: npo}]
    metrics: [accuracy]
"""


@pytest.fixture
def suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Suite:
    (tmp_path / "suite.yaml").write_text(SUITE)
    monkeypatch.chdir(tmp_path)
    return load_suite("suite.yaml")


def printed(forecast: Forecast, workers: int) -> str:
    console = Console(file=io.StringIO(), width=160, record=True)
    print_plan(console, forecast, workers)
    return console.export_text()


def test_everything_is_to_do_at_first_and_nothing_is_written(suite: Suite, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    forecast = plan(suite, store="store", device="cpu", dtype="fp32")
    kinds = [line.kind for line in forecast.lines]
    assert {kind: kinds.count(kind) for kind in kinds} == {"population": 2, "unlearned": 1, "evidence": 4, "trial": 4}
    assert not any(line.cached for line in forecast.lines)
    assert forecast.skipped == ["npo on digits/class0: works on language, not on vision"]
    assert forecast.memory > 2**20
    assert [path.name for path in tmp_path.iterdir()] == ["suite.yaml"]
    assert torch.get_num_threads() == threads
    original, oracles = (line for line in forecast.lines if line.kind == "population")
    assert original.seconds > 0
    assert oracles.seconds == pytest.approx(2 * original.seconds), "one pace for both, and two oracles"
    assert forecast.seconds == pytest.approx(sum(line.seconds for line in forecast.lines))


def test_more_epochs_are_forecast_to_take_longer(suite: Suite) -> None:
    short = plan(suite, store="store", device="cpu", dtype="fp32").lines[0].seconds
    long = plan(override(suite, ["tracks.0.scenario.epochs=2000"]), store="store", device="cpu", dtype="fp32").lines[0].seconds
    assert long > 50 * short  # a thousand times as many steps, whatever the machine's hiccups


def test_the_print_says_what_is_left() -> None:
    lines = [
        PlanLine("trial", "npo on x", False, 0.0),
        PlanLine("population", "train 3 x oracle", False, 150.0),
        PlanLine("trial", "y", True, 0.0),
    ]
    text = printed(Forecast(lines, ["z on x: no"], 3 * 2**30), 2)
    assert text.index("train 3 x oracle") < text.index("npo on x"), "in the order of the work"
    assert "2 min 30 s" in text
    assert "skipped: z on x: no" in text
    assert "to do: 1 trial, 1 population; cached: 1" in text
    assert "1 min 15 s with 2 workers, 3.0 GiB" in text
    assert "to do: nothing; cached: 1" in printed(Forecast([lines[2]], [], 0), 2)
