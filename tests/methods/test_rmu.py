"""RMU: one step by hand, what may change, and where its loss ends."""

import pytest
import torch
from torch import Tensor, nn

from unlearnbench.api import Batch, UserError
from unlearnbench.causal import hidden_states
from unlearnbench.layers import model_hash
from unlearnbench.mechanisms.representation import control_vector, squared_distance
from unlearnbench.methods.rmu import RMU, answers
from unlearnbench.scenarios.tiny_lm import build_model
from unlearnbench.testing import in_training, tiny_language_model, tiny_language_view, tiny_tokenizer

VIEW = tiny_language_view()
BATCH = VIEW.forget.train.batch(range(4))
KEPT = VIEW.retain.train.batch(range(8))


def deep(n_layers: int = 5) -> nn.Module:
    model: nn.Module = build_model(len(tiny_tokenizer()), seed=0, hidden_size=16, n_layers=n_layers, n_heads=2, mlp_size=32)
    return model.double().eval()


def moved(before: nn.Module, after: nn.Module) -> set[str]:
    old = dict(before.named_parameters())
    return {name for name, parameter in after.named_parameters() if not torch.equal(parameter, old[name])}


def distance(model: nn.Module, batch: Batch, target: Tensor, layer: int) -> Tensor:
    """Row by row, position by position."""
    hidden = model(input_ids=batch["input_ids"], output_hidden_states=True).hidden_states[layer + 1]
    target = target.expand_as(hidden)
    rows = []
    for row, goal, labels in zip(hidden, target, batch["labels"], strict=True):
        rows.append(torch.stack([((row[t] - goal[t]) ** 2).sum() / 16 for t in range(len(labels)) if labels[t] != -100]).mean())
    return torch.stack(rows).mean()


def test_the_path_equals_a_plain_loop_with_a_frozen_copy() -> None:
    view, model = in_training(VIEW, optimizer="sgd", momentum=0.0), deep()
    method = RMU(lr=0.1, epochs=3, batch_size=99, layer=2, coefficient=5.0, forget_weight=0.7, retain_weight=3.0)
    before = model(input_ids=KEPT["input_ids"], output_hidden_states=True).hidden_states[3].detach()
    target = control_vector(16, 5.0, seed=1)
    for _ in range(3):
        loss = 0.7 * distance(model, BATCH, target, 2) + 3.0 * distance(model, KEPT, before, 2)
        gradients = torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True)
        with torch.no_grad():
            for weight, gradient in zip(model.parameters(), gradients, strict=True):
                weight -= 0.1 * gradient
    found = method.unlearn(deep(), view, seed=1)
    for a, b in zip(found.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)  # transformers takes the norms in float32
    assert max(float((a - b).detach().abs().max()) for a, b in zip(model.parameters(), deep().parameters(), strict=True)) > 1e-2


def test_the_retain_term_holds_the_activations() -> None:
    settings = {"lr": 3e-3, "epochs": 10, "batch_size": 4, "layer": 1, "coefficient": 8.0}
    before = hidden_states(tiny_language_model(), KEPT, [1])[1].detach()
    free, held = (
        RMU(retain_weight=weight, **settings).unlearn(tiny_language_model(), VIEW, seed=0)  # type: ignore[arg-type]
        for weight in (0.0, 20.0)
    )
    with torch.no_grad():
        assert distance(held, KEPT, before, 1) < 0.5 * distance(free, KEPT, before, 1)


def test_forget_answers_go_to_one_seeded_target_and_the_loss_to_0() -> None:
    target = control_vector(16, 3.0, seed=4)
    settings = {"lr": 0.01, "epochs": 60, "batch_size": 99, "layer": 1, "coefficient": 3.0, "retain_weight": 0.0}
    model = RMU(**settings).unlearn(tiny_language_model(), VIEW, seed=4)  # type: ignore[arg-type]
    with torch.no_grad():
        start, end = (float(distance(net, BATCH, target, 1)) for net in (tiny_language_model(), model))
        other = float(distance(model, BATCH, control_vector(16, 3.0, seed=5), 1))
    assert end < 0.05 * start
    assert end < 0.2 * other


@pytest.mark.parametrize(("layer", "touched"), [(None, (0, 1)), (3, (1, 2, 3)), (4, (2, 3, 4))])
def test_only_the_listed_weights_change(layer: int | None, touched: tuple[int, ...]) -> None:
    settings = {"lr": 0.01, "epochs": 1, "layer": layer}
    down = RMU(trained="down_proj", **settings).unlearn(deep(), VIEW, seed=0)  # type: ignore[arg-type]
    assert moved(deep(), down) == {f"model.layers.{number}.mlp.down_proj.weight" for number in touched}
    assert all(parameter.requires_grad for parameter in down.parameters())
    every = RMU(**settings).unlearn(deep(), VIEW, seed=0)  # type: ignore[arg-type]
    above = {
        name for name, _ in deep().named_parameters() if name.startswith(tuple(f"model.layers.{n}." for n in range(touched[-1] + 1, 5)))
    }
    assert moved(deep(), every) == {name for name, _ in deep().named_parameters()} - above - {"model.norm.weight"}


def test_by_lora_only_linear_layers_up_to_the_layer_change() -> None:
    model = RMU(lr=0.01, epochs=2, layer=1, lora_rank=2).unlearn(deep(3), VIEW, seed=0)
    names = moved(deep(3), model)
    assert names
    assert all(name.startswith(("model.layers.0.", "model.layers.1.")) and name.endswith("_proj.weight") for name in names)


def test_padding_changes_nothing() -> None:
    longer = {
        **BATCH,
        **{name: torch.cat([BATCH[name], torch.full((4, 3), fill)], 1) for name, fill in (("input_ids", 0), ("labels", -100))},
    }
    assert longer["input_ids"].shape[1] == BATCH["input_ids"].shape[1] + 3
    target = control_vector(16, 3.0, seed=0)
    one, two = (squared_distance(hidden_states(deep(), b, [2])[2], target, answers(b)) for b in (BATCH, longer))
    torch.testing.assert_close(one, two, rtol=1e-12, atol=0)


def test_the_seed_decides_and_a_zero_rate_changes_nothing() -> None:
    hashes = [model_hash(RMU(lr=0.01, epochs=1, batch_size=99).unlearn(tiny_language_model(), VIEW, seed=seed)) for seed in (0, 0, 1)]
    assert hashes[0] == hashes[1] != hashes[2]
    assert model_hash(RMU(lr=0.0, epochs=1).unlearn(tiny_language_model(), VIEW, seed=0)) == model_hash(tiny_language_model())


@pytest.mark.parametrize("trained", ["all", "down_proj"])
def test_a_layer_that_is_not_there_and_a_wrong_pair_of_settings_are_refused(trained: str) -> None:
    with pytest.raises(UserError, match="has no block 2; its blocks are 0 to 1"):
        RMU(layer=2, trained=trained).unlearn(tiny_language_model(), VIEW, seed=0)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="lora_rank 4"):
        RMU(lora_rank=4, trained="down_proj").unlearn(tiny_language_model(), VIEW, seed=0)
