"""Our matching and regressions against the released functions of datamodel matching, retyped, and scikit-learn's.

Its quirks are put together here: effects are float16 and summed in float16, rows come in a stored order and are not shuffled, batch-norm
is in train mode. Adam moves the biases of convolutions before batch-norm by rounding noise: they and the running means are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from vision_conformance import Vision, assert_agrees, far_apart, parameters_of

from unlearnbench.attribution import datamodels
from unlearnbench.mechanisms.matching import Objective, logits_of, match, repeated
from unlearnbench.training import Recipe

NOISE = ("conv1.bias", "conv2.bias", "bn1.running_mean", "bn2.running_mean")
LOGITS = 2e-5


def stored(vision: Vision, name: str) -> Tensor:
    return torch.from_numpy(vision.entry("dmm")[name])


def half_sum(vision: Vision) -> Tensor:
    """The summed effects as released: in float16."""
    return stored(vision, "change_sum_float16").float()


def test_effects_are_summed_over_the_forget_rows(vision: Vision) -> None:
    tau = stored(vision, "tau_forget_rows")
    assert tau.dtype == torch.float16
    exact = tau.double().sum(0)
    ours, theirs = (float((found - exact).abs().max()) for found in (tau.float().sum(0), half_sum(vision)))
    assert ours < 1e-5 < theirs < 5e-3 * float(exact.abs().max())


def test_predicted_logits_are_those_of_the_model_less_the_change(vision: Vision) -> None:
    images = torch.cat([vision.images("train"), vision.images("test")])
    before, change, n = logits_of(vision.net(), images), half_sum(vision), len(vision.images("train"))
    names = [name for name in vision.entry("dmm") if name.startswith("dm_direct_")]
    assert names
    for name in names:
        part, _, multiplier = name.removeprefix("dm_direct_").partition("_multiplier")
        rows = slice(0, n) if part == "train" else slice(n, None)
        ours = (before - float(multiplier or 1) * change)[rows]
        torch.testing.assert_close(ours, stored(vision, name), atol=LOGITS, rtol=0)


def settings(name: str) -> dict[str, Any]:
    """What a stored run's name says."""
    first, *rest = name.split("_")
    optimizer: Literal["adam", "sgd"] = "sgd" if first == "sgd" else "adam"
    epochs = next(int(part.removesuffix("epochs").removesuffix("epoch")) for part in name.split("_") if part.rstrip("s").endswith("epoch"))
    objective: Objective = "cross_entropy" if "ce" in rest else "mse"
    return {
        "optimizer": optimizer,
        "lr": 0.01 if optimizer == "sgd" else 1e-3 if objective == "cross_entropy" else 5e-4,
        "batch_size": 512 if "default" in rest else 64,
        "epochs": epochs,
        "objective": objective,
        "pull": 0.1 if "wd" in rest else 0.0,
        "forget_multiplier": 1.5 if "f1_5" in name else 1.0,
    }


RUNS = ("adam_1epoch", "adam_5epochs_default", "sgd_2epochs_wd", "adam_1epoch_f1_5_ce", "oracle_matching_1epoch")


def run(vision: Vision, targets: Tensor, index: Tensor, own: Mapping[str, Any]) -> nn.Module:
    images = vision.images("train")
    recipe = Recipe(epochs=1, batch_size=own["batch_size"], lr=own["lr"], optimizer=own["optimizer"], batch_norm="train", dropout=False)

    def order(_: int) -> Iterator[Tensor]:
        yield from torch.split(index, own["batch_size"])

    steps = -(-len(index) // own["batch_size"])
    kept = {name: own[name] for name in ("objective", "pull", "epochs")}
    return match(vision.net(), images, targets, order, recipe, steps=steps, decay=0.95, **kept)


def oracles(vision: Vision, first: Tensor, loss: float) -> Tensor:
    """The mean logits of the pair of checkpoints that gives the loss of the first batch: the results do not name it."""
    images, sized = vision.images("train"), vision.net()
    alike = [name for name in vision.names() if vision.net(name).state_dict().keys() == sized.state_dict().keys()]
    means = [torch.stack([logits_of(vision.net(name), images) for name in pair]).mean(0) for pair in combinations(alike, 2)]
    with torch.no_grad():
        started = sized.train()(images[first])
    return min(means, key=lambda mean: abs(float((started - mean[first]).square().mean()) - loss))


@pytest.mark.parametrize("name", RUNS)
def test_fine_tuning_on_predicted_logits(vision: Vision, name: str) -> None:
    if not any(key.startswith(f"theta_{name}/") for key in vision.entry("dmm")):
        pytest.skip(f"no theta_{name}")
    own = settings(name)
    if name.startswith("oracle"):
        index = stored(vision, "index_adam_1epoch")
        targets = oracles(vision, index[: own["batch_size"]], vision.numbers("dmm")[f"losses_{name}"][0])
    else:
        targets, index = stored(vision, "dm_direct_train"), stored(vision, f"index_{name}")
    expected = parameters_of(vision.entry("dmm"), f"theta_{name}")
    ours = run(vision, targets, index, own)
    assert_agrees(ours, expected, atol=5e-5 if own["objective"] == "cross_entropy" else 1e-5, leave_out=NOISE)
    assert far_apart({n: expected[n] for n in expected if n.endswith("weight")}, vision.net().state_dict()) > 1e-3


@pytest.mark.parametrize("name", RUNS[:4])
def test_the_rows_of_an_epoch_are_the_forget_rows_and_then_the_sample(vision: Vision, name: str) -> None:
    index = stored(vision, f"index_{name}")
    forget = torch.from_numpy(vision.arrays["forget_index"])
    own = settings(name)
    sample = index[int(own["forget_multiplier"] * len(forget)) :]
    rows = repeated(len(forget), len(sample), own["forget_multiplier"])
    assert torch.equal(torch.cat([forget, sample])[rows], index)
    assert not set(sample.tolist()) & set(forget.tolist())


def test_regressions_are_scikit_learns(vision: Vision) -> None:
    entry = {name: torch.from_numpy(value) for name, value in vision.entry("datamodel").items()}
    masks, outputs = entry["masks"].bool(), entry["outputs"]
    assert torch.equal(masks.double(), entry["masks"])
    torch.testing.assert_close(datamodels.largest_penalty(masks, outputs), entry["lambda_max"], atol=1e-9, rtol=1e-9)
    fits = [name.removesuffix("_weights").split("_") for name in entry if name.endswith("_weights") and name != "true_weights"]
    assert {kind for kind, _ in fits} == {"lasso", "ridge"}
    for kind, penalty in fits:
        if kind == "ridge":
            ours = datamodels.ridge(masks, outputs, float(penalty))
        else:
            ours = datamodels.lasso(masks, outputs, float(penalty), tolerance=1e-10)
        torch.testing.assert_close(ours.weights, entry[f"{kind}_{penalty}_weights"], atol=1e-5, rtol=0)
        torch.testing.assert_close(ours.bias, entry[f"{kind}_{penalty}_bias"], atol=1e-5, rtol=0)
