"""Embedders against scikit-learn's own TF-IDF and a stand-in package, and clusters that are known."""

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer

from unlearnbench.api import UserError
from unlearnbench.mechanisms import embedders
from unlearnbench.mechanisms.embedders import HashingTfidfEmbedder, best_k, cluster_centroids, kmeans_labels, make_embedder

CORPUS = ("Question: Where was Ada Quill born?", "Question: What did Bram Osk write?", "Question: Where was Bram Merrow born?")


def test_cosines_are_those_of_tfidf_with_a_vocabulary() -> None:
    counts = CountVectorizer().fit_transform(CORPUS).toarray()
    rows = counts * np.log((1 + len(CORPUS)) / (1 + (counts > 0).sum(0)))
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    embedder = HashingTfidfEmbedder()
    found = embedder.embed(CORPUS, embedder.fit(CORPUS))
    assert found.shape == (3, embedder.width)
    np.testing.assert_allclose(found @ found.T, rows @ rows.T, atol=1e-12)


def test_words_of_every_text_count_nothing_and_unseen_ones_most() -> None:
    embedder = HashingTfidfEmbedder()
    weights = embedder.fit(CORPUS)
    ada, template, other = embedder.embed(["Ada", "question", "Question: Ada"], weights)
    assert not template.any()
    np.testing.assert_allclose(ada, other)
    assert weights.max() == np.log(1 + len(CORPUS))
    assert weights[embedder.embed(["Zebra"], weights)[0] != 0] == weights.max()


def test_a_text_does_not_depend_on_its_neighbours() -> None:
    embedder = HashingTfidfEmbedder(width=64)
    weights = embedder.fit(CORPUS)
    together = embedder.embed(CORPUS, weights)
    assert all(np.array_equal(row, embedder.embed([text], weights)[0]) for row, text in zip(together, CORPUS, strict=True))


def test_the_name_decides() -> None:
    assert make_embedder("hashing_tfidf") == HashingTfidfEmbedder()
    assert make_embedder("hashing_tfidf", 32) == HashingTfidfEmbedder(width=32)
    with pytest.raises(UserError, match="no embedder 'glove'; allowed: hashing_tfidf, minilm"):
        make_embedder("glove")  # type: ignore[arg-type]


def test_without_its_package_minilm_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(UserError, match=r"'minilm' needs the package sentence-transformers, which is not installed; install it"):
        make_embedder("minilm")


def test_minilm_takes_normalised_vectors_from_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = []

    class SentenceTransformer:
        def __init__(self, name: str, *, device: str) -> None:
            loaded.append((name, device))

        def encode(self, text: str, *, normalize_embeddings: bool, **options: Any) -> Any:
            assert normalize_embeddings
            return np.eye(384, dtype=np.float32)[len(text)]

    monkeypatch.setitem(sys.modules, "sentence_transformers", SimpleNamespace(SentenceTransformer=SentenceTransformer))
    embedders._sentence_transformer.cache_clear()
    embedder = make_embedder("minilm")
    weights = embedder.fit(["a"])
    found = embedder.embed(["ab", "abcd"], weights)
    embedder.embed(["abc"], weights)
    embedders._sentence_transformer.cache_clear()
    assert embedder.width == len(weights) == 384
    assert found.argmax(1).tolist() == [2, 4]
    assert loaded == [("sentence-transformers/all-MiniLM-L6-v2", "cpu")]


def blobs(k: int, each: int = 6) -> Any:
    """Points around k corners, one corner after the other, with a column of zeros between them."""
    noise = np.random.default_rng(0).normal(0, 0.05, (k * each, k))
    points = np.zeros((k * each, 2 * k))
    points[:, ::2] = np.repeat(np.eye(k), each, axis=0) + noise
    return points


@pytest.mark.parametrize("k", [2, 3, 5])
def test_corners_are_found_and_counted(k: int) -> None:
    points = blobs(k)
    assert best_k(points, range(2, 9), seed=0) == k
    assert kmeans_labels(points, k, seed=0).tolist() == [corner for corner in range(k) for _ in range(6)]


def test_there_are_no_more_clusters_than_distinct_points() -> None:
    points = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    assert kmeans_labels(points, 5, seed=0).tolist() == [0, 1, 0]
    assert best_k(points, range(2, 5), seed=0) == 1
    assert kmeans_labels(np.zeros((3, 2)), 2, seed=0).tolist() == [0, 0, 0]
    assert best_k(np.zeros((3, 2)), range(2, 5), seed=0) == 1


def test_centroids_are_means_of_length_one() -> None:
    points = np.array([[3.0, 0.0], [0.0, 2.0], [0.0, 5.0], [3.0, 8.0]])
    found = cluster_centroids(points, np.array([0, 1, 1, 0]))
    np.testing.assert_allclose(found, [[0.6, 0.8], [0.0, 1.0]])
