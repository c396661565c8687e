"""MRP's projection and initialisation against what the official code gives.

What the official code does beyond the formula (a row of zeros that takes coordinate 0 along, a forget span that is everything) is
composed here, from our functions.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from unlearnbench.mechanisms.subspace import Moments, directions_off, orthonormal, principal_directions, project_off

Arrays = Mapping[str, Any]

# Of the largest value; bf16 keeps 8 bits, and a value is a sum of a few products.
TOLERANCE = {"fp64": 1e-12, "fp32": 1e-5, "bf16": 2e-2}
DTYPES = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16}
both = pytest.mark.parametrize("kind", ["h_out", "dW", "dh"])


@pytest.fixture(scope="module")
def arrays(conformance: Path) -> Arrays:
    return np.load(conformance / "methods-language" / "mrp.npz")  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def numbers(conformance: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((conformance / "methods-language" / "mrp.json").read_text(encoding="utf-8"))
    return found


def tensor(arrays: Arrays, key: str) -> Tensor:
    return torch.from_numpy(arrays[key]).double()


def cases(arrays: Arrays) -> list[str]:
    found = sorted({key.split("/")[1] for key in arrays if key.endswith("/projector")})
    assert found
    return found


def before(arrays: Arrays, case: str) -> Tensor:
    """The directions of earlier requests in a case; the official row of zeros comes out of its QR as coordinate 0."""
    previous = tensor(arrays, "W_previous_request")
    zero = torch.eye(previous.shape[1], dtype=previous.dtype)[:1] if "zero_row" in case else previous[:0]
    return orthonormal(torch.cat([zero, previous if "previous" in case else previous[:0]]))


def projected(arrays: Arrays, case: str, dtype: str) -> dict[str, Tensor]:
    """Output and gradients of our projection; at bf16 of values that are rounded like the official ones."""
    h, rows = tensor(arrays, "h").requires_grad_(), tensor(arrays, "W").requires_grad_()
    old = before(arrays, case)
    precise = DTYPES["fp64" if dtype == "fp64" else "fp32"]
    new = orthonormal(rows.to(DTYPES[dtype]).to(precise), off=old.to(precise))
    out = project_off(h.to(DTYPES[dtype]), torch.cat([old.to(precise), new]).to(DTYPES[dtype]))
    dw, dh = torch.autograd.grad((out.double() * tensor(arrays, "cotangent")).sum(), (rows, h))
    return {"h_out": out.detach().double(), "dW": dw, "dh": dh}


@both
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_projection_and_gradients_through_the_basis(arrays: Arrays, dtype: str, kind: str) -> None:
    for case in cases(arrays):
        expected = tensor(arrays, f"{dtype}/{case}/{kind}")
        scale = max(1.0, float(expected.abs().max()))
        np.testing.assert_allclose(projected(arrays, case, dtype)[kind], expected, rtol=0, atol=TOLERANCE[dtype] * scale, err_msg=case)


@both
def test_official_bf16_numbers_are_far_from_another_case(arrays: Arrays, kind: str) -> None:
    """The widest tolerance still tells the projections apart."""
    one, other = (tensor(arrays, f"bf16/{case}/{kind}") for case in ("empty", "previous"))
    assert (one - other).abs().max() > 3 * TOLERANCE["bf16"] * max(1.0, float(one.abs().max()))


def test_projectors_and_what_they_remove(arrays: Arrays, numbers: dict[str, Any]) -> None:
    for case in cases(arrays):
        old, rows = before(arrays, case), tensor(arrays, "W")
        stack = torch.cat([old, orthonormal(rows, off=old)])
        identity = torch.eye(rows.shape[1], dtype=rows.dtype)
        np.testing.assert_allclose(project_off(identity, stack), arrays[f"fp64/{case}/projector"], atol=1e-12, err_msg=case)
        assert len(stack) == numbers[f"{case}/removed_directions"]
        assert float(project_off(identity[0], stack).norm()) == pytest.approx(numbers[f"{case}/norm_of_projected_e0"], abs=1e-12)
        previous = tensor(arrays, "W_previous_request")[: None if "previous" in case else 0]
        # Ours starts empty and drops rows of zeros: it removes the span of the rows and nothing else.
        ours = orthonormal(torch.cat([torch.zeros_like(rows[:1]), previous, rows]))
        assert len(ours) == numbers[f"{case}/rank_of_rows"]
        assert len(stack) - len(ours) == ("zero_row" in case)


def test_a_row_in_the_old_span_removes_nothing_more(arrays: Arrays, numbers: dict[str, Any]) -> None:
    # The rows depend on each other as far as float32, in which the old ones are kept, can tell.
    previous, new = (tensor(arrays, key).float() for key in ("W_previous_request", "dependent_row/W_new"))
    old = orthonormal(previous)
    assert len(old) + len(orthonormal(new, off=old)) == numbers["dependent_row/rank_of_rows"]
    assert len(old) + len(new) == numbers["dependent_row/removed_directions"]


# ---------------------------------------------------------------------------------------------------------------- initialisation


def second(vectors: Tensor) -> Tensor:
    moments = Moments()
    moments.add(vectors)
    return moments.second()


def same_projector(found: Tensor, expected: Tensor, atol: float) -> None:
    """Signs of rows are arbitrary, and so is their order where eigenvalues are close."""
    assert found.shape == expected.shape
    np.testing.assert_allclose(found.mT @ found, expected.mT @ expected, atol=atol)


def test_released_initialisation(arrays: Arrays) -> None:
    keys = [key for key in arrays if re.fullmatch(r"init/released_few_k\d+_\w+", key)]
    assert keys
    for key in keys:
        forget = orthonormal(tensor(arrays, "init/forget_vectors_few"))
        left = project_off(tensor(arrays, "init/retain_vectors"), forget)
        expected = tensor(arrays, key)
        same_projector(principal_directions(second(left), len(expected)), expected, TOLERANCE[key.rpartition("_")[2]])


def test_a_forget_span_that_is_everything_leaves_no_direction(arrays: Arrays, numbers: dict[str, Any]) -> None:
    forget, retain = tensor(arrays, "init/forget_vectors_many"), tensor(arrays, "init/retain_vectors")
    span = orthonormal(forget)
    assert len(span) == numbers["init_many/rank_of_forget_projection"]
    if len(span) == forget.shape[1]:
        assert numbers["init_many/residual_after_forget_projection_max"] < 1e-10
        assert len(directions_off(second(retain), second(forget), k=1, kept_rank=len(span))) == 0


def test_forget_directions_off_the_retain_directions(arrays: Arrays) -> None:
    keys = {key: re.fullmatch(r"derived/forget_perp_retain_k(\d+)_r(\d+)", key) for key in arrays}
    found = [(key, int(match[1]), int(match[2])) for key, match in keys.items() if match]
    assert found
    forget, retain = (second(tensor(arrays, f"init/{name}")) for name in ("forget_vectors_many", "retain_vectors"))
    for key, k, rank in found:
        same_projector(directions_off(forget, retain, k, rank), tensor(arrays, key), 1e-10)
