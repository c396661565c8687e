"""Labels of one's own: how they are drawn, and rows that carry them."""

from __future__ import annotations

import pytest
import torch

from unlearnbench.mechanisms.relabelling import Relabelled, any_labels, labels_of, wrong_labels
from unlearnbench.testing import tiny_vision_view

ROWS = tiny_vision_view().retain.train


def drawn(draw: object) -> torch.Tensor:
    """How often each label [row] becomes each label [column], of 2,000 rows a label."""
    true = torch.arange(5).repeat(2000)
    found = draw(true, 5, seed=0)  # type: ignore[operator]
    assert torch.equal(found, draw(true, 5, seed=0))  # type: ignore[operator]
    assert not torch.equal(found, draw(true, 5, seed=1))  # type: ignore[operator]
    return torch.zeros(5, 5).index_put((true, found), torch.ones(()), accumulate=True)


def test_a_wrong_label_is_never_the_true_one_and_all_others_equally() -> None:
    counts = drawn(wrong_labels)
    assert (counts.diagonal() == 0).all()
    # 500 expected in each of 20 cells, standard deviation 19.
    others = counts[~torch.eye(5, dtype=torch.bool)]
    assert 400 < others.min() <= others.max() < 600


def test_any_label_is_all_classes_equally() -> None:
    # 400 expected in each of 25 cells, standard deviation 18.
    counts = drawn(any_labels)
    assert 310 < counts.min() <= counts.max() < 490


def test_one_class_has_no_wrong_label() -> None:
    with pytest.raises(ValueError, match="classes is 1"):
        wrong_labels(torch.zeros(3, dtype=torch.long), 1, seed=0)


def test_relabelled_rows_are_the_same_rows() -> None:
    labels = torch.arange(len(ROWS))
    rows = Relabelled(ROWS, labels)
    assert rows.ids == ROWS.ids
    assert rows.clusters == ROWS.clusters
    batch = rows.batch([3, 1])
    assert torch.equal(batch["images"], ROWS.batch([3, 1])["images"])
    assert batch["labels"].tolist() == [3, 1]
    assert rows.take([5, 4]).batch([1])["labels"].tolist() == [4]
    assert rows.take([5, 4]).ids == (ROWS.ids[5], ROWS.ids[4])
    assert torch.equal(labels_of(rows), labels)
    assert torch.equal(labels_of(ROWS), ROWS.batch(range(len(ROWS)))["labels"])


def test_as_many_labels_as_rows() -> None:
    with pytest.raises(ValueError, match="3 labels for 20 rows"):
        Relabelled(ROWS, torch.arange(3))
