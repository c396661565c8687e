"""The suites in `configs/`: each loads, and those of real model sizes train with a shrunken model of the same architecture."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from made_up_data import muse_files, tofu_files, write
from made_up_pictures import MADE_UP_COUNTS, picture_settings
from transformers import LlamaConfig, LlamaForCausalLM

from unlearnbench import registry
from unlearnbench.api import Data, Method, Scenario
from unlearnbench.config import expand, load_suite
from unlearnbench.scenarios import cifar_files
from unlearnbench.scenarios.images import image_loss
from unlearnbench.scenarios.language import text_loss
from unlearnbench.scenarios.sourced import SourcedScenario
from unlearnbench.scenarios.tiny_lm import train_tokenizer
from unlearnbench.scenarios.vision_scenario import VisionScenario
from unlearnbench.training import batches, fit

CONFIGS = sorted((Path(__file__).resolve().parents[1] / "configs").glob("*.yaml"))
CHAT = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}<eos>{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_suite_loads_and_its_plugins_serve_its_scenarios(path: Path) -> None:
    suite = load_suite(path)
    assert path.stem == suite.suite
    for track in suite.tracks:
        scenario: Scenario = track.asked(track.requests[0])
        for group, specs in (("methods", track.methods), ("attacks", track.attacks), ("metrics", track.metrics)):
            for spec in (point for item in specs for point in expand(item)):
                plugin: Any = spec.make(group)  # type: ignore[arg-type]
                assert plugin.supports(scenario) is None or isinstance(plugin, Method), f"{spec.label}: {plugin.supports(scenario)}"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two small layers, with the context of the large one."""
    folder = tmp_path_factory.mktemp("base")
    tokenizer = train_tokenizer(["Question: Q1 on A1?\nAnswer: A1 a1"], vocab_size=300)
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=300, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=4096, bos_token_id=None, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", ["tofu-forget10", pytest.param("muse-news", marks=pytest.mark.slow), "muse-books"])
def test_suites_of_real_size_take_five_training_steps(name: str, base: Path, tmp_path: Path) -> None:
    files = tofu_files() if name.startswith("tofu") else muse_files()
    if name == "muse-books":
        files["raw/retain2"] = files.pop("sust/forget_2")
    data = write(tmp_path, files)
    track = load_suite(next(path for path in CONFIGS if path.stem == name)).tracks[0]
    fields = {**track.scenario.fields, "data_dir": str(data), "request": track.requests[0]}
    fields["models"] = {**fields["models"], "base": str(base), "lr": 1e-2}
    scenario = registry.make("scenarios", track.scenario.name, fields)
    assert isinstance(scenario, SourcedScenario)
    recipe, rows, model = replace(scenario.recipe, warmup=0.0), scenario.trained_on(scenario.plan("original")).train, scenario.build(0)
    assert (recipe.precision, recipe.checkpointing) == ("bf16", True)
    assert recipe.accumulate * recipe.batch_size == 32
    before = {key: value.clone() for key, value in model.state_dict().items()}
    few = rows.take(range(5 * 32))

    def epoch(number: int) -> Any:
        return map(few.batch, batches(len(few), recipe.batch_size, seed=0, epoch=number))

    report = fit(model, lambda net, batch: text_loss(net, batch).mean(), partial(epoch), recipe, seed=0, total_steps=5)
    assert (report.steps, report.samples) == (5, 160)
    assert all(bool(torch.isfinite(value).all()) for value in model.state_dict().values())
    assert all(not torch.equal(value, before[key]) for key, value in model.state_dict().items() if "proj" in key)


@pytest.mark.parametrize("name", ["cifar10-random10", "cifar10-class", "cifar10-coherent"])
def test_suites_on_pictures_of_real_size_take_five_training_steps(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar_files, "COUNTS", MADE_UP_COUNTS)
    track = load_suite(next(path for path in CONFIGS if path.stem == name)).tracks[0]
    data = picture_settings("cifar10", tmp_path)["data_dir"]
    fields = {**track.scenario.fields, "data_dir": data, "request": track.requests[0], "width": 4, "test_per_class": 20}
    scenario = registry.make("scenarios", track.scenario.name, fields)
    assert isinstance(scenario, VisionScenario)
    recipe = replace(scenario.recipe, warmup=0.0)
    assert (recipe.precision, recipe.batch_size, recipe.momentum, recipe.weight_decay) == ("bf16", 256, 0.9, 5e-4)
    view = scenario.train_view(scenario.plan("oracle"))
    model, rows = view.build(0), view.data.train
    assert set(rows.ids).isdisjoint(scenario.split("forget").ids)
    before = {key: value.clone() for key, value in model.named_parameters()}

    def epoch(number: int, rows: Data = rows, size: int = recipe.batch_size) -> Any:
        return map(rows.batch, batches(len(rows), size, seed=0, epoch=number))

    report = fit(model, lambda net, batch: image_loss(net, batch).mean(), epoch, recipe, seed=0, total_steps=5)
    assert (report.steps, report.samples) == (5, 5 * len(rows))
    assert all(bool(torch.isfinite(value).all()) for value in model.state_dict().values())
    assert all(not torch.equal(value, before[key]) for key, value in model.named_parameters() if value.requires_grad)
