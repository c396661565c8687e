"""How much faster are small models trained together than one after another? Prints ratios measured in one run.

    python benchmarks/ensemble.py [--models 32] [--epochs 3] [--repetitions 5] [--chunk 16] [--ways loop loops ...]
    python benchmarks/ensemble.py --nets resnet9 --device cuda --models 16 --chunk 8 --ways loop batched
    python benchmarks/ensemble.py --nets resnet9 --width 4 --size 8 --rows 512 --models 4 --epochs 1 --repetitions 1

The models are the digits suite's: oracles of a mislabelled request, with its nets, batch size and optimizer; fewer
epochs, since an epoch costs the same at any time. Or residual nets by their own recipes, on noise in the place of
pictures, each model on nine rows of ten: CIFAR-10's size and the published width if nothing else is asked for, fewer rows.
Four ways of training the same models:

- loop: one process of one thread, one model after another;
- loops: two such processes, half the models each;
- batched: one process of two threads (slow where other work shares the cores: its threads wait for each other);
- batches: two processes of one thread, half the models each, as the runner's workers do it.

All ways are measured in turn, several times; the shortest time of each counts. Processes are started and warm before.
"""

import argparse
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import replace
from functools import cache, partial
from typing import cast

import torch
from torch import Tensor, nn

from unlearnbench.ensembles import train_ensemble
from unlearnbench.nets import NetName, net, prepare, recipe_of
from unlearnbench.recipe import Recipe
from unlearnbench.scenarios import digits_nets

DIGITS: dict[str, tuple[Callable[[int, int], nn.Module], int, Recipe]] = {
    "mlp": (digits_nets.mlp, digits_nets.MLP_WIDTH, digits_nets.MLP_RECIPE),
    "convnet": (digits_nets.convnet, digits_nets.CONVNET_WIDTH, digits_nets.CONVNET_RECIPE),
}
RESIDUAL: tuple[NetName, ...] = ("resnet9", "resnet18", "resnet20", "resnet56")


# Read once per process, in the warm-up: reading is no part of training.
images = cache(digits_nets.images)


@cache
def noise(rows: int, size: int, device: str) -> tuple[Tensor, Tensor]:
    """As many standardised images as rows, and their labels."""
    generator = torch.Generator().manual_seed(0)
    inputs, labels = torch.randn(rows, 3, size, size, generator=generator), torch.randint(0, 10, (rows,), generator=generator)
    return inputs.to(device), labels.to(device)


def train(name: str, seeds: range, batched: bool, asked: argparse.Namespace) -> int:
    """Train one model per seed, of the digits an oracle: 1,400 images less 112 mislabelled ones. Returns how many were trained."""
    build: Callable[[int], nn.Module]
    if name in DIGITS:
        make, width, recipe = DIGITS[name]
        inputs, labels = (tensor.to(asked.device) for tensor in images())
        build, used = partial(make, width), slice(112, 1400)
    else:
        residual = cast(NetName, name)
        recipe = recipe_of(residual)
        inputs, labels = noise(asked.rows, asked.size, asked.device)
        build = partial(_residual, residual, asked.size, asked.width)
        used = slice(asked.rows // 10, None)
    members = torch.zeros(len(seeds), len(inputs), dtype=torch.bool)
    members[:, torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))[used]] = True
    models = train_ensemble(
        lambda seed: build(seed).to(asked.device),
        inputs,
        labels,
        members,
        list(seeds),
        replace(recipe, epochs=asked.epochs, precision=asked.precision),
        batched=batched,
        chunk=asked.chunk,
        prepare=prepare,
    )
    if asked.device == "cuda":
        torch.cuda.synchronize()
    return len(models)


def _residual(name: NetName, size: int, width: int | None, seed: int) -> nn.Module:
    return net(name, classes=10, channels=3, size=size, width=width, seed=seed)


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def on_threads(threads: int, work: Callable[[], object]) -> None:
    """Call `work` with this many threads, then put the number back."""
    found = torch.get_num_threads()
    torch.set_num_threads(threads)
    work()
    torch.set_num_threads(found)


def shortest(pool: Executor, name: str, models: int, asked: argparse.Namespace) -> dict[str, float]:
    """The shortest time in seconds of each way that is asked for."""

    def here(batched: bool) -> None:
        train(name, range(models), batched, asked)

    def halves(batched: bool) -> None:
        parts = [range(models // 2), range(models // 2, models)]
        for job in [pool.submit(train, name, part, batched, asked) for part in parts]:
            job.result()

    ways: dict[str, Callable[[], object]] = {
        "loop": lambda: on_threads(1, lambda: here(False)),
        "loops": lambda: halves(False),
        "batched": lambda: on_threads(2, lambda: here(True)),
        "batches": lambda: halves(True),
    }
    times = [{way: seconds(ways[way]) for way in asked.ways} for _ in range(asked.repetitions)]
    return {way: min(row[way] for row in times) for way in asked.ways}


def main() -> None:
    """Measure the nets and print times and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--chunk", type=int, default=16)
    names = ["loop", "loops", "batched", "batches"]
    parser.add_argument("--ways", nargs="+", choices=names, default=names)
    parser.add_argument("--nets", nargs="+", choices=[*DIGITS, *RESIDUAL], default=list(DIGITS))
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--width", type=int, help="of a residual net; as published by default")
    parser.add_argument("--size", type=int, default=32, help="side of a residual net's images")
    parser.add_argument("--rows", type=int, default=5120, help="images of a residual net")
    asked = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=spawn, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for name in asked.nets:
            shortest(pool, name, min(4, asked.models), asked)  # warm-up
            times = shortest(pool, name, asked.models, asked)
            loops = [times[way] for way in ("loop", "loops") if way in times]
            print(f"{name}: {asked.models} models, {asked.epochs} epochs, chunks of {asked.chunk}, {asked.device}, {asked.precision}")
            for way, value in times.items():
                ratio = f"{min(loops) / value:5.2f} times the speed of the better loop" if loops else ""
                print(f"  {way:8s} {value:7.2f} s  {ratio}", flush=True)


if __name__ == "__main__":
    main()
