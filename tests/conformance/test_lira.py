"""Likelihood ratios of U-LiRA from fitted Gaussians, against two released implementations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit
from vision_conformance import Vision

from unlearnbench.distributions import gaussian_log_density


@pytest.fixture(scope="module")
def vision(conformance: Path) -> Vision:
    return Vision(conformance / "methods-vision")


def membership(values: np.ndarray, members: np.ndarray, others: np.ndarray, ddof: int) -> np.ndarray:
    """p_in / (p_in + p_out) of each point."""
    return expit(gaussian_log_density(values, members, ddof=ddof) - gaussian_log_density(values, others, ddof=ddof))


def test_decisions_with_one_model_held_out_are_exact(vision: Vision) -> None:
    entry = vision.entry("lira")
    unlearned, oracles = entry["unlearned_margins"], entry["oracle_margins"]
    decisions = np.stack([membership(unlearned[i], np.delete(unlearned, i, axis=0), oracles, ddof=0) > 0.5 for i in range(len(unlearned))])
    np.testing.assert_array_equal(decisions[0], entry["single_ulira_heldout0"].astype(bool))
    np.testing.assert_allclose(decisions.mean(axis=0), entry["ulira_strong"], atol=1e-12)


def test_ratio_of_one_unlearned_model(vision: Vision) -> None:
    entry = vision.entry("lira")
    value = entry["cheap_margin"]
    densities = [gaussian_log_density(value, entry[f"{side}_margins"], ddof=1) for side in ("unlearned", "oracle")]
    np.testing.assert_allclose(np.exp(densities[0] - densities[1]), entry["cheap_ratio"], rtol=1e-9)


def test_membership_probability_without_holding_out(vision: Vision) -> None:
    entry = vision.entry("lira")
    expected = entry["deepunlearn_membership_probability"]
    ours = np.stack([membership(row, entry["unlearned_margins"], entry["oracle_margins"], ddof=0) for row in entry["unlearned_margins"]])
    np.testing.assert_allclose(ours, expected, atol=1e-9)
