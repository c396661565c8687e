"""open-unlearning's losses out of our pure functions: values and gradients on its own batches and checkpoints.

Where its code differs from ours on purpose, the difference is composed here: means over all tokens of a batch in place of rows, over
prompts and padding too, a label of -100 taken as a vocabulary index, a mask that is not shifted.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peer_losses import Entry, OnBatches, Pack, read
from torch import Tensor

from unlearnbench.losses import IGNORE_INDEX, answer_lengths, answer_mean, example_nll, sequence_logprob, token_nll
from unlearnbench.unlearning_losses import ceu, dual_step, kl, logit_margin, npo, satimp, simnpo, skip_first, undial, wga

ELSEWHERE = re.compile(r"(dpo_|idkdpo_|rmu_)")
"""Entries of other tests: preference pairs, and losses of activations."""
SIMNPO_RETAIN, SATIMP_BETAS, DUAL_RATE = 1.0, (5.0, 1.0), 5.0
"""What the names of totals leave out."""


@pytest.fixture(scope="module")
def pack(conformance: Path) -> Pack:
    return Pack(conformance)


def batch_mean(values: Tensor, labels: Tensor) -> Tensor:
    """Mean over the scored tokens of a whole batch."""
    return values.sum() / answer_lengths(labels).sum()


def every(logits: Tensor) -> Tensor:
    """Logits with one position more, so that a shifted loss reads all T positions."""
    return torch.cat([logits, logits[:, -1:]], 1)


def unshifted(scored: Tensor) -> Tensor:
    """Labels [B, T + 1] that let a shifted loss read the positions of this mask [B, T] themselves."""
    return torch.cat([torch.full_like(scored[:, :1], IGNORE_INDEX, dtype=torch.int64), torch.where(scored, 0, IGNORE_INDEX)], 1)


def retain_nll(current: OnBatches) -> Tensor:
    return batch_mean(token_nll(*current.scored("retain")), current.labels("retain"))


def grad_ascent(current: OnBatches) -> Tensor:
    return -batch_mean(token_nll(*current.scored("forget")), current.labels("forget"))


def retain_kl(entry: Entry, current: OnBatches, reference: OnBatches) -> Tensor:
    if entry.form == "answer_positions_only":
        labels = current.labels("retain")
        return batch_mean(kl(reference.logits("retain"), current.logits("retain"), labels), labels)
    mask = current.pack.mask("retain")
    counted = {None: torch.ones_like(mask), "non_pad_positions": mask}[entry.form]
    labels = unshifted(counted)
    return batch_mean(kl(every(reference.logits("retain")), every(current.logits("retain")), labels), labels)


def npo_forget(entry: Entry, current: OnBatches, reference: OnBatches) -> Tensor:
    return npo(sequence_logprob(*current.scored("forget")), sequence_logprob(*reference.scored("forget")), entry.one("beta")).mean()


def simnpo_forget(entry: Entry, current: OnBatches) -> Tensor:
    return simnpo(example_nll(*current.scored("forget")), entry.one("beta"), entry.one("delta")).mean()


def undial_forget(entry: Entry, current: OnBatches, reference: OnBatches) -> Tensor:
    labels = current.labels("forget")
    if entry.form is None:  # -100 counts from the vocabulary's end, and every position is averaged over
        labels = torch.where(labels == IGNORE_INDEX, IGNORE_INDEX + current.logits("forget").shape[-1], labels)
    return batch_mean(undial(reference.logits("forget"), current.logits("forget"), labels, entry.one("beta")), labels)


def ceu_forget(entry: Entry, current: OnBatches) -> Tensor:
    labels = skip_first(current.labels("forget"), int(entry.one("skip")))
    return batch_mean(ceu(current.logits("forget"), labels), labels)


def wga_forget(entry: Entry, current: OnBatches) -> Tensor:
    return batch_mean(wga(token_nll(*current.scored("forget")), entry.one("beta")), current.labels("forget"))


def satimp_forget(current: OnBatches, betas: tuple[float, ...]) -> Tensor:
    return batch_mean(satimp(token_nll(*current.scored("forget")), *betas), current.labels("forget"))


def pdu_forget(entry: Entry, current: OnBatches) -> Tensor:
    logits, labels = current.scored("forget")
    if entry.form is None:
        logits, labels = every(logits), unshifted(labels != IGNORE_INDEX)
    return batch_mean(logit_margin(logits, labels), labels)


def pdu_total(entry: Entry, current: OnBatches) -> Tensor:
    return pdu_forget(entry, current) + entry.one("alpha") * (retain_nll(current) - entry.one("eps"))


def with_reference(formula: Callable[[Entry, OnBatches, OnBatches], Tensor]) -> Callable[[Entry, OnBatches, OnBatches | None], Tensor]:
    def loss(entry: Entry, current: OnBatches, reference: OnBatches | None) -> Tensor:
        assert reference is not None, f"{entry.name} names no reference"
        return formula(entry, current, reference)

    return loss


# Loss -> the settings and forms that it reads, and the loss itself.
FORMULAS: dict[str, tuple[set[str], set[str | None], Callable[[Entry, OnBatches, OnBatches | None], Tensor]]] = {
    "grad_ascent": (set(), {None}, lambda e, c, r: grad_ascent(c)),
    "grad_diff": (set(), {None}, lambda e, c, r: grad_ascent(c) + retain_nll(c)),
    "retain_nll": (set(), {None}, lambda e, c, r: retain_nll(c)),
    "retain_kl": (set(), {None, "answer_positions_only", "non_pad_positions"}, with_reference(retain_kl)),
    "grad_diff_kl": (set(), {None}, with_reference(lambda e, c, r: grad_ascent(c) + retain_kl(e, c, r))),
    "npo_forget": ({"beta"}, {None}, with_reference(npo_forget)),
    "npo_total": ({"beta"}, {None}, with_reference(lambda e, c, r: npo_forget(e, c, r) + retain_nll(c))),
    "simnpo_forget": ({"beta", "delta"}, {None}, lambda e, c, r: simnpo_forget(e, c)),
    "simnpo_total": (
        {"beta", "delta", "gamma"},
        {None},
        lambda e, c, r: e.one("gamma") * simnpo_forget(e, c) + SIMNPO_RETAIN * retain_nll(c),
    ),
    "undial_forget": ({"beta"}, {None, "answer_tokens_only"}, with_reference(undial_forget)),
    "ceu": ({"skip"}, {None}, lambda e, c, r: ceu_forget(e, c)),
    "wga_forget": ({"beta"}, {None}, lambda e, c, r: wga_forget(e, c)),
    "satimp_forget": ({"beta"}, {None}, lambda e, c, r: satimp_forget(c, e.settings["beta"])),
    "satimp_total_yaml": (
        {"gamma", "alpha"},
        {None},
        lambda e, c, r: e.one("gamma") * satimp_forget(c, SATIMP_BETAS) + e.one("alpha") * retain_nll(c),
    ),
    "pdu_forget": (set(), {None, "shifted_mask"}, lambda e, c, r: pdu_forget(e, c)),
    "pdu_total": ({"alpha", "eps"}, {None}, lambda e, c, r: pdu_total(e, c)),
}


def formula(entry: Entry) -> Callable[[Entry, OnBatches, OnBatches | None], Tensor]:
    """What an entry names; a name that is not understood is an error, not a pass."""
    assert entry.loss in FORMULAS, f"no formula for {entry.name!r}"
    settings, forms, loss = FORMULAS[entry.loss]
    assert set(entry.settings) == settings, f"{entry.name!r} has settings {sorted(entry.settings)}, its formula reads {sorted(settings)}"
    assert entry.form in forms, f"{entry.name!r}: no form {entry.form!r}"
    return loss


def test_every_name_is_understood(pack: Pack) -> None:
    own = [entry for entry in pack.entries() if not ELSEWHERE.match(entry.loss)]
    assert own
    for entry in own:
        formula(entry)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])
@pytest.mark.parametrize("loss", FORMULAS)
def test_values_and_gradients(pack: Pack, loss: str, dtype: torch.dtype) -> None:
    entries = [entry for entry in pack.entries() if entry.loss == loss]
    if not entries:
        pytest.skip(f"the pack has no {loss}")
    assert [line for entry in entries for line in pack.complaints(entry, formula(entry), dtype)] == []


def test_the_log_probability_of_every_token(pack: Pack) -> None:
    keys = [key.split("/")[1:] for key in pack.arrays.files if key.startswith("token_logprob/")]
    assert keys
    for model, batch in keys:
        logits = pack.reference(model, torch.float64).logits(batch)
        expected = torch.from_numpy(pack.arrays[f"token_logprob/{model}/{batch}"])
        torch.testing.assert_close(-token_nll(logits, pack.ids(batch)), expected, rtol=1e-10, atol=1e-12)
        sums = torch.from_numpy(pack.arrays[f"nll_sum/{model}/{batch}"])
        torch.testing.assert_close(-sequence_logprob(logits, pack.labels(batch)), sums, rtol=1e-10, atol=1e-12)


def test_the_multiplier_of_the_constraint(pack: Pack) -> None:
    for model in pack.texts["values"]:
        numbers = pack.numbers(model)
        assert set(numbers) <= {"pdu_alpha_after"}, "a number that this test does not understand"
        totals = [entry for entry in pack.entries() if entry.model == model and entry.loss == "pdu_total"]
        if not numbers or not totals:
            continue
        (total,) = totals
        loss = float(retain_nll(pack.reference(model, torch.float64)))
        after = dual_step(total.one("alpha"), loss - total.one("eps"), DUAL_RATE)
        assert after == pytest.approx(numbers["pdu_alpha_after"], abs=2e-5)  # printed from a float32 run


def test_ours_is_the_mean_of_rows(pack: Pack) -> None:
    """What the peer's batch means hide: rows of unlike length count alike here."""
    current = pack.reference(pack.texts["current_models"][0], torch.float64)
    logits, labels = current.scored("forget")
    rows = answer_mean(logit_margin(logits, labels), labels)
    for row in range(len(labels)):
        torch.testing.assert_close(rows[row], batch_mean(logit_margin(logits[[row]], labels[[row]]), labels[[row]]))


def test_a_name_that_cannot_be_read_is_an_error() -> None:
    for name in ("npo_forget__beta0.1", "retain_kl__ref_a__ref_b", "derived/pdu_forget", "2nd_loss"):
        with pytest.raises(ValueError, match="cannot read the name"):
            read("full", name, {})
    for name in ("novel_forget_beta0.1", "npo_forget_beta", "ceu_skip1_beta2", "derived/pdu_forget__mean_mask"):
        with pytest.raises(AssertionError):
            formula(read("full", name, {}))
    assert read("full", "satimp_forget_beta5_0.5", {}).settings == {"beta": (5.0, 0.5)}
