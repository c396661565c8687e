"""Scores of RMIA as the authors' ml_privacy_meter gives them.

Its quirk is put together here: of a population row it keeps as many references as a queried row has, those with the largest signals.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from unlearnbench.attacks.rmia import log_prior, share_exceeded

Floats = NDArray[np.float64]
RUN = re.compile(r"rmia/scores_target(\d+)_ref(\d+)_a([\d.]+)")
EXACT = 1e-12


@pytest.fixture(scope="module")
def arrays(conformance: Path) -> dict[str, NDArray[Any]]:
    with np.load(conformance / "methods-language" / "metrics.npz") as found:
        return {name: found[name] for name in found.files if "rmia" in name}


def runs(arrays: dict[str, NDArray[Any]]) -> list[tuple[str, int, int, float]]:
    """Name, target, number of references and constant of each run of theirs."""
    found = [(name, match) for name in arrays if (match := RUN.fullmatch(name))]
    assert found
    return [(name, int(match[1]), int(match[2]), float(match[3])) for name, match in found]


def others(arrays: dict[str, NDArray[Any]], target: int) -> Floats:
    """Signals of the population under every candidate reference [rows, models]: all models but the target and the one of its pair."""
    pair = {target, target + 1 - 2 * (target % 2)}
    return arrays["rmia/population_signals"][:, [model for model in range(arrays["rmia/signals"].shape[1]) if model not in pair]]


def scores(signals: Floats, references: Floats, population: Floats, population_references: Floats, a: float) -> Floats:
    """Our score; references are [rows, models]."""
    ratios = np.log(signals) - log_prior(np.log(references.T), a)
    return share_exceeded(ratios, np.log(population) - log_prior(np.log(population_references.T), a))


def given(arrays: dict[str, NDArray[Any]], target: int, n: int) -> tuple[Floats, Floats, Floats]:
    """The target's signals, those of the references that never saw a row, and the target's of the population."""
    references = arrays[f"rmia/out_signals_target{target}_ref{n}"]
    return arrays["rmia/signals"][:, target], references, arrays["rmia/population_signals"][:, target]


def test_scores_with_the_largest_signals_of_the_population(arrays: dict[str, NDArray[Any]]) -> None:
    for name, target, n, a in runs(arrays):
        largest = np.sort(others(arrays, target), axis=1)[:, -n:]
        np.testing.assert_allclose(scores(*given(arrays, target, n), largest, a), arrays[name], atol=EXACT, err_msg=name)


def test_scores_with_all_references_of_the_population(arrays: dict[str, NDArray[Any]]) -> None:
    derived = {name: a for name in arrays if (a := re.search(r"population_mean_over_all_refs_a([\d.]+)", name))}
    assert derived
    ((target, n),) = {(target, n) for _, target, n, _ in runs(arrays)}
    for name, a in derived.items():
        found = scores(*given(arrays, target, n), others(arrays, target), float(a[1]))
        np.testing.assert_allclose(found, arrays[name], atol=EXACT, err_msg=name)


def test_references_never_saw_the_row(arrays: dict[str, NDArray[Any]]) -> None:
    for _, target, n, _ in runs(arrays):
        _, references, _ = given(arrays, target, n)
        pair = {target, target + 1 - 2 * (target % 2)}
        unseen = ~arrays["rmia/memberships"]
        unseen[:, sorted(pair)] = False
        for row, found in enumerate(references):
            assert set(found) <= set(arrays["rmia/signals"][row, unseen[row]])
