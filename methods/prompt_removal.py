"""Pre-Forgettable Models: a class is learned into a prompt, and forgotten by dropping it.

"Pre-forgettable models: prompt learning as a native mechanism for unlearning", ACM MM 2025, arXiv:2509.15230; facts from the authors'
code (perceivelab/PreForgettableModels). One vector per class goes in front of a vision transformer's tokens. Two losses with equal weights
train vectors, head and LoRA (rank 4, alpha 4, dropout 0.1, on query and value), the backbone being frozen: cross-entropy with the true
class's prompt among some wrong ones, in any order, and KL(uniform || softmax) with wrong ones alone, or none. Forgetting a class takes
its vector out of the bank: constant time, no data, and the vector is nowhere in the result. The head's row and LoRA are left as they
were, so the guarantee is one of behaviour; the attack `prompt_relearning` says what it is worth.

Deviations. The authors' backbone is a ViT-B/16 pretrained on ImageNet, and none of small images is at hand: here the backbone is first
trained by the scenario's recipe on the very rows of the plan, then frozen. So a model that never saw a class has a backbone that
never saw it, and an original a backbone that did; theirs knows the class as far as ImageNet shows it. A class without rows has no
prompt, where theirs has one for every class. The final layer norm, which their forward pass leaves out, is applied (and frozen): the
backbone was trained with it. The head goes on from the one that the backbone was trained with. The paper's rate and epochs are meant
for thousands of steps; a small data set wants more epochs. At test time the whole bank stands in front (their `full_bank`): modes
that choose prompts by the test image's label are no mechanism that could be deployed.

Measured on the handwritten digits (one seed, rate 0.01, batches of 64): after 50 to 80 epochs the answers for the dropped class are within
0.03 to 0.06 nats of uniform, from 4; which class is the largest of so flat an answer goes up and down with the epoch, so that accuracy
lies anywhere from 0.01 to 0.65. Retained classes lose nothing. One image brings the class back.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, log_softmax

from unlearnbench.api import Batch, Data, Method, MethodView, Scenario, TrainView, UserError
from unlearnbench.finetuning import shuffled
from unlearnbench.nets.prompts import ClassPrompts, LowRank, add_low_rank, add_prompts, prompt_bank, prompted_logits, without_prompts
from unlearnbench.nets.vit import VisionTransformer
from unlearnbench.training import Recipe, fit, step_count

Fraction = Annotated[float, Field(ge=0, lt=1)]


class PromptRemoval(Method):
    """Trains a transformer whose classes hang on one vector each, and forgets a class by dropping its vector."""

    paper = "arXiv:2509.15230"
    modality = ("vision",)
    native = True
    edits_weights = False
    inserts = (ClassPrompts, LowRank)

    epochs: Annotated[int, Field(ge=1)] = 10
    """Passes over the rows in which prompts, head and LoRA are trained."""
    lr: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e-3
    """Learning rate of Adam, constant."""
    batch_size: Annotated[int, Field(ge=1)] = 32
    """Rows of a step."""
    rank: Annotated[int, Field(ge=1)] = 4
    """Rank of the updates of query and value."""
    alpha: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 4.0
    """Scale of the updates times the rank."""
    dropout: Fraction = 0.1
    """Share of a layer's input that its update does not see in training."""

    def supports(self, scenario: Scenario) -> str | None:
        """Classes alone, of scenarios whose net is a vision transformer."""
        return super().supports(scenario) or without_prompts(scenario)

    def train(self, view: TrainView, *, seed: int) -> nn.Module:
        """See `Method.train`: the backbone by the scenario's recipe; then prompts, head and LoRA on the frozen backbone.

        Raises:
            UserError: the scenario builds no vision transformer.
            DivergedError: a loss or a weight is not finite.
        """
        model, rows = view.build(seed), view.data.train
        if not isinstance(model, VisionTransformer):
            raise UserError(f"prompt_removal needs a vision transformer; the scenario builds a {type(model).__name__}")

        def plain(net: nn.Module, batch: Batch) -> Tensor:
            return view.loss(net, batch).mean()

        order, steps = shuffled(rows, view.recipe.batch_size, seed=seed), step_count(len(rows), view.recipe)
        fit(model, plain, order, view.recipe, seed=seed, total_steps=steps, label="backbone")

        generator = torch.Generator().manual_seed(seed)
        updates = add_low_rank(model, ("query", "value"), rank=self.rank, alpha=self.alpha, dropout=self.dropout, generator=generator)
        bank = add_prompts(model, _labels(rows), generator=generator)
        trained = [bank.vectors, *model.head.parameters(), *(factor for update in updates for factor in (update.down, update.up))]
        recipe = Recipe(epochs=self.epochs, batch_size=self.batch_size, lr=self.lr, optimizer="adam", batch_norm="frozen")
        order, steps = shuffled(rows, self.batch_size, seed=seed), step_count(len(rows), recipe)
        fit(model, _both_losses, order, recipe, seed=seed, total_steps=steps, parameters=trained, label="prompts")
        return model.eval()

    def unlearn(self, model: nn.Module, view: MethodView, *, seed: int) -> nn.Module:
        """See `Method.unlearn`: drop the prompts of the classes to forget. Neither the seed nor retained rows are read.

        Raises:
            UserError: the model was not trained by this method.
        """
        found = prompt_bank(model)
        if found is None:
            raise UserError("prompt_removal forgets by dropping a prompt, and this model has none; allowed: models of its own training")
        found[1].drop(_labels(view.forget.train))
        return model.eval()


def _labels(rows: Data) -> set[int]:
    return set(rows.batch(range(len(rows)))["labels"].tolist())


def _both_losses(model: nn.Module, batch: Batch) -> Tensor:
    """The two losses of a batch, each with its own number of wrong prompts."""
    assert isinstance(model, VisionTransformer)  # train() has checked it
    found = prompt_bank(model)
    assert found is not None
    labels, images = batch["labels"], batch["images"]
    true = torch.searchsorted(torch.tensor(found[1].labels, device=labels.device), labels)
    count = len(found[1].labels)
    right = prompted_logits(model, images, mixed_subset(true, count, wrong=_number(count)))
    wrong = prompted_logits(model, images, wrong_subset(true, count, wrong=_number(count)))
    return cross_entropy(right, labels) + from_uniform(wrong).mean()


def _number(count: int) -> int:
    """How many wrong prompts the images of a batch get: 0 to count - 1, all alike."""
    return int(torch.randint(count, ()))


def wrong_subset(true: Tensor, count: int, *, wrong: int) -> Tensor:
    """For each row, `wrong` prompts of a bank other than the true one, drawn without replacement and in random order.

    Args:
        true: Each row's own prompt, int64 ``[B]``.
        count: Prompts of the bank.
        wrong: How many to draw, at most ``count - 1``.

    Returns:
        int64 ``[B, wrong]``.
    """
    keys = torch.rand(len(true), count, device=true.device)
    keys.scatter_(1, true[:, None], 2.0)  # last of all
    return keys.argsort(1)[:, :wrong]


def mixed_subset(true: Tensor, count: int, *, wrong: int) -> Tensor:
    """The same with the true prompt among them at a random place: int64 ``[B, wrong + 1]``."""
    chosen = torch.cat([wrong_subset(true, count, wrong=wrong), true[:, None]], 1)
    return chosen.gather(1, torch.rand(chosen.shape, device=true.device).argsort(1))


def from_uniform(logits: Tensor) -> Tensor:
    """KL(uniform || softmax) of each row in nats ``[B]``: how far an answer is from knowing nothing.

    >>> from_uniform(torch.tensor([[3.0, 3.0], [0.0, 0.0]]))
    tensor([0., 0.])
    """
    classes = logits.shape[-1]
    return -log_softmax(logits, -1).mean(-1) - torch.log(torch.tensor(float(classes)))
