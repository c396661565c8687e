"""Log-probabilities of the model before: whole answers, in the precision that the training will have."""

import pytest
import torch

from unlearnbench.losses import sequence_logprob
from unlearnbench.mechanisms.reference import answer_logprob, reference_logprob
from unlearnbench.testing import in_training, tiny_language_model, tiny_language_view
from unlearnbench.training import Hardware, hardware

VIEW = tiny_language_view()
ROWS = VIEW.retain.train


@torch.no_grad()
def expected(*, low: bool) -> torch.Tensor:
    model, batch = tiny_language_model().float(), ROWS.batch(range(len(ROWS)))
    with torch.autocast("cpu", torch.bfloat16, enabled=low):
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return sequence_logprob(logits, batch["labels"])


def test_it_is_the_sum_over_the_answers_tokens_whatever_the_batches() -> None:
    for size in (1, 3, 99):
        found = reference_logprob(tiny_language_model().float(), VIEW, ROWS, size)
        torch.testing.assert_close(found, expected(low=False), rtol=1e-5, atol=1e-5)
    assert answer_logprob(tiny_language_model(), VIEW, ROWS.batch([0])).requires_grad
    assert not found.requires_grad


@pytest.mark.parametrize("by", ["recipe", "hardware"])
def test_it_has_the_precision_of_the_training(by: str) -> None:
    view = in_training(VIEW, precision="bf16") if by == "recipe" else VIEW
    token = hardware.set(Hardware(dtype="bf16" if by == "hardware" else "fp32"))
    try:
        found = reference_logprob(tiny_language_model().float(), view, ROWS, 99)
    finally:
        hardware.reset(token)
    torch.testing.assert_close(found, expected(low=True), rtol=1e-6, atol=1e-5)
    assert float((found - expected(low=False)).abs().max()) > 1e-4
