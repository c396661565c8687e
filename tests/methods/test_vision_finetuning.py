"""NegGrad+, l1-sparse, pseudo-labels, CF-k and EU-k: their limits, one step by hand, what stays fixed and what is never read."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unlearnbench.api import Batch, MethodView, Split, UserError
from unlearnbench.fields import FieldError, construct
from unlearnbench.layers import model_hash
from unlearnbench.mechanisms.relabelling import Relabelled
from unlearnbench.methods.finetune import Finetune
from unlearnbench.methods.l1_sparse import L1Sparse, l1_norm
from unlearnbench.methods.last_blocks import CFk, EUk, last_part
from unlearnbench.methods.neggrad_plus import NegGradPlus
from unlearnbench.methods.pseudo_label import PseudoLabel
from unlearnbench.testing import in_training, tiny_vision_model, tiny_vision_view

VIEW = tiny_vision_view()
PLAIN = in_training(VIEW, momentum=0.0)
SETTINGS: dict[str, Any] = {"lr": 0.02, "epochs": 2, "batch_size": 7}
FIVE = pytest.mark.parametrize("cls", [NegGradPlus, L1Sparse, PseudoLabel, CFk, EUk])


def unlearned(method: Any, view: MethodView = VIEW, seed: int = 0) -> nn.Module:
    return method.unlearn(tiny_vision_model(), view, seed=seed)  # type: ignore[no-any-return]


def mean_loss(model: nn.Module, split: Split) -> Tensor:
    return VIEW.loss(model, split.train.batch(range(len(split.train)))).mean()


def stepped(loss: Callable[[nn.Module], Tensor], lr: float) -> list[Tensor]:
    """Weights after one bare gradient step."""
    model = tiny_vision_model()
    gradients = torch.autograd.grad(loss(model), list(model.parameters()))
    return [weight.detach() - lr * gradient for weight, gradient in zip(model.parameters(), gradients, strict=True)]


def counted(method: Any, view: MethodView = VIEW) -> list[Batch]:
    """The batches that a method passes through its loss."""
    seen: list[Batch] = []

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        seen.append(batch)
        return view.loss(model, batch)

    unlearned(method, replace(view, loss=loss))
    return seen


# ------------------------------------------------------------------------------------------------------------------- NegGrad+


def test_neggrad_plus_with_alpha_1_is_fine_tuning() -> None:
    assert model_hash(unlearned(NegGradPlus(alpha=1.0, **SETTINGS))) == model_hash(unlearned(Finetune(**SETTINGS)))
    assert model_hash(unlearned(NegGradPlus(alpha=0.9, **SETTINGS))) != model_hash(unlearned(Finetune(**SETTINGS)))


def test_with_moving_statistics_alpha_1_has_the_weights_of_fine_tuning_and_statistics_that_saw_forget_rows() -> None:
    plus, tuned = (
        unlearned(cls, VIEW) for cls in (NegGradPlus(alpha=1.0, batch_norm="train", **SETTINGS), Finetune(batch_norm="train", **SETTINGS))
    )
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(plus.parameters(), tuned.parameters(), strict=True))
    assert not torch.equal(plus.get_buffer("blocks.0.2.running_mean"), tuned.get_buffer("blocks.0.2.running_mean"))


def test_one_step_of_neggrad_plus_is_the_formula() -> None:
    ours = unlearned(NegGradPlus(alpha=0.7, lr=0.1, epochs=1, batch_size=99), PLAIN)
    expected = stepped(lambda model: 0.7 * mean_loss(model, VIEW.retain) - 0.3 * mean_loss(model, VIEW.forget), 0.1)
    torch.testing.assert_close([weight.detach() for weight in ours.parameters()], expected, rtol=1e-10, atol=1e-12)


def test_forget_rows_come_round_again_with_each_batch_of_retain_rows() -> None:
    seen = counted(NegGradPlus(lr=0.01, epochs=2, batch_size=4, forget_batch_size=3))
    kept, gone = seen[::2], seen[1::2]
    assert [len(batch["labels"]) for batch in kept] == [4] * 10
    assert all(bool((batch["labels"] > 0).all()) for batch in kept)
    assert [len(batch["labels"]) for batch in gone] == [3, 3, 3, 1, 3, 3, 3, 1, 3, 3]
    sums = [float(image.sum()) for batch in gone[:4] for image in batch["images"]]
    assert len(set(sums)) == 10
    assert [len(batch["labels"]) for batch in counted(NegGradPlus(lr=0.01, epochs=1, batch_size=4))[1::2]] == [4, 4, 2, 4, 4]


def test_neggrad_plus_raises_the_forget_loss_beyond_fine_tuning() -> None:
    settings = {"lr": 0.02, "epochs": 5, "batch_size": 5}
    plus, tuned = unlearned(NegGradPlus(alpha=0.8, **settings)), unlearned(Finetune(**settings))  # type: ignore[arg-type]
    assert mean_loss(plus, VIEW.forget) > mean_loss(tuned, VIEW.forget) + 0.1


# ------------------------------------------------------------------------------------------------------------------ l1-sparse


def test_l1_sparse_with_gamma_0_is_fine_tuning_and_otherwise_smaller() -> None:
    tuned = unlearned(Finetune(**SETTINGS))
    assert model_hash(unlearned(L1Sparse(gamma=0.0, **SETTINGS))) == model_hash(tuned)
    norms = [l1_norm(unlearned(L1Sparse(gamma=gamma, **SETTINGS))).item() for gamma in (0.0, 1e-3, 1e-2)]
    assert norms[0] == l1_norm(tuned).item() > norms[1] > norms[2]


def test_the_penalty_falls_linearly_and_stays_away_afterwards() -> None:
    # One step per epoch, without momentum: each is a bare step of the formula with that epoch's weight.
    ours = unlearned(L1Sparse(gamma=0.1, plain_epochs=1, lr=0.1, epochs=4, batch_size=99), PLAIN)
    model = tiny_vision_model()
    for gamma in (0.1, 0.1 * 2 / 3, 0.1 / 3, 0.0):
        loss = mean_loss(model, VIEW.retain) + gamma * sum(weight.abs().sum() for weight in model.parameters())
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for weight, gradient in zip(model.parameters(), gradients, strict=True):
                weight -= 0.1 * gradient
    torch.testing.assert_close(list(ours.parameters()), list(model.parameters()), rtol=1e-10, atol=1e-12)


# --------------------------------------------------------------------------------------------------------------- pseudo-labels


def test_the_targets_are_the_originals_best_retained_classes() -> None:
    forget = VIEW.forget.train.batch(range(10))
    with torch.no_grad():
        logits = tiny_vision_model(2)(forget["images"])
    assert (logits.argmax(1) == 0).all()  # the class to forget, which must not become a target
    targets = dict(zip(forget["images"].sum((1, 2, 3)).tolist(), (logits[:, 1:].argmax(1) + 1).tolist(), strict=True))
    seen: list[tuple[float, int]] = []

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        seen.extend(zip(batch["images"].sum((1, 2, 3)).tolist(), batch["labels"].tolist(), strict=True))
        return VIEW.loss(model, batch)

    PseudoLabel(lr=0.1, epochs=3, batch_size=4).unlearn(tiny_vision_model(2), replace(VIEW, loss=loss), seed=0)
    assert len(seen) == 30
    assert {targets[image] == label for image, label in seen} == {True}


def test_one_step_on_pseudo_labels_is_the_formula() -> None:
    ours = PseudoLabel(lr=0.1, epochs=1, batch_size=99).unlearn(tiny_vision_model(2), PLAIN, seed=0)
    model, images = tiny_vision_model(2), VIEW.forget.train.batch(range(10))["images"]
    targets = model(images)[:, 1:].argmax(1) + 1
    gradients = torch.autograd.grad(nn.functional.cross_entropy(model(images), targets), list(model.parameters()))
    expected = [weight.detach() - 0.1 * gradient for weight, gradient in zip(model.parameters(), gradients, strict=True)]
    torch.testing.assert_close([weight.detach() for weight in ours.parameters()], expected, rtol=1e-10, atol=1e-12)


def test_pseudo_labels_are_for_classes_only() -> None:
    def scenario(kind: str, modality: str = "vision") -> Any:
        return SimpleNamespace(modality=modality, task="classify", asked=lambda: SimpleNamespace(kind=kind))

    assert PseudoLabel().supports(scenario("class")) is None
    assert PseudoLabel().supports(scenario("instances")) == "serves requests for classes, not for instances"
    assert PseudoLabel().supports(scenario("class", "language")) == "works on vision, not on language"
    both = Split(train=Relabelled(VIEW.forget.train, torch.arange(10) % 2), eval=VIEW.forget.eval)
    with pytest.raises(ValueError, match=r"classes \[1\] are to be forgotten and have retain rows"):
        unlearned(PseudoLabel(), replace(VIEW, forget=both))


# -------------------------------------------------------------------------------------------------------------- CF-k and EU-k


def conv_net() -> nn.Module:
    """Two convolutions with norms and a head, without a list of blocks."""
    torch.manual_seed(0)
    body = [nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Flatten()]
    return nn.Sequential(nn.Sequential(*body), nn.Linear(64, 3)).double().eval()


# Net, k, and what is frozen: blocks.0 has a linear layer and a norm, blocks.1 a linear layer.
PARTS = [
    (tiny_vision_model, 1, ["blocks.0."]),
    (tiny_vision_model, 0, ["blocks."]),
    (conv_net, 1, ["0.0.", "0.1."]),
    (conv_net, 0, ["0."]),
]


@pytest.mark.parametrize(("build", "k", "frozen"), PARTS)
@pytest.mark.parametrize("batch_norm", ["frozen", "train"])
@pytest.mark.parametrize("cls", [CFk, EUk])
def test_the_frozen_part_stays_to_the_bit_with_its_statistics(build: Any, k: int, frozen: list[str], batch_norm: Any, cls: Any) -> None:
    view = in_training(VIEW, weight_decay=0.1)
    before = build().state_dict()
    after = cls(k=k, batch_norm=batch_norm, lr=0.05, epochs=2, batch_size=5).unlearn(build(), view, seed=0).state_dict()
    still = {name for name in before if torch.equal(before[name], after[name])}
    fixed = {name for name in before if name.startswith(tuple(frozen))}
    assert fixed <= still
    if batch_norm == "train":
        assert still == fixed
    elif cls is CFk:
        assert all("running" in name or "tracked" in name for name in still - fixed)


def test_cf_k_is_fine_tuning_of_a_part() -> None:
    def head_only(model: nn.Module) -> list[Tensor]:
        expected = copy.deepcopy(model)
        gradients = torch.autograd.grad(mean_loss(expected, VIEW.retain), list(expected.head.parameters()))  # type: ignore[union-attr]
        pairs = zip(expected.head.parameters(), gradients, strict=True)  # type: ignore[union-attr]
        return [weight.detach() - 0.1 * gradient for weight, gradient in pairs]

    ours = unlearned(CFk(k=0, lr=0.1, epochs=1, batch_size=99), PLAIN)
    torch.testing.assert_close([weight.detach() for weight in ours.head.parameters()], head_only(tiny_vision_model()))  # type: ignore[union-attr]


def test_eu_k_forgets_what_the_part_knew() -> None:
    """Its result does not depend on the weights that are drawn anew, only on the frozen ones and the seed."""
    other = tiny_vision_model()
    with torch.no_grad():
        for weight in [*other.blocks[1].parameters(), *other.head.parameters()]:  # type: ignore[index, union-attr]
            weight.mul_(-3)
    assert model_hash(EUk(**SETTINGS).unlearn(other, VIEW, seed=0)) == model_hash(unlearned(EUk(**SETTINGS)))
    assert model_hash(unlearned(EUk(**SETTINGS), seed=1)) != model_hash(unlearned(EUk(**SETTINGS)))
    assert model_hash(unlearned(CFk(**SETTINGS))) != model_hash(unlearned(EUk(**SETTINGS)))
    statistics = EUk(k=1, batch_norm="frozen", **SETTINGS).unlearn(conv_net(), VIEW, seed=0).get_buffer("0.4.running_var")
    assert (statistics == 1).all()


def test_drawing_anew_leaves_the_global_random_state() -> None:
    before = torch.random.get_rng_state()
    unlearned(EUk(**SETTINGS))
    assert torch.equal(before, torch.random.get_rng_state())


class Blocks(nn.Module):
    """A stem, three blocks (the second of two layers, with a list of its own), a norm and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(2, 2)
        self.blocks = nn.ModuleList(
            [nn.Linear(2, 2), nn.ModuleDict({"inner": nn.ModuleList([nn.Linear(2, 2), nn.ReLU()])}), nn.Linear(2, 2)]
        )
        self.norm = nn.BatchNorm1d(2)
        self.head = nn.Linear(2, 2)


def test_the_last_part_by_name() -> None:
    def names(model: nn.Module, k: int) -> list[str]:
        found = {id(module): name for name, module in model.named_modules()}
        return [found[id(module)] for module in last_part(model, k)]

    assert [names(Blocks(), k) for k in range(4)] == [
        ["norm", "head"],
        ["blocks.2", "norm", "head"],
        ["blocks.1.inner.0", "blocks.2", "norm", "head"],
        ["blocks.0", "blocks.1.inner.0", "blocks.2", "norm", "head"],
    ]
    plain = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
    assert [names(plain, k) for k in range(2)] == [["2.0"], ["1.0", "1.1", "2.0"]]


@pytest.mark.parametrize(("build", "most"), [(tiny_vision_model, 1), (conv_net, 1), (Blocks, 3)])
def test_something_must_stay_frozen(build: Any, most: int) -> None:
    assert last_part(build(), most)
    with pytest.raises(UserError, match=rf"k is {most + 1}, .* allowed: 0 to {most}"):
        last_part(build(), most + 1)


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1, dtype=torch.float64))

    def forward(self, images: Tensor) -> Tensor:
        return images * self.scale


def test_a_layer_that_cannot_be_drawn_anew_is_refused() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.Linear(4, 3), Scaled()).double()
    with pytest.raises(UserError, match="Scaled has weights of its own"):
        EUk(k=0).unlearn(net, VIEW, seed=0)


# ------------------------------------------------------------------------------------------------------------------------ all


@pytest.mark.parametrize("cls", [L1Sparse, CFk, EUk])
def test_forget_rows_are_never_read(cls: Any) -> None:
    unlearned(cls(**SETTINGS), replace(VIEW, forget=None))  # type: ignore[arg-type]
    images = {float(image.sum()) for image in VIEW.retain.train.batch(range(20))["images"]}
    assert {float(image.sum()) for batch in counted(cls(**SETTINGS)) for image in batch["images"]} == images


@FIVE
def test_the_seed_decides_and_the_result_is_in_eval_mode_and_trainable(cls: Any) -> None:
    one, again, other = (unlearned(cls(**SETTINGS), seed=seed) for seed in (0, 0, 1))
    assert model_hash(one) == model_hash(again) != model_hash(other)
    assert not any(module.training for module in one.modules())
    assert all(weight.requires_grad and weight.grad is None for weight in one.parameters())


@pytest.mark.parametrize("cls", [NegGradPlus, L1Sparse, PseudoLabel])
def test_batch_norm_moves_only_when_asked(cls: Any) -> None:
    before = tiny_vision_model().get_buffer("blocks.0.2.running_mean")
    assert torch.equal(unlearned(cls(**SETTINGS)).get_buffer("blocks.0.2.running_mean"), before)
    assert not torch.equal(unlearned(cls(batch_norm="train", **SETTINGS)).get_buffer("blocks.0.2.running_mean"), before)


@pytest.mark.parametrize(
    ("cls", "wrong"),
    [
        (NegGradPlus, {"alpha": 1.1}),
        (NegGradPlus, {"forget_batch_size": 0}),
        (L1Sparse, {"gamma": -1}),
        (CFk, {"k": -1}),
        (EUk, {"lora_rank": 2}),
    ],
)
def test_settings_out_of_range_are_refused(cls: Any, wrong: dict[str, Any]) -> None:
    with pytest.raises(FieldError):
        construct(cls, "method", wrong)


@pytest.mark.parametrize(
    ("cls", "chosen"),
    [
        (NegGradPlus, {"alpha": 0.95, "lr": 0.01}),
        (L1Sparse, {"gamma": 1e-4, "plain_epochs": 0, "lr": 0.01, "batch_size": 256}),
        (PseudoLabel, {"lr": 0.01}),
        (CFk, {"k": 1, "lr": 0.01, "batch_norm": "frozen"}),
        (EUk, {"k": 1, "lr": 0.01, "batch_norm": "train"}),
    ],
)
def test_the_defaults_are_the_published_ones(cls: Any, chosen: dict[str, Any]) -> None:
    assert construct(cls, "method", {}) == cls(epochs=10, **chosen)
