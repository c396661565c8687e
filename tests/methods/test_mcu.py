"""MCU, alone and on CIR: its path against a plain loop, its steps, what it must not touch, and when it stops."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from unlearnbench.api import Batch, MethodView, UserError
from unlearnbench.layers import blocks, model_hash
from unlearnbench.mechanisms.activations import run_through
from unlearnbench.mechanisms.components import components
from unlearnbench.mechanisms.representation import control_vector
from unlearnbench.methods import mcu
from unlearnbench.methods.mcu import MCU, MCUWithCIR, Run
from unlearnbench.progress import passes, progress
from unlearnbench.scenarios.tiny_lm import build_model
from unlearnbench.testing import in_training, tiny_language_model, tiny_language_view, tiny_tokenizer
from unlearnbench.training import DivergedError, batches

VIEW = tiny_language_view()
STEPS = {"epochs": 2, "batch_size": 3, "retain_batch_size": 4, "components": 3, "update_norm": 0.3, "loss_budget": 1e9}
WEIGHTS = [f"model.layers.0.mlp.{name}_proj.weight" for name in ("gate", "up", "down")]


def unlearned(method: MCU, view: MethodView = VIEW, seed: int = 0) -> dict[str, Tensor]:
    return method.unlearn(tiny_language_model(), view, seed=seed).state_dict()


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    return float(torch.cat([(one[name] - other[name]).flatten() for name in one]).norm())


# -------------------------------------------------------------------------------------------------------------- a plain loop


def streams(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Output of the first block's MLP and the stream behind that block, from a full pass [B, T, width]."""
    states = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], output_hidden_states=True).hidden_states
    block = model.get_submodule("model.layers.0")
    middle = states[0] + block.self_attn(block.input_layernorm(states[0]), position_embeddings=_rotary(model, states[0]))[0]
    return block.mlp(block.post_attention_layernorm(middle)), states[1]


def _rotary(model: nn.Module, states: Tensor) -> tuple[Tensor, Tensor]:
    return model.get_submodule("model").rotary_emb(states, torch.arange(states.shape[1])[None])


def projector(vectors: Tensor, n: int) -> Tensor:
    """Off the mean and the top n - 1 right singular vectors of the centred vectors [d, d], by numpy."""
    x = vectors.detach().numpy()
    rows = np.concatenate([x.mean(0, keepdims=True), np.linalg.svd(x - x.mean(0))[2][: n - 1]])[:n]
    return torch.from_numpy(np.eye(x.shape[1]) - np.linalg.pinv(rows) @ rows)


def plain(method: MCU, seed: int = 0) -> dict[str, Tensor]:
    """The weights that a loop written out arrives at; epochs of CIR are not in it."""
    model = tiny_language_model()
    weights = [model.get_parameter(name) for name in WEIGHTS]
    site = 0 if method.loss == "mlp_breaking" else 1

    def chosen(batch: Batch) -> Tensor:
        mask = batch["attention_mask"].bool().clone()
        if method.tokens == "answer":
            mask = batch["labels"] != -100
        mask[:, 0] = False
        return streams(model, batch)[site][mask]

    def given(data, size: int) -> list[Batch]:  # noqa: ANN001
        return [data.batch(index) for index in batches(len(data), size, seed=seed, epoch=0)]

    forget, retain = given(VIEW.forget.train, method.batch_size), given(VIEW.retain.train, method.retain_batch_size)
    originals = [chosen(batch).detach() for batch in forget]
    kept = [streams(model, batch)[1][batch["attention_mask"].bool()].detach() for batch in retain]
    off = projector(torch.cat(originals), method.components)
    control = control_vector(16, method.steering, seed=seed)
    step = 0
    for _ in range(method.epochs):
        for batch, original in zip(forget, originals, strict=True):
            now, then = chosen(batch) @ off, original @ off
            if method.loss == "mlp_breaking":
                loss = functional.relu((now * then).sum(1)).mean() / then.norm(dim=1).mean().square()
            else:
                loss = functional.mse_loss(now, control.expand_as(now))
            gradients = torch.autograd.grad(loss, weights)
            length = torch.cat([gradient.flatten() for gradient in gradients]).norm()
            with torch.no_grad():
                for weight, gradient in zip(weights, gradients, strict=True):
                    weight -= method.update_norm / length * gradient
            again, before = retain[step % len(retain)], kept[step % len(retain)]
            now = streams(model, again)[1][again["attention_mask"].bool()]
            moved = (now - before).norm(dim=1).mean() / before.norm(dim=1).mean()
            loss = moved if method.loss == "mlp_breaking" else functional.mse_loss(now, before)
            gradients = torch.autograd.grad(loss, weights)
            with torch.no_grad():
                for weight, gradient in zip(weights, gradients, strict=True):
                    weight -= method.retain_rate * gradient
            step += 1
    return model.state_dict()


@pytest.mark.parametrize("changes", [{}, {"components": 1}, {"components": 0}, {"tokens": "answer"}], ids=str)
@pytest.mark.parametrize("loss", ["mlp_breaking", "rmu"])
def test_the_path_equals_a_plain_loop(loss: str, changes: dict[str, object]) -> None:
    method = MCU(**(STEPS | {"loss": loss, "retain_rate": 0.2, "steering": 2.0} | changes))  # type: ignore[arg-type]
    found, expected = unlearned(method), plain(method)
    assert distance(found, tiny_language_model().state_dict()) > 0.1
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-7, atol=1e-9, msg=name)


def test_depths_say_what_is_read_and_what_is_trained() -> None:
    model = build_model(len(tiny_tokenizer()), seed=0, hidden_size=16, n_layers=8, n_heads=2, mlp_size=32).double().eval()
    found = [block for _, block in blocks(model)]
    for loss, expected in (("mlp_breaking", [found[i].mlp for i in (2, 3, 4, 5)]), ("rmu", [found[4]])):
        run = Run(MCU(loss=loss, first_depth=0.25, last_depth=0.75), model, VIEW, 0)  # type: ignore[arg-type]
        assert list(run.sites) == expected
        assert run.last is found[5]
        assert run.linears == [layer for block in found[:6] for layer in (block.mlp.gate_proj, block.mlp.up_proj, block.mlp.down_proj)]


def test_components_are_capped_at_a_quarter_of_the_width() -> None:
    capped = unlearned(MCU(**(STEPS | {"components": 9})))
    assert distance(capped, unlearned(MCU(**(STEPS | {"components": 4})))) == 0
    assert distance(capped, unlearned(MCU(**(STEPS | {"components": 3})))) > 1e-3


# -------------------------------------------------------------------------------------------------------------------- steps


@pytest.mark.parametrize("method", [MCU, MCUWithCIR])
@pytest.mark.parametrize("length", [0.05, 0.7])
def test_a_forget_step_has_the_stated_length_and_moves_early_mlps_alone(method: type[MCU], length: float) -> None:
    epochs = 2 if method is MCUWithCIR else 1
    found = unlearned(method(epochs=epochs, batch_size=99, update_norm=length, retain_rate=0.0, components=2, loss_budget=1e9))
    before = tiny_language_model().state_dict()
    assert distance(found, before) == pytest.approx(length, rel=1e-9)
    assert [name for name in before if not torch.equal(before[name], found[name])] == WEIGHTS


def test_the_first_epoch_of_cir_leaves_all_weights_alone() -> None:
    model = tiny_language_model()
    before = model_hash(model)
    assert model_hash(MCUWithCIR(**(STEPS | {"epochs": 1, "retain_rate": 0.5})).unlearn(model, VIEW, seed=0)) == before
    assert model_hash(MCUWithCIR(**STEPS).unlearn(model, VIEW, seed=0)) != before


def tokens_of_linears(model: nn.Module, method: MCU) -> list[tuple[Tensor, Tensor]]:
    """Inputs [N, in] of the three layers, and the loss's gradients at their outputs [N, out], without each row's first and last token."""
    batch = VIEW.forget.train.batch(next(batches(len(VIEW.forget.train), 99, seed=0, epoch=0)))
    attended = batch["attention_mask"].bool().clone()
    attended[:, 0] = False
    original = streams(tiny_language_model(), batch)[0][attended].detach()
    off = projector(original, method.components)
    block = blocks(model)[0][1]
    through, *linears = run_through(model, batch, [block.mlp, block.mlp.gate_proj, block.mlp.up_proj, block.mlp.down_proj], until=block)
    then = original @ off
    loss = functional.relu((through.output[attended] @ off * then).sum(1)).mean() / then.norm(dim=1).mean().square()
    gradients = torch.autograd.grad(loss, [linear.output for linear in linears])
    for row, length in enumerate(batch["attention_mask"].sum(1).tolist()):
        attended[row, length - 1] = False
    return [(linear.input[attended], gradient[attended]) for linear, gradient in zip(linears, gradients, strict=True)]


@pytest.mark.parametrize(("into", "out"), [(0, 0), (3, 2), (4, 0)])
def test_steps_of_cir_are_gradients_between_two_projectors_of_the_epoch_before(into: int, out: int) -> None:
    common = {"batch_size": 99, "update_norm": 0.4, "retain_rate": 0.0, "components": 2, "loss_budget": 1e9}
    model = tiny_language_model()
    seen = tokens_of_linears(model, MCU(**common))  # of the first epoch, which changes nothing
    for epochs in (2, 3, 4):
        method = MCUWithCIR(epochs=epochs, input_components=into, gradient_components=out, **common)
        found = unlearned(method)
        now = tokens_of_linears(model, method)
        off = [(projector(inputs, into), projector(given, out)) for inputs, given in seen]
        expected = [side @ given.mT @ inputs @ front for (inputs, given), (front, side) in zip(now, off, strict=True)]
        length = torch.cat([gradient.flatten() for gradient in expected]).norm()
        for name, gradient, (inputs, given) in zip(WEIGHTS, expected, seen, strict=True):
            change = found[name] - model.state_dict()[name]
            torch.testing.assert_close(change, -0.4 / length * gradient, rtol=1e-6, atol=1e-8)
            assert float((change @ components(inputs, into).mT).abs().sum()) < 1e-7
            assert float((components(given, out) / given.norm() @ change).abs().sum()) < 1e-7
        model.load_state_dict(found)
        seen = now


def test_outputs_change_less_along_their_dominant_components_with_mcu() -> None:
    model = tiny_language_model()
    block = blocks(model)[0][1]
    batch = VIEW.forget.train.batch(range(len(VIEW.forget.train)))
    mask = batch["attention_mask"].bool()

    def outputs(model: nn.Module) -> Tensor:
        block = blocks(model)[0][1]
        return run_through(model, batch, [block.mlp], until=block)[0].output[mask].detach()

    assert block.mlp is not None
    before = outputs(model)
    dominant = torch.linalg.qr(components(before, 4).mT).Q

    def share(n: int) -> float:
        method = MCU(epochs=3, batch_size=99, update_norm=0.1, retain_rate=0.0, components=n, loss_budget=1e9)
        change = outputs(method.unlearn(copy.deepcopy(model), VIEW, seed=0)) - before
        return float((change @ dominant).square().sum() / change.square().sum())

    assert share(4) < 0.5 * share(0)


# ------------------------------------------------------------------------------------------------------------ when it stops


def rising(by: float) -> tuple[Callable[[nn.Module, Batch], Tensor], list[int]]:
    """A retain loss that is 1 at first and rises by a step each time it is asked; and how often it was asked."""
    asked: list[int] = []

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        asked.append(len(batch["prompts"]))
        return torch.full((asked[-1],), 1.0 + by * (len(asked) - 1))

    return loss, asked


@pytest.mark.parametrize(("budget", "epochs"), [(1.05, 1), (1.15, 2), (1.25, 3), (9.0, 5)])
def test_training_stops_after_the_epoch_that_exceeds_the_budget(budget: float, epochs: int) -> None:
    loss, asked = rising(0.1)
    settings = STEPS | {"retain_batch_size": 99}
    found = unlearned(MCU(**(settings | {"loss_budget": budget, "epochs": 5})), replace(VIEW, loss=loss))
    assert asked == [len(VIEW.retain.eval)] * (1 + epochs)
    assert distance(found, unlearned(MCU(**(settings | {"epochs": epochs})))) == 0


def test_the_epoch_that_only_collects_spends_no_budget() -> None:
    loss, asked = rising(0.1)
    found = unlearned(MCUWithCIR(**(STEPS | {"retain_batch_size": 99, "loss_budget": 1.01, "epochs": 5})), replace(VIEW, loss=loss))
    assert len(asked) == 2
    assert distance(found, tiny_language_model().state_dict()) > 0.1


def test_the_budget_is_judged_by_a_few_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mcu, "JUDGED", 2)
    loss, asked = rising(0.0)
    unlearned(MCU(**(STEPS | {"retain_batch_size": 3, "epochs": 1})), replace(VIEW, loss=loss))
    assert asked == [3, 3] * 2


def test_where_nothing_is_left_to_break_nothing_is_changed() -> None:
    """Without a retain term outputs end up orthogonal or opposed to what they were, and steps end."""
    long = MCU(epochs=80, batch_size=99, update_norm=0.5, retain_rate=0.0, components=2, loss_budget=1e9)
    assert distance(unlearned(long), unlearned(replace(long, epochs=90))) == 0


def test_a_loss_that_is_not_finite_is_said() -> None:
    with pytest.raises(DivergedError, match="judged retain loss is nan"):
        unlearned(MCU(**STEPS), replace(VIEW, loss=lambda model, batch: torch.full((1,), float("nan"))))
    model = tiny_language_model()
    with torch.no_grad():
        model.get_parameter(WEIGHTS[0]).fill_(float("inf"))
    with pytest.raises(DivergedError):
        MCU(**(STEPS | {"components": 0})).unlearn(model, replace(VIEW, loss=rising(0)[0]), seed=0)


# -------------------------------------------------------------------------------------------------------- what is left as it was


@pytest.mark.parametrize("method", [MCU(**STEPS), MCUWithCIR(**STEPS)], ids=["mcu", "mcu_cir"])
def test_nothing_stays_on_the_model(method: MCU) -> None:
    model = tiny_language_model()
    frozen = model.get_parameter("model.norm.weight").requires_grad_(False)
    method.unlearn(model, VIEW, seed=0)
    assert not any(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks for module in model.modules())
    assert [parameter for parameter in model.parameters() if not parameter.requires_grad] == [frozen]
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.training


def test_progress_ends_and_rows_are_counted() -> None:
    told: list[tuple[str, int, int]] = []
    listening, counting = progress.set(lambda *now: told.append(now)), passes.set(rows := [])
    try:
        unlearned(MCU(**STEPS))
    finally:
        progress.reset(listening)
        passes.reset(counting)
    n, kept = len(VIEW.forget.train), len(VIEW.retain.train)
    assert told[-1] == ("MCU", 4, 4)
    assert rows == [n + kept + 2 * n + 4 * 4]


def test_bf16_recipes_run_the_passes_in_bf16() -> None:
    view = in_training(VIEW, precision="bf16")
    model = tiny_language_model().float()
    low = MCU(**STEPS).unlearn(copy.deepcopy(model), view, seed=0).state_dict()
    high = MCU(**STEPS).unlearn(copy.deepcopy(model), VIEW, seed=0).state_dict()
    assert all(weight.dtype == torch.float32 for weight in low.values())
    assert 1e-4 < distance(low, high) < 0.5


def test_the_seed_draws_batches_and_control_vector() -> None:
    method = MCU(**(STEPS | {"loss": "rmu"}))
    assert distance(unlearned(method, seed=1), unlearned(method, seed=2)) > 1e-3


# ------------------------------------------------------------------------------------------------------------- what is refused


class Same(nn.Module):
    """An MLP with the right layers that gives the same vector at every token."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = inner.gate_proj, inner.up_proj, inner.down_proj

    def forward(self, hidden: Tensor) -> Tensor:
        return torch.ones_like(hidden) + 0 * self.down_proj(self.gate_proj(hidden) * self.up_proj(hidden))


def test_components_that_leave_nothing_are_refused() -> None:
    model = tiny_language_model()
    block = blocks(model)[0][1]
    block.mlp = Same(block.mlp)
    with pytest.raises(UserError, match=r"MCU: 3 components leave nothing of .* vectors of width 16; allowed: fewer"):
        MCU(**STEPS).unlearn(model, VIEW, seed=0)


def _plugins() -> Iterator[MCU]:
    yield from (MCU(), MCUWithCIR())


def test_vision_is_not_applicable_with_a_reason() -> None:
    for plugin in _plugins():
        assert plugin.supports(SimpleNamespace(modality="vision", task="classify")) == "works on language, not on vision"  # type: ignore[arg-type]
        assert plugin.supports(SimpleNamespace(modality="language", task="generate")) is None  # type: ignore[arg-type]
