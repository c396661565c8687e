"""Text embedders for gates that decide on a prompt, and the clustering of what they give.

An embedder is rebuilt from its name; what it learned from a corpus is one array of weights that its owner keeps (in a buffer, say), so
that a saved gate needs no text. Knows no model that is unlearned and no steering.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.metrics import silhouette_score
from sklearn.preprocessing import normalize

from unlearnbench.api import UserError

EmbedderName = Literal["hashing_tfidf", "minilm"]
Array = NDArray[np.float64]


class Embedder(Protocol):
    """Texts to unit vectors. Stateless: `fit` gives what it learned, and `embed` is handed it back."""

    @property
    def width(self) -> int:
        """Number of features."""

    def fit(self, texts: Sequence[str]) -> Array:
        """The weight of each feature [width] in a corpus; ones where nothing is learned."""

    def embed(self, texts: Sequence[str], weights: Array) -> Array:
        """One row per text [len(texts), width], of length 1; 0 for a text without any feature that counts."""


@dataclass(frozen=True, kw_only=True)
class HashingTfidfEmbedder:
    """Words, hashed into `width` signed buckets and weighted by their rarity in a corpus.

    A word is two or more letters or digits, in lower case. The weight of a bucket is ln((1 + n) / (1 + df)), n texts of which df hold
    a word of it: a word of every text (a prompt's template) counts nothing, an unseen one most.
    """

    width: int = 2**14

    def fit(self, texts: Sequence[str]) -> Array:
        """See `Embedder.fit`."""
        df = np.bincount(self._counts(texts).indices, minlength=self.width)
        weights: Array = np.log((1.0 + len(texts)) / (1.0 + df))
        return weights

    def embed(self, texts: Sequence[str], weights: Array) -> Array:
        """See `Embedder.embed`."""
        rows: Array = normalize(self._counts(texts).multiply(weights).tocsr()).toarray()
        return rows

    def _counts(self, texts: Sequence[str]) -> Any:
        """Signed counts, sparse [len(texts), width]."""
        return HashingVectorizer(n_features=self.width, norm=None, dtype=np.float64).transform(list(texts)).tocsr()


@dataclass(frozen=True, kw_only=True)
class MiniLMEmbedder:
    """The sentence embedder all-MiniLM-L6-v2 on the CPU; reads a text's first 256 word pieces."""

    model: ClassVar[str] = "sentence-transformers/all-MiniLM-L6-v2"
    width: int = 384

    def fit(self, texts: Sequence[str]) -> Array:
        """See `Embedder.fit`: ones."""
        return np.ones(self.width)

    def embed(self, texts: Sequence[str], weights: Array) -> Array:
        """See `Embedder.embed`.

        One text at a time: in a batch, padding would move the last bits of a row by its neighbours.

        Raises:
            UserError: sentence-transformers is not installed.
        """
        encode = _sentence_transformer(self.model).encode
        rows = [encode(text, convert_to_numpy=True, normalize_embeddings=True, show_progress_bar=False) for text in texts]
        return np.asarray(rows, dtype=np.float64).reshape(len(texts), self.width)


def make_embedder(name: EmbedderName, width: int | None = None) -> Embedder:
    """The embedder of this name.

    Args:
        name: "hashing_tfidf" or "minilm".
        width: number of buckets for hashing_tfidf; None is its default. MiniLM has its own.

    Raises:
        UserError: there is none of this name, or its package is not installed.
    """
    if name == "hashing_tfidf":
        return HashingTfidfEmbedder() if width is None else HashingTfidfEmbedder(width=width)
    if name == "minilm":
        _package()
        return MiniLMEmbedder()
    raise UserError(f"no embedder {name!r}; allowed: hashing_tfidf, minilm")


def _package() -> Any:
    try:
        return importlib.import_module("sentence_transformers")
    except ImportError as error:
        hint = "install it (pip install 'unlearnbench[minilm]') or take 'hashing_tfidf'"
        raise UserError(f"embedder 'minilm' needs the package sentence-transformers, which is not installed; {hint}") from error


@cache
def _sentence_transformer(name: str) -> Any:
    return _package().SentenceTransformer(name, device="cpu")


def kmeans_labels(points: Array, k: int, *, seed: int) -> NDArray[np.int64]:
    """Cluster of each point [N], numbered 0, 1, ... in the order of first appearance, none empty.

    Args:
        points: [N, E]; at most as many clusters are made as there are distinct points.
        k: number of clusters, at least 1.
        seed: seed of the starting centres.
    """
    # A column of zeros moves no distance; hashed texts have thousands of them.
    used = points[:, points.any(axis=0)]
    k = min(k, len(np.unique(used, axis=0))) if used.shape[1] else 1
    if k == 1:
        return np.zeros(len(points), dtype=np.int64)
    labels = KMeans(n_clusters=k, n_init="auto", random_state=seed).fit_predict(used)
    order = {label: number for number, label in enumerate(dict.fromkeys(labels.tolist()))}
    return np.array([order[label] for label in labels.tolist()], dtype=np.int64)


def best_k(points: Array, candidates: Sequence[int], *, seed: int) -> int:
    """The number of clusters with the highest silhouette, the first of equals; 1 where fewer than three points are distinct.

    Args:
        points: [N, E].
        candidates: numbers to try, each at least 2; those that leave no cluster with two points are not.
        seed: seed of the starting centres.
    """
    used = points[:, points.any(axis=0)]
    scores = {}
    for k in candidates:
        if used.shape[1] == 0 or k >= len(np.unique(used, axis=0)):
            continue
        scores[k] = float(silhouette_score(used, kmeans_labels(used, k, seed=seed)))
    return max(scores, key=lambda k: scores[k]) if scores else 1


def cluster_centroids(points: Array, labels: NDArray[np.integer[Any]]) -> Array:
    """The mean of each cluster's points, of length 1 [K, E]."""
    means = np.stack([points[labels == label].mean(axis=0) for label in range(int(labels.max()) + 1)])
    rows: Array = normalize(means)
    return rows
