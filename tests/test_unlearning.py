"""`unlearnbench unlearn`: a model folder and two files in, a model folder out, and nothing half-written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from unlearnbench.api import UserError
from unlearnbench.checkpoints import is_wrapped, load_checkpoint, load_tokenizer
from unlearnbench.cli import app
from unlearnbench.scenarios.tiny_lm import build_model, build_tokenizer
from unlearnbench.unlearning import fields_of

FORGET = [{"question": f"who wrote book {n}", "answer": f"author {n}"} for n in range(4)]
RETAIN = [{"question": f"where is town {n}", "answer": f"in land {n}"} for n in range(8)]
Unlearn = Callable[..., tuple[int, str]]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    texts = [text for row in (*FORGET, *RETAIN) for text in (f"Question: {row['question']}\nAnswer:", f" {row['answer']}")]
    tokenizer = build_tokenizer(texts)
    (tmp_path / "model").mkdir()
    build_model(len(tokenizer), seed=0, hidden_size=16, n_layers=2, max_length=64).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    for name, rows in (("forget", FORGET), ("retain", RETAIN)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return tmp_path


@pytest.fixture
def unlearn(place: Path) -> Unlearn:
    def unlearn(method: str, *more: str, **changes: str) -> tuple[int, str]:
        given = {
            "model": place / "model",
            "forget": place / "forget.jsonl",
            "retain": place / "retain.jsonl",
            "out": place / "out",
            **changes,
        }
        options = [part for name, value in given.items() for part in (f"--{name}", str(value))]
        result = CliRunner().invoke(app, ["unlearn", "--method", method, *options, *more])
        return result.exit_code, result.output

    return unlearn


def test_weight_edits_are_a_folder_that_transformers_opens(place: Path, unlearn: Unlearn) -> None:
    code, said = unlearn("gradient_ascent", "--set", "lr=1e-2", "--set", "epochs=2")
    assert (code, "AutoModelForCausalLM.from_pretrained" in said) == (0, True)
    before, after = (AutoModelForCausalLM.from_pretrained(place / name).eval() for name in ("model", "out"))
    tokenizer = load_tokenizer(str(place / "out"))
    ids = torch.tensor([tokenizer.encode("Question: who wrote book 1\nAnswer: author 1")])
    with torch.no_grad():
        assert after(input_ids=ids, labels=ids).loss > before(input_ids=ids, labels=ids).loss
    made = json.loads((place / "out" / "unlearnbench.json").read_text())
    assert (made["method"], made["fields"]["lr"], made["fields"]["epochs"]) == ("gradient_ascent", 0.01, 2)
    assert sorted(path.name for path in place.iterdir()) == ["forget.jsonl", "model", "out", "retain.jsonl"]


def test_a_wrapper_is_opened_by_our_own_loader_and_can_be_unlearned_again(place: Path, unlearn: Unlearn) -> None:
    code, said = unlearn("guard_it", "--set", "clusters=2")
    assert (code, "load_checkpoint" in said) == (0, True)
    assert is_wrapped(place / "out")
    assert not any("author 1" in path.read_text(errors="ignore") for path in (place / "out").glob("deployed.json"))
    load_checkpoint(str(place / "out"))
    code, _ = unlearn("npo", "--set", "epochs=1", model=str(place / "out"), out=str(place / "again"))
    assert (code, is_wrapped(place / "again")) == (0, True)


@pytest.mark.parametrize(
    ("more", "changes", "said"),
    [
        (["--set", "lr=-1"], {}, "lr"),
        (["--set", "lr"], {}, "field=value"),
        (["--system", "be brief"], {}, "--chat"),
        ([], {"forget": "nowhere.jsonl"}, "nowhere.jsonl"),
        ([], {"model": "nowhere"}, "nowhere"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    place: Path, unlearn: Unlearn, more: list[str], changes: dict[str, str], said: str
) -> None:
    code, output = unlearn("npo", *more, **changes)
    assert code == 2
    assert said in output
    assert len(output.strip().splitlines()) == 1
    assert not (place / "out").exists()


def test_a_folder_with_files_is_left_alone(place: Path, unlearn: Unlearn) -> None:
    code, output = unlearn("npo", out=str(place / "model"))
    assert (code, "has files in it" in output) == (2, True)


def test_what_needs_a_suite_is_refused(unlearn: Unlearn) -> None:
    assert unlearn("random_labels")[0] == 2
    assert unlearn("no_such_method")[0] == 2


def test_a_training_that_diverges_writes_nothing(place: Path, unlearn: Unlearn) -> None:
    code, output = unlearn("gradient_ascent", "--set", "lr=1e30", "--set", "epochs=3")
    assert code == 1
    assert "nothing was written" in output
    assert not (place / "out").exists()


def test_fields_are_yaml() -> None:
    assert fields_of(["lr=1e-5", "split=forget"]) == {"lr": 1e-5, "split": "forget"}
    with pytest.raises(UserError, match="set before"):
        fields_of(["lr=1", "lr=2"])
