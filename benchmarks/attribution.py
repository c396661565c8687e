"""What calibration is worth to datamodel matching on a convex model, and what TRAK's vectorised gradients are worth; ratios of one run.

    python benchmarks/attribution.py [--rows N] [--resnet-rows N] [--subsets N]

First the relative error of the change that datamodel matching makes to a ridge regression's logits, against retraining, with a multiplier
of 1 and with a calibrated one. Then seconds of projected per-example gradients of the margin, vectorised and in a loop of autograd calls,
for the nets of the digits and for ResNet-9, on one thread; both give the same gradients.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from unlearnbench.attribution import trak
from unlearnbench.layers import evaluating
from unlearnbench.mechanisms.matching import logits_of
from unlearnbench.methods.datamodel_matching import DatamodelMatching
from unlearnbench.nets.resnet9 import resnet9
from unlearnbench.scenarios.digits_nets import CONVNET_WIDTH, MLP_WIDTH, convnet, images, mlp

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "fixtures"))
from least_squares import LeastSquares


def margin(logits: Tensor, label: Tensor) -> Tensor:
    """As an output of one row."""
    return trak.margin(logits, label)[None]


def trained(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that count."""
    return [p for p in model.parameters() if p.requires_grad]


def looped(model: nn.Module, rows: Tensor, labels: Tensor, project: trak.Project) -> Tensor:
    """The same gradients, an autograd call for each row."""
    found = []
    with evaluating(model):
        for image, label in zip(rows, labels, strict=True):
            value = trak.margin(model(image[None])[0], label)
            gradient = torch.cat([g.flatten() for g in torch.autograd.grad(value, trained(model))])
            found.append(project(gradient[None]))
    return torch.cat(found)


def vectorised(model: nn.Module, rows: Tensor, labels: Tensor, project: trak.Project) -> Tensor:
    """Ours."""
    return trak.projected_gradients(model, margin, rows, labels, project)[:, 0]


def seconds(work: Callable[[], Tensor], times: int = 3) -> tuple[float, Tensor]:
    """The shortest of some runs, and what it gave."""
    best, found = float("inf"), torch.empty(0)
    for _ in range(times):
        start = time.process_time()
        found = work()
        best = min(best, time.process_time() - start)
    return best, found


def compare(name: str, model: nn.Module, rows: Tensor, labels: Tensor, dimension: int, times: int = 3) -> None:
    """Print both ways' time for one row and their ratio, gradients alone and projected."""
    size = sum(p.numel() for p in trained(model))
    few = trak.gaussian(size, dimension, seed=0)

    def first(gradients: Tensor) -> Tensor:
        return gradients[:, :1]

    for label, project in (("gradients", first), (f"projected to {dimension}", few)):
        slow, theirs = seconds(partial(looped, model, rows, labels, project), times)
        fast, ours = seconds(partial(vectorised, model, rows, labels, project), times)
        worst = float((ours - theirs).abs().max() / theirs.abs().max())
        per = 1000 / len(rows)
        taken = f"loop {slow * per:9.3f} ms/row, vmap {fast * per:9.3f} ms/row, ratio {slow / fast:6.1f}"
        print(f"{name:18} {label:18} {taken}, differ {worst:.0e}")


def convex(subsets: int) -> None:
    """Print the errors on ridge regression."""
    for forget in (4, 16):
        problem = LeastSquares(forget, 160 - forget)
        rows = problem.rows.images
        before, wanted = logits_of(problem.trained(), rows), logits_of(problem.trained(problem.forget), rows)
        errors = []
        for multiplier in (1.0, None):
            method = DatamodelMatching(
                n_subsets=subsets, regression="ridge", multiplier=multiplier, lr=0.05, epochs=300, decay=0.98, retain_multiplier=100.0
            )
            made = method.unlearn(problem.trained(), problem.view, seed=0)
            errors.append(float((logits_of(made, rows) - wanted).norm() / (before - wanted).norm()))
        print(f"ridge regression, {forget:2} of 160 rows forgotten: error {errors[0]:.2f} at multiplier 1, {errors[1]:.2f} calibrated")


def main() -> None:
    """Run everything and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--resnet-rows", type=int, default=4)
    parser.add_argument("--subsets", type=int, default=1000)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    convex(asked.subsets)
    pixels, digits = images()
    compare("digits MLP", mlp(MLP_WIDTH, 0), pixels[: asked.rows], digits[: asked.rows], 512)
    compare("digits conv", convnet(CONVNET_WIDTH, 0), pixels[: asked.rows], digits[: asked.rows], 512)
    generator = torch.Generator().manual_seed(0)
    rows, labels = torch.randn(asked.resnet_rows, 3, 32, 32, generator=generator), torch.arange(asked.resnet_rows) % 10
    compare("ResNet-9", resnet9(classes=10, channels=3, seed=0), rows, labels, 8, times=1)


if __name__ == "__main__":
    main()
