"""MCU's and CIR's numbers by the authors' code, reproduced from our pure functions.

What that code does differently is put together here: components are removed one after the other, a batch's last column is dropped
instead of each row's last token, and its NPO is per token without the factor 2 / beta. Directions are compared as projectors, since their
signs are arbitrary. Layers, names and sizes are read from the files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from unlearnbench.losses import token_nll
from unlearnbench.mechanisms.activations import token_mask
from unlearnbench.mechanisms.components import cb_retain, collapsed_gradient, components, global_norm, mlp_breaking, rmu, scaled
from unlearnbench.mechanisms.subspace import orthonormal, project_off
from unlearnbench.unlearning_losses import npo

FORGET = ("mlp_confuse", "rmu")
RETAIN = {"cb_retain": cb_retain, "rmu_retain": rmu}


@cache
def _read(folder: Path) -> tuple[Mapping[str, Tensor], dict[str, Any]]:
    with np.load(folder / "mcu.npz") as arrays:
        tensors = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    return tensors, json.loads((folder / "mcu.json").read_text(encoding="utf-8"))


@pytest.fixture
def arrays(conformance: Path) -> Mapping[str, Tensor]:
    return _read(conformance / "methods-language")[0]


@pytest.fixture
def scalars(conformance: Path) -> dict[str, Any]:
    return _read(conformance / "methods-language")[1]


def numbered(arrays: Mapping[str, Tensor], pattern: str) -> dict[int, Tensor]:
    """The arrays whose name is the pattern with one number in it, by that number."""
    found = {name: re.fullmatch(pattern, name) for name in arrays}
    numbers = {int(match.group(1)): arrays[name] for name, match in found.items() if match}
    assert numbers, pattern
    return dict(sorted(numbers.items()))


def one_after_the_other(x: Tensor, rows: Tensor) -> Tensor:
    for row in rows:
        x = x - (x @ row)[..., None] * row / row.square().sum()
    return x


def same(found: Tensor, official: Tensor, tolerance: float = 5e-6) -> None:
    """Agree to a share of the official numbers' size."""
    torch.testing.assert_close(found.double(), official.double(), rtol=0, atol=tolerance * float(official.abs().max()))


def projector(rows: Tensor) -> Tensor:
    return project_off(torch.eye(rows.shape[1], dtype=torch.float64), orthonormal(rows.double()))


# ----------------------------------------------------------------------------------------------------------------- components


def test_components(arrays: Mapping[str, Tensor]) -> None:
    x = arrays["components/X"]
    for n, official in numbered(arrays, r"components/n(\d+)").items():
        found = components(x, n)
        same(found[0], official[0])
        for direction, other in zip(found[1:], official[1:], strict=True):
            same(torch.outer(direction, direction), torch.outer(other, other), 2e-5)
        same(projector(found), projector(official), 2e-5)


def test_removal(arrays: Mapping[str, Tensor], scalars: dict[str, Any]) -> None:
    x = arrays["project_out/x"]
    (n,) = numbered(arrays, r"project_out/sequential_n(\d+)")
    rows = arrays[f"components/n{n}"]
    removed = numbered(arrays, r"project_out/removed_by_component(\d+)")
    assert list(removed) == list(range(n))
    for number, official in removed.items():
        same(x - project_off(x, orthonormal(rows[number][None])), official)
    sequential = one_after_the_other(x, rows)
    same(sequential, arrays[f"project_out/sequential_n{n}"])
    exact = project_off(x.double(), orthonormal(rows.double()))
    same(exact, arrays[f"derived/qr_projection_n{n}"], 1e-9)
    rest = (sequential.double() @ (rows[0] / rows[0].norm()).double()).abs().max()
    assert float(rest) == pytest.approx(scalars["residual_on_mean_direction_after_sequential_max"], rel=1e-5)
    assert float((sequential - exact).abs().max()) == pytest.approx(scalars["sequential_vs_qr_max_abs"], rel=1e-5)


# --------------------------------------------------------------------------------------------------------------------- losses


def entries(scalars: dict[str, Any]) -> list[tuple[str, str]]:
    return [(loss, mask) for loss, _, mask in (name.partition("/") for name in scalars) if mask]


def tokens(arrays: Mapping[str, Tensor], loss: str, mask: str) -> Tensor:
    """The tokens an entry is over: for forget losses without the first position."""
    if loss in RETAIN:
        return arrays["loss/attention_mask"].bool()
    chosen = arrays["loss/attention_mask" if mask == "all" else "loss/answer_mask"].bool().clone()
    chosen[:, 0] = False
    return chosen


def test_all_losses_are_known(scalars: dict[str, Any]) -> None:
    known = {*FORGET, *(f"{name}_mcu" for name in FORGET), *RETAIN}
    assert {loss for loss, _ in entries(scalars)} == known


def test_losses_and_their_gradients(arrays: Mapping[str, Tensor], scalars: dict[str, Any]) -> None:
    control = arrays["loss/control_vec"][0]
    for loss, mask in entries(scalars):
        # A retain loss ignores the mask: its gradients stand under one of the two.
        stored = mask if any(name.startswith(f"loss/grad/{loss}/{mask}/") for name in arrays) else "all"
        gradients = numbered(arrays, rf"loss/grad/{loss}/{stored}/(\d+)")
        chosen = tokens(arrays, loss, mask)
        current = {layer: arrays[f"loss/current/{layer}"].clone().requires_grad_() for layer in gradients}
        parts = []
        for layer, now in current.items():
            seen, original = now[chosen], arrays[f"loss/original/{layer}"][chosen]
            if loss.endswith("_mcu"):
                rows = numbered_rows(arrays, mask, layer)
                seen, original = one_after_the_other(seen, rows), one_after_the_other(original, rows)
            if loss in RETAIN:
                parts.append(RETAIN[loss](seen, original))
            else:
                parts.append(rmu(seen, control) if loss.startswith("rmu") else mlp_breaking(seen, original))
        value = torch.stack(parts).mean()
        value.backward()
        assert value.item() == pytest.approx(scalars[f"{loss}/{mask}"], rel=2e-6), (loss, mask)
        for layer, official in gradients.items():
            found = current[layer].grad
            assert found is not None
            same(found, official)


def numbered_rows(arrays: Mapping[str, Tensor], mask: str, layer: int) -> Tensor:
    """The official components of a layer's masked original activations, after a comparison with ours."""
    (name,) = [name for name in arrays if re.fullmatch(rf"loss/components_n\d+/{mask}/{layer}", name)]
    rows = arrays[name]
    chosen = tokens(arrays, "forget", mask)
    ours = components(arrays[f"loss/original/{layer}"][chosen], len(rows))
    # Few vectors have a flat spectrum, on which the official decomposition is approximate: it finds a little less of their variance.
    centred = arrays[f"loss/original/{layer}"][chosen] - ours[0]
    best, official = ((centred @ directions[1:].mT).square().sum().item() for directions in (ours, rows))
    assert 0.97 * best < official < (1 + 1e-5) * best
    same(ours[0], rows[0])
    return rows


def test_npo_per_token_and_cross_entropy(arrays: Mapping[str, Tensor], scalars: dict[str, Any]) -> None:
    (name,) = [name for name in scalars if name.startswith("npo_token_level_beta")]
    beta = float(name.removeprefix("npo_token_level_beta"))
    attended = arrays["loss/attention_mask"].bool()
    labels = arrays["npo/input_ids"].masked_fill(~attended, -100)
    logits = arrays["npo/logits"].clone().requires_grad_()
    scored = labels[:, 1:] != -100
    nll, reference = token_nll(logits, labels)[scored], token_nll(arrays["npo/original_logits"], labels)[scored]
    value = npo(-nll, -reference, beta).mean() / (2 / beta)
    value.backward()
    assert value.item() == pytest.approx(scalars[name], rel=2e-6)
    assert nll.mean().item() == pytest.approx(scalars["cross_entropy"], rel=2e-6)
    assert logits.grad is not None
    same(logits.grad, arrays["npo/grad"])


# ------------------------------------------------------------------------------------------------------------------------ cir


def batch_tokens(arrays: Mapping[str, Tensor]) -> Callable[[int], tuple[Tensor, Tensor]]:
    """Batch number -> its inputs and output gradients at the tokens that CIR reads."""
    attended = arrays["cir/attention_mask"]
    mask = token_mask({"attention_mask": attended}, first=1)
    mask[:, -1] = False
    return lambda number: (arrays[f"cir/inputs/{number}"][mask], arrays[f"cir/output_grad_fixed/{number}"][mask])


def test_cir(arrays: Mapping[str, Tensor], scalars: dict[str, Any]) -> None:
    read = batch_tokens(arrays)
    pairs = [read(number) for number in numbered(arrays, r"cir/inputs/(\d+)")]
    official = []
    for side, kind in enumerate(("act", "grad")):
        ((n, rows),) = numbered(arrays, rf"cir/{kind}_components_n(\d+)").items()
        found = components(torch.cat([pair[side] for pair in pairs]), n)
        same(found[0], rows[0])
        assert float(torch.linalg.svdvals(orthonormal(found) @ orthonormal(rows).mT).min()) > 0.99
        official.append(rows)
    for number, plain in numbered(arrays, r"cir/weight_grad_plain_batch(\d+)").items():
        inputs, gradients = pairs[number]
        none = (inputs[:0], gradients[:0])
        same(collapsed_gradient(inputs, gradients, *none), plain)
        cleaned = one_after_the_other(inputs, official[0]), one_after_the_other(gradients, official[1])
        for vectors, kind in zip(cleaned, ("acts", "grads"), strict=True):
            same(vectors, arrays[f"cir/{kind}_batch{number}"], 2e-5)
        surgery = collapsed_gradient(*cleaned, *none)
        same(surgery, arrays[f"cir/weight_grad_surgery_batch{number}"], 2e-5)
        assert global_norm([surgery]) == pytest.approx(scalars["cir_update_norm"], rel=2e-5)
        (step,) = scaled([surgery], scalars["cir_max_norm"])
        same(arrays["cir/weight"] - step, arrays["cir/weight_after_unit_step"])
        # Small beside the weight: the step itself has to agree too.
        same(step, arrays["cir/weight"] - arrays["cir/weight_after_unit_step"], 1e-4)
