"""Low-rank adapters (LoRA) around the linear layers of a decoder: put on, set to noise, merged.

Edward Hu et al., "LoRA: low-rank adaptation of large language models", ICLR 2022, arXiv:2106.09685, by way of peft. Knows no loss and no
training; `deployed` saves a model whose adapter was left on, `layers.strip` takes it off.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from unlearnbench.api import UserError
from unlearnbench.layers import blocks


def linears(model: nn.Module, among: Collection[int] | None = None) -> list[str]:
    """Paths of the linear layers inside a model's blocks.

    Args:
        model: a causal LM or a classifier with blocks.
        among: numbers of the blocks, counted as in a list; by default all.

    Raises:
        UserError: these blocks have no linear layer.
    """
    chosen = [block for number, block in enumerate(blocks(model)) if among is None or number in among]
    paths = [f"{path}.{name}" for path, block in chosen for name, module in block.named_modules() if isinstance(module, nn.Linear)]
    if not paths:
        raise UserError(f"LoRA adapts linear layers; the {len(chosen)} chosen blocks of {type(model).__name__} have none")
    return paths


def attach(model: nn.Module, *, rank: int, alpha: float, seed: int, among: Collection[int] | None = None, noise: float = 0.0) -> Any:
    """The model with a fresh adapter around the linear layers of its blocks; without noise it still computes what it did.

    All other weights are frozen. Dropout is off: `training` turns a method's dropout off in any case.

    Args:
        model: changed in place; must not have an adapter.
        rank: rank of each update.
        alpha: scale of an update times the rank.
        seed: seeds the first factor of each update, and the noise.
        among: numbers of the blocks; by default all.
        noise: standard deviation of the second factor. 0 is LoRA's own start; a loss that is flat there cannot leave it.

    Returns:
        peft's wrapper around `model`.
    """
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=linears(model, among))  # type: ignore[arg-type]
    device = next(model.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        adapted = get_peft_model(model, config)
        for name, parameter in adapted.named_parameters():
            if noise and ".lora_B." in name:
                nn.init.normal_(parameter, std=noise)
    return adapted


def merged(adapted: Any) -> nn.Module:
    """The bare model with the adapter's updates added to its weights, all of them trainable again."""
    model: nn.Module = adapted.merge_and_unload()
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return model
