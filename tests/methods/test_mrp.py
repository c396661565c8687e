"""MRP: what its projection removes and what not, sequences of requests, attacks on it, and folding."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from projected import LAYERS, SETTINGS, VIEW, WIDTH, llama, logits, matrix, other_request, projections, served, watched
from torch import Tensor, nn

from unlearnbench.api import Split, UserError
from unlearnbench.deployed import load_model, save_model
from unlearnbench.fields import FieldError, construct
from unlearnbench.layers import blocks, inserted, model_hash, strip
from unlearnbench.mechanisms.subspace import orthonormal
from unlearnbench.methods.mrp import MRP, MRPFolded, Projection, fold, unwritten
from unlearnbench.progress import passes

# ------------------------------------------------------------------------------------------------------------ what it removes


def test_the_module_is_an_orthogonal_projector_of_the_right_rank() -> None:
    for projection in projections(served()):
        alone = Projection(nn.Linear(WIDTH, WIDTH, bias=False).double(), width=WIDTH, count=2, dtype="float64")
        with torch.no_grad():
            alone.inner.weight.copy_(torch.eye(WIDTH))
        alone.rows = projection.rows
        p = alone(torch.eye(WIDTH, dtype=torch.float64)).detach()
        np.testing.assert_allclose(p @ p, p, atol=1e-12)
        np.testing.assert_allclose(p, p.mT, atol=1e-12)
        assert np.linalg.matrix_rank(p.numpy(), tol=1e-8) == WIDTH - 2
        assert float(p.trace()) == pytest.approx(WIDTH - 2)
        assert np.linalg.svd(p.numpy())[1].min() < 1e-12
        # Exactly the rows: no row of zeros took coordinate 0 along.
        np.testing.assert_allclose(p, matrix(projection.rows), atol=1e-12)
        assert 0.5 < float(p[0, 0]) < 1


def test_layers_are_those_of_the_depths_and_their_output_has_no_part_along_the_rows() -> None:
    model = served()
    assert [path for path, _ in inserted(model)] == [f"model.layers.{number}" for number in LAYERS]
    with watched(projections(model)) as outputs, watched([module.inner for module in projections(model)]) as before:
        logits(model)
    for projection, output, raw in zip(projections(model), outputs, before, strict=True):
        assert float((output @ projection.rows.mT).abs().max()) < 1e-12
        assert float((raw @ projection.rows.mT).abs().max()) > 1e-3


def test_what_differs_along_the_rows_alone_is_the_same_afterwards() -> None:
    model = served()
    projection = projections(model)[0]
    expected = logits(model)
    along = 3 * projection.rows.sum(0)
    with watched([projection.inner], lambda h: h + along):
        torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-10)
    with watched([projection.inner], lambda h: h + along.roll(1)):
        assert (logits(model) - expected).abs().max() > 1e-3


def test_a_layer_that_gives_several_things_has_its_states_projected() -> None:
    class Pair(nn.Linear):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x), "cache"

    alone = Projection(Pair(3, 3), width=3, count=1)
    alone.rows = torch.tensor([[0.0, 0.0, 1.0]])
    states, kept = alone(torch.ones(2, 3))
    assert kept == "cache"
    assert torch.equal(states[:, 2], torch.zeros(2))
    assert states[:, :2].abs().min() > 0


def test_no_weight_is_changed_and_all_can_be_trained_afterwards() -> None:
    model = copy.deepcopy(served())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert not any(name.endswith("rows") for name, _ in model.named_parameters())
    assert not any(module.rows.requires_grad for module in projections(model))
    assert not torch.equal(logits(model), logits(llama()))
    bare = strip(model)
    assert model_hash(bare) == model_hash(llama())
    assert torch.equal(logits(bare), logits(llama()))


# --------------------------------------------------------------------------------------------------------------------- sequences


def test_a_second_request_adds_rows_and_leaves_the_first_to_the_bit(tmp_path: Path) -> None:
    model = MRP(**SETTINGS).unlearn(copy.deepcopy(served()), other_request(), seed=0)
    for module, before in zip(projections(model), projections(served()), strict=True):
        assert torch.equal(module.rows[:2], before.rows)
        assert len(module.rows) == 4
        np.testing.assert_allclose(module.rows @ module.rows.mT, np.eye(4), atol=1e-12)
    assert len(inserted(model)) == len(LAYERS)
    save_model(model, tmp_path)
    again = load_model(tmp_path, llama, MRP.inserts)
    assert torch.equal(logits(again), logits(model))
    assert [module.config() for module in projections(again)] == [module.config() for module in projections(model)]


def test_spans_add_up_in_either_order() -> None:
    one, other = (projections(served())[0].rows, projections(MRP(**SETTINGS).unlearn(llama(), other_request(), seed=0))[0].rows)
    there = torch.cat([one, orthonormal(other, off=one)])
    back = torch.cat([other, orthonormal(one, off=other)])
    np.testing.assert_allclose(matrix(there), matrix(back), atol=1e-12)
    np.testing.assert_allclose(matrix(there), matrix(torch.cat([one, other])), atol=1e-12)
    assert len(orthonormal(other, off=there)) == len(orthonormal(one, off=there)) == 0


def test_the_same_request_again_changes_nothing() -> None:
    model = copy.deepcopy(served())
    backwards = VIEW.forget.train.take(range(len(VIEW.forget.train))[::-1])
    again = replace(VIEW, forget=Split(train=backwards, eval=backwards))
    assert model_hash(MRP(**SETTINGS).unlearn(model, again, seed=5)) == model_hash(served())
    both = MRP(**SETTINGS).unlearn(model, other_request(), seed=0)
    assert model_hash(MRP(**SETTINGS).unlearn(copy.deepcopy(both), VIEW, seed=5)) == model_hash(both)


def test_a_request_whose_rows_are_removed_already_adds_none() -> None:
    settings: dict[str, Any] = {"init": "random", "lr": 1e-30}
    model = MRP(**settings).unlearn(llama(), VIEW, seed=0)
    before = [module.rows.clone() for module in projections(model)]
    view, counted = other_request(), passes.set([])
    MRP(**settings).unlearn(model, view, seed=0)
    # Each row was looked at once, to find where rows start, and there was nothing to train.
    assert sum(passes.get() or []) == len(view.forget.train) + len(view.retain.train)
    passes.reset(counted)
    for module, rows in zip(projections(model), before, strict=True):
        assert torch.equal(module.rows, rows)
        assert len(module.requests) == 2


def test_a_request_may_be_served_behind_the_mlp_after_one_behind_the_layer() -> None:
    model = MRP(placement="mlp_out", **SETTINGS).unlearn(copy.deepcopy(served()), other_request(), seed=0)
    paths = [path for path, _ in inserted(model)]
    assert paths == [f"model.layers.{number}{rest}" for number in LAYERS for rest in ("", ".inner.mlp")]
    assert model_hash(strip(model)) == model_hash(llama())


# ----------------------------------------------------------------------------------------------------------------------- attacks


def test_fine_tuning_trains_through_the_projection_and_not_the_projection() -> None:
    model = copy.deepcopy(served())
    rows = [module.rows.clone() for module in projections(model)]
    adapted = get_peft_model(copy.deepcopy(model), LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
    for attacked in (model, adapted):
        optimizer = torch.optim.AdamW([p for p in attacked.parameters() if p.requires_grad], lr=1e-2)
        forget = VIEW.forget.train.batch(range(len(VIEW.forget.train)))
        begun = VIEW.loss(attacked, forget).mean().item()
        for _ in range(20):
            optimizer.zero_grad()
            torch.autograd.backward(VIEW.loss(attacked, forget).mean())
            optimizer.step()
        assert VIEW.loss(attacked, forget).mean().item() < 0.9 * begun
        with watched(projections(attacked)) as outputs:
            logits(attacked)
        for module, before, output in zip(projections(attacked), rows, outputs, strict=True):
            assert torch.equal(module.rows, before)
            assert float((output @ before.mT).abs().max()) < 1e-10


# ----------------------------------------------------------------------------------------------------------------------- folding


def down(model: Any, layer: int) -> Tensor:
    weight: Tensor = model.model.layers[layer].mlp.down_proj.weight.detach()
    return weight


def test_folded_into_the_weights_it_computes_the_same() -> None:
    placed = MRP(placement="mlp_out", **SETTINGS).unlearn(llama(), VIEW, seed=0)
    folded = MRPFolded(**SETTINGS).unlearn(llama(), VIEW, seed=0)
    assert [path for path, _ in inserted(placed)] == [f"model.layers.{number}.mlp" for number in LAYERS]
    assert not inserted(folded)
    assert not MRP.edits_weights
    assert MRPFolded.edits_weights
    torch.testing.assert_close(logits(folded), logits(placed), rtol=0, atol=1e-10)
    assert (logits(folded) - logits(llama())).abs().max() > 1e-3
    for layer, module in zip(LAYERS, projections(placed), strict=True):
        assert np.linalg.matrix_rank(down(folded, layer).numpy(), tol=1e-8) == WIDTH - 2
        np.testing.assert_allclose(down(folded, layer), matrix(module.rows) @ down(llama(), layer), atol=1e-12)
    changed = {name for name, weight in folded.named_parameters() if not torch.equal(weight, dict(llama().named_parameters())[name])}
    assert changed == {f"model.layers.{number}.mlp.down_proj.weight" for number in LAYERS}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_folded_in_sequence_nothing_removed_comes_back(dtype: torch.dtype) -> None:
    first = MRPFolded(**SETTINGS).unlearn(llama().to(dtype), VIEW, seed=0)
    removed = [unwritten(down(first, layer)) for layer in LAYERS]
    second = MRPFolded(**SETTINGS).unlearn(first, other_request(), seed=0)
    for layer, rows in zip(LAYERS, removed, strict=True):
        assert len(rows) == 2
        assert (rows @ down(second, layer)).abs().max() < 1e-6 * down(second, layer).abs().max()
        assert len(unwritten(down(second, layer))) == 4


def test_unwritten_directions_are_the_left_null_space_also_of_a_narrow_weight() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = orthonormal(torch.randn(2, 6, generator=generator, dtype=torch.float64))
    linear = nn.Linear(9, 6).double()
    assert len(unwritten(linear.weight)) == 0
    before = copy.deepcopy(linear)
    fold(linear, rows)
    np.testing.assert_allclose(linear.weight.detach(), matrix(rows) @ before.weight.detach(), atol=1e-14)
    np.testing.assert_allclose(linear.bias.detach(), matrix(rows) @ before.bias.detach(), atol=1e-14)
    for weight in (linear.weight, linear.weight.float(), linear.weight.bfloat16()):
        np.testing.assert_allclose(matrix(unwritten(weight).double()), matrix(rows), atol=2e-2 if weight.dtype == torch.bfloat16 else 1e-6)
    assert len(unwritten(torch.randn(6, 4, generator=generator))) == 2


# ------------------------------------------------------------------------------------------------------------------------ errors


def test_what_does_not_fit_the_model_is_refused() -> None:
    with pytest.raises(UserError, match="layers holds 4; the model's layers are 0 to 3"):
        MRP(layers=(4,)).unlearn(llama(), VIEW, seed=0)
    with pytest.raises(UserError, match="rank 30 and retain_rank 4 are 34 directions; the model's width is 32"):
        MRP(rank=30).unlearn(llama(), VIEW, seed=0)
    without: Any = llama()
    for layer in without.model.layers:
        layer.mlp = nn.Sequential(layer.mlp)
    with pytest.raises(UserError, match="Sequential has no linear layer named down_proj; use mrp with placement: mlp_out"):
        MRPFolded().unlearn(without, VIEW, seed=0)
    without.model.layers = nn.ModuleList([nn.Linear(2, 2)])
    with pytest.raises(UserError, match="Linear has no module named mlp; use mrp with placement: residual"):
        MRP(placement="mlp_out").unlearn(without, VIEW, seed=0)
    assert MRP().supports(SimpleNamespace(modality="vision", task="classify")) == "works on language, not on vision"


def test_layers_by_depth_and_by_number() -> None:
    names = [path for path, _ in blocks(llama())]
    assert MRP(depths=(1.0, 0.01, 0.26)).blocks(llama()) == [names[0], names[1], names[3]]
    assert MRP(layers=(-1, 3, 0)).blocks(llama()) == [names[0], names[3]]


@pytest.mark.parametrize(
    "wrong", [{"rank": 0}, {"depths": [0.0]}, {"depths": []}, {"layers": []}, {"init": "zero"}, {"ceiling": 0}, {"lr": 0}]
)
@pytest.mark.parametrize("cls", [MRP, MRPFolded])
def test_settings_out_of_range_are_refused(cls: type[Any], wrong: dict[str, Any]) -> None:
    with pytest.raises(FieldError):
        construct(cls, "method", wrong)
    assert construct(cls, "method", {}) == cls()
