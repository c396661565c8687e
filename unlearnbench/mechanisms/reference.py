"""What the model before unlearning says of some rows: whole-answer log-probabilities, taken once, so that no second copy is held.

Knows views and precision; the losses that compare with it are in `losses` and their like.
"""

from __future__ import annotations

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn

from unlearnbench.api import Batch, Data, View
from unlearnbench.losses import answer_lengths
from unlearnbench.training import in_bf16


def answer_logprob(model: nn.Module, view: View, batch: Batch) -> Tensor:
    """Log-probability of each row's whole answer [B]: the view's loss is the mean over its tokens."""
    return -view.loss(model, batch) * answer_lengths(batch["labels"])


@torch.no_grad()
def reference_logprob(model: nn.Module, view: View, rows: Data, batch_size: int) -> Tensor:
    """`answer_logprob` of each row under the model as it is [n], in eval mode and in the precision of the training.

    The two models agree to the rounding of one precision, so that a ratio to the reference begins at 0.
    """
    device = next(model.parameters()).device
    parts = []
    with torch.autocast(device.type, torch.bfloat16, enabled=in_bf16(view.recipe)):
        for index in torch.split(torch.arange(len(rows)), batch_size):
            parts.append(answer_logprob(model.eval(), view, send_to_device(rows.batch(index), device)))
    return torch.cat(parts)
