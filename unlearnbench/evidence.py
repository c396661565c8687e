"""What one pass over a scenario's splits gives: the only thing that metrics and membership attacks read.

Rows keep their identity (`ids`) and cluster; ragged token arrays are stored flat with offsets. The file knows containers, how they
are saved, and nothing of models.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unlearnbench.api import Need

Floats = NDArray[np.floating[Any]]


class Tokens(NamedTuple):
    """Per-token statistics of the answers of one split, flat, with one slice per row; the end token is included and last.

    logprob: float32 [total], natural logarithm of the probability of each answer token given all before it.
    hit: bool [total], whether the arg-max token is the answer's token.
    offsets: int64 [rows + 1]; row i is the slice offsets[i]:offsets[i + 1]; no row is empty.
    mean, variance: float32 [total] or None: of the log-probability under the model's own distribution at that position.
    """

    logprob: NDArray[np.float32]
    hit: NDArray[np.bool_]
    offsets: NDArray[np.int64]
    mean: NDArray[np.float32] | None = None
    variance: NDArray[np.float32] | None = None

    def rows(self) -> list[slice]:
        """The slice of each row."""
        return [slice(int(a), int(b)) for a, b in zip(self.offsets[:-1], self.offsets[1:], strict=True)]

    def nll(self) -> Floats:
        """Mean negative log-likelihood per token of each row [rows], in nats."""
        sums = np.add.reduceat(self.logprob.astype(np.float64), self.offsets[:-1])
        return np.asarray(-sums / np.diff(self.offsets))


class Missing(KeyError):
    """A metric read evidence that its `wants` does not name."""


@dataclass(frozen=True)
class Evidence:
    """The result of one pass, addressed by `Need`.

    `ids` and `clusters` map a split's name to its rows. Token statistics are a list with one `Tokens` per answer (one, or as many as
    there are perturbed answers); generations a list of texts; logits [rows, classes]; features [rows, width]; gradient norms [rows, 1].
    """

    ids: Mapping[str, tuple[str, ...]]
    clusters: Mapping[str, tuple[str, ...]]
    token_stats: Mapping[Need, tuple[Tokens, ...]] = field(default_factory=dict)
    texts: Mapping[Need, tuple[str, ...]] = field(default_factory=dict)
    references: Mapping[Need, tuple[str, ...]] = field(default_factory=dict)
    """The reference answer of each row of a generation or a `text`."""
    arrays: Mapping[Need, Floats] = field(default_factory=dict)
    labels: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)
    """True class of each row of a split, for vision."""

    def tokens(self, need: Need) -> tuple[Tokens, ...]:
        """Token statistics, one entry per answer of the rows."""
        # Moments are a superset: a need without them is served by the same pass.
        for candidate in (need, replace(need, moments=True)):
            if candidate in self.token_stats:
                return self.token_stats[candidate]
        raise Missing(f"no {need} in this evidence")

    def nll(self, need: Need) -> NDArray[np.float64]:
        """Mean negative log-likelihood per token of each answer [answers, rows], in nats; the end token counts."""
        return np.stack([np.asarray(tokens.nll(), dtype=np.float64) for tokens in self.tokens(need)])

    def generations(self, need: Need) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Generated texts and their reference answers."""
        if need not in self.texts:
            raise Missing(f"no {need} in this evidence")
        return self.texts[need], self.references[need]

    def array(self, need: Need) -> Floats:
        """What a model gives for each row, float [rows, width].

        A gradient norm (width 1) is the mean over parameter tensors of the L2 norm of the gradient of a row's mean negative
        log-likelihood per answer token, taken row by row in eval mode.

        Pixels are the row's own image, whatever the model: its channels, each averaged over a grid of at most 8 x 8 cells.

        A classifier's logits and features are those of the row's image. For a denoising model each row stands for one sample of the
        row's class, from noise that the row's identity decides: logits and features are what a fixed judge makes of the samples,
        image_features what it makes of the rows' own images. denoising_loss (width 1) and unconditional (noise predicted without a
        label) are of the rows' own images, at timesteps and noise that are the same for all models.
        """
        if need not in self.arrays:
            raise Missing(f"no {need} in this evidence")
        return self.arrays[need]

    def joined(self, other: Evidence) -> Evidence:
        """This evidence and another one of the same model and rows, as one."""
        names = ("ids", "clusters", "token_stats", "texts", "references", "arrays", "labels")
        return Evidence(**{name: {**getattr(self, name), **getattr(other, name)} for name in names})

    def by_row(self, split: str, values: Sequence[float] | Floats) -> dict[str, float]:
        """Per-row values joined to their identities."""
        return {row: float(value) for row, value in zip(self.ids[split], values, strict=True)}

    # ------------------------------------------------------------------------------------------------------------- on disk

    def save(self, folder: Path) -> None:
        """Write `evidence.safetensors` and `evidence.json` into the folder; needs with an intervention are refused."""
        from safetensors.numpy import save_file

        tensors: dict[str, NDArray[Any]] = {}
        entries: list[dict[str, Any]] = []
        for need in sorted({*self.token_stats, *self.texts, *self.references, *self.arrays}, key=repr):
            if need.intervention is not None:
                raise ValueError("evidence under an intervention belongs to one metric and is not kept")
            place = str(len(entries))
            entry: dict[str, Any] = {"need": asdict(need)}
            for number, stats in enumerate(self.token_stats.get(need, ())):
                for name, array in stats._asdict().items():
                    if array is not None:
                        tensors[f"{place}/{number}/{name}"] = np.ascontiguousarray(array)
            entry["answers"] = len(self.token_stats.get(need, ()))
            if need in self.texts:
                entry["texts"] = self.texts[need]
            if need in self.references:
                entry["references"] = self.references[need]
            if need in self.arrays:
                tensors[f"{place}/array"] = np.ascontiguousarray(self.arrays[need])
            entries.append(entry)
        for split, labels in self.labels.items():
            tensors[f"labels/{split}"] = np.ascontiguousarray(labels)
        save_file(tensors, folder / "evidence.safetensors")
        index = {"ids": dict(self.ids), "clusters": dict(self.clusters), "entries": entries}
        (folder / "evidence.json").write_text(json.dumps(index), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Evidence:
        """Read what `save` wrote."""
        from safetensors.numpy import load_file

        tensors = load_file(folder / "evidence.safetensors")
        index = json.loads((folder / "evidence.json").read_text(encoding="utf-8"))
        stats: dict[Need, tuple[Tokens, ...]] = {}
        texts: dict[Need, tuple[str, ...]] = {}
        references: dict[Need, tuple[str, ...]] = {}
        arrays: dict[Need, Floats] = {}
        for place, entry in enumerate(index["entries"]):
            need = Need(**entry["need"])
            if entry["answers"]:
                stats[need] = tuple(
                    Tokens(**{name: tensors.get(f"{place}/{number}/{name}") for name in Tokens._fields})  # type: ignore[arg-type]
                    for number in range(entry["answers"])
                )
            if "texts" in entry:
                texts[need] = tuple(entry["texts"])
            if "references" in entry:
                references[need] = tuple(entry["references"])
            if f"{place}/array" in tensors:
                arrays[need] = tensors[f"{place}/array"]
        labels = {name.removeprefix("labels/"): array for name, array in tensors.items() if name.startswith("labels/")}
        return cls(
            ids={split: tuple(ids) for split, ids in index["ids"].items()},
            clusters={split: tuple(names) for split, names in index["clusters"].items()},
            token_stats=stats,
            texts=texts,
            references=references,
            arrays=arrays,
            labels=labels,
        )
