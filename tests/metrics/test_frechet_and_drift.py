"""The Fréchet distance against scipy and closed forms; drift against numbers by hand."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from scipy.linalg import sqrtm

from unlearnbench.api import Audit, Member, Need, NotMeasurable
from unlearnbench.evidence import Evidence
from unlearnbench.metrics.diffusion import FrechetDistance, UnconditionalDrift, frechet_distance

SPLITS = ("forget", "retain", "holdout", "test")
DENOISING = SimpleNamespace(modality="vision", task="diffuse", splits=SPLITS)


def test_it_is_what_scipys_matrix_root_gives() -> None:
    draw = np.random.default_rng(0)
    for width in (1, 2, 7):
        X = draw.normal(size=(40, width)) @ draw.normal(size=(width, width)) + draw.normal(size=width)
        Y = draw.normal(size=(25, width)) @ draw.normal(size=(width, width))
        A, B = np.cov(X.T).reshape(width, width), np.cov(Y.T).reshape(width, width)
        expected = ((X.mean(0) - Y.mean(0)) ** 2).sum() + np.trace(A + B - 2 * np.real(sqrtm(A @ B)))
        assert frechet_distance(X, Y) == pytest.approx(expected, rel=1e-6)
        assert frechet_distance(Y, X) == pytest.approx(expected, rel=1e-6)


def test_of_gaussians_with_independent_features_it_has_a_closed_form() -> None:
    draw = np.random.default_rng(1)
    means, spreads = np.array([[0.0, 1.0, 3.0], [2.0, 1.0, 0.0]]), np.array([[1.0, 2.0, 0.5], [3.0, 1.0, 0.5]])
    X, Y = means[:, None] + spreads[:, None] * draw.normal(size=(2, 200_000, 3))
    expected = ((means[0] - means[1]) ** 2).sum() + ((spreads[0] - spreads[1]) ** 2).sum()
    assert frechet_distance(X, Y) == pytest.approx(expected, rel=0.01)


def test_fewer_rows_than_features_and_equal_sets_are_no_trouble() -> None:
    X = np.random.default_rng(2).normal(size=(5, 20)).astype(np.float32)
    assert frechet_distance(X, X) == pytest.approx(0.0, abs=1e-5)
    assert frechet_distance(X, X + 1) == pytest.approx(20.0, rel=1e-4)


def test_bad_features_are_errors() -> None:
    with pytest.raises(ValueError, match=r"\(3, 2\) and \(3, 4\)"):
        frechet_distance(np.zeros((3, 2)), np.zeros((3, 4)))
    with pytest.raises(ValueError, match="NaN"):
        frechet_distance(np.full((3, 2), np.nan), np.zeros((3, 2)))


def evidence(order: list[int], **arrays: np.ndarray) -> Evidence:
    split = "test" if "unconditional" in arrays else "retain"
    ids = {split: tuple(f"r{i}" for i in order)}
    return Evidence(ids=ids, clusters=ids, arrays={Need(what=what, split=split): array[order] for what, array in arrays.items()})


def test_samples_are_compared_with_real_images_of_the_same_split() -> None:
    draw = np.random.default_rng(3)
    made, real = draw.normal(size=(2, 30, 4))
    nobody = Audit(originals=(), oracles=())
    value = FrechetDistance().measure(evidence(list(range(30)), features=made, image_features=real), nobody)
    assert value == frechet_distance(made, real)
    with pytest.raises(NotMeasurable, match="1 rows"):
        FrechetDistance().measure(evidence([0], features=made, image_features=real), nobody)
    assert FrechetDistance().supports(DENOISING) is None
    assert "forget" in (FrechetDistance(split="forget").supports(DENOISING) or "")
    assert "diffuse" in (FrechetDistance().supports(SimpleNamespace(modality="vision", task="classify", splits=SPLITS)) or "")


def test_drift_is_the_mean_squared_change_from_the_nearest_original_row_by_row() -> None:
    own = np.array([[1.0, 2.0], [0.0, 0.0], [5.0, 5.0]])
    near, far = own + np.array([[0.1, 0.1], [0.0, 0.2], [0.0, 0.0]]), own + 3.0
    members = [
        Member(role="original", seed=seed, evidence=evidence(order, unconditional=values), load=lambda: None)
        for seed, (order, values) in enumerate([([0, 1, 2], far), ([2, 0, 1], near)])
    ]
    found = UnconditionalDrift().measure(evidence([0, 1, 2], unconditional=own), Audit(originals=tuple(members), oracles=()))
    assert found == pytest.approx({"r0": 0.01, "r1": 0.02, "r2": 0.0})
    with pytest.raises(NotMeasurable, match="no other original"):
        UnconditionalDrift().measure(evidence([0, 1, 2], unconditional=own), Audit(originals=(), oracles=()))
    fewer = Member(role="original", seed=0, evidence=evidence([0], unconditional=near), load=lambda: None)
    with pytest.raises(ValueError, match="lacks 2 rows"):
        UnconditionalDrift().measure(evidence([0, 1, 2], unconditional=own), Audit(originals=(fewer,), oracles=()))
