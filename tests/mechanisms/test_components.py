"""Components, the losses and gradients that keep off them, and the two ratios, against numpy and by hand."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from unlearnbench.mechanisms.components import (
    cb_retain,
    change_ratio,
    collapsed_gradient,
    components,
    global_norm,
    mlp_breaking,
    recovery_ratio,
    rmu,
    scaled,
)
from unlearnbench.mechanisms.subspace import orthonormal, project_off

WIDTH = 12


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def spread(n: int = 200, seed: int = 0) -> Tensor:
    """Vectors with a mean far from 0 and a falling, well separated spectrum."""
    turned = torch.linalg.qr(drawn(WIDTH, WIDTH, seed=seed + 1)).Q
    return (drawn(n, WIDTH, seed=seed) * 2.0 ** -torch.arange(WIDTH, dtype=torch.float64)) @ turned + drawn(WIDTH, seed=seed + 2)


# ----------------------------------------------------------------------------------------------------------------- components


@pytest.mark.parametrize("n", [1, 2, 5, WIDTH])
def test_components_are_the_mean_and_the_right_singular_vectors_of_the_centred_data(n: int) -> None:
    x = spread()
    found = components(x, n).numpy()
    centred = x.numpy() - x.numpy().mean(0)
    directions = np.linalg.svd(centred, full_matrices=False)[2][: n - 1]
    np.testing.assert_allclose(found[0], x.numpy().mean(0), atol=1e-12)
    signs = np.sign((found[1:] * directions).sum(1, keepdims=True))
    np.testing.assert_allclose(found[1:], signs * directions, atol=1e-6)


def test_components_keep_the_type_and_may_be_none() -> None:
    assert components(spread().float(), 3).dtype == torch.float32
    assert components(spread(), 0).shape == (0, WIDTH)


def test_a_large_mean_does_not_drown_the_directions() -> None:
    x = spread()
    far = (x + 1e4).float()
    torch.testing.assert_close(components(far, 3)[1:].abs(), components(x, 3)[1:].abs().float(), atol=1e-2, rtol=0)


@pytest.mark.parametrize("n", [-1, WIDTH + 1])
def test_components_beyond_what_there_is_are_refused(n: int) -> None:
    with pytest.raises(ValueError, match=f"allowed: 0 to {WIDTH}"):
        components(spread(), n)
    with pytest.raises(ValueError, match="allowed: 0 to 2"):
        components(spread(2), 3)


def one_after_the_other(x: Tensor, rows: Tensor) -> Tensor:
    """The released code's removal."""
    for row in rows:
        x = x - (x @ row)[..., None] * row / row.square().sum()
    return x


@pytest.mark.parametrize("n", [1, 4])
def test_the_removal_is_an_orthogonal_projection(n: int) -> None:
    found = components(spread(), n)
    projector = project_off(torch.eye(WIDTH, dtype=torch.float64), orthonormal(found))
    torch.testing.assert_close(projector @ projector, projector, atol=1e-12, rtol=0)
    torch.testing.assert_close(projector, projector.mT, atol=1e-12, rtol=0)
    assert int(torch.linalg.matrix_rank(projector)) == WIDTH - n
    assert float((found @ projector).abs().max()) < 1e-12


def test_removal_one_after_the_other_is_no_projection() -> None:
    found = components(spread(), 4)
    once = one_after_the_other(torch.eye(WIDTH, dtype=torch.float64), found)
    assert float((once @ found[1:].mT).abs().max()) < 1e-12
    assert float((once @ found[0]).abs().max()) > 1e-2
    assert float((one_after_the_other(once, found) - once).abs().max()) > 1e-2


# --------------------------------------------------------------------------------------------------------------------- losses


def test_mlp_breaking_at_the_original_and_with_turned_outputs() -> None:
    original = spread()
    lengths = original.norm(dim=-1)
    assert float(mlp_breaking(original, original)) == pytest.approx(float(lengths.square().mean() / lengths.mean() ** 2))
    assert float(mlp_breaking(original, original)) >= 1
    assert float(mlp_breaking(-original, original)) == 0
    orthogonal = torch.stack(
        [project_off(row, (other / other.norm())[None]) for row, other in zip(drawn(200, WIDTH), original, strict=True)]
    )
    assert float(mlp_breaking(orthogonal, original)) == pytest.approx(0, abs=1e-12)


def test_the_hinge_is_on_each_token() -> None:
    original = torch.tensor([[3.0, 4.0], [0.0, 5.0]])
    current = torch.tensor([[3.0, 4.0], [0.0, -50.0]], requires_grad=True)
    loss = mlp_breaking(current, original)
    assert loss.item() == pytest.approx(0.5)
    loss.backward()
    torch.testing.assert_close(current.grad, torch.tensor([[3.0, 4.0], [0.0, 0.0]]) / 50)


def test_rmu_and_cb_retain_are_what_numpy_makes_of_them() -> None:
    now, before, target = spread().numpy(), spread(seed=5).numpy(), drawn(WIDTH).numpy()
    tensors = [torch.from_numpy(array) for array in (now, before, target)]
    assert float(rmu(tensors[0], tensors[2])) == pytest.approx(((now - target) ** 2).mean())
    distance = np.linalg.norm(now - before, axis=1).mean() / np.linalg.norm(before, axis=1).mean()
    assert float(cb_retain(tensors[0], tensors[1])) == pytest.approx(distance)


def test_cb_retain_has_no_gradient_where_nothing_moved() -> None:
    current = spread().requires_grad_()
    cb_retain(current, spread()).backward()
    assert current.grad is not None
    assert not current.grad.any()


@pytest.mark.parametrize("loss", [mlp_breaking, rmu])
def test_a_projected_loss_has_no_gradient_along_what_was_removed(loss) -> None:  # noqa: ANN001
    original = spread()
    found = components(original, 4)
    basis = orthonormal(found)
    target = original if loss is mlp_breaking else drawn(WIDTH)

    def shares(removed: Tensor) -> Tensor:
        current = (original + 0.1 * drawn(200, WIDTH, seed=9)).requires_grad_()
        goal = project_off(target, removed) if loss is mlp_breaking else target
        (gradient,) = torch.autograd.grad(loss(project_off(current, removed), goal), current)
        return (gradient @ found.mT).abs().amax(0) / gradient.norm()

    assert float(shares(basis).max()) < 1e-12
    assert float(shares(basis[:0]).min()) > 1e-3


def test_a_step_on_a_linear_layer_leaves_its_dominant_outputs_alone() -> None:
    """The planted direction holds most of the variance; the plain loss changes mostly that, the projected one not at all."""
    # Inputs are white, so that an output's change is the gradient at it passed through a multiple of the identity.
    inputs = torch.linalg.qr(drawn(200, WIDTH)).Q * 200**0.5
    weight = drawn(WIDTH, WIDTH, seed=1) * 0.1
    planted = functional.normalize(drawn(WIDTH, seed=2), dim=0)
    weight = weight + 3 * torch.outer(planted, drawn(WIDTH, seed=3))

    def dominant_share(n: int) -> float:
        original = inputs @ weight.mT
        basis = orthonormal(components(original, n))
        layer = weight.clone().requires_grad_()
        loss = mlp_breaking(project_off(inputs @ layer.mT, basis), project_off(original, basis))
        (gradient,) = torch.autograd.grad(loss, layer)
        change = inputs @ gradient.mT
        dominant = orthonormal(components(original, 2))
        return float((change @ dominant.mT).square().sum() / change.square().sum())

    assert dominant_share(0) > 0.5
    assert dominant_share(2) < 1e-20


# ------------------------------------------------------------------------------------------------------------------ gradients


def linear_pass() -> tuple[Tensor, Tensor, Tensor]:
    """Inputs [N, in], gradients at the outputs [N, out] and the weight's gradient of a linear layer, by autograd."""
    inputs, weight = spread(50), drawn(7, WIDTH, seed=3).requires_grad_()
    outputs = inputs @ weight.mT
    outputs.retain_grad()
    (outputs.sin() * drawn(50, 7, seed=4)).sum().backward()
    assert outputs.grad is not None
    assert weight.grad is not None
    return inputs, outputs.grad, weight.grad


def test_without_components_it_is_the_weight_gradient() -> None:
    inputs, gradients, expected = linear_pass()
    torch.testing.assert_close(collapsed_gradient(inputs, gradients, inputs[:0], gradients[:0]), expected)


def test_a_collapsed_gradient_neither_reads_nor_writes_along_the_components() -> None:
    inputs, gradients, plain = linear_pass()
    into, out = components(inputs, 3), components(gradients, 2)
    found = collapsed_gradient(inputs, gradients, orthonormal(into), orthonormal(out))
    assert float((found @ into.mT).abs().max()) < 1e-10
    assert float((out @ found).abs().max()) < 1e-10
    assert float((plain @ into.mT).abs().max()) > 1e-2
    assert float((out @ plain).abs().max()) > 1e-2
    left = torch.eye(7, dtype=torch.float64) - torch.linalg.pinv(out) @ out
    right = torch.eye(WIDTH, dtype=torch.float64) - torch.linalg.pinv(into) @ into
    torch.testing.assert_close(found, left @ plain @ right)


def test_scaled_gradients_have_the_length_and_the_direction() -> None:
    gradients = [drawn(3, 4), drawn(5, seed=1)]
    found = scaled(gradients, 0.2)
    assert global_norm(found) == pytest.approx(0.2, rel=1e-12)
    torch.testing.assert_close(found[0] / gradients[0], torch.full((3, 4), 0.2 / global_norm(gradients), dtype=torch.float64))
    assert global_norm(gradients) == pytest.approx(float(torch.cat([part.flatten() for part in gradients]).norm()))
    assert not any(part.any() for part in scaled([torch.zeros(2)], 0.2))


# ---------------------------------------------------------------------------------------------------------------- diagnostics


def test_change_ratio_is_the_share_of_the_mean_absolute_change() -> None:
    original, unlearned = spread(), spread(seed=7)
    directions = components(original, 5)[1:]
    found = change_ratio(original, unlearned, directions).numpy()
    moved = [np.mean([abs((u - o) @ v) for u, o in zip(unlearned.numpy(), original.numpy(), strict=True)]) for v in directions.numpy()]
    np.testing.assert_allclose(found, np.array(moved) / np.sum(moved))
    assert found.sum() == pytest.approx(1)


def test_recovery_ratio_runs_from_unlearned_to_original() -> None:
    original, unlearned = spread(), spread(seed=7)
    directions = components(original, 4)[1:]
    ones = torch.ones(3, dtype=torch.float64)
    torch.testing.assert_close(recovery_ratio(original, unlearned, original, directions), ones)
    torch.testing.assert_close(recovery_ratio(original, unlearned, unlearned, directions), 0 * ones)
    quarter = unlearned + 0.25 * (original - unlearned)
    torch.testing.assert_close(recovery_ratio(original, unlearned, quarter, directions), 0.25 * ones)
