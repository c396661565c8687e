"""Prompt removal: subsets of prompts, the two losses, and what holds before and after a class is dropped."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from prompted import METHOD, accuracy, build, method_view, only, rows, train_view, trained
from scipy.stats import chisquare, entropy
from torch import nn

from unlearnbench.api import UserError
from unlearnbench.layers import inserted, model_hash, strip
from unlearnbench.methods import prompt_removal
from unlearnbench.methods.prompt_removal import PromptRemoval, from_uniform, mixed_subset, wrong_subset
from unlearnbench.nets.prompts import prompt_bank
from unlearnbench.scenarios.digits import Digits
from unlearnbench.testing import tiny_vision_model

GONE = 1


def unlearned(*labels: int) -> nn.Module:
    model: nn.Module = copy.deepcopy(trained())
    for label in labels:
        model = METHOD.unlearn(model, method_view(label), seed=0)
    return model


# ------------------------------------------------------------------------------------------------------------------- formulas


def test_distance_from_uniform_is_scipys() -> None:
    logits = 3 * torch.randn(6, 7, dtype=torch.float64)
    expected = entropy(np.full((6, 7), 1 / 7), logits.softmax(1).numpy(), axis=1)
    np.testing.assert_allclose(from_uniform(logits), expected, rtol=1e-6)


@pytest.mark.parametrize("wrong", [0, 1, 3, 4])
def test_wrong_prompts_are_distinct_and_never_the_true_one(wrong: int) -> None:
    true = torch.arange(5).repeat(400)
    torch.manual_seed(0)
    chosen = wrong_subset(true, 5, wrong=wrong)
    assert chosen.shape == (2000, wrong)
    assert not (chosen == true[:, None]).any()
    assert all(len(set(row)) == wrong for row in chosen.tolist())
    for place in range(wrong):  # every other prompt as often, at every place
        counts = ((chosen[:, place] - true) % 5).bincount(minlength=5)[1:]
        assert chisquare(counts).pvalue > 1e-4


@pytest.mark.parametrize("wrong", [0, 1, 4])
def test_the_true_prompt_is_among_them_at_any_place(wrong: int) -> None:
    true = torch.arange(5).repeat(400)
    torch.manual_seed(0)
    chosen = mixed_subset(true, 5, wrong=wrong)
    assert chosen.shape == (2000, wrong + 1)
    assert all(len(set(row)) == wrong + 1 for row in chosen.tolist())
    places = (chosen == true[:, None]).nonzero()
    assert torch.equal(places[:, 0], torch.arange(2000))
    assert wrong == 0 or chisquare(places[:, 1].bincount(minlength=wrong + 1)).pvalue > 1e-4


def test_the_loss_is_that_of_the_paper(monkeypatch: pytest.MonkeyPatch) -> None:
    model = copy.deepcopy(trained())
    data = rows(each=2)
    numbers = iter((3, 1))
    monkeypatch.setattr(prompt_removal, "_number", lambda count: next(numbers))
    torch.manual_seed(0)
    loss = prompt_removal._both_losses(model, data.batch(range(len(data))))
    torch.manual_seed(0)
    mixed, wrong = mixed_subset(data.labels, 5, wrong=3), wrong_subset(data.labels, 5, wrong=1)
    total = 0.0
    for row, label in enumerate(data.labels.tolist()):
        for kind, chosen in (("mixed", mixed[row]), ("wrong", wrong[row])):
            alone = copy.deepcopy(model)
            found = prompt_bank(alone)
            assert found is not None
            found[1].drop(set(range(5)) - set(chosen.tolist()))
            with torch.no_grad():
                probabilities = alone(data.images[row][None]).double().softmax(1)[0].numpy()
            total += -np.log(probabilities[label]) if kind == "mixed" else entropy(np.full(5, 0.2), probabilities)
    assert float(loss.detach()) == pytest.approx(total / len(data), rel=1e-4)


# ------------------------------------------------------------------------------------------------------------------- properties


def test_only_the_prompt_of_the_class_is_gone() -> None:
    model = unlearned(GONE)
    before, after = trained().state_dict(), model.state_dict()
    assert before.keys() == after.keys()
    kept = [row for row in range(5) if row != GONE]
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor[kept] if name == "encoder.vectors" else tensor), name
    dropped = before["encoder.vectors"][GONE]
    assert not any((tensor == value).any() for tensor in after.values() if tensor.is_floating_point() for value in dropped)


def test_the_order_of_removal_does_not_matter() -> None:
    assert model_hash(unlearned(3, 1)) == model_hash(unlearned(1, 3))
    assert not torch.equal(unlearned(1, 3)(rows().images), unlearned(1)(rows().images))


def test_the_same_vector_put_back_restores_the_model() -> None:
    model = copy.deepcopy(trained())
    found = prompt_bank(model)
    assert found is not None
    found[1].put(found[1].drop({GONE}))
    assert model_hash(model) == model_hash(trained())
    assert torch.equal(model(rows().images), trained()(rows().images))


def test_without_its_prompt_a_class_is_answered_like_nothing_known() -> None:
    images, model = only(GONE, "unseen").images, unlearned(GONE)
    with torch.no_grad():
        assert from_uniform(trained()(images)).mean() > 1.2
        assert from_uniform(model(images)).mean() < 0.3
    assert accuracy(trained(), only(GONE, "unseen")) >= 0.9
    assert accuracy(model, only(GONE, "unseen")) <= 0.3
    assert accuracy(model, rows(GONE, name="unseen")) >= 0.9


def test_the_backbone_is_trained_by_the_scenario_and_then_not_touched() -> None:
    view = train_view()
    long, short = (PromptRemoval(epochs=epochs, lr=0.02, batch_size=25).train(view, seed=0) for epochs in (3, 1))
    ours, theirs = (strip(copy.deepcopy(model)).state_dict() for model in (long, short))
    changed = {name for name, tensor in ours.items() if not torch.equal(tensor, theirs[name])}
    assert changed == {"head.weight", "head.bias"}
    assert not torch.equal(
        ours["encoder.blocks.0.attention.query.weight"], build(0).state_dict()["encoder.blocks.0.attention.query.weight"]
    )
    updates = [path.rpartition(".")[2] for path, _ in inserted(long)]
    assert sorted(updates) == ["encoder", "query", "value"]


def test_a_class_that_was_never_trained_has_no_prompt() -> None:
    found = prompt_bank(trained(GONE))
    assert found is not None
    assert found[1].labels == (0, 2, 3, 4)
    assert accuracy(trained(GONE), only(GONE, "unseen")) <= 0.1
    assert model_hash(METHOD.unlearn(copy.deepcopy(trained(GONE)), method_view(GONE), seed=0)) == model_hash(trained(GONE))


def test_what_it_cannot_serve_is_said() -> None:
    digits = Digits(request="class3", net="vit")
    assert METHOD.supports(digits) is None
    assert METHOD.supports(Digits(request="class3")) == "needs a vision transformer, which DigitsNet is not"
    assert METHOD.supports(digits.with_request("coherent")) == "forgets a class, by its prompt; it cannot forget instances"
    with pytest.raises(UserError, match="this model has none"):
        METHOD.unlearn(build(0), method_view(GONE), seed=0)
    other = replace(train_view(), build=tiny_vision_model)
    with pytest.raises(UserError, match="the scenario builds a TinyNet"):
        METHOD.train(other, seed=0)
