"""`evaluate --profile open-unlearning` against what open-unlearning itself printed, on every checkpoint with results.

Tolerances are those of the folder's README. An aggregate may move as far as its rows may; a generation that differs (at most 1 in 100)
takes its ROUGE along.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import ks_2samp
from typer.testing import CliRunner

from unlearnbench.cli import app

FORGET_SETS = ("forget01", "forget05", "forget10")
LOSS, RELATIVE, LOWEST, NORM, AUC = 3e-5, 5e-5, 2e-5, 1e-4, 1e-4


def evaluated(conformance: Path, benchmark: str) -> list[str]:
    """Names of results that have a checkpoint."""
    names = [path.name for path in sorted((conformance / benchmark).iterdir()) if (conformance / "models" / path.name).is_dir()]
    assert names, f"no results of {benchmark} have a checkpoint"
    return names


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def rows(path: Path) -> list[dict[str, Any]]:
    text = path.read_text()
    found: list[dict[str, Any]] = (
        json.loads(text) if text.startswith("[") else [json.loads(line) for line in text.splitlines() if line.strip()]
    )
    return found


def tofu_options(log: Mapping[str, Any], data: Path) -> list[str]:
    """The forget set whose rows a log shows, and its limit where it stops early."""
    shown = log["forget_Q_A_ROUGE"]["value_by_index"]
    questions = [shown[str(i)]["input"] for i in range(len(shown))]
    for name in FORGET_SETS:
        held = [row["question"] for row in rows(data / f"{name}_perturbed.json")]
        if len(held) >= len(questions) and all(question in text for question, text in zip(held, questions, strict=False)):
            return ["--scenario", "tofu", "--forget", name, *limit(len(questions), len(held))]
    pytest.fail(f"the rows of {len(questions)} questions, the first {questions[0]!r}, are of no forget set")


def muse_options(log: Mapping[str, Any], data: Path) -> list[str]:
    """The corpus whose passages a log shows, and its limit where it stops early."""
    shown = log["forget_verbmem_ROUGE"]["value_by_index"]
    for corpus in ("news", "books"):
        path = data / corpus / "verbmem" / "forget.json"
        if path.exists() and shown["0"]["ground_truth"][-100:] in (held := rows(path))[0]["gt"]:
            return ["--scenario", "muse", "--corpus", corpus, *limit(len(shown), len(held))]
    pytest.fail("the log's passages are of no corpus")


def limit(shown: int, held: int) -> list[str]:
    return [] if shown == held else ["--limit", str(shown)]


def had_log(theirs: Mapping[str, Any]) -> bool:
    """Whether a retain model's log was given: there is a forget quality, or PrivLeak is not what it is against an area of one half."""
    if "forget_quality" in theirs:
        return theirs["forget_quality"]["agg_value"] is not None
    return bool(abs(theirs["privleak"]["agg_value"] - 200 * (0.5 - theirs["mia_min_k"]["auc"])) > 1e-6)


def evaluate(conformance: Path, benchmark: str, name: str, data: Path, out: Path, *more: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Their log and ours, out of the files."""
    theirs = read(conformance / benchmark / name / f"{benchmark.upper()}_EVAL.json")
    options = tofu_options(theirs, data / "tofu") if benchmark == "tofu" else muse_options(theirs, data / "muse")
    folder = data / ("tofu" if benchmark == "tofu" else f"muse/{options[3]}")
    arguments = ["--model", str(conformance / "models" / name), *options, "--profile", "open-unlearning", "--data-dir", str(folder)]
    log = conformance / benchmark / "retain" / f"{benchmark.upper()}_EVAL.json"
    arguments += ["--oracle-log", str(log)] * had_log(theirs) + ["--reference-model", str(conformance / "models" / "retain")]
    done = CliRunner().invoke(app, ["evaluate", *arguments, "--workers", "1", *more, "--out", str(out)])
    assert done.exit_code == 0, done.output
    return theirs, read(out / f"{benchmark.upper()}_EVAL.json")


def leaves(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Paths and values of a group; a list's entries share a path."""
    if isinstance(group, dict):
        for key, value in group.items():
            yield from leaves(value, (*path, key))
    elif isinstance(group, list):
        for value in group:
            yield from leaves(value, path)
    else:
        yield path, group


def allowed(metric: str, path: tuple[str, ...], value: float, theirs: Mapping[str, Any]) -> float:
    """How far ours may be from a number of theirs."""
    if metric in ("exact_memorization", "extraction_strength"):
        return 1e-9
    if path[-1] == "auc" or (path == ("agg_value",) and metric.startswith("mia_")):
        return AUC
    if path[-1] == "avg_loss" or metric == "mia_loss":
        return LOSS
    if metric == "mia_reference":
        return 2 * LOSS
    if metric == "mia_zlib":
        # A text compresses to 8 bytes at least; a row's own length is its loss over its score.
        return LOSS / 8 if path[-1] == "agg_value" else LOSS * value / theirs["mia_loss"][path[0]]["value_by_index"][path[2]]["score"]
    if metric == "mia_min_k_plus_plus":
        # Where the model is sure of another token, scores of 15 and more divide by small variances: there single precision moves
        # theirs and ours by as much, each away from double precision. Their own batches and order of sums bring ours no closer: it is the
        # last bits of the logits.
        return max(LOWEST, 4e-6 * abs(value))
    if metric == "mia_min_k":
        return LOWEST
    return abs(value) * (NORM if metric == "mia_gradnorm" else RELATIVE)


def compare(theirs: dict[str, Any], ours: dict[str, Any], *, whole: bool) -> list[str]:
    """All disagreements; aggregates are left out of a part."""
    wrong: list[str] = []
    other_texts = 0
    for metric in sorted(ours if not whole else theirs):
        expected, found = dict(leaves(theirs[metric])), dict(leaves(ours[metric]))
        if "generation" in next(iter(theirs[metric].get("value_by_index", {"": {}}).values())):
            other_texts += compare_texts(metric, theirs[metric], ours[metric], wrong, whole=whole)
            continue
        lists: dict[str, list[tuple[Any, Any]]] = {}
        assert not whole or expected.keys() == found.keys(), metric
        for (path, value), (same, mine) in zip(
            ((path, value) for path, value in leaves(theirs[metric]) if path in found), leaves(ours[metric]), strict=True
        ):
            assert path == same
            if not whole and path[-1] in ("agg_value", "auc"):
                continue
            lists.setdefault("/".join(path), []).append((value, mine))
            if metric in ("forget_quality", "model_utility", "privleak") or value is None or mine is None:
                continue
            if not abs(value - mine) <= allowed(metric, path, value, theirs):
                wrong.append(f"{metric}/{'/'.join(path)}: {value} and {mine}, allowed {allowed(metric, path, value, theirs):.1e}")
        wrong += [f"{metric}/{path}: {pair}" for path, pairs in lists.items() for pair in pairs if (pair[0] is None) != (pair[1] is None)]
    if whole and "model_utility" in theirs:
        utility = theirs["model_utility"]["agg_value"], ours["model_utility"]["agg_value"]
        if not abs(utility[0] - utility[1]) <= (RELATIVE if not other_texts else 1e-2) * utility[0]:
            wrong.append(f"model_utility: {utility}")
    return wrong


def compare_texts(metric: str, theirs: dict[str, Any], ours: dict[str, Any], wrong: list[str], *, whole: bool) -> int:
    """Texts and their ROUGE; returns how many generations differ."""
    shown, mine = theirs["value_by_index"], ours["value_by_index"]
    assert shown.keys() == mine.keys() if whole else mine.keys() <= shown.keys()
    different = [i for i in mine if shown[i]["generation"] != mine[i]["generation"]]
    if len(different) > 0.01 * len(mine):
        wrong.append(f"{metric}: {len(different)} of {len(mine)} generations differ, the first {different[0]}")
    for i in mine:
        for key in shown[i].keys() - ({"generation"} if i not in different else {"generation", *(k for k in shown[i] if "rouge" in k)}):
            if shown[i][key] != pytest.approx(mine[i][key], abs=1e-12) if "rouge" in key else shown[i][key] != mine[i][key]:
                wrong.append(f"{metric}/{i}/{key}: {shown[i][key]!r:.80} and {mine[i][key]!r:.80}")
    if whole and not abs(theirs["agg_value"] - ours["agg_value"]) <= len(different) / len(mine) + 1e-9:
        wrong.append(f"{metric}: {theirs['agg_value']} and {ours['agg_value']}")
    return len(different)


def check_quality(theirs: dict[str, Any], ours: dict[str, Any], retain: dict[str, Any]) -> None:
    """Of equal distance, an equal p; a row at the border between two of the retain model's may move the distance by one row."""
    values = [np.array([row["score"] for row in log["forget_truth_ratio"]["value_by_index"].values()]) for log in (theirs, ours, retain)]
    distances = [ks_2samp(value, values[2]).statistic for value in values[:2]]
    assert abs(distances[0] - distances[1]) <= 1.01 / len(values[0])
    if distances[0] == distances[1]:
        assert ours["forget_quality"]["agg_value"] == pytest.approx(theirs["forget_quality"]["agg_value"], rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("benchmark", ["tofu", "muse"])
def test_every_checkpoint_agrees_in_every_value(conformance: Path, data_root: Path, tmp_path: Path, benchmark: str) -> None:
    retain = read(conformance / benchmark / "retain" / f"{benchmark.upper()}_EVAL.json")
    wrong = {}
    for name in evaluated(conformance, benchmark):
        theirs, ours = evaluate(conformance, benchmark, name, data_root, tmp_path / name)
        assert theirs.keys() == ours.keys()
        if had_log(theirs) and benchmark == "tofu":
            check_quality(theirs, ours, retain)
        wrong[name] = compare(theirs, ours, whole=True)
        base = 1 - (retain["mia_min_k"]["auc"] if had_log(theirs) else 0.5)
        assert ours["privleak"]["agg_value"] == pytest.approx(theirs["privleak"]["agg_value"], abs=AUC * 100 / base)
        summary = tmp_path / name / f"{benchmark.upper()}_SUMMARY.json"
        stated = read(conformance / benchmark / name / summary.name)
        assert stated.keys() == read(summary).keys()
        assert all(value == ours[key]["agg_value"] for key, value in read(summary).items())
    assert not any(wrong.values()), wrong


def test_the_first_rows_agree_in_every_value(conformance: Path, data_root: Path, tmp_path: Path) -> None:
    name = evaluated(conformance, "tofu")[0]
    theirs, ours = evaluate(conformance, "tofu", name, data_root, tmp_path, "--limit", "2")
    assert len(ours["forget_Q_A_PERT_Prob"]["value_by_index"]) == 2
    assert not compare(theirs, ours, whole=False)
