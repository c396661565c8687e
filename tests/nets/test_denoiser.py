"""The denoising net: shapes, what it depends on, and its seed."""

from __future__ import annotations

import copy
import math

import torch

from unlearnbench.layers import blocks
from unlearnbench.nets.denoiser import PerceptronDenoiser, time_waves


def net(seed: int = 0) -> PerceptronDenoiser:
    return PerceptronDenoiser(8, 2, (2, 3, 4), classes=5, steps=50, bounds=(-1.0, 1.0), seed=seed)


def test_the_seed_alone_decides_the_weights() -> None:
    first = net()
    torch.randn(3)
    again, other = net(), net(1)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.inward.weight, other.inward.weight)
    assert len(blocks(first)) == 2


def test_the_prediction_is_shaped_like_the_image_and_depends_on_time_and_class() -> None:
    model = net()
    with torch.no_grad():  # blocks begin as the identity, so that nothing of the embedding would show
        for parameter in model.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(parameter.numel()))
    images, t, labels = torch.randn(3, 2, 3, 4), torch.tensor([0, 7, 7]), torch.tensor([0, 5, 5])
    out = model(images, t, labels)
    assert out.shape == images.shape
    assert not torch.allclose(out, model(images, t + 1, labels))
    changed = model(images, t, torch.tensor([0, 5, 4]))
    torch.testing.assert_close(changed[:2], out[:2])
    assert not torch.allclose(changed[2], out[2])


def test_a_class_without_training_is_drawn_as_if_there_were_no_label() -> None:
    model = net()
    images, t, labels = torch.randn(6, 2, 3, 4), torch.arange(6), torch.tensor([0, 1, 0, 1, 5, 5])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for _ in range(5):
        optimizer.zero_grad()
        (model(images, t, labels) - images).square().mean().backward()
        optimizer.step()
    none, unseen, seen = (model(images, t, torch.full((6,), label)) for label in (5, 3, 1))
    torch.testing.assert_close(unseen, none)
    assert not torch.allclose(seen, none, atol=1e-3)


def test_a_copy_in_float64_gives_the_same() -> None:
    model = net()
    images, t, labels = torch.randn(3, 2, 3, 4), torch.tensor([0, 7, 49]), torch.tensor([0, 1, 5])
    wide = copy.deepcopy(model).double()
    torch.testing.assert_close(wide(images.double(), t, labels).float(), model(images, t, labels), rtol=1e-4, atol=1e-5)


def test_waves_go_from_every_step_to_one_in_ten_thousand() -> None:
    waves = time_waves(torch.tensor([0, 3]), 8)
    assert waves[0].tolist() == [0.0] * 4 + [1.0] * 4
    expected = [math.sin(3 * 10_000 ** (-i / 4)) for i in range(4)]
    torch.testing.assert_close(waves[1, :4], torch.tensor(expected))
