"""Random labels: never the true one, drawn once, mixed with all retain rows."""

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from unlearnbench.api import Batch
from unlearnbench.methods.random_labels import RandomLabels
from unlearnbench.testing import tiny_vision_model, tiny_vision_view

VIEW = tiny_vision_view()


def test_each_epoch_sees_all_rows_once_forget_rows_with_one_wrong_label() -> None:
    seen: list[tuple[float, int]] = []

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        seen.extend(zip(batch["images"].sum((1, 2, 3)).tolist(), batch["labels"].tolist(), strict=True))
        return VIEW.loss(model, batch)

    RandomLabels(epochs=2, batch_size=7).unlearn(tiny_vision_model(), replace(VIEW, loss=loss), seed=0)
    assert len(seen) == 60
    assert set(Counter(seen).values()) == {2}
    labels = dict(seen)
    forget, retain = VIEW.forget.train.batch(range(10)), VIEW.retain.train.batch(range(20))
    wrong = [labels[key] for key in forget["images"].sum((1, 2, 3)).tolist()]
    assert 0 not in wrong
    assert len(set(wrong)) == 2
    assert [labels[key] for key in retain["images"].sum((1, 2, 3)).tolist()] == retain["labels"].tolist()


def test_the_forget_rows_are_answered_wrongly_afterwards() -> None:
    model = RandomLabels(lr=0.1, epochs=20, batch_size=10).unlearn(tiny_vision_model(), VIEW, seed=0)
    with torch.no_grad():
        forget = model(VIEW.forget.eval.batch(range(10))["images"]).argmax(1)
        batch = VIEW.retain.eval.batch(range(20))
        assert (forget == 0).float().mean() < 0.2
        assert (model(batch["images"]).argmax(1) == batch["labels"]).float().mean() > 0.8


def test_it_wants_classes() -> None:
    with pytest.raises(ValueError, match="classes is None"):
        RandomLabels().unlearn(tiny_vision_model(), replace(VIEW, classes=None), seed=0)
    assert RandomLabels().supports(SimpleNamespace(modality="language", task="generate")) == "works on vision, not on language"  # type: ignore[arg-type]
