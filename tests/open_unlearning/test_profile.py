"""The profile's conventions against transformers run as they say, one row at a time; its formulas by hand; and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_benchmarks import row, write_checkpoint, write_lines, write_muse, write_tofu
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner, Result

from unlearnbench.cli import app
from unlearnbench.evidence import Tokens
from unlearnbench.open_unlearning import scores
from unlearnbench.open_unlearning.prompts import Prompts, cleaned

SYSTEM = {"role": "system", "content": "You are a helpful assistant."}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    write_tofu(folder / "tofu")
    write_muse(folder / "muse")
    write_checkpoint(folder / "model", seed=0)
    write_checkpoint(folder / "retain", seed=1)
    write_checkpoint(folder / "masking", seed=0, pad="<eos>")
    write_checkpoint(folder / "padless", seed=0, pad=None)
    write_checkpoint(folder / "plain", seed=0, chat=False)
    return folder


def evaluate(place: Path, out: Path, *arguments: str, model: str = "model", scenario: str = "tofu", data: str | None = None) -> Result:
    torch.set_num_threads(1)
    named = ["--forget", "forget01"] if scenario == "tofu" else []
    options = ["--model", str(place / model), "--scenario", scenario, *named, "--data-dir", data or str(place / scenario)]
    return CliRunner().invoke(
        app, ["evaluate", *options, "--profile", "open-unlearning", "--workers", "1", "--device", "cpu", "--out", str(out), *arguments]
    )


def log_of(result: Result, out: Path, name: str = "TOFU") -> Any:
    assert result.exit_code == 0, result.output
    return json.loads((out / f"{name}_EVAL.json").read_text())


def by_transformers(model: Any, tokenizer: Any, question: str, answer: str, *, chat: bool) -> tuple[torch.Tensor, Any]:
    """Losses of an answer's tokens as open-unlearning says, with transformers alone, and the continuation of its prompt."""
    if chat:
        turns = [SYSTEM, {"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        whole = tokenizer.apply_chat_template(turns, return_dict=False)
        prompt = tokenizer.apply_chat_template(turns[:-1], add_generation_prompt=True, return_dict=False)
    else:
        text = f"Question: {question}\nAnswer: "
        whole, prompt = tokenizer(text + answer)["input_ids"], tokenizer(text)["input_ids"]
    whole = whole if whole[-1] == tokenizer.eos_token_id else [*whole, tokenizer.eos_token_id]
    ids, given = torch.tensor([whole]), torch.tensor([prompt])
    logits = model(ids, attention_mask=(ids != tokenizer.pad_token_id).long()).logits[0, len(prompt) - 1 : -1]
    losses = torch.nn.functional.cross_entropy(logits, ids[0, len(prompt) :], reduction="none")

    def generated() -> str:
        mask = (given != tokenizer.pad_token_id).long()
        new = model.generate(given, attention_mask=mask, max_new_tokens=200, do_sample=False, pad_token_id=1)
        return cleaned(tokenizer.decode(new[0, len(prompt) :], skip_special_tokens=True)).strip()

    return losses, generated


@pytest.mark.parametrize(("model", "chat"), [("model", True), ("masking", True), ("padless", True), ("plain", False)])
def test_rows_equal_transformers_one_at_a_time(place: Path, tmp_path: Path, model: str, chat: bool) -> None:
    log = log_of(evaluate(place, tmp_path, "--limit", "2", model=model), tmp_path)
    tokenizer, loaded = AutoTokenizer.from_pretrained(place / model), AutoModelForCausalLM.from_pretrained(place / model)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    made = row(3961)
    losses, generated = by_transformers(loaded, tokenizer, made["question"], made["answer"], chat=chat)
    assert log["forget_Q_A_Prob"]["value_by_index"]["1"]["avg_loss"] == pytest.approx(losses.mean().item(), rel=1e-5)
    assert log["forget_Q_A_ROUGE"]["value_by_index"]["1"]["generation"] == generated()
    assert log["forget_Q_A_ROUGE"]["value_by_index"]["1"]["ground_truth"] == made["answer"]
    losses[:-1].mean().backward()
    norm = float(np.mean([parameter.grad.norm().item() for parameter in loaded.parameters()]))
    assert log["mia_gradnorm"]["forget"]["value_by_index"]["1"]["score"] == pytest.approx(norm, rel=1e-4)
    wrong = [by_transformers(loaded, tokenizer, made["question"], one, chat=chat)[0].mean().item() for one in made["perturbed_answer"]]
    assert log["forget_Q_A_PERT_Prob"]["value_by_index"]["1"]["avg_loss"] == pytest.approx(wrong, rel=1e-5)


def test_masking_end_tokens_inside_a_prompt_matters(place: Path, tmp_path: Path) -> None:
    plain, masked, padless = (
        log_of(evaluate(place, tmp_path / model, "--limit", "2", "--attacks", "loss", model=model), tmp_path / model)
        for model in ("model", "masking", "padless")
    )
    assert masked == padless
    loss = [log["forget_Q_A_Prob"]["value_by_index"]["0"]["avg_loss"] for log in (plain, masked)]
    assert abs(loss[0] - loss[1]) > 1e-3


def test_the_oracle_may_be_a_folder_or_its_log(place: Path, tmp_path: Path) -> None:
    retain = evaluate(place, tmp_path / "retain", "--limit", "3", model="retain")
    assert log_of(retain, tmp_path / "retain")["forget_quality"]["agg_value"] is None
    assert "forget_quality" not in json.loads((tmp_path / "retain" / "TOFU_SUMMARY.json").read_text())
    saved = str(tmp_path / "retain" / "TOFU_EVAL.json")
    from_log = log_of(evaluate(place, tmp_path / "a", "--limit", "3", "--oracle-log", saved), tmp_path / "a")
    from_folder = log_of(evaluate(place, tmp_path / "b", "--limit", "3", "--oracle", str(place / "retain")), tmp_path / "b")
    assert from_log == from_folder
    assert 0 < from_log["forget_quality"]["agg_value"] < 1
    # The first rows of a longer log are those rows.
    shorter = log_of(evaluate(place, tmp_path / "c", "--limit", "2", "--oracle-log", saved), tmp_path / "c")
    same = log_of(evaluate(place, tmp_path / "d", "--limit", "2", "--oracle", str(place / "retain")), tmp_path / "d")
    assert shorter["privleak"] == same["privleak"]
    assert shorter["forget_quality"] == same["forget_quality"]


def test_a_model_is_no_better_known_than_to_itself(place: Path, tmp_path: Path) -> None:
    arguments = ("--limit", "3", "--oracle", str(place / "model"), "--reference-model", str(place / "model"))
    log = log_of(evaluate(place, tmp_path, *arguments), tmp_path)
    assert log["forget_quality"]["agg_value"] == 1
    assert log["privleak"]["agg_value"] == 0
    assert all(one["score"] == 0 for one in log["mia_reference"]["holdout"]["value_by_index"].values())


def test_muse_rows_and_groups(place: Path, tmp_path: Path) -> None:
    log = log_of(evaluate(place, tmp_path, "--limit", "2", scenario="muse"), tmp_path, "MUSE")
    assert {name for name in log if "ROUGE" in name} == {"forget_knowmem_ROUGE", "retain_knowmem_ROUGE", "forget_verbmem_ROUGE"}
    tokenizer = AutoTokenizer.from_pretrained(place / "model")
    model = AutoModelForCausalLM.from_pretrained(place / "model")
    passages = [json.loads(line) for line in (place / "muse" / "verbmem" / "forget.json").read_text().splitlines()]
    text = json.loads((place / "muse" / "privleak" / "holdout.json").read_text())[1]
    with torch.no_grad():
        ids = torch.tensor([tokenizer(text)["input_ids"]])  # this tokenizer begins no text with a token of its own
        loss = torch.nn.functional.cross_entropy(model(ids).logits[0, :-1], ids[0, 1:]).item()
    assert log["mia_loss"]["holdout"]["value_by_index"]["1"]["score"] == pytest.approx(loss, rel=1e-5)
    told = "".join(f"Question: {row(500 + i)['question']}\nAnswer: {row(500 + i)['answer']}\n\n" for i in range(10))
    asked = log["forget_knowmem_ROUGE"]["value_by_index"]["1"]
    given = tokenizer(f"{told}Question: {row(1)['question']}\nAnswer: ")["input_ids"]
    assert asked["input"] == cleaned(tokenizer.decode(given[:512], skip_special_tokens=True))
    assert asked["ground_truth"] == (row(1)["answer"] if len(given) < 500 else "")
    assert "\n\n" not in asked["generation"]
    verbatim = log["forget_verbmem_ROUGE"]["value_by_index"]["1"]
    assert (verbatim["input"], verbatim["ground_truth"]) == (passages[1]["prompt"], passages[1]["gt"])


@pytest.mark.slow
def test_workers_change_nothing(place: Path, tmp_path: Path) -> None:
    logs = [
        log_of(evaluate(place, tmp_path / str(workers), "--limit", "6", "--workers", str(workers)), tmp_path / str(workers))
        for workers in (1, 2)
    ]
    assert logs[0] == logs[1]


# --------------------------------------------------------------------------------------------------------------------- refusals


def test_bad_input_is_one_line_and_leaves_nothing(place: Path, tmp_path: Path) -> None:
    spoiled = tmp_path / "tofu"
    shutil.copytree(place / "tofu", spoiled)
    rows = [row(number) for number in range(3960, 4000)]
    (tmp_path / "bare").mkdir()
    for file in ("config.json", "model.safetensors"):
        shutil.copy(place / "model" / file, tmp_path / "bare" / file)
    shutil.copytree(place / "model", tmp_path / "weightless")
    (tmp_path / "weightless" / "model.safetensors").unlink()
    (tmp_path / "number.json").write_text("3")
    other = {str(i): {"score": 0.1, "ground_truth": f"answer {i}"} for i in range(40)}
    part = {"agg_value": 0.5, "value_by_index": other}
    log = {"forget_truth_ratio": part, "mia_min_k": {"agg_value": 0.5, "forget": part, "holdout": part}}
    (tmp_path / "short.json").write_text(
        json.dumps({**log, "forget_truth_ratio": {"agg_value": 0.1, "value_by_index": {"0": {"score": 1}}}})
    )
    (tmp_path / "else.json").write_text(json.dumps({**log, "forget_Q_A_ROUGE": part}))
    (tmp_path / "part.json").write_text(json.dumps({"mia_min_k": log["mia_min_k"]}))

    def refused(message: str, *arguments: str, **options: Any) -> None:
        result = evaluate(place, tmp_path / "out", *arguments, **options)
        assert result.exit_code == 2, result.output
        errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1
        assert message in errors[0], errors
        assert not (tmp_path / "out").exists()

    refused("has no tokenizer that transformers can read", model="../" + str((tmp_path / "bare").relative_to(place.parent)))
    refused("is no causal language model", model="../" + str((tmp_path / "weightless").relative_to(place.parent)), data=None)
    refused("is no folder", data=str(tmp_path / "nowhere"))
    refused("allowed: forget01, forget05, forget10", "--forget", "forget02")
    refused("allowed: news, books", "--corpus", "songs", scenario="muse")
    refused("allowed: loss, zlib", "--attacks", "loss,lira")
    refused("give its folder as --reference-model", "--attacks", "reference")
    refused("give one of them", "--oracle", str(place / "retain"), "--oracle-log", str(tmp_path / "part.json"))
    refused("No such file", "--oracle-log", str(tmp_path / "none.json"))
    refused("no log of metrics by name", "--oracle-log", str(tmp_path / "number.json"))
    refused("no 'forget_truth_ratio'", "--oracle-log", str(tmp_path / "part.json"))
    refused("has 1 rows of forget_truth_ratio, and forget has 40: another split", "--oracle-log", str(tmp_path / "short.json"))
    refused("'answer 0'", "--oracle-log", str(tmp_path / "else.json"))
    write_lines(spoiled / "forget01_perturbed.json", rows[:-1])
    refused("has 39 rows", data=str(spoiled))
    # Under another name: a process reads a file once.
    spoiled = spoiled.rename(tmp_path / "reordered")
    write_lines(spoiled / "forget01_perturbed.json", [rows[1], rows[0], *rows[2:]])
    refused("the rows were reordered", data=str(spoiled))
    (spoiled / "forget01_perturbed.json").unlink()
    refused("forget01_perturbed.json is missing", data=str(spoiled.rename(tmp_path / "lacking")))


# --------------------------------------------------------------------------------------------------------------------- formulas


def tokens(*hits: list[bool], logprob: list[list[float]] | None = None) -> Tokens:
    given = logprob or [[-1.0] * len(one) for one in hits]
    flat = np.concatenate([np.array(one, dtype=np.float32) for one in given])
    return Tokens(
        logprob=flat,
        hit=np.concatenate([np.array(one, dtype=bool) for one in hits]),
        offsets=np.concatenate([[0], np.cumsum([len(one) for one in hits])]),
        mean=np.full(len(flat), -2.0, dtype=np.float32),
        variance=np.zeros(len(flat), dtype=np.float32),
    )


def values(group: dict[str, Any]) -> list[Any]:
    return [one["score"] for one in group["value_by_index"].values()]


def test_memorisation_leaves_out_the_last_token_and_has_no_zero() -> None:
    made = tokens([False, True, True, False], [False, False, True], [True])
    assert values(scores.extraction_strength(made)) == [1 - 1 / 3, 1 / 2, 0.0]
    assert values(scores.exact_memorization(made)) == [float(np.float32(2 / 3)), 0.0, None]
    assert scores.exact_memorization(made)["agg_value"] == pytest.approx(1 / 3)


def test_lowest_tokens_are_higher_for_non_members() -> None:
    made = tokens([True] * 4, [True], logprob=[[-1.0, -3.0, -2.0, -9.0], [-7.0]])
    assert scores.lowest(made) == [3.0, 0.0]
    # (-3 + 2) / sqrt(1e-6)
    assert scores.lowest_standardised(made) == [pytest.approx(1000.0), 0.0]
    group = scores.membership([0.1, 0.2], [0.15, 0.3])
    assert (group["auc"], group["agg_value"]) == (0.75, 0.75)
    assert scores.privleak(0.75, None)["agg_value"] == pytest.approx(-50.0)
    assert scores.privleak(0.4, 0.8)["agg_value"] == pytest.approx(200.0)


def test_denominators_have_their_1e_10() -> None:
    right = scores.grouped([{"prob": 0.0, "avg_loss": 800.0}, {"prob": 0.25, "avg_loss": float(np.log(4))}], 0.0)
    wrong = scores.grouped([{"prob": [0.0] * 2, "avg_loss": [900.0] * 2}, {"prob": [0.5, 0.125], "avg_loss": np.log([2, 8]).tolist()}], 0.0)
    assert values(scores.truth_ratio(right, wrong, scores.true_better)) == [0.0, pytest.approx(1.0, rel=1e-9)]
    assert scores.truth_ratio(right, wrong, scores.true_better)["agg_value"] == pytest.approx(0.5)
    assert scores.truth_ratio(right, wrong, scores.closer_to_1_better)["agg_value"] == pytest.approx(0.5)
    shares = [one["prob"] for one in scores.probability_with_options(right, wrong)["value_by_index"].values()]
    assert shares == [0.0, pytest.approx(0.25 / 0.875)]


def test_an_expected_answer_is_what_the_prompt_leaves(place: Path) -> None:
    prompts = Prompts(AutoTokenizer.from_pretrained(place / "plain"), chat=False)
    cut = prompts.question("What does Ada number 7 make? " * 200, ["Ada makes boats."])
    assert len(prompts.encode_prompt(cut)) == 512
    assert prompts.expected(cut, "Ada makes boats.") == ""
    assert prompts.together[cut, "Ada makes boats."][0][512:] == (1,)
    asked = prompts.question("What?", ["Ada makes boats ."])
    assert prompts.expected(asked, "Ada makes boats .") == "Ada makes boats."
    # The prompt's last id alone is a space, which together with the answer's first word is one id: that word is not scored.
    assert prompts.scored(asked, "Ada makes boats .") == " makes boats ."
