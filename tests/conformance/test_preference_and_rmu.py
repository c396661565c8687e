"""open-unlearning's preference and RMU losses out of our pure functions: values and gradients on its own batches and checkpoints.

Its RMU divides the sums of rows by the counts of all rows, with an axis kept: the mean sum times the mean of 1 / count. That is composed
here; ours is the mean of each row.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from peer_losses import Entry, OnBatches, Pack
from torch import Tensor

from unlearnbench.causal import hidden_states
from unlearnbench.losses import IGNORE_INDEX, answer_lengths, sequence_logprob, token_nll
from unlearnbench.mechanisms.representation import squared_distance
from unlearnbench.unlearning_losses import dpo

OURS = re.compile(r"dpo_|idkdpo_|rmu_")
PER_ROW = "per_row_mean"


@pytest.fixture(scope="module")
def pack(conformance: Path) -> Pack:
    return Pack(conformance)


@pytest.fixture(scope="module")
def entries(pack: Pack) -> list[Entry]:
    found = [entry for entry in pack.entries() if OURS.match(entry.loss)]
    assert found, "the pack holds no preference and no RMU loss"
    return found


def preference(entry: Entry, current: OnBatches, reference: OnBatches) -> Tensor:
    win, lose = (sequence_logprob(*current.scored(batch)) - sequence_logprob(*reference.scored(batch)) for batch in ("alternate", "forget"))
    return dpo(win, lose, entry.one("beta")).mean()


def at_layer(model: OnBatches, batch: str, layer: int) -> Tensor:
    """Outputs of a block [B, T, D]."""
    with torch.set_grad_enabled(not model.frozen):
        return hidden_states(model.model, {"input_ids": model.pack.ids(batch), "prompts": [""] * len(model.pack.ids(batch))}, [layer])[
            layer
        ]


def distance(entry: Entry, current: OnBatches, batch: str, target: Tensor) -> Tensor:
    mask = current.labels(batch) != IGNORE_INDEX
    rows = squared_distance(at_layer(current, batch, int(entry.one("layer"))), target, mask)
    if entry.form == PER_ROW:
        return rows.mean()
    counts = mask.sum(1).to(rows.dtype)
    return (rows * counts).mean() * (1 / counts).mean()


def rmu_forget(entry: Entry, current: OnBatches) -> Tensor:
    vector = torch.from_numpy(current.pack.arrays["rmu/control_vec"]).flatten().to(next(current.model.parameters()).dtype)
    assert float(vector.norm()) == pytest.approx(entry.one("c"), rel=1e-6)
    return distance(entry, current, "forget", vector)


def rmu_retain(entry: Entry, current: OnBatches, reference: OnBatches) -> Tensor:
    return distance(entry, current, "retain", at_layer(reference, "retain", int(entry.one("layer"))))


def loss(entry: Entry, current: OnBatches, reference: OnBatches | None) -> Tensor:
    """The entry's loss; a total's weights are 1, its retain term that of the loss."""
    assert entry.form in (None, PER_ROW), f"{entry.name}: no such form"
    if entry.loss == "rmu_forget":
        return rmu_forget(entry, current)
    assert reference is not None, f"{entry.name} names no reference"
    match entry.loss:
        case "dpo_forget":
            return preference(entry, current, reference)
        case "idkdpo_total":
            retain = token_nll(*current.scored("retain")).sum() / answer_lengths(current.labels("retain")).sum()
            return preference(entry, current, reference) + retain
        case "rmu_retain":
            return rmu_retain(entry, current, reference)
        case "rmu_total":
            return rmu_forget(entry, current) + rmu_retain(entry, current, reference)
    raise AssertionError(f"{entry.name}: no such loss")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", ["dpo_forget", "idkdpo_total", "rmu_forget", "rmu_retain", "rmu_total"])
def test_every_preference_and_rmu_loss_is_reproduced(pack: Pack, entries: list[Entry], name: str, dtype: torch.dtype) -> None:
    chosen = [entry for entry in entries if entry.loss == name]
    assert chosen
    complaints = [line for entry in chosen for line in pack.complaints(entry, loss, dtype)]
    assert not complaints, "\n".join(complaints)


def test_no_entry_is_left_out(entries: list[Entry]) -> None:
    assert {entry.loss for entry in entries} == {"dpo_forget", "idkdpo_total", "rmu_forget", "rmu_retain", "rmu_total"}


def test_the_two_normalisations_differ_where_rows_have_unequal_lengths(pack: Pack, entries: list[Entry]) -> None:
    """What is composed above is no detail: the peer's form and ours are told apart by the numbers."""
    values = {(entry.model, entry.name): entry.values["loss_f64"] for entry in entries}
    pairs = [
        (value, values[model, name.removeprefix("derived/").removesuffix(f"__{PER_ROW}")])
        for (model, name), value in values.items()
        if PER_ROW in name
    ]
    unequal = {batch: len(set(answer_lengths(pack.labels(batch)).tolist())) > 1 for batch in ("forget", "retain")}
    assert pairs
    if all(unequal.values()):
        assert all(not np.isclose(ours, theirs, rtol=1e-6) for ours, theirs in pairs)


def test_a_wrong_pairing_or_mask_would_be_noticed(pack: Pack, entries: list[Entry]) -> None:
    """The comparison fails for win and lose exchanged, and for activations of the neighbouring positions."""
    preferred = next(entry for entry in entries if entry.loss == "dpo_forget" and entry.model != entry.reference)
    swapped = {"alternate": "forget", "forget": "alternate"}

    def exchanged(entry: Entry, current: OnBatches, reference: OnBatches | None) -> Tensor:
        assert reference is not None
        win, lose = (
            sequence_logprob(*current.scored(swapped[b])) - sequence_logprob(*reference.scored(swapped[b])) for b in ("alternate", "forget")
        )
        return dpo(win, lose, entry.one("beta")).mean()

    assert pack.complaints(preferred, exchanged)

    moved = next(entry for entry in entries if entry.loss == "rmu_forget" and entry.form == PER_ROW)

    def shifted(entry: Entry, current: OnBatches, reference: OnBatches | None) -> Tensor:
        mask = (current.labels("forget") != IGNORE_INDEX).roll(-1, 1)
        vector = torch.from_numpy(current.pack.arrays["rmu/control_vec"]).flatten().double()
        return squared_distance(at_layer(current, "forget", int(entry.one("layer"))), vector, mask).mean()

    assert pack.complaints(moved, shifted)
