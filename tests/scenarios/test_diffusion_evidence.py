"""The evidence of a denoising model: samples by row, losses and unconditional predictions against the plain formulas."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

from unlearnbench.api import Intervention, Need, UserError
from unlearnbench.contracts.tiny_diffusion import TinyDiffusion, tiny_denoiser
from unlearnbench.diffusion import noised, samples
from unlearnbench.nets.denoiser import PerceptronDenoiser
from unlearnbench.scenarios.diffusion_evidence import Sampler, diffusion_evidence, even_times, row_noise, sampled
from unlearnbench.scenarios.images import ImageData

SAMPLER = Sampler(steps=4, guidance=1.0)


@cache
def denoiser() -> PerceptronDenoiser:
    """With weights that are not zero anywhere."""
    model = tiny_denoiser(0).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())))
    return model


def rows(n: int = 7) -> ImageData:
    generator = torch.Generator().manual_seed(5)
    return ImageData(torch.randn(n, 1, 4, 4, generator=generator), torch.arange(n) % 3, [f"row{i}" for i in range(n)])


def judge() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(6)
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).eval()


def read(what: str, data: ImageData, sampler: Sampler = SAMPLER) -> np.ndarray:
    need = Need(what=what, split="forget")  # type: ignore[arg-type]
    return diffusion_evidence(denoiser(), judge(), {"forget": data}, frozenset({need}), sampler).array(need)


def test_each_row_is_judged_by_a_sample_of_its_class_from_noise_of_its_own() -> None:
    data = rows()
    noise = torch.cat([row_noise([row], "sample", (1, 4, 4)) for row in data.ids])
    with torch.no_grad():
        drawn = samples(denoiser(), noise, data.labels, steps=4, guidance=1.0)
        expected = judge()(drawn)
    np.testing.assert_allclose(read("logits", data), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(read("features", data), drawn.flatten(1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(read("image_features", data), data.images.flatten(1))
    np.testing.assert_array_equal(read("pixels", data), data.images.flatten(1))


@pytest.mark.parametrize("what", ["logits", "features", "denoising_loss", "unconditional"])
def test_values_belong_to_rows_whatever_the_batches_and_the_order(what: str) -> None:
    whole = read(what, rows())
    np.testing.assert_allclose(read(what, rows(), Sampler(steps=4, guidance=1.0, batch_size=3)), whole, rtol=1e-4, atol=1e-5)
    order = [4, 0, 6, 2]
    np.testing.assert_allclose(read(what, rows().take(order)), whole[order], rtol=1e-4, atol=1e-5)


def test_noise_is_standard_normal_and_another_for_each_row_and_purpose() -> None:
    noise = row_noise([f"row{i}" for i in range(400)], "sample", (1, 4, 4))
    assert abs(noise.mean().item()) < 0.05
    assert noise.std().item() == pytest.approx(1.0, abs=0.03)
    assert len({values.numpy().tobytes() for values in noise}) == 400
    assert not torch.equal(noise[:1], row_noise(["row0"], "loss/15", (1, 4, 4)))


def test_losses_and_unconditional_predictions_are_the_formulas_at_fixed_times() -> None:
    data, model = rows(), denoiser()
    alpha_bar = model.alpha_bar.numpy()
    losses, plain = [], []
    with torch.no_grad():
        for t in even_times(10, 30):
            noise = row_noise(data.ids, f"loss/{t}", (1, 4, 4))
            mixed = np.sqrt(alpha_bar[t]) * data.images + np.sqrt(1 - alpha_bar[t]) * noise
            predicted = model(mixed, torch.full((7,), t), data.labels)
            losses.append(((predicted - noise) ** 2).flatten(1).mean(1).numpy())
        for t in even_times(4, 30):
            noise = row_noise(data.ids, f"unconditional/{t}", (1, 4, 4))
            mixed = noised(data.images, noise, torch.full((7,), alpha_bar[t]))
            plain.append(model(mixed, torch.full((7,), t), torch.full((7,), 3)).flatten(1).numpy())
    np.testing.assert_allclose(read("denoising_loss", data)[:, 0], np.mean(losses, axis=0), rtol=1e-4)
    np.testing.assert_allclose(read("unconditional", data), np.concatenate(plain, axis=1), rtol=1e-4, atol=1e-5)


class _Nothing(Intervention):
    def applied(self, model: nn.Module) -> AbstractContextManager[None]:
        raise AssertionError("an intervention that is refused is not entered")


def test_what_it_does_not_give_is_said() -> None:
    with pytest.raises(UserError, match="no tokens; it gives: logits"):
        read("tokens", rows())
    with pytest.raises(UserError, match="'forget' has no rows"):
        read("logits", rows(0))
    need = Need(what="logits", split="forget", intervention=_Nothing())
    with pytest.raises(UserError, match="interventions are for causal language models"):
        diffusion_evidence(denoiser(), judge(), {"forget": rows()}, frozenset({need}), SAMPLER)


def test_the_tiny_model_draws_its_classes_and_the_oracle_does_not_draw_the_one_it_never_saw() -> None:
    scenario = TinyDiffusion(request="class0", epochs=120)
    need = Need(what="logits", split="forget")
    shares = {}
    for role in ("original", "oracle"):
        model = scenario.train([scenario.plan(role)], [0])[0]
        evidence = scenario.evidence(model, frozenset({need}))
        shares[role] = (evidence.array(need).argmax(1) == evidence.labels["forget"]).mean()
    assert shares["original"] > shares["oracle"] + 0.3, shares


def test_samples_keep_identity_class_and_bounds() -> None:
    data = rows()
    drawn = sampled(denoiser(), data, SAMPLER)
    assert drawn.ids == data.ids
    assert torch.equal(drawn.labels, data.labels)
    assert drawn.images.abs().max() <= 4 + 1e-6
