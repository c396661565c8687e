"""Draw what the models of a finished diffusion suite draw: a row for each model, columns by class, the forgotten class marked.

    unlearnbench run configs/digits-diffusion.yaml
    python benchmarks/samples.py configs/digits-diffusion.yaml samples.png

Reads the models of the first seed from the store and trains nothing. All rows start from the same noise.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from unlearnbench.api import UserError
from unlearnbench.artefacts import Workshop
from unlearnbench.config import load_suite
from unlearnbench.planning import trials_of
from unlearnbench.scenarios.diffusion_evidence import Sampler, sampled
from unlearnbench.scenarios.digits_diffusion import BOUNDS, DigitsDiffusion
from unlearnbench.scenarios.images import ImageData
from unlearnbench.store import Store
from unlearnbench.trial import Settings

EACH, SIDE = 3, 8
"""Samples of each class, and the side of an image in pixels."""


def drawn(model: nn.Module, scenario: DigitsDiffusion) -> Tensor:
    """Samples [classes * EACH, 1, 8, 8], class after class."""
    labels = torch.arange(scenario.classes).repeat_interleave(EACH)
    rows = ImageData(torch.zeros(len(labels), 1, SIDE, SIDE), labels, [f"picture-{place}" for place in range(len(labels))])
    return sampled(model, rows, Sampler(steps=scenario.sampling_steps, guidance=scenario.guidance)).images


def models(path: Path, store: Path) -> tuple[DigitsDiffusion, dict[str, nn.Module]]:
    """The scenario of the suite's first track and its models of the first seed, by label.

    Raises:
        UserError: the suite is not about `digits_diffusion`, or has not been run with this store.
    """
    suite = load_suite(path)
    workshop, found = Workshop(Store(str(store)), Settings()), {}
    trials, _ = trials_of(suite)
    scenario = trials[0].place.open()
    if not isinstance(scenario, DigitsDiffusion):
        raise UserError(f"{path} is about {trials[0].place.scenario.name}; allowed: digits_diffusion")
    for trial in trials:
        if trial.place == trials[0].place and trial.method.label not in found:
            found[trial.method.label] = workshop.model(trial.source)
    return scenario, found


def draw(scenario: DigitsDiffusion, found: Mapping[str, nn.Module], picture: Path) -> None:
    """Write the picture of some models' samples, the forgotten class in a frame."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot
    from matplotlib.patches import Rectangle

    forgotten, wide = int(scenario.split("forget").labels[0]), EACH * SIDE
    figure, axes = pyplot.subplots(len(found), 1, figsize=(scenario.classes * EACH * 0.32 + 1.6, len(found) * 0.42 + 0.3), squeeze=False)
    for axis, (label, model) in zip(axes[:, 0], found.items(), strict=True):
        axis.imshow(torch.cat(list(drawn(model, scenario)[:, 0]), dim=1), cmap="gray_r", vmin=BOUNDS[0], vmax=BOUNDS[1])
        axis.add_patch(Rectangle((forgotten * wide - 0.5, -0.5), wide, SIDE, fill=False, edgecolor="#b03a2e", linewidth=2))
        axis.set_yticks([SIDE / 2 - 0.5], [label])
        axis.set_xticks([])
    numbers = range(scenario.classes)
    axes[-1, 0].set_xticks([(number + 0.5) * wide - 0.5 for number in numbers], [str(number) for number in numbers])
    figure.tight_layout(pad=0.4, h_pad=0.0)
    figure.savefig(picture, dpi=110)


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("suite", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--store", type=Path, default=Path("runs/store"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    draw(*models(arguments.suite, arguments.store), arguments.picture)


if __name__ == "__main__":
    main()
