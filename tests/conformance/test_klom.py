"""KLOM against three released versions, whose binning and floors are composed here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from vision_conformance import Vision

from unlearnbench.confidence import margins
from unlearnbench.distributions import binned, klom

CLIP, BINS, EPS = 100.0, 20, 1e-5


@pytest.fixture(scope="module")
def vision(conformance: Path) -> Vision:
    return Vision(conformance / "methods-vision")


def without_largest(values: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Counts in half-open bins [points, bins]: what equals the largest value of both sides falls out of the last bin."""
    ours, theirs = np.clip(values, -CLIP, CLIP), np.clip(others, -CLIP, CLIP)
    low, top = np.minimum(ours.min(axis=0), theirs.min(axis=0)), np.maximum(ours.max(axis=0), theirs.max(axis=0))
    counts = np.rint(binned(values, others, bins=BINS, clip=CLIP) * len(values))
    # Ours has a column without any spread in its middle bin.
    counts[np.arange(len(top)), np.where(low == top, BINS // 2, BINS - 1)] -= (ours == top).sum(axis=0)
    assert counts.min() >= 0
    return counts


def shares(counts: np.ndarray) -> np.ndarray:
    return counts / np.maximum(counts.sum(axis=1, keepdims=True), 1e-300)


def easydub(unlearned: np.ndarray, oracles: np.ndarray) -> np.ndarray:
    """The oracles' floored shares are left as they are."""
    p, q = shares(without_largest(unlearned, oracles)), shares(without_largest(oracles, unlearned))
    return (p * np.log(np.where(p > 0, p, 1) / np.maximum(q, EPS))).sum(axis=1)


def bench(unlearned: np.ndarray, oracles: np.ndarray) -> np.ndarray:
    """The oracles' floored shares are made to sum to 1 again."""
    p, q = shares(without_largest(unlearned, oracles)), shares(without_largest(oracles, unlearned))
    q = shares(np.where(p > 0, np.maximum(q, EPS), q))
    return (p * np.log(np.where(p > 0, p, 1) / np.where(p > 0, q, 1))).sum(axis=1)


def test_released_versions(vision: Vision) -> None:
    entry = vision.entry("klom")
    unlearned, oracles = entry["unlearned_margins"], entry["oracle_margins"]
    for name, released in (("easydub", easydub), ("bench", bench)):
        for direction, sides in (("unlearned_oracle", (unlearned, oracles)), ("oracle_unlearned", (oracles, unlearned))):
            np.testing.assert_allclose(released(*sides), entry[f"{name}_kl_{direction}"], atol=1e-9, err_msg=f"{name} {direction}")
    assert np.percentile(easydub(unlearned, oracles), 95) == pytest.approx(vision.numbers("klom")["easydub_p95"], abs=1e-9)


def test_first_version(vision: Vision) -> None:
    """20 edges give 19 bins and an empty first count, the oracles are not clipped, their shares are floored everywhere."""
    entry = vision.entry("klom")
    for column, (unlearned, oracles) in enumerate(zip(entry["unlearned_margins"].T, entry["oracle_margins"].T, strict=True)):
        expected = entry["dmm_original_kl_ce_r2_r5_r10"][column]
        if np.ptp(np.concatenate([unlearned, oracles])) == 0:
            assert np.isnan(expected).all()
            continue
        p = np.clip(unlearned, -CLIP, CLIP)[:, None]
        counts = [np.rint(binned(a, b, bins=BINS - 1, clip=np.inf)[0] * len(a)) for a, b in ((p, oracles[:, None]), (oracles[:, None], p))]
        top = max(p.max(), oracles.max())
        ours, theirs = (np.concatenate([[0.0], found]) for found in counts)
        ours[-1] -= (p == top).sum()
        theirs[-1] -= (oracles == top).sum()
        ours, floored = ours / ours.sum(), np.maximum(theirs / theirs.sum(), EPS)
        kept = ours > 0
        p, q = ours[kept], (floored / floored.sum())[kept]
        # Divergence and cross-entropy renormalise the oracles' shares, the Rényi divergences do not.
        renyi = [np.log((p**order / floored[kept] ** (order - 1)).sum()) / (order - 1) for order in (2, 5, 10)]
        found = [(p * np.log(p / q)).sum(), -(p * np.log(q)).sum(), *renyi]
        np.testing.assert_allclose(found, expected, atol=1e-9, err_msg=f"column {column}")


def test_ours_differs_by_the_largest_sample_alone(vision: Vision) -> None:
    """Inclusive edges and no renormalisation: the released values, but for what their last bin lost."""
    entry = vision.entry("klom")
    unlearned, oracles = entry["unlearned_margins"], entry["oracle_margins"]
    ours = klom(unlearned, oracles)
    assert 0 < np.abs(ours - entry["easydub_kl_unlearned_oracle"]).max() < 0.25
    assert np.abs(ours - entry["easydub_kl_oracle_unlearned"]).max() > 0.5  # the other direction is another number
    assert (ours[np.all(unlearned == oracles, axis=0)] == 0).all()


def test_margins(vision: Vision) -> None:
    expected = vision.entry("klom")["margins_original_retrained_random_forget"]
    for model, values in zip(("original", "retrained", "random"), expected, strict=True):
        ours = margins(vision.arrays[f"logits/{model}/forget"], vision.arrays["forget_y"])
        np.testing.assert_allclose(ours, values, atol=2e-5)
