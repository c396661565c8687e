"""Representation rerouting: its terms at the start and by hand, what it turns and holds, and the adapter merged or left on."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unlearnbench.adapters import attach
from unlearnbench.causal import hidden_states
from unlearnbench.layers import model_hash, strip
from unlearnbench.methods.representation_rerouting import RepresentationRerouting, _Step, terms
from unlearnbench.scenarios.tiny_lm import build_model
from unlearnbench.testing import tiny_language_view, tiny_tokenizer

VIEW = tiny_language_view()
FORGET, KEPT = VIEW.forget.train.batch(range(4)), VIEW.retain.train.batch(range(8))
SETTINGS: dict[str, Any] = {"lr": 1e-2, "epochs": 20, "batch_size": 4, "lora_rank": 4, "depths": (0.4,)}


def deep() -> nn.Module:
    model: nn.Module = build_model(len(tiny_tokenizer()), seed=0, hidden_size=16, n_layers=3, n_heads=2, mlp_size=32)
    return model.double().eval()


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    out: Tensor = model(input_ids=FORGET["input_ids"]).logits
    return out


@pytest.fixture(scope="module")
def adapted() -> Any:
    return RepresentationRerouting(merge=False, **SETTINGS).unlearn(deep(), VIEW, seed=0)


def test_at_the_start_the_forget_term_is_1_and_the_retain_term_0() -> None:
    fresh = attach(deep(), rank=4, alpha=4, seed=0, among=range(2))
    turned, held = terms(fresh, FORGET, KEPT, [1], range(3))
    assert float(turned.detach()) == pytest.approx(1.0, abs=1e-12)
    assert float(held.detach()) == 0.0


@torch.no_grad()
def test_the_terms_equal_a_loop_over_rows_and_tokens(adapted: Any) -> None:
    bare = deep()
    turned = []
    for now, then, labels in zip(
        hidden_states(adapted, FORGET, [1])[1], hidden_states(bare, FORGET, [1])[1], FORGET["labels"], strict=True
    ):
        cosines = [torch.dot(now[t], then[t]) / now[t].norm() / then[t].norm() for t in range(len(labels)) if labels[t] != -100]
        turned.append(torch.stack([max(cosine, cosine * 0) for cosine in cosines]).mean())
    held = []
    for layer in range(3):
        pairs = zip(
            hidden_states(adapted, KEPT, [layer])[layer], hidden_states(bare, KEPT, [layer])[layer], KEPT["attention_mask"], strict=True
        )
        held.append(torch.stack([torch.stack([(a[t] - b[t]).norm() for t in range(int(m.sum()))]).mean() for a, b, m in pairs]).mean())
    found = terms(adapted, FORGET, KEPT, [1], range(3))
    torch.testing.assert_close(found, (torch.stack(turned).mean(), torch.stack(held).mean()), rtol=1e-9, atol=1e-12)


@torch.no_grad()
def test_forget_states_are_turned_and_retain_states_held(adapted: Any) -> None:
    turned, held = terms(adapted, FORGET, KEPT, [1], range(3))
    loose = RepresentationRerouting(merge=False, final_share=0.0, **SETTINGS)
    with torch.enable_grad():
        free = loose.unlearn(deep(), VIEW, seed=0)
    assert turned < 0.3
    assert held < 0.7 * terms(free, FORGET, KEPT, [1], range(3))[1]


def test_switched_off_or_stripped_it_is_the_base_to_the_bit(adapted: Any) -> None:
    with adapted.disable_adapter():
        assert torch.equal(logits(adapted), logits(deep()))
    assert model_hash(strip(copy.deepcopy(adapted))) == model_hash(deep())
    assert float((logits(adapted) - logits(deep())).abs().max()) > 0.1


def test_merged_it_is_what_it_is_left_on(adapted: Any) -> None:
    model = RepresentationRerouting(**SETTINGS).unlearn(deep(), VIEW, seed=0)
    torch.testing.assert_close(logits(model), logits(adapted), rtol=1e-5, atol=1e-6)
    assert not hasattr(model, "peft_config")
    moved = {name for name, weight in model.named_parameters() if not torch.equal(weight, dict(deep().named_parameters())[name])}
    assert moved
    assert all(name.startswith(("model.layers.0.", "model.layers.1.")) and name.endswith("_proj.weight") for name in moved)


def test_the_retain_share_rises_from_0_over_all_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def keep(self: Any, model: Any, view: Any, loss: Any, steps: Any, *, n: int, seed: int) -> nn.Module:
        seen.extend(step for epoch in range(self.epochs) for step in steps(epoch))
        return model  # type: ignore[no-any-return]

    monkeypatch.setattr(RepresentationRerouting, "minimise", keep)
    RepresentationRerouting(epochs=2, batch_size=1, final_share=0.8).unlearn(deep(), VIEW, seed=0)
    assert all(isinstance(step, _Step) for step in seen)
    assert [step.share for step in seen] == pytest.approx([0.8 * number / 8 for number in range(8)])


def test_a_second_request_goes_on_with_the_adapter(adapted: Any) -> None:
    again = RepresentationRerouting(merge=False, lr=1e-3, epochs=1).unlearn(copy.deepcopy(adapted), VIEW, seed=1)
    assert list(again.peft_config) == ["default"]
    assert model_hash(strip(copy.deepcopy(again))) == model_hash(deep())
    assert not torch.equal(logits(again), logits(adapted))


def test_the_seed_decides() -> None:
    quick = RepresentationRerouting(lr=1e-2, epochs=1, batch_size=99)
    one, again, other = (model_hash(quick.unlearn(deep(), VIEW, seed=seed)) for seed in (0, 0, 1))
    assert one == again != other
