"""A checkpoint scored by our own metrics, from the command line: its record, its table, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from made_benchmarks import row, write_checkpoint, write_tofu
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner, Result

from unlearnbench.cli import app
from unlearnbench.records import Record, read_records


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    write_tofu(folder / "tofu")
    write_checkpoint(folder / "model", seed=0)
    write_checkpoint(folder / "retain", seed=1)
    return folder


def evaluate(place: Path, out: Path, *arguments: str) -> Result:
    torch.set_num_threads(1)
    options = ["--model", str(place / "model"), "--scenario", "tofu", "--forget", "forget01", "--data-dir", str(place / "tofu")]
    return CliRunner().invoke(
        app,
        ["evaluate", *options, "--limit", "2", "--device", "cpu", "--store", str(out / "store"), "--out", str(out / "results"), *arguments],
    )


def test_a_checkpoint_and_its_oracle_have_records(place: Path, tmp_path: Path) -> None:
    others = ("--oracle", str(place / "retain"), "--reference-model", str(place / "retain"))
    result = evaluate(place, tmp_path, *others, "--attacks", "loss_attack,reference_attack")
    assert result.exit_code == 0, result.output
    records: dict[str, Record] = {record.trial.role: record for record in read_records(tmp_path / "results")}
    assert set(records) == {"original", "oracle"}
    failed = [cell for record in records.values() for cell in record.cells if cell.status == "failed"]
    assert not failed
    assert {cell.metric for cell in records["original"].cells} >= {"loss_attack", "reference_attack", "probability", "extraction_strength"}
    assert "probability" in result.stdout

    made, tokenizer = row(3961), AutoTokenizer.from_pretrained(place / "model")
    turns = [{"role": "system", "content": "You are a helpful assistant."}, {"role": "user", "content": made["question"]}]
    prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    answer = [*tokenizer.encode(made["answer"], add_special_tokens=False), tokenizer.eos_token_id]
    for role, folder in (("original", "model"), ("oracle", "retain")):
        with torch.no_grad():
            logits = AutoModelForCausalLM.from_pretrained(place / folder)(torch.tensor([prompt + answer])).logits[0]
        nll = torch.nn.functional.cross_entropy(logits[len(prompt) - 1 : -1], torch.tensor(answer)).item()
        items = (tmp_path / "results" / records[role].filename).with_suffix(".parquet")
        import pyarrow.parquet as pq

        values = [one for one in pq.read_table(items).to_pylist() if one["metric"] == "probability"]
        assert len(values) == 2
        assert values[1]["value"] == pytest.approx(np.exp(-nll), rel=1e-4)


def test_a_checkpoint_alone_has_a_record(place: Path, tmp_path: Path) -> None:
    result = evaluate(place, tmp_path, "--attacks", "min_k")
    assert result.exit_code == 0, result.output
    (record,) = read_records(tmp_path / "results")
    assert record.anchors["oracle"] == ()
    assert json.loads(record.model_dump_json())["trial"]["request"] == "forget01"


def test_a_steered_checkpoint_is_scored_as_deployed(place: Path, tmp_path: Path) -> None:
    for name, numbers in (("forget", range(3960, 3968)), ("retain", range(40))):
        (tmp_path / f"{name}.jsonl").write_text(
            "\n".join(json.dumps({key: row(n)[key] for key in ("question", "answer")}) for n in numbers)
        )
    options = [f"--{name}={tmp_path / name}.jsonl" for name in ("forget", "retain")]
    steered = ["--method", "guard_it", "--set", "clusters=2", "--set", "alpha=8", "--chat", "--system", "You are a helpful assistant."]
    made = CliRunner().invoke(app, ["unlearn", "--model", str(place / "model"), *options, *steered, "--out", str(tmp_path / "steered")])
    assert made.exit_code == 0, made.output
    found = []
    for name in ("plain", "steered"):
        more = ("--model", str(tmp_path / "steered")) if name == "steered" else ()
        result = evaluate(place, tmp_path / name, "--attacks", "min_k", *more)
        assert result.exit_code == 0, result.output
        (record,) = read_records(tmp_path / name / "results")
        cell = record.cell("probability")
        assert cell is not None
        found.append(cell.value)
    assert found[0] != found[1]


def test_bad_input_is_one_line_and_leaves_nothing(place: Path, tmp_path: Path) -> None:
    for message, *arguments in (
        ("is no attack; there are:", "--attacks", "liar"),
        ("compares with many models", "--attacks", "lira"),
        ("give its folder as --reference-model", "--attacks", "reference_attack"),
        ("is read with --profile open-unlearning", "--oracle-log", "x.json"),
        ("has no request 'forget02'", "--forget", "forget02"),
        ("is no folder", "--data-dir", str(tmp_path / "nowhere")),
        ("has no tokenizer", "--model", str(place / "tofu")),
    ):
        result = evaluate(place, tmp_path, *arguments)
        assert result.exit_code == 2, result.output
        assert [message in line for line in result.stderr.splitlines() if line.startswith("error: ")] == [True], result.stderr
        assert not (tmp_path / "results").exists()
