"""GUARD-IT: gated activation redirection at inference.

Turani, Parraga, Barros, Kupssinskü and others, 2026, arXiv:2605.12765. Read in the authors' published code, whose settings the defaults
are: layer at a quarter of the depth, orthogonal vectors scaled to the activations' norm, K-means with K by silhouette, 2 to 20.

No weight changes. Offline, the documents to forget are clustered by their texts; each cluster gets a text centroid and a steering vector,
its mean activation without the direction of the retained ones. Online, a prompt is embedded once; if it is like a centroid, every state
at one layer is moved away from that cluster's vector and brought back to its length. Nothing is erased: stripped of its module the model
is the original to the bit. The module holds no text, but hashed words of the forgotten prompts can be tested against its centroids.

Deviations:

- The default embedder hashes words (TF-IDF); the paper's MiniLM is taken by name where it is installed. A threshold depends on the
  embedder, so that the paper's 0.55 is no default: the threshold is calibrated, by the code's own rules, on prompts of forget rows
  against those of retain and validation rows, never on a metric, and is never below 0.
- The gate reads the prompt alone, as deployed, template words included; the code also reads the answer where it scores one. Centroids
  are therefore those of prompts, not of "question, newline, answer"; of a text without a question (its prompt is empty, or one that
  retain rows have too) they are those of the text. The template's words count nothing under TF-IDF, since every prompt has them.
- Activations are those of the sequences that the model was taught: prompt, answer and end token, not "question, newline, answer".
- Alpha is positive away from the forgotten (the code's sign; its README shows negative ones). Its default is the top of the code's grid.
  A vector is as long as a document's mean state, which may be shorter than a token's: on the two layers of the embedded authors alpha 1
  changed no answer and 3 nearly all (measured), so tune it.
- A later request appends its clusters with thresholds of their own. Word weights, the retained centroid of "ratio" and the vectors of
  earlier requests stay as they were, so that prompts that match only old clusters give what they gave.
- The seed of the clustering is that of `unlearn`.
- Left out: BM25 routing (its softmax over clusters sums to 1 for any prompt, so that one cluster is always on, and it keeps the texts),
  k-medoids, clusters by activation, the retain gate (off in the code), vectors of the last token, additive steering.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
import torch
from accelerate.utils import send_to_device
from pydantic import Field
from torch import Tensor, nn

from unlearnbench.api import Data, Method, MethodView, UserError
from unlearnbench.causal import hidden_states
from unlearnbench.layers import Conditioned, blocks, insert, inserted
from unlearnbench.mechanisms.embedders import Array, Embedder, EmbedderName, best_k, cluster_centroids, kmeans_labels, make_embedder
from unlearnbench.mechanisms.steering import (
    Scaling,
    Selection,
    VectorMethod,
    cluster_weights,
    gate_scores,
    mean_over_tokens,
    quantile_threshold,
    redirect,
    steering_vectors,
    youden_threshold,
)

BATCH = 32
"""Documents of a forward pass."""
CHUNK = 256
"""Texts that are held as embeddings at once."""


class Redirection(Conditioned):
    """A decoder layer whose output is redirected in rows whose prompt is like a cluster of what was forgotten.

    Buffers, in float32 or better: `vectors` [clusters, width], strength included; `centroids` [clusters, features]; `thresholds`
    [clusters]; `retained` [features], the centroid of retained prompts; `weights` [features], what the embedder learned.
    """

    vectors: Tensor
    centroids: Tensor
    thresholds: Tensor
    retained: Tensor
    weights: Tensor

    def __init__(self, inner: nn.Module, *, clusters: int, width: int, embedder: EmbedderName, features: int, selection: Selection) -> None:
        super().__init__(inner)
        self.embedder, self.selection = embedder, selection
        weight = next(inner.parameters())
        kind: dict[str, Any] = {"dtype": torch.promote_types(weight.dtype, torch.float32), "device": weight.device}
        self.register_buffer("vectors", torch.zeros(clusters, width, **kind))
        self.register_buffer("centroids", torch.zeros(clusters, features, **kind))
        self.register_buffer("thresholds", torch.zeros(clusters, **kind))
        self.register_buffer("retained", torch.zeros(features, **kind))
        self.register_buffer("weights", torch.ones(features, **kind))

    def config(self) -> dict[str, Any]:
        """See `Inserted.config`: sizes and names, no text."""
        clusters, features = self.centroids.shape
        sizes = {"clusters": clusters, "width": self.vectors.shape[1], "features": features}
        return {**sizes, "embedder": self.embedder, "selection": self.selection}

    def similarities(self, texts: Sequence[str]) -> tuple[Array, Array]:
        """Cosines of texts to the clusters' centroids [N, clusters] and to that of retained prompts [N]."""
        embedder = make_embedder(self.embedder, self.centroids.shape[1])
        weights, centroids, retained = (x.cpu().double().numpy() for x in (self.weights, self.centroids, self.retained))
        found, kept = [np.empty((0, len(centroids)))], [np.empty(0)]
        for start in range(0, len(texts), CHUNK):
            rows = embedder.embed(texts[start : start + CHUNK], weights)
            # Row by row: the last bits of a product of matrices depend on their shapes, and a prompt's gate on nothing but the prompt.
            found.append(np.stack([centroids @ row for row in rows]))
            kept.append(np.array([retained @ row for row in rows]))
        return np.concatenate(found), np.concatenate(kept)

    def condition(self, prompts: Sequence[str]) -> Tensor:
        """What is taken from each prompt's states [len(prompts), width]; 0 where the gate is shut."""
        shifts = self.vectors.new_zeros(len(prompts), self.vectors.shape[1])
        limits = self.thresholds.cpu().double()
        for row, near, shift in zip(*self.similarities(prompts), shifts, strict=True):
            share = cluster_weights(torch.from_numpy(row), limits, self.selection, retain_similarity=float(near))
            shift.copy_(share.to(shift) @ self.vectors)
        return shifts

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The layer's output, its states [B, T, width] redirected; those of rows with a shut gate are the layer's to the bit."""
        output = self.inner(*args, **kwargs)
        hidden: Tensor = output[0] if isinstance(output, tuple) else output
        shift = self.rows(len(hidden))[:, None]
        turned = torch.where((shift != 0).any(-1, keepdim=True), redirect(hidden, shift), hidden)
        return (turned, *output[1:]) if isinstance(output, tuple) else turned


class GuardIT(Method):
    """Steer away from what is to be forgotten where a prompt asks for it."""

    paper = "arXiv:2605.12765"
    modality = ("language",)
    edits_weights = False
    inserts = (Redirection,)

    clusters: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Clusters of a request's documents, at most one per distinct prompt; auto: from 2 to 20, by silhouette."""
    alpha: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """Strength, in units of the steering vector; 0 steers nothing."""
    depth: Annotated[float, Field(ge=0, lt=1)] = 0.25
    """Which layer's output is steered, as a share of the layers, rounded down."""
    selection: Selection = "threshold"
    """Which clusters' vectors a prompt gets; "best", "soft" and "dissimilar_threshold" steer nearly every prompt."""
    threshold: Annotated[float, Field(ge=0, allow_inf_nan=False)] | Literal["youden", "quantile"] = "youden"
    """A cosine (a quotient of two for "ratio"), or the rule that finds it."""
    fpr_weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """For "youden": how much a retained prompt that is steered counts against a forgotten one that is."""
    target_fpr: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """For "quantile": share of the retained prompts that may be steered."""
    vector: VectorMethod = "orthogonal"
    """How a steering vector is made."""
    scaling: Scaling = "activation_norm"
    """How long a steering vector is."""
    embedder: EmbedderName = "hashing_tfidf"
    """What turns prompts into vectors; "minilm", the paper's, needs sentence-transformers and its weights."""

    @torch.no_grad()
    def unlearn(self, model: nn.Module, view: MethodView, *, seed: int) -> nn.Module:
        """See `Method.unlearn`.

        Raises:
            UserError: the embedder is not installed, or an earlier request was served with another embedder, selection or depth.
        """
        earlier = _taken_out(model)
        index = int(self.depth * len(blocks(model)))
        path, layer = blocks(model)[index]
        embedder = make_embedder(self.embedder)
        forget, retain, others = _texts(view)
        weights = embedder.fit([*forget, *retain]) if earlier is None else earlier[1].weights.cpu().double().numpy()

        # 1. Clusters of the prompts to forget.
        texts = embedder.embed(forget, weights)
        labels = kmeans_labels(texts, best_k(texts, range(2, 21), seed=seed) if self.clusters == "auto" else self.clusters, seed=seed)
        centroids = cluster_centroids(texts, labels)

        # 2. A steering vector for each.
        known, kept = (_document_states(model, rows, index) for rows in (view.forget.train, view.retain.train))
        members = [torch.from_numpy(np.flatnonzero(labels == label)) for label in range(len(centroids))]
        vectors = steering_vectors(
            torch.stack([known[rows].mean(0) for rows in members]),
            torch.stack([known[rows].norm(dim=1).mean() for rows in members]),
            kept.mean(0),
            float(kept.norm(dim=1).mean()),
            method=self.vector,
            scaling=self.scaling,
        )

        # 3. The gate, and where it opens.
        shape = {"clusters": len(centroids), "width": vectors.shape[1], "features": embedder.width}
        gate = Redirection(layer, **shape, embedder=self.embedder, selection=self.selection)
        gate.vectors.copy_(self.alpha * vectors)
        gate.centroids.copy_(torch.from_numpy(centroids))
        gate.weights.copy_(torch.from_numpy(weights))
        gate.retained.copy_(torch.from_numpy(_centroid(embedder, retain, weights)) if earlier is None else earlier[1].retained)
        gate.thresholds.fill_(self._threshold(gate, forget, [*retain, *others]))
        insert(model, path, gate if earlier is None else _appended(*earlier, path, gate))
        return model.eval()

    def _threshold(self, gate: Redirection, forget: Sequence[str], others: Sequence[str]) -> float:
        if isinstance(self.threshold, float | int):
            return float(self.threshold)
        asked, kept = (gate_scores(*gate.similarities(texts), self.selection) for texts in (forget, others))
        if self.threshold == "quantile":
            return max(0.0, quantile_threshold(kept, self.target_fpr))
        return max(0.0, youden_threshold(asked, kept, weight=self.fpr_weight))


def _texts(view: MethodView) -> list[list[str]]:
    """What the gate is made of and calibrated on: the texts of forget, retain and validation rows.

    A row's prompt, as a deployed model is given it; the whole row where the prompt is empty or stands in both forget and retain rows.
    """
    every = []
    for rows in (view.forget.train, view.retain.train, view.validation):
        pairs: list[tuple[str, str]] = []
        for index in torch.split(torch.arange(len(rows)), CHUNK):
            batch = rows.batch(index)
            whole = [ids[mask.bool()].tolist() for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
            pairs += zip(batch["prompts"], view.tokenizer.batch_decode(whole, skip_special_tokens=True), strict=True)
        every.append(pairs)
    asked, kept = ({prompt for prompt, _ in pairs} for pairs in every[:2])
    silent = (asked & kept) | {""}
    return [[text if prompt in silent else prompt for prompt, text in pairs] for pairs in every]


def _document_states(model: nn.Module, rows: Data, index: int) -> Tensor:
    """The mean over each row's tokens of the state behind a block [N, d], on the CPU."""
    device = next(model.parameters()).device
    parts = []
    for chosen in torch.split(torch.arange(len(rows)), BATCH):
        batch = send_to_device(rows.batch(chosen), device)
        parts.append(mean_over_tokens(hidden_states(model.eval(), batch, [index])[index], batch["attention_mask"]).cpu())
    return torch.cat(parts)


def _centroid(embedder: Embedder, texts: Sequence[str], weights: Array) -> Array:
    """The mean of the texts' embeddings, of length 1 [features]."""
    total = np.zeros((1, embedder.width))
    for start in range(0, len(texts), CHUNK):
        total += embedder.embed(texts[start : start + CHUNK], weights).sum(axis=0)
    centroid: Array = cluster_centroids(total, np.zeros(1, dtype=np.int64))[0]
    return centroid


def _taken_out(model: nn.Module) -> tuple[str, Redirection] | None:
    """The gate of earlier requests and where it stood; the model is left without it, its states those of the original."""
    for path, module in inserted(model):
        if isinstance(module, Redirection):
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, module.inner)
            return path, module
    return None


def _appended(before: str, old: Redirection, path: str, new: Redirection) -> Redirection:
    """One gate with the clusters of both.

    Raises:
        UserError: they differ in more than their clusters.
    """
    asked, held = ({"layer": where, **gate.config(), "clusters": 0} for where, gate in ((path, new), (before, old)))
    if asked != held:
        name = next(name for name in asked if asked[name] != held[name])
        raise UserError(f"guard_it: {name} is {asked[name]!r}, but earlier requests were served with {held[name]!r}; allowed: the same")
    both = Redirection(new.inner, **{**new.config(), "clusters": len(old.vectors) + len(new.vectors)})
    for name in ("vectors", "centroids", "thresholds"):
        getattr(both, name).copy_(torch.cat([getattr(old, name), getattr(new, name)]))
    both.weights.copy_(old.weights)
    both.retained.copy_(old.retained)
    return both
