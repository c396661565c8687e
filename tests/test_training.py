"""The training loop: against hand-written steps, and what it must leave alone."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hard_cases import Steer
from torch import Tensor, nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    get_linear_schedule_with_warmup,
)

from unlearnbench import layers
from unlearnbench.progress import progress
from unlearnbench.training import DivergedError, Recipe, batches, fit, make_optimizer, step_count

Batch = tuple[Tensor, Tensor]
X = torch.randn(22, 5, generator=torch.Generator().manual_seed(0))
Y = torch.randint(0, 3, (22,), generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """A worker's thread policy; more threads only slow these sizes down."""
    found = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(found)


def net(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))


def linear() -> nn.Linear:
    layer = nn.Linear(5, 3, dtype=torch.float64)
    nn.init.constant_(layer.weight, 0.1)
    nn.init.constant_(layer.bias, 0.0)
    return layer


def cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def data(recipe: Recipe, seed: int = 0, inputs: Tensor = X) -> Callable[[int], Iterator[Batch]]:
    return lambda epoch: ((inputs[i], Y[i]) for i in batches(len(inputs), recipe.batch_size, seed=seed, epoch=epoch))


def train(model: nn.Module, recipe: Recipe, *, seed: int = 0, inputs: Tensor = X, **options: Any) -> nn.Module:
    steps = data(recipe, seed, inputs)
    fit(model, cross_entropy, steps, recipe, seed=seed, total_steps=step_count(22, recipe), **options)
    return model


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_batches_are_a_fresh_permutation_of_each_epoch_and_seed() -> None:
    orders = [torch.cat(list(batches(10, 4, seed=s, epoch=e))).tolist() for s in (0, 1, 7) for e in (0, 1, 2)]
    assert all(sorted(order) == list(range(10)) for order in orders)
    assert len({tuple(order) for order in orders}) == 9
    assert [len(b) for b in batches(10, 4, seed=0, epoch=0)] == [4, 4, 2]


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd"])
def test_fit_equals_a_bare_loop(optimizer: Any) -> None:
    momentum = 0.9 if optimizer == "sgd" else 0.0
    recipe = Recipe(
        epochs=3,
        batch_size=8,
        lr=0.02,
        optimizer=optimizer,
        weight_decay=0.1,
        momentum=momentum,
        schedule="linear",
        clip=0.3,
    )
    model, bare = linear(), linear()
    train(model, recipe, inputs=X.double())
    build = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}[optimizer]
    extra = {"momentum": momentum} if optimizer == "sgd" else {}
    stepper = build(bare.parameters(), lr=0.02, weight_decay=0.1, **extra)
    schedule = get_linear_schedule_with_warmup(stepper, 0, 9)
    for epoch in range(3):
        for batch in data(recipe, inputs=X.double())(epoch):
            stepper.zero_grad()
            cross_entropy(bare, batch).backward()
            nn.utils.clip_grad_norm_(bare.parameters(), 0.3)
            stepper.step()
            schedule.step()
    torch.testing.assert_close(model.weight, bare.weight, rtol=1e-9, atol=1e-12)
    assert not torch.allclose(bare.weight, linear().weight)


def test_accumulation_equals_the_large_batch() -> None:
    # 22 rows in batches of 4: the last step of an epoch is 4 + 2 rows, which an unweighted mean would get wrong.
    large = Recipe(epochs=2, batch_size=8, lr=0.5, optimizer="sgd")
    small = Recipe(epochs=2, batch_size=4, accumulate=2, lr=0.5, optimizer="sgd")
    assert step_count(22, large) == step_count(22, small) == 6
    a, b = linear(), linear()
    reports = [fit(m, cross_entropy, data(r, 3, X.double()), r, seed=0, total_steps=6) for m, r in ((a, large), (b, small))]
    torch.testing.assert_close(a.weight, b.weight, rtol=1e-12, atol=1e-14)
    assert [r.samples for r in reports] == [44, 44]
    assert reports[0].final_loss == pytest.approx(reports[1].final_loss, rel=1e-12)


def test_weigh_replaces_the_number_of_rows() -> None:
    recipe = Recipe(epochs=1, batch_size=1, accumulate=2, lr=1.0, optimizer="sgd")
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    parts = [torch.tensor([[1.0]]), torch.tensor([[5.0]])]
    weigh = lambda x: float(x[0, 0] + 1)  # noqa: E731
    fit(model, lambda m, x: m(x).sum(), lambda _: parts, recipe, seed=0, total_steps=1, weigh=weigh)
    # gradient (2 * 1 + 6 * 5) / 8 = 4
    assert model.weight.item() == pytest.approx(-4.0)


def test_clip_is_of_the_whole_gradient() -> None:
    recipe = Recipe(epochs=1, batch_size=1, lr=1.0, optimizer="sgd", clip=1.0)
    pair = nn.ParameterList([torch.zeros(1), torch.zeros(1)])
    fit(pair, lambda m, _: 3 * m[0].sum() + 4 * m[1].sum(), lambda _: [[0]], recipe, seed=0, total_steps=1)
    assert [p.item() for p in pair] == pytest.approx([-0.6, -0.8], rel=1e-5)


def test_same_seed_same_bits_and_other_seed_other_dropout() -> None:
    recipe = Recipe(epochs=2, batch_size=8, lr=0.01)
    models = [net(), net(), net()]
    for model, seed in zip(models, (5, 5, 6), strict=True):
        fit(model, cross_entropy, data(recipe, 0), recipe, seed=seed, total_steps=6)
        torch.randn(3)
    assert same(models[0], models[1])
    assert not same(models[0], models[2])


def test_global_state_is_left_as_found() -> None:
    model = net()
    model[3].eval()
    model[0].bias.requires_grad_(False)
    before = torch.get_rng_state()
    bias = model[0].bias.clone()
    modes = [m.training for m in model.modules()]
    train(model, Recipe(epochs=1, batch_size=8, lr=0.01, precision="bf16"))
    train(model, Recipe(epochs=1, batch_size=8, lr=0.01, dropout=False))
    assert torch.equal(torch.get_rng_state(), before)
    assert [m.training for m in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == [True, False, True, True, True, True]
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(model[0].bias, bias)


def test_state_is_restored_after_an_error() -> None:
    model = net().eval()
    before = torch.get_rng_state()
    with pytest.raises(DivergedError, match=r"night: the loss of step 1 of 3 is nan"):
        train(model, Recipe(epochs=1, batch_size=8, lr=0.1), inputs=X * torch.nan, label="night")
    assert not any(m.training for m in model.modules())
    assert torch.equal(torch.get_rng_state(), before)


def test_divergence_leaves_the_weights_of_the_last_good_step() -> None:
    recipe = Recipe(epochs=1, batch_size=1, lr=0.5, optimizer="sgd")
    model = nn.ParameterList([torch.ones(1)])
    parts = [torch.tensor([1.0]), torch.tensor([torch.inf])]
    with pytest.raises(DivergedError, match="step 2 of 2 is inf"):
        fit(model, lambda m, x: (m[0] * x).sum(), lambda _: parts, recipe, seed=0, total_steps=2)
    assert model[0].item() == 0.5


@pytest.mark.parametrize("clip", [None, 1.0])
def test_a_gradient_that_is_not_a_number_is_found(clip: float | None) -> None:
    recipe = Recipe(epochs=1, batch_size=1, lr=0.5, optimizer="sgd", clip=clip)
    model = nn.ParameterList([torch.zeros(1)])
    with pytest.raises(DivergedError, match="norm at step 1" if clip else "weights are NaN"):
        fit(model, lambda m, _: (m[0] * 0).sqrt().sum(), lambda _: [[0]], recipe, seed=0, total_steps=1)


def test_only_the_given_parameters_move() -> None:
    model = net()
    found = copy.deepcopy(model)
    recipe = Recipe(epochs=2, batch_size=8, lr=0.1, weight_decay=0.5, optimizer="sgd", momentum=0.9, batch_norm="frozen")
    train(model, recipe, parameters=model[4].parameters())
    for index in (0, 1):
        assert same(model[index], found[index])
    assert not torch.equal(model[4].weight, found[4].weight)
    assert all(p.requires_grad for p in model.parameters())


def test_a_vector_outside_the_model_can_be_trained() -> None:
    model, shift = linear(), nn.Parameter(torch.zeros(5, dtype=torch.float64))
    found = copy.deepcopy(model)
    recipe = Recipe(epochs=1, batch_size=8, lr=0.1)
    loss = lambda m, b: cross_entropy(m, (b[0] * shift.exp(), b[1]))  # noqa: E731
    model.weight.data += torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    found = copy.deepcopy(model)
    fit(model, loss, data(recipe, 0, X.double()), recipe, seed=0, total_steps=3, parameters=[shift])
    assert same(model, found)
    assert shift.abs().min() > 0


def test_frozen_batch_norm_keeps_its_statistics_to_the_bit() -> None:
    model = net()
    model[1].running_mean.normal_()
    found = copy.deepcopy(model)
    train(model, Recipe(epochs=1, batch_size=8, lr=0.1, batch_norm="frozen"))
    for name, value in model[1].named_buffers():
        assert torch.equal(value, found[1].get_buffer(name))
    train(model, Recipe(epochs=1, batch_size=8, lr=0.1))
    assert not torch.equal(model[1].running_mean, found[1].running_mean)
    assert model[1].num_batches_tracked == 3


def test_zero_rate_keeps_the_weights_to_the_bit() -> None:
    model = net()
    found = copy.deepcopy(model)
    train(model, Recipe(epochs=1, batch_size=8, lr=0.0, weight_decay=0.1, batch_norm="frozen"))
    assert same(model, found)


def test_dropout_off_means_off_while_batch_norm_still_learns() -> None:
    model, without = net(), net()
    without[3] = nn.Identity()
    train(model, Recipe(epochs=1, batch_size=8, lr=0.01, dropout=False))
    train(without, Recipe(epochs=1, batch_size=8, lr=0.01))
    assert same(model, without)
    assert model[1].num_batches_tracked == 3


def llama(dropout: float) -> LlamaForCausalLM:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=40,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            attention_dropout=dropout,
        )
        return LlamaForCausalLM(config)


def tokens(_: int) -> list[Tensor]:
    return list(torch.randint(0, 40, (2, 4, 7), generator=torch.Generator().manual_seed(0)))


def language(model: nn.Module, ids: Tensor) -> Tensor:
    loss: Tensor = model(input_ids=ids, labels=ids, use_cache=False).loss
    return loss


def test_checkpointing_recomputes_a_steered_layer_under_its_own_rows_condition() -> None:
    """The layer runs again in the backward pass, when the forward pass's condition is no longer set."""
    found = []
    for on in (False, True):
        model = llama(0.0)
        layers.insert(model, "model.layers.1", Steer(model.model.layers[1], names=["secret"], width=16))

        def loss(model: nn.Module, ids: Tensor) -> Tensor:
            with layers.conditioned(model, ["a secret", "nothing", "a secret", "nothing"]):
                return language(model, ids)

        fit(model, loss, tokens, Recipe(epochs=1, batch_size=4, lr=0.01, checkpointing=on), seed=0, total_steps=2)
        found.append(model.state_dict())
    for name, values in found[0].items():
        torch.testing.assert_close(values, found[1][name], rtol=1e-5, atol=1e-6)
    assert not torch.equal(found[0]["model.layers.1.vector"], 20.0 * torch.linspace(-1, 1, 16))


@pytest.mark.parametrize("dropout", [True, False])
def test_checkpointing_changes_memory_not_values(dropout: bool) -> None:
    """Layers are run a second time in the backward pass, the weights are those of the plain training."""
    plain, saving = llama(0.3), llama(0.3)
    attributes = [sorted(m.__dict__) for m in saving.modules()]
    runs: list[int] = []
    handle = saving.model.layers[0].input_layernorm.register_forward_hook(lambda *_: runs.append(1))
    for model, on in ((plain, False), (saving, True)):
        recipe = Recipe(epochs=1, batch_size=4, lr=0.01, checkpointing=on, dropout=dropout)
        fit(model, language, tokens, recipe, seed=0, total_steps=2)
    assert len(runs) == 4
    handle.remove()
    for a, b in zip(plain.parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
    assert [sorted(m.__dict__) for m in saving.modules()] == attributes
    assert not any(getattr(m, "gradient_checkpointing", False) for m in saving.modules())


def test_functional_dropout_is_turned_off_too() -> None:
    models = [llama(0.5), llama(0.5), llama(0.5)]
    for model, seed, dropout in zip(models, (0, 1, 1), (False, False, True), strict=True):
        recipe = Recipe(epochs=1, batch_size=4, lr=0.01, dropout=dropout)
        fit(model, language, tokens, recipe, seed=seed, total_steps=2)
    assert same(models[0], models[1])
    assert not same(models[1], models[2])


def test_bf16_computes_in_bf16_and_keeps_the_weights_type() -> None:
    seen: list[torch.dtype] = []

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        out = model(batch[0])
        seen.append(out.dtype)
        return nn.functional.cross_entropy(out, batch[1])

    model = net()
    for precision in ("bf16", "fp32", "bf16"):
        recipe = Recipe(epochs=1, batch_size=22, lr=0.01, precision=precision)  # type: ignore[arg-type]
        fit(model, loss, data(recipe), recipe, seed=0, total_steps=1)
    assert seen == [torch.bfloat16, torch.float32, torch.bfloat16]
    assert model[0].weight.dtype == torch.float32


def test_training_goes_on_with_an_optimizer_handed_back() -> None:
    recipe = Recipe(epochs=1, batch_size=11, lr=0.05, weight_decay=0.1)
    whole, parts, restarted = linear(), linear(), linear()
    both = [(X[:11].double(), Y[:11]), (X[11:].double(), Y[11:])]
    fit(whole, cross_entropy, lambda _: both, recipe, seed=0, total_steps=2)
    optimizer = make_optimizer(list(parts.parameters()), recipe)
    for batch in both:
        fit(parts, cross_entropy, lambda _, batch=batch: [batch], recipe, seed=0, total_steps=1, optimizer=optimizer)
        fit(restarted, cross_entropy, lambda _, batch=batch: [batch], recipe, seed=0, total_steps=1)
    assert same(whole, parts)
    assert not same(whole, restarted)


def test_steps_and_progress_are_told() -> None:
    recipe = Recipe(epochs=3, batch_size=8, lr=0.01)
    steps: list[int] = []
    heard: list[tuple[str, int, int]] = []
    token = progress.set(lambda *told: heard.append(told))
    try:
        train(net(), recipe, on_step=lambda step, _: steps.append(step), label="net")
    finally:
        progress.reset(token)
    assert steps == list(range(1, 10))
    assert heard[0] == ("net", 1, 9)
    assert heard[-1] == ("net", 9, 9)


def test_training_ends_at_total_steps_and_says_when_batches_run_out() -> None:
    recipe = Recipe(epochs=2, batch_size=8, accumulate=2, lr=0.01)
    report = fit(net(), cross_entropy, data(recipe), recipe, seed=0, total_steps=3)
    assert (report.steps, report.samples) == (3, 38)
    with pytest.raises(ValueError, match="gave 4 steps, not the 5"):
        fit(net(), cross_entropy, data(recipe), recipe, seed=0, total_steps=5)


def test_nothing_to_train_or_to_recompute_is_an_error() -> None:
    recipe = Recipe(epochs=1, batch_size=8, lr=0.01)
    with pytest.raises(ValueError, match="no parameter to train"):
        fit(net().requires_grad_(False), cross_entropy, data(recipe), recipe, seed=0, total_steps=1)
    with pytest.raises(ValueError, match="no layer that can recompute"):
        train(net(), Recipe(epochs=1, batch_size=8, lr=0.01, checkpointing=True))
