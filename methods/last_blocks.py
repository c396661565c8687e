"""CF-k and EU-k: a model's last k blocks and its head go on learning from the retain set, the layers before them stay as they are.

Shashwat Goel, Ameya Prabhu, Amartya Sanyal, Ser-Nam Lim, Philip Torr, Ponnurangam Kumaraguru. Towards adversarial evaluations for
inexact machine unlearning. arXiv:2201.06640. CF-k (catastrophic forgetting) fine-tunes them, EU-k (exact unlearning) first draws them
anew. Defaults as DeepUnlearn's: k 1, 10 epochs at 0.01. What the frozen layers know of the forget set stays by design.

The layers that are trained are all from the k-th last block on, in order of definition. Blocks are what `layers.blocks` finds; in a net
without such a list each convolution or linear layer but the head is one, with what is defined after it.

Deviations: the rate is constant, where DeepUnlearn's falls at 50, 80 and 90 % of the epochs; new weights are torch's default
initialisation of each layer; optimizer and weight decay are those of the original's training. Batch-norm of the frozen layers never moves;
of the others it is frozen by default with CF-k, and moves with EU-k, whose statistics begin anew.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from unlearnbench.api import Batch, MethodView, UserError
from unlearnbench.finetuning import TrainedMethod, shuffled
from unlearnbench.layers import blocks


def last_part(model: nn.Module, k: int) -> list[nn.Module]:
    """The modules with weights or buffers of their own from the k-th last block on, the head included; in order of definition.

    Raises:
        UserError: the model has not so many blocks, or nothing would be left before them.
    """
    modules = list(model.modules())
    try:
        found = [module for _, module in blocks(model)]
    except ValueError:
        starts = [i for i, module in enumerate(modules) if any(w.dim() > 1 for w in module.parameters(recurse=False))]
    else:
        starts = [modules.index(block) for block in found]
        starts.append(starts[-1] + len(list(found[-1].modules())))
    before = [place for place in starts if any(_owns(module) for module in modules[:place])]
    if k >= len(before):
        raise UserError(f"k is {k}, which leaves no layer of {type(model).__name__} to freeze; allowed: 0 to {len(before) - 1}")
    return [module for module in modules[starts[-1 - k] :] if _owns(module)]


def _owns(module: nn.Module) -> bool:
    return any(True for _ in module.parameters(recurse=False)) or any(True for _ in module.buffers(recurse=False))


class CFk(TrainedMethod):
    """Fine-tune the last k blocks and the head. Never reads forget rows; epochs pass over the retain rows."""

    paper = "arXiv:2201.06640"
    modality = ("vision",)

    k: Annotated[int, Field(ge=0)] = 1
    """Blocks that are trained with the head; 0 is the head alone."""
    lr: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.01
    """Learning rate, constant."""
    lora_rank: None = None
    """Whole layers are trained: no adapter."""

    def unlearn(self, model: nn.Module, view: MethodView, *, seed: int) -> nn.Module:
        """See `Method.unlearn`.

        Raises:
            UserError: the model has not so many blocks.
        """
        part, rows = last_part(model, self.k), view.retain.train
        self._prepare(part, seed)
        frozen = [module for module in model.modules() if isinstance(module, _BatchNorm) and not any(module is other for other in part)]

        def loss(model: nn.Module, batch: Batch) -> Tensor:
            for module in frozen:  # the training loop gives all of them one mode
                module.training = False
            return view.loss(model, batch).mean()

        trained = [weight for module in part for weight in module.parameters(recurse=False) if weight.requires_grad]
        steps = shuffled(rows, self.batch_size, seed=seed)
        return self.minimise(model, view, loss, steps, n=len(rows), seed=seed, parameters=trained)

    def _prepare(self, part: list[nn.Module], seed: int) -> None:
        """Leave the weights that are trained as they are."""


class EUk(CFk):
    """Draw the last k blocks and the head anew and train them. Never reads forget rows; epochs pass over the retain rows."""

    batch_norm: Literal["frozen", "train"] = "train"
    """train: the running statistics of the trained layers begin anew and move; frozen: they stay at mean 0 and variance 1."""

    def _prepare(self, part: list[nn.Module], seed: int) -> None:
        """Draw the weights of each layer anew."""
        device = next(weight.device for module in part for weight in module.parameters(recurse=False))
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            for module in part:
                reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
                if reset is None:
                    raise UserError(f"{type(module).__name__} has weights of its own and no way to draw them anew")
                reset()
