"""N models of one architecture as one: their layers grouped, so that a step's operators are called once for all of them.

The forward is read from a symbolic trace of one model: layers, sums (the shortcuts of residual nets), multiples, slices of pixels and
padding. Knows nothing of data or training.
"""

import operator
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node, symbolic_trace
from torch.nn.functional import batch_norm, conv2d, pad
from torch.nn.modules.batchnorm import _BatchNorm

from unlearnbench.recipe import Recipe

#: Layers that treat every row and channel alike, so that stacked models need nothing of their own for them.
_INDIFFERENT = (
    nn.Identity, nn.ReLU, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid,
    nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveMaxPool2d, nn.AdaptiveAvgPool2d,
)  # fmt: skip


class Stack:
    """N models of one architecture as one: every parameter and buffer has a first dimension of N.

    Images travel as ``[rows, N * channels, height, width]``, features as ``[N, rows, features]``.

    Args:
        models: What their forward may do, whatever the order: linear, convolution, batch-norm, flatten, activations and pooling as
            layers; sums of equal shapes, multiples by a number, slices of height and width, padding by a constant.
        recipe: Its policy for batch-norm and dropout.

    Attributes:
        parameters: By name, ``[N, ...]``.
        buffers: By name, ``[N, ...]``.

    Raises:
        ValueError: The forward does something else.
    """

    def __init__(self, models: list[nn.Module], recipe: Recipe) -> None:
        self.size, self.frozen = len(models), recipe.batch_norm == "frozen"
        self.layers = dict(models[0].named_modules())
        self.steps = list(_traced(models[0], recipe).nodes)
        # What no later step reads is let go of, so that memory holds what the backward pass wants and no more.
        last = {read: step for step in self.steps for read in step.all_input_nodes}
        self.spent = {step: [read for read in step.all_input_nodes if last[read] is step] for step in self.steps}
        self.parameters = {
            name: nn.Parameter(torch.stack([dict(m.named_parameters())[name].detach() for m in models]), p.requires_grad)
            for name, p in models[0].named_parameters()
        }
        self.buffers = {name: torch.stack([dict(m.named_buffers())[name] for m in models]) for name, _ in models[0].named_buffers()}

    def write_back(self, models: list[nn.Module]) -> None:
        """Copy each model's share of parameters and buffers into it."""
        with torch.no_grad():
            for lane, model in enumerate(models):
                for name, value in [*model.named_parameters(), *model.named_buffers()]:
                    value.copy_((self.parameters | self.buffers)[name][lane])

    def __call__(self, inputs: Tensor, real: Tensor | None) -> Tensor:
        """Outputs of all models.

        Args:
            inputs: ``[rows, N, ...]``, each model's own batch.
            real: Rows that are not padding, bool ``[rows, N]``; `None` if all are real.

        Returns:
            ``[N, rows, classes]``.
        """
        x = inputs.flatten(1, 2) if inputs.dim() == 5 else inputs.transpose(0, 1)
        values: dict[Node, Tensor] = {}
        for step in self.steps:
            given = [values[arg] if isinstance(arg, Node) else arg for arg in step.args]
            if step.op == "call_module":
                x = self._layer(given[0], str(step.target), real)
            elif step.op == "call_function":
                x = _FUNCTIONS[step.target](self.size, *given, **step.kwargs)
            elif step.op == "output":
                x = given[0]
            values[step] = x
            for read in self.spent[step]:
                del values[read]
        return x

    def _layer(self, x: Tensor, name: str, real: Tensor | None) -> Tensor:
        layer = self.layers[name]
        if isinstance(layer, nn.Linear):
            return self._linear(x, name)
        if isinstance(layer, nn.Conv2d):
            return self._convolution(x, name, layer)
        if isinstance(layer, _BatchNorm):
            return self._batch_norm(x, name, layer, real)
        if isinstance(layer, nn.Flatten):
            return x.reshape(len(x), self.size, -1).transpose(0, 1) if x.dim() == 4 else x
        return x if isinstance(layer, nn.Dropout) else cast(Tensor, layer(x))

    def _linear(self, x: Tensor, name: str) -> Tensor:
        weight, bias = self.parameters[f"{name}.weight"].mT, self.parameters.get(f"{name}.bias")
        return torch.bmm(x, weight) if bias is None else torch.baddbmm(bias[:, None], x, weight)

    def _convolution(self, x: Tensor, name: str, layer: nn.Conv2d) -> Tensor:
        weight, bias = self.parameters[f"{name}.weight"].flatten(0, 1), self.parameters.get(f"{name}.bias")
        groups = self.size * layer.groups
        padding = layer.padding if isinstance(layer.padding, str) else cast(tuple[int, int], layer.padding)
        flat = None if bias is None else bias.flatten()
        return conv2d(x, weight, flat, layer.stride, padding, layer.dilation, groups)

    def _batch_norm(self, x: Tensor, name: str, layer: _BatchNorm, real: Tensor | None) -> Tensor:
        """Each model's own batch-norm: over ``[rows, N * channels, ...]`` it is the usual one, padding apart."""
        vectors = x.dim() == 3
        if vectors:
            x = x.transpose(0, 1).flatten(1)
        mean, variance = (self.buffers[f"{name}.running_{what}"].view(-1) for what in ("mean", "var"))
        weight, bias = (self.parameters[f"{name}.{what}"].view(-1) for what in ("weight", "bias"))
        momentum = cast(float, layer.momentum)
        if not self.frozen:
            self.buffers[f"{name}.num_batches_tracked"] += 1
        if self.frozen or real is None:
            x = batch_norm(x, mean, variance, weight, bias, not self.frozen, momentum, layer.eps)
        else:
            x = _masked_batch_norm(x, mean, variance, weight, bias, real, momentum, layer.eps)
        return x.view(len(x), self.size, -1).transpose(0, 1) if vectors else x


def _masked_batch_norm(
    x: Tensor, mean: Tensor, variance: Tensor, weight: Tensor, bias: Tensor, real: Tensor, momentum: float, eps: float
) -> Tensor:
    """`torch.nn.functional.batch_norm` in train mode, with the statistics of the real rows alone.

    `x` is ``[rows, N * channels, ...]``, `real` ``[rows, N]``, the others ``[N * channels]``; running statistics change
    in place.
    """
    per_model, shape, dtype = x.shape[1] // real.shape[1], x.shape, x.dtype
    x = x.to(mean.dtype)  # under autocast: statistics are never summed in bf16
    spread = x.flatten(2) if x.dim() > 2 else x[:, :, None]
    mask = real.repeat_interleave(per_model, 1)[:, :, None].to(x.dtype)
    count = mask.sum((0, 2)) * spread.shape[2]
    if bool((count < 2).any()):
        raise ValueError("batch-norm needs more than one value per channel; a batch of one row is left: other batch_size")
    mu = (spread * mask).sum((0, 2)) / count
    centred = spread - mu[:, None]
    var = (centred.square() * mask).sum((0, 2)) / count
    with torch.no_grad():
        mean.lerp_(mu, momentum)
        variance.lerp_(var * count / (count - 1), momentum)
    return (centred * ((var + eps).rsqrt() * weight)[:, None] + bias[:, None]).view(shape).to(dtype)


def _sum(_: int, a: Tensor | float, b: Tensor | float) -> Tensor:
    if isinstance(a, Tensor) and isinstance(b, Tensor) and a.shape != b.shape:
        # The shapes that torch would broadcast are those of single models, not these.
        raise ValueError(f"a sum of different shapes cannot be stacked, here {list(a.shape)} and {list(b.shape)}")
    return cast(Tensor, a + b)


def _multiple(_: int, a: Tensor | float, b: Tensor | float) -> Tensor:
    return cast(Tensor, a * b)


def _sliced(_: int, x: Tensor, index: tuple[slice, ...]) -> Tensor:
    return x[index]


def _padded(size: int, x: Tensor, widths: tuple[int, ...], *, mode: str, value: float | None) -> Tensor:
    """Each model's own channels are padded, not those of the first and the last one."""
    return pad(x.reshape(len(x), size, -1, *x.shape[2:]), widths, mode, value).flatten(1, 2)


#: What is called for a function of the trace, with the number of models first.
_FUNCTIONS: dict[Any, Callable[..., Tensor]] = {
    operator.add: _sum,
    torch.add: _sum,
    operator.mul: _multiple,
    torch.mul: _multiple,
    operator.getitem: _sliced,
    pad: _padded,
}


def _traced(model: nn.Module, recipe: Recipe) -> Graph:
    """What the forward of `model` does, one node a step.

    Raises:
        ValueError: It cannot be traced, or does what cannot be stacked.
    """
    name = type(model).__name__
    if len(dict(model.named_parameters())) < len(dict(model.named_parameters(remove_duplicate=False))):
        raise ValueError(f"{name} shares parameters between layers and cannot be stacked; train with batched=False")
    try:
        graph = symbolic_trace(model).graph
    except (RuntimeError, TypeError, ValueError) as error:  # the kinds that torch.fx raises for what it cannot follow
        raise ValueError(f"{name} cannot be traced, so cannot be stacked ({error}); train with batched=False") from error
    if sum(node.op == "placeholder" for node in graph.nodes) != 1:
        raise ValueError(f"{name} takes more than one argument and cannot be stacked; train with batched=False")
    for node in graph.nodes:
        if node.op == "call_module":
            layer = model.get_submodule(str(node.target))
            off = isinstance(layer, nn.Dropout) and not (recipe.dropout and layer.p)
            if not (off or _stackable(layer)):
                raise ValueError(f"{name} has {layer}, which cannot be stacked; train with batched=False")
        if not _understood(node):
            raise ValueError(f"{name} does {node.format_node()}, which cannot be stacked; train with batched=False")
    return graph


def _understood(node: Node) -> bool:
    """Whether the step is one that `Stack` can take, its layer apart."""
    args, tensors, target = node.args, len(node.all_input_nodes), node.target
    match node.op:
        case "placeholder":
            return True
        case "call_module" | "output":
            return len(args) == 1 and isinstance(args[0], Node) and not node.kwargs
        case "call_function" if target in (operator.add, torch.add) and not node.kwargs:
            return all(isinstance(arg, Node | int | float) for arg in args)
        case "call_function" if target in (operator.mul, torch.mul) and not node.kwargs:
            return tensors == 1 and any(isinstance(arg, int | float) for arg in args)
        case "call_function" if target is operator.getitem and isinstance(index := args[1], tuple):
            # Rows and channels whole, so of images: their height and width come last in a stack too.
            return tensors == 1 and len(index) > 2 and index[:2] == (slice(None),) * 2 and all(isinstance(part, slice) for part in index)
        case "call_function" if target is pad and isinstance(widths := args[1], tuple):
            # Channels, height and width, so of images.
            return tensors == 1 and len(widths) == 6 and node.kwargs["mode"] == "constant"
        case _:
            return False


def _stackable(layer: nn.Module) -> bool:
    match layer:
        case nn.Linear() | nn.Identity():
            return True
        case nn.Conv2d():
            return layer.padding_mode == "zeros"
        case nn.BatchNorm1d() | nn.BatchNorm2d():
            return layer.affine and layer.track_running_stats and layer.momentum is not None
        case nn.Flatten():
            return (layer.start_dim, layer.end_dim) == (1, -1)
        case _:
            return isinstance(layer, _INDIFFERENT)
