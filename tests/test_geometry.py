"""Shape, order, directions and sensitivity: against scipy and scikit-learn, by hand, and what must not matter."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.linalg import orthogonal_procrustes, sqrtm
from scipy.spatial.distance import pdist
from scipy.stats import ortho_group, spearmanr
from sklearn.decomposition import PCA

from unlearnbench.geometry import (
    diagonal_fisher,
    fisher_overlap,
    minibatch_cka,
    principal,
    principal_cosine,
    principal_shift,
    procrustes_distance,
    rsa,
)
from unlearnbench.similarity import mutual_neighbours, unbiased_cka

Floats = NDArray[np.float64]


def made(n: int = 40, width: int = 6, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).normal(size=(n, width))


def alike(seed: int = 0, n: int = 40, width: int = 6) -> tuple[Floats, Floats]:
    """Two sides that share half of their features."""
    X, Y = made(n, width, seed), made(n, width, seed + 100)
    Y[:, : width // 2] += X[:, : width // 2]
    return X, Y


# ---------------------------------------------------------------------------------------------------------------- mini-batch CKA


def test_one_batch_is_the_whole() -> None:
    X, Y = alike()
    assert minibatch_cka([(X, Y)]) == pytest.approx(unbiased_cka(X, Y), rel=1e-12)


def test_batches_are_summed_before_the_ratio() -> None:
    X, Y = alike(1)
    X[20:] *= 3  # so that the mean of ratios and the ratio of sums differ
    parts = [(X[i : i + 10], Y[i : i + 10]) for i in range(0, 40, 10)]
    found = minibatch_cka(iter(parts))
    assert found == pytest.approx(minibatch_cka(parts[::-1]), rel=1e-12)
    assert abs(found - np.mean([unbiased_cka(*part) for part in parts])) > 1e-3
    assert found == pytest.approx(unbiased_cka(X, Y), abs=0.15)
    assert minibatch_cka([(A, 2 * A + 1) for A, _ in parts]) == pytest.approx(1.0, abs=1e-12)


def test_small_batches_stay_unbiased_with_many_features() -> None:
    draw = np.random.default_rng(2)
    parts = [(draw.normal(size=(16, 512)), draw.normal(size=(16, 512))) for _ in range(20)]
    assert abs(minibatch_cka(parts)) < 0.05


def test_batches_that_cannot_be_compared() -> None:
    X, Y = alike()
    with pytest.raises(ValueError, match="must be positive"):
        minibatch_cka([])
    with pytest.raises(ValueError, match="features of 40 and of 5 rows"):
        minibatch_cka([(X, Y[:5])])
    with pytest.raises(ValueError, match="3 rows; allowed: 4 or more"):
        minibatch_cka([(X[:3], Y[:3])])


# --------------------------------------------------------------------------------------------------------------------- Procrustes


def aligned_distance(X: Floats, Y: Floats) -> float:
    """By the alignment itself: scipy's rotation, then the Frobenius norm of what is left."""
    X, Y = ((side - side.mean(0)) / np.linalg.norm(side - side.mean(0)) for side in (X, Y))
    width = max(X.shape[1], Y.shape[1])
    X, Y = (np.pad(side, ((0, 0), (0, width - side.shape[1]))) for side in (X, Y))
    return float(np.linalg.norm(X @ orthogonal_procrustes(X, Y)[0] - Y))


@pytest.mark.parametrize(("n", "ours", "theirs"), [(40, 6, 6), (40, 6, 3), (10, 25, 25), (10, 25, 4), (10, 12, 30)])
def test_procrustes_against_scipy(n: int, ours: int, theirs: int) -> None:
    X, Y = made(n, ours, 1), made(n, theirs, 2)
    Y[:, 0] += X[:, 0]
    assert procrustes_distance(X, Y) == pytest.approx(aligned_distance(X, Y), abs=1e-10)
    assert procrustes_distance(Y, X) == pytest.approx(procrustes_distance(X, Y), abs=1e-10)


def test_procrustes_sees_shapes_alone() -> None:
    X, Y = alike(3)
    value = procrustes_distance(X, Y)
    rotation = ortho_group.rvs(6, random_state=0)
    assert 0.1 < value < 1.3
    assert procrustes_distance(X, 0.01 * X @ rotation + 5) == pytest.approx(0.0, abs=1e-7)
    assert procrustes_distance(7 * X @ rotation - 3, Y) == pytest.approx(value, rel=1e-10)
    order = np.random.default_rng(0).permutation(40)
    assert procrustes_distance(X[order], Y[order]) == pytest.approx(value, rel=1e-10)
    assert procrustes_distance(X[order], Y) > value
    assert procrustes_distance(X * np.arange(1, 7), X) > 0.05
    # A metric: the way over a third shape is no shorter.
    Z = made(seed=9)
    assert value <= procrustes_distance(X, Z) + procrustes_distance(Z, Y)


def test_shapes_without_any_overlap_are_the_root_of_two_apart() -> None:
    X, Y = np.array([[1.0], [-1.0], [0.0], [0.0]]), np.array([[0.0], [0.0], [1.0], [-1.0]])
    assert procrustes_distance(X, Y) == pytest.approx(np.sqrt(2), rel=1e-12)


def test_a_large_shared_mean_costs_no_precision() -> None:
    X, Y = alike(4)
    assert procrustes_distance(X + 1e5, Y - 1e5) == pytest.approx(procrustes_distance(X, Y), abs=1e-8)


# ---------------------------------------------------------------------------------------------------------------------------- RSA


def test_rsa_against_scipy() -> None:
    X, Y = alike(5)
    expected = spearmanr(pdist(X, "correlation"), pdist(Y, "correlation")).statistic
    assert rsa(X, Y) == pytest.approx(expected, abs=1e-12)
    assert rsa(Y[:, :3], X) == pytest.approx(rsa(X, Y[:, :3]), abs=1e-12)
    doubled = np.concatenate([X, X])  # with ties
    other = np.concatenate([Y, X])
    ties = spearmanr(pdist(doubled, "correlation").round(9), pdist(other, "correlation").round(9)).statistic
    assert rsa(doubled, other) == pytest.approx(ties, abs=1e-3)


def test_rsa_sees_the_order_of_dissimilarities_alone() -> None:
    angles = np.array([0.0, 0.3, 0.9, 2.0])

    def on_a_circle(angles: Floats) -> Floats:
        """Rows whose correlations are the cosines of differences of angles."""
        plane = np.linalg.qr(np.column_stack([np.ones(5), made(5, 2, 7)]))[0][:, 1:]
        return np.asarray(np.column_stack([np.cos(angles), np.sin(angles)]) @ plane.T)

    first = on_a_circle(angles)
    assert rsa(first, on_a_circle(1.2 * angles)) == pytest.approx(1.0, abs=1e-12)  # stretched, in the same order
    assert rsa(first, on_a_circle(np.array([0.0, 2.0, 0.1, 0.9]))) < 0.9
    assert rsa(first, 3 * first + np.arange(4)[:, None]) == pytest.approx(1.0, abs=1e-12)  # each row may be scaled and shifted
    X, Y = alike(6)
    order = np.random.default_rng(0).permutation(40)
    assert rsa(X[order], Y[order]) == pytest.approx(rsa(X, Y), rel=1e-9)
    assert abs(rsa(made(60, 8, 1), made(60, 8, 2))) < 0.1


def test_ties_share_their_rank() -> None:
    values = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 1.0, 0.0]])
    other = made(4, 3, 8)
    expected = spearmanr(pdist(values, "correlation").round(12), pdist(other, "correlation")).statistic
    assert rsa(values * 2.0, other) == pytest.approx(expected, abs=1e-9)


# ----------------------------------------------------------------------------------------------------------- principal directions


def test_principal_directions_against_scikit_learn() -> None:
    X = made(30, 5, 1) * np.array([5.0, 3.0, 1.0, 0.5, 0.1]) + 100
    found, reference = principal(X, 3), PCA(3).fit(X)
    np.testing.assert_allclose(found.mean, reference.mean_)
    np.testing.assert_allclose(np.abs(np.sum(found.directions * reference.components_, axis=1)), 1.0, rtol=1e-10)
    np.testing.assert_allclose(found.spread**2, reference.explained_variance_ * 29 / 30, rtol=1e-10)


def test_shift_is_read_along_the_originals_directions() -> None:
    X = made(200, 4, 2) * np.array([4.0, 2.0, 0.1, 0.1])
    fitted = principal(X, 2)
    along, across = fitted.directions[0], principal(X, 4).directions[3]
    assert principal_shift(X, X) == pytest.approx(0.0, abs=1e-12)
    assert principal_shift(X, X + 5 * along, k=1) == pytest.approx(5 / fitted.spread[0], rel=1e-10)
    assert principal_shift(X, X - 5 * along, k=1) == pytest.approx(5 / fitted.spread[0], rel=1e-10)  # components have no sign
    assert principal_shift(X, X + 5 * along, k=2) == pytest.approx(5 / np.hypot(*fitted.spread), rel=1e-10)
    assert principal_shift(X, X + 5 * across) == pytest.approx(0.0, abs=1e-10)
    assert principal_shift(10 * X, 10 * X + 50 * along, k=1) == pytest.approx(5 / fitted.spread[0], rel=1e-10)
    # What is changed may have other rows, and a variance of its own does not matter.
    few = np.stack([along, 3 * along]) + fitted.mean
    assert principal_shift(X, few, k=1) == pytest.approx(2 / fitted.spread[0], rel=1e-10)


def test_the_first_directions_cosine_by_hand() -> None:
    line = np.linspace(-1, 1, 9)[:, None]
    at = {degrees: line * np.array([np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))]) for degrees in (0, 60, 90, 180)}
    assert principal_cosine(at[0], at[60]) == pytest.approx(0.5, rel=1e-9)
    assert principal_cosine(at[0], at[90] + 3) == pytest.approx(0.0, abs=1e-9)
    assert principal_cosine(at[0], at[180]) == pytest.approx(1.0, rel=1e-9)
    X = made(30, 3, 4) * np.array([3.0, 1.0, 1.0])
    assert principal_cosine(X, -X) == pytest.approx(1.0, rel=1e-9)


# ------------------------------------------------------------------------------------------------------------- Fisher information


def test_fisher_squares_the_gradients_of_examples() -> None:
    opposite = np.array([[1.0, 2.0], [-1.0, 0.0]])
    np.testing.assert_array_equal(diagonal_fisher(opposite), [1.0, 2.0])  # the batch's gradient is [0, 1]


def test_overlap_is_one_minus_half_the_squared_frechet_distance() -> None:
    F, G = diagonal_fisher(made(20, 5, 1)), diagonal_fisher(made(20, 5, 2) * np.arange(1, 6))
    ours, theirs = np.diag(F / F.sum()), np.diag(G / G.sum())
    squared = np.trace(ours + theirs - 2 * sqrtm(ours @ theirs)).real / 2
    assert fisher_overlap(F, G) == pytest.approx(1 - squared, rel=1e-10)
    assert fisher_overlap(F, 7 * F) == pytest.approx(1.0, rel=1e-12)
    assert fisher_overlap(np.array([1.0, 0.0]), np.array([0.0, 1.0])) == 0.0


# ------------------------------------------------------------------------------------------------------- known values and errors


def test_on_noise_and_on_a_massive_feature() -> None:
    """Neighbours by cosine and shapes both give way to one feature of very large variance; the order of correlations too."""
    draw = np.random.default_rng(3)
    X, Y, shared = draw.normal(size=(100, 16)), draw.normal(size=(100, 16)), draw.normal(size=100)
    assert mutual_neighbours(X, Y, 10) == pytest.approx(10 / 99, abs=0.04)
    assert mutual_neighbours(X, X, 10) == 1.0
    apart = procrustes_distance(X, Y)
    X[:, 0] = Y[:, 0] = 1e3 * shared
    assert unbiased_cka(X, Y) > 0.999
    assert procrustes_distance(X, Y) < 0.01 < 0.5 < apart


@pytest.mark.parametrize("measure", [procrustes_distance, rsa])
def test_sides_that_cannot_be_compared(measure: object) -> None:
    assert callable(measure)
    good = made(6, 3)
    with pytest.raises(ValueError, match="features of 6 and of 5 rows"):
        measure(good, good[:5])
    with pytest.raises(ValueError, match="NaN or infinite"):
        measure(good, np.where(good > good[0, 0], np.nan, good))


def test_what_has_no_shape_no_order_or_no_directions() -> None:
    good = made(6, 3)
    for constant in (np.zeros((6, 3)), np.full((6, 3), 0.1, np.float32), 1e3 + 1e-6 * good):
        with pytest.raises(ValueError, match="all 6 rows are the same"):
            procrustes_distance(good, constant)
    with pytest.raises(ValueError, match="2 rows have 1 dissimilarities"):
        rsa(good[:2], good[:2])
    with pytest.raises(ValueError, match="a row's features are all equal"):
        rsa(good, np.full((6, 3), 0.1))
    with pytest.raises(ValueError, match="equally dissimilar"):
        rsa(good[:3], np.eye(3))
    with pytest.raises(ValueError, match="k is 4; allowed: 1 to 3"):
        principal(good, 4)
    with pytest.raises(ValueError, match="k is 3; allowed: 1 to 2, the directions of 3 rows"):
        principal(good[:3], 3)
    with pytest.raises(ValueError, match="width 3 and 2"):
        principal_shift(good, good[:, :2])
    with pytest.raises(ValueError, match="width 3 and 2"):
        principal_cosine(good, good[:, :2])
    with pytest.raises(ValueError, match="NaN or infinite"):
        principal_shift(good, good * np.inf)
    with pytest.raises(ValueError, match="shapes"):
        fisher_overlap(np.ones(3), np.ones(2))
    for bad in (np.zeros(3), np.array([1.0, -1.0, 1.0]), np.array([1.0, np.nan, 1.0])):
        with pytest.raises(ValueError, match="negative or not finite"):
            fisher_overlap(np.ones(3), bad)
