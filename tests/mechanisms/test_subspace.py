"""Bases, projections, moments and principal directions, against numpy and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from unlearnbench.mechanisms.subspace import Moments, directions_off, orthonormal, principal_directions, project_off


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def onto(rows: Tensor) -> NDArray[np.float64]:
    """The projector on the span of rows, by numpy's pseudo-inverse."""
    matrix = rows.double().numpy()
    projector: NDArray[np.float64] = np.linalg.pinv(matrix, rcond=1e-6) @ matrix
    return projector


def same_span(one: Tensor, other: Tensor, atol: float = 1e-10) -> None:
    np.testing.assert_allclose(onto(one), onto(other), atol=atol)


# ------------------------------------------------------------------------------------------------------------------ orthonormal


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_a_basis_is_orthonormal_and_of_the_same_span(dtype: torch.dtype, atol: float) -> None:
    rows = normal(5, 12, dtype=dtype) * torch.tensor([1e-6, 1.0, 30.0, 1e5, 1.0], dtype=dtype)[:, None]
    basis = orthonormal(rows)
    assert basis.dtype == dtype
    np.testing.assert_allclose(basis @ basis.mT, np.eye(5), atol=atol)
    directions = rows / rows.norm(dim=1, keepdim=True)
    np.testing.assert_allclose(project_off(directions, basis), 0, atol=atol)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_dependent_rows_and_zeros_are_dropped_wherever_they_stand(dtype: torch.dtype) -> None:
    a, b, c = normal(3, 9, dtype=dtype)
    zero = torch.zeros_like(a)
    basis = orthonormal(torch.stack([zero, a, -2 * a, b, a + b, zero, c, a - b + 3 * c]))
    assert len(basis) == 3
    same_span(basis, torch.stack([a, b, c]), atol=1e-5)
    assert orthonormal(torch.stack([zero, zero])).shape == (0, 9)
    assert orthonormal(torch.empty(0, 9, dtype=dtype)).shape == (0, 9)


def test_the_tolerance_is_relative_to_each_row() -> None:
    rows = torch.tensor([[1.0, 0.0, 0.0], [1e3, 0.9, 0.0], [0.0, 0.0, 1e-9]], dtype=torch.float64)
    assert len(orthonormal(rows, tolerance=1e-3)) == 2
    assert len(orthonormal(rows, tolerance=8e-4)) == 3


def test_more_rows_than_dimensions_give_the_whole_space() -> None:
    same_span(orthonormal(normal(11, 6)), torch.eye(6, dtype=torch.float64))


def test_off_a_basis_only_what_is_new_comes_out() -> None:
    old = orthonormal(normal(2, 8))
    new = normal(2, 8, seed=1)
    fresh = orthonormal(torch.cat([new, 3 * old[:1] - old[1:]]), off=old)
    assert len(fresh) == 2
    np.testing.assert_allclose(fresh @ old.mT, 0, atol=1e-13)
    same_span(torch.cat([old, fresh]), torch.cat([old, new]))
    assert orthonormal(old.flip(0) * 5, off=old).shape == (0, 8)
    # In float32 a row that is almost in the old span still comes out orthogonal to it.
    narrow = old.float()
    almost = narrow[:1] + 2e-3 * new[:1].float()
    np.testing.assert_allclose(orthonormal(almost, off=narrow) @ narrow.mT, 0, atol=1e-6)


def test_the_projection_can_be_differentiated_through_the_basis() -> None:
    old = orthonormal(normal(2, 7))
    vectors = normal(4, 7, seed=2)

    def projected(rows: Tensor) -> Tensor:
        return project_off(vectors, torch.cat([old, orthonormal(rows, off=old)]))

    rows = normal(2, 7, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(projected, rows)
    (gradient,) = torch.autograd.grad((projected(rows) * normal(4, 7, seed=3)).sum(), rows)
    # Only the span matters: moving a row within it changes nothing.
    np.testing.assert_allclose(gradient @ torch.cat([rows.detach(), old]).mT, 0, atol=1e-12)
    assert gradient.abs().max() > 0.01


# ------------------------------------------------------------------------------------------------------------------- projection


def test_project_off_equals_the_projector() -> None:
    basis, vectors = orthonormal(normal(3, 10)), normal(2, 5, 10, seed=1)
    np.testing.assert_allclose(project_off(vectors, basis), vectors.numpy() @ (np.eye(10) - onto(basis)), atol=1e-12)
    assert torch.equal(project_off(vectors, basis[:0]), vectors)


def test_project_off_is_computed_in_the_finer_of_the_two_types() -> None:
    basis, vectors = orthonormal(normal(3, 64, dtype=torch.float32)), normal(40, 64, seed=1).bfloat16()
    left = project_off(vectors, basis)
    assert left.dtype == torch.bfloat16
    assert torch.equal(left, project_off(vectors.double(), basis.double()).bfloat16())
    assert not torch.equal(left, project_off(vectors, basis.bfloat16()))


# ----------------------------------------------------------------------------------------------------------------------- moments


def test_moments_of_masked_vectors_are_numpys() -> None:
    vectors, mask = normal(3, 4, 6, dtype=torch.float32) + 100, torch.tensor([[1, 1, 0, 0], [0, 1, 1, 1], [0, 0, 0, 0]])
    moments = Moments()
    moments.add(vectors[:1].requires_grad_(), mask[:1])
    moments.add(vectors[1:], mask[1:])
    moments.add(vectors[2, 3:])
    taken = np.concatenate([vectors.detach().numpy()[mask.numpy() == 1], vectors.detach().numpy()[2, 3:]]).astype(np.float64)
    assert moments.count == 6 == len(taken)
    np.testing.assert_allclose(moments.mean(), taken.mean(0), rtol=1e-12)
    np.testing.assert_allclose(moments.second(), taken.T @ taken / 6, rtol=1e-12)
    np.testing.assert_allclose(moments.covariance(), np.cov(taken.T, bias=True), rtol=1e-8, atol=1e-10)
    assert not moments.second().requires_grad


def test_moments_of_nothing_are_an_error() -> None:
    with pytest.raises(ValueError, match="0 vectors"):
        Moments().mean()
    masked = Moments()
    masked.add(normal(2, 3), torch.zeros(2))
    with pytest.raises(ValueError, match="0 vectors"):
        masked.second()


# ------------------------------------------------------------------------------------------------------------------- directions


def test_principal_directions_are_the_right_singular_vectors() -> None:
    vectors = normal(50, 8) * torch.linspace(4, 1, 8, dtype=torch.float64)
    found = principal_directions(vectors.mT @ vectors / 50, 3)
    expected = np.linalg.svd(vectors.numpy())[2][:3]
    np.testing.assert_allclose(np.abs(np.sum(found.numpy() * expected, axis=1)), 1, atol=1e-12)
    assert all(row[np.abs(row).argmax()] > 0 for row in found.numpy())


def test_directions_of_no_weight_are_left_out() -> None:
    vectors = normal(4, 8)
    moment = vectors.mT @ vectors
    assert len(principal_directions(moment, 8)) == 4
    largest = float(np.linalg.eigvalsh(moment.numpy())[-1])
    assert len(principal_directions(moment, 8, floor=0.99 * largest)) == 1
    assert principal_directions(torch.zeros(3, 3), 2).shape == (0, 3)
    with pytest.raises(ValueError, match="k is 0"):
        principal_directions(moment, 0)


def test_directions_off_are_those_of_vectors_with_the_kept_part_taken_away() -> None:
    wanted, kept = normal(40, 9), normal(60, 9, seed=1) * torch.linspace(5, 0.5, 9, dtype=torch.float64)
    found = directions_off(wanted.mT @ wanted / 40, kept.mT @ kept / 60, k=2, kept_rank=3)
    untouched = torch.from_numpy(np.linalg.svd(kept.numpy())[2][:3].copy())
    expected = np.linalg.svd(wanted.numpy() @ (np.eye(9) - onto(untouched)))[2][:2]
    np.testing.assert_allclose(np.abs(np.sum(found.numpy() * expected, axis=1)), 1, atol=1e-10)
    np.testing.assert_allclose(found @ untouched.mT, 0, atol=1e-12)
    same_span(directions_off(wanted.mT @ wanted, kept.mT @ kept, k=2, kept_rank=0), principal_directions(wanted.mT @ wanted, 2))


def test_where_nothing_is_left_rounding_is_no_direction() -> None:
    wanted = normal(3, 3) @ normal(3, 9, seed=2)
    moment = wanted.mT @ wanted
    assert directions_off(moment, moment, k=2, kept_rank=3).shape == (0, 9)
    assert len(directions_off(moment, moment, k=2, kept_rank=2)) == 1
