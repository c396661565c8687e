"""The original goes on from another model's states: the same numbers as when hooks exchange the states, and the anchors' known answers."""

import copy
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unlearnbench.api import AttackView, NotMeasurable, Threat, UserError
from unlearnbench.attacks.activation_patching import ActivationPatching
from unlearnbench.layers import Inserted, captured, insert, inserted, model_hash
from unlearnbench.mechanisms.patching import patched
from unlearnbench.nets.resnets import thin_resnet
from unlearnbench.nets.vit import VisionTransformer
from unlearnbench.testing import tiny_language_model

IDS = torch.tensor([[3, 4, 5, 6, 7], [8, 9, 10, 11, 12]])


class View(AttackView):
    """The original, and nothing else."""

    def __init__(self, original: nn.Module) -> None:
        object.__setattr__(self, "parts", {"original": original})


def language(model: nn.Module) -> Tensor:
    found: Tensor = model(input_ids=IDS, use_cache=False).logits
    return found


def vision(model: nn.Module) -> Tensor:
    found: Tensor = model(torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8).to(next(model.parameters())))
    return found


def transformer(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return VisionTransformer(classes=3, channels=3, size=8, patch=4, width=8, depth=3, heads=2, stem=0).double().eval()


def resnet(seed: int) -> nn.Module:
    return thin_resnet(classes=3, channels=3, width=4, depth=1, seed=seed).double().eval()


KINDS: list[tuple[Any, Any, int]] = [(tiny_language_model, language, 2), (transformer, vision, 3), (resnet, vision, 3)]


def curve(model: nn.Module, original: nn.Module, run: Any) -> Iterator[tuple[int, bool, Tensor]]:
    for stage in ActivationPatching().stages(copy.deepcopy(model), View(copy.deepcopy(original)), seed=0):
        with torch.no_grad():
            yield stage.step, stage.final, run(stage.model)


@pytest.mark.parametrize(("build", "run", "depth"), KINDS)
def test_each_stage_is_the_original_with_the_models_states(build: Any, run: Any, depth: int) -> None:
    model, original = build(1), build(2)
    steps, finals, found = zip(*curve(model, original, run), strict=True)
    assert (list(steps), list(finals)) == (list(range(depth + 1)), [False] * depth + [True])
    with torch.no_grad(), captured(model, range(depth)) as states:
        assert torch.equal(found[0], run(model))
        for step in range(1, depth + 1):
            layer = depth - step
            state = states[layer]

            def exchange(module: nn.Module, inputs: object, output: Any, state: Tensor = state) -> Any:
                return (state, *output[1:]) if isinstance(output, tuple) else state

            place = dict(original.named_modules())[paths(original)[layer]]
            handle = place.register_forward_hook(exchange)
            torch.testing.assert_close(found[step], run(original))
            handle.remove()
    assert all((a - b).abs().max() > 1e-6 for a, b in pairwise(found))


def paths(model: nn.Module) -> list[str]:
    """Of the blocks, by hand."""
    name = next(name for name in ("model.layers", "encoder.blocks", "blocks") if name in dict(model.named_modules()))
    return [f"{name}.{i}" for i in range(len(list(model.get_submodule(name).children())))]


def test_hooks_at_every_position_give_the_same() -> None:
    model, original = tiny_language_model(1), tiny_language_model(2)
    found = [logits for _, _, logits in curve(model, original, language)]
    for layer in range(2):
        with torch.no_grad(), captured(model, [layer]) as states:
            language(model)
        with torch.no_grad(), patched(original, layer, states[layer], torch.ones(IDS.shape, dtype=torch.bool)):
            torch.testing.assert_close(found[2 - layer], language(original))


@pytest.mark.parametrize(("build", "run", "depth"), KINDS)
def test_the_original_patched_into_itself_is_itself(build: Any, run: Any, depth: int) -> None:
    model = build(1)
    with torch.no_grad():
        expected = run(model)
    for _, _, found in curve(model, model, run):
        assert torch.equal(found, expected)


class Doubled(Inserted):
    """Doubles what it wraps."""

    def forward(self, *args: Any, **named: Any) -> Any:
        return 2 * self.inner(*args, **named)


def test_inserted_modules_act_as_far_as_their_block_is_read() -> None:
    model, original = tiny_language_model(1), tiny_language_model(1)
    for path in ("lm_head", "model.layers.1", "model.layers.0"):
        insert(model, path, Doubled(model.get_submodule(path)))
    seen = [[path for path, _ in inserted(stage.model)] for stage in ActivationPatching().stages(model, View(original), seed=0)]
    assert seen == [["model.layers.0", "model.layers.1", "lm_head"], ["model.layers.0", "model.layers.1"], ["model.layers.0"]]


def test_adapters_around_the_whole_model_do_not_matter() -> None:
    from peft import LoraConfig, get_peft_model

    model, original = tiny_language_model(1), tiny_language_model(2)
    plain = [found for _, _, found in curve(model, original, language)]
    adapted: Any = get_peft_model(copy.deepcopy(model), LoraConfig(r=2, target_modules=["q_proj"])).eval()  # type: ignore[arg-type]
    found = [logits for _, _, logits in curve(adapted, original, language)]
    for ours, theirs in zip(found, plain, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_originals_weights_are_in_place_and_its_embedding_is_not() -> None:
    model, original = tiny_language_model(1), tiny_language_model(2)
    last = [stage.model for stage in ActivationPatching().stages(copy.deepcopy(model), View(copy.deepcopy(original)), seed=0)][-1]
    first, second = (last.get_submodule(f"model.layers.{i}") for i in range(2))
    assert model_hash(first) == model_hash(model.get_submodule("model.layers.0"))
    assert model_hash(second) == model_hash(original.get_submodule("model.layers.1"))
    assert model_hash(last.get_submodule("model.embed_tokens")) == model_hash(model.get_submodule("model.embed_tokens"))
    assert model_hash(last.get_submodule("lm_head")) == model_hash(original.get_submodule("lm_head"))  # tied to its embedding before


def test_models_that_cannot_be_patched() -> None:
    attack = ActivationPatching()
    flat = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    with pytest.raises(NotMeasurable, match="no list of blocks"):
        list(attack.stages(flat, View(flat), seed=0))
    shallow = transformer(0)
    shallow.encoder.blocks = shallow.encoder.blocks[:2]  # type: ignore[union-attr,index]
    with pytest.raises(UserError, match="the model has 3 blocks and the original 2"):
        list(attack.stages(transformer(0), View(shallow), seed=0))
    beheaded = resnet(0)
    del beheaded.head
    with pytest.raises(UserError, match="a part 'head' behind its blocks"):
        list(attack.stages(resnet(0), View(beheaded), seed=0))


def test_facts() -> None:
    attack = ActivationPatching()
    assert (attack.level, attack.needs, attack.hyperparameters()) == (Threat.T3, {"original"}, {})
