"""IdkDPO and AltPO: the loss's path by hand, refusals that become likely, alternates that are the model's own and never the truth."""

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unlearnbench.api import MethodView, UserError
from unlearnbench.fields import FieldError, construct
from unlearnbench.finetuning import paired
from unlearnbench.layers import model_hash
from unlearnbench.mechanisms.questions import changed
from unlearnbench.methods.dpo import REFUSALS, AltPO, IdkDPO
from unlearnbench.testing import in_training, tiny_language_model, tiny_language_view
from unlearnbench.training import fit, step_count

VIEW = tiny_language_view()
FORGET = VIEW.forget.train


def logprob(model: nn.Module, view: MethodView, batch: dict[str, Any]) -> Tensor:
    return -view.loss(model, batch) * (batch["labels"] != -100).sum(1)


def trained() -> nn.Module:
    """A model that knows the forget answers by heart."""
    model = tiny_language_model()
    batch = FORGET.batch(range(len(FORGET)))
    recipe = in_training(VIEW, epochs=60, lr=0.02).recipe
    steps = step_count(4, recipe)
    fit(model, lambda net, rows: VIEW.loss(net, rows).mean(), lambda epoch: [batch], recipe, seed=0, total_steps=steps)
    return model


def answers(rows: Any) -> list[str]:
    return [example.answer for example in rows.examples]


def test_the_path_equals_a_plain_loop_with_a_frozen_copy() -> None:
    view = in_training(VIEW, optimizer="sgd", momentum=0.0)
    method = IdkDPO(lr=0.02, epochs=2, batch_size=3, beta=0.4, forget_weight=0.7, retain_weight=1.5)
    lose, win = method.preferences(tiny_language_model(), view, seed=0)
    model = tiny_language_model()
    frozen = copy.deepcopy(model)
    for epoch in range(2):
        for pair in paired(lose, view.retain.train, 3, seed=0)(epoch):
            gained, lost = (
                logprob(model, view, rows.batch(pair.rows)) - logprob(frozen, view, rows.batch(pair.rows)).detach() for rows in (win, lose)
            )
            forget = 2 / 0.4 * torch.log1p(torch.exp(-0.4 * (gained - lost)))
            loss = 0.7 * forget.mean() + 1.5 * view.loss(model, pair.retain).mean()
            gradients = torch.autograd.grad(loss, list(model.parameters()))
            with torch.no_grad():
                for weight, gradient in zip(model.parameters(), gradients, strict=True):
                    weight -= 0.02 * gradient
    found = method.unlearn(tiny_language_model(), view, seed=0)
    for a, b in zip(found.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)  # transformers takes the norms in float32


def test_preferring_the_other_way_round_turns_the_first_step_round() -> None:
    view = in_training(VIEW, optimizer="sgd", momentum=0.0)

    class Swapped(IdkDPO):
        def preferences(self, model: nn.Module, view: MethodView, *, seed: int) -> Any:
            return tuple(reversed(super().preferences(model, view, seed=seed)))

    before = list(tiny_language_model().parameters())
    steps = []
    for cls in (IdkDPO, Swapped):
        model = cls(lr=0.01, epochs=1, batch_size=99, retain_weight=0.0).unlearn(tiny_language_model(), view, seed=0)
        steps.append([(new - old).detach() for new, old in zip(model.parameters(), before, strict=True)])
    for one, other in zip(*steps, strict=True):
        torch.testing.assert_close(one, -other, rtol=1e-4, atol=1e-7)
    assert max(float(step.abs().max()) for step in steps[0]) > 1e-3


def test_refusals_become_likely_and_answers_less_so() -> None:
    method = IdkDPO(lr=3e-3, epochs=10, batch_size=4)
    original = trained()
    lose, win = method.preferences(original, VIEW, seed=0)
    assert set(answers(win)) <= set(REFUSALS)
    model = method.unlearn(copy.deepcopy(original), VIEW, seed=0)
    with torch.no_grad():
        for rows, up in ((win, True), (lose, False)):
            batch = rows.batch(range(len(rows)))
            change = logprob(model, VIEW, batch) - logprob(original, VIEW, batch)
            assert ((change > 10) if up else (change < 0)).all()


def test_refusals_are_many_different_and_drawn_with_the_seed() -> None:
    assert len(REFUSALS) == len(set(REFUSALS)) == 60
    drawn = [answers(IdkDPO().preferences(tiny_language_model(), VIEW, seed=seed)[1]) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize("instruction", ["", AltPO().instruction])
def test_alternates_are_the_models_own_never_empty_and_never_the_truth(instruction: str) -> None:
    original = trained()
    method = AltPO(n_alternates=4, batch_size=5, instruction=instruction)
    before = model_hash(original)
    lose, win = method.preferences(original, VIEW, seed=0)
    assert model_hash(original) == before
    assert answers(lose) == [answer for answer in answers(FORGET) for _ in range(4)]
    assert all(text.strip() == text != "" for text in answers(win))
    assert all(a.casefold() != b.casefold() for a, b in zip(answers(win), answers(lose), strict=True))
    again, other = (answers(method.preferences(original, VIEW, seed=seed)[1]) for seed in (0, 1))
    assert again == answers(win) != other
    # Trained on the questions themselves, however they were asked for.
    assert win.batch(range(len(win)))["prompts"] == [FORGET.batch([i])["prompts"][0] for i in range(4) for _ in range(4)]


def test_what_the_model_would_say_is_what_is_drawn() -> None:
    """A model that says one thing only has that as its alternate."""
    model = tiny_language_model()
    rows = changed(FORGET, answers=["the saga Winter"] * 4, user="test")
    other = changed(FORGET, answers=["Tarn"] * 4, user="test")
    batch = rows.batch(range(4))
    recipe = in_training(VIEW, epochs=80, lr=0.02).recipe
    fit(model, lambda net, b: VIEW.loss(net, b).mean(), lambda epoch: [batch], recipe, seed=0, total_steps=80)
    view = VIEW.__class__(**{**vars(VIEW), "forget": SimpleNamespace(train=other, eval=other)})
    _, win = AltPO(n_alternates=6, temperature=0.3, instruction="").preferences(model, view, seed=0)
    # No longer than the longest answer to forget: one token and the end.
    assert set(answers(win)) == {"the saga"}


def test_epochs_count_alternates() -> None:
    seen = []
    view = VIEW.__class__(**{**vars(VIEW), "loss": lambda model, batch: seen.append(len(batch["labels"])) or VIEW.loss(model, batch)})
    AltPO(lr=1e-4, epochs=2, n_alternates=3, batch_size=5, instruction="").unlearn(tiny_language_model(), view, seed=0)
    assert seen[:6] == [5, 5, 2] * 2  # the reference's, of alternates and answers
    assert seen[6::3] == seen[7::3] == [5, 5, 2] * 2
    assert len(seen) == 6 + 3 * 6


def test_documents_and_vision_are_not_applicable_and_say_why() -> None:
    for method in (IdkDPO(), AltPO()):
        asked = {
            kind: SimpleNamespace(modality="language", task="generate", asked=lambda kind=kind: SimpleNamespace(kind=kind))
            for kind in ("instances", "documents")
        }
        assert method.supports(asked["instances"]) is None  # type: ignore[arg-type]
        assert "rows are documents" in str(method.supports(asked["documents"]))  # type: ignore[arg-type]
        assert method.supports(SimpleNamespace(modality="vision", task="classify")) == "works on language, not on vision"  # type: ignore[arg-type]


def test_a_model_that_says_nothing_is_an_error_and_an_instruction_has_its_places() -> None:
    model: Any = tiny_language_model()
    model.generate = lambda input_ids, **settings: torch.cat([input_ids, torch.full((len(input_ids), 1), VIEW.tokenizer.eos_token_id)], 1)
    with pytest.raises(UserError, match="8 answers to 'Where was Ada Quill born\\?' were empty or the true one"):
        AltPO().unlearn(model, VIEW, seed=0)
    with pytest.raises(FieldError, match="must hold"):
        construct(AltPO, "method", {"instruction": "Say {question}"})
