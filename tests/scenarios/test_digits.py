"""The digits scenario: what its splits hold, what its models are trained on, and that its anchors can be told apart."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor, nn

from unlearnbench import registry
from unlearnbench.api import Need, Plan, UserError
from unlearnbench.scenarios import digits_data
from unlearnbench.scenarios.digits import Digits
from unlearnbench.scenarios.digits_data import draw_pool, draw_request
from unlearnbench.scenarios.digits_nets import (
    CONVNET_RECIPE,
    CONVNET_WIDTH,
    MLP_RECIPE,
    MLP_WIDTH,
    VIT_RECIPE,
    VIT_WIDTH,
    convnet,
    images,
    mlp,
    vision_transformer,
)
from unlearnbench.scenarios.image_pool import unique_images
from unlearnbench.training import batches, step_count

NAMES = [request.name for request in Digits.requests()]
KINDS = ["class3", "random10", "mislabelled", "coherent"]


def truth(scenario: Digits, name: str) -> Tensor:
    """True classes of a split, by identity, from scikit-learn's own labels."""
    return images()[1][[int(row.removeprefix("digit-")) for row in scenario.split(name).ids]]


def contents(scenario: Digits, name: str) -> set[bytes]:
    return {image.numpy().tobytes() for image in scenario.split(name).images}


# ----------------------------------------------------------------------------------------------------------------------- splits


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("split_seed", [0, 1])
def test_splits_share_no_image(name: str, split_seed: int) -> None:
    scenario = Digits(request=name, split_seed=split_seed)
    parts = {split: contents(scenario, split) for split in scenario.splits}
    validation = scenario.method_view()["validation"]
    parts["validation"] = {image.numpy().tobytes() for image in validation.images}
    assert sum(map(len, parts.values())) == len(set.union(*parts.values()))
    assert len(parts["forget"]) + len(parts["retain"]) == 1220
    training = {image.numpy().tobytes() for image in scenario.train_view(scenario.plan("original")).data.train.images}
    assert training == parts["forget"] | parts["retain"]
    assert min(map(len, parts.values())) >= 40


def test_equal_images_are_kept_once() -> None:
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randn(4, 1, 8, 8, generator=generator)[[2, 0, 2, 1, 3, 0]]
    assert unique_images(pictures).tolist() == [0, 1, 3, 4]


def test_a_duplicate_never_straddles(monkeypatch: pytest.MonkeyPatch) -> None:
    pictures, labels = images()
    twice = torch.cat([pictures, pictures[:300]]), torch.cat([labels, labels[:300]])
    monkeypatch.setattr(digits_data, "load_images", lambda: twice)
    pool = draw_pool.__wrapped__(0)
    assert torch.equal(pool.images, pictures)
    assert pool.train == draw_pool(0).train


def test_parts_are_stratified_and_drawn_by_the_split_seed() -> None:
    pool = draw_pool(0)
    assert pool.truth[list(pool.train)].bincount().tolist() == [122] * 10
    assert pool.truth[list(pool.validation)].bincount().tolist() == [12] * 10
    assert pool.train != draw_pool(1).train
    assert draw_pool.__wrapped__(0).train == pool.train


def test_a_class_request_takes_the_class_out_of_everything_else() -> None:
    scenario = Digits(request="class3")
    assert set(truth(scenario, "forget").tolist()) == {3}
    assert len(scenario.split("forget")) == 122
    assert scenario.asked().kind == "class"
    for name in ("retain", "test", "holdout"):
        assert set(truth(scenario, name).tolist()) == set(range(10)) - {3}
    assert 3 not in scenario.method_view()["validation"].labels.tolist()
    assert 3 not in scenario.attack_parts()["unrelated"].labels.tolist()


@pytest.mark.parametrize("name", ["mislabelled", "validation_mislabelled"])
def test_wrong_labels_are_wrong_and_the_same_everywhere(name: str) -> None:
    scenario = Digits(request=name)
    assert len(scenario.split("forget")) == len(scenario.split("holdout")) == 100
    for split in ("forget", "holdout"):
        assert not (scenario.split(split).labels == truth(scenario, split)).any()
        assert len(set(scenario.split(split).labels.tolist())) == 10
    for split in ("retain", "test"):
        assert torch.equal(scenario.split(split).labels, truth(scenario, split))
    original = scenario.train_view(scenario.plan("original")).data.train
    labels = dict(zip(original.ids, original.labels.tolist(), strict=True))
    for part in (scenario.split("forget"), scenario.method_view()["forget"].train, scenario.attack_parts()["forget_part"].train):
        assert [labels[row] for row in part.ids] == part.labels.tolist()
    oracle = scenario.train_view(scenario.plan("oracle")).data.train
    assert not set(oracle.ids) & set(scenario.split("forget").ids)
    assert oracle.labels.tolist() == [int(row) for row in truth(scenario, "retain")]


def test_a_coherent_group_is_the_neighbourhood_that_the_others_support_least() -> None:
    scenario = Digits(request="coherent")
    forget, pool = scenario.split("forget"), draw_pool(0)
    flat = pool.images.flatten(1).double().numpy()
    unit = flat / np.linalg.norm(flat, axis=1, keepdims=True)
    # With equal probabilities errors are alike within a class, so the kernel ranks a class by the cosine of pixels and bias.
    biased = np.concatenate([flat, np.ones((len(flat), 1))], axis=1)
    biased /= np.linalg.norm(biased, axis=1, keepdims=True)
    votes, groups = {}, {}
    for anchor in pool.shuffled("coherent", pool.train)[:20]:
        mine = [row for row in pool.train if pool.truth[row] == pool.truth[anchor]]
        groups[anchor] = sorted(mine, key=lambda row: -(biased[row] @ biased[anchor]))[:80]
        others = [row for row in pool.train if row not in set(groups[anchor])]
        judge = KNeighborsClassifier(5).fit(unit[others], pool.truth[others])
        near = judge.kneighbors(unit[groups[anchor]], return_distance=False)
        votes[anchor] = int((pool.truth[others].numpy()[near] == int(pool.truth[anchor])).sum())
    best = min(votes, key=lambda anchor: votes[anchor])
    assert {digits_data.row_id(row) for row in groups[best]} == set(forget.ids)
    assert set(forget.labels.tolist()) == set(scenario.split("holdout").labels.tolist()) == {int(pool.truth[best])}
    unseen = [row for row in pool.unseen if pool.truth[row] == pool.truth[best]]
    holdout = sorted(unseen, key=lambda row: -(biased[row] @ biased[best]))[:40]
    assert {digits_data.row_id(row) for row in holdout} == set(scenario.split("holdout").ids)


# --------------------------------------------------------------------------------------------------------------------- requests


@pytest.mark.parametrize("name", NAMES)
def test_the_validation_request_is_of_the_same_kind_with_other_rows(name: str) -> None:
    scenario = Digits(request=name)
    other = scenario.with_request(scenario.validation_request)
    assert other.asked().kind == scenario.asked().kind
    assert other.asked().signal == scenario.asked().signal
    assert len(other.forget_rows()) == len(scenario.forget_rows())
    if not name.startswith("validation_"):
        assert not other.forget_rows() & scenario.forget_rows()
    if name in KINDS[1:]:
        assert not set(other.split("holdout").ids) & set(scenario.split("holdout").ids)


@pytest.mark.parametrize("name", KINDS)
def test_shadows_have_equal_size_and_other_rows_and_share_the_original(name: str) -> None:
    scenario = Digits(request=name)
    shadows = [scenario.shadow_request(index) for index in range(4)]
    for shadow in shadows:
        assert len(shadow.forget_rows()) == len(scenario.forget_rows())
        assert not shadow.forget_rows() & scenario.forget_rows()
        assert scenario.training_settings(scenario.plan("original")) == shadow.training_settings(shadow.plan("original"))
        assert not set(shadow.split("retain").ids) & shadow.forget_rows()
        assert scenario.forget_rows() <= set(shadow.split("retain").ids)
    if name != "class3":  # of nine other classes two may be the same
        assert len({shadow.forget_rows() for shadow in shadows}) == 4
    if name in ("class3", "coherent"):
        assert all(len(set(shadow.split("forget").labels.tolist())) == 1 for shadow in shadows)


@pytest.mark.parametrize("name", KINDS)
def test_the_attacker_holds_half(name: str) -> None:
    scenario = Digits(request=name)
    held = set(scenario.attack_parts()["forget_part"].train.ids)
    assert held | scenario.judged() == scenario.forget_rows()
    assert not held & scenario.judged()
    assert len(held) == len(scenario.forget_rows()) // 2


def test_unrelated_images_are_negatives() -> None:
    scenario = Digits(request="random10")
    plain, negative = scenario.method_view()["validation"], scenario.attack_parts()["unrelated"]
    pixels = (plain.images * 6.017 + 4.884).double()
    torch.testing.assert_close((negative.images * 6.017 + 4.884).double(), 16 - pixels, atol=1e-4, rtol=0)
    assert negative.ids == plain.ids


def test_settings_tell_what_was_trained_and_nothing_else() -> None:
    def settings(role: str, **fields: Any) -> dict[str, Any]:
        scenario = Digits(**{"request": "class3", **fields})
        return scenario.training_settings(scenario.plan(role))

    assert settings("original") == settings("original", request="random10") == settings("original", request="coherent")
    others = [
        settings("oracle"),
        settings("oracle", request="class4"),
        settings("original", request="mislabelled"),
        settings("original", request="validation_mislabelled"),
        settings("original", split_seed=1),
        settings("original", net="conv"),
        settings("original", width=16),
        settings("original", epochs=3),
        settings("original", batch_size=32),
        settings("original", lr=0.1),
    ]
    everything = [settings("original"), *others]
    assert all(a != b for i, a in enumerate(everything) for b in everything[:i])
    assert settings("original", width=192) == settings("original")


def test_all_nets_are_trained_by_their_own_recipe() -> None:
    assert Digits(request="class3").recipe == MLP_RECIPE
    assert Digits(request="class3", net="conv").recipe == CONVNET_RECIPE
    assert Digits(request="class3", net="vit").recipe == VIT_RECIPE
    assert Digits(request="class3", net="vit", lr=0.1).recipe == replace(VIT_RECIPE, lr=0.1)
    for net, width, build in (("mlp", MLP_WIDTH, mlp), ("conv", CONVNET_WIDTH, convnet), ("vit", VIT_WIDTH, vision_transformer)):
        model = registry.make("scenarios", "digits", {"request": "class3", "net": net}).build(5)
        torch.testing.assert_close(model.state_dict(), build(width, 5).state_dict(), rtol=0, atol=0)


def test_the_transformer_learns_a_class_or_never_hears_of_it() -> None:
    scenario = Digits(request="class3", net="vit", epochs=14)
    # Two at once: its layers cannot be stacked, so that it is trained by the loop.
    original, oracle = scenario.train([scenario.plan("original"), scenario.plan("oracle")], [0, 0])

    def accuracy(model: nn.Module, split: str) -> float:
        data = scenario.split(split)
        with torch.no_grad():
            return float((model.eval()(data.images).argmax(1) == data.labels).double().mean())

    assert accuracy(original, "forget") >= 0.99
    assert accuracy(oracle, "forget") == 0
    for model in (original, oracle):
        assert accuracy(model, "retain") >= 0.99
        assert accuracy(model, "test") >= 0.95


def test_mistakes_are_named() -> None:
    scenario = Digits(request="class3")
    with pytest.raises(UserError, match="'nobody' is no training image of split seed 0"):
        scenario.train_view(Plan(role="subset", rows=frozenset({"nobody"})))
    with pytest.raises(UserError, match="has no request 'class11'"):
        Digits(request="class11").forget_rows()
    with pytest.raises(UserError, match="net"):
        registry.make("scenarios", "digits", {"request": "class3", "net": "resnet"})


# --------------------------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("net", ["mlp", "conv"])
def test_models_are_trained_on_the_rows_of_their_plan_with_this_requests_labels(net: Any) -> None:
    scenario = Digits(request="mislabelled", net=net, width=4, epochs=1)
    plans, seeds = [scenario.plan("original"), scenario.plan("oracle"), scenario.plan("oracle")], [3, 4, 3]
    models = scenario.train(plans, seeds)
    for plan, seed, model in zip(plans, seeds, models, strict=True):
        data = scenario.train_view(plan).data.train
        expected = plain_training(scenario, scenario.build(seed).train(), data.images, data.labels, seed)
        for name, value in model.state_dict().items():
            torch.testing.assert_close(value, expected.state_dict()[name], rtol=1e-3, atol=1e-4)
    alone = scenario.train(plans[1:2], seeds[1:2])[0]
    torch.testing.assert_close(alone.state_dict(), models[1].state_dict(), rtol=1e-3, atol=1e-4)


def plain_training(scenario: Digits, model: nn.Module, inputs: Tensor, labels: Tensor, seed: int) -> nn.Module:
    """AdamW with a linearly falling rate, written out."""
    recipe = scenario.recipe
    total = step_count(len(inputs), recipe)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.lr, weight_decay=0.0)
    for step, index in enumerate(batches(len(inputs), recipe.batch_size, seed=seed, epoch=0)):
        optimizer.param_groups[0]["lr"] = recipe.lr * (1 - step / total)
        optimizer.zero_grad()
        torch.autograd.backward(nn.functional.cross_entropy(model(inputs[index]), labels[index]))
        optimizer.step()
    return model


# ---------------------------------------------------------------------------------------------------------------------- anchors


def logits(split: str) -> Need:
    return Need(what="logits", split=split)


def looked_at(scenario: Digits, model: nn.Module) -> dict[str, float]:
    """Accuracy on each split, and the AUC of minus the loss on forget against holdout."""
    evidence = scenario.evidence(model, frozenset(map(logits, scenario.splits)))
    found: dict[str, float] = {}
    fits: dict[str, Any] = {}
    for name in scenario.splits:
        scores, labels = torch.tensor(evidence.array(logits(name))), torch.tensor(evidence.labels[name])
        found[name] = float((scores.argmax(1) == labels).double().mean())
        fits[name] = scores.double().log_softmax(1)[torch.arange(len(labels)), labels].numpy()
    members = [1] * len(fits["forget"]) + [0] * len(fits["holdout"])
    found["auc"] = float(roc_auc_score(members, np.concatenate([fits["forget"], fits["holdout"]])))
    return found


def anchors(scenario: Digits) -> tuple[dict[str, float], dict[str, float]]:
    original, oracle = scenario.train([scenario.plan("original"), scenario.plan("oracle")], [0, 1000])
    return looked_at(scenario, original.eval()), looked_at(scenario, oracle.eval())


def test_only_the_original_knows_a_class() -> None:
    original, oracle = anchors(Digits(request="class3", width=32, epochs=10))
    assert original["forget"] >= 0.97
    assert oracle["forget"] == 0
    assert original["auc"] >= 0.4
    assert oracle["auc"] <= 0.05
    assert min(original["test"], oracle["test"]) >= 0.93


def test_only_the_original_believes_wrong_labels() -> None:
    original, oracle = anchors(Digits(request="mislabelled"))
    assert original["forget"] >= 0.97
    assert oracle["forget"] <= 0.03
    assert original["holdout"] <= 0.05
    assert original["auc"] >= 0.95
    assert 0.4 <= oracle["auc"] <= 0.6
    assert oracle["test"] >= 0.95


def test_a_coherent_group_is_missed_and_random_images_are_not() -> None:
    original, oracle = anchors(Digits(request="coherent", epochs=15))
    assert original["forget"] >= 0.99
    assert oracle["forget"] <= 0.9
    original, oracle = anchors(Digits(request="random10", epochs=15))
    assert original["forget"] - oracle["forget"] <= 0.06
    assert abs(original["auc"] - oracle["auc"]) <= 0.06


def test_only_restricts_the_forget_split_and_rewrite_changes_the_images() -> None:
    scenario = Digits(request="class3", width=4)
    net = scenario.build(0).eval()
    judged = scenario.judged()
    needs = frozenset({logits("forget"), logits("test")})
    evidence = scenario.evidence(net, needs, only=judged, rewrite=torch.neg)
    assert set(evidence.ids["forget"]) == judged
    rows = scenario.split("test")
    assert evidence.ids["test"] == rows.ids
    np.testing.assert_allclose(evidence.array(logits("test")), net(-rows.images).detach().numpy(), rtol=1e-5, atol=1e-6)
    assert draw_request("class3", 0).forget == draw_request(replace(scenario, width=8).request, 0).forget
