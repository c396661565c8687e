"""A causal language model on a batch of prompts and answers: what scenarios and methods forward alike.

Knows a batch's layout (input_ids, labels, prompts; rows padded on the right) and conditions; knows no loss and no data set.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from unlearnbench import layers
from unlearnbench.losses import IGNORE_INDEX
from unlearnbench.views import Batch


def answer_logits(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Logits of a batch, from the position before its first scored token on, the model conditioned on the prompts.

    Returns:
        Logits [B, S, V] in the model's precision, and the labels [B, S] of the same positions (not shifted: the loss shifts).
    """
    labels = batch["labels"]
    # Rows are padded on the right, where a causal model cannot look: the mask would change nothing but the attention kernel, and is
    # left out.
    start = max(int((labels != IGNORE_INDEX).any(0).nonzero()[0]) - 1, 0)
    with layers.conditioned(model, batch["prompts"]):
        logits = model(input_ids=batch["input_ids"], logits_to_keep=labels.shape[1] - start).logits
    return logits, labels[:, start:]


def hidden_states(model: nn.Module, batch: Batch, blocks: Sequence[int]) -> dict[int, Tensor]:
    """The outputs [B, T, width] of some blocks on a batch, gradients attached, the model conditioned on the prompts.

    Block i is the i-th decoder layer, counted as in a list; its output is the residual stream behind it, as deployed.
    """
    with layers.captured(model, blocks) as outputs, layers.conditioned(model, batch["prompts"]):
        model(input_ids=batch["input_ids"], logits_to_keep=1)
    return outputs
