"""Similarity of representations and nearest neighbours against the official implementations; batches and constants are composed here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from vision_conformance import Vision

from unlearnbench.geometry import minibatch_cka, procrustes_distance
from unlearnbench.similarity import (
    centred_gram,
    cka,
    hsic_0,
    hsic_1,
    knn_classes,
    mutual_neighbours,
    nearest,
    rbf_gram,
    squared_distances,
    unbiased_cka,
    unit_rows,
)

CONSTANT = 1e-6
Pair = tuple[np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def vision(conformance: Path) -> Vision:
    return Vision(conformance / "methods-vision")


def pairs(vision: Vision) -> Iterator[tuple[np.ndarray, np.ndarray, dict[str, float]]]:
    features = vision.entry("representation")
    for name, expected in vision.numbers("representation").items():
        one, _, other = name.partition("_")
        if f"features/{one}" in features and f"features/{other}" in features:
            yield features[f"features/{one}"], features[f"features/{other}"], expected


def compare(vision: Vision, formulas: dict[str, Callable[[np.ndarray, np.ndarray], float]], atol: float) -> None:
    compared = 0
    for X, Y, expected in pairs(vision):
        for name, formula in formulas.items():
            assert formula(X, Y) == pytest.approx(expected[name], abs=atol), name
            compared += 1
    assert compared


def linear(X: np.ndarray, Y: np.ndarray, hsic: Callable[[np.ndarray, np.ndarray], float]) -> float:
    return cka(centred_gram(X), centred_gram(Y), hsic)


def rbf(X: np.ndarray, Y: np.ndarray, threshold: float) -> float:
    """The bandwidth is the lower median of all distances, those of a row to itself among them."""
    grams = []
    for rows in (X, Y):
        median = np.sort(squared_distances(rows), axis=None)[(len(rows) ** 2 - 1) // 2]
        grams.append(rbf_gram(rows, threshold * np.sqrt(median)))
    return cka(*grams, hsic_0)


def batches(X: np.ndarray, Y: np.ndarray, size: int) -> Iterator[Pair]:
    yield from ((X[i : i + size], Y[i : i + size]) for i in range(0, len(X), size))


def minibatch(X: np.ndarray, Y: np.ndarray, size: int) -> float:
    return minibatch_cka(batches(X, Y, size))


def batch_average(X: np.ndarray, Y: np.ndarray, size: int) -> float:
    """The mean of biased values of batches, which is inflated."""
    return float(np.mean([linear(A, B, hsic_0) for A, B in batches(X, Y, size)]))


def test_cka(vision: Vision) -> None:
    compare(
        vision,
        {
            "cka_linear_biased": partial(linear, hsic=hsic_0),
            "cka_linear_biased_hsic": partial(linear, hsic=hsic_0),
            "cka_linear_unbiased": unbiased_cka,
            "cka_rbf_biased": partial(rbf, threshold=1.0),
            "cka_rbf_threshold0_5_biased": partial(rbf, threshold=0.5),
        },
        atol=2e-9,
    )


def test_cka_over_batches(vision: Vision) -> None:
    for _, _, expected in pairs(vision):
        for kind, formula, atol in (("cka_minibatch_unbiased", minibatch, 2e-6), ("cka_uuef_batch_average", batch_average, 1e-6)):
            sizes = [int(name.rpartition("_")[2]) for name in expected if name.startswith(f"{kind}_")]
            assert sizes
            compare(vision, {f"{kind}_{size}": partial(formula, size=size) for size in sizes}, atol)
        assert expected["cka_uuef_batch_average_16"] > expected["cka_uuef_full"] + 0.05
    compare(vision, {"cka_uuef_full": partial(linear, hsic=hsic_0)}, 1e-6)


def among_others(X: np.ndarray, k: int) -> np.ndarray:
    """Neighbours of every row among the others [n, k]."""
    found = nearest(X, X, k + 1)
    return np.stack([row[row != i][:k] for i, row in enumerate(found)])


def by_inner_product(X: np.ndarray, Y: np.ndarray, k: int) -> float:
    """Of rows that are not normalised."""
    tops = []
    for rows in (X, Y):
        alike = (rows @ rows.T).astype(np.float64)
        np.fill_diagonal(alike, -np.inf)
        tops.append(np.argsort(-alike, axis=1)[:, :k])
    return float(np.mean([len(np.intersect1d(a, b)) / k for a, b in zip(*tops, strict=True)]))


def cycle(X: np.ndarray, Y: np.ndarray, k: int) -> float:
    """Share of rows that are among the neighbours in X of one of their neighbours in Y's sense."""
    ours, theirs = among_others(X, k), among_others(Y, k)
    return float(np.mean([i in ours[row] for i, row in enumerate(theirs)]))


def cknna(X: np.ndarray, Y: np.ndarray, k: int) -> float:
    """Unbiased CKA over the pairs that are neighbours on both sides, with 1e-6 in the denominator."""
    ours, theirs = (unit_rows(rows) @ unit_rows(rows).T for rows in (X, Y))

    def mask(gram: np.ndarray) -> np.ndarray:
        inside = gram.copy()
        np.fill_diagonal(inside, -np.inf)
        chosen = np.zeros_like(gram)
        np.put_along_axis(chosen, np.argsort(-inside, axis=1)[:, :k], 1.0, axis=1)
        return chosen

    def local(K: np.ndarray, L: np.ndarray) -> float:
        both = mask(K) * mask(L)
        return hsic_1(both * K, (both * L).T)  # the mask is not symmetric, and the trace is that of the product

    return float(local(ours, theirs) / (np.sqrt(local(ours, ours) * local(theirs, theirs)) + CONSTANT))


def with_constant(X: np.ndarray, Y: np.ndarray, hsic: Callable[[np.ndarray, np.ndarray], float]) -> float:
    """CKA of normalised rows, not centred before, with 1e-6 in the denominator; the biased HSIC is not divided by (n - 1)^2."""
    scale = 1 if hsic is hsic_1 else (len(X) - 1) ** 2
    K, L = (unit_rows(rows) @ unit_rows(rows).T for rows in (X, Y))
    return float(hsic(K, L) * scale / (np.sqrt(hsic(K, K) * hsic(L, L)) * scale + CONSTANT))


def test_neighbourhoods(vision: Vision) -> None:
    compare(
        vision,
        {
            "platonic_mutual_knn_10": partial(mutual_neighbours, k=10),
            "platonic_mutual_knn_10_unnormalised": partial(by_inner_product, k=10),
            "platonic_cycle_knn_10": partial(cycle, k=10),
            "platonic_cknna_10": partial(cknna, k=10),
            "platonic_cka": partial(with_constant, hsic=hsic_0),
            "platonic_unbiased_cka": partial(with_constant, hsic=hsic_1),
        },
        atol=1e-6,
    )


def padded(X: np.ndarray, Y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centred, in float64, and as wide as the wider side."""
    width = max(X.shape[1], Y.shape[1])
    X, Y = (side.astype(np.float64) - side.astype(np.float64).mean(axis=0) for side in (X, Y))
    return np.pad(X, ((0, 0), (0, width - X.shape[1]))), np.pad(Y, ((0, 0), (0, width - Y.shape[1])))


def half_whitened(X: np.ndarray) -> np.ndarray:
    """Halfway between the features and the whitened ones, scaled to their variance; eigenvalues are 1e-7 at least."""
    values, vectors = np.linalg.eigh(X.T @ X)
    values = np.maximum(values, 1e-7)
    scales = 0.5 + 0.5 / np.sqrt(values)
    return X @ (vectors * scales * np.sqrt(values.sum() / (scales**2 * values).sum())) @ vectors.T


def angle(X: np.ndarray, Y: np.ndarray, *, whitens: bool) -> float:
    """Between the two shapes, in radians: their distance is the chord of it."""
    X, Y = padded(X, Y)
    if whitens:
        X, Y = half_whitened(X), half_whitened(Y)
    return float(np.arccos(1 - procrustes_distance(X, Y) ** 2 / 2))


def euclidean(X: np.ndarray, Y: np.ndarray, *, whitens: bool) -> float:
    """Of features that keep their size, by the law of cosines."""
    turn = angle(X, Y, whitens=whitens)
    X, Y = padded(X, Y)
    if whitens:
        X, Y = half_whitened(X), half_whitened(Y)
    a, b = np.linalg.norm(X), np.linalg.norm(Y)
    return float(np.sqrt(a**2 + b**2 - 2 * a * b * np.cos(turn)))


def test_shapes(vision: Vision) -> None:
    compare(
        vision,
        {
            "netrep_procrustes_angular": partial(angle, whitens=False),
            "netrep_procrustes_euclidean": partial(euclidean, whitens=False),
            "netrep_alpha0.5_angular": partial(angle, whitens=True),
            "netrep_alpha0.5_euclidean": partial(euclidean, whitens=True),
        },
        atol=1e-9,
    )


def test_nearest_neighbour_accuracy_is_exact(vision: Vision) -> None:
    entry, labels = vision.entry("representation"), vision.arrays["test_y"]
    train, test = entry["knn_train_index"], entry["knn_test_index"]
    numbers = vision.numbers("representation")
    for name, expected in next(value for key, value in numbers.items() if key.startswith("knn5_cosine")).items():
        X = entry[f"features/{name}"]
        assert (knn_classes(X[test], X[train], labels[train], 5) == labels[test]).mean() == pytest.approx(expected, abs=1e-12), name
