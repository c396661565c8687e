"""The bank of prompts and low-rank updates: by hand, and through saving and loading."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from unlearnbench.contracts.tiny_vision import TinyVision
from unlearnbench.deployed import load_model, save_model
from unlearnbench.layers import model_hash, strip
from unlearnbench.nets import VisionTransformer, vit
from unlearnbench.nets.prompts import (
    ClassPrompts,
    LowRank,
    add_low_rank,
    add_prompts,
    prompt_bank,
    prompted_logits,
    without_prompts,
)


def bare() -> VisionTransformer:
    return vit(classes=5, channels=1, size=4, patch=2, width=8, depth=2, heads=2, stem=2, seed=0).eval()


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def test_the_bank_stands_in_front_and_is_taken_away() -> None:
    model, images = bare(), torch.randn(3, 1, 4, 4)
    tokens, encoder = model.embed(images), model.encoder
    bank = add_prompts(model, (3, 0, 2), generator=generator())
    assert bank.labels == (0, 2, 3)
    longer = encoder(torch.cat([bank.vectors.expand(3, 3, 8), tokens], 1))
    assert torch.equal(model.encoder(tokens), longer[:, 3:])
    assert torch.equal(model(images), model.head(model.pool(longer[:, 3:])))


def test_chosen_prompts_are_those_of_each_image() -> None:
    model, images = bare(), torch.randn(2, 1, 4, 4)
    bank = add_prompts(model, range(4), generator=generator())
    logits = prompted_logits(model, images, torch.tensor([[2, 0], [1, 3]]))
    for row, labels in ((0, (0, 2)), (1, (1, 3))):
        alone = copy.deepcopy(model)
        found = prompt_bank(alone)
        assert found is not None
        found[1].drop(set(range(4)) - set(labels))
        torch.testing.assert_close(alone(images)[row], logits[row])
    none = prompted_logits(model, images, torch.zeros(2, 0, dtype=torch.int64))
    bank.drop(range(4))
    assert torch.equal(none, model(images))
    assert torch.equal(none, bare()(images))


def test_dropping_and_putting_back_keeps_the_order_of_classes() -> None:
    bank = ClassPrompts(nn.Identity(), labels=(1, 4, 6), width=2)
    with torch.no_grad():
        bank.vectors.copy_(torch.tensor([[1.0, 1.5], [4.0, 4.5], [6.0, 6.5]]))
    taken = bank.drop({4, 9})
    assert {label: vector.tolist() for label, vector in taken.items()} == {4: [4.0, 4.5]}
    assert bank.labels == (1, 6)
    assert bank.vectors.tolist() == [[1.0, 1.5], [6.0, 6.5]]
    assert bank.vectors.untyped_storage().nbytes() == 4 * bank.vectors.numel()  # no hidden row behind the tensor
    bank.put({4: torch.tensor([7.0, 8.0]), 1: torch.zeros(2)})
    assert bank.config() == {"labels": [1, 4, 6], "width": 2}
    assert bank.vectors.tolist() == [[0.0, 0.0], [7.0, 8.0], [6.0, 6.5]]


def test_a_low_rank_update_is_added_to_the_layer() -> None:
    layer = nn.Linear(3, 2)
    update = LowRank(layer, rank=2, alpha=6.0, dropout=0.5).eval()
    update.draw(generator())
    x = torch.randn(4, 3)
    assert torch.equal(update(x), layer(x))
    assert update.down.abs().max() <= 3**-0.5
    with torch.no_grad():
        update.up.copy_(torch.tensor([[1.0, 2.0], [0.0, -1.0]]))
    torch.testing.assert_close(update(x), x @ (layer.weight + 3 * update.up @ update.down).mT + layer.bias)
    update.train()
    assert not torch.equal(update(x), update(x))
    silent = LowRank(layer, rank=2, alpha=6.0, dropout=0.5).train()
    assert torch.equal(silent(x), layer(x))  # only the update misses entries


def test_updates_stand_where_they_are_named_and_everything_survives_a_file(tmp_path: Path) -> None:
    model, images = bare(), torch.randn(3, 1, 4, 4)
    before = model_hash(model)
    updates = add_low_rank(model, ("query", "value"), rank=2, alpha=4.0, dropout=0.1, generator=generator())
    add_prompts(model, (0, 2, 4), generator=generator())
    assert len(updates) == 4
    with torch.no_grad():
        for update in updates:
            update.up.normal_(generator=generator())
    save_model(model.eval(), tmp_path)
    again = load_model(tmp_path, bare, (ClassPrompts, LowRank))
    assert torch.equal(again(images), model(images))
    assert model_hash(again) == model_hash(model)
    assert model_hash(strip(again)) == before


def test_an_empty_bank_survives_a_file(tmp_path: Path) -> None:
    model, images = bare(), torch.randn(3, 1, 4, 4)
    add_prompts(model, (0, 2), generator=generator()).drop((0, 2))
    save_model(model, tmp_path)
    again = load_model(tmp_path, bare, (ClassPrompts,))
    assert torch.equal(again(images), bare()(images))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"request": "class0", "net": "vit"}, None),
        ({"request": "mislabelled", "net": "vit"}, "forgets a class, by its prompt; it cannot forget instances"),
        ({"request": "class0"}, "needs a vision transformer, which TinyNet is not"),
    ],
)
def test_what_prompts_cannot_serve_has_a_reason(settings: dict[str, str], reason: str | None) -> None:
    assert without_prompts(TinyVision(**settings)) == reason  # type: ignore[arg-type]


def test_gradients_reach_the_chosen_prompts_alone() -> None:
    model, images = bare(), torch.randn(2, 1, 4, 4)
    bank = add_prompts(model, range(3), generator=generator())
    loss: Tensor = prompted_logits(model, images, torch.tensor([[2], [2]])).square().sum()
    (gradient,) = torch.autograd.grad(loss, [bank.vectors])
    assert gradient[:2].eq(0).all()
    assert gradient[2].ne(0).all()
