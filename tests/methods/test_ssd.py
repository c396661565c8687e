"""SSD: what is selected is scaled down, the rest stays to the bit, and nothing is trained."""

from __future__ import annotations

import torch
from torch import nn
from trained_vision import VIEW, accuracy, knowing

from unlearnbench.layers import model_hash
from unlearnbench.methods.ssd import SSD


def squares(model: nn.Module, *sets: object) -> dict[str, torch.Tensor]:
    """Mean over single rows of the squared gradient, by backward passes."""
    total = {name: torch.zeros_like(weight) for name, weight in model.named_parameters()}
    rows = [rows.batch([i]) for rows in sets for i in range(len(rows))]  # type: ignore[attr-defined, arg-type]
    for row in rows:
        model.zero_grad()
        VIEW.loss(model, row).mean().backward()
        for name, weight in model.named_parameters():
            total[name] += weight.grad**2 / len(rows)  # type: ignore[operator]
    return total


def test_single_row_importances_select_and_dampen() -> None:
    model = knowing()
    forget, overall = squares(model, VIEW.forget.train), squares(model, VIEW.forget.train, VIEW.retain.train)
    found = SSD(alpha=1.5, strength=0.5, batch_size=1).unlearn(knowing(), VIEW, seed=0).state_dict()
    touched = 0
    for name, weight in model.named_parameters():
        selected = forget[name] > 1.5 * overall[name]
        assert torch.equal(found[name][~selected], weight[~selected])
        factor = (0.5 * overall[name] / forget[name])[selected]
        torch.testing.assert_close(found[name][selected], (weight[selected] * factor.clamp(max=1)).detach(), rtol=1e-9, atol=0)
        touched += int(selected.sum())
    assert 20 < touched < sum(weight.numel() for weight in model.parameters())
    for name, buffer in model.named_buffers():
        assert torch.equal(found[name], buffer)


def test_no_weight_grows_even_where_the_factor_would_be_above_1() -> None:
    model = knowing()
    found = SSD(alpha=1.0, strength=3.0).unlearn(knowing(), VIEW, seed=0).state_dict()
    changed = [found[name] != weight for name, weight in model.named_parameters()]
    assert sum(int(part.sum()) for part in changed) > 0
    assert all(bool((found[name].abs() <= weight.abs()).all()) for name, weight in model.named_parameters())


def test_an_endless_alpha_changes_nothing() -> None:
    assert model_hash(SSD(alpha=1e12).unlearn(knowing(), VIEW, seed=0)) == model_hash(knowing())


def test_a_class_is_forgotten_without_training() -> None:
    model = SSD(alpha=1.5).unlearn(knowing(), VIEW, seed=0)
    assert accuracy(model, VIEW.forget.eval) < 0.3
    assert accuracy(model, VIEW.retain.eval) > 0.8
