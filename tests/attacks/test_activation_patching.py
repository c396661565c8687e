"""The original goes on from another model's states: the same numbers as when hooks exchange the states, and the anchors' known answers."""

import copy
from collections.abc import Iterator, Sequence
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unlearnbench.api import AttackView, Need, NotMeasurable, Threat, UserError
from unlearnbench.attacks.activation_patching import ActivationPatching
from unlearnbench.contracts.checks import trained
from unlearnbench.contracts.models import VIEW_FIELDS
from unlearnbench.layers import Inserted, captured, insert, inserted, model_hash
from unlearnbench.mechanisms.patching import patched
from unlearnbench.nets.resnets import thin_resnet
from unlearnbench.nets.vit import VisionTransformer
from unlearnbench.testing import TinyLanguage, tiny_language_model

IDS = torch.tensor([[3, 4, 5, 6, 7], [8, 9, 10, 11, 12]])


class Rows:
    """So many rows."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def batch(self, index: Sequence[int]) -> dict[str, Any]:
        return {"rows": torch.tensor(list(index))}


class View(AttackView):
    """The original, and retained rows with the losses that each model has, one call after the other."""

    def __init__(self, original: nn.Module, rows: int = 3, losses: Sequence[float] = ()) -> None:
        coming = iter(losses)
        object.__setattr__(self, "parts", {"original": original, "retain": SimpleNamespace(eval=Rows(rows))})
        object.__setattr__(self, "loss", lambda model, batch: torch.full((len(batch["rows"]),), next(coming, 0.0)))


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


def test_retained_rows_must_survive_the_patching() -> None:
    model, original = transformer(1), transformer(2)
    own, blocks = 0.3, 3

    def stages(attack: ActivationPatching, *lost: float, rows: int = 3) -> int:
        losses = [own, *(own + more for more in lost)]
        return len(list(attack.stages(copy.deepcopy(model), View(copy.deepcopy(original), rows, losses), seed=0)))

    attack = ActivationPatching()
    assert stages(attack, 0.0, 0.9, -5.0) == blocks + 1
    assert stages(ActivationPatching(tolerance=2.0), 0.0, 1.5, 0.0) == blocks + 1
    with pytest.raises(NotMeasurable, match=r"states at block 1: retained rows lose 1\.50 nats by it, more than 1;"):
        stages(attack, 0.0, 1.5, 0.0)
    with pytest.raises(NotMeasurable, match="states at block 0: retained rows lose nan"):
        stages(attack, 0.0, 0.0, float("nan"))
    with pytest.raises(UserError, match="no retained rows"):
        stages(attack, rows=0)


def test_the_control_takes_so_many_rows() -> None:
    seen = []
    view = View(transformer(2), rows=10)
    object.__setattr__(view, "loss", lambda model, batch: seen.append(batch["rows"].tolist()) or torch.zeros(1))
    next(ActivationPatching(control_rows=4).stages(transformer(1), view, seed=0))
    assert seen == [[0, 1, 2, 3]] * 4


def test_another_training_is_not_called_erased() -> None:
    """Which of two trainings it comes from decides whether the original can read a model, not what the model knows."""
    scenario = TinyLanguage(request="authors")
    need = Need(what="tokens", split="forget")
    original, other, oracle = (
        trained(scenario, scenario.plan(role), seed) for role, seed in (("original", 0), ("original", 1), ("oracle", 0))
    )

    def known(model: nn.Module) -> list[float]:
        parts = {"original": copy.deepcopy(original), "retain": scenario.attack_parts()["retain"]}
        common = scenario.method_view()
        view = AttackView(**{name: common[name] for name in VIEW_FIELDS}, parts=parts)
        stages = ActivationPatching().stages(copy.deepcopy(model), view, seed=0)
        return [-float(scenario.evidence(stage.model, frozenset([need])).nll(need).mean()) for stage in stages]

    assert len(set(known(original))) == 1
    assert max(known(oracle)[1:]) < known(original)[0] - 0.3
    with pytest.raises(NotMeasurable, match="no coordinates in common"):
        known(other)


def test_facts() -> None:
    attack = ActivationPatching()
    assert (attack.level, attack.needs, attack.hyperparameters()) == (
        Threat.T3,
        {"original", "retain"},
        {"control_rows": 64, "tolerance": 1.0},
    )
