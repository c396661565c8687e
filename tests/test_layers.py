"""Inserted and conditioned modules: the hard cases of the contract, proved by a small steering plugin."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from unlearnbench import layers
from unlearnbench.api import UserError

WIDTH = 16
PROMPTS = ("say secret now", "hello", "the secret")
"""Conditions of the three rows: on, off, on."""


class Steer(layers.Conditioned):
    """Adds a vector to the output of a decoder layer in the rows whose prompt names the keyword."""

    def __init__(self, inner: nn.Module, *, keyword: str, size: float) -> None:
        super().__init__(inner)
        self.keyword, self.size = keyword, size
        self.vector = nn.Parameter(torch.linspace(-size, size, WIDTH))

    def config(self) -> dict[str, Any]:
        return {"keyword": self.keyword, "size": self.size}

    def condition(self, prompts: Sequence[str]) -> Tensor:
        return torch.tensor([self.keyword in prompt for prompt in prompts])

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        hidden = self.inner(*args, **kwargs)
        return torch.where(self.rows(len(hidden))[:, None, None], hidden + self.vector, hidden)


def llama() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=WIDTH,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(15)
    return model.eval()


def steered(path: str = "model.layers.1") -> LlamaForCausalLM:
    model = llama()
    layers.insert(model, path, Steer(model.get_submodule(path), keyword="secret", size=4.0))
    return model


def batch() -> dict[str, Tensor]:
    """Three rows padded on the left."""
    lengths = (7, 4, 6)
    ids, mask = torch.zeros(3, 7, dtype=torch.long), torch.zeros(3, 7, dtype=torch.long)
    for i, length in enumerate(lengths):
        ids[i, 7 - length :] = torch.arange(length) * (i + 3) % 37 + 2
        mask[i, 7 - length :] = 1
    return {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}


def row(inputs: dict[str, Tensor], i: int) -> dict[str, Tensor]:
    """One row without its padding."""
    return {name: tensor[i : i + 1, inputs["attention_mask"][i].bool()] for name, tensor in inputs.items()}


@pytest.fixture(autouse=True)
def _no_gradients() -> Any:
    with torch.no_grad():
        yield


def test_mixed_batch_equals_single_rows_and_gate_off_is_bit_equal() -> None:
    model, plain, inputs = steered(), llama(), batch()
    with layers.conditioned(model, PROMPTS):
        mixed = model(**inputs).logits
    untouched = plain(**inputs).logits
    for i, prompt in enumerate(PROMPTS):
        with layers.conditioned(model, [prompt]):
            alone = model(**row(inputs, i)).logits[0]
        torch.testing.assert_close(mixed[i, -len(alone) :], alone, rtol=1e-4, atol=1e-5)
        if "secret" in prompt:
            assert (mixed[i] - untouched[i]).abs().max() > 0.1
        else:
            assert torch.equal(mixed[i], untouched[i])


def test_teacher_forcing_with_and_without_a_prompt_cache_agree() -> None:
    model, inputs = steered(), batch()
    with layers.conditioned(model, PROMPTS):
        whole = model(**inputs).logits
        start = model(**{name: tensor[:, :4] for name, tensor in inputs.items()}, use_cache=True)
    # Two answers for each prompt, on the prompts' keys and values, with rows made once and repeated.
    rows = layers.condition(model, PROMPTS)
    owner = torch.tensor([0, 0, 1, 1, 2, 2])
    start.past_key_values.reorder_cache(owner)
    with layers.conditioned(model, [condition[owner] for condition in rows]):
        rest = model(
            input_ids=inputs["input_ids"][owner, 4:],
            attention_mask=inputs["attention_mask"][owner],
            position_ids=inputs["position_ids"][owner, 4:],
            past_key_values=start.past_key_values,
        ).logits
    torch.testing.assert_close(rest[::2], whole[:, 4:], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(rest[1::2], whole[:, 4:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": False},
        {"do_sample": False, "num_beams": 3},
        {"do_sample": False, "num_beams": 4, "num_return_sequences": 2},
    ],
)
def test_generate_decides_per_prompt_with_beams_and_returned_sequences(options: dict[str, Any]) -> None:
    model, plain, inputs = steered(), llama(), batch()
    del inputs["position_ids"]
    settings = {"max_new_tokens": 6, "min_new_tokens": 6, "pad_token_id": 0, **options}
    returned = options.get("num_return_sequences", 1)
    with layers.conditioned(model, PROMPTS):
        mixed = model.generate(**inputs, **settings)[:, 7:].view(3, returned, 6)
    changed = []
    for i, prompt in enumerate(PROMPTS):
        single = row(inputs, i)
        with layers.conditioned(model, [prompt]):
            alone = model.generate(**single, **settings)[:, single["input_ids"].shape[1] :]
        assert torch.equal(mixed[i], alone)
        changed.append(not torch.equal(alone, plain.generate(**single, **settings)[:, single["input_ids"].shape[1] :]))
    assert changed == [True, False, True]


def test_sampled_sequences_keep_their_prompts_condition() -> None:
    model = steered()
    model.model.layers[1].vector.fill_(1e4)  # Drowns everything else: every steered position has the same logits.
    inputs = batch()
    del inputs["position_ids"]
    with layers.conditioned(model, PROMPTS):
        output = model.generate(
            **inputs, do_sample=True, num_return_sequences=5, max_new_tokens=1, return_dict_in_generate=True, output_logits=True
        )
    logits = output.logits[0].view(3, 5, -1)
    assert torch.equal(logits, logits[:, :1].expand_as(logits))
    torch.testing.assert_close(logits[0, 0], logits[2, 0], rtol=0.05, atol=0.05)
    assert not torch.allclose(logits[0, 0], logits[1, 0], rtol=0.05, atol=0.05)


def test_a_model_without_its_condition_refuses_to_run() -> None:
    model, inputs = steered(), batch()
    with pytest.raises(RuntimeError, match="decides on the prompt"):
        model(**inputs)
    with layers.conditioned(model, PROMPTS[:2]), pytest.raises(RuntimeError, match="a batch of 3 rows does not fit the 2 prompts"):
        model(**inputs)
    with pytest.raises(RuntimeError, match="decides on the prompt"):
        model(**inputs)


def test_a_context_inside_another_gives_way_to_it() -> None:
    model, inputs = steered(), batch()
    with layers.conditioned(model, PROMPTS):
        expected = model(**inputs).logits
        with layers.conditioned(model, ["hello", "secret", "hello"]):
            assert not torch.equal(model(**inputs).logits, expected)
        assert torch.equal(model(**inputs).logits, expected)


def test_a_context_is_left_behind_by_an_error() -> None:
    model = steered()
    with pytest.raises(ZeroDivisionError), layers.conditioned(model, PROMPTS):
        raise ZeroDivisionError
    assert model.model.layers[1]._rows is None


def test_a_deepcopy_has_its_own_state() -> None:
    model, inputs = steered(), batch()
    clone = copy.deepcopy(model)

    def run(which: nn.Module) -> Tensor:
        with layers.conditioned(which, PROMPTS):
            return which(**inputs).logits

    before = run(model)
    assert torch.equal(run(clone), before)
    clone.model.layers[1].vector.mul_(-1)
    assert torch.equal(run(model), before)
    changed = run(clone)
    assert not torch.equal(changed, before)
    model.model.layers[1].vector.zero_()
    assert torch.equal(run(clone), changed)
    assert torch.equal(run(model), llama()(**inputs).logits)


def test_a_copy_does_not_borrow_the_inner_modules_special_methods() -> None:
    class Own(nn.Linear):
        def __deepcopy__(self, memo: Any) -> Own:
            return Own(2, 2)

    copied = copy.deepcopy(layers.Inserted(Own(2, 2)))
    assert type(copied) is layers.Inserted


def test_lora_around_a_steering_model_and_stripping() -> None:
    original = layers.model_hash(llama())
    inputs = batch()
    adapted = get_peft_model(steered(), LoraConfig(target_modules=["q_proj", "v_proj"], r=2, init_lora_weights=False))
    with layers.conditioned(adapted, PROMPTS):
        outer = adapted(**inputs).logits
    with layers.conditioned(steered(), PROMPTS), pytest.raises(RuntimeError):
        adapted(**inputs)
    model = steered()
    with layers.conditioned(model, PROMPTS):
        inner = model(**inputs).logits
    assert not torch.allclose(outer, inner)
    with layers.conditioned(adapted, ["nothing"] * 3):
        assert not torch.allclose(outer[0], adapted(**inputs).logits[0])
    assert [path for path, _ in layers.inserted(adapted)] == ["base_model.model.model.layers.1"]

    bare = layers.strip(adapted)
    assert isinstance(bare, LlamaForCausalLM)
    assert layers.inserted(bare) == []
    assert layers.model_hash(bare) == original
    assert torch.equal(bare(**inputs).logits, llama()(**inputs).logits)


def test_strip_removes_nested_and_neighbouring_insertions() -> None:
    model = steered("model.layers.0")
    layers.insert(model, "model.layers.0", Steer(model.model.layers[0], keyword="other", size=1.0))
    layers.insert(model, "model.layers.0.inner.inner.mlp", layers.Inserted(model.model.layers[0].mlp))
    layers.insert(model, "lm_head", layers.Inserted(model.lm_head))
    assert [path for path, _ in layers.inserted(model)] == [
        "model.layers.0",
        "model.layers.0.inner",
        "model.layers.0.inner.inner.mlp",
        "lm_head",
    ]
    assert layers.model_hash(layers.strip(model)) == layers.model_hash(llama())
    assert layers.model_hash(layers.strip(layers.Inserted(llama()))) == layers.model_hash(llama())


def test_parameters_buffers_and_modules_may_be_named_like_those_inside() -> None:
    class Scaled(layers.Inserted):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__(inner)
            self.weight = nn.Parameter(torch.ones(1))
            self.register_buffer("bias", torch.zeros(1))
            self.add_module("more", nn.Identity())

    twice = Scaled(Scaled(nn.Linear(2, 3)))
    assert set(twice.state_dict()) == {
        *("weight", "bias", "inner.weight", "inner.bias"),
        *("inner.inner.weight", "inner.inner.bias"),
    }
    assert twice.in_features == 2
    with pytest.raises(KeyError, match="already exists"):
        twice.register_buffer("weight", torch.zeros(1))


def test_strip_and_hash_see_edited_weights() -> None:
    model = steered()
    digest = layers.model_hash(model)
    model.model.layers[2].mlp.up_proj.weight[0, 0] += 1e-3
    assert layers.model_hash(model) != digest
    assert layers.model_hash(layers.strip(model)) != layers.model_hash(llama())


def test_insert_wants_the_module_that_stands_there() -> None:
    model = llama()
    with pytest.raises(ValueError, match=r"Inserted does not wrap the module at 'model\.layers\.1'"):
        layers.insert(model, "model.layers.1", layers.Inserted(model.model.layers[0]))
    with pytest.raises(ValueError, match="the path is empty"):
        layers.insert(model, "", layers.Inserted(model))


def test_a_wrapped_layer_answers_for_what_it_is() -> None:
    model = steered()
    assert model.model.layers[1].self_attn.layer_idx == 1
    assert model.model.layers[1].config() == {"keyword": "secret", "size": 4.0}
    with pytest.raises(AttributeError):
        _ = model.model.layers[1].nonsense


def test_captured_features_are_those_of_the_deployed_model() -> None:
    model, plain, inputs = steered(), llama(), batch()
    with layers.conditioned(model, PROMPTS), layers.captured(model, [1, -1]) as outputs:
        model(**inputs)
    with layers.captured(plain, [1]) as unsteered:
        plain(**inputs)
    expected = unsteered[1].clone()
    expected[0] += model.model.layers[1].vector
    expected[2] += model.model.layers[1].vector
    torch.testing.assert_close(outputs[1], expected)
    with layers.captured(model.model, [2]) as last, layers.conditioned(model, PROMPTS):
        model(**inputs)
    assert torch.equal(last[2], outputs[-1])
    assert not any(module._forward_hooks for module in model.modules())
    for index in (3, -4):
        with pytest.raises(UserError, match=f"has no block {index}; its blocks are 0 to 2"), layers.captured(model, [index]):
            pass


class Classifier(nn.Module):
    """A net whose blocks have lists of their own, longer than the list of blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5))
        self.blocks[1].experts = nn.ModuleList(nn.Linear(1, 1) for _ in range(9))

    def forward(self, images: Tensor) -> Tensor:
        return self.blocks(images)


def test_blocks_of_a_causal_lm_an_adapted_one_and_a_classifier() -> None:
    assert [path for path, _ in layers.blocks(llama())] == [f"model.layers.{i}" for i in range(3)]
    adapted = get_peft_model(steered(), LoraConfig(target_modules=["q_proj"], r=2))
    assert [path for path, _ in layers.blocks(adapted)] == [f"base_model.model.model.layers.{i}" for i in range(3)]
    assert isinstance(layers.blocks(adapted)[1][1], Steer)
    net = Classifier()
    assert layers.blocks(net) == [("blocks.0", net.blocks[0]), ("blocks.1", net.blocks[1])]
    images = torch.ones(2, 3)
    with layers.captured(net, [0]) as outputs:
        net(images)
    assert torch.equal(outputs[0], net.blocks[0](images))
    with pytest.raises(ValueError, match="Linear has no list of blocks"):
        layers.blocks(nn.Linear(1, 1))


def test_penultimate_features_are_what_the_head_reads_in_the_last_pass_and_carry_gradients() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    images = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    with torch.enable_grad(), layers.penultimate(net) as seen:
        net(images[:2])
        logits = net(images)
        seen[0].square().sum().backward()
    assert torch.equal(seen[0], net[:2](images))
    assert torch.equal(net[2](seen[0]), logits)
    assert net[0].weight.grad is not None
    assert net[0].weight.grad.any()
    with layers.penultimate(net) as later:
        pass
    net(images)
    assert later == []


class Tokens(nn.Module):
    """Holds a weight itself and has no rule to draw it."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.norm = nn.Parameter(torch.arange(6.0).view(2, 3)), nn.BatchNorm1d(3)
        self.inner = nn.Sequential(nn.Linear(3, 50), nn.Linear(50, 2))
        self.fixed = nn.Linear(2, 2).requires_grad_(False)


def test_weights_are_drawn_anew_from_the_seed_alone() -> None:
    net = Tokens()
    with torch.no_grad():
        net.inner[0].weight.fill_(7.0)
        net.norm.running_mean.fill_(3.0)
        net.fixed.weight.fill_(5.0)
    state = torch.get_rng_state()
    assert layers.reinitialise(net, seed=1) is net
    assert torch.equal(torch.get_rng_state(), state)
    assert net.fixed.weight.unique().tolist() == [5.0]
    again, other = layers.reinitialise(Tokens(), seed=1), layers.reinitialise(Tokens(), seed=2)
    assert torch.equal(again.token, net.token)
    assert torch.equal(again.inner[0].weight, net.inner[0].weight)
    assert not torch.equal(again.inner[0].weight, other.inner[0].weight)
    # As a fresh linear layer is drawn: uniform up to 1 / sqrt(3).
    assert 0.5 < net.inner[0].weight.abs().max() <= 3**-0.5
    assert not net.norm.running_mean.any()
    assert sorted(net.token.flatten().tolist()) == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    assert net.token.flatten().tolist() != other.token.flatten().tolist()
