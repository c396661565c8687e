"""Robust LLM unlearning against relearning attacks: the minor components in representations matter (MCU), alone and on top of CIR.

Zeguan Xiao, Xuanzhe Xu, Yun Chen, Yong Wang, Jian Yang, Yanqing Hu, Guanhua Chen. 2026, arXiv:2605.11685. As released it stands on the
gradient surgery of "Collapse of irrelevant representations (CIR) ensures robust and non-disruptive LLM unlearning", Filip Sondej, Yushi
Yang, 2025, arXiv:2509.11816. Here `mcu` is the projection alone and `mcu_cir` both, so that the two effects can be told apart;
`components: 0` takes the projection away. Read were the abstracts and the released code; the defaults are the code's for WMDP-Bio.

The MLPs of early blocks are broken (or a residual stream is driven to a random vector) on the forget rows, as far as their dominant
components do not tell; every update has the same length, and after each one a small step keeps the retain rows where they were.

Deviations:
- The components are removed by an exact orthogonal projection. The code removes them one after the other, which leaves a rest on the mean
  direction; its randomised decomposition is an exact one here.
- At most a quarter of the components that the vectors could have are removed, so that narrow models and short requests are served.
- Blocks are chosen by depth, so that models of any depth are served; 32 blocks give the code's 6 to 11. `rmu` reads the block before the
  last of them (the code: block 10 of 32), or the only one.
- Forget texts are prompt and answer. CIR leaves out the last token of each row, where the code leaves out the last column of a batch.
- Retain rows are the retain set, all in turn; the code takes as many batches of a web corpus as there are forget batches.
- Training stops by the loss of retain rows, where the code reads WikiText's. Rows that were learnt by heart have a loss near 0, of which
  the code's share of 1.001 is spent by any step: the default is 2.
- Where the projected loss is 0, no update is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, NamedTuple

import torch
from accelerate.utils import send_to_device
from pydantic import Field
from torch import Tensor, nn

from unlearnbench.api import Batch, Data, Method, MethodView, UserError
from unlearnbench.layers import blocks
from unlearnbench.mechanisms.activations import Reading, depth_range, mlps, projections, run_through, token_mask, trainable_alone
from unlearnbench.mechanisms.components import cb_retain, collapsed_gradient, components, mlp_breaking, rmu, scaled
from unlearnbench.mechanisms.representation import control_vector
from unlearnbench.mechanisms.subspace import orthonormal, project_off
from unlearnbench.progress import Meter, count_passes
from unlearnbench.training import DivergedError, batches, in_bf16

Count = Annotated[int, Field(ge=0)]
Depth = Annotated[float, Field(ge=0, le=1)]
SKIPPED = 1
"""Tokens at the start of a row whose representations are no row's own."""
JUDGED = 16
"""Batches of retain rows by which training stops."""
SHARE = 0.25
"""Most components that are removed, as a share of the number and of the width of the vectors that they are found in."""
REST = 1e-4
"""Share of the vectors' length that must be left when components are removed; less is rounding."""


class MCU(Method):
    """Break early MLPs on the forget rows outside of their dominant components, in steps of fixed length."""

    paper = "arXiv:2605.11685"
    modality = ("language",)

    loss: Literal["mlp_breaking", "rmu"] = "mlp_breaking"
    """mlp_breaking: outputs of MLPs are turned away from what they were; rmu: the residual stream is driven to a random vector."""
    components: Count = 8
    """Dominant components that are removed, the mean among them; 0 is the plain loss."""
    first_depth: Depth = 0.1875
    """Share of the depth where the blocks begin that are acted on."""
    last_depth: Depth = 0.375
    """Share of the depth where they end; the MLPs of all blocks up to there are trained."""
    tokens: Literal["all", "answer"] = "all"
    """all: the loss is over all tokens of a row but the first; answer: over those of the answer."""
    steering: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """Length of the random vector of rmu."""
    update_norm: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.2
    """Length of each forget step, over all trained weights together."""
    retain_rate: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 3e-4
    """Learning rate of the retain steps."""
    epochs: Annotated[int, Field(ge=1)] = 50
    """Most passes over the forget rows."""
    batch_size: Annotated[int, Field(ge=1)] = 32
    """Forget rows of a step."""
    retain_batch_size: Annotated[int, Field(ge=1)] = 12
    """Retain rows of a step."""
    loss_budget: Annotated[float, Field(gt=1, allow_inf_nan=False)] = 2.0
    """Training stops after the epoch in which the retain rows' loss exceeds this many times its value at the start."""

    def unlearn(self, model: nn.Module, view: MethodView, *, seed: int) -> nn.Module:
        """See `Method.unlearn`.

        Raises:
            UserError: the model has no gated MLPs, or more components are asked than its representations have.
            DivergedError: a loss or a weight is not finite.
        """
        run = self._run(model.eval(), view, seed)
        with trainable_alone(model, run.weights):
            run.train()
        return model

    def _run(self, model: nn.Module, view: MethodView, seed: int) -> Run:
        return Run(self, model, view, seed)


class MCUWithCIR(MCU):
    """MCU as released: the weights' gradients too are cleaned of components. The first epoch only collects what they are."""

    input_components: Count = 24
    """Dominant components removed from a layer's inputs, the mean among them."""
    gradient_components: Count = 36
    """Dominant components removed from the gradients at its outputs."""

    def _run(self, model: nn.Module, view: MethodView, seed: int) -> Run:
        return CollapsingRun(self, model, view, seed)


class Forgotten(NamedTuple):
    """One batch of forget rows: the tokens the loss is over, and for each site the target of their representations [N, width]."""

    batch: Batch
    mask: Tensor
    targets: list[Tensor]


class Run:
    """One training: what it acts on, and what that was like before."""

    @torch.no_grad()
    def __init__(self, method: MCU, model: nn.Module, view: MethodView, seed: int) -> None:
        self.method, self.model, self.view = method, model, view
        self.device = next(model.parameters()).device
        found = [block for _, block in blocks(model)]
        where = depth_range(len(found), method.first_depth, method.last_depth)
        used = found[: where.stop]
        self.last = used[-1]
        self.linears = projections(used)
        self.weights = [linear.weight for linear in self.linears]
        self.sites = mlps(used[where.start :]) if method.loss == "mlp_breaking" else [used[max(where.stop - 2, where.start)]]
        self.rows = 0
        self.removed, self.forget = self._before(seed)
        # Kept off the device: as many as there are retain rows.
        self.retain = [(batch, self._kept(batch).cpu()) for batch in self._batches(view.retain.train, method.retain_batch_size, seed)]
        self.judged = self._batches(view.retain.eval, method.retain_batch_size, seed)[:JUDGED]

    def _batches(self, data: Data, size: int, seed: int) -> list[Batch]:
        return [send_to_device(data.batch(index), self.device) for index in batches(len(data), size, seed=seed, epoch=0)]

    def _before(self, seed: int) -> tuple[list[Tensor], list[Forgotten]]:
        """What is removed at each site (a basis), and the forget rows with their targets."""
        method = self.method
        given = self._batches(self.view.forget.train, method.batch_size, seed)
        masks = [token_mask(batch, first=SKIPPED, answers=method.tokens == "answer") for batch in given]
        before = [self._at_sites(self._forward(batch, self.sites), mask) for batch, mask in zip(given, masks, strict=True)]
        removed = [self._basis(vectors, method.components) for vectors in zip(*before, strict=True)]
        if method.loss == "mlp_breaking":
            targets = [[project_off(*pair) for pair in zip(sites, removed, strict=True)] for sites in before]
        else:
            control = control_vector(before[0][0].shape[1], method.steering, seed=seed)
            targets = [[control.to(before[0][0])]] * len(given)
        return removed, [Forgotten(*parts) for parts in zip(given, masks, targets, strict=True)]

    def _basis(self, vectors: Sequence[Tensor], n: int) -> Tensor:
        """An orthonormal basis of the first n components of some batches of vectors, on the model's device; n is capped at `SHARE`.

        Raises:
            UserError: the vectors lie within so many components.
        """
        every = torch.cat([part.to(self.device) for part in vectors])
        n = min(n, int(SHARE * min(every.shape)))
        basis = orthonormal(components(every, n))
        if every.any() and project_off(every, basis).norm() <= REST * every.norm():
            name, (count, width) = type(self.method).__name__, every.shape
            raise UserError(f"{name}: {n} components leave nothing of {count} vectors of width {width}; allowed: fewer, or 0 for none")
        return basis

    # ------------------------------------------------------------------------------------------------------------------- losses

    def _forward(self, batch: Batch, modules: Sequence[nn.Module]) -> list[Reading]:
        self.rows += len(batch["input_ids"])
        with torch.autocast(self.device.type, torch.bfloat16, enabled=in_bf16(self.view.recipe)):
            return run_through(self.model, batch, modules, until=self.last)

    def _at_sites(self, found: Sequence[Reading], mask: Tensor) -> list[Tensor]:
        """The outputs of the sites at the masked tokens [N, width]."""
        return [upcast(reading.output[mask]) for reading in found]

    def _kept(self, batch: Batch) -> Tensor:
        """What comes out of the last trained block at all tokens [N, width]."""
        (found,) = self._forward(batch, [self.last])
        return upcast(found.output[token_mask(batch)])

    def forget_loss(self, found: Sequence[Reading], rows: Forgotten) -> Tensor:
        """The loss of a forget batch, mean over sites, of what the sites gave out."""
        compare = mlp_breaking if self.method.loss == "mlp_breaking" else rmu
        sites = zip(self._at_sites(found, rows.mask), self.removed, rows.targets, strict=True)
        return self._finite(torch.stack([compare(project_off(now, basis), target) for now, basis, target in sites]).mean(), "forget")

    @torch.no_grad()
    def retain_loss(self) -> float:
        """Mean loss of the retain rows that the budget is judged by, in nats."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=in_bf16(self.view.recipe)):
            return float(self._finite(torch.cat([self.view.loss(self.model, batch) for batch in self.judged]).mean(), "judged retain"))

    def _finite(self, loss: Tensor, which: str) -> Tensor:
        if not bool(loss.isfinite()):
            raise DivergedError(f"{type(self.method).__name__}: the {which} loss is {loss.item()} after {self.rows} rows")
        return loss

    # -------------------------------------------------------------------------------------------------------------------- steps

    def train(self) -> None:
        """All epochs, or those until the budget is spent."""
        method, steps = self.method, 0
        meter = Meter(type(method).__name__, method.epochs * len(self.forget))
        allowed = method.loss_budget * self.retain_loss()
        for epoch in range(method.epochs):
            for number, rows in enumerate(self.forget):
                if self.forget_step(rows):
                    self.retain_step(*self.retain[steps % len(self.retain)])
                    steps += 1
                meter.update(epoch * len(self.forget) + number + 1)
            self.end_epoch()
            if steps and self.retain_loss() > allowed:
                meter.update(meter.total)
                break
        if not all(bool(weight.isfinite().all()) for weight in self.weights):
            raise DivergedError(f"{type(method).__name__}: weights are NaN or infinite after {steps} steps")
        count_passes(self.rows)

    def forget_step(self, rows: Forgotten) -> bool:
        """One step of fixed length down the loss of a forget batch; False if there was nothing to step along."""
        gradients = scaled(self.gradients(rows), self.method.update_norm)
        self._descend(gradients, 1.0)
        return any(bool(gradient.any()) for gradient in gradients)

    def gradients(self, rows: Forgotten) -> list[Tensor]:
        """The forget loss's gradient by each trained weight, zeros where it does not depend on it."""
        loss = self.forget_loss(self._forward(rows.batch, self.sites), rows)
        return list(torch.autograd.grad(loss, self.weights, materialize_grads=True))

    def end_epoch(self) -> None:
        """Called when all forget batches had their turn."""

    def retain_step(self, batch: Batch, before: Tensor) -> None:
        """One plain step that pulls the residual stream of a retain batch back to what it was."""
        compare = cb_retain if self.method.loss == "mlp_breaking" else rmu
        loss = self._finite(compare(self._kept(batch), before.to(self.device)), "retain")
        self._descend(torch.autograd.grad(loss, self.weights), self.method.retain_rate)

    @torch.no_grad()
    def _descend(self, gradients: Sequence[Tensor], rate: float) -> None:
        for weight, gradient in zip(self.weights, gradients, strict=True):
            weight -= rate * gradient


class CollapsingRun(Run):
    """A training whose weight gradients are cleaned of what the tokens of the epoch before had in common."""

    method: MCUWithCIR

    def __init__(self, method: MCUWithCIR, model: nn.Module, view: MethodView, seed: int) -> None:
        super().__init__(method, model, view, seed)
        self.bases: list[tuple[Tensor, Tensor]] | None = None
        self.seen: list[list[tuple[Tensor, Tensor]]] = [[] for _ in self.linears]

    def gradients(self, rows: Forgotten) -> list[Tensor]:
        """See `Run.gradients`; in the first epoch zeros, since nothing is known yet of what is common."""
        found = self._forward(rows.batch, [*self.sites, *self.linears])
        loss, readings = self.forget_loss(found[: len(self.sites)], rows), found[len(self.sites) :]
        outputs = torch.autograd.grad(loss, [reading.output for reading in readings], materialize_grads=True)
        mask = token_mask(rows.batch, first=SKIPPED, last=1)
        tokens = [(upcast(reading.input[mask]), upcast(given[mask])) for reading, given in zip(readings, outputs, strict=True)]
        for seen, (inputs, given) in zip(self.seen, tokens, strict=True):
            seen.append((inputs.cpu(), given.cpu()))
        if self.bases is None:
            return [torch.zeros_like(weight) for weight in self.weights]
        return [collapsed_gradient(*pair, *basis) for pair, basis in zip(tokens, self.bases, strict=True)]

    def end_epoch(self) -> None:
        """Find what the epoch's tokens have in common, and forget them."""
        self.bases = [self._common(seen) for seen in self.seen]
        self.seen = [[] for _ in self.linears]

    def _common(self, seen: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        inputs, given = zip(*seen, strict=True)
        return (
            self._basis(inputs, self.method.input_components),
            self._basis(given, self.method.gradient_components),
        )


def upcast(vectors: Tensor) -> Tensor:
    """In float32, or float64 where they are that."""
    return vectors if vectors.dtype == torch.float64 else vectors.float()
