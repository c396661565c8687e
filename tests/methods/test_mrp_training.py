"""MRP: where its rows start, its training against a plain loop, and a planted plane."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from projected import LAYERS, SETTINGS, VIEW, WIDTH, llama, matrix, other_request, projections, served, watched
from torch import Tensor, nn
from torch.nn import functional

from unlearnbench.api import Batch, Data, MethodView, Split
from unlearnbench.finetuning import paired
from unlearnbench.layers import blocks, inserted
from unlearnbench.methods.mrp import MRP
from unlearnbench.testing import in_training, tiny_tokenizer

# -------------------------------------------------------------------------------------------------------------- where rows start


def start(**fields: Any) -> Tensor:
    """The rows of layer 1 as they start: with steps too small to count."""
    method = MRP(**{"layers": (1,), "lr": 1e-30, "epochs": 1, **fields})
    rows: Tensor = projections(method.unlearn(llama(), VIEW, seed=0))[0].rows
    return rows


def states(rows: Data) -> Tensor:
    """What layer 1 gives at every token, one row at a time, so without padding."""
    found = []
    for number in range(len(rows)):
        ids = rows.batch([number])["input_ids"]
        with torch.no_grad():
            found.append(llama()(input_ids=ids, output_hidden_states=True).hidden_states[2][0])
    return torch.cat(found)


def leading(vectors: Tensor, k: int) -> Tensor:
    return torch.from_numpy(np.linalg.svd(vectors.numpy())[2][:k].copy())


@pytest.mark.parametrize(
    ("init", "wanted", "kept"),
    [("forget_perp_retain", "forget", "retain"), ("released", "retain", "forget"), ("pca_forget", "forget", None)],
)
def test_rows_start_where_init_says(init: str, wanted: str, kept: str | None) -> None:
    vectors = {"forget": states(VIEW.forget.train), "retain": states(VIEW.retain.train)}
    left = vectors[wanted] @ matrix(leading(vectors[kept], 5)) if kept else vectors[wanted]
    np.testing.assert_allclose(matrix(start(init=init, retain_rank=5, rank=3)), matrix(leading(left, 3)), atol=1e-8)


def test_random_rows_come_from_the_seed_and_the_default_rank_of_retain_is_an_eighth_of_the_width() -> None:
    drawn = [MRP(init="random", lr=1e-30).unlearn(llama(), VIEW, seed=seed) for seed in (0, 0, 1)]
    one, again, other = (torch.cat([module.rows for module in projections(model)]) for model in drawn)
    assert torch.equal(one, again)
    assert (one @ other.mT).abs().max() < 0.99
    assert torch.equal(start(), start(retain_rank=WIDTH // 8))
    assert not torch.equal(start(), start(retain_rank=WIDTH // 8 + 1))


# ---------------------------------------------------------------------------------------------------------------------- training


def logprob(model: nn.Module, rows: Batch) -> Tensor:
    logs = functional.log_softmax(model(input_ids=rows["input_ids"]).logits, -1)[:, :-1]
    labels = rows["labels"][:, 1:]
    tokens: Tensor = torch.where(labels >= 0, logs.gather(2, labels.clamp(min=0)[..., None])[..., 0], 0.0)
    return tokens.sum(1)


def plain(method: MRP, model: nn.Module, old: Sequence[Tensor], first: Sequence[Tensor], view: MethodView) -> list[Tensor]:
    """The projectors a plain loop arrives at: hooks, a QR of all rows, explicit matrices."""
    before = logprob(served(), view.forget.train.batch(range(len(view.forget.train)))).detach()
    rows = [part.clone().requires_grad_() for part in first]

    def hook(number: int) -> Callable[..., Tensor]:
        def project(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            q = torch.linalg.qr(torch.cat([old[number], rows[number]]).mT).Q
            left: Tensor = output - output @ (q @ q.mT)
            return left

        return project

    for number, layer in enumerate(LAYERS):
        blocks(model)[layer][1].register_forward_hook(hook(number))
    for epoch in range(method.epochs):
        for pair in paired(view.forget.train, view.retain.train, method.batch_size, seed=0)(epoch):
            counts = (pair.forget["labels"][:, 1:] >= 0).sum(1)
            known = logprob(model, pair.forget)
            if method.forget_loss == "ga":
                forget = known / counts
            else:
                forget = 2 / method.beta * torch.log1p(torch.exp(method.beta * (known - before[pair.rows])))
            kept = -logprob(model, pair.retain) / (pair.retain["labels"][:, 1:] >= 0).sum(1)
            loss = forget.mean() + method.retain_weight * kept.mean()
            gradients = torch.autograd.grad(loss, rows)
            for part, all_old, gradient in zip(rows, old, gradients, strict=True):
                # Only the span matters: the gradient is orthogonal to every row.
                np.testing.assert_allclose(gradient @ torch.cat([part.detach(), all_old]).mT, 0, atol=1e-10)
                assert gradient.abs().max() > 1e-6
            with torch.no_grad():
                for part, gradient in zip(rows, gradients, strict=True):
                    part -= method.lr * gradient
    return [matrix(torch.cat([kept, part.detach()])) for kept, part in zip(old, rows, strict=True)]


@pytest.mark.parametrize("forget_loss", ["ga", "npo"])
def test_a_second_request_is_trained_like_a_plain_loop_trains_it(forget_loss: Any) -> None:
    view, method = other_request(), MRP(forget_loss=forget_loss, beta=0.7, **SETTINGS)
    paths = [path for path, _ in inserted(served())]
    first = method._starts(copy.deepcopy(served()), view, paths, 0)
    old = [module.rows for module in projections(served())]
    expected = plain(method, llama(), old, first, view)
    model = method.unlearn(copy.deepcopy(served()), view, seed=0)
    for module, projector, begun, before in zip(projections(model), expected, first, old, strict=True):
        np.testing.assert_allclose(matrix(module.rows), projector, atol=1e-9)
        # The loop moved, and by more than the tolerance.
        assert (projector - matrix(torch.cat([before, begun]))).abs().max() > 1e-3


def test_rows_beyond_the_ceiling_are_left_alone() -> None:
    settings = {**SETTINGS, "retain_weight": 0.0, "init": "random"}
    untouched, low, default, high = (
        matrix(projections(MRP(**{**settings, **change}).unlearn(llama(), VIEW, seed=0))[0].rows)
        for change in ({"lr": 1e-30}, {"ceiling": 0.1}, {"ceiling": None}, {"ceiling": 50.0})
    )
    np.testing.assert_allclose(low, untouched, atol=1e-12)
    assert (high - untouched).abs().max() > 1e-3
    # The default is the loss of a uniform guess, near which an untrained model is: some rows lie beyond it.
    with torch.no_grad():
        losses = VIEW.loss(llama(), VIEW.forget.train.batch(range(len(VIEW.forget.train))))
    uniform = math.log(len(tiny_tokenizer()))
    assert losses.min() < uniform < losses.max()
    assert (default - high).abs().max() > 1e-6
    by_hand = MRP(**{**settings, "ceiling": uniform}).unlearn(llama(), VIEW, seed=0)
    np.testing.assert_allclose(default, matrix(projections(by_hand)[0].rows), atol=1e-12)


def test_rows_are_float32_around_a_model_of_fewer_bits_and_in_mixed_precision() -> None:
    low = MRP(**SETTINGS).unlearn(llama().bfloat16(), VIEW, seed=0)
    mixed = MRP(**SETTINGS).unlearn(llama().float(), in_training(VIEW, precision="bf16"), seed=0)
    for model in (low, mixed):
        for module in projections(model):
            assert module.rows.dtype == torch.float32
            np.testing.assert_allclose(module.rows @ module.rows.mT, np.eye(2), atol=1e-6)
    # Bits of the training were mixed, those of the rows were not.
    single = MRP(**SETTINGS).unlearn(llama().float(), VIEW, seed=0)
    assert (projections(mixed)[0].rows - projections(single)[0].rows).abs().max() > 1e-6
    moved = projections(low)[0].rows - projections(MRP(**{**SETTINGS, "lr": 1e-30}).unlearn(llama().bfloat16(), VIEW, seed=0))[0].rows
    assert moved.abs().max() > 1e-3


def test_in_mixed_precision_rows_are_orthonormal_at_every_step_of_a_later_request() -> None:
    checked = []

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        for module in projections(model):
            rows = module.rows.detach().double()  # autocast leaves float64 alone
            checked.append(float((rows @ rows.mT - torch.eye(4)).abs().max()))
        return VIEW.loss(model, batch)

    model = MRP(**SETTINGS).unlearn(llama().float(), VIEW, seed=0)
    MRP(**SETTINGS).unlearn(model, replace(in_training(other_request(), precision="bf16"), loss=loss), seed=0)
    assert len(checked) == 8
    assert 0 < max(checked) < 1e-5


def test_recomputing_activations_changes_nothing() -> None:
    passes = []
    for checkpointing in (False, True):
        model = llama()
        # Layer 2 is recomputed from what the projection behind layer 1 gave.
        with watched([blocks(model)[2][1].input_layernorm]) as calls:  # type: ignore[list-item]
            MRP(**SETTINGS).unlearn(model, in_training(VIEW, checkpointing=checkpointing), seed=0)
        passes.append(len(calls))
        for module, expected in zip(projections(model), projections(served()), strict=True):
            torch.testing.assert_close(module.rows, expected.rows, rtol=0, atol=1e-12)
    assert passes[1] > passes[0]


# -------------------------------------------------------------------------------------------------------------- a planted plane


class Table(nn.Module):
    """Each subject's token leads to its answer: an embedding, two layers that add nothing, and a head that reads all coordinates."""

    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        turned = torch.linalg.qr(torch.randn(12, 12, generator=draw, dtype=torch.float64)).Q
        self.plane = turned[:2]
        corners = torch.tensor([[1, 1], [1, -1], [-1, 1], [-1, -1]], dtype=torch.float64)
        subjects = torch.cat([2 * corners @ self.plane, 2 * turned[2:10]])
        self.embedding = nn.Embedding(24, 12, dtype=torch.float64)
        layers = [nn.Linear(12, 12, dtype=torch.float64) for _ in range(2)]
        self.layers = nn.ModuleList(layers)
        with torch.no_grad():
            self.embedding.weight.zero_()[:12] = subjects
            for layer in layers:
                layer.weight.copy_(torch.eye(12))
                layer.bias.zero_()
        self.head: Tensor
        self.register_buffer("head", torch.cat([torch.zeros_like(subjects), subjects]))

    def forward(self, input_ids: Tensor, logits_to_keep: int) -> Any:
        hidden = self.embedding(input_ids)
        for layer in self.layers:
            hidden = layer(hidden)
        return SimpleNamespace(logits=(hidden @ self.head.mT)[:, -logits_to_keep:])


class Subjects(Data):
    """Rows of subject and answer, answers being twelve tokens on."""

    def __init__(self, subjects: Sequence[int]) -> None:
        self.subjects = tuple(subjects)
        self.ids = self.clusters = tuple(map(str, subjects))

    def take(self, index: Sequence[int]) -> Subjects:
        return Subjects([self.subjects[i] for i in index])

    def batch(self, index: Sequence[int] | Tensor) -> Batch:
        ids = torch.tensor([[self.subjects[int(i)], self.subjects[int(i)] + 12] for i in index])
        labels = ids.masked_fill(torch.tensor([True, False]), -100)
        return {"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids), "prompts": [""] * len(ids)}


@pytest.mark.parametrize(
    ("init", "settings"),
    [("forget_perp_retain", {"lr": 1e-3}), ("random", {"lr": 0.1, "optimizer": "adam", "epochs": 150, "retain_weight": 5.0})],
)
def test_a_planted_plane_is_found_and_what_lies_elsewhere_is_kept(init: Any, settings: dict[str, Any]) -> None:
    forget, retain = Subjects(range(4)), Subjects(range(4, 12))
    view = replace(VIEW, forget=Split(train=forget, eval=forget), retain=Split(train=retain, eval=retain), tokenizer=range(24))
    model = Table()

    @torch.no_grad()
    def losses() -> tuple[float, Tensor]:
        return view.loss(model, forget.batch(range(4))).mean().item(), view.loss(model, retain.batch(range(8)))

    known, before = losses()
    assert known < 0.02
    MRP(init=init, layers=(0,), batch_size=8, retain_rank=8, **settings).unlearn(model, view, seed=0)
    (projection,) = projections(model)
    cosines = np.linalg.svd((projection.rows @ model.plane.mT).numpy())[1]
    assert math.degrees(math.acos(min(1.0, cosines.min()))) < 10
    lost, kept = losses()
    assert lost > 0.95 * math.log(24)
    assert (kept - before).abs().max() < 0.02
    # A probe has nothing to go by: the four subjects' states are one.
    states = projection(model.embedding.weight[:4])
    assert float((states[0] - states).norm(dim=1).max().detach()) < 0.2
