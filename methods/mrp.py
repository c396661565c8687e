"""Metamorphosis representation projection: directions of the hidden states are learned and taken out, for good.

Chengcan Wu, Zeming Wei, Huanran Chen, Yinpeng Dong, Meng Sun. 2025, arXiv:2508.15449; read as its code (ChengcanWu/MRP, 207b46d), not
as its text. At a few layers the rows W [k, d] of a request are stacked under those of earlier requests, made orthonormal (Q), and every
hidden state h becomes h - (h Q') Q. W alone is trained, through the QR decomposition: forget loss up, retain loss down. Defaults as in
the code: two rows at each of two layers, retain weight 1.2, SGD at 2e-4, 2 epochs, batch 5. Measured on the embedded authors they forget
little; 24 or 32 rows by Adam at 0.03, 20 epochs, NPO and retain weight 5 to 10 forget like the oracle and keep less (0.91 to 0.94 of the
retained answers' probability; the oracle 0.99).

Deviations, most of them repairs of the code as published (it stops at its first call):
- Rows start as the top directions of the forget states off those of the retain states. The code has the roles swapped (`released`), and
  its forget span is everything once there are as many tokens as dimensions; here it is cut at `retain_rank`.
- The stack starts empty, where the code's row of zeros removes coordinate 0 too; rows that depend on earlier ones are dropped, where QR
  would remove arbitrary directions in their place. Earlier rows stay as they are to the bit; a request served before changes nothing.
- Directions are read where the projection acts (the code: one layer before), padding left out, from all training rows of the request.
- Rows are float32 or finer, also around a bf16 model, in which the code's steps round to nothing.
- Ascent ends where an answer is as unlikely as a random one (`ceiling`), row by row; the code's has no end. NPO is an option.
- Layers are fixed: the code draws two of all but the last at random. The middle and three quarters of the depth are those where a model
  has recalled what it knows and not yet turned it into the next token.

`mrp_folded` puts the projection behind the MLP and multiplies it into the MLP's last weight, so that nothing is inserted and nothing can
be stripped; earlier requests are recognised by the directions into which that weight does not write. It keeps no list of requests: one
that comes again removes further directions.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, Literal

import torch
from accelerate.utils import send_to_device
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from unlearnbench.api import Data, Method, MethodView, UserError
from unlearnbench.causal import answer_logits
from unlearnbench.finetuning import Pair, paired
from unlearnbench.layers import Inserted, blocks, insert
from unlearnbench.losses import answer_lengths
from unlearnbench.mechanisms.subspace import Moments, directions_off, orthonormal, principal_directions, project_off
from unlearnbench.progress import count_passes
from unlearnbench.training import Recipe, fit
from unlearnbench.unlearning_losses import npo

Placement = Literal["residual", "mlp_out"]


class Projection(Inserted):
    """Takes the span of its rows out of what `inner` gives, at every position. The rows are a buffer: fine-tuning leaves them alone."""

    rows: Tensor

    def __init__(self, inner: nn.Module, *, width: int, count: int = 0, dtype: str = "float32", requests: Sequence[str] = ()) -> None:
        super().__init__(inner)
        self.width = width
        self.requests = tuple(requests)
        device = next(inner.parameters()).device
        self.register_buffer("rows", torch.zeros(count, width, dtype=getattr(torch, dtype), device=device))

    def config(self) -> dict[str, Any]:
        """See `Inserted.config`."""
        dtype = str(self.rows.dtype).removeprefix("torch.")
        return {"width": self.width, "count": len(self.rows), "dtype": dtype, "requests": list(self.requests)}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Project the hidden states, the first of several outputs."""
        output = self.inner(*args, **kwargs)
        if isinstance(output, tuple):
            return (project_off(output[0], self.rows), *output[1:])
        return project_off(output, self.rows)


class _Projecting(Method):
    """What both rows share: where rows start, and how they are trained."""

    paper = "arXiv:2508.15449"
    modality = ("language",)

    rank: Annotated[int, Field(ge=1)] = 2
    """Directions that a request removes at each layer."""
    depths: Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], Field(min_length=1)] = (0.5, 0.75)
    """Layers by depth; 0.5 is the last one of the lower half, 1.0 the last one."""
    layers: Annotated[tuple[int, ...], Field(min_length=1)] | None = None
    """Layers by number instead, counted as in a list."""
    init: Literal["forget_perp_retain", "released", "pca_forget", "random"] = "forget_perp_retain"
    """Where rows start: forget off retain; retain off forget; the top directions of forget; drawn by the seed."""
    retain_rank: Annotated[int, Field(ge=0)] | None = None
    """Rank of what the rows start off, the top directions of retain (of forget, for released); by default an eighth of the width."""
    forget_loss: Literal["ga", "npo"] = "ga"
    """Gradient ascent or negative preference optimisation on the forget rows."""
    ceiling: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Loss of a forget row (nats per token) beyond which ascent leaves it alone; by default that of a uniform guess."""
    beta: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.1
    """Inverse temperature of NPO, per nat of a whole answer."""
    retain_weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.2
    """Weight of the retain term."""
    optimizer: Literal["sgd", "adam"] = "sgd"
    """Plain SGD, or Adam."""
    lr: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 2e-4
    """Learning rate of the rows, constant; they start with length 1."""
    epochs: Annotated[int, Field(ge=1)] = 2
    """Passes over the forget rows."""
    batch_size: Annotated[int, Field(ge=1)] = 5
    """Forget rows, and retain rows, of a step."""

    def learn(self, model: nn.Module, view: MethodView, paths: Sequence[str], known: Callable[[str], Tensor | None], seed: int) -> None:
        """Insert projections and train their new rows, in place.

        Args:
            model: holds a `Projection` at a path, or is given one.
            view: forget and retain rows.
            paths: modules whose outputs are projected.
            known: path -> orthonormal rows that are removed already, for a projection that is new; or None.
            seed: seeds the order of rows, and the rows that are drawn.
        """
        reference = self._reference(model, view) if self.forget_loss == "npo" else None
        starts = self._starts(model, view, paths, seed)
        projections, old, new = [], [], []
        for path, start in zip(paths, starts, strict=True):
            projection = _projection(model, path, start.shape[1], known(path))
            projections.append(projection)
            old.append(projection.rows)
            new.append(nn.Parameter(orthonormal(start.to(projection.rows), off=projection.rows)))
        ceiling = math.log(len(view.tokenizer)) if self.ceiling is None else self.ceiling

        def stack() -> None:
            # Not under autocast: rows of 8 bits would be neither orthonormal nor off the old ones.
            for projection, before, rows in zip(projections, old, new, strict=True):
                with torch.autocast(rows.device.type, enabled=False):
                    projection.rows = torch.cat([before, orthonormal(rows, off=before)])

        def loss(model: nn.Module, pair: Pair) -> Tensor:
            stack()
            values = view.loss(model, pair.forget)
            if reference is None:
                forget = -values.clamp(max=ceiling)
            else:
                forget = npo(-values * answer_lengths(pair.forget["labels"]), reference[pair.rows.to(reference.device)], self.beta)
            return forget.mean() + self.retain_weight * view.loss(model, pair.retain).mean()

        trained = [rows for rows in new if len(rows)]
        if trained:
            rows = view.forget.train
            steps = paired(rows, view.retain.train, self.batch_size, seed=seed)
            total = self.epochs * math.ceil(len(rows) / self.batch_size)
            fit(model, loss, steps, self._recipe(view), seed=seed, total_steps=total, parameters=trained, label=type(self).__name__)
        with torch.no_grad():
            stack()
        model.eval()

    def _recipe(self, view: MethodView) -> Recipe:
        original = view.recipe
        return Recipe(
            epochs=self.epochs,
            batch_size=self.batch_size,
            lr=self.lr,
            optimizer=self.optimizer,
            precision=original.precision,
            checkpointing=original.checkpointing,
            batch_norm="frozen",
            dropout=False,
        )

    def blocks(self, model: nn.Module) -> list[str]:
        """The paths of the chosen decoder layers, lowest first, without inserted modules around them.

        Raises:
            UserError: there is no layer of a number.
        """
        paths = [path for path, _ in blocks(model)]
        n = len(paths)
        numbers = [math.ceil(depth * n) - 1 for depth in self.depths] if self.layers is None else list(self.layers)
        for number in numbers:
            if not -n <= number < n:
                raise UserError(f"layers holds {number}; the model's layers are 0 to {n - 1}, or -1 for the last")
        return [paths[number] for number in sorted({number % n for number in numbers})]

    def _starts(self, model: nn.Module, view: MethodView, paths: Sequence[str], seed: int) -> list[Tensor]:
        """First rows of each path [at most rank, d], float64."""
        forget, retain = (self._moments(model, rows, paths) for rows in (view.forget.train, view.retain.train))
        generator = torch.Generator().manual_seed(seed)
        starts = []
        for moment, other in zip(forget, retain, strict=True):
            width = len(moment)
            off = width // 8 if self.retain_rank is None else self.retain_rank
            if self.rank + off > width:
                raise UserError(f"rank {self.rank} and retain_rank {off} are {self.rank + off} directions; the model's width is {width}")
            match self.init:
                case "forget_perp_retain":
                    starts.append(directions_off(moment, other, self.rank, off))
                case "released":
                    starts.append(directions_off(other, moment, self.rank, off))
                case "pca_forget":
                    starts.append(principal_directions(moment, self.rank))
                case "random":
                    drawn = torch.randn(self.rank, width, generator=generator, dtype=torch.float64)
                    starts.append(orthonormal(drawn).to(moment.device))
        return starts

    @torch.no_grad()
    def _moments(self, model: nn.Module, rows: Data, paths: Sequence[str]) -> list[Tensor]:
        """Second moment about 0 of what stands at each path, over all tokens of all rows, as deployed."""
        device = next(model.parameters()).device
        found = [Moments() for _ in paths]
        with _outputs(model.eval(), paths) as outputs:
            for index in torch.split(torch.arange(len(rows)), self.batch_size):
                batch = send_to_device(rows.batch(index), device)
                answer_logits(model, batch)
                for moments, path in zip(found, paths, strict=True):
                    moments.add(outputs[path], batch["attention_mask"])
        count_passes(len(rows))
        return [moments.second() for moments in found]

    @torch.no_grad()
    def _reference(self, model: nn.Module, view: MethodView) -> Tensor:
        """Log-probability of each forget row's answer under the model as it came [n]."""
        device = next(model.parameters()).device
        rows, parts = view.forget.train, []
        with torch.autocast(device.type, torch.bfloat16, enabled=view.recipe.precision == "bf16"):
            for index in torch.split(torch.arange(len(rows)), self.batch_size):
                batch = send_to_device(rows.batch(index), device)
                parts.append(-view.loss(model.eval(), batch) * answer_lengths(batch["labels"]))
        return torch.cat(parts)


class MRP(_Projecting):
    """Take learned directions out of the hidden states of a few layers, by inserted projections that requests add to."""

    edits_weights = False
    inserts = (Projection,)

    placement: Placement = "residual"
    """residual: behind the decoder layer; mlp_out: behind its MLP, before that is added to the residual stream."""

    def unlearn(self, model: nn.Module, view: MethodView, *, seed: int) -> nn.Module:
        """See `Method.unlearn`."""
        request = hashlib.sha256("\0".join(sorted(view.forget.train.ids)).encode()).hexdigest()[:16]
        paths = self.blocks(model)
        if self.placement == "mlp_out":
            paths = [_mlp(model, path) for path in paths]
        found = [model.get_submodule(path) for path in paths]
        if any(isinstance(module, Projection) and request in module.requests for module in found):
            return model
        self.learn(model, view, paths, lambda path: None, seed)
        for path in paths:
            projection = model.get_submodule(path)
            assert isinstance(projection, Projection)
            projection.requests += (request,)
        return model


class MRPFolded(_Projecting):
    """Learn directions behind the MLPs of a few layers, and multiply their removal into the weights."""

    def unlearn(self, model: nn.Module, view: MethodView, *, seed: int) -> nn.Module:
        """See `Method.unlearn`."""
        paths = [_mlp(model, path) for path in self.blocks(model)]
        self.learn(model, view, paths, lambda path: unwritten(_last_linear(model, path).weight), seed)
        for path in paths:
            projection = model.get_submodule(path)
            assert isinstance(projection, Projection)
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, projection.inner)
            fold(_last_linear(model, path), projection.rows)
        return model


@torch.no_grad()
def fold(linear: nn.Linear, rows: Tensor) -> None:
    """Take directions out of what a linear layer writes, in place: W - Q'Q W, and of the bias b - Q'Q b.

    Args:
        linear: weight [d, inputs].
        rows: orthonormal rows Q [k, d].
    """
    exact = rows.double()
    for part in (linear.weight, linear.bias):
        if part is not None:
            # Twice, since rows are orthonormal but for their rounding.
            vectors = part.double().movedim(0, -1)
            part.copy_(project_off(project_off(vectors, exact), exact).movedim(-1, 0))


@torch.no_grad()
def unwritten(weight: Tensor) -> Tensor:
    """The directions into which a weight does not write: its left singular vectors whose singular value is rounding.

    Args:
        weight: [d, inputs].

    Returns:
        Orthonormal rows [k, d], float32 or finer.

    >>> unwritten(torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.0, 0.0]])).abs()
    tensor([[0., 1.]])
    """
    exact = weight.to(torch.promote_types(weight.dtype, torch.float32))
    padded = functional.pad(exact, (0, max(0, len(weight) - weight.shape[1])))
    vectors, values, _ = torch.linalg.svd(padded, full_matrices=False)
    # A folded weight is exact but for its own rounding; finer than float32 the decomposition's counts.
    rounding = 2 * max(torch.finfo(dtype).eps for dtype in (weight.dtype, torch.float32))
    rows: Tensor = vectors.mT[values <= rounding * values[0]]
    return rows


def _projection(model: nn.Module, path: str, width: int, rows: Tensor | None) -> Projection:
    """The projection at a path, put there if there is none."""
    module = model.get_submodule(path)
    if isinstance(module, Projection):
        return module
    dtype = torch.promote_types(next(module.parameters()).dtype, torch.float32)
    projection = Projection(module, width=width, dtype=str(dtype).removeprefix("torch."))
    if rows is not None:
        projection.rows = rows.to(projection.rows)
    insert(model, path, projection)
    return projection


def _mlp(model: nn.Module, block: str) -> str:
    """The path of a decoder layer's MLP."""
    path = block
    while isinstance(model.get_submodule(path), Inserted):
        path += ".inner"
    if not isinstance(getattr(model.get_submodule(path), "mlp", None), nn.Module):
        raise UserError(f"{type(model.get_submodule(path)).__name__} has no module named mlp; use mrp with placement: residual")
    return f"{path}.mlp"


def _last_linear(model: nn.Module, mlp: str) -> nn.Linear:
    """The layer that writes an MLP's output."""
    module = model.get_submodule(mlp)
    linear = getattr(module, "down_proj", None)
    if not isinstance(linear, nn.Linear):
        raise UserError(f"{type(module).__name__} has no linear layer named down_proj; use mrp with placement: mlp_out")
    return linear


@contextmanager
def _outputs(model: nn.Module, paths: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """A context that records what the modules at these paths gave last."""
    outputs: dict[str, Tensor] = {}

    def record(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            outputs[path] = output[0] if isinstance(output, tuple) else output

        return hook

    handles = [model.get_submodule(path).register_forward_hook(record(path)) for path in paths]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()
