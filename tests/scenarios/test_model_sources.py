"""Models from scratch, fine-tuned and ready: what is loaded and trained, what keys see, and which folders are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from made_up_data import tofu_files, write
from torch import nn

from unlearnbench import planning, registry
from unlearnbench.api import Need, Plan, UserError
from unlearnbench.evidence import Evidence
from unlearnbench.layers import model_hash
from unlearnbench.scenarios.model_sources import FIRST_ORACLE_SEED, Chat, Finetuned, Lora, Plain, Ready, Scratch, fingerprint
from unlearnbench.scenarios.templates import ChatTemplate, PromptTemplate
from unlearnbench.scenarios.text import IGNORE_INDEX
from unlearnbench.scenarios.tiny_lm import build_model, train_tokenizer
from unlearnbench.scenarios.tofu import Tofu

TEXTS = ["Question: Q1 on A1?\nAnswer: A1 a1", "real_authors world_facts So not never nowhere"]
CHAT = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}<eos>{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"


def save(folder: Path, *, seed: int = 0, size: int = 400) -> str:
    tokenizer = train_tokenizer(TEXTS, vocab_size=300)
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder)
    build_model(size, seed=seed, hidden_size=8, n_layers=1, n_heads=2, mlp_size=16, max_length=128).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def model(tmp_path: Path) -> str:
    return save(tmp_path / "model")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("tofu"), tofu_files())


def tofu(data: Path, models: dict[str, Any], **fields: Any) -> Tofu:
    made = registry.make(
        "scenarios", "tofu", {"request": "forget01", "data_dir": str(data), "retain_authors": 20, "models": models, **fields}
    )
    assert isinstance(made, Tofu)
    return made


def published(folder: str, **fields: Any) -> dict[str, Any]:
    return {"source": "finetuned", "base": folder, "epochs": 1, "batch_size": 600, "lr": 1e-2, **fields}


def test_a_tokenizer_from_scratch_depends_on_the_set_of_texts_and_undoes_itself() -> None:
    one, other = train_tokenizer(TEXTS, vocab_size=300), train_tokenizer([*reversed(TEXTS), TEXTS[0]], vocab_size=300)
    assert one.get_vocab() == other.get_vocab()
    assert len(one) == 300
    for text in (*TEXTS, "Ünïcode ▁ 🙂\n\n  two"):
        assert one.decode(one.encode(text, add_special_tokens=False)) == text
    assert (one.pad_token_id, one.eos_token_id) == (0, 1)


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(UserError, match="width is 12 and heads is 4"):
        Scratch(width=12).build(train_tokenizer(TEXTS, vocab_size=300), 0)


def test_a_published_model_is_fine_tuned_from_its_own_weights(data: Path, model: str) -> None:
    scenario = tofu(data, published(model))
    assert model_hash(scenario.build(0)) == model_hash(scenario.build(1))
    trained = scenario.train([scenario.plan("original")] * 2, [0, 1])
    assert len({model_hash(net) for net in (*trained, scenario.build(0))}) == 3
    assert scenario.encoder().max_length == 128


def test_an_adapter_is_trained_alone_and_merged(data: Path, model: str) -> None:
    scenario = tofu(data, published(model, lora={"rank": 2, "alpha": 4.0}))
    trained, base = scenario.train([scenario.plan("oracle")], [0])[0], scenario.build(0)
    assert set(trained.state_dict()) == set(base.state_dict())
    changed = {name for name, value in trained.state_dict().items() if not torch.equal(value, base.state_dict()[name])}
    linear = {f"{name}.weight" for name, module in base.named_modules() if isinstance(module, nn.Linear) and "layers" in name}
    assert changed == linear
    assert all(parameter.requires_grad for parameter in trained.parameters())


def test_training_runs_in_bf16_with_accumulation_and_checkpointing(data: Path, model: str) -> None:
    scenario = tofu(data, published(model, batch_size=44, accumulate=2, checkpointing=True, precision="bf16", dtype="bfloat16"))
    trained = scenario.train([scenario.plan("oracle")], [0])[0]
    assert scenario.recipe.precision == "bf16"
    assert {parameter.dtype for parameter in trained.parameters()} == {torch.bfloat16}
    assert model_hash(trained) != model_hash(scenario.build(0))


def test_ready_models_are_loaded_by_role_and_place_in_the_pool(data: Path, model: str, tmp_path: Path) -> None:
    oracles = [save(tmp_path / f"oracle{seed}", seed=seed) for seed in (1, 2)]
    scenario = tofu(data, {"source": "ready", "original": model, "oracles": oracles, "of": "forget01"})
    plans = [scenario.plan("original"), scenario.plan("original"), scenario.plan("oracle"), scenario.plan("oracle")]
    found = scenario.train(plans, [0, 5, FIRST_ORACLE_SEED, FIRST_ORACLE_SEED + 1])
    wanted = [build_model(400, seed=seed, hidden_size=8, n_layers=1, n_heads=2, mlp_size=16, max_length=128) for seed in (0, 0, 1, 2)]
    assert [model_hash(net) for net in found] == [model_hash(net) for net in wanted]
    assert planning.ORACLE_SEED == FIRST_ORACLE_SEED
    for place, plan, seed in (
        (scenario, scenario.plan("oracle"), FIRST_ORACLE_SEED + 2),
        (scenario, Plan(role="subset", rows=frozenset()), 0),
        (scenario.with_request("forget05"), scenario.plan("oracle"), FIRST_ORACLE_SEED),
    ):
        with pytest.raises(UserError, match="given: an original and 2 oracles of 'forget01'"):
            place.train([plan], [seed])
    with pytest.raises(UserError, match="not of shadow 0, step 0"):
        scenario.shadow_request(0).train([scenario.plan("oracle")], [FIRST_ORACLE_SEED])


def test_keys_see_what_a_folder_holds(data: Path, tmp_path: Path) -> None:
    one, same, other = (save(tmp_path / name, seed=seed) for name, seed in (("one", 0), ("same", 0), ("other", 1)))
    assert fingerprint(one) == fingerprint(same) != fingerprint(other)
    assert fingerprint("some/model") == "some/model"
    scenario = tofu(data, published(one))
    assert json.loads(json.dumps(scenario.training_settings(scenario.plan("oracle")))) == scenario.training_settings(
        scenario.plan("oracle")
    )


def test_a_chat_template_is_used_throughout(data: Path, model: str) -> None:
    scenario = tofu(data, published(model), prompts={"style": "chat", "system": "Be kind."})
    batch = scenario.split("forget").batch([0])
    assert batch["prompts"] == ["[system]Be kind.<eos>[user]Q0 on A198?<eos>[assistant]"]
    scored = batch["labels"][0][batch["labels"][0] != IGNORE_INDEX].tolist()
    assert scenario.encoder().tokenizer.decode(scored) == "A198 a0<eos>"
    evidence = scenario.evidence(scenario.build(0), frozenset({Need(what="text", split="forget")}))
    assert evidence.references[Need(what="text", split="forget")][0] == "A198 a0"


def change(folder: str, name: str, **values: Any) -> None:
    path = Path(folder) / name
    document = {**json.loads(path.read_text(encoding="utf-8")), **values}
    path.write_text(json.dumps({key: value for key, value in document.items() if value is not None}), encoding="utf-8")


def test_a_folder_without_a_tokenizer_is_refused(data: Path, model: str) -> None:
    for path in Path(model).glob("*token*"):
        path.unlink()
    with pytest.raises(UserError, match="has no tokenizer"):
        tofu(data, published(model)).encoder()


@pytest.mark.parametrize("missing", [{"eos_token": None}, {"eos_token": None, "pad_token": None}], ids=["end", "end and pad"])
def test_a_tokenizer_without_an_end_token_is_refused(data: Path, model: str, missing: dict[str, None]) -> None:
    change(model, "tokenizer_config.json", **missing)
    with pytest.raises(UserError, match=f"the tokenizer of {model} has no end token"):
        tofu(data, published(model)).encoder()


def test_a_tokenizer_without_a_pad_token_gives_the_same_losses(data: Path, model: str) -> None:
    scenario = tofu(data, published(model))
    net, rows = scenario.build(0), [0, 11, 39]
    wanted = scenario.method_view()["loss"](net, scenario.split("forget").batch(rows))
    before = scenario.split("forget").batch(rows)
    change(model, "tokenizer_config.json", pad_token=None)
    bare = tofu(data, published(model, lr=2e-2))
    batch = bare.split("forget").batch(rows)
    assert bare.encoder().tokenizer.pad_token_id == bare.encoder().tokenizer.eos_token_id
    assert torch.equal(batch["attention_mask"], before["attention_mask"])
    assert not torch.equal(batch["input_ids"], before["input_ids"])
    torch.testing.assert_close(bare.method_view()["loss"](net, batch), wanted, rtol=0, atol=0)


def test_what_fills_a_batch_changes_no_bit_of_the_evidence(data: Path, model: str, tmp_path: Path) -> None:
    """Statistics of tokens, features, gradient norms and generations, whether there is a pad token, none, or another one."""
    needs = [Need(what="tokens", split="forget", answer=answer) for answer in ("answer", "perturbed_answer")]
    needs += [
        Need(what="generation", split="forget"),
        Need(what="gradient_norm", split="forget"),
        Need(what="features", split="forget", layer=0),
    ]
    kept = {}
    for number, pad in enumerate(("<pad>", None, "Ā")):
        change(model, "tokenizer_config.json", pad_token=pad)
        scenario = tofu(data, published(model, lr=(number + 1) * 1e-2), limit=9)  # other settings: no tokenizer is kept from before
        (folder := tmp_path / str(number)).mkdir()
        scenario.evidence(scenario.build(0), frozenset(needs)).save(folder)
        kept[scenario.encoder().pad_id] = [(folder / name).read_bytes() for name in ("evidence.safetensors", "evidence.json")]
    assert len(kept) == 3
    first, *others = kept.values()
    assert all(other == first for other in others)
    assert any(Evidence.load(folder).generations(needs[2])[0])


def test_a_tokenizer_with_more_tokens_than_its_model_is_refused(data: Path, tmp_path: Path) -> None:
    small = save(tmp_path / "small", size=200)
    with pytest.raises(UserError, match="has 300 tokens; its model knows 200"):
        tofu(data, published(small)).encoder()


def test_a_folder_that_is_no_model_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no tokenizer"):
        tofu(data, published(str(tmp_path / "nothing"))).encoder()


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ({"source": "scratch", "width": -1}, "field 'models.scratch.width' is -1, must be"),
        ({"source": "scratch", "widht": 8}, r"no field 'models.scratch.widht' \(did you mean 'width'\?\); the fields are: source, width"),
        ({"source": "ready"}, "field 'models.ready.original' is missing"),
        ({"source": "hub"}, "'scratch', 'finetuned', 'ready'"),
        (published("x", lora={"rank": 0, "alpha": 1.0}), "field 'models.finetuned.lora.rank' is 0, must be greater than or equal to 1"),
    ],
)
def test_wrong_settings_are_named_by_their_place(data: Path, models: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        tofu(data, models)


def test_settings_give_their_templates() -> None:
    tokenizer = train_tokenizer(TEXTS, vocab_size=300)
    tokenizer.chat_template = CHAT
    assert Plain(prompt="Q {question}").template(tokenizer) == PromptTemplate(prompt="Q {question}")
    assert Chat(style="chat", date="1 May").template(tokenizer) == ChatTemplate(tokenizer, "", "1 May")
    assert Finetuned(source="finetuned", base="x", lora=Lora()).recipe.warmup == pytest.approx(0.2)
    assert Ready(source="ready", original="x").recipe.lr == pytest.approx(1e-5)
