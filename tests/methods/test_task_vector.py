"""Task vector: negation by hand, its two identities, and that a copy was tuned on the forget rows alone."""

from dataclasses import replace

import torch

from unlearnbench.layers import model_hash
from unlearnbench.methods.gradient_ascent import GradientAscent
from unlearnbench.methods.task_vector import TaskVector, negated
from unlearnbench.testing import in_training, tiny_language_model, tiny_language_view, tiny_vision_model, tiny_vision_view

VIEW = tiny_language_view()


def test_scale_0_is_the_identity_to_the_bit() -> None:
    assert model_hash(TaskVector(lr=0.01, scale=0.0).unlearn(tiny_language_model(), VIEW, seed=0)) == model_hash(tiny_language_model())


def test_negating_twice_restores() -> None:
    weight, tuned = torch.randn(2, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(negated(weight, negated(weight, tuned, 1.0), 1.0), tuned, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(negated(weight, negated(weight, tuned, 0.25), 4.0), tuned, rtol=1e-12, atol=1e-14)


def test_one_step_of_descent_negated_is_one_step_of_ascent() -> None:
    view = in_training(VIEW, optimizer="sgd", momentum=0.0)
    settings = {"epochs": 1, "batch_size": 99}
    ascended = GradientAscent(lr=0.06, **settings).unlearn(tiny_language_model(), view, seed=0)  # type: ignore[arg-type]
    negative = TaskVector(lr=0.02, scale=3.0, **settings).unlearn(tiny_language_model(), view, seed=0)  # type: ignore[arg-type]
    for a, b in zip(ascended.parameters(), negative.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_the_forget_loss_rises_and_retain_rows_are_not_read() -> None:
    blind = replace(VIEW, retain=None)  # type: ignore[arg-type]
    batch = VIEW.forget.train.batch(range(4))
    model = TaskVector(lr=1e-3, epochs=3).unlearn(tiny_language_model(), blind, seed=0)
    with torch.no_grad():
        assert VIEW.loss(model, batch).mean() > VIEW.loss(tiny_language_model(), batch).mean() + 0.1


def test_statistics_of_batch_norm_stay_the_originals() -> None:
    view = tiny_vision_view()
    model = TaskVector(lr=0.1, epochs=1, batch_norm="train").unlearn(tiny_vision_model(), view, seed=0)
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), tiny_vision_model().buffers(), strict=True))
    assert model_hash(model) != model_hash(tiny_vision_model())
