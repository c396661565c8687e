"""Kernels, biased CKA and nearest neighbours against scikit-learn and by hand; the unbiased CKA is tested with its metric."""

import numpy as np
import pytest
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors

from unlearnbench.similarity import cka, hsic_0, hsic_1, knn_classes, mutual_neighbours, nearest, rbf_gram, squared_distances, unit_rows


def made(n: int = 40, width: int = 5, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, width))


def test_kernels_against_scikit_learn() -> None:
    X = made()
    np.testing.assert_allclose(rbf_gram(X, 0.7), rbf_kernel(X, gamma=1 / (2 * 0.7**2)), atol=1e-12)
    far = X + 1e6  # distances do not care where the rows lie
    np.testing.assert_allclose(squared_distances(far), squared_distances(X), atol=1e-6)


def test_biased_hsic_by_its_definition() -> None:
    K, L = (rows @ rows.T for rows in (made(seed=1), made(seed=2)))
    H = np.eye(40) - 1 / 40
    assert hsic_0(K, L) == pytest.approx(np.trace(K @ H @ L @ H) / 39**2, rel=1e-10)
    assert cka(K, L, hsic_0) == pytest.approx(
        np.trace(K @ H @ L @ H) / np.sqrt(np.trace(K @ H @ K @ H) * np.trace(L @ H @ L @ H)), rel=1e-10
    )


def test_the_biased_form_tends_to_one_with_more_features_than_rows() -> None:
    K, L = (rows @ rows.T for rows in (made(30, 2000, 3), made(30, 2000, 4)))
    assert cka(K, L, hsic_0) > 0.9
    assert abs(cka(K, L, hsic_1)) < 0.1


def test_neighbours_against_scikit_learn() -> None:
    rows, queries = made(60, 4, 5), made(25, 4, 6)
    labels = np.random.default_rng(7).integers(0, 4, 60)
    reference = NearestNeighbors(n_neighbors=5, metric="cosine").fit(rows)
    np.testing.assert_array_equal(nearest(queries, rows, 5), reference.kneighbors(queries)[1])
    voted = KNeighborsClassifier(n_neighbors=5, metric="cosine").fit(rows, labels).predict(queries)
    np.testing.assert_array_equal(knn_classes(queries, rows, labels, 5), voted)
    np.testing.assert_array_equal(knn_classes(queries * 3, rows * 0.1, labels, 5), voted)  # cosines know no scale
    with pytest.raises(ValueError, match="k is 61; allowed: 1 to 60"):
        nearest(queries, rows, 61)


def test_mutual_neighbours_by_counting() -> None:
    X, Y = made(seed=8), made(width=3, seed=9)

    def sets(rows: np.ndarray) -> list[set[int]]:
        alike = unit_rows(rows) @ unit_rows(rows).T
        return [set(sorted((j for j in range(40) if j != i), key=lambda j: -alike[i, j])[:6]) for i in range(40)]

    expected = np.mean([len(a & b) / 6 for a, b in zip(sets(X), sets(Y), strict=True)])
    assert mutual_neighbours(X, Y, 6) == pytest.approx(expected)
    assert mutual_neighbours(X, 2 * X, 6) == 1.0
    with pytest.raises(ValueError, match="the same rows"):
        mutual_neighbours(X, Y[:5], 2)
    with pytest.raises(ValueError, match="k is 40; allowed: 1 to 39"):
        mutual_neighbours(X, Y, 40)
