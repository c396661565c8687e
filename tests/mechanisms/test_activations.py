"""Reading inside a forward pass: against a full pass, and leaving nothing behind."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from unlearnbench.api import Batch, UserError
from unlearnbench.layers import Inserted, blocks, insert
from unlearnbench.mechanisms.activations import depth_range, mlps, projections, reading, run_through, token_mask, trainable_alone
from unlearnbench.testing import tiny_language_model, tiny_language_view

BATCH: Batch = tiny_language_view().forget.train.batch(range(4))


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def test_readings_are_those_of_a_full_pass() -> None:
    model = tiny_language_model()
    first = blocks(model)[0][1]
    full = model(input_ids=BATCH["input_ids"], output_hidden_states=True).hidden_states
    through, down, whole = run_through(model, BATCH, [first.mlp, first.mlp.down_proj, first], until=first)
    torch.testing.assert_close(whole.input, full[0])
    torch.testing.assert_close(whole.output, full[1])
    torch.testing.assert_close(down.output, through.output)
    torch.testing.assert_close(nn.functional.linear(down.input, first.mlp.down_proj.weight), down.output)
    assert through.output.requires_grad
    assert not down.input.requires_grad


def test_nothing_behind_the_end_is_computed_and_no_hook_stays() -> None:
    model = tiny_language_model()
    first, second = (block for _, block in blocks(model))
    ran: list[nn.Module] = []
    second.register_forward_hook(lambda module, inputs, output: ran.append(module))
    before = hooks(model)
    run_through(model, BATCH, [first], until=first)
    assert not ran
    assert hooks(model) == before
    run_through(model, BATCH, [first], until=second)
    assert ran == [second]


def test_hooks_go_when_the_pass_fails() -> None:
    model = tiny_language_model()
    with pytest.raises(ZeroDivisionError), reading(list(model.modules())):
        raise ZeroDivisionError
    assert not hooks(model)


def test_mlps_and_projections_of_blocks() -> None:
    model = tiny_language_model()
    found = [block for _, block in blocks(model)]
    assert mlps(found) == [block.mlp for block in found]
    names = [name for name, module in model.named_modules() if module in projections(found)]
    assert names == [f"model.layers.{block}.mlp.{layer}_proj" for block in (0, 1) for layer in ("gate", "up", "down")]


def test_an_inserted_module_is_read_as_deployed() -> None:
    model = tiny_language_model()

    class Doubled(Inserted):
        def forward(self, *args: object, **kwargs: object) -> Tensor:
            return 2 * self.inner(*args, **kwargs)

    plain = run_through(model, BATCH, mlps([blocks(model)[0][1]]), until=blocks(model)[0][1])[0].output
    insert(model, "model.layers.0.mlp", Doubled(model.get_submodule("model.layers.0.mlp")))
    block = blocks(model)[0][1]
    torch.testing.assert_close(run_through(model, BATCH, mlps([block]), until=block)[0].output, 2 * plain)
    assert len(projections([block])) == 3


def test_models_without_gated_mlps_are_refused() -> None:
    with pytest.raises(UserError, match="Linear without an mlp"):
        mlps([nn.Linear(2, 2)])
    block = nn.Module()
    block.mlp = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(UserError, match="no linear layer gate_proj"):
        projections([block])


@pytest.mark.parametrize(
    ("n", "first", "last", "expected"),
    [(28, 0.1875, 0.375, range(5, 11)), (1, 0.1875, 0.375, range(1)), (4, 1.0, 1.0, range(3, 4)), (4, 0.6, 0.2, range(2, 3))],
)
def test_depths_are_blocks(n: int, first: float, last: float, expected: range) -> None:
    assert depth_range(n, first, last) == expected


def test_masks_count_from_both_ends_of_each_row() -> None:
    batch = {
        "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]),
        "labels": torch.tensor([[-100, -100, -100, 4, 5], [-100, 6, 7, -100, -100]]),
    }
    assert token_mask(batch).tolist() == batch["attention_mask"].bool().tolist()
    assert token_mask(batch, first=1, last=2).int().tolist() == [[0, 1, 1, 0, 0], [0, 0, 0, 0, 0]]
    assert token_mask(batch, answers=True).int().tolist() == [[0, 0, 0, 1, 1], [0, 1, 1, 0, 0]]
    assert token_mask(batch, first=2, last=1, answers=True).int().tolist() == [[0, 0, 0, 1, 0], [0, 0, 0, 0, 0]]


def test_only_the_given_weights_are_trainable_inside() -> None:
    model = tiny_language_model()
    frozen, chosen = model.get_submodule("model.norm").weight, model.get_submodule("model.layers.0.mlp.up_proj").weight
    assert isinstance(chosen, nn.Parameter)
    frozen.requires_grad_(False)
    before = [parameter.requires_grad for parameter in model.parameters()]
    inside: list[nn.Parameter] = []

    def fail() -> None:
        inside.extend(parameter for parameter in model.parameters() if parameter.requires_grad)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), trainable_alone(model, [chosen]):
        fail()
    assert inside == [chosen]
    assert [parameter.requires_grad for parameter in model.parameters()] == before


def test_named_arguments_are_read_too() -> None:
    class Named(nn.Module):
        def forward(self, *, states: Tensor) -> tuple[Tensor, None]:
            return states + 1, None

    module = Named()
    with reading([module]) as found:
        module(states=torch.zeros(1))
    assert found[0] is not None
    assert SimpleNamespace(**vars(found[0])) == SimpleNamespace(input=torch.zeros(1), output=torch.ones(1))
