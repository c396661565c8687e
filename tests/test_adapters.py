"""Adapters around a decoder's linear layers: silent at first, off to the bit, and the same when merged."""

import copy

import pytest
import torch
from torch import Tensor, nn

from unlearnbench.adapters import attach, linears, merged
from unlearnbench.api import UserError
from unlearnbench.layers import model_hash, strip
from unlearnbench.methods.grad_diff import GradDiff
from unlearnbench.methods.npo import NPO
from unlearnbench.testing import in_training, tiny_language_model, tiny_language_view

VIEW = tiny_language_view()
BATCH = VIEW.forget.train.batch(range(4))


@torch.no_grad()
def losses(model: nn.Module) -> Tensor:
    return VIEW.loss(model, BATCH)


def test_all_linear_layers_of_the_chosen_blocks_are_found_and_the_head_is_not() -> None:
    model = tiny_language_model()
    names = [f"self_attn.{x}_proj" for x in "qkvo"] + [f"mlp.{x}_proj" for x in ("gate", "up", "down")]
    assert sorted(linears(model)) == sorted(f"model.layers.{block}.{name}" for block in (0, 1) for name in names)
    assert sorted(linears(model, {1})) == sorted(f"model.layers.1.{name}" for name in names)
    with pytest.raises(UserError, match="the 0 chosen blocks of LlamaForCausalLM have none"):
        linears(model, {5})


def test_a_fresh_adapter_changes_nothing_and_the_seed_decides_it() -> None:
    bare = losses(tiny_language_model())
    adapted = [attach(tiny_language_model(), rank=3, alpha=6, seed=seed) for seed in (0, 0, 1)]
    assert all(torch.equal(losses(model), bare) for model in adapted)
    one, again, other = map(model_hash, adapted)
    assert one == again != other
    trained = {name.split(".lora_")[0] for name, p in adapted[0].named_parameters() if p.requires_grad}
    assert trained == {f"base_model.model.{path}" for path in linears(tiny_language_model())}


def test_merged_it_is_what_it_was_switched_on_and_off_it_is_the_base_to_the_bit() -> None:
    adapted = attach(tiny_language_model(), rank=2, alpha=4, seed=0, noise=0.2)
    bare, on = losses(tiny_language_model()), losses(adapted)
    assert float((on - bare).abs().min()) > 1e-2
    with adapted.disable_adapter():
        assert torch.equal(losses(adapted), bare)
    assert model_hash(strip(copy.deepcopy(adapted))) == model_hash(tiny_language_model())
    whole = merged(adapted)
    torch.testing.assert_close(losses(whole), on, rtol=1e-10, atol=1e-12)
    assert all(parameter.requires_grad for parameter in whole.parameters())
    assert whole.state_dict().keys() == tiny_language_model().state_dict().keys()


def test_a_method_by_lora_moves_the_blocks_linear_layers_alone_and_by_its_rank() -> None:
    before = dict(tiny_language_model().named_parameters())
    model = GradDiff(lr=0.01, epochs=3, lora_rank=2).unlearn(tiny_language_model(), VIEW, seed=0)
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == {f"{path}.weight" for path in linears(model)}
    for name in moved:
        singular = torch.linalg.svdvals((dict(model.named_parameters())[name] - before[name]).detach())
        assert singular[2] < 1e-10 < 1e-3 < singular[0]
    assert not hasattr(model, "peft_config")
    assert not model.training


def test_lora_in_two_factors_equals_a_loop_by_hand() -> None:
    """One step of gradient descent from B = 0 moves B alone, by -lr times the gradient at W through A, scaled by alpha / rank = 2."""
    view = in_training(VIEW, optimizer="sgd", momentum=0.0)
    lr, rows = 0.05, view.forget.train.batch(range(len(view.forget.train)))
    before, adapted = tiny_language_model(), attach(tiny_language_model(), rank=2, alpha=4, seed=5)
    name = "model.layers.1.mlp.up_proj"
    a = adapted.base_model.model.get_submodule(name).lora_A["default"].weight.detach()
    gradient = torch.autograd.grad(view.loss(before, rows).mean(), before.get_submodule(name).weight)[0]
    expected = before.get_submodule(name).weight + 2 * (lr * 2 * gradient @ a.T) @ a
    model = GradDiff(lr=lr, epochs=1, retain_weight=0.0, lora_rank=2, batch_size=99).unlearn(tiny_language_model(), view, seed=5)
    torch.testing.assert_close(model.get_submodule(name).weight.detach(), expected.detach(), rtol=1e-10, atol=1e-12)


def test_the_reference_of_npo_is_the_model_without_its_adapter() -> None:
    """The first step of NPO is ascent whatever beta, by LoRA too."""
    view = in_training(VIEW, optimizer="sgd", momentum=0.0)
    settings = {"lr": 0.05, "epochs": 1, "batch_size": 99, "retain_weight": 0.0, "lora_rank": 2}
    one, other = (NPO(beta=beta, **settings).unlearn(tiny_language_model(), view, seed=0) for beta in (0.1, 5.0))  # type: ignore[arg-type]
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)
