"""Bad teaching: no label is read, forget rows come to look untrained, retain rows stay."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from trained_vision import VIEW, knowing

from unlearnbench.api import Batch, Data, MethodView, Split
from unlearnbench.layers import model_hash, reinitialise
from unlearnbench.mechanisms.relabelling import Relabelled
from unlearnbench.methods import bad_teacher
from unlearnbench.methods.bad_teacher import BadTeacher
from unlearnbench.training import batches


def scrambled(view: MethodView) -> MethodView:
    """The same images under labels that are no classes."""

    def split(rows: Data) -> Split:
        other = Relabelled(rows, torch.full((len(rows),), -7))
        return Split(train=other, eval=other)

    return replace(view, forget=split(view.forget.train), retain=split(view.retain.train))


def test_labels_and_the_views_loss_are_not_used() -> None:
    def loss(model: nn.Module, batch: Batch) -> Tensor:
        raise AssertionError("bad teaching must not ask for the loss")

    method = BadTeacher(lr=1e-2, epochs=2, batch_size=8)
    expected = model_hash(method.unlearn(knowing(), VIEW, seed=0))
    assert model_hash(method.unlearn(knowing(), replace(scrambled(VIEW), loss=loss), seed=0)) == expected
    assert expected != model_hash(knowing())


def test_forget_rows_follow_the_untrained_net_and_retain_rows_the_original() -> None:
    found = BadTeacher(lr=1e-2, epochs=60, batch_size=8, retain_share=1.0).unlearn(knowing(), VIEW, seed=3)
    bad = reinitialise(knowing(), seed=3).eval()
    forget, retain = (rows.batch(range(len(rows)))["images"] for rows in (VIEW.forget.train, VIEW.retain.train))
    with torch.no_grad():
        far = (knowing()(forget).softmax(1) - bad(forget).softmax(1)).abs().mean()
        assert (found(forget).softmax(1) - bad(forget).softmax(1)).abs().mean() < 0.2 * far
        assert (found(retain).softmax(1) - knowing()(retain).softmax(1)).abs().mean() < 0.05


@pytest.mark.parametrize(("share", "rows"), [(0.3, 16), (0.0, 10), (1.0, 30)])
def test_a_share_of_the_retain_rows_is_drawn_once(monkeypatch: pytest.MonkeyPatch, share: float, rows: int) -> None:
    counts = []

    def noted(n: int, batch_size: int, *, seed: int, epoch: int) -> object:
        counts.append(n)
        return batches(n, batch_size, seed=seed, epoch=epoch)

    monkeypatch.setattr(bad_teacher, "batches", noted)
    BadTeacher(retain_share=share, epochs=2).unlearn(knowing(), VIEW, seed=0)
    assert counts == [rows, rows]


def test_each_row_has_its_own_teacher_in_mixed_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """One large batch in any order: what is taught is the untrained net's on forget rows and the original's on the others."""
    taught: list[tuple[Tensor, Tensor]] = []
    true = bad_teacher.softened_kl

    def noted(reference: Tensor, logits: Tensor, temperature: float) -> Tensor:
        taught.append((reference, logits.detach()))
        return true(reference, logits, temperature)

    monkeypatch.setattr(bad_teacher, "softened_kl", noted)
    BadTeacher(retain_share=1.0, batch_size=7).unlearn(knowing(), VIEW, seed=5)
    bad, wrong = reinitialise(knowing(), seed=5).eval(), 0
    images = VIEW.forget.train.batch(range(10))["images"]
    with torch.no_grad():
        expected = {round(float(row.sum()), 9) for row in bad(images)}
    found = [round(float(row.sum()), 9) for reference, _ in taught for row in reference]
    wrong = len(expected - set(found))
    assert wrong == 0
    assert len(found) == 30
    assert sum(value in expected for value in found) == 10
