"""How much faster are small models trained together than one after another? Prints ratios measured in one run.

    python benchmarks/ensemble.py [--models 32] [--epochs 3] [--repetitions 5] [--chunk 16] [--ways loop loops ...]

The models are the digits suite's: oracles of a mislabelled request, with its nets, batch size and optimizer; fewer
epochs, since an epoch costs the same at any time. Four ways of training the same models:

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
from functools import cache

import torch

from unlearnbench.ensembles import train_ensemble
from unlearnbench.scenarios import digits_nets

NETS = {
    "mlp": (digits_nets.mlp, digits_nets.MLP_WIDTH, digits_nets.MLP_RECIPE),
    "convnet": (digits_nets.convnet, digits_nets.CONVNET_WIDTH, digits_nets.CONVNET_RECIPE),
}


# Read once per process, in the warm-up: reading is no part of training.
images = cache(digits_nets.images)


def train(net: str, seeds: range, epochs: int, batched: bool, chunk: int) -> int:
    """Train one oracle per seed: 1,400 images less 112 mislabelled ones. Returns how many were trained."""
    build, width, recipe = NETS[net]
    inputs, labels = images()
    members = torch.zeros(len(seeds), len(inputs), dtype=torch.bool)
    members[:, torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))[112:1400]] = True
    models = train_ensemble(
        lambda seed: build(width, seed),
        inputs,
        labels,
        members,
        list(seeds),
        replace(recipe, epochs=epochs),
        batched=batched,
        chunk=chunk,
    )
    return len(models)


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


def shortest(pool: Executor, net: str, models: int, asked: argparse.Namespace) -> dict[str, float]:
    """The shortest time in seconds of each way that is asked for."""

    def here(batched: bool) -> None:
        train(net, range(models), asked.epochs, batched, asked.chunk)

    def halves(batched: bool) -> None:
        parts = [range(models // 2), range(models // 2, models)]
        for job in [pool.submit(train, net, part, asked.epochs, batched, asked.chunk) for part in parts]:
            job.result()

    ways: dict[str, Callable[[], object]] = {
        "loop": lambda: on_threads(1, lambda: here(False)),
        "loops": lambda: halves(False),
        "batched": lambda: on_threads(2, lambda: here(True)),
        "batches": lambda: halves(True),
    }
    times = [{name: seconds(ways[name]) for name in asked.ways} for _ in range(asked.repetitions)]
    return {name: min(row[name] for row in times) for name in asked.ways}


def main() -> None:
    """Measure both nets and print times and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--chunk", type=int, default=16)
    names = ["loop", "loops", "batched", "batches"]
    parser.add_argument("--ways", nargs="+", choices=names, default=names)
    asked = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=spawn, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for net in NETS:
            shortest(pool, net, 4, asked)  # warm-up
            times = shortest(pool, net, asked.models, asked)
            loops = [times[name] for name in ("loop", "loops") if name in times]
            print(f"{net}: {asked.models} models, {asked.epochs} epochs, chunks of {asked.chunk}")
            for name, value in times.items():
                ratio = f"{min(loops) / value:5.2f} times the speed of the better loop" if loops else ""
                print(f"  {name:8s} {value:7.2f} s  {ratio}", flush=True)


if __name__ == "__main__":
    main()
