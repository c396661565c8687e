"""What plugins that fine-tune share: streams of batches, and the bases of methods that unlearn by training.

Knows how forget and retain rows meet in a step and how a method's recipe follows from the original's; knows no loss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import count, islice
from math import ceil
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Optimizer

from unlearnbench.adapters import attach, merged
from unlearnbench.api import Batch, Data, Method, MethodView, View
from unlearnbench.training import Recipe, batches, fit, rows

T = TypeVar("T")


class Pair(NamedTuple):
    """Forget and retain rows of one step.

    rows: positions of the forget rows, int64 [B].
    """

    forget: Batch
    retain: Batch
    rows: Tensor


def endless(n: int, batch_size: int, *, seed: int, skip: int = 0) -> Iterator[Tensor]:
    """Batches of row numbers without end: pass after pass in the orders of `training.batches`.

    Args:
        n: number of rows, at least 1.
        batch_size: rows per batch; the last batch of a pass may be smaller.
        seed: seed of the order.
        skip: batches to leave out at the start.
    """
    first, offset = divmod(skip, ceil(n / batch_size))
    for number in count(first):
        yield from islice(batches(n, batch_size, seed=seed, epoch=number), offset if number == first else 0, None)


def shuffled(data: Data, batch_size: int, *, seed: int) -> Callable[[int], Iterator[Batch]]:
    """Epoch -> its batches: all rows, freshly shuffled."""
    return lambda epoch: (data.batch(index) for index in batches(len(data), batch_size, seed=seed, epoch=epoch))


def paired(forget: Data, retain: Data, batch_size: int, *, seed: int) -> Callable[[int], Iterator[Pair]]:
    """Epoch -> its pairs: one pass over the forget rows, each batch with the next batch of retain rows.

    The retain rows run on over the epochs, so that all of them have their turn; the shorter of the two sets starts again as often as
    needed. Their order is that of `shuffled` with the same seed; the forget rows have a seed of their own, so that sets of equal size
    do not meet in the same pairs in each epoch.
    """
    per_epoch = ceil(len(forget) / batch_size)

    def epoch_pairs(epoch: int) -> Iterator[Pair]:
        others = endless(len(retain), batch_size, seed=seed, skip=epoch * per_epoch)
        for index in batches(len(forget), batch_size, seed=seed + 2**32, epoch=epoch):
            yield Pair(forget.batch(index), retain.batch(next(others)), index)

    return epoch_pairs


class Joined(Data):
    """The rows of two sets of images, one after the other, as one set.

    Args:
        first: its rows are positions 0 to len(first) - 1.
        second: the others; batches of both have tensors of one shape but for the number of rows.
    """

    def __init__(self, first: Data, second: Data) -> None:
        self.parts = (first, second)
        self._chosen(range(len(first) + len(second)))

    def _chosen(self, places: Sequence[int]) -> None:
        """Have the rows at these places of the two sets together."""
        ids, clusters = (sum((getattr(part, name) for part in self.parts), ()) for name in ("ids", "clusters"))
        self.places = torch.tensor(list(places), dtype=torch.int64)
        self.ids, self.clusters = tuple(ids[place] for place in places), tuple(clusters[place] for place in places)

    def take(self, index: Sequence[int]) -> Joined:
        """See `Data.take`."""
        taken = Joined(*self.parts)
        taken._chosen(self.places[list(index)].tolist())
        return taken

    def batch(self, index: Sequence[int] | Tensor) -> Batch:
        """See `Data.batch`."""
        places, split = self.places[torch.as_tensor(index)], len(self.parts[0])
        first = places < split
        asked = (places[first], places[~first] - split)
        found = [part.batch(own) for part, own in zip(self.parts, asked, strict=True) if len(own)]
        back = torch.argsort(torch.cat([first.nonzero()[:, 0], (~first).nonzero()[:, 0]]))
        return {name: torch.cat([batch[name] for batch in found])[back] for name in found[0]}


class PhasedMethod(Method):
    """Base of methods that train all weights in phases of their own, each by `training.fit`, perhaps on one optimizer.

    Optimizer, weight decay, clipping and precision are those of the original's training; the rate is constant within a phase and
    dropout is off.
    """

    batch_size: Annotated[int, Field(ge=1)] = 64
    """Rows of a batch, of each set that a step uses."""
    batch_norm: Literal["frozen", "train"] = "frozen"
    """frozen: batch-norm uses the original's running statistics and keeps them; train: it moves them."""

    def phase(self, view: View, lr: float, *, epochs: int = 1) -> Recipe:
        """The original's recipe with the settings of one phase in place."""
        return replace(
            view.recipe,
            lr=lr,
            epochs=epochs,
            batch_size=self.batch_size,
            accumulate=1,
            batch_norm=self.batch_norm,
            schedule="constant",
            warmup=0.0,
            dropout=False,
        )


class TrainedMethod(Method):
    """Base of methods that unlearn by training all weights, or an adapter that is merged into them in the end.

    Optimizer, weight decay, clipping, precision and checkpointing are those of the original's training; the rate is constant and
    dropout is off.
    """

    lr: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e-5
    """Learning rate, constant."""
    epochs: Annotated[int, Field(ge=1)] = 10
    """Passes over the rows that the method counts by."""
    batch_size: Annotated[int, Field(ge=1)] = 32
    """Rows of a batch, of each set that a step uses."""
    accumulate: Annotated[int, Field(ge=1)] = 1
    """Batches per step of the optimizer."""
    batch_norm: Literal["frozen", "train"] = "frozen"
    """frozen: batch-norm uses the original's running statistics and keeps them; train: it moves them."""
    lora_rank: Annotated[int, Field(ge=1)] | None = None
    """Train low-rank updates of this rank (alpha twice the rank) of all linear layers of the blocks; by default all weights."""

    def recipe(self, view: View) -> Recipe:
        """The original's recipe with this method's settings in place."""
        return replace(
            view.recipe,
            lr=self.lr,
            epochs=self.epochs,
            batch_size=self.batch_size,
            accumulate=self.accumulate,
            batch_norm=self.batch_norm,
            schedule="constant",
            warmup=0.0,
            dropout=False,
        )

    def descend(
        self,
        model: nn.Module,
        view: View,
        loss: Callable[[nn.Module, T], Tensor],
        steps: Callable[[int], Iterable[T]],
        *,
        n: int,
        seed: int,
    ) -> nn.Module:
        """Minimise a loss by `recipe`, over all weights or by LoRA, and give the model back, in eval mode and without an adapter.

        Args:
            model: trained in place.
            view: gives the original's recipe.
            loss: scalar, a mean over the rows of a batch; its model is the one given, or the adapter around it.
            steps: epoch -> batches.
            n: rows that an epoch counts.
            seed: seeds what is random in the forward pass, and the adapter.

        Raises:
            DivergedError: a loss or a weight is not finite.
        """
        if self.lora_rank is None:
            return self.minimise(model, view, loss, steps, n=n, seed=seed)
        adapted = attach(model, rank=self.lora_rank, alpha=2 * self.lora_rank, seed=seed)
        return merged(self.minimise(adapted, view, loss, steps, n=n, seed=seed))

    def minimise(
        self,
        model: nn.Module,
        view: View,
        loss: Callable[[nn.Module, T], Tensor],
        steps: Callable[[int], Iterable[T]],
        *,
        n: int,
        seed: int,
        parameters: Iterable[nn.Parameter] | None = None,
        optimizer: Optimizer | None = None,
        on_step: Callable[[int, nn.Module], None] | None = None,
    ) -> nn.Module:
        """`descend` over some parameters, by default those that have ``requires_grad``: for methods with an adapter of their own.

        `optimizer` and `on_step` are those of `training.fit`.
        """
        per_epoch = ceil(ceil(n / self.batch_size) / self.accumulate)
        total, label = self.epochs * per_epoch, type(self).__name__
        fit(
            model,
            loss,
            steps,
            self.recipe(view),
            seed=seed,
            total_steps=total,
            parameters=parameters,
            weigh=_rows,
            optimizer=optimizer,
            on_step=on_step,
            label=label,
        )
        return model.eval()


class RetainedMethod(TrainedMethod):
    """Base of methods that minimise forget_weight * L_forget + retain_weight * L_retain. Epochs pass over the forget rows."""

    forget_weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """Weight of the forget term."""
    retain_weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """Weight of the retain term; at 0 retain rows are not read."""

    def balance(
        self,
        model: nn.Module,
        view: MethodView,
        forget_loss: Callable[[nn.Module, Batch], Tensor],
        retain_loss: Callable[[nn.Module, Batch], Tensor] | None = None,
        *,
        seed: int,
    ) -> nn.Module:
        """`descend` the weighted sum.

        Args:
            model: trained in place.
            view: gives the rows and the original's recipe.
            forget_loss: of each row of a batch [B].
            retain_loss: the same for retain rows; by default the view's loss.
            seed: seeds the order of the rows and what is random in the forward pass.

        Raises:
            DivergedError: a loss or a weight is not finite.
        """
        forget, size = view.forget.train, self.batch_size
        if self.retain_weight == 0:

            def alone(model: nn.Module, batch: Batch) -> Tensor:
                return self.forget_weight * forget_loss(model, batch).mean()

            return self.descend(model, view, alone, shuffled(forget, size, seed=seed), n=len(forget), seed=seed)
        kept = retain_loss or view.loss

        def both(model: nn.Module, pair: Pair) -> Tensor:
            return self.forget_weight * forget_loss(model, pair.forget).mean() + self.retain_weight * kept(model, pair.retain).mean()

        return self.descend(model, view, both, paired(forget, view.retain.train, size, seed=seed), n=len(forget), seed=seed)


def _rows(batch: Any) -> int:
    """What a batch's loss is a mean over: its rows, of forget and retain together the forget rows, which such a tuple calls `rows`."""
    return rows(getattr(batch, "rows", batch))
