"""GUARD-IT's published code on fixed inputs: vectors, gates, redirection, calibration, clusters, and its whole offline phase.

What the plugin leaves out (BM25, routing by activations, the retain gate, additive steering) is composed here.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.feature_extraction.text import CountVectorizer
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from unlearnbench.layers import captured
from unlearnbench.mechanisms.embedders import best_k, cluster_centroids, kmeans_labels
from unlearnbench.mechanisms.steering import (
    Scaling,
    VectorMethod,
    cluster_weights,
    mean_over_tokens,
    quantile_threshold,
    rates,
    redirect,
    steering_vectors,
    youden_threshold,
)

ABSOLUTE = 1e-6
SEED = 0
MOST, FALLBACK = 2, 1
"""Of "dissimilar_threshold" in these numbers; the files do not say them."""
SWEEP = {"cluster": range(2, 9), "pipeline": range(2, 7)}
"""Numbers of clusters tried."""
Arrays = dict[str, NDArray[Any]]


@pytest.fixture(scope="session")
def arrays(conformance: Path) -> Arrays:
    with np.load(conformance / "methods-language" / "guardit.npz") as file:
        return dict(file)


@pytest.fixture(scope="session")
def printed(conformance: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((conformance / "methods-language" / "guardit.json").read_text(encoding="utf-8"))
    return found


def matching(arrays: Arrays, pattern: str) -> Iterator[tuple[re.Match[str], NDArray[Any]]]:
    """The entries whose whole name matches, at least one."""
    found = [(match, value) for name, value in arrays.items() if (match := re.fullmatch(pattern, name))]
    assert found, f"no entry {pattern}"
    yield from found


def tensor(array: NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.asarray(array))


def close(ours: Tensor | NDArray[Any], theirs: NDArray[Any], name: str, absolute: float = ABSOLUTE) -> None:
    np.testing.assert_allclose(np.asarray(ours, dtype=np.float64), theirs.astype(np.float64), rtol=2e-6, atol=absolute, err_msg=name)


def same_partition(ours: NDArray[Any], theirs: NDArray[Any]) -> bool:
    pairs = set(zip(ours.tolist(), theirs.tolist(), strict=True))
    return len(pairs) == len(set(ours.tolist())) == len(set(theirs.tolist()))


# ----------------------------------------------------------------------------------------------------------------------- vectors


def test_steering_vectors(arrays: Arrays, printed: dict[str, Any]) -> None:
    documents, labels = tensor(arrays["psv/forget_doc_activations"]), arrays["psv/labels"]
    kept = tensor(arrays["psv/retain_doc_activations"])
    members = [torch.from_numpy(labels == label) for label in range(labels.max() + 1)]
    means = torch.stack([documents[rows].mean(0) for rows in members])
    norms = torch.stack([documents[rows].norm(dim=1).mean() for rows in members])
    close(means, arrays["psv/forget_means"], "means")
    close(norms, arrays["psv/forget_norms"], "norms")
    close(kept.mean(0), arrays["psv/retain_mean"], "retain mean")
    retain_norm = float(kept.norm(dim=1).mean())
    assert retain_norm == pytest.approx(printed["psv/retain_norm"], rel=1e-6)
    seen = set()
    for match, theirs in matching(arrays, r"psv/(\w+)/(\w+)"):
        method, scaling = match.groups()
        ours = steering_vectors(means, norms, kept.mean(0), retain_norm, method=method, scaling=scaling)  # type: ignore[arg-type]
        close(ours, theirs, match[0])
        seen.add((method, scaling))
    assert seen == {(method, scaling) for method in get_args(VectorMethod) for scaling in get_args(Scaling)}


# ------------------------------------------------------------------------------------------------------------------ gate and hook


def vector(arrays: Arrays, row: int, mode: str, threshold: float) -> Tensor:
    """What the gate gives a row; 0 where it is shut."""
    shares = cluster_weights(
        tensor(arrays["gate/similarities"])[row],
        threshold,
        mode,  # type: ignore[arg-type]
        retain_similarity=float(arrays["gate/retain_similarities"][row]),
        most=MOST,
        fallback=FALLBACK,
    )
    return shares @ tensor(arrays["psv/orthogonal/activation_norm"])


def test_gates(arrays: Arrays) -> None:
    for match, theirs in matching(arrays, r"gate/(\w+)/T([\d.]+)/vector"):
        ours = torch.stack([vector(arrays, row, match[1], float(match[2])) for row in range(len(theirs))])
        steered = arrays[match[0].replace("/vector", "/steered")]
        assert ((ours != 0).any(1).numpy() == steered).all(), match[0]
        close(ours, np.where(steered[:, None], theirs, 0.0), match[0])


def test_redirection(arrays: Arrays) -> None:
    hidden, direction = tensor(arrays["hook/h"]), tensor(arrays["hook/v"])
    for match, theirs in matching(arrays, r"hook/alpha(-?[\d.]+)/(\w+)"):
        shift = float(match[1]) * direction
        close(redirect(hidden, shift) if match[2] == "norm_preserving" else hidden - shift, theirs, match[0], absolute=2e-6)


def test_gated_redirection(arrays: Arrays) -> None:
    hidden = tensor(arrays["hook/h"])
    pattern = r"gated_hook/(\w+)/T([\d.]+)/alpha([\d.]+)/retain_threshold([\d.]+)"
    for match, theirs in matching(arrays, pattern):
        mode, threshold, alpha, limit = match[1], *(float(match[number]) for number in (2, 3, 4))
        shifts = torch.stack([alpha * vector(arrays, row, mode, threshold) for row in range(len(hidden))])
        if limit > 0:  # the retain gate
            shifts[tensor(arrays["gate/retain_similarities"]) > limit] = 0
        turned = torch.where((shifts != 0).any(1)[:, None, None], redirect(hidden, shifts[:, None]), hidden)
        close(turned, theirs, match[0], absolute=2e-6)


def test_routing_by_activations(arrays: Arrays) -> None:
    def unit(points: NDArray[Any]) -> NDArray[np.float64]:
        return cluster_centroids(points.astype(np.float64), np.arange(len(points)))

    last = arrays["scorer/hidden"][:, -1]
    close(unit(last) @ unit(arrays["scorer/centroids"]).T, arrays["scorer/activation_cosine_last_token"], "scorer")


def test_bm25_routing_always_opens_for_one_cluster(arrays: Arrays, printed: dict[str, Any]) -> None:
    k1, b = 1.5, 0.75
    counter = CountVectorizer(token_pattern=r"(?u)\b\w+\b")
    tf = counter.fit_transform([" ".join(texts) for texts in printed["bm25/cluster_texts"]]).toarray().astype(np.float64)
    df, length = (tf > 0).sum(0), tf.sum(1, keepdims=True)
    idf = np.log((len(tf) - df + 0.5) / (df + 0.5) + 1)
    gains = idf * tf * (k1 + 1) / (tf + k1 * (1 - b + b * length / length.mean()))
    raw = counter.transform(printed["bm25/queries"]).toarray() @ gains.T
    close(raw, arrays["bm25/raw"], "raw")
    scores = torch.from_numpy(raw).softmax(1)
    close(scores, arrays["bm25/softmax"], "softmax")
    for row in scores:
        assert cluster_weights(row, 1 / len(row) - 1e-9).sum() == pytest.approx(1)
        assert cluster_weights(row, 1.0).sum() == 0


# --------------------------------------------------------------------------------------------------------- calibration, clusters


def test_calibration(arrays: Arrays, printed: dict[str, Any]) -> None:
    forget, retain = arrays["calibration/forget_scores"], arrays["calibration/retain_scores"]
    seen = []
    for name, theirs in printed.items():
        if not (match := re.fullmatch(r"calibration/(\w+?)_(?:alpha)?([\d.]+)", name)):
            continue
        rule, number = match[1], float(match[2])
        found = youden_threshold(forget, retain, weight=number) if rule == "youden" else quantile_threshold(retain, number)
        assert found == pytest.approx(theirs["threshold"], abs=1e-9), name
        assert rates(forget, retain, found) == pytest.approx((theirs["recall_forget"], theirs["fpr_retain"])), name
        seen.append(rule)
    assert set(seen) == {"youden", "retain_percentile"}


def test_clusters(arrays: Arrays, printed: dict[str, Any]) -> None:
    points = arrays["cluster/points"].astype(np.float64)
    for match, theirs in matching(arrays, r"cluster/kmeans_k(\d+)_seed(\d+)"):
        assert same_partition(kmeans_labels(points, int(match[1]), seed=int(match[2])), theirs), match[0]
    found = {name: value for name, value in printed.items() if name.startswith("cluster/best_k")}
    assert found
    for name, best in found.items():
        first, last, seed = map(int, re.findall(r"\d+", name))
        assert best_k(points, range(first, last + 1), seed=seed) == best, name


# ---------------------------------------------------------------------------------------------------------------------- pipeline


def stand_in(texts: Sequence[str], width: int) -> NDArray[np.float64]:
    """The text embedder that the numbers were made with."""
    rows = np.zeros((len(texts), width))
    for row, text in zip(rows, texts, strict=True):
        for word in re.findall(r"[a-z0-9]+", text.lower()):
            digest = hashlib.sha256(word.encode()).digest()
            row[digest[0] % width] += 1 if digest[1] % 2 else -1
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def documents(data_root: Path, rows: dict[str, list[int]], kind: str) -> list[str]:
    ((name, (first, end)),) = [(name, span) for name, span in rows.items() if name.startswith(kind)]
    lines = (data_root / "tofu" / f"{name}.json").read_text(encoding="utf-8").splitlines()[first:end]
    return ["{question}\n{answer}".format(**json.loads(line)) for line in lines]


@torch.no_grad()
def states(folder: Path, texts: Sequence[str], layers: Sequence[int], batch: int = 8) -> dict[int, Tensor]:
    """The mean over each document's tokens of the output of decoder layers [N, d]."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    parts: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    for start in range(0, len(texts), batch):
        inputs = tokenizer(list(texts[start : start + batch]), return_tensors="pt", padding=True, return_token_type_ids=False)
        with captured(model, layers) as outputs:
            model(**inputs)
        for layer in layers:
            parts[layer].append(mean_over_tokens(outputs[layer], inputs["attention_mask"]))
    return {layer: torch.cat(found) for layer, found in parts.items()}


def test_the_offline_phase(conformance: Path, data_root: Path, arrays: Arrays, printed: dict[str, Any]) -> None:
    forget, retain = (documents(data_root, printed["pipeline/rows"], kind) for kind in ("forget", "retain"))
    width = arrays["pipeline/text_embeddings"].shape[1]
    texts, kept_texts = stand_in(forget, width), stand_in(retain, width)
    close(texts, arrays["pipeline/text_embeddings"], "forget embeddings")
    close(kept_texts, arrays["pipeline/retain_embeddings"], "retain embeddings")
    found = [(match[1], int(match[2]), theirs) for match, theirs in matching(arrays, r"pipeline/(\w+)/layer(\d+)/psv")]
    layers = sorted({layer for _, layer, _ in found})

    # No file names the checkpoint; exactly one of them gives these numbers.
    agreeing = []
    for folder in sorted((conformance / "models").iterdir()):
        known, kept = (states(folder, docs, layers) for docs in (forget, retain))
        gaps = []
        for name, layer, theirs in found:
            labels, centroids = clusters(texts, name, arrays)
            members = [torch.from_numpy(labels == label) for label in range(len(centroids))]
            means = torch.stack([known[layer][rows].mean(0) for rows in members])
            norms = torch.stack([known[layer][rows].norm(dim=1).mean() for rows in members])
            ours = steering_vectors(means, norms, kept[layer].mean(0), float(kept[layer].norm(dim=1).mean()))
            gaps.append(np.abs(ours.numpy() - theirs).max() / np.abs(theirs).max())
            gaps.append(np.abs(means.numpy() - arrays[f"pipeline/{name}/layer{layer}/forget_means"]).max() / np.abs(theirs).max())
            asked, others = ((points @ centroids.T).max(1) for points in (texts, kept_texts))
            expected = printed[f"pipeline/{name}/calibration"]
            threshold = youden_threshold(asked, others, weight=expected["alpha"])
            assert threshold == pytest.approx(expected["threshold"], abs=1e-6)
            assert rates(asked, others, threshold) == pytest.approx((expected["recall_forget"], expected["fpr_retain"]))
        if max(gaps) < 5e-6:
            agreeing.append(folder.name)
    assert len(agreeing) == 1


def clusters(texts: NDArray[np.float64], name: str, arrays: Arrays) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Our clusters and centroids, numbered as theirs are."""
    k = best_k(texts, SWEEP["pipeline"], seed=SEED) if name == "auto" else int(name.removeprefix("k"))
    labels, theirs = kmeans_labels(texts, k, seed=SEED), arrays[f"pipeline/{name}/labels"]
    assert same_partition(labels, theirs), name
    renumbered = np.array([dict(zip(labels.tolist(), theirs.tolist(), strict=True))[label] for label in labels.tolist()])
    centroids = cluster_centroids(texts, renumbered)
    close(centroids, arrays[f"pipeline/{name}/text_centroids"], name)
    return renumbered, centroids
