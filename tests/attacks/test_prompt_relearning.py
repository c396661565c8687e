"""Prompt relearning: what it changes, what comes back where it was hidden, and what does not where it was never known."""

import copy
from dataclasses import replace

import pytest
import torch
from prompted import METHOD, accuracy, attack_view, build, method_view, only, rows, split, trained
from torch import Tensor, nn

from unlearnbench.api import NotMeasurable, UserError
from unlearnbench.attacks.prompt_relearning import PromptRelearning
from unlearnbench.layers import model_hash
from unlearnbench.nets.prompts import prompt_bank
from unlearnbench.scenarios.digits import Digits

GONE = 1


def removed() -> nn.Module:
    return METHOD.unlearn(copy.deepcopy(trained()), method_view(GONE), seed=0)


def bank(model: nn.Module) -> tuple[tuple[int, ...], Tensor]:
    found = prompt_bank(model)
    assert found is not None
    return found[1].labels, found[1].vectors.detach()


def final(attack: PromptRelearning, model: nn.Module, seed: int = 0) -> nn.Module:
    *_, last = attack.stages(model, attack_view(GONE), seed=seed)
    assert last.final
    return last.model


def test_stages_rise_to_what_the_attacker_holds_and_begin_with_the_model_as_deployed() -> None:
    model = removed()
    found = [
        (stage.step, stage.final, model_hash(stage.model)) for stage in PromptRelearning(steps=2).stages(model, attack_view(GONE), seed=0)
    ]
    assert [step for step, _, _ in found] == [0, 1, 5, 10, 20]  # he holds 20 images, not 50
    assert [last for _, last, _ in found] == [False] * 4 + [True]
    assert found[0][2] == model_hash(removed())
    assert len({weights for _, _, weights in found}) == 5


def test_one_vector_is_new_and_all_else_is_the_same_to_the_bit() -> None:
    model = removed()
    attacked = final(PromptRelearning(examples=(5,), steps=20), model)
    before, after = model.state_dict(), attacked.state_dict()
    assert before.keys() == after.keys()
    kept = [row for row in range(5) if row != GONE]
    for name, tensor in before.items():
        assert torch.equal(after[name][kept] if name == "encoder.vectors" else after[name], tensor), name
    assert bank(attacked)[0] == (0, 1, 2, 3, 4)


def test_the_vector_starts_from_the_seed_and_learns_from_the_images() -> None:
    slow = PromptRelearning(examples=(5,), steps=1, lr=1e-6)
    first, same, other = (bank(final(slow, removed(), seed))[1][GONE] for seed in (0, 0, 1))
    torch.testing.assert_close(first, torch.randn(16, generator=torch.Generator().manual_seed(0)), atol=1e-5, rtol=0)
    assert torch.equal(first, same)
    assert not torch.allclose(first, other)
    few, many = (bank(final(PromptRelearning(examples=(k,), steps=5), removed()))[1][GONE] for k in (1, 10))
    assert not torch.equal(few, many)


def test_a_dropped_class_comes_back_and_one_never_seen_does_not() -> None:
    attack, unseen = PromptRelearning(examples=(5,)), only(GONE, "unseen")
    hidden = removed()
    assert accuracy(hidden, unseen) <= 0.3
    assert accuracy(final(attack, hidden), unseen) >= 0.8
    oracle = copy.deepcopy(trained(GONE))
    assert accuracy(oracle, unseen) <= 0.1
    assert accuracy(final(attack, oracle), unseen) <= 0.3


def test_a_prompt_that_is_still_there_goes_on_from_where_it_is() -> None:
    slow = PromptRelearning(examples=(5,), steps=1, lr=1e-6)
    torch.testing.assert_close(bank(final(slow, copy.deepcopy(trained())))[1], bank(trained())[1], atol=1e-5, rtol=0)


def test_what_cannot_be_attacked_is_said() -> None:
    view = attack_view(GONE)
    with pytest.raises(NotMeasurable, match="VisionTransformer has no class prompts"):
        next(PromptRelearning().stages(build(0), view, seed=0))
    empty = replace(view, parts={"forget_part": split(rows().take([]))})
    with pytest.raises(UserError, match="has no rows"):
        next(PromptRelearning().stages(removed(), empty, seed=0))
    for examples in ((), (0, 5), (5, 5)):
        with pytest.raises(UserError, match="allowed: rising whole numbers from 1 on"):
            next(PromptRelearning(examples=examples).stages(removed(), view, seed=0))
    assert PromptRelearning().supports(Digits(request="class3", net="vit")) is None
    assert PromptRelearning().supports(Digits(request="class3")) == "needs a vision transformer, which DigitsNet is not"
