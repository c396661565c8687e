"""TRAK: gradients against autograd, its projection, and known answers of models that are linear in their parameters."""

import pytest
import torch
from torch import Tensor, nn

from unlearnbench.attribution import trak
from unlearnbench.attribution.leave_one_out import newton_effects
from unlearnbench.testing import CLASSES, tiny_vision_model, tiny_vision_view


def logits(row: Tensor, label: Tensor) -> Tensor:
    return row


def margin(row: Tensor, label: Tensor) -> Tensor:
    return trak.margin(row, label)[None]


@pytest.fixture
def images() -> tuple[Tensor, Tensor]:
    batch = tiny_vision_view().retain.eval.batch(range(7))
    return batch["images"], batch["labels"]


def test_the_margin_is_the_log_odds_and_errors_are_one_minus_p() -> None:
    found, labels = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 4
    p = found.softmax(1)[torch.arange(6), labels]
    torch.testing.assert_close(trak.margin(found, labels), (p / (1 - p)).log())
    torch.testing.assert_close(trak.errors(found, labels), 1 - p)


@pytest.mark.parametrize("memory", [1, 2**28], ids=["row by row", "at once"])
def test_gradients_are_those_of_autograd_row_by_row(images: tuple[Tensor, Tensor], memory: int) -> None:
    model = tiny_vision_model()
    project = trak.gaussian(sum(p.numel() for p in model.parameters()), 5, seed=3)
    training = model.train()  # batch-norm's statistics must be the running ones all the same
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = trak.projected_gradients(training, margin, *images, project, memory=memory)
    every = trak.projected_gradients(training, logits, *images, project, memory=memory)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model.eval()
    for i, (image, label) in enumerate(zip(*images, strict=True)):
        for k, output in enumerate([trak.margin(model(image[None])[0], label), *model(image[None])[0]]):
            gradient = torch.cat([g.flatten() for g in torch.autograd.grad(output, list(model.parameters()), retain_graph=True)])
            own = found[i, 0] if k == 0 else every[i, k - 1]
            torch.testing.assert_close(own, project(gradient[None])[0])
    assert every.shape == (7, CLASSES, 5)


def test_what_is_not_trained_does_not_count(images: tuple[Tensor, Tensor]) -> None:
    model = tiny_vision_model()
    whole = trak.projected_gradients(model, margin, *images, lambda gradients: gradients)
    frozen = next(model.parameters())
    frozen.requires_grad_(False)
    rest = trak.projected_gradients(model, margin, *images, lambda gradients: gradients)
    torch.testing.assert_close(rest, whole[..., frozen.numel() :])


def test_the_projection_keeps_inner_products_and_its_blocks_are_drawn_again_alike() -> None:
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(4, 300, generator=generator, dtype=torch.float64)
    exact = vectors @ vectors.T
    wide = trak.gaussian(300, 20_000, seed=1)(vectors)
    assert float((wide @ wide.T - exact).abs().max()) < 0.05 * float(exact.max())
    small = trak.gaussian(300, 8, seed=1, memory=4 * 8 * 7)
    assert torch.equal(small(vectors), small(vectors))
    pieces = torch.cat([small(torch.eye(300)[i : i + 50]) for i in range(0, 300, 50)])
    torch.testing.assert_close(small(vectors), vectors @ pieces.double())
    assert torch.linalg.matrix_rank(pieces) == 8
    assert 0.9 < float(pieces.var() * 8) < 1.1


def test_features_are_those_of_the_normal_equations_and_a_ridge_keeps_them_finite() -> None:
    generator = torch.Generator().manual_seed(0)
    g = torch.randn(20, 4, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(trak.features(g, ridge=0.0).T @ g, torch.eye(4, dtype=torch.float64))
    lam = 0.5 * float((g.T @ g).trace()) / 4
    augmented = torch.cat([g, lam**0.5 * torch.eye(4, dtype=torch.float64)])
    torch.testing.assert_close(trak.features(g, ridge=0.5), torch.linalg.pinv(augmented).T[:20])
    flat = torch.cat([g, g], dim=1)  # singular
    assert torch.isfinite(trak.features(flat)).all()
    assert trak.features(g).dtype == torch.float64


def test_on_a_binary_linear_model_it_is_one_newton_step_without_the_weights_of_the_hessian() -> None:
    """With p = 1/2 for all rows the weights p(1-p) are a quarter, so that TRAK's effects are a quarter of influence."""
    generator = torch.Generator().manual_seed(0)
    x, points = (torch.randn(n, 1, 1, 6, generator=generator, dtype=torch.float64) for n in (50, 3))
    labels = torch.randint(2, (50,), generator=generator)
    linear = nn.Linear(6, 2, bias=False).double()
    nn.init.zeros_(linear.weight)
    model = nn.Sequential(nn.Flatten(), linear)

    def identity(gradients: Tensor) -> Tensor:
        return gradients[:, :6]  # both rows of the weights move oppositely: the first row's share says all

    g = trak.projected_gradients(model, margin, x, labels, identity)[:, 0]
    targets = trak.projected_gradients(model, logits, points, torch.zeros(3, dtype=torch.long), identity)
    tau = trak.effects(trak.features(g, ridge=0.0), trak.errors(model(x), labels), targets)[..., 0]
    # The same model with one output z = w'x for class 0, its cross-entropy's gradient p - y and Hessian p (1-p) = 1/4; no row is left out.
    flat = x.flatten(1)
    gram = torch.linalg.inv(flat.T @ flat / 4)
    residual = (labels == 0).double() - 0.5
    influence = (flat * residual[:, None]) @ gram @ points.flatten(1).T
    torch.testing.assert_close(tau, influence / 4)
    exact = newton_effects(flat, -residual[:, None], torch.full((50, 1, 1), 0.25), points.flatten(1), 0.0)[..., 0]
    assert torch.corrcoef(torch.stack([tau.flatten(), exact.flatten()]))[0, 1] > 0.98
