"""KL minimisation, SimNPO, UNDIAL, CE-U, WGA, SatImp, PDU: their paths against a plain loop over single rows, and their limits."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unlearnbench.api import Batch, Method, MethodView, Split, UserError
from unlearnbench.fields import FieldError, construct
from unlearnbench.finetuning import TrainedMethod, paired, shuffled
from unlearnbench.layers import model_hash
from unlearnbench.losses import answer_lengths
from unlearnbench.methods import pdu
from unlearnbench.methods.ceu import CEU
from unlearnbench.methods.grad_diff import GradDiff
from unlearnbench.methods.gradient_ascent import GradientAscent
from unlearnbench.methods.kl import KLMinimization
from unlearnbench.methods.pdu import PDU
from unlearnbench.methods.simnpo import SimNPO
from unlearnbench.methods.undial import UNDIAL
from unlearnbench.methods.weighted_ascent import WGA, SatImp
from unlearnbench.scenarios.language import TextData
from unlearnbench.testing import in_training, tiny_language_model, tiny_language_view
from unlearnbench.unlearning_losses import skip_first

VIEW = in_training(tiny_language_view(), optimizer="sgd", momentum=0.0)
EVERY = [KLMinimization, SimNPO, UNDIAL, CEU, WGA, SatImp, PDU]
every = pytest.mark.parametrize("cls", EVERY)
LR = 0.02
SHORT: dict[str, Any] = {"lr": LR, "epochs": 3, "batch_size": 3}


def answers(model: nn.Module, batch: Batch) -> list[tuple[Tensor, Tensor]]:
    """Of each row the logits [n, V] that foretell its answer tokens [n]; each row alone, without padding."""
    rows = []
    for ids, mask, labels in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True):
        length = int(mask.sum())
        logits = model(input_ids=ids[None, :length]).logits[0].double()
        places = [t for t in range(1, length) if labels[t] != -100]
        rows.append((logits[[t - 1 for t in places]], labels[places]))
    return rows


def picked(z: Tensor, y: Tensor) -> Tensor:
    """Log-probabilities of answer tokens [n]."""
    return torch.stack([z[i, y[i]] - z[i].logsumexp(0) for i in range(len(y))])


def mean_nll(model: nn.Module, batch: Batch) -> Tensor:
    return torch.stack([-picked(z, y).mean() for z, y in answers(model, batch)]).mean()


RowLoss = Callable[[Tensor, Tensor, Tensor], Tensor]


def of_rows(formula: RowLoss) -> Callable[[nn.Module, nn.Module, Batch], Tensor]:
    """A loss of (logits, answer tokens, frozen logits) of one row -> its mean over the rows of a batch."""

    def loss(model: nn.Module, frozen: nn.Module, batch: Batch) -> Tensor:
        pairs = zip(answers(model, batch), answers(frozen, batch), strict=True)
        return torch.stack([formula(z, y, known.detach()) for (z, y), (known, _) in pairs]).mean()

    return loss


def divergence(z: Tensor, y: Tensor, known: Tensor) -> Tensor:
    p = known.softmax(-1)
    return (p * (known.log_softmax(-1) - z.log_softmax(-1))).sum(-1).mean()


def distilled(beta: float) -> RowLoss:
    def row(z: Tensor, y: Tensor, known: Tensor) -> Tensor:
        target = known.clone()
        for i, token in enumerate(y):
            target[i, token] -= beta
        return -(target.softmax(-1) * z.log_softmax(-1)).sum(-1).mean()

    return row


def without_answer(skip: int) -> RowLoss:
    def row(z: Tensor, y: Tensor, known: Tensor) -> Tensor:
        values = []
        for i in range(skip, len(y)):
            others = [token for token in range(z.shape[1]) if token != y[i]]
            values.append(-(z[i].detach()[others].softmax(0) * z[i].log_softmax(0)[others]).sum())
        return torch.stack(values).mean()

    return row


def weighted(weight: Callable[[Tensor], Tensor]) -> RowLoss:
    return lambda z, y, known: (weight(picked(z, y).exp().detach()) * picked(z, y)).mean()


ascended = of_rows(lambda z, y, known: picked(z, y).mean())
held = of_rows(divergence)
flat = of_rows(lambda z, y, known: (z.max(-1).values - z.mean(-1)).square().mean())

Step = Callable[[nn.Module, nn.Module, Batch, Batch], Tensor]


def plain(steps: Callable[[int], Any], step: Step, epochs: int) -> list[Tensor]:
    """The weights that bare gradient steps arrive at."""
    model = tiny_language_model()
    frozen = copy.deepcopy(model)
    for epoch in range(epochs):
        for found in steps(epoch):
            forget, retain = (found, {}) if isinstance(found, dict) else (found.forget, found.retain)
            gradients = torch.autograd.grad(step(model, frozen, forget, retain), list(model.parameters()))
            with torch.no_grad():
                for weight, gradient in zip(model.parameters(), gradients, strict=True):
                    weight -= LR * gradient
    return [weight.detach() for weight in model.parameters()]


def unlearned(method: Method, view: MethodView = VIEW) -> list[Tensor]:
    return [weight.detach() for weight in method.unlearn(tiny_language_model(), view, seed=0).parameters()]


def in_pairs(size: int) -> Callable[[int], Any]:
    return paired(VIEW.forget.train, VIEW.retain.train, size, seed=0)


def sum_of(forget: Callable[[nn.Module, nn.Module, Batch], Tensor], weight: float, retain_weight: float) -> Step:
    return lambda model, frozen, rows, others: weight * forget(model, frozen, rows) + retain_weight * mean_nll(model, others)


PATHS: list[tuple[TrainedMethod, Step]] = [
    (
        KLMinimization(**SHORT, forget_weight=0.5, retain_weight=2.0),
        lambda model, frozen, rows, others: 0.5 * ascended(model, frozen, rows) + 2.0 * held(model, frozen, others),
    ),
    (
        SimNPO(**SHORT, beta=3.0, delta=0.5, forget_weight=0.7, retain_weight=1.5),
        sum_of(of_rows(lambda z, y, known: 2 / 3.0 * torch.log1p(torch.exp(-3.0 * (-picked(z, y).mean() - 0.5)))), 0.7, 1.5),
    ),
    (UNDIAL(**SHORT, beta=4.0, forget_weight=0.5, retain_weight=0.3), sum_of(of_rows(distilled(4.0)), 0.5, 0.3)),
    (WGA(**SHORT, beta=1.5, forget_weight=0.4, retain_weight=2.0), sum_of(of_rows(weighted(lambda p: p**1.5)), 0.4, 2.0)),
    (
        SatImp(**SHORT, beta1=0.5, beta2=2.0, forget_weight=3.0, retain_weight=0.5),
        sum_of(of_rows(weighted(lambda p: p**0.5 * (1 - p) ** 2)), 3.0, 0.5),
    ),
]


@pytest.mark.parametrize(("method", "step"), PATHS, ids=lambda value: type(value).__name__)
def test_the_path_equals_a_plain_loop_over_single_rows(method: TrainedMethod, step: Step) -> None:
    torch.testing.assert_close(unlearned(method), plain(in_pairs(3), step, epochs=3), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("skip", [0, 1])
def test_the_path_of_ceu_equals_a_plain_loop_over_single_rows(skip: int) -> None:
    loss = of_rows(without_answer(skip))
    expected = plain(shuffled(VIEW.forget.train, 3, seed=0), lambda model, frozen, rows, others: loss(model, frozen, rows), epochs=3)
    torch.testing.assert_close(unlearned(CEU(**SHORT, skip=skip)), expected, rtol=1e-6, atol=1e-8)


class Shortened(TextData):
    """Rows of which all but the first of a batch have an answer of one token."""

    def batch(self, index: Sequence[int] | Tensor) -> Batch:
        batch = super().batch(index)
        batch["labels"][1:] = torch.where(skip_first(batch["labels"], 1) == -100, batch["labels"], -100)[1:]
        return batch


def test_an_answer_that_ceu_skips_whole_adds_nothing() -> None:
    whole = VIEW.forget.train
    assert isinstance(whole, TextData)
    rows = Shortened(whole.examples, whole.encoder)
    size = len(rows)
    assert answer_lengths(rows.batch(range(size))["labels"])[1:].tolist() == [1] * (size - 1)

    def step(model: nn.Module, frozen: nn.Module, forget: Batch, retain: Batch) -> Tensor:
        z, y = answers(model, forget)[0]
        return without_answer(1)(z, y, z) / size

    method = CEU(lr=LR, epochs=3, batch_size=size)
    view = replace(VIEW, forget=Split(train=rows, eval=rows))
    torch.testing.assert_close(unlearned(method, view), plain(shuffled(rows, size, seed=0), step, epochs=3), rtol=1e-6, atol=1e-8)


def constrained(limit: float, warmup: int, seen: list[float]) -> list[Tensor]:
    """PDU by hand; `seen` takes the multiplier of each step."""
    multiplier, epoch, per_epoch = 2.0, 0, 2

    def step(model: nn.Module, frozen: nn.Module, forget: Batch, retain: Batch) -> Tensor:
        nonlocal multiplier, epoch
        seen.append(multiplier)
        excess = mean_nll(model, retain) - limit
        value = 0.5 * flat(model, frozen, forget) + multiplier * excess
        if (len(seen) - 1) // per_epoch >= warmup:
            multiplier = max(0.0, multiplier + 3.0 * excess.item())
        return value

    return plain(in_pairs(3), step, epochs=3)


@pytest.mark.parametrize(("limit", "warmup"), [(0.5, 0), (0.5, 1), (0.5, 3), (9.0, 0), (9.0, 2)])
def test_the_path_of_pdu_equals_a_plain_loop_with_its_multiplier(monkeypatch: pytest.MonkeyPatch, limit: float, warmup: int) -> None:
    moves: list[tuple[float, float, float]] = []

    def recorded(dual: float, excess: float, rate: float) -> float:
        moves.append((dual, excess, max(0.0, dual + rate * excess)))
        return moves[-1][2]

    monkeypatch.setattr(pdu, "dual_step", recorded)
    method = PDU(**SHORT, forget_weight=0.5, multiplier=2.0, multiplier_rate=3.0, limit=limit, warmup_epochs=warmup)
    seen: list[float] = []
    torch.testing.assert_close(unlearned(method), constrained(limit, warmup, seen), rtol=1e-6, atol=1e-8)
    assert len(seen) == 6
    # Unchanged in the warm-up, then moved by each batch; up if and only if the constraint is broken.
    assert len(moves) == 6 - 2 * warmup
    assert all(after >= 0 for _, _, after in moves)
    assert all((after > before) == (excess > 0) for before, excess, after in moves)
    assert any(after == 0 for *_, after in moves) == (limit == 9.0)


def test_the_multiplier_starts_anew_with_each_call() -> None:
    method = PDU(**SHORT, multiplier=2.0, limit=0.5, warmup_epochs=0)
    assert all(torch.equal(a, b) for a, b in zip(unlearned(method), unlearned(method), strict=True))


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_without_a_forget_term_distillation_and_divergence_hold_the_model(precision: str) -> None:
    view, dtype, rounding = {"no": (VIEW, torch.float64, 1e-12), "bf16": (in_training(VIEW, precision="bf16"), torch.float32, 1e-6)}[
        precision
    ]

    def moved(method: Method) -> float:
        pairs = zip(
            method.unlearn(tiny_language_model().to(dtype), view, seed=0).parameters(), tiny_language_model().parameters(), strict=True
        )
        return max(float((after.detach() - before.detach().to(dtype)).abs().max()) for after, before in pairs)

    for method in (UNDIAL(**SHORT, beta=0.0), KLMinimization(**SHORT, forget_weight=0.0)):
        assert moved(method) < rounding
    assert moved(UNDIAL(**SHORT)) > 1e-4


def test_the_reference_is_the_model_as_it_came_in_under_an_adapter_too() -> None:
    batch = VIEW.retain.train.batch(range(4))
    held_still = UNDIAL(**SHORT, beta=0.0, lora_rank=2).unlearn(tiny_language_model(), VIEW, seed=0)
    with torch.no_grad():
        torch.testing.assert_close(VIEW.loss(held_still, batch), VIEW.loss(tiny_language_model(), batch), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("method", [WGA(**SHORT, beta=0.0), SatImp(**SHORT, beta1=0.0, beta2=0.0, forget_weight=1.0)])
def test_without_weights_on_tokens_it_is_gradient_difference(method: TrainedMethod) -> None:
    torch.testing.assert_close(unlearned(method), unlearned(GradDiff(**SHORT)), rtol=1e-10, atol=1e-12)
    alone = replace(method, retain_weight=0.0)  # type: ignore[call-arg]
    torch.testing.assert_close(unlearned(alone), unlearned(GradientAscent(**SHORT)), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "method",
    [
        KLMinimization(**SHORT),
        SimNPO(**SHORT, forget_weight=1.0, retain_weight=0.0),
        UNDIAL(**SHORT),
        CEU(**SHORT),
        WGA(**SHORT, retain_weight=0.0),
        SatImp(**SHORT, forget_weight=20.0, retain_weight=0.0),
        PDU(**SHORT, multiplier=0.0),
    ],
    ids=lambda method: type(method).__name__,
)
def test_the_forget_loss_rises(method: TrainedMethod) -> None:
    batch = VIEW.forget.train.batch(range(len(VIEW.forget.train)))
    known = GradDiff(lr=0.5, epochs=30, forget_weight=0.0, batch_size=4)
    # The retain rows stand in for the forget rows, so that the model knows what it is to forget.
    model = known.unlearn(tiny_language_model(), replace(VIEW, retain=VIEW.forget), seed=0)
    before = VIEW.loss(model, batch).mean().item()
    after = VIEW.loss(method.unlearn(model, VIEW, seed=0), batch).mean().item()
    assert before < 1
    assert after > before + 1e-3


@every
def test_the_seed_decides(cls: type[Any]) -> None:
    settings: dict[str, Any] = {"lr": 1e-2, "epochs": 1, "batch_size": 3}
    one, again, other = (model_hash(cls(**settings).unlearn(tiny_language_model(), VIEW, seed=seed)) for seed in (0, 0, 1))
    assert one == again != other


@pytest.mark.parametrize("method", [UNDIAL(**SHORT), CEU(**SHORT), GradDiff(**SHORT, retain_weight=0.0)])
def test_without_a_retain_term_retain_rows_are_not_read(method: TrainedMethod) -> None:
    method.unlearn(tiny_language_model(), replace(VIEW, retain=None), seed=0)  # type: ignore[arg-type]


def test_ceu_says_when_it_would_skip_everything() -> None:
    with pytest.raises(UserError, match=r"skip is 99, which leaves no token of any forget answer; allowed: below [2-9]"):
        CEU(**SHORT, skip=99).unlearn(tiny_language_model(), VIEW, seed=0)


@every
def test_vision_is_not_applicable_with_a_reason(cls: type[Any]) -> None:
    assert cls().supports(SimpleNamespace(modality="vision", task="classify")) == "works on language, not on vision"
    assert cls().supports(SimpleNamespace(modality="language", task="generate")) is None


WRONG: list[tuple[type[Any], dict[str, Any]]] = [
    *((cls, {"lr": 0}) for cls in EVERY),
    (SimNPO, {"beta": 0}),
    (UNDIAL, {"beta": -1}),
    (CEU, {"skip": -1}),
    (WGA, {"beta": -0.5}),
    (SatImp, {"beta2": -1}),
    (PDU, {"multiplier": -1}),
    (PDU, {"limit": -0.1}),
    (PDU, {"warmup_epochs": -1}),
]


@pytest.mark.parametrize(("cls", "wrong"), WRONG)
def test_settings_out_of_range_are_refused(cls: type[Any], wrong: dict[str, Any]) -> None:
    with pytest.raises(FieldError):
        construct(cls, "method", wrong)
    assert construct(cls, "method", {}) == cls()
