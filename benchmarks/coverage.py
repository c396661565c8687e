"""How often the intervals of `unlearnbench.stats` hold the truth, on simulated data: `python benchmarks/coverage.py`.

Prints one line per interval and regime; writes nothing. A nominal 95 % interval whose true coverage is 95 % shows
within 0.7 points of it at 4,000 replications (two standard errors). Exit status 1 if a line that has to lie in
92-98 % does not.
"""

import argparse
import sys
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from unlearnbench.stats import auc_interval, mean_interval, paired_difference, prediction_interval

EQUAL = [6] * 20
UNEQUAL = [1, 2, 3, 4, 6, 8, 10, 14]
LOPSIDED = [30, 2, 2, 2]


class Spread(NamedTuple):
    """Standard deviations of the crossed effects; `noise` is that of one value."""

    seed: float = 1.0
    cluster: float = 1.0
    item: float = 1.0
    interaction: float = 0.0
    noise: float = 1.0

    def __str__(self) -> str:
        return " ".join(f"{name} {value:g}" for name, value in self._asdict().items())


class Line(NamedTuple):
    """One line of the table; `required` lines have to lie in 92-98 %."""

    interval: str
    design: str
    regime: str
    coverage: float
    required: bool


REGIMES = [
    Spread(),
    Spread(interaction=0.5),
    Spread(seed=0.3, interaction=0.3),
    Spread(seed=0.1, cluster=0.3, interaction=0.1),
    Spread(seed=0),
    Spread(cluster=0),
    Spread(item=0),
    Spread(noise=0),
]
# Two and more components absent: nothing but one spread is left, and the interval is allowed to be cautious.
DEGENERATE = [Spread(seed=0, cluster=0), Spread(cluster=0, item=0), Spread(seed=0, cluster=0, item=0)]


def simulate(rng: np.random.Generator, seeds: int, sizes: list[int], spread: Spread) -> tuple[np.ndarray, np.ndarray]:
    """Values [seeds, items] of mean 0 with crossed effects, and the cluster of each item."""
    clusters = np.repeat(np.arange(len(sizes)), sizes)
    values = (
        spread.seed * rng.standard_normal((seeds, 1))
        + spread.cluster * rng.standard_normal((1, len(sizes)))[:, clusters]
        + spread.item * rng.standard_normal((1, len(clusters)))
        + spread.interaction * rng.standard_normal((seeds, len(sizes)))[:, clusters]
        + spread.noise * rng.standard_normal((seeds, len(clusters)))
    )
    return values, clusters


def mean_coverage(rng: np.random.Generator, seeds: int, sizes: list[int], spread: Spread, replications: int) -> float:
    """Coverage of `mean_interval` for the mean over new seeds, clusters and items."""
    hits = 0
    for _ in range(replications):
        low, high, _ = mean_interval(*simulate(rng, seeds, sizes, spread))
        hits += low <= 0 <= high
    return hits / replications


def rejections(rng: np.random.Generator, seeds: int, sizes: list[int], spread: Spread, replications: int) -> float:
    """Share of paired tests of two methods without a difference that find one at 5 %."""
    hits = 0
    for _ in range(replications):
        difference, clusters = simulate(rng, seeds, sizes, spread)
        baseline = rng.standard_normal(difference.shape)
        hits += paired_difference(baseline + difference, baseline, clusters).p <= 0.05
    return hits / replications


def prediction_coverage(rng: np.random.Generator, oracles: int, replications: int) -> float:
    """How often the interval of one more oracle's gap holds 0."""
    hits = 0
    for _ in range(replications):
        value, *pool = rng.normal(0.4, 0.05, oracles + 1)
        low, high, _ = prediction_interval(value, pool)
        hits += low <= 0 <= high
    return hits / replications


def auc_coverage(rng: np.random.Generator, area: float, scores: int, replications: int) -> float:
    """Coverage of `auc_interval` for normal scores of unit variance, whose AUC is Phi(shift / sqrt 2)."""
    from scipy.special import ndtri

    shift, hits = np.sqrt(2) * ndtri(area), 0
    for _ in range(replications):
        low, high, _ = auc_interval(rng.standard_normal(scores) + shift, rng.standard_normal(scores))
        hits += low <= area <= high
    return hits / replications


def table(replications: int, seed: int) -> Iterator[Line]:
    """All lines, one by one; each regime has its own stream of random numbers."""
    streams = iter(np.random.default_rng(seed).spawn(1000))
    for seeds, sizes in [(5, EQUAL), (5, UNEQUAL), (10, EQUAL), (10, UNEQUAL), (5, [1] * 40), (5, LOPSIDED)]:
        design = f"{seeds} seeds, {len(sizes)} clusters of {min(sizes)}-{max(sizes)} items"
        for spread in REGIMES + DEGENERATE:
            required = spread in REGIMES and sizes is not LOPSIDED
            coverage = mean_coverage(next(streams), seeds, sizes, spread, replications)
            yield Line("mean", design, str(spread), coverage, required)
    for spread in (Spread(seed=0), Spread(seed=0, cluster=0), Spread(seed=0, item=0)):
        for sizes in (EQUAL, UNEQUAL):
            coverage = mean_coverage(next(streams), 2, sizes, spread, replications)
            yield Line("mean", f"2 seeds, {len(sizes)} clusters", str(spread), coverage, False)
    for sizes in (EQUAL, UNEQUAL):
        coverage = 1 - rejections(next(streams), 5, sizes, Spread(), replications)
        yield Line("paired p > 0.05", f"5 seeds, {len(sizes)} clusters", str(Spread()), coverage, True)
    for oracles in (2, 4, 20):
        yield Line(
            "prediction",
            f"{oracles} oracles",
            "normal",
            prediction_coverage(next(streams), oracles, replications),
            True,
        )
    for area in (0.5, 0.8, 0.95, 0.99):
        for scores in (40, 200):
            yield Line(
                "auc",
                f"{scores} + {scores} scores",
                f"AUC {area:g}",
                auc_coverage(next(streams), area, scores, replications),
                False,
            )


def main() -> int:
    """Print the table; 1 if a required line is outside 92-98 %."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--replications", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    missed = 0
    print(f"Coverage of 95 % intervals, {arguments.replications:,} replications")
    for line in table(arguments.replications, arguments.seed):
        bad = line.required and not 0.92 <= line.coverage <= 0.98
        missed += bad
        mark = "OUTSIDE" if bad else "" if line.required else "(not required)"
        print(
            f"{line.interval:15} {line.design:38} {line.regime:52} {100 * line.coverage:5.1f} % {mark}".rstrip(),
            flush=True,
        )
    print(f"{missed} required line(s) outside 92-98 %")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
