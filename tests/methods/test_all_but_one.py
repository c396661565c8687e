"""All but one: the objective by hand, and that guidance moves while the unconditional prediction stays."""

from __future__ import annotations

import copy
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from unlearnbench.api import MethodView
from unlearnbench.contracts.tiny_diffusion import TinyDiffusion, tiny_denoiser
from unlearnbench.diffusion import samples
from unlearnbench.methods.all_but_one import AllButOne, split_prediction, surgical_error

SCENARIO = TinyDiffusion(request="class0", epochs=150)
VIEW = MethodView(**SCENARIO.method_view(), subset_models=lambda left_out: [])
NONE = 3


@cache
def trained() -> nn.Module:
    return SCENARIO.train([SCENARIO.plan("original")], [0])[0]


def original() -> nn.Module:
    return copy.deepcopy(trained())


def points() -> tuple[Tensor, Tensor]:
    """Points of the original's sampling paths other than those trained on."""
    found = AllButOne(paths=40, path_steps=10).points(original(), 0, torch.zeros(1, 4, 4), seed=99)
    return found["images"], found["t"]


def terms(model: nn.Module, label: int) -> tuple[Tensor, Tensor]:
    images, t = points()
    with torch.no_grad():
        return split_prediction(model, images, t, torch.full_like(t, label))


def test_the_terms_are_the_unconditional_prediction_and_what_the_class_adds() -> None:
    images, t = points()
    with torch.no_grad():
        given, none = (original()(images, t, torch.full_like(t, label)) for label in (1, NONE))
    unconditional, guidance = terms(original(), 1)
    torch.testing.assert_close(unconditional, none)
    torch.testing.assert_close(guidance, given - none)
    assert terms(original(), NONE)[1].abs().max() == 0


def test_the_objective_is_the_sum_of_both_squared_differences() -> None:
    images, t = (part[:5] for part in points())
    model, frozen = original(), tiny_denoiser(7)
    with torch.no_grad():
        for parameter in frozen.parameters():
            parameter.add_(0.2)
    erased, other = torch.zeros_like(t), torch.ones_like(t)
    outputs = {
        (who, label): net(images, t, torch.full_like(t, label)) for who, net in (("u", model), ("o", frozen)) for label in (0, 1, NONE)
    }
    guidance = (outputs["u", 0] - outputs["u", NONE]) - (outputs["o", 1] - outputs["o", NONE])
    drift = outputs["u", NONE] - outputs["o", NONE]
    expected = (guidance**2).flatten(1).mean(1) + 4 * (drift**2).flatten(1).mean(1)
    found = surgical_error(model, frozen, images, t, erased, other, 4.0)
    torch.testing.assert_close(found, expected)
    found.sum().backward()
    assert all(parameter.grad is None for parameter in frozen.parameters())


def test_points_lie_on_the_originals_guided_paths() -> None:
    method = AllButOne(paths=3, path_steps=5, guidance=2.0)
    found = method.points(original(), 1, torch.zeros(1, 4, 4), seed=4)
    assert found["t"].tolist() == [t for t in (29, 22, 14, 7, 0) for _ in range(3)]
    noise = torch.randn((3, 1, 4, 4), generator=torch.Generator().manual_seed(4))
    assert torch.equal(found["images"][:3], noise)
    # A path's last point, one step before the end, is near its sample.
    with torch.no_grad():
        drawn = samples(original(), noise, torch.ones(3, dtype=torch.int64), steps=5, guidance=2.0)
    assert (found["images"][-3:] - drawn).abs().mean() < 0.2


@pytest.mark.parametrize(("alternative", "label"), [("next_class", 1), ("none", NONE)])
def test_guidance_becomes_the_alternatives_and_the_unconditional_prediction_stays(alternative: str, label: int) -> None:
    method = AllButOne(alternative=alternative, lr=2e-3, epochs=30, batch_size=64, paths=64, path_steps=10, preservation=10.0)  # type: ignore[arg-type]
    model = method.unlearn(original(), VIEW, seed=0)
    (kept, before), (_, wanted), (none, after) = terms(original(), 0), terms(original(), label), terms(model, 0)
    gap = (before - wanted).square().mean()
    assert (after - wanted).square().mean() < 0.15 * gap
    assert (none - kept).square().mean() < 0.02 * gap


def test_the_preservation_term_is_what_keeps_the_unconditional_prediction() -> None:
    drift = []
    for weight in (10.0, 0.0):
        method = AllButOne(lr=2e-3, epochs=10, batch_size=64, paths=64, path_steps=10, preservation=weight)
        model = method.unlearn(original(), VIEW, seed=0)
        drift.append(float((terms(model, 0)[0] - terms(original(), 0)[0]).square().mean()))
    assert drift[1] > 5 * drift[0]


def test_only_a_class_can_be_erased() -> None:
    instances = SimpleNamespace(modality="vision", task="diffuse", asked=lambda: SimpleNamespace(kind="instances"))
    assert "instances" in (AllButOne().supports(instances) or "")
    assert AllButOne().supports(SCENARIO) is None
