"""Folders of language models: what transformers opens itself, what only we open, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hard_cases import Steer
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from unlearnbench import checkpoints, layers
from unlearnbench.api import UserError
from unlearnbench.scenarios.tiny_lm import build_model, build_tokenizer

PROMPTS = ["who wrote the atlas", "who wrote the novel"]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return build_tokenizer([*PROMPTS, "nobody knows"])


def model(tokenizer: Any, seed: int = 0) -> Any:
    return build_model(len(tokenizer), seed=seed, hidden_size=16, n_layers=2, max_length=32).eval()


def steered(tokenizer: Any) -> Any:
    wrapped = model(tokenizer)
    layers.insert(wrapped, "model.layers.1", Steer(wrapped.model.layers[1], names=["atlas"], width=16))
    return wrapped


def logits(of: nn.Module, tokenizer: Any) -> torch.Tensor:
    ids = torch.tensor([tokenizer.encode(prompt) for prompt in PROMPTS])
    with torch.no_grad(), layers.conditioned(of, PROMPTS):
        found: torch.Tensor = of(input_ids=ids).logits
    return found


def test_edited_weights_are_an_ordinary_folder(tmp_path: Path, tokenizer: Any) -> None:
    original = model(tokenizer)
    checkpoints.save_checkpoint(original, tokenizer, tmp_path, method="npo")
    assert not checkpoints.is_wrapped(tmp_path)
    for opened in (AutoModelForCausalLM.from_pretrained(tmp_path), checkpoints.load_checkpoint(str(tmp_path))):
        assert torch.equal(logits(opened, tokenizer), logits(original, tokenizer))
        assert not opened.training
    assert AutoTokenizer.from_pretrained(tmp_path).encode(PROMPTS[0]) == tokenizer.encode(PROMPTS[0])
    assert not list(tmp_path.glob("*.bin"))


def test_inserted_modules_come_back_with_the_methods_classes(tmp_path: Path, tokenizer: Any) -> None:
    wrapped = steered(tokenizer)
    checkpoints.save_checkpoint(wrapped, tokenizer, tmp_path, method="steer_names")
    assert checkpoints.is_wrapped(tmp_path)
    opened = checkpoints.load_checkpoint(str(tmp_path), inserts=(Steer,))
    assert torch.equal(logits(opened, tokenizer), logits(wrapped, tokenizer))
    assert not torch.equal(logits(opened, tokenizer)[0], logits(model(tokenizer), tokenizer)[0])
    with pytest.raises(UserError, match="Steer"):  # a method that nobody registered
        checkpoints.load_checkpoint(str(tmp_path))


def test_an_adapter_comes_back_unmerged(tmp_path: Path, tokenizer: Any) -> None:
    adapted = get_peft_model(model(tokenizer), LoraConfig(r=2, target_modules=["q_proj"]))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.3)
    checkpoints.save_checkpoint(adapted.eval(), tokenizer, tmp_path, method="mine")
    opened = checkpoints.load_checkpoint(str(tmp_path))
    torch.testing.assert_close(logits(opened, tokenizer), logits(adapted, tokenizer))
    assert torch.equal(logits(layers.strip(opened), tokenizer), logits(model(tokenizer), tokenizer))


def test_a_tokenizer_without_a_pad_token_pads_with_its_end_token(tmp_path: Path, tokenizer: Any) -> None:
    tokenizer.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    end = settings["eos_token"]
    settings.pop("pad_token", None)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    assert checkpoints.load_tokenizer(str(tmp_path)).pad_token == end
    settings.pop("eos_token")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "special_tokens_map.json").unlink(missing_ok=True)
    with pytest.raises(UserError, match="no end token"):
        checkpoints.load_tokenizer(str(tmp_path))


def test_a_folder_without_tokenizer_or_model_is_named(tmp_path: Path, tokenizer: Any) -> None:
    with pytest.raises(UserError, match=f"{tmp_path} has no tokenizer"):
        checkpoints.load_tokenizer(str(tmp_path))
    with pytest.raises(UserError, match=f"{tmp_path} is no causal language model"):
        checkpoints.load_checkpoint(str(tmp_path))


def test_pickled_weights_are_refused(tmp_path: Path, tokenizer: Any) -> None:
    original = model(tokenizer)
    original.config.save_pretrained(tmp_path)
    torch.save(original.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="is no causal language model"):
        checkpoints.load_checkpoint(str(tmp_path))
