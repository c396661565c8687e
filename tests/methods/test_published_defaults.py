"""The settings that papers or authors' codes give, as the plugins' docstrings quote them."""

from __future__ import annotations

from typing import Any

import pytest

from unlearnbench.registry import load

PUBLISHED: dict[str, dict[str, Any]] = {
    "ssd": {"alpha": 10, "strength": 1, "batch_size": 64},
    "fisher_forgetting": {"alpha": 1e-6, "batch_size": 1},
    "influence_unlearning": {"alpha": 5, "damping": 1, "rows": 1000},
    "scrub": {
        "lr": 5e-4,
        "decay": 0.1,
        "decay_epochs": (3, 5, 9),
        "epochs": 10,
        "max_epochs": 3,
        "forget_batch_size": 512,
        "temperature": 2,
        "kl_weight": 0.5,
        "loss_weight": 1,
    },
    "bad_teacher": {"lr": 1e-4, "epochs": 1, "batch_size": 256, "temperature": 1, "retain_share": 0.3},
    "boundary_shrink": {"lr": 1e-5, "epochs": 10, "step": 0.1},
    "boundary_expand": {"lr": 1e-5, "epochs": 10},
    "unsir": {
        "noise_lr": 0.1,
        "noise_steps": 25,
        "noise_penalty": 0.1,
        "noise_images": 256,
        "noise_copies": 20,
        "retain_per_class": 1000,
        "impair_lr": 0.02,
        "repair_lr": 0.01,
        "impair_epochs": 1,
        "repair_epochs": 1,
    },
    "duck": {
        "lr": 4e-4,
        "epochs": 30,
        "retain_batches": 5,
        "forget_weight": 1,
        "retain_weight": 1.4,
        "temperature": 2,
        "settle_epochs": 2,
        "settle_lr": 1e-4,
    },
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_defaults_are_the_published_ones(name: str) -> None:
    fields = load("methods", name)().hyperparameters()
    assert {key: fields[key] for key in PUBLISHED[name]} == PUBLISHED[name]
