"""The collapsed model: finite, of the same weights in another order, and of no use."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from unlearnbench.api import MethodView
from unlearnbench.layers import model_hash
from unlearnbench.methods.collapsed import Collapsed
from unlearnbench.methods.finetune import Finetune
from unlearnbench.testing import tiny_language_model, tiny_language_view, tiny_vision_model, tiny_vision_view

worlds = pytest.mark.parametrize(
    ("view", "build"),
    [(tiny_language_view(), tiny_language_model), (tiny_vision_view(), tiny_vision_model)],
    ids=["language", "vision"],
)


@worlds
def test_knowledge_is_gone_and_all_is_finite(view: MethodView, build: Callable[[], nn.Module]) -> None:
    batch = view.retain.train.batch(range(8))
    taught = Finetune(lr=1e-2, epochs=20, batch_size=8).unlearn(build(), view, seed=0)
    with torch.no_grad():
        before = view.loss(taught, batch).mean()
        after = view.loss(Collapsed().unlearn(taught, view, seed=0), batch)
    assert before < 0.5
    assert after.isfinite().all()
    assert after.mean() > before + 0.5


@worlds
def test_each_parameter_keeps_its_values_in_another_order(view: MethodView, build: Callable[[], nn.Module]) -> None:
    original, collapsed = build(), Collapsed().unlearn(build(), view, seed=0)
    for (name, old), (_, new) in zip(original.named_parameters(), collapsed.named_parameters(), strict=True):
        assert torch.equal(old.flatten().sort().values, new.flatten().sort().values), name
        assert torch.equal(old, new) == bool((old == old.flatten()[0]).all()), name
    for (name, old), (_, new) in zip(original.named_buffers(), collapsed.named_buffers(), strict=True):
        assert torch.equal(old, new), name


@worlds
def test_the_seed_decides(view: MethodView, build: Callable[[], nn.Module]) -> None:
    one, again, other = (model_hash(Collapsed().unlearn(build(), view, seed=seed)) for seed in (0, 0, 1))
    assert one == again != other
